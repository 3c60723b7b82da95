"""The boot record in a file.

Rules:
- the file is replaced as a whole (`replace_file`): what is there is the old record or the new one;
- before the first record is acted on, it is made durable once more: its writer may have been killed before it was;
- an fsync that failed is never tried again. What it was for counts as unreadable until a store succeeds: the kernel
  may have thrown away what it could not write, and still show it.
"""

import os
from pathlib import Path

from anyio import to_thread

from mgota.core.record import MAX_RECORD, BootRecord, decode_record, encode_record
from mgota.errors import StateError
from mgota.flash.files import replace_file, sync_directory


class FileState:
    """A boot record in a file; implements `StateStore`.

    Args:
        path: the file. A symbolic link is followed, so that the record can lie on another medium.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._durable = False
        self._doubtful: bytes | None = None

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
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StateError(f"cannot read the boot record {self.path}: {exc.strerror}") from exc
        try:
            data = os.read(descriptor, MAX_RECORD + 1)
            self._make_durable(descriptor, data)
        except OSError as exc:
            raise StateError(f"cannot read the boot record {self.path}: {exc.strerror}") from exc
        finally:
            os.close(descriptor)
        return decode_record(data)

    def _make_durable(self, descriptor: int, data: bytes) -> None:
        if data == self._doubtful:
            raise StateError(f"nobody knows whether the boot record {self.path} is on the disk")
        if self._durable:
            return
        self._doubtful = data
        os.fsync(descriptor)
        sync_directory(Path(os.path.realpath(self.path)).parent)
        self._doubtful, self._durable = None, True

    def _store(self, record: BootRecord) -> None:
        data = encode_record(record)
        try:
            replace_file(self.path, data)
        except OSError as exc:
            self._doubtful = data  # a file that holds the old record still holds it, and is not in doubt
            raise StateError(f"cannot store the boot record {self.path}: {exc.strerror}") from exc
        self._doubtful, self._durable = None, True
