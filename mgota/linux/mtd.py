"""MTD character devices, `/dev/mtdN`: raw flash memory as the kernel shows it.

`MtdDevice` blocks, for who is in a thread already; `MtdFlash` is the same as a `NorFlash`. Rules:
- an erase is a whole erase block, a program whole write units that are blank: the driver would program over what is
  there, and leave the AND of both;
- what was programmed is read back: NOR flash tells nobody when a bit did not take;
- it is opened for each operation: a descriptor that stays open keeps nothing consistent, and a leak of it would.

Only NOR flash and what behaves like it: bad blocks and spare bytes of NAND are not looked at, and NAND is refused.

Source: the kernel's include/uapi/mtd/mtd-abi.h.
"""

import os
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from mgota.core.geometry import Geometry, Sector, uniform
from mgota.errors import ConfigError, EraseError, FlashError, ProgramError, ReadError
from mgota.linux.ioctl import Ioctl, ioctl, request
from mgota.ports import ReadableBuffer

_INFO = struct.Struct("=B3xIIIII4xQ")  # type, flags, size, erasesize, writesize, oobsize, padding
_RANGE = struct.Struct("=II")  # start, length
MEMGETINFO = request("M", 1, 32, read=True)
MEMERASE = request("M", 2, _RANGE.size, write=True)
MEMUNLOCK = request("M", 6, _RANGE.size, write=True)

RAM, NOR = 1, 3
"""MTD_RAM and MTD_NORFLASH: SPI NOR counts as the latter."""


@dataclass(frozen=True, slots=True)
class MtdInfo:
    """What the driver says of the memory.

    Args:
        kind: MTD_NORFLASH and so on.
        size: bytes.
        erase_size: bytes of an erase block.
        write_size: bytes of a write unit.
    """

    kind: int
    size: int
    erase_size: int
    write_size: int


class MtdDevice:
    """An MTD character device; its calls block.

    Args:
        path: `/dev/mtdN`.
        ioctl: how drivers are called.
    """

    def __init__(self, path: str | os.PathLike[str], *, ioctl: Ioctl = ioctl) -> None:
        self.path = Path(path)
        self._ioctl = ioctl

    def info(self) -> MtdInfo:
        """Ask the driver.

        Raises:
            ConfigError: it is not one that mgota can use.
            FlashError: it cannot be opened.
        """
        with self._opened(os.O_RDONLY, FlashError) as fd:
            kind, _, size, erase, write, oob, _ = _INFO.unpack(self._ioctl(fd, MEMGETINFO, bytes(_INFO.size)))
        if oob or kind not in (RAM, NOR) or not erase or not write or size % erase:
            raise ConfigError(f"{self.path} is not NOR flash: mgota knows nothing of bad blocks")
        return MtdInfo(kind, size, erase, write)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes.

        Raises:
            ReadError: they could not be read.
        """
        with self._opened(os.O_RDONLY, ReadError) as fd:
            data = b""
            while piece := os.pread(fd, size - len(data), offset + len(data)):
                data += piece
        if len(data) != size:
            raise ReadError(f"{self.path} ends before {offset + size:#x}")
        return data

    def erase(self, offset: int, size: int) -> None:
        """Erase whole erase blocks.

        Raises:
            EraseError: the driver refused.
        """
        with self._opened(os.O_RDWR, EraseError) as fd:
            argument = _RANGE.pack(offset, size)
            with suppress(OSError):  # most memories have no lock
                self._ioctl(fd, MEMUNLOCK, argument)
            self._ioctl(fd, MEMERASE, argument)

    def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program bytes, and read them back.

        Raises:
            ProgramError: the driver refused, or they do not read back.
        """
        view = memoryview(data)
        with self._opened(os.O_RDWR, ProgramError) as fd:
            done = 0
            while done < len(view):
                done += os.pwrite(fd, view[done:], offset + done)
            if os.pread(fd, len(view), offset) != bytes(view):
                raise ProgramError(f"{self.path} does not keep what was programmed at {offset:#x}")

    @contextmanager
    def _opened(self, flags: int, error: type[FlashError]) -> Generator[int]:
        try:
            fd = os.open(self.path, flags | os.O_CLOEXEC)
            try:
                yield fd
            finally:
                os.close(fd)
        except OSError as exc:
            raise error(f"{self.path}: {exc.strerror}") from exc


def is_mtd(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a character device, which for an environment or a record can only be an MTD.

    Raises:
        OSError: there is nothing.
    """
    return stat.S_ISCHR(os.stat(path).st_mode)  # noqa: PTH116  a descriptor's path is no Path


class MtdFlash:
    """An MTD character device; implements `Flushable`.

    Args:
        device: it.

    Raises:
        ConfigError: it is not one that mgota can use.
        FlashError: it cannot be opened.
    """

    def __init__(self, device: MtdDevice) -> None:
        self.device = device
        info = device.info()
        self._geometry = uniform(info.size, info.erase_size, program_unit=info.write_size)

    @property
    def geometry(self) -> Geometry:
        """Erase blocks and write units, as the driver says."""
        return self._geometry

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the memory failed, or the range is not all there.
        """
        if offset < 0 or size < 0 or offset + size > self._geometry.size:
            raise ReadError(f"{size} bytes at {offset:#x} are not all in {self.device.path}")
        return await to_thread.run_sync(self.device.read, offset, size)

    async def erase(self, sector: Sector) -> None:
        """Erase one erase block.

        Raises:
            EraseError: the memory failed, or has no such block.
        """
        if sector not in self._geometry.sectors:
            raise EraseError(f"{self.device.path} has no erase block of {sector.length:#x} bytes at {sector.start:#x}")
        await to_thread.run_sync(self.device.erase, sector.start, sector.length)

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program whole write units.

        Raises:
            ProgramError: the memory failed, or a unit is not blank.
        """
        await to_thread.run_sync(self._program, offset, bytes(data))

    def _program(self, offset: int, data: bytes) -> None:
        unit = self._geometry.program_unit
        if offset < 0 or offset + len(data) > self._geometry.size or offset % unit or len(data) % unit:
            raise ProgramError(f"{len(data)} bytes at {offset:#x} are not whole write units of {self.device.path}")
        if data and self.device.read(offset, len(data)) != self._geometry.blank(len(data)):
            raise ProgramError(f"{self.device.path} was programmed before at {offset:#x}, and not erased")
        self.device.program(offset, data)

    async def flush(self) -> None:
        """Nothing to do: what was programmed is in the memory."""
