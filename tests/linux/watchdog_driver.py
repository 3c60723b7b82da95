"""A watchdog's driver that is played: caps, refusals, and what the kernel says of it in sysfs."""

import errno
import os
import struct
from pathlib import Path
from typing import Any

from mgota.linux import watchdog as module
from mgota.linux.watchdog import GETSUPPORT, GETTIMEOUT, KEEPALIVE, SETTIMEOUT, HardwareWatchdog


class Driver:
    """Takes timeouts up to a cap; beyond it refuses, or takes the cap (`clamps`), or knows one only (`fixed`)."""

    def __init__(self, cap: int = 15, *, clamps: bool = False, fixed: int | None = None, options: int = 0x8180) -> None:
        self.cap, self.clamps, self.fixed, self.options = cap, clamps, fixed, options
        self.timeout: int | None = None
        self.feeds = 0
        self.status = 0
        self.fails: int | None = None
        self.armed_at = list[int]()

    def __call__(self, fd: int, number: int, argument: bytes) -> bytes:
        os.fstat(fd)
        if self.fails:
            raise OSError(self.fails, os.strerror(self.fails))
        if number == GETSUPPORT:
            return struct.pack("=II32s", self.options, 1, b"Driver")
        if number == module.GETBOOTSTATUS:
            return struct.pack("=i", self.status)
        if number == KEEPALIVE:
            self.feeds += 1
            return argument
        if number == GETTIMEOUT:
            return struct.pack("=i", self.fixed)
        assert number == SETTIMEOUT
        if self.fixed:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        (wanted,) = struct.unpack("=i", argument)
        if not 1 <= wanted <= self.cap and not self.clamps:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.timeout = min(wanted, self.cap)
        self.armed_at.append(self.timeout)
        return struct.pack("=i", self.timeout)


def made(directory: Path, driver: Driver, *, name: str = "watchdog", **options: Any) -> HardwareWatchdog:
    (directory / name).touch()
    return HardwareWatchdog(directory / name, sysfs=directory / "sysfs", ioctl=driver, **options)


def about(directory: Path, name: str = "watchdog0", **files: str) -> None:
    (directory / "sysfs" / name).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        (directory / "sysfs" / name / file).write_text(text + "\n")
