"""GRUB's environment block where it lies: a file, mostly `/boot/grub/grubenv`.

Rules:
- a change within one sector is written in place, for a disk writes that as one; any other replaces the file;
- then fsync, then read back.
"""

import os
from pathlib import Path

from mgota.core.grubenv import MAX_SIZE, GrubBlock, decode_block, encode_block
from mgota.errors import FlashError, VerifyError
from mgota.flash.files import replace_file
from mgota.linux.inplace import write_in_place
from mgota.linux.ubootenv import Change
from mgota.linux.variables import VariablesSelector

GRUBENV = "/boot/grub/grubenv"
_SECTOR = 512


class GrubEnvironment:
    """The environment block in a file. Its calls block: the caller brings the thread.

    Args:
        path: the file, which grub-editenv or GRUB itself has made.
    """

    def __init__(self, path: str | os.PathLike[str] = GRUBENV) -> None:
        self.path = Path(path)

    def variables(self) -> dict[str, str]:
        """All variables.

        Raises:
            FlashError: the file cannot be read, or is no environment block.
        """
        return self._load()[1].variables

    def change(self, change: Change) -> bool:
        """Change variables, in one write.

        Args:
            change: called with them. No changes, and nothing is written.

        Returns:
            Whether anything was written.

        Raises:
            FlashError: nothing was changed, or nobody knows.
        """
        old, block = self._load()
        changes = change(block.variables)
        if changes:
            self._store(old, block.changed(changes))
        return bool(changes)

    def rewrite(self) -> None:
        """Write what is there once more, and read it back.

        Raises:
            FlashError: it did not work.
        """
        self._store(*self._load())

    def _load(self) -> tuple[bytes, GrubBlock]:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_SIZE + 1)
        except OSError as exc:
            raise FlashError(f"GRUB's environment {self.path} cannot be read: {exc.strerror}") from exc
        return data, decode_block(data)

    def _store(self, old: bytes, block: GrubBlock) -> None:
        data = encode_block(block)
        try:
            if _sectors(old, data) > 1:
                replace_file(self.path, data)
            else:
                write_in_place(self.path, data)
        except OSError as exc:
            raise FlashError(f"GRUB's environment {self.path} cannot be written: {exc.strerror}") from exc
        if self._load()[0] != data:
            raise VerifyError(f"{self.path} does not keep GRUB's environment")


def _sectors(old: bytes, new: bytes) -> int:
    """How many sectors two contents of one length differ in."""
    return sum(old[at : at + _SECTOR] != new[at : at + _SECTOR] for at in range(0, len(new), _SECTOR))


class GrubSelector(VariablesSelector):
    """Selects by GRUB's environment; implements `Selector`. Takes a `GrubEnvironment` and a convention."""
