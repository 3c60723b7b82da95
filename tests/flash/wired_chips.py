"""A gateway and a chip at the end of its link, as tests have them: with faults, and a power switch for each."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from mgota.core.geometry import Area, Geometry, Sector, Slot
from mgota.errors import FlashError, LinkError, TooLargeError
from mgota.flash.areas import extent_of, read_slot
from mgota.flash.writer import NorWriter, reopened
from mgota.ports import FlashWriter, ReadableBuffer
from mgota.testing import NorSimulator, PowerCut, PowerSupply


class GatewaySlots:
    """Two areas of a memory that stands for the gateway's disk; what a `FlashBackend` needs to keep images."""

    crc = "crc-32"

    def __init__(self, flash: NorSimulator, start: int, length: int) -> None:
        self.flash = flash
        self._areas = {slot: Area(start + number * length, length) for number, slot in enumerate(Slot)}

    async def running_slot(self) -> Slot:
        raise AssertionError("nobody asks the files which of them runs")

    async def capacity(self) -> int:
        return self._areas[Slot.A].length

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        if size > await self.capacity():
            raise TooLargeError(size, await self.capacity())
        return NorWriter(self.flash, self._areas[slot], size)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        return reopened(self.flash, self._areas[slot], size, mark)

    async def extent(self, slot: Slot) -> int:
        return await extent_of(self.flash, self._areas[slot])

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        return await read_slot(self.flash, slot, self._areas[slot], offset, size)

    async def select(self, slot: Slot) -> None:
        raise AssertionError("nothing is selected among the files")

    async def recover(self) -> None:
        raise AssertionError("there is nothing to recover")


class Chip:
    """The first bytes of a memory behind a link that cannot sum them up; implements `Link`.

    Args:
        flash: the memory.
        geometry: of the chip's part of it.
        power: of the chip alone: when it goes, the link breaks. None: it is the gateway's, and all ends.
    """

    def __init__(self, flash: NorSimulator, geometry: Geometry, power: PowerSupply | None = None) -> None:
        self.flash = flash
        self.power = power
        self.away_for = 0
        """How many times in vain it is looked for after its power went."""
        self.entered = self.runs = False
        self.starts = self.erases = self.programs = self.bytes_read = 0
        self.fault: Callable[[str, int], None] = lambda what, offset: None
        """Called before each thing that is asked of it; raises what is wrong."""
        self._geometry = geometry

    @property
    def geometry(self) -> Geometry:
        return self._geometry

    def _ask(self, what: str, offset: int = 0) -> None:
        assert self.entered or what in {"connect", "enter", "reset"}, f"{what} of a chip that runs"
        self.fault(what, offset)

    async def enter(self) -> None:
        self._ask("enter")
        if self.power and self.power.gone:
            if self.away_for:
                self.away_for -= 1
                raise LinkError("the chip has no power")
            self.power.restore()
        self.entered, self.runs = True, False

    async def reset(self) -> None:
        self._ask("reset")
        if self.power and self.power.gone:
            raise LinkError("the chip has no power")
        self.entered, self.runs = False, True
        self.starts += 1

    async def read(self, offset: int, size: int) -> bytes:
        self._ask("read", offset)
        self.bytes_read += size
        with self._lost():
            return await self.flash.read(offset, size)

    async def erase(self, sector: Sector) -> None:
        self._ask("erase", sector.start)
        self.erases += 1
        with self._lost():
            await self.flash.erase(sector)

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        self._ask("program", offset)
        self.programs += 1
        with self._lost():
            await self.flash.program(offset, data)

    async def flush(self) -> None:
        pass

    def _lost(self) -> "_Lost":
        return _Lost(self.power)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator["Chip"]:
        self._ask("connect")
        yield self


class _Lost:
    """The chip's power goes: a link tells that in its own words."""

    def __init__(self, power: PowerSupply | None) -> None:
        self._power = power

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        if self._power and isinstance(exc, PowerCut):
            raise FlashError("the link broke") from exc


class Summing(Chip):
    """The same behind a link that can."""

    def __init__(self, flash: NorSimulator, geometry: Geometry, power: PowerSupply | None = None) -> None:
        super().__init__(flash, geometry, power)
        self.compared = 0

    async def holds(self, offset: int, data: ReadableBuffer) -> bool:
        self._ask("sum", offset)
        self.compared += 1
        with self._lost():
            return await self.flash.read(offset, len(memoryview(data))) == data
