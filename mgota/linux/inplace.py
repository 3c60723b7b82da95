"""Files that are written where they are: what changes lies in one sector, which a disk writes as one."""

import errno
import os
from pathlib import Path


def write_in_place(path: Path, data: bytes) -> None:
    """Write over a file of the same length, whose change is within one sector.

    Raises:
        OSError: it could not be written.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(errno.EIO, "only a part of it was taken")
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
