"""Images that come packed, gzip or zstd: unpacked as they come, and never more than was announced. And how to pack.

What is signed, hashed and counted is the unpacked image. Rules:
- the size of the unpacked image is known before: the output stops there, whatever the input still promises;
- a piece of output is at most as large as `PIECE`, or as what 128 bytes of zstd can stand for: 4 MiB;
- several members or frames, one after another, are one image, as gzip(1) and zstd(1) have it; what follows them and is
  none is refused;
- zstd windows beyond `WINDOW` are refused: its default levels stay below, `--long` does not.

zstd needs the package `zstandard`, the extra `zstd`.
"""

import zlib
from collections.abc import Iterator
from enum import StrEnum
from importlib.util import find_spec
from typing import Any

from mgota.errors import ConfigError, MalformedError, OverrunError, TransferError, TruncatedError

PIECE = 1 << 18
"""Bytes of output that are made in one go."""

WINDOW = 8 << 20
"""Bytes of the largest window of zstd, which is held in memory."""

_SLICES = {
    # Of the input: zlib copies what is left of it with each piece that it gives; zstd has no limit of output, and four
    # bytes can stand for 128 KiB.
    "gzip": 1 << 15,
    "zstd": 1 << 7,
}
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 9  # of zstd: an image is packed once, and sent often; the window of this level is 4 MiB


class Packing(StrEnum):
    """How an image is packed: the names of `Content-Encoding`."""

    GZIP = "gzip"
    ZSTD = "zstd"


def packings() -> tuple[Packing, ...]:
    """What can be unpacked here."""
    return tuple(packing for packing in Packing if packing is not Packing.ZSTD or find_spec("zstandard"))


def packer_of(packing: Packing) -> Any:
    """The other direction, for senders: an object with `compress(data)` and `flush()`, as `zlib` has it.

    Raises:
        ConfigError: it is zstd, and there is no package for that.
    """
    if packing is Packing.GZIP:
        return zlib.compressobj(wbits=_GZIP)
    return _zstandard().ZstdCompressor(level=_LEVEL).compressobj()


def largest_packed(size: int) -> int:
    """Bytes of the largest body that an image may come packed in.

    Packing makes what is packed already a little larger: gzip by 5 bytes for each 16 KiB, zstd by 3 for each 128 KiB,
    and programs that work in parallel by some for each of their members. Beyond that it is padding, which would keep
    a device busy for as long as its sender likes.

    Args:
        size: of the image, unpacked.
    """
    return size + size // 64 + (1 << 16)


def packing_of(name: str) -> Packing | None:
    """How a file is packed, by its name's ending; None if it is not."""
    endings = {".gz": Packing.GZIP, ".zst": Packing.ZSTD}
    return next((packing for ending, packing in endings.items() if name.lower().endswith(ending)), None)


class Unpacker:
    """Unpacks one image.

    Args:
        packing: how it is packed.
        size: bytes of the unpacked image.

    Raises:
        ConfigError: it is packed by zstd, and there is no package for that.
    """

    def __init__(self, packing: Packing, size: int) -> None:
        self.packing = packing
        self.size = size
        self.done = 0
        """Bytes of the unpacked image that were given so far."""
        self._errors: tuple[type[Exception], ...] = (zlib.error,)
        self._zstd: Any = None
        if packing is Packing.ZSTD:
            self._zstd = _zstandard()
            self._errors = (self._zstd.ZstdError,)
        self._slice = _SLICES[packing]
        self._member: Any = None

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        """Take the next bytes of the packed image, and give what they stand for, in pieces.

        Raises:
            OverrunError: it is more than was announced.
            MalformedError: they are not packed like that.
        """
        held, count = list[bytes](), 0  # small ones are gathered: who stores them has work with each
        for piece in self._unpacked(data):
            if count + len(piece) > PIECE:
                if held:
                    yield b"".join(held)
                held, count = [], 0
            held.append(piece)
            count += len(piece)
        if held:
            yield b"".join(held)

    def _unpacked(self, data: bytes | bytearray | memoryview) -> Iterator[bytes]:
        packed, start = memoryview(bytes(data)), 0
        while start < len(packed):
            if self._member is None or self._member.eof:
                self._member = self._begin()
            head = packed[start : start + self._slice]
            for piece in self._pieces(head):
                self.done += len(piece)
                if self.done > self.size:
                    raise OverrunError(self.size)
                yield piece
            start += len(head) - len(self._member.unused_data)

    def _begin(self) -> Any:
        if self._zstd is None:
            return zlib.decompressobj(_GZIP)
        return self._zstd.ZstdDecompressor(max_window_size=WINDOW).decompressobj()

    def _pieces(self, data: memoryview) -> Iterator[bytes]:
        """What bytes of one member stand for; what lies behind its end is its `unused_data` then."""
        limit = () if self._zstd is not None else (PIECE,)
        try:
            while piece := self._member.decompress(data, *limit):
                yield piece
                if not limit or self._member.eof:
                    return
                data = self._member.unconsumed_tail
        except self._errors as exc:
            raise MalformedError(f"the image is not packed by {self.packing}, or is damaged") from exc

    def finish(self) -> None:
        """All bytes of the packed image were fed.

        Raises:
            TruncatedError: it stands for less than was announced.
            TransferError: it was cut off before its end, where its checksum lies.
        """
        if self.done != self.size:
            raise TruncatedError(self.done, self.size)
        if self._member is None or not self._member.eof:
            raise TransferError("the packed image was cut off before its end")


def _zstandard() -> Any:
    try:
        import zstandard  # noqa: PLC0415  an extra that few need
    except ImportError as exc:
        raise ConfigError("images packed by zstd need the package zstandard: pip install 'mgota[zstd]'") from exc
    return zstandard
