"""The boot record in a file.

Rules:
- the file is replaced as a whole and made durable once more before it is first acted on (`DurableFile`): what is
  there is the old record or the new one;
- a record that may not be on the disk counts as unreadable until a store succeeds.
"""

import os
from pathlib import Path

from anyio import to_thread

from mgota.core.record import MAX_RECORD, BootRecord, decode_record, encode_record
from mgota.errors import StateError
from mgota.flash.files import DoubtfulError, DurableFile


class FileState:
    """A boot record in a file; implements `StateStore`.

    Args:
        path: the file. A symbolic link is followed, so that the record can lie on another medium.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._file = DurableFile(path, MAX_RECORD)

    async def load(self) -> BootRecord | None:
        """The record, or None if there is no file.

        Raises:
            StateError: the file cannot be read, is no record, or may not be durable.
        """
        return await to_thread.run_sync(self._load)

    async def store(self, record: BootRecord) -> None:
        """Replace the record. When this returns, it is durable.

        Raises:
            StateError: it was not stored, or nobody knows.
        """
        await to_thread.run_sync(self._store, record)

    def _load(self) -> BootRecord | None:
        try:
            data = self._file.load()
        except DoubtfulError as exc:
            raise StateError(f"nobody knows whether the boot record {self.path} is on the disk") from exc
        except OSError as exc:
            raise StateError(f"cannot read the boot record {self.path}: {exc.strerror}") from exc
        return None if data is None else decode_record(data)

    def _store(self, record: BootRecord) -> None:
        try:
            self._file.store(encode_record(record))
        except OSError as exc:
            raise StateError(f"cannot store the boot record {self.path}: {exc.strerror}") from exc
