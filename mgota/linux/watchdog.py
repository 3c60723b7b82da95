"""The kernel's watchdog, `/dev/watchdog`: a chip that resets the board, whatever became of Linux.

Rules:
- opening it starts it, and closing it without a last "V" leaves it running: a program that is killed is a board that
  resets;
- drivers cap the timeout (15 s on a Raspberry Pi). What they take instead is the `limit`, and longer windows are fed;
- it is fed by the event loop itself, never from a thread: a loop that hangs starves it;
- what can be known without opening it, is: the reason of the last reset, and whether it can be stopped, are in sysfs.

Source: the kernel's Documentation/watchdog/watchdog-api.rst and ABI/testing/sysfs-class-watchdog.
"""

import errno
import math
import os
import struct
from contextlib import suppress
from pathlib import Path

from anyio.lowlevel import checkpoint

from mgota.errors import ConfigError
from mgota.linux.ioctl import Ioctl, ioctl, request

DEVICE = "/dev/watchdog"
SYSFS = "/sys/class/watchdog"

GETSUPPORT = request("W", 0, 40, read=True)
GETBOOTSTATUS = request("W", 2, 4, read=True)
KEEPALIVE = request("W", 5, 4, read=True)
SETTIMEOUT = request("W", 6, 4, read=True, write=True)
GETTIMEOUT = request("W", 7, 4, read=True)

MAGIC_CLOSE = 0x0100
"""Of the options: a last "V" stops it."""

REASONS = {
    0x0020: "the watchdog reset the device",
    0x0001: "the CPU was too hot",
    0x0002: "a fan failed",
    0x0004: "an external relay reset the device",
    0x0008: "an external relay reset the device",
    0x0010: "the power was bad",
    0x0040: "the voltage was too high",
}
"""Bits of the boot status, the most telling first."""

_INT = struct.Struct("=i")
_SUPPORT = struct.Struct("=II32s")  # options, firmware, identity
_REFUSED = (errno.EINVAL, errno.ERANGE)
_FIXED = (errno.ENOTTY, errno.EOPNOTSUPP)


class HardwareWatchdog:
    """A watchdog of the board; implements `Watchdog`.

    Args:
        path: the device. `/dev/watchdog` is the first one, `/dev/watchdog0`.
        limit: seconds of its longest timeout, where that is known. Otherwise the driver is asked when it is armed.
        sysfs: where the kernel describes watchdogs.
        ioctl: how drivers are called.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] = DEVICE,
        *,
        limit: float | None = None,
        sysfs: str | os.PathLike[str] = SYSFS,
        ioctl: Ioctl = ioctl,
    ) -> None:
        self.path = Path(path)
        self._limit = limit
        self._about = Path(sysfs) / (self.path.name if self.path.name[-1:].isdigit() else "watchdog0")
        self._ioctl = ioctl
        self._fd: int | None = None
        self._magic_close = True
        self._status = 0

    @property
    def limit(self) -> float | None:
        """Seconds of the longest timeout; None as long as the driver took every one."""
        return self._limit

    @property
    def stoppable(self) -> bool:
        """Whether the driver lets it be stopped: not with `nowayout`."""
        return self._magic_close and self._read("nowayout") != "1"

    @property
    def identity(self) -> str | None:
        """What the driver calls it, without opening it; None if the kernel does not say."""
        return self._read("identity")

    @property
    def active(self) -> bool:
        """Whether some program has it open, or it could not be stopped, without opening it."""
        return self._read("state") == "active"

    @property
    def longest(self) -> float | None:
        """Seconds of the longest timeout that the driver names, without opening it; None if it names none."""
        text = self._read("max_timeout") or ""
        return float(text) if text.isdecimal() and int(text) else None

    @property
    def last_reset(self) -> str | None:
        """Why the device was reset, if the watchdog knows: for `boot_check(reason=…)`. Does not open it.

        Where the kernel has no sysfs of watchdogs, it is known once it is armed.
        """
        status = self._status
        with suppress(ValueError):
            status = int(self._read("bootstatus") or "", 0)
        return next((reason for bit, reason in REASONS.items() if status & bit), None)

    def _read(self, name: str) -> str | None:
        try:
            return (self._about / name).read_text("ascii", "replace").strip()
        except OSError:
            return None

    async def arm(self, timeout: float) -> None:
        """Reset the device in `timeout` seconds unless fed; in the longest time that the driver takes, if that is less.

        Raises:
            ConfigError: there is no such device, another program has it, or it cannot be armed.
        """
        wanted = max(math.ceil(timeout if self._limit is None else min(timeout, self._limit)), 1)
        try:
            fd = self._open()
            taken = self._set(fd, wanted)
            self._ioctl(fd, KEEPALIVE, _INT.pack(0))
        except OSError as exc:
            raise ConfigError(f"the watchdog {self.path} cannot be armed: {exc.strerror}") from exc
        if taken < wanted:
            self._limit = taken
        await checkpoint()

    def _open(self) -> int:
        if self._fd is None:
            try:
                self._fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            except OSError as exc:
                if exc.errno == errno.EBUSY:
                    raise ConfigError(
                        f"another program feeds {self.path}: systemd does, if RuntimeWatchdogSec= is set"
                    ) from exc
                raise
            with suppress(OSError):  # a driver that does not say can be stopped, or not: nothing depends on it
                options, _, _ = _SUPPORT.unpack(self._ioctl(self._fd, GETSUPPORT, bytes(_SUPPORT.size)))
                self._magic_close = bool(options & MAGIC_CLOSE)
                self._status = _number(self._ioctl(self._fd, GETBOOTSTATUS, _INT.pack(0)))
        return self._fd

    def _set(self, fd: int, wanted: int) -> int:
        """Set the longest timeout that the driver takes, up to the one wanted. Returns it, in seconds."""
        try:
            taken = self._try(fd, wanted)
        except OSError as exc:
            if exc.errno not in _FIXED:
                raise
            return _number(self._ioctl(fd, GETTIMEOUT, _INT.pack(0)))  # a chip that counts one time only
        if taken is not None:
            return taken
        low, high = 0, wanted  # 0 is taken by none, and `high` is refused
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(fd, middle) is None:
                high = middle
            else:
                low = middle
        taken = self._try(fd, low) if low else None
        if taken is None:
            raise OSError(errno.EINVAL, f"its driver takes no timeout of up to {wanted} s")
        return taken

    def _try(self, fd: int, seconds: int) -> int | None:
        try:
            return _number(self._ioctl(fd, SETTIMEOUT, _INT.pack(seconds)))
        except OSError as exc:
            if exc.errno in _REFUSED:
                return None
            raise

    async def feed(self) -> None:
        """Begin the timeout anew. One that is not armed is not fed.

        Raises:
            ConfigError: the driver refused.
        """
        if self._fd is not None:
            try:
                self._ioctl(self._fd, KEEPALIVE, _INT.pack(0))
            except OSError as exc:
                raise ConfigError(f"the watchdog {self.path} cannot be fed: {exc.strerror}") from exc
        await checkpoint()

    async def disarm(self) -> None:
        """Stop it by a last "V", if the driver has it; otherwise do nothing, and it stays armed.

        Raises:
            ConfigError: the driver refused, and it stays armed.
        """
        if self._fd is not None and self.stoppable:
            fd, self._fd = self._fd, None
            try:
                os.write(fd, b"V")
            except OSError as exc:
                raise ConfigError(f"the watchdog {self.path} cannot be stopped: {exc.strerror}") from exc
            finally:
                os.close(fd)
        await checkpoint()


def _number(data: bytes) -> int:
    number: int = _INT.unpack(data)[0]
    return number
