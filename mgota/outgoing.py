"""What a sender sends: an image, read in pieces, and how far it is. Whatever the network is.

Rules:
- one piece of the image is in memory at a time, and files are read in threads;
- an image that cannot be read is a `ConfigError`: no device is at fault.
"""

import os
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, Self, cast

from anyio import to_thread

from mgota.errors import ConfigError, EmptyImageError

AHEAD: Final = 256 * 1024
"""Bytes that are read at a time where pieces are small."""

Image = Path | bytes | BinaryIO
"""The path of a file, the bytes themselves, or a binary file that can be sought."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a push is.

    Args:
        sent: bytes of the image that were sent.
        size: bytes of the image.
        waiting: what is waited for before anything is sent, in words; else empty.
    """

    sent: int
    size: int
    waiting: str = ""


class Remote(Protocol):
    """A device somewhere in a network, whatever the network is."""

    def push(self, image: Image) -> AsyncGenerator[Progress]:
        """Send an image; it ends when the device has said that the update survives any cut."""
        ...

    async def status(self) -> dict[str, Any]:
        """The JSON object of its status."""
        ...

    async def commit(self, *, sha256: str | None = None) -> None:
        """Make the running image permanent; `sha256` is the firmware that is meant."""
        ...

    async def rollback(self, *, sha256: str | None = None) -> None:
        """Return to the previous image; `sha256` is the running firmware that is to be left."""
        ...


class Source:
    """An open image; a context manager that closes it.

    Args:
        file: a binary file that can be sought.
        size: its bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.size = size
        self._file = file
        self._ahead, self._ahead_at = b"", 0

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
        """Exactly `size` bytes from `offset` on. What follows them is read as well, and kept for the next call.

        Raises:
            ConfigError: they cannot be read.
        """
        start = offset - self._ahead_at
        if not 0 <= start <= start + size <= len(self._ahead):
            self._ahead = await to_thread.run_sync(self._read_at, offset, max(size, AHEAD))
            self._ahead_at, start = offset, 0
            if len(self._ahead) < size:
                raise ConfigError("the image became shorter while it was sent")
        return self._ahead[start : start + size]

    def _read_at(self, offset: int, size: int) -> bytes:
        try:
            self._file.seek(offset)
            return self._file.read(size)
        except OSError as exc:
            raise ConfigError(f"the image cannot be read: {exc.strerror}") from exc

    async def digests(self, cuts: Collection[int]) -> set[str]:
        """SHA-256 in hex of the image without its last bytes, for each number of them.

        Raises:
            ConfigError: it cannot be read.
        """
        return await to_thread.run_sync(self._digests, cuts)

    def _digests(self, cuts: Collection[int]) -> set[str]:
        found: set[str] = set()
        digest, at = sha256(), 0
        for end in sorted(self.size - cut for cut in cuts if cut < self.size):
            while at < end:
                piece = self._read_at(at, min(AHEAD, end - at))
                if not piece:
                    raise ConfigError("the image became shorter while it was sent")
                digest.update(piece)
                at += len(piece)
            found.add(digest.copy().hexdigest())
        return found


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
