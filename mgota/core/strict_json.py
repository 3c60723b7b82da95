"""JSON and base64 from outside, without the liberties that Python's readers take.

Refused are: more bytes than the limit, anything but UTF-8, more levels than the depth, the same key twice, NaN and
Infinity (also by an exponent), integers that no size or count needs, half a surrogate pair (it could never be written
again), and whatever is not an object at the top. RFC 8259; I-JSON (RFC 7493) asks for the same. Of base64 (RFC 4648
section 4) only the one canonical text of some bytes is taken: no line ends, no missing padding, no stray bits.
"""

import json
import math
import re
from binascii import a2b_base64, b2a_base64
from typing import Any, NoReturn, cast

from mgota.errors import MalformedError

MAX_BYTES = 65536
MAX_DEPTH = 8

MAX_DIGITS = 19
"""Digits of the longest integer; 64 bits need no more."""

MAX_INTEGER = 10**MAX_DIGITS - 1

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
# A string that never ends runs to the end, so that none is looked through twice.

_BRACKETS = re.compile(rb"[\[\]{}]")


def parse_object(data: bytes, *, limit: int = MAX_BYTES, depth: int = MAX_DEPTH) -> dict[str, object]:
    """The object that `data` is.

    Args:
        data: JSON in UTF-8.
        limit: most bytes.
        depth: most levels of objects and arrays, the object itself included.

    Raises:
        MalformedError: it is none, or takes a liberty.
    """
    if len(data) > limit:
        raise MalformedError(f"JSON of {len(data)} bytes is longer than {limit}")
    if _depth_exceeds(data, depth):
        raise MalformedError(f"JSON is nested deeper than {depth} levels")
    try:
        text = data.decode("utf-8")
        found: object = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_number
        )
        if "\\u" in text:
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeError as exc:
        raise MalformedError("JSON is not UTF-8") from exc
    except ValueError as exc:
        raise MalformedError("this is not JSON") from exc
    if not isinstance(found, dict):
        raise MalformedError("JSON is not an object")
    return cast(dict[str, object], found)


def decode_base64(text: str) -> bytes:
    """The bytes that `text` is the canonical base64 of.

    Raises:
        MalformedError: it is none.
    """
    try:
        data = a2b_base64(text, strict_mode=True)
    except ValueError as exc:  # binascii.Error is one, and so is what is not ASCII
        raise MalformedError("this is not base64") from exc
    if encode_base64(data) != text:
        raise MalformedError("this is not canonical base64")
    return data


def encode_base64(data: bytes) -> str:
    """Canonical base64 of `data`."""
    return b2a_base64(data, newline=False).decode("ascii")


def _depth_exceeds(data: bytes, depth: int) -> bool:
    if data.count(b"{") + data.count(b"[") <= depth:
        return False
    # Up to where it stops being JSON, a reader finds the same strings; there it stops, and goes no deeper.
    level = 0
    for bracket in _BRACKETS.findall(_STRINGS.sub(b"", data)):
        level += 1 if bracket in b"[{" else -1
        if level > depth:
            return True
    return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError("JSON has the same key twice")
    return found


def _constant(_name: str) -> NoReturn:
    raise MalformedError("JSON has a number that is none: NaN or Infinity")


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > MAX_DIGITS:
        raise MalformedError(f"JSON has an integer of more than {MAX_DIGITS} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _constant(digits)
    return value
