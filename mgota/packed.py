"""Images in files that are packed, or are to be: what they are unpacked, and how they are packed for a sender.

A name that ends in `.gz` or `.zst` says that a file is packed. Rules:
- one piece is in memory at a time; everything here blocks, and belongs into a thread;
- a file that cannot be read is a `ConfigError`: no device is at fault.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mgota.core.unpack import Packing, Unpacker, packer_of, packing_of
from mgota.errors import ConfigError

BLOCK: Final = 1 << 18
LARGEST: Final = 1 << 40
"""Bytes that a packed image may stand for: beyond, nobody waits for its end."""


@dataclass(frozen=True, slots=True)
class Packed:
    """An image in a packed file.

    Args:
        path: of the file.
        packing: how it is packed.
        size: bytes of the image, unpacked.
    """

    path: Path
    packing: Packing
    size: int


def measured(path: Path, packing: Packing) -> Packed:
    """What a packed file stands for: all of it is unpacked once, and proven to be whole.

    Raises:
        ConfigError: it cannot be read.
        OtaError: it is not packed like that, or cut off.
    """
    size = size_of(path, packing)
    for _ in pieces(path, packing, size):
        pass
    return Packed(path, packing, size)


def size_of(path: Path, packing: Packing | None) -> int:
    """Bytes of the image in a file, unpacked.

    Raises:
        ConfigError: it cannot be read.
        OtaError: it is not packed like that.
    """
    try:
        if packing is None:
            return path.stat().st_size
        unpacker = Unpacker(packing, LARGEST)
        return sum(len(piece) for block in _blocks(path) for piece in unpacker.feed(block))
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def pieces(path: Path, packing: Packing | None, size: int) -> Iterator[bytes]:
    """The image in a file, unpacked.

    Raises:
        ConfigError: it cannot be read.
        OtaError: it is not packed like that, cut off, or not of this size.
    """
    try:
        if packing is None:
            yield from _blocks(path)
        else:
            unpacker = Unpacker(packing, size)
            for block in _blocks(path):
                yield from unpacker.feed(block)
            unpacker.finish()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def pack(source: Path, target: Path, packing: Packing) -> Packed:
    """Pack an image into another file.

    Raises:
        ConfigError: one of them cannot be read or written, or there is no package for this packing.
    """
    packer, size = packer_of(packing), 0
    try:
        with target.open("wb") as file:
            for block in _blocks(source):
                size += len(block)
                file.write(packer.compress(block))
            file.write(packer.flush())
    except OSError as exc:
        raise ConfigError(f"the image {source} cannot be packed: {exc.strerror}") from exc
    return Packed(target, packing, size)


def unpack(source: Path, target: Path) -> None:
    """Unpack an image into another file, by its name's ending.

    Raises:
        ConfigError: one of them cannot be read or written.
        OtaError: it is not packed like that, or cut off.
    """
    packing = packing_of(source.name)
    size = size_of(source, packing)
    try:
        with target.open("wb") as file:
            file.writelines(pieces(source, packing, size))
    except OSError as exc:
        raise ConfigError(f"the image {source} cannot be unpacked: {exc.strerror}") from exc


def _unreadable(path: Path, exc: OSError) -> ConfigError:
    return ConfigError(f"the image {path} cannot be read: {exc.strerror}")


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
