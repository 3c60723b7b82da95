"""Designs that lose devices, to show that the proof bites: each must be caught.

- Mongoose's scratch swap, as `power-fail.md` describes it: nothing is written down, and nothing recovers;
- a naive journal: records with a CRC one after the other, and who reads one believes it;
- a bare state that is stored before the swap, as the seed has it: it does not say whose trial it is;
- three mutants of the record log, each without one of its rules;
- a copy that is not read back.
"""

from collections.abc import Iterator

from mgota.core.geometry import Area, Geometry, Sector, uniform
from mgota.core.nor import Erase, Job, Program, Read, occupied
from mgota.core.recordlog import RecordLog, Scanned
from mgota.errors import VerifyError
from mgota.testing import CutMode, NorSimulator, PowerCut, PowerSupply
from mgota.testing.jobs import carry_out_now

# --- Mongoose's scratch swap -----------------------------------------------------------------------------------------

SECTORS, PAGES = 3, 4
"""Logical sectors of a slot, and programs of a sector: an erase and four programs a copy, three copies a sector."""


def scratch_swap(primary: list[Sector], secondary: list[Sector], scratch: Sector) -> Job[None]:
    """Sector after sector: primary to scratch, secondary to primary, scratch to secondary."""
    for first, second in zip(primary, secondary, strict=True):
        for source, destination in ((first, scratch), (second, first), (scratch, second)):
            yield Erase(destination)
            page = source.length // PAGES
            for at in range(0, source.length, page):
                data = yield Read(source.start + at, page)
                yield Program(destination.start + at, data)


def scratch_cuts(modes: tuple[CutMode, ...]) -> tuple[int, int]:
    """The swap with a cut at each operation and mode.

    Returns how often what would boot is neither image, and of how many cuts. There is no second chance: nothing says
    that a swap was under way.
    """
    geometry = uniform((2 * SECTORS + 1) * 1024, 1024, program_unit=16)
    sectors = list(geometry.sectors)
    primary, secondary, scratch = sectors[:SECTORS], sectors[SECTORS:-1], sectors[-1]
    size = SECTORS * 1024
    flash = NorSimulator(geometry)
    old, new = (bytes([mark, *range(255)]) * (size // 256) for mark in b"on")
    flash.program_now(0, old + new)
    begun = flash.fork()
    carry_out_now(scratch_swap(primary, secondary, scratch), begun)
    assert (begun.peek(0, size), begun.peek(size, size)) == (new, old)
    lost = 0
    for index in range(begun.operations.changes):
        for mode in modes:
            cut = flash.fork()
            PowerSupply(cut, seed=index).cut_at(index, mode)
            try:
                carry_out_now(scratch_swap(primary, secondary, scratch), cut)
            except PowerCut:
                lost += cut.peek(0, size) not in (old, new)
    return lost, begun.operations.changes * len(modes)


# --- a naive journal -------------------------------------------------------------------------------------------------


class NaiveLog(RecordLog):
    """Records with a CRC, numbered, one after the other, sector after sector. The last valid one counts at once."""

    def mount(self) -> Job[bytes | None]:
        """The newest value, as it reads now."""
        self._epoch, self._order, newest = 0, [0, 1, 2], None
        for index, sector in enumerate(self._sectors):
            data = yield Read(sector.start, sector.length)
            end = occupied(data, self._blank[: len(data)], self._geometry.program_unit)
            for number, value in self._records(data[:end]):
                if number > self._epoch:
                    self._epoch, self._position, newest = number, end, value
                    self._order = [index, (index + 1) % 3, (index + 2) % 3]
        return newest

    def append(self, value: bytes) -> Job[None]:
        """The next record, in the next unit or the next sector."""
        sector = self._sectors[self._order[0]]
        data = self._numbered(value)
        if not (self._position + len(data) <= sector.length and (yield from self._put(data))):
            yield from self._open(value)

    def _records(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        for at in range(0, len(data), self._geometry.program_unit):
            if found := self._entry(data, at):
                yield found

    def _numbered(self, value: bytes) -> bytes:
        self._epoch += 1
        return self._padded(value)

    def _open(self, value: bytes) -> Job[None]:
        self._order = [*self._order[1:], self._order[0]]
        self._position = 0
        yield Erase(self._sectors[self._order[0]])
        if not (yield from self._put(self._numbered(value))):
            raise VerifyError("the log does not keep a record")


# --- the record log, each time without one rule ----------------------------------------------------------------------


class NoRecommit(RecordLog):
    """What a mount reads is not written once more: the next value opens the next sector."""

    mounting = False

    def mount(self) -> Job[bytes | None]:
        """The newest value, as it reads now."""
        self.mounting = True
        found = yield from super().mount()
        self.mounting = False
        return found

    def _open(self, value: bytes) -> Job[None]:
        if not (self.mounting and self._epoch):
            yield from super()._open(value)
            return
        self._position = self._sectors[self._order[0]].length  # what looks blank there may be torn


class NoSealRule(RecordLog):
    """The newest sector counts, whether it is sealed or not."""

    def _choose(self, scanned: list[Scanned]) -> tuple[Scanned, list[int]]:
        return super()._choose([Scanned(found.index, found.epoch, True, found.value) for found in scanned])


class TwoSectors(RecordLog):
    """The third sector is never used."""

    def _choose(self, scanned: list[Scanned]) -> tuple[Scanned, list[int]]:
        source = scanned[1] if not scanned[0].sealed and len(scanned) > 1 else scanned[0]
        return source, [source.index, 1 - source.index]

    def _open(self, value: bytes) -> Job[None]:
        self._order = [index for index in self._order if index < 2]
        yield from super()._open(value)


# --- a copy that is not read back -------------------------------------------------------------------------------------


def not_read_back(geometry: Geometry, area: Area, data: bytes) -> Job[bool]:
    """`mgota.core.nor.rewrite`, without a look at what it wrote."""
    for sector in geometry.sectors_in(area):
        yield Erase(sector)
    length = occupied(data, geometry.blank(len(data)), geometry.program_unit)
    if length:
        yield Program(area.start, data[:length])
    return True
