"""A played MTD driver on a file: NOR flash, whose bits only an erase makes 1 again."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from mgota.linux.mtd import MEMERASE, MEMGETINFO, MEMUNLOCK


class MtdDriver:
    """`ioctl` of the device, and `pwrite` as NOR flash has it.

    Args:
        path: the file that is the device.
        blocks: erase blocks.
        block: bytes of one.
        kind: 3 is NOR.
    """

    def __init__(self, path: Path, *, blocks: int = 8, block: int = 4096, unit: int = 1, kind: int = 3) -> None:
        self.path, self.size, self.block, self.unit, self.kind, self.oob = path, blocks * block, block, unit, kind, 0
        self.erased = list[int]()
        self.has_lock = False
        path.write_bytes(b"\xff" * self.size)

    def __call__(self, fd: int, number: int, argument: bytes) -> bytes:
        if number == MEMGETINFO:
            return struct.pack("=B3xIIIII4xQ", self.kind, 0, self.size, self.block, self.unit, self.oob, 0)
        if number == MEMUNLOCK:
            if not self.has_lock:
                raise OSError(95, "Operation not supported")
            return argument
        assert number == MEMERASE
        start, length = struct.unpack("=II", argument)
        if start % self.block or length % self.block or start + length > self.size:
            raise OSError(22, "Invalid argument")
        self.erased += range(start // self.block, (start + length) // self.block)
        REAL_PWRITE(fd, b"\xff" * length, start)
        return argument

    def installed(self, monkeypatch: pytest.MonkeyPatch) -> "MtdDriver":
        """From now on a write to the file clears bits only."""

        def pwrite(fd: int, data: Any, offset: int) -> int:
            if os.path.samestat(os.fstat(fd), self.path.stat()):
                old = os.pread(fd, len(data), offset)
                data = bytes(one & two for one, two in zip(old, data, strict=True))
            return REAL_PWRITE(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
        return self


REAL_PWRITE = os.pwrite
