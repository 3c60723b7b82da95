"""Files that survive a power cut, and one process at a time.

Rules:
- a file is replaced, never changed in place: a temporary in the same directory, flush, fsync, rename, and fsync of
  the directory;
- an fsync that failed is raised, never retried: the kernel has already thrown the pages away;
- these functions block and raise OSError; the caller brings the thread, and translates.
"""

import fcntl
import os
import secrets
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from mgota.errors import ConfigError, UpdateRunningError

ReadableBuffer = bytes | bytearray | memoryview


class FileLock:
    """A lock between processes: flock(2) on a file that is made if missing and never removed.

    Each `hold` opens the file anew, so that two holders inside one process conflict as well.

    Args:
        path: of the lock file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @contextmanager
    def hold(self) -> Generator[None]:
        """Hold the lock inside a `with` block. Does not wait.

        Raises:
            UpdateRunningError: somebody else holds it.
            ConfigError: the file cannot be opened, or its file system has no locks.
        """
        descriptor = self._acquire()
        try:
            yield
        finally:
            # Closing is not enough: a forked child may share the open file, and with it the lock.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def _acquire(self) -> int:
        descriptor = self._open()
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(descriptor)
            if isinstance(exc, BlockingIOError):
                raise UpdateRunningError(
                    f"another update or boot decision is under way: {self.path} is locked"
                ) from exc
            raise ConfigError(f"the file {self.path} cannot be locked: {exc.strerror}") from exc
        return descriptor

    def _open(self) -> int:
        try:
            with suppress(PermissionError):
                return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)  # somebody else's file can be locked all the same
        except OSError as exc:
            raise ConfigError(f"the lock file {self.path} cannot be opened: {exc.strerror}") from exc


def replace_file(
    path: str | os.PathLike[str], data: ReadableBuffer | Iterable[ReadableBuffer], mode: int = 0o644
) -> None:
    """Replace a file entirely, or not at all; when this returns, it is durable.

    A symbolic link is followed: the file that it names is replaced, in that file's own directory.

    Args:
        path: the file, which need not exist.
        data: its new content, in one piece or in many.
        mode: permissions of the new file, before the umask.

    Raises:
        OSError: something failed. The old content is still there, unless the directory's fsync was what failed:
            then nobody knows which of the two a power cut would leave.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # A buffer is iterable, too: over its bytes.
    pieces = cast(Iterable[ReadableBuffer], [data] if isinstance(data, bytes | bytearray | memoryview) else data)
    try:
        _write_new(temporary, pieces, mode)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(target.parent)


def _write_new(path: Path, pieces: Iterable[ReadableBuffer], mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - pathlib cannot open a descriptor
        file.writelines(pieces)
        file.flush()
        os.fsync(descriptor)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: they are not, or nobody knows.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
