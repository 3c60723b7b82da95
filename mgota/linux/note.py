"""A note in a file: of a download, of a device's history.

    await pull(device, url, note=FileNote("/var/lib/app/download"))

It is replaced as a whole; what cannot be read, or may not be on the disk, is an error that costs a download its
progress and nothing else.
"""

import os
from pathlib import Path

from anyio import to_thread

from mgota.core.note import MAX_NOTE
from mgota.errors import StateError
from mgota.flash.files import DurableFile


class FileNote:
    """A note in a file; implements `Note`.

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
            raise StateError(f"cannot read the note {self.path}: {exc.strerror}") from exc

    def _store(self, data: bytes) -> None:
        try:
            self._file.store(data)
        except OSError as exc:
            raise StateError(f"cannot store the note {self.path}: {exc.strerror}") from exc
