"""Mongoose's older HTTP endpoints: an image in pieces, and what the two slots hold.

    POST /api/firmware/upload?offset=N&total=T&name=F     200 true       or        500 and one line
    GET  /api/firmware/status                             [current, previous]

Old dashboards look at nothing but 200, so whatever is wrong with a piece is 500. Each element of the status has
`status` (0 no image, 1 about to run for the first time, 2 on trial, 3 committed), `crc32` and `timestamp`, which are 0
here as on Mongoose's own ports that do not know them, and `size`.
"""

from typing import Final
from urllib.parse import parse_qsl

from mgota.core.geometry import Slot
from mgota.core.http import Head, Refusal
from mgota.core.record import BootRecord, State

MAX_PIECE: Final = 1 << 18
"""Bytes of one piece."""

_MAX_DIGITS: Final = 18

UNAVAILABLE: Final = 0
FIRST_BOOT: Final = 1
UNCOMMITTED: Final = 2
COMMITTED: Final = 3


def read_place(head: Head) -> tuple[int, int] | Refusal:
    """Where a piece lies: its offset, and the bytes of the whole image.

    Args:
        head: of the request; further parameters, such as the name of the file, are ignored.
    """
    try:
        found = parse_qsl(head.target.partition("?")[2], keep_blank_values=True, max_num_fields=16)
    except ValueError:
        return Refusal(500, "offset and total are not to be found")
    values = [value for wanted in ("offset", "total") for name, value in found if name == wanted]
    names = sorted(name for name, _ in found if name in {"offset", "total"})
    if names != ["offset", "total"] or not all(_is_count(value) for value in values):
        return Refusal(500, "offset and total are not set, or are no numbers of bytes")
    return int(values[0]), int(values[1])


def sized(head: Head) -> int | Refusal:
    """The bytes of a piece, which may be none: that ends the upload."""
    length = head.value("content-length")
    if head.value("transfer-encoding") is not None or length is None:
        return Refusal(411, "a piece needs a Content-Length")
    if not _is_count(length):
        return Refusal(400, "Content-Length is not a number")
    if int(length) > MAX_PIECE:
        return Refusal(413, f"a piece has at most {MAX_PIECE} bytes")
    return int(length)


def firmware_status(record: BootRecord | None, running: Slot) -> list[dict[str, object]]:
    """What the older dashboard shows: the current image and the previous one.

    Args:
        record: the boot record, None if there is none or it cannot be read.
        running: the running slot.
    """
    return [_told(record, slot, running) for slot in (running, running.other)]


def _told(record: BootRecord | None, slot: Slot, running: Slot) -> dict[str, object]:
    image = record.image(slot) if record else None
    told: dict[str, object] = {"status": UNAVAILABLE, "crc32": "0", "size": 0, "timestamp": 0}
    if record is None or image is None:
        return told
    on_trial = record.trial is slot
    if slot is running:
        status = UNCOMMITTED if on_trial and record.state is State.FAILED else COMMITTED
    elif on_trial and record.state is State.TESTING:
        status = FIRST_BOOT
    else:
        status = COMMITTED if image.proven else UNAVAILABLE
    return told | {"status": status, "size": image.size, "version": image.version, "sha256": image.sha256}


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
