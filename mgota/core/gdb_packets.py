"""The packets of the GDB remote serial protocol.

    $m8000000,4#5d          a payload and the sum of its bytes, modulo 256
    +                       it came as it was sent; "-": say it again

Rules:
- "#", "$", "}" and "*" are escaped in what is sent: "}", then the byte XOR 0x20;
- in what is received "*" and a count n may stand behind a byte: it comes n - 29 times more;
- any bytes are a payload or a `LinkError`, and no payload is longer than `MAX_PACKET`.

Source: GDB manual, appendix E.1 "Overview" of "GDB Remote Serial Protocol".
"""

import re
from typing import Final

from mgota.errors import LinkError

MAX_PACKET: Final = 65536
"""Bytes of the longest packet, as it is on the wire and when it is expanded."""

_ESCAPE: Final = ord("}")
_RUN: Final = ord("*")
_RUN_BASE: Final = 29
_RUN_COUNTS: Final = range(32, 127)
_SPECIAL: Final = re.compile(rb"[#$}*]")


def escape(data: bytes) -> bytes:
    """Binary data as it stands in a payload."""
    return _SPECIAL.sub(lambda found: bytes([_ESCAPE, found[0][0] ^ 0x20]), data)


def frame(payload: bytes) -> bytes:
    """A packet.

    Args:
        payload: what it says; `escape` what is binary of it.
    """
    return b"$%b#%b" % (payload, checksum(payload))


def checksum(body: bytes) -> bytes:
    """The two digits behind a packet's body."""
    return b"%02x" % (sum(body) & 0xFF)


def expand(body: bytes) -> bytes:
    """The payload of a packet's body: without escapes, with its runs at their length.

    Raises:
        LinkError: it ends in the midst of something, or is too long.
    """
    if not _SPECIAL.search(body):
        return body
    out = bytearray()
    coming = iter(body)
    for byte in coming:
        if byte == _ESCAPE:
            out.append(_follower(next(coming, None)) ^ 0x20)
        elif byte == _RUN:
            count = _follower(next(coming, None))
            if not out or count not in _RUN_COUNTS:
                raise LinkError("what the GDB server says has a run that repeats nothing")
            out += out[-1:] * (count - _RUN_BASE)
        else:
            out.append(byte)
        if len(out) > MAX_PACKET:
            raise LinkError(f"what the GDB server says is longer than {MAX_PACKET} bytes")
    return bytes(out)


def _follower(byte: int | None) -> int:
    if byte is None:
        raise LinkError("what the GDB server says ends in the midst of a byte")
    return byte
