"""SLIP: frames in a stream of bytes (RFC 1055), as the boot ROM of an ESP32 has them.

    C0 … C0          a frame; DB DC stands for C0 in it, DB DD for DB

Rules:
- a frame begins and ends with END; what stands outside of frames is none of ours, a ROM prints its log there;
- an escape that means nothing ends in `LinkError`, and the bytes up to the next END are dropped;
- a frame longer than `MAX_FRAME` is none.
"""

from collections.abc import Iterator
from typing import Final

from mgota.errors import LinkError

END: Final = 0xC0
ESC: Final = 0xDB
_ESCAPED: Final = {0xDC: END, 0xDD: ESC}

MAX_FRAME: Final = 20_000
"""Bytes of the longest frame: the largest block of data (16 KiB) and its head."""


def frame(data: bytes) -> bytes:
    """A frame with this content."""
    return b"\xc0" + data.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"


class Unframer:
    """Finds frames in what comes, byte by byte."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._inside = False
        self._escaped = False

    def feed(self, byte: int) -> bytes | None:
        """Take one byte.

        Returns:
            The content of the frame that it ended, or None.

        Raises:
            LinkError: this is no frame; the next END begins one.
        """
        if byte == END:
            return self._end()
        if not self._inside:
            return None
        if self._escaped:
            self._escaped = False
            if byte not in _ESCAPED:
                self._drop()
                raise LinkError(f"a frame is damaged: {byte:#04x} behind an escape")
            self._data.append(_ESCAPED[byte])
        elif byte == ESC:
            self._escaped = True
        else:
            self._data.append(byte)
        if len(self._data) > MAX_FRAME:
            self._drop()
            raise LinkError(f"a frame is longer than {MAX_FRAME} bytes")
        return None

    def _end(self) -> bytes | None:
        """END ends a frame that has content, and begins one otherwise."""
        data, escaped = bytes(self._data), self._escaped
        self._drop()
        if escaped:
            raise LinkError("a frame is damaged: it ends in an escape")
        if data:
            return data
        self._inside = True
        return None

    def _drop(self) -> None:
        self._data.clear()
        self._inside = self._escaped = False


def frames(unframer: Unframer, data: bytes) -> Iterator[bytes]:
    """The frames that these bytes end; damaged ones are left out."""
    for byte in data:
        try:
            found = unframer.feed(byte)
        except LinkError:
            continue
        if found is not None:
            yield found
