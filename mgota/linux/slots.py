"""Two slots as files: the default of a Linux device whose firmware is an application.

    DIR/a         the image of slot a, from byte 0 of a regular file
    DIR/b         the image of slot b
    DIR/current   a symbolic link to "a" or "b": the slot that boots; a device without one boots a

Rules:
- the link is replaced as a whole: a temporary one, rename, fsync of the directory. It is never seen half done;
- a slot is overwritten, then cut to the image's size; never truncated first, so that it keeps the space it has;
- a slot is a regular file: links, pipes and devices under its name are refused;
- what is read back after `finish` comes from the medium, as far as the kernel can be told to forget;
- every call that touches the disk is one hop into a thread, runs to its end, and leaves no open file behind.
"""

import errno
import os
import stat
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import anyio
from anyio import to_thread

from mgota.core.geometry import Slot
from mgota.errors import FlashError, ProgramError, ReadError, SelectError, TooLargeError
from mgota.flash.files import sync_directory
from mgota.ports import ReadableBuffer

CURRENT = "current"
TEMPORARY = ".current.tmp"
STALE = ".*.tmp"  # this one, and those of the record that lies beside the slots

MAX_HOP = 1 << 20
"""Bytes written in one thread hop: long enough to cost nothing, short enough to be cancelled between two."""

_MODE = 0o755  # an image may be a program that is started by its path
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # non-blocking: opening a pipe must not wait for its other end
_BLOCK = 512  # the unit of st_blocks, whatever the file system's is: stat(2)
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
_NO_SPACE = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}


