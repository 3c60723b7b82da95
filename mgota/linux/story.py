"""A note that is told for good: of a device's history, of who was told of it.

    Device(…, history=History(FileStory("/var/lib/app/history", MAX_HISTORY)))

It is stored a few times in an update, and then replaced as a whole: what is there is the old one or the new one.
"""

import os
from pathlib import Path

from anyio import to_thread

from mgota.core.note import MAX_NOTE
from mgota.errors import StateError
from mgota.flash.files import DurableFile


class FileStory:
    """A note in a file that is replaced; implements `Note`.

    Args:
        path: the file, which need not exist. It holds nothing else.
        limit: bytes of the largest note.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int = MAX_NOTE) -> None:
        self.path = Path(path)
        self._file = DurableFile(path, limit)

    async def load(self) -> bytes | None:
        """What was stored last, or None.

        Raises:
            StateError: it cannot be read.
        """
        return await to_thread.run_sync(self._load)

    async def store(self, data: bytes) -> None:
        """Replace it.

        Raises:
            StateError: it was not stored.
        """
        await to_thread.run_sync(self._store, data)

    def _load(self) -> bytes | None:
        try:
            return self._file.load()
        except OSError as exc:
            raise StateError(f"cannot read {self.path}: {exc.strerror}") from exc

    def _store(self, data: bytes) -> None:
        try:
            self._file.store(data)
        except OSError as exc:
            raise StateError(f"cannot store {self.path}: {exc.strerror}") from exc
