"""The note of a download in a file.

    await pull(device, url, note=FileNote("/var/lib/app/download"))

It is written where it is, with one flush: a note is stored with every mark, and to replace a file takes four times
that. A power cut in the middle may tear it; a torn note is no note, and costs a download its progress, no more.
"""

import os
from pathlib import Path

from anyio import to_thread

from mgota.core.note import MAX_NOTE
from mgota.errors import StateError
from mgota.flash.files import sync_directory

_BLANK = b"\0"


class FileNote:
    """A note in a file; implements `Note`.

    Args:
        path: the file, which need not exist. It holds nothing else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

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
            with self.path.open("rb") as file:
                return file.read(MAX_NOTE + 1).rstrip(_BLANK)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StateError(f"cannot read the note {self.path}: {exc.strerror}") from exc

    def _store(self, data: bytes) -> None:
        if len(data) > MAX_NOTE:
            raise StateError(f"cannot store the note {self.path}: it has more than {MAX_NOTE} bytes")
        try:
            self._write(data.ljust(MAX_NOTE, _BLANK))
        except OSError as exc:
            raise StateError(f"cannot store the note {self.path}: {exc.strerror}") from exc

    def _write(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
        try:
            made = os.fstat(fd).st_size != len(data)  # its size and its name are new, too
            os.pwrite(fd, data, 0)
            if made:
                os.ftruncate(fd, len(data))
                os.fsync(fd)
                sync_directory(self.path.parent)
            else:
                os.fdatasync(fd)
        finally:
            os.close(fd)