class FileSlots:
    """Two slots as files in a directory, which is made if it is missing.

    Args:
        directory: where `a`, `b` and `current` lie.
        running: the slot whose image runs, if the caller knows; otherwise the one that `current` names at first use.

    Raises:
        FlashError: the directory is missing and cannot be made.
    """

    crc = "crc-32"

    def __init__(self, directory: str | os.PathLike[str], *, running: Slot | None = None) -> None:
        self.directory = Path(directory).absolute()
        self._running = running
        self._unsure = False  # a rename that may not be durable: a selection is made again, not taken for done
        with _translated(FlashError, f"cannot make the directory {self.directory}"):
            _make_directory(self.directory)

    def path(self, slot: Slot) -> Path:
        """The file that is this slot."""
        return self.directory / slot.value

    def latch(self) -> Slot:
        """Boot: from now on the slot that `current` names is the running one.

        Raises:
            FlashError: `current` names no slot.
        """
        self._running = self._selected() or Slot.A
        return self._running

    async def boot(self) -> None:
        """`latch`, for a device that boots again inside its process."""
        await to_thread.run_sync(self.latch)

    async def running_slot(self) -> Slot:
        """The slot whose image runs.

        Raises:
            FlashError: `current` names no slot.
        """
        if self._running is None:
            return await to_thread.run_sync(self.latch)
        return self._running

    async def capacity(self) -> int:
        """Bytes that fit: the free space, and what the staging slot already has.

        Raises:
            FlashError: the file system does not tell.
        """
        staging = (await self.running_slot()).other
        return await to_thread.run_sync(self._room, staging)

    async def open_writer(self, slot: Slot, size: int) -> "SlotWriter":
        """Begin to write an image of `size` bytes.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the slot cannot be written.
        """
        return await to_thread.run_sync(self._open_writer, slot, size)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple["SlotWriter", int]:
        """Go on with an image that was cut off. See `ResumableBackend`.

        Raises:
            FlashError: the slot cannot be written, or ends before `mark`.
        """
        return await to_thread.run_sync(self._reopen_writer, slot, size, mark)

    async def extent(self, slot: Slot) -> int:
        """Bytes in the slot's file; 0 if there is none.

        Raises:
            FlashError: it is not a regular file.
        """
        found = await to_thread.run_sync(self._stat, slot)
        return found.st_size if found else 0

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: they are not all there, or the disk failed.
        """
        return await to_thread.run_sync(self.read_blocking, slot, offset, size)

    async def select(self, slot: Slot) -> None:
        """Make this slot the one that boots.

        Raises:
            SelectError: the link could not be replaced.
        """
        await to_thread.run_sync(self._select, slot)

    async def recover(self) -> None:
        """Remove what a `select` that was cut off left behind, and make durable what it did.

        Raises:
            FlashError: it cannot be done, or `current` names no slot.
        """
        await to_thread.run_sync(self._recover)

    def _selected(self) -> Slot | None:
        link = self.directory / CURRENT
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            return None
        except OSError as exc:
            what = "is not a symbolic link" if exc.errno == errno.EINVAL else f"cannot be read: {_why(exc)}"
            raise FlashError(f"{link} {what}") from exc
        if target not in (Slot.A.value, Slot.B.value):
            raise FlashError(f"{link} points to {target!r}: it has to be a link to a or b")
        return Slot(target)

    def _select(self, slot: Slot) -> None:
        if not self._unsure and self._selected() is slot:
            return
        self._unsure = True
        with _translated(SelectError, f"cannot select slot {slot}"):
            temporary = self.directory / TEMPORARY
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(slot.value)
            temporary.replace(self.directory / CURRENT)
            sync_directory(self.directory)
        self._unsure = False

    def _recover(self) -> None:
        self._selected()
        with _translated(FlashError, f"cannot recover {self.directory}"):
            for stale in self.directory.glob(STALE):
                stale.unlink(missing_ok=True)
            sync_directory(self.directory)

    def _stat(self, slot: Slot) -> os.stat_result | None:
        with _translated(FlashError, f"cannot look at slot {slot}"):
            try:
                found = os.lstat(self.path(slot))
            except FileNotFoundError:
                return None
        _refuse_others(self.path(slot), found)
        return found

    def _room(self, slot: Slot) -> int:
        found = self._stat(slot)
        with _translated(FlashError, f"cannot tell the free space in {self.directory}"):
            system = os.statvfs(self.directory)
        return system.f_bavail * system.f_frsize + (found.st_blocks * _BLOCK if found else 0)

    def _reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple["SlotWriter", int]:
        found = self._stat(slot)
        if found is None or found.st_size < mark:
            raise FlashError(f"slot {slot} ends before byte {mark}: there is nothing to go on with")
        # Its name may not be durable: whoever made it was cut off.
        return self._open_writer(slot, size, written=mark, new=True), mark

    def _open_writer(self, slot: Slot, size: int, *, written: int = 0, new: bool = False) -> "SlotWriter":
        room, found = self._room(slot), self._stat(slot)
        if size > room:
            raise TooLargeError(size, room)
        # Readable, too: where the file system cannot allocate, the C library does it by looking at each block.
        with _translated(FlashError, f"cannot write slot {slot}"):
            fd = os.open(self.path(slot), os.O_RDWR | os.O_CREAT | _OPEN, _MODE)
        writer = SlotWriter(fd, self.path(slot), size, written=written, new=new or found is None)
        try:
            _refuse_others(self.path(slot), os.fstat(fd))
            self._allocate(fd, slot, size, found)
        except BaseException:
            writer.close()
            raise
        return writer

    def _allocate(self, fd: int, slot: Slot, size: int, found: os.stat_result | None) -> None:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as exc:
            if exc.errno in _NO_FALLOCATE:
                return
            with suppress(OSError):  # as it was: what was allocated in vain is given back
                if found is None:
                    self.path(slot).unlink()
                else:
                    os.ftruncate(fd, found.st_size)
            if exc.errno in _NO_SPACE:
                raise TooLargeError(size, min(self._room(slot), size - 1)) from exc
            raise FlashError(f"cannot write slot {slot}: {_why(exc)}") from exc

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        """`read`, for who is in a thread already.

        Raises:
            ReadError: they are not all there, or the disk failed.
        """
        with _translated(ReadError, f"cannot read slot {slot}"):
            fd = os.open(self.path(slot), os.O_RDONLY | _OPEN)
            try:
                data = os.pread(fd, size, offset)
            finally:
                os.close(fd)
        if len(data) != size:
            raise ReadError(f"slot {slot} ends at {offset + len(data)}, before {offset + size}")
        return data


class SlotWriter:
    """An image on its way into a file. Made by `FileSlots.open_writer`.

    Args:
        fd: the file, open for reading and writing; the writer closes it.
        path: its name.
        size: bytes of the image.
        written: bytes of it that are there already.
        new: the file was made just now, so that what it is besides its bytes has to be made durable as well.
    """

    def __init__(self, fd: int, path: Path, size: int, *, written: int = 0, new: bool) -> None:
        self._fd: int | None = fd
        self._path = path
        self._size = size
        self._new = new
        self._written: int = written
        # A task may be cancelled from outside anyio, which leaves its thread at work: nothing is closed under it.
        self._busy = Lock()

    async def write(self, chunk: ReadableBuffer) -> None:
        """The next bytes of the image.

        Raises:
            ProgramError: they could not be written, or are more than announced.
        """
        view = memoryview(chunk)
        for start in range(0, len(view), MAX_HOP):
            await to_thread.run_sync(self.write_blocking, view[start : start + MAX_HOP])

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        """`write`, for who is in a thread already.

        Raises:
            ProgramError: they could not be written, or are more than announced.
        """
        self._exclusively(self._write, memoryview(chunk))

    async def finish(self) -> None:
        """Cut the file to size, make it durable, and forget what the kernel still holds of it.

        Raises:
            FlashError: the disk failed, or the image is not complete.
        """
        await to_thread.run_sync(self._exclusively, self._finish)

    async def sync(self) -> int:
        """Make durable what was written so far: so many bytes of the image.

        Raises:
            FlashError: the disk failed.
        """
        await to_thread.run_sync(self._exclusively, self._sync)
        return self._written

    async def abort(self) -> None:
        """Close the file as it is."""
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(self.close)

    def close(self) -> None:
        """Close the file; once is enough, twice is harmless."""
        with self._busy:
            fd, self._fd = self._fd, None
            if fd is not None:
                with suppress(OSError):  # the image is given up, or already durable
                    os.close(fd)

    def _exclusively(self, work: Callable[..., None], *args: memoryview) -> None:
        with self._busy:
            if self._fd is None:
                raise FlashError(f"{self._path} is no longer being written")
            with _translated(ProgramError, f"cannot write {self._path}"):
                work(self._fd, *args)

    def _write(self, fd: int, view: memoryview) -> None:
        if self._written + len(view) > self._size:
            raise ProgramError(f"more than the announced {self._size} bytes for {self._path}")
        while view:
            done = os.pwrite(fd, view, self._written)
            self._written += done
            view = view[done:]

    def _sync(self, fd: int) -> None:
        if self._new:
            os.fsync(fd)
            sync_directory(self._path.parent)
            self._new = False
        else:
            os.fdatasync(fd)

    def _finish(self, fd: int) -> None:
        if self._written != self._size:
            raise FlashError(f"only {self._written} of {self._size} bytes came for {self._path}")
        os.ftruncate(fd, self._size)
        changed = _make_startable(fd)
        if not self._new:
            os.fdatasync(fd)  # the size is metadata that it writes, the mode is not: fdatasync(2)
        if self._new or changed:
            os.fsync(fd)
        sync_directory(self._path.parent)  # always: an attempt that did not end may have made the name
        with suppress(OSError):  # advice; a file system may ignore it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self._fd = None
        os.close(fd)


def _make_directory(path: Path) -> None:
    """With its parents. The names that are new are durable, else the slots would be lost with them."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_directory(each.parent)


def _make_startable(fd: int) -> bool:
    """Whoever may read an image may start it. Says whether the mode had to be changed."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if not mode & stat.S_IXUSR:
        with suppress(PermissionError):  # somebody else's file: its mode is theirs
            os.fchmod(fd, mode | (mode & 0o444) >> 2)
            return True
    return False


def _refuse_others(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise FlashError(f"{path} is not a regular file")


@contextmanager
def _translated(kind: type[FlashError], what: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise kind(f"{what}: {_why(exc)}") from exc


def _why(error: OSError) -> str:
    match error.errno:
        case errno.ETXTBSY:
            return "the program in it is running"
        case errno.ELOOP:
            return "it is a symbolic link"
        case _:
            return error.strerror or str(error)
