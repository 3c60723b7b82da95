"""Where a flash memory can be erased and programmed, and what a slot is.

Rules:
- offsets and lengths are bytes, counted from the start of the memory's raw array;
- regions are sorted and do not overlap; between them there may be holes, which belong to no sector;
- a slot's area begins and ends at sector boundaries and has no hole.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from mgota.errors import ConfigError


class Slot(StrEnum):
    """One of the two places for an image; which of them is *active* is the device's state, not the slot's."""

    A = "a"
    B = "b"

    @property
    def other(self) -> "Slot":
        """The slot that this one is exchanged with."""
        return Slot.B if self is Slot.A else Slot.A


@dataclass(frozen=True, slots=True)
class Area:
    """A run of bytes in a flash memory.

    Args:
        start: first byte.
        length: number of bytes.
    """

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind the area."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Sector(Area):
    """The smallest piece that can be erased."""


@dataclass(frozen=True, slots=True)
class Region:
    """A run of equal sectors.

    Args:
        start: first byte.
        length: bytes in all, a multiple of `sector`.
        sector: bytes of one sector.
    """

    start: int
    length: int
    sector: int

    @property
    def end(self) -> int:
        """The first byte behind the region."""
        return self.start + self.length


@dataclass(frozen=True)
class Geometry:
    """The sectors of a flash memory, its program unit and what an erased unit reads as.

    Args:
        regions: sorted, without overlap.
        program_unit: bytes of the smallest piece that can be programmed.
        erased: the erased pattern; its length divides the program unit.

    Raises:
        ConfigError: the numbers contradict each other.
    """

    regions: tuple[Region, ...]
    program_unit: int = 1
    erased: bytes = b"\xff"

    def __post_init__(self) -> None:
        if self.program_unit < 1 or not self.erased or self.program_unit % len(self.erased):
            raise ConfigError("the program unit must be a multiple of the erased pattern's length")
        if not self.regions:
            raise ConfigError("a flash memory has at least one region")
        end = 0
        for region in self.regions:
            if region.start < end:
                raise ConfigError("regions must be sorted and must not overlap")
            if region.sector < 1 or region.length < 1 or region.length % region.sector:
                raise ConfigError("a region is a whole number of sectors")
            if region.sector % self.program_unit or region.start % self.program_unit:
                raise ConfigError("a sector is a whole number of program units")
            end = region.end

    @cached_property
    def sectors(self) -> tuple[Sector, ...]:
        """Every sector, in order."""
        return tuple(
            Sector(start, region.sector)
            for region in self.regions
            for start in range(region.start, region.end, region.sector)
        )

    @cached_property
    def _starts(self) -> list[int]:
        return [sector.start for sector in self.sectors]

    @property
    def size(self) -> int:
        """The first byte behind the last region: the length of the raw array."""
        return self.regions[-1].end

    def index_at(self, offset: int) -> int:
        """Index in `sectors` of the one that holds the byte at `offset`.

        Raises:
            ConfigError: no sector holds it.
        """
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or offset >= self.sectors[index].end:
            raise ConfigError(f"no sector holds the byte at {offset:#x}")
        return index

    def sectors_in(self, area: Area) -> Iterator[Sector]:
        """The sectors that hold any byte of `area`, in order.

        Raises:
            ConfigError: the area begins outside of every sector.
        """
        if not area.length:
            return
        for index in range(self.index_at(area.start), len(self.sectors)):
            sector = self.sectors[index]
            if sector.start >= area.end:
                return
            yield sector

    def slot_area(self, start: int, length: int) -> Area:
        """An area that can hold a slot: whole sectors without a hole.

        Raises:
            ConfigError: it begins or ends inside a sector, or has a hole.
        """
        area = Area(start, length)
        sectors = list(self.sectors_in(area))
        covered = sum(sector.length for sector in sectors)
        if not sectors or sectors[0].start != start or sectors[-1].end != area.end or covered != length:
            raise ConfigError(f"no slot can lie at {start:#x} with {length:#x} bytes: it is not a run of whole sectors")
        return area

    def blank(self, length: int) -> bytes:
        """What `length` erased bytes read as, from a program unit's boundary on."""
        whole, rest = divmod(length, len(self.erased))
        return self.erased * whole + self.erased[:rest]


def uniform(size: int, sector: int, *, program_unit: int = 1, erased: bytes = b"\xff") -> Geometry:
    """A memory whose sectors are all equal.

    Args:
        size: bytes in all.
        sector: bytes of one sector.
        program_unit: bytes of the smallest programmable piece.
        erased: the erased pattern.
    """
    return Geometry((Region(0, size, sector),), program_unit, erased)
