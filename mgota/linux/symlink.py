"""The slot selector of programs: a symbolic link that names the slot; of slots that are files, `FileSlots` has its own.

Rules:
- the link is replaced as a whole: a temporary one, rename, fsync of the directory;
- what it points to is one of two names, and a device without a link boots slot a.
"""

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread

from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError
from mgota.flash.files import sync_directory


class SymlinkSelector:
    """Selects by a symbolic link; implements `Selector`.

    Args:
        path: the link.
        targets: what it points to for each slot; "a" and "b" without.
    """

    def __init__(self, path: str | os.PathLike[str], targets: Mapping[Slot, str] | None = None) -> None:
        self.path = Path(path)
        self.targets = dict(targets or {slot: slot.value for slot in Slot})
        self._unsure = False  # a rename that may not be durable: a selection is made again, not taken for done

    async def selected_slot(self) -> Slot | None:
        """The slot that the link names; None if it names something else.

        Raises:
            FlashError: it is no link.
        """
        return await to_thread.run_sync(self._selected)

    async def select(self, slot: Slot, *, running: Slot) -> None:  # noqa: ARG002  nothing falls back by itself
        """Replace the link.

        Raises:
            SelectError: it could not be replaced.
        """
        try:
            await to_thread.run_sync(self._select, slot)
        except FlashError as exc:
            raise SelectError(f"cannot select slot {slot}: {exc}") from exc

    async def tried(self, slot: Slot) -> bool:  # noqa: ARG002
        """No: nothing is counted."""
        return False

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Nothing to do: nothing is counted."""

    async def recover(self) -> None:
        """Remove what a `select` that was cut off left behind, and make durable what it did.

        Raises:
            FlashError: it cannot be done.
        """
        await to_thread.run_sync(self._recover)

    async def selftest(self) -> None:
        """Make the link once more as it is, and read it back.

        Raises:
            FlashError: a selection would not work, and why.
        """
        slot = await self.selected_slot()
        if slot is None:
            raise FlashError(f"{self.path} points to neither of the two slots")
        await to_thread.run_sync(self._replace, slot)
        if await self.selected_slot() is not slot:
            raise FlashError(f"{self.path} does not keep what it points to")

    @property
    def _temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.tmp")

    def _selected(self) -> Slot | None:
        try:
            target = str(self.path.readlink())
        except FileNotFoundError:
            return Slot.A
        except OSError as exc:
            why = "is no symbolic link" if exc.errno == errno.EINVAL else f"cannot be read: {exc.strerror}"
            raise FlashError(f"{self.path} {why}") from exc
        return next((slot for slot, name in self.targets.items() if name == target), None)

    def _select(self, slot: Slot) -> None:
        if self._unsure or self._selected() is not slot or not self.path.is_symlink():
            self._replace(slot)

    def _replace(self, slot: Slot) -> None:
        self._unsure = True
        try:
            self._temporary.unlink(missing_ok=True)
            self._temporary.symlink_to(self.targets[slot])
            self._temporary.replace(self.path)
            sync_directory(self.path.parent)
        except OSError as exc:
            raise FlashError(f"{self.path} cannot be replaced: {exc.strerror}") from exc
        self._unsure = False

    def _recover(self) -> None:
        self._selected()
        try:
            self._temporary.unlink(missing_ok=True)
            sync_directory(self.path.parent)
        except OSError as exc:
            raise FlashError(f"{self.path} cannot be recovered: {exc.strerror}") from exc
