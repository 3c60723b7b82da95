"""Two slots on NOR flash as Linux shows it: one MTD partition each. An image lies from the first byte on.

Sectors are erased as the image comes, whole units are programmed and read back, and the rest of the slot is erased
behind it: `mgota.flash.writer` does so for every flash memory.
"""

from collections.abc import Mapping

from mgota.core.geometry import Area, Slot
from mgota.errors import ConfigError, ReadError, TooLargeError
from mgota.flash.areas import extent_of
from mgota.flash.writer import NorWriter, reopened
from mgota.linux.mtd import MtdDevice, MtdFlash


class MtdSlots:
    """Where the images of two slots lie; implements `mgota.linux.selected.SlotMedium`.

    Args:
        devices: the partition of each slot.

    Raises:
        ConfigError: both are one, or one is no NOR flash.
        FlashError: one cannot be opened.
    """

    def __init__(self, devices: Mapping[Slot, MtdDevice]) -> None:
        if devices[Slot.A].path.resolve() == devices[Slot.B].path.resolve():
            raise ConfigError(f"both slots are {devices[Slot.A].path}")
        self._flashes = {slot: MtdFlash(device) for slot, device in devices.items()}

    def room(self, slot: Slot) -> int:
        """Bytes of the partition."""
        return self._flashes[slot].geometry.size

    def _area(self, slot: Slot) -> Area:
        return Area(0, self.room(slot))

    async def open_writer(self, slot: Slot, size: int) -> NorWriter:
        """Begin to write an image of `size` bytes.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
        """
        if size > self.room(slot):
            raise TooLargeError(size, self.room(slot))
        flash = self._flashes[slot]
        return NorWriter(flash, self._area(slot), size, flush=flash.flush)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[NorWriter, int]:
        """Go on with an image that was cut off, from the erase block on that holds the byte `mark`.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
        """
        return reopened(self._flashes[slot], self._area(slot), size, mark)

    async def extent(self, slot: Slot) -> int:
        """Bytes of the partition; 0 if all of it is erased.

        Raises:
            ReadError: it cannot be read.
        """
        return await extent_of(self._flashes[slot], self._area(slot))

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: they are not all there, or could not be read.
        """
        if offset < 0 or size < 0 or offset + size > self.room(slot):
            raise ReadError(f"{size} bytes at {offset:#x} are not all inside slot {slot}")
        return self._flashes[slot].device.read(offset, size)
