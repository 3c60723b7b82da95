"""What a sender sends: an image, read in pieces, and how far it is. Whatever the network is.

Rules:
- one piece of the image is in memory at a time, and files are read in threads;
- an image that cannot be read is a `ConfigError`: no device is at fault.
"""

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

from anyio import to_thread

from mgota.errors import ConfigError, EmptyImageError

Image = Path | bytes | BinaryIO
"""The path of a file, the bytes themselves, or a binary file that can be sought."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a push is.

    Args:
        sent: bytes of the image that were sent.
        size: bytes of the image.
    """

    sent: int
    size: int


class Source:
    """An open image; a context manager that closes it.

    Args:
        file: a binary file that can be sought.
        size: its bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file

    @classmethod
    async def open(cls, image: Image) -> Self:
        """Open an image and measure it.

        Raises:
            ConfigError: it cannot be read.
            EmptyImageError: it has no bytes.
        """
        return cls(*await to_thread.run_sync(_opened, image))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    async def read(self, size: int) -> bytes:
        """The next bytes: `size` of them, or fewer at the end of the file.

        Raises:
            ConfigError: they cannot be read.
        """
        return await to_thread.run_sync(self.read_blocking, size)

    def read_blocking(self, size: int) -> bytes:
        """`read`, for a caller that is in a thread already."""
        try:
            piece = self._file.read(size)
        except OSError as exc:
            raise ConfigError(f"the image cannot be read: {exc.strerror}") from exc
        if not piece:
            raise ConfigError("the image became shorter while it was sent")
        return piece

    async def read_at(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ConfigError: they cannot be read.
        """
        return await to_thread.run_sync(self._read_at, offset, size)

    def _read_at(self, offset: int, size: int) -> bytes:
        try:
            self._file.seek(offset)
        except OSError as exc:
            raise ConfigError(f"the image cannot be read: {exc.strerror}") from exc
        piece = self.read_blocking(size)
        while len(piece) < size:
            piece += self.read_blocking(size - len(piece))
        return piece


def _opened(image: Image) -> tuple[BinaryIO, int]:
    try:
        if isinstance(image, Path):
            file: BinaryIO = image.open("rb")
        else:
            file = BytesIO(image) if isinstance(image, bytes) else image
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
    except OSError as exc:
        raise ConfigError(f"the image cannot be read: {exc.strerror}") from exc
    if not size:
        file.close()
        raise EmptyImageError("the image is empty")
    return file, size


def is_status(found: dict[str, Any]) -> bool:
    """Whether the members of a status that a reader goes into are of their kinds.

    Args:
        found: a JSON object, from whoever answered.
    """
    images = all(
        image is None or _has(image, sha256=str, size=int) for image in (found.get("image"), found.get("staged"))
    )
    trial, update = found.get("trial"), found.get("update")
    return (
        isinstance(found.get("state"), str)
        and images
        and (trial is None or _has(trial, seconds_left=int | float))
        and (update is None or _has(update, received=int, size=int))
    )


def _has(value: object, **members: Any) -> bool:
    known = cast(dict[str, object], value) if isinstance(value, dict) else {}
    return all(isinstance(known.get(name), kind) for name, kind in members.items())
