"""What every backend does with a slot that is an area of a flash memory: look whether it is blank, and read of it."""

from mgota.core.geometry import Area, Slot
from mgota.errors import ReadError
from mgota.ports import NorFlash

SCAN = 1 << 16
"""Bytes that are read at once when a slot is searched for anything not blank."""


async def extent_of(flash: NorFlash, area: Area) -> int:
    """Bytes of the area; 0 if all of it is the erased pattern.

    Raises:
        ReadError: it could not be read.
    """
    geometry = flash.geometry
    scan = max(SCAN // geometry.program_unit, 1) * geometry.program_unit
    blank = geometry.blank(scan)
    for offset in range(area.start, area.end, scan):
        size = min(scan, area.end - offset)
        if await flash.read(offset, size) != blank[:size]:
            return area.length
    return 0


async def read_slot(flash: NorFlash, slot: Slot, area: Area, offset: int, size: int) -> bytes:
    """Exactly `size` bytes of a slot, counted from its start.

    Args:
        flash: the memory.
        slot: whose bytes they are, for the message.
        area: where it lies.
        offset: first byte, from the start of the area.
        size: bytes.

    Raises:
        ReadError: they could not be read, or are not all in the slot.
    """
    if offset < 0 or size < 0 or offset + size > area.length:
        raise ReadError(f"{size} bytes at {offset:#x} are not all inside slot {slot}")
    return await flash.read(area.start + offset, size)
