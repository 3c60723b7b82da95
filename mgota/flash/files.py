"""Files that survive a power cut, and one process at a time.

Rules:
- a file is replaced, never changed in place: a temporary in the same directory, flush, fsync, rename, and fsync of
  the directory;
- only a file is replaced, never a device or a pipe: as root, /dev/null itself would become a file that keeps what
  everybody throws away;
- an fsync that failed is raised, never retried: the kernel has already thrown the pages away. What it was for is
  doubtful, however often it can be read, until a store succeeds;
- content is made durable once more before it is acted on: its writer may have been killed before it was;
- these functions block and raise OSError; the caller brings the thread, and translates.
"""

import errno
import fcntl
import os
import secrets
import stat
import threading
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from mgota.errors import ConfigError, UpdateRunningError

ReadableBuffer = bytes | bytearray | memoryview

STALE = 60.0
"""Seconds after which a temporary that was not written to has been given up."""


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


class DoubtfulError(OSError):
    """The file can be read, but an fsync for what it holds has failed: a power cut may leave something else."""


class DurableFile:
    """A small file that is read and replaced as a whole, and only says what a power cut leaves true.

    It blocks and raises OSError; the caller brings the thread, and translates. Callers from several threads wait for
    each other: what one of them is making durable is not in doubt for another.

    Args:
        path: the file. A symbolic link is followed, so that the content can lie on another medium.
        limit: bytes of the largest content.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int) -> None:
        self.path = Path(path)
        self.limit = limit
        self._durable = False  # something was loaded or stored, and fsynced: from then on we are the writer
        # More than one: a store that failed early leaves in place what an earlier one, that failed late, put there.
        self._doubtful = set[bytes]()
        self._turn = threading.Lock()

    def load(self) -> bytes | None:
        """What the file holds, made durable if it was not; None if there is no file.

        A file larger than `limit` gives its first `limit` + 1 bytes: whoever decodes it sees that it is too long.

        Raises:
            DoubtfulError: it may not be on the disk, and only a `store` that succeeds can change that.
            OSError: it cannot be read or made durable, or is no file.
        """
        with self._turn:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except FileNotFoundError:
                return None
            try:
                data = _read_up_to(descriptor, self.limit + 1)
                self._make_durable(descriptor, data)
            finally:
                os.close(descriptor)
            return data

    def store(self, data: bytes) -> None:
        """Replace the content. When this returns, it is durable.

        Raises:
            OSError: it was not stored, or nobody knows; what `load` returns from now on is durable all the same. More
                than `limit` bytes are refused (EFBIG).
        """
        if len(data) > self.limit:
            raise OSError(errno.EFBIG, f"{len(data)} bytes, and {self.limit} are the limit")
        with self._turn:
            try:
                replace_file(self.path, data)
            except OSError:
                self._doubtful.add(data)  # a file that holds the old content still holds it, and is not in doubt
                raise
            self._doubtful.clear()
            self._durable = True

    def _make_durable(self, descriptor: int, data: bytes) -> None:
        if data in self._doubtful:
            raise DoubtfulError(errno.EIO, "nobody knows whether it is on the disk")
        if self._durable:
            return
        sweep_temporaries(self.path)
        self._doubtful.add(data)
        os.fsync(descriptor)
        sync_directory(Path(os.path.realpath(self.path)).parent)
        self._doubtful.discard(data)
        self._durable = True


def _read_up_to(descriptor: int, size: int) -> bytes:
    data = b""
    while piece := os.read(descriptor, size - len(data)):
        data += piece
    return data


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
        OSError: it is a device, a pipe or a socket. Or something failed: the old content is still there, unless the
            directory's fsync was what failed; then nobody knows which of the two a power cut would leave.
    """
    target = Path(os.path.realpath(path))
    _refuse_special(target)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    # A buffer is iterable, too: over its bytes.
    pieces = cast(Iterable[ReadableBuffer], [data] if isinstance(data, bytes | bytearray | memoryview) else data)
    try:
        _write_new(temporary, pieces, mode)
        temporary.replace(target)
    except BaseException as exc:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(exc, OSError) and exc.filename is not None:
            exc.filename, exc.filename2 = os.fspath(path), None  # the temporary's name would tell a person nothing
        raise
    sync_directory(target.parent)


def _refuse_special(target: Path) -> None:
    with suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # of a directory, rename itself says so
            raise OSError(errno.EINVAL, "this is no file, and is not replaced by one", str(target))


def sweep_temporaries(path: str | os.PathLike[str]) -> None:
    """Remove what a process that was killed left of `replace_file`: temporaries that nobody has written to for a while.

    Args:
        path: the file that they were to replace. Whatever fails here is left for another time.
    """
    target = Path(os.path.realpath(path))
    with suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            mine = entry.name.startswith(f".{target.name}.") and entry.name.endswith(".tmp")
            with suppress(OSError):
                if mine and time.time() - entry.stat().st_mtime > STALE:
                    Path(entry.path).unlink()


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
