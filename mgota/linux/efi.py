"""The slot selector of a machine with UEFI: BootNext for a trial, BootOrder for good.

Rules:
- a variable of efivarfs is written by one call, which the firmware does or does not;
- BootNext is deleted before BootOrder is changed: a cut in between starts what stood there before;
- what was written is read back.

Firmware does not always follow its own variables; `selftest` shows only that they are kept.
"""

import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

from mgota.core.efi import GUID, BootNumbers, decode_numbers, encode_numbers, select, selected, settle
from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError
from mgota.linux.ioctl import Ioctl, ioctl, request

EFIVARS = "/sys/firmware/efi/efivars"

GETFLAGS = request("f", 1, struct.calcsize("l"), read=True)
SETFLAGS = request("f", 2, struct.calcsize("l"), write=True)
IMMUTABLE = 0x10
"""efivarfs marks variables so that nobody removes them by accident: chattr(1)."""


class EfiSelector:
    """Selects by boot entries; implements `Selector`.

    Args:
        entries: the numbers of the slots' boot entries, as `efibootmgr` shows them: Boot0003 is 3.
        directory: where efivarfs is mounted.
        ioctl: how drivers are called.
    """

    def __init__(
        self, entries: Mapping[Slot, int], *, directory: str | os.PathLike[str] = EFIVARS, ioctl: Ioctl = ioctl
    ) -> None:
        self.entries = dict(entries)
        self.directory = Path(directory)
        self._ioctl = ioctl

    async def selected_slot(self) -> Slot | None:
        """The slot that boots next; None if it is another entry.

        Raises:
            FlashError: the variables cannot be read.
        """
        return selected(await to_thread.run_sync(self._load), self.entries)

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Change the variables.

        Raises:
            SelectError: they could not be changed.
        """
        try:
            await to_thread.run_sync(self._select, slot, running)
        except FlashError as exc:
            raise SelectError(f"cannot select slot {slot}: {exc}") from exc

    async def tried(self, slot: Slot) -> bool:  # noqa: ARG002
        """No: the firmware leaves no sign."""
        return False

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Put the other slot's entry second, or nowhere.

        Raises:
            FlashError: the variables could not be changed.
        """
        await to_thread.run_sync(self._settle, running, fallback)

    async def recover(self) -> None:
        """Nothing to do: each variable is whole."""

    async def selftest(self) -> None:
        """Look for both boot entries, and write BootOrder once more as it is.

        Raises:
            FlashError: a selection would not work, and why.
        """
        await to_thread.run_sync(self._selftest)

    def _select(self, slot: Slot, running: Slot) -> None:
        found = self._load()
        self._store(found, select(found, self.entries, slot, running=running))

    def _settle(self, running: Slot, fallback: bool) -> None:
        found = self._load()
        self._store(found, settle(found, self.entries, running, fallback=fallback))

    def _selftest(self) -> None:
        for slot, number in self.entries.items():
            if not self._path(f"Boot{number:04X}").exists():
                raise FlashError(f"there is no boot entry Boot{number:04X} for slot {slot}: efibootmgr makes one")
        found = self._load()
        self._write("BootOrder", found.order)
        if self._load() != found:
            raise FlashError("the firmware does not keep BootOrder")

    def _path(self, name: str) -> Path:
        return self.directory / f"{name}-{GUID}"

    def _load(self) -> BootNumbers:
        order, following = self._read("BootOrder") or (), self._read("BootNext")
        if following is not None and len(following) != 1:
            raise FlashError("BootNext names no boot entry")
        return BootNumbers(order, following[0] if following else None)

    def _read(self, name: str) -> tuple[int, ...] | None:
        try:
            return decode_numbers(self._path(name).read_bytes())
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise FlashError(f"{name} cannot be read: {exc.strerror}") from exc

    def _store(self, found: BootNumbers, wanted: BootNumbers) -> None:
        if wanted.following is None and found.following is not None:
            self._write("BootNext", None)
        if wanted.order != found.order:
            self._write("BootOrder", wanted.order)
        if wanted.following is not None and wanted.following != found.following:
            self._write("BootNext", (wanted.following,))
        if self._load() != wanted:
            raise FlashError("the firmware does not keep its boot variables")

    def _write(self, name: str, numbers: tuple[int, ...] | None) -> None:
        """Replace a variable, or delete it."""
        path = self._path(name)
        try:
            self._unlock(path)
            if numbers is None:
                path.unlink()
                return
            data = encode_numbers(numbers)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.write(fd, data) != len(data):
                    raise FlashError(f"{name} was taken in part")
            finally:
                os.close(fd)
        except OSError as exc:
            raise FlashError(f"{name} cannot be written: {exc.strerror}") from exc

    def _unlock(self, path: Path) -> None:
        """Some variables are marked as immutable."""
        with suppress(OSError):  # there is no such file yet, or its file system has no marks
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                flags = int.from_bytes(self._ioctl(fd, GETFLAGS, bytes(struct.calcsize("l"))), "little")
                if flags & IMMUTABLE:
                    size = struct.calcsize("l")
                    self._ioctl(fd, SETFLAGS, (flags & ~IMMUTABLE).to_bytes(size, "little"))
            finally:
                os.close(fd)
