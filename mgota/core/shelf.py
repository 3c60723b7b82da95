"""Files on a shelf: which one a request asks for, and what of it (RFC 9110 sections 13 and 14).

Rules:
- a path leads to a file below the shelf or nowhere: no `..`, no empty or hidden segment, no separator in disguise;
- one range at most: what asks for several, or is malformed, gets the whole file, as the RFC allows;
- an entity tag is strong: it changes with every replacement of the file, and names its bytes;
- `If-Range` with a date, or with a weak tag, fits nothing: then the whole file is sent.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from mgota.core.http import Head, Refusal

MAX_PATH: Final = 1024
"""Bytes of a path, decoded."""

_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(?P<first>[0-9]{0,19})-(?P<last>[0-9]{0,19})[ \t]*", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')

NOTHING_HERE: Final = Refusal(404, "there is nothing here")


def parts_of(path: str) -> tuple[str, ...] | None:
    """The names of the directories and the file that a path leads through; None if it leads nowhere.

    Args:
        path: as sent, without the query.
    """
    raw = unquote_to_bytes(path)
    if not raw.startswith(b"/") or len(raw) > MAX_PATH:
        return None
    try:
        names = raw[1:].decode("utf-8").split("/")
    except UnicodeDecodeError:
        return None
    sound = all(name and not name.startswith(".") and name.isprintable() and "\\" not in name for name in names)
    return tuple(names) if sound else None


def tag_of(inode: int, size: int, changed: int) -> str:
    """The entity tag of a file.

    Args:
        inode: its number; another one, once the file was replaced as a whole.
        size: its bytes.
        changed: when it was last written, in nanoseconds.
    """
    return f'"{inode:x}-{size:x}-{changed:x}"'


@dataclass(frozen=True, slots=True)
class Portion:
    """What of a file is sent.

    Args:
        status: 200 all of it, 206 a part, 304 nothing: the client has it.
        start: the first byte.
        size: how many.
        headers: further header fields.
    """

    status: int
    start: int
    size: int
    headers: tuple[tuple[str, str], ...]


def portion_of(head: Head, size: int, tag: str) -> Portion | Refusal:
    """What of a file a request gets.

    Args:
        head: of a GET or HEAD.
        size: bytes of the file.
        tag: its entity tag.
    """
    always = (("ETag", tag), ("Accept-Ranges", "bytes"), ("Cache-Control", "no-cache"))
    if _has_it(head, tag):
        return Portion(304, 0, 0, always)
    found = _range(head, size, tag) if head.method == "GET" else None
    if found is None:
        return Portion(200, 0, size, always)
    start, count = found
    if count <= 0:
        return Refusal(416, f"the file has {size} bytes", (("Content-Range", f"bytes */{size}"), *always))
    where = ("Content-Range", f"bytes {start}-{start + count - 1}/{size}")
    return Portion(206, start, count, (where, *always))


def _has_it(head: Head, tag: str) -> bool:
    """If-None-Match compares weakly (RFC 9110 section 13.1.2)."""
    fields = head.values("if-none-match")
    return fields == ["*"] or any(found.removeprefix("W/") == tag for text in fields for found in _TAG.findall(text))


def _range(head: Head, size: int, tag: str) -> tuple[int, int] | None:
    """The first byte and the number of bytes that are asked for, which may be none; None is the whole file."""
    ranges, conditions = head.values("range"), head.values("if-range")
    match = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    if match is None or conditions not in ([], [tag]):
        return None
    first, last = match["first"], match["last"]
    if not first:
        count = min(int(last), size) if last else None
        return None if count is None else (size - count, count)
    start, end = int(first), int(last) if last else size - 1
    if last and end < start:
        return None  # malformed, not out of reach
    return start, min(end, size - 1) - start + 1
