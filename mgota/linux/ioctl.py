"""Calls to device drivers: the one door to ioctl(2), which tests replace.

Rules:
- a request is a number and the bytes of its argument; the answer is those bytes as the driver left them;
- these functions block and raise OSError.
"""

import fcntl
from collections.abc import Callable

Ioctl = Callable[[int, int, bytes], bytes]
"""File descriptor, request, argument; what the driver made of the argument."""


def ioctl(fd: int, request: int, argument: bytes = b"") -> bytes:
    """Call the driver.

    Raises:
        OSError: it refused.
    """
    if not argument:
        fcntl.ioctl(fd, request)
        return b""
    return fcntl.ioctl(fd, request, argument)


def request(kind: str, number: int, size: int = 0, *, read: bool = False, write: bool = False) -> int:
    """The number of a request, as `_IO`, `_IOR`, `_IOW` and `_IOWR` make it (asm-generic/ioctl.h).

    Args:
        kind: the letter of the driver.
        number: of the request.
        size: bytes of the argument.
        read: the driver fills the argument in.
        write: the driver looks at it.
    """
    return (write << 30) | (read << 31) | (size << 16) | (ord(kind) << 8) | number
