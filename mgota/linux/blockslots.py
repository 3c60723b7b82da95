"""Two slots on block devices: partitions, or whole devices. An image lies from the first byte on.

Rules:
- a device is written by one process only, and not while it is mounted (`mgota.linux.blockdev`);
- before the first write all of it is discarded, where it can be: of an older, longer image no tail stays, and flash
  memory is spared;
- whole pages are written, in their order: for a part of one, the kernel would have to read it first;
- what is read back after `finish` comes from the medium, as far as the kernel can be told to forget;
- a device stays open for reading, else the kernel forgets with each read what it has read ahead.
"""

import os
import weakref
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

from anyio import to_thread

from mgota.core.geometry import Slot
from mgota.errors import ConfigError, FlashError, ProgramError, ReadError, TooLargeError
from mgota.linux.blockdev import device_size, discard, find_device, open_device
from mgota.linux.ioctl import Ioctl, ioctl
from mgota.linux.slots import SlotWriter

PAGE = 4096
"""Bytes that the kernel writes as one; every page size is a multiple of it."""

_SCAN = 1 << 20  # bytes that are looked at in one go, when a slot is searched for anything not blank


class BlockSlots:
    """Where the images of two slots lie; implements `mgota.linux.selected.SlotMedium`.

    Args:
        devices: of the slots, as `find_device` takes them.
        ioctl: how drivers are called.

    Raises:
        ConfigError: a device is missing, or both slots are one.
    """

    def __init__(self, devices: Mapping[Slot, str], *, ioctl: Ioctl = ioctl) -> None:
        self.devices = dict(devices)
        self._ioctl = ioctl
        self._readers = dict[Slot, int]()
        self._opening = Lock()
        one, two = (os.path.realpath(find_device(devices[slot])) for slot in Slot)
        with suppress(OSError):  # what is not there is told when it is opened
            if os.path.samestat(os.stat(one), os.stat(two)) or _number(one) == _number(two):  # noqa: PTH116
                raise ConfigError(f"both slots are {one}")

    def path(self, slot: Slot) -> Path:
        """The device of a slot.

        Raises:
            ConfigError: there is none of its name.
        """
        return find_device(self.devices[slot])

    def room(self, slot: Slot) -> int:
        """Bytes of the device.

        Raises:
            FlashError: it cannot be looked at.
        """
        fd = self._reader(slot)
        with _translated(FlashError, f"cannot look at slot {slot}"):
            return device_size(fd, self._ioctl)

    async def open_writer(self, slot: Slot, size: int) -> "BlockWriter":
        """Begin to write an image of `size` bytes: what was there is discarded.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the device cannot be written, or is in use.
        """
        return await to_thread.run_sync(self._open_writer, slot, size, None)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple["BlockWriter", int]:
        """Go on with an image that was cut off, from the page on that holds the byte `mark`.

        Raises:
            TooLargeError: it does not fit.
            FlashError: the device cannot be written, or is in use.
        """
        start = mark // PAGE * PAGE
        return await to_thread.run_sync(self._open_writer, slot, size, start), start

    def _open_writer(self, slot: Slot, size: int, start: int | None) -> "BlockWriter":
        path = self.path(slot)
        fd = open_device(path, writing=True)
        writer = BlockWriter(fd, path, size, written=start or 0)
        try:
            with _translated(FlashError, f"cannot write slot {slot}"):
                room = device_size(fd, self._ioctl)
                if size > room:
                    raise TooLargeError(size, room)
                if start is None:
                    discard(fd, 0, room, self._ioctl)
        except BaseException:
            writer.close()
            raise
        return writer

    async def extent(self, slot: Slot) -> int:
        """Bytes of the device; 0 if all of them are 00, or all FF.

        Raises:
            FlashError: it cannot be read.
        """
        return await to_thread.run_sync(self._extent, slot)

    def _extent(self, slot: Slot) -> int:
        size = self.room(slot)
        first = self.read_blocking(slot, 0, min(size, _SCAN))
        blank = first[:1] * len(first)
        if first != blank or first[:1] not in (b"\0", b"\xff"):
            return size
        for offset in range(_SCAN, size, _SCAN):
            piece = self.read_blocking(slot, offset, min(_SCAN, size - offset))
            if piece != blank[: len(piece)]:
                return size
        return 0

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: they are not all there, or the device failed.
        """
        fd = self._reader(slot)
        with _translated(ReadError, f"cannot read slot {slot}"):
            data = os.pread(fd, size, offset)
        if len(data) != size:
            raise ReadError(f"slot {slot} ends at {offset + len(data)}, before {offset + size}")
        return data

    def _reader(self, slot: Slot) -> int:
        with self._opening:
            fd = self._readers.get(slot)
            if fd is None:
                fd = self._readers[slot] = open_device(self.path(slot), writing=False)
                weakref.finalize(self, os.close, fd)
                with suppress(OSError):  # advice
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return fd


def _number(path: str) -> int | str:
    """The number of a device; the path of what is none."""
    return os.stat(path).st_rdev or path  # noqa: PTH116  a device, not a file


class BlockWriter(SlotWriter):
    """An image on its way to a block device. Made by `BlockSlots.open_writer`.

    Args:
        fd: the device, open for writing; the writer closes it.
        path: its name.
        size: bytes of the image.
        written: bytes of it that are there already, a multiple of a page.
    """

    def __init__(self, fd: int, path: Path, size: int, *, written: int = 0) -> None:
        super().__init__(fd, path, size, written=written, new=False)
        self._held = bytearray()  # the beginning of a page

    def _write(self, fd: int, view: memoryview) -> None:
        if self._written + len(self._held) + len(view) > self._size:
            raise ProgramError(f"more than the announced {self._size} bytes for {self._path}")
        if self._held:
            taken = min(PAGE - len(self._held), len(view))
            self._held += view[:taken]
            view = view[taken:]
            if len(self._held) == PAGE:
                self._put(fd, memoryview(bytes(self._held)))
                self._held.clear()
        whole = len(view) // PAGE * PAGE
        self._put(fd, view[:whole])
        self._held += view[whole:]

    def _put(self, fd: int, view: memoryview) -> None:
        while view:
            done = os.pwrite(fd, view, self._written)
            self._written += done
            view = view[done:]

    def _finish(self, fd: int) -> None:
        if self._written + len(self._held) != self._size:
            came = self._written + len(self._held)
            raise FlashError(f"only {came} of {self._size} bytes came for {self._path}")
        self._put(fd, memoryview(bytes(self._held)))
        self._held.clear()
        os.fdatasync(fd)
        with suppress(OSError):  # advice
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._fd = None
        os.close(fd)


@contextmanager
def _translated(kind: type[FlashError], what: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise kind(f"{what}: {exc.strerror}") from exc
