"""Two images that a gateway holds for a chip: which of them the chip should hold, and what of it has to be programmed.

The note beside the images is written ahead: what it selects, the chip gets at the next boot, whatever was cut off.
Rules:
- an image counts by its SHA-256, which is noted when it is selected, once, and forgotten before it is overwritten;
- an image that is not the noted one any more is never programmed;
- from before the first erase until all was read back the chip is in doubt: what a power cut tore may read right once
  and wrong later, so that nothing in it is believed then, and all of the image is programmed;
- where a chip refuses what is selected, the other image may take its place only if the chip has held it before;
- bytes that are no note are no note. Then what lies in the chip tells which image that was. SPEC.md describes them.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, cast
from zlib import crc32

from mgota.core.geometry import Area, Geometry, Sector, Slot
from mgota.core.nor import occupied

MAX_NOTE: Final = 1024
"""Bytes of the longest note."""

_MAGIC = b"mgota-held 1 "
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldImage:
    """An image that the gateway holds.

    Args:
        size: bytes, trailer included.
        sha256: hex digest of all of them; None while it is being written.
        held: whether the chip has held it, as was read back.
    """

    size: int
    sha256: str | None = None
    held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldNote:
    """What the chip should hold.

    Args:
        selected: the slot whose image it gets at the next boot.
        running: the slot whose image it got at the last one.
        doubt: programming was begun, and was not read back since.
        a: the image in slot a, or None.
        b: the one in slot b.
    """

    selected: Slot = Slot.A
    running: Slot = Slot.A
    doubt: bool = False
    a: HeldImage | None = None
    b: HeldImage | None = None

    def image(self, slot: Slot) -> HeldImage | None:
        """The image in a slot, or None."""
        return self.a if slot is Slot.A else self.b

    def with_image(self, slot: Slot, image: HeldImage | None) -> "HeldNote":
        """The same with another image in a slot."""
        return replace(self, a=image) if slot is Slot.A else replace(self, b=image)

    def candidates(self) -> tuple[Slot, ...]:
        """The slots whose image the chip may get, the first one first."""
        other = self.image(self.selected.other)
        return (self.selected, self.selected.other) if other and other.held else (self.selected,)


def is_unknown(note: HeldNote | None) -> bool:
    """Whether nothing tells what the chip runs: never noted, or the image that was selected was never completed."""
    if note is None:
        return True
    image = note.image(note.selected)
    return image is not None and image.sha256 is None


def begun(note: HeldNote, slot: Slot, size: int) -> HeldNote:
    """An image of `size` bytes is about to be written to a slot."""
    return note.with_image(slot, HeldImage(size=size))


def doubtful(note: HeldNote) -> HeldNote:
    """The chip is about to be erased."""
    return replace(note, doubt=True)


def selecting(note: HeldNote, slot: Slot, image: HeldImage | None) -> HeldNote:
    """The chip gets this image, which lies in this slot, at the next boot; None leaves it as it is."""
    return replace(note, selected=slot).with_image(slot, image)


def brought(note: HeldNote, slot: Slot) -> HeldNote:
    """The chip holds the image of this slot, as was read back."""
    image = note.image(slot)
    return replace(note, running=slot, doubt=False).with_image(slot, image and replace(image, held=True))


def encode_note(note: HeldNote) -> bytes:
    """The bytes of a note: a line with its CRC, and a line of JSON."""
    told = {
        "selected": note.selected.value,
        "running": note.running.value,
        "doubt": note.doubt,
        "images": {slot.value: _told(note.image(slot)) for slot in Slot},
    }
    payload = json.dumps(told).encode("ascii") + b"\n"
    return _MAGIC + b"%08x\n" % crc32(payload) + payload


def _told(image: HeldImage | None) -> dict[str, Any] | None:
    return None if image is None else {"size": image.size, "sha256": image.sha256, "held": image.held}


def decode_note(data: bytes | None) -> HeldNote | None:
    """The note that `encode_note` made `data` of; None for any other bytes."""
    head, _, payload = (data or b"").partition(b"\n")
    if not data or len(data) > MAX_NOTE or head != _MAGIC + b"%08x" % crc32(payload):
        return None
    try:
        found: Any = json.loads(payload)
        a, b = (_image(found["images"][slot.value]) for slot in Slot)
        selected, running, doubt = Slot(found["selected"]), Slot(found["running"]), _bool(found["doubt"])
        return HeldNote(selected=selected, running=running, doubt=doubt, a=a, b=b)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _image(found: object) -> HeldImage | None:
    if found is None:
        return None
    size, sha256, held = (cast(dict[str, Any], found)[name] for name in ("size", "sha256", "held"))
    known = sha256 is None or (isinstance(sha256, str) and _HEX.fullmatch(sha256) is not None)
    if type(size) is not int or size < 1 or not known:
        raise ValueError("this is no image")
    return HeldImage(size=size, sha256=sha256, held=_bool(held))


def _bool(found: object) -> bool:
    if not isinstance(found, bool):
        raise ValueError("this is neither true nor false")  # noqa: TRY004  one kind of failure for its caller
    return found


@dataclass(frozen=True, slots=True)
class Piece:
    """What of an image lies in one sector.

    Args:
        sector: of the chip.
        start: first byte of the image in it.
        length: bytes of the image in it, at least one.
    """

    sector: Sector
    start: int
    length: int


def room(geometry: Geometry, start: int) -> Area:
    """All that an image can occupy that begins at `start`: up to the first hole, or the memory's end.

    Raises:
        ConfigError: no sector begins there.
    """
    sectors = geometry.sectors
    first = sectors[geometry.index_at(start)]
    end = first.start
    for sector in sectors[sectors.index(first) :]:
        if sector.start != end:
            break
        end = sector.end
    return geometry.slot_area(start, end - start)


def pieces(geometry: Geometry, area: Area, size: int) -> Iterator[Piece]:
    """An image at the start of an area, sector by sector.

    Args:
        geometry: of the chip's flash memory.
        area: begins with a sector.
        size: bytes of the image, which fits.
    """
    for sector in geometry.sectors_in(Area(area.start, size)):
        start = sector.start - area.start
        yield Piece(sector, start, min(sector.length, size - start))


def programmed(geometry: Geometry, data: bytes) -> bytes:
    """What of a sector's content is programmed: whole units, filled up with the erased pattern, and no blank end.

    Args:
        geometry: of the flash memory.
        data: from the sector's start on.
    """
    size = len(data) + -len(data) % geometry.program_unit
    blank = geometry.blank(size)
    whole = data + blank[len(data) :]
    return whole[: occupied(whole, blank, geometry.program_unit)]
