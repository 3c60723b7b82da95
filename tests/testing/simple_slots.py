"""A backend that keeps its promises, as small as can be. Tests derive others from it that break one each."""

from mgota.core.geometry import Area, Slot, uniform
from mgota.errors import ReadError, TooLargeError
from mgota.flash.writer import NorWriter
from mgota.ports import FlashWriter
from mgota.testing import NorSimulator

HALF = 16 << 10
SMALL = uniform(2 * HALF + 4096, 4096, program_unit=16)


class Slots:
    """Two halves of a memory, and a register; implements `FlashBackend`."""

    crc = "crc-32"

    def __init__(self, flash: NorSimulator) -> None:
        self.flash = flash
        self.bit = flash.register("bit")
        self.running: Slot | None = None

    async def running_slot(self) -> Slot:
        if self.running is None:
            self.running = list(Slot)[await self.bit.read()]
        return self.running

    async def capacity(self) -> int:
        return HALF

    def area(self, slot: Slot) -> Area:
        return Area(0 if slot is Slot.A else HALF, HALF)

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        if size > await self.capacity():
            raise TooLargeError(size, await self.capacity())
        return NorWriter(self.flash, self.area(slot), size)

    async def extent(self, slot: Slot) -> int:
        area = self.area(slot)
        blank = self.flash.geometry.blank(area.length)
        return 0 if await self.flash.read(area.start, area.length) == blank else area.length

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        if offset + size > self.area(slot).length:
            raise ReadError("not all in the slot")
        return await self.flash.read(self.area(slot).start + offset, size)

    async def select(self, slot: Slot) -> None:
        await self.running_slot()
        await self.bit.write(int(slot is Slot.B))

    async def recover(self) -> None:
        pass
