"""Flash memory that is worn out: bits that stick, operations that do nothing, or fail.

    bad = BadFlash(flash, seed=1)
    bad.stick(0x1234, 0b0000_0100, 0)                       bit 2 of this byte reads 0, whatever is programmed
    bad.stick_somewhere(3, Area(0x8000, 0x4000))            three bits, drawn
    bad.fail(Kind.ERASE, Flaw.IGNORED, sectors=[sector])    erasing this sector does nothing, and nobody says so
    bad.fail(Kind.PROGRAM, Flaw.ERROR, at=[5], times=1)     the sixth operation from now raises ProgramError
    bad.mend()

Rules:
- an operation that breaks the chip's rules is refused as ever, before a flaw is asked;
- after an operation that raised, half of what it was to do is done, and all of its range counts as programmed;
- flaws belong to one memory: a fork is a chip without them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from random import Random

from mgota.core.geometry import Area, Sector
from mgota.errors import ConfigError, EraseError, ProgramError, ReadError
from mgota.flash.operations import Kind
from mgota.flash.simulator import NorSimulator


class Flaw(StrEnum):
    """How an operation fails."""

    IGNORED = "ignored"
    """It does nothing and reports success."""
    ERROR = "error"
    """It raises."""


@dataclass(slots=True)
class _Failure:
    """What `fail` was told."""

    kind: Kind
    flaw: Flaw
    areas: tuple[Area, ...]
    at: frozenset[int]
    left: int | None

    def fits(self, kind: Kind, index: int, offset: int, size: int) -> bool:
        """Whether this operation fails; it is used up by one."""
        if kind is not self.kind or self.left == 0 or (self.at and index not in self.at):
            return False
        if self.areas and not any(area.start < offset + size and offset < area.end for area in self.areas):
            return False
        if self.left is not None:
            self.left -= 1
        return True


class BadFlash:
    """What is wrong with a simulated memory. Making one arms it; the last one made counts.

    Args:
        flash: the memory.
        seed: of what is drawn.
    """

    def __init__(self, flash: NorSimulator, *, seed: int = 0) -> None:
        self.flash = flash
        self.hits = 0
        """How many operations went wrong, reads of a stuck bit that stood well already not counted."""
        self._random = Random(seed)  # noqa: S311  nothing is kept secret here
        self._stuck: dict[int, tuple[int, int]] = {}  # offset: which bits, and how they stand
        self._failures: list[_Failure] = []
        flash.defects = self

    def stick(self, offset: int, bits: int, value: int) -> None:
        """Let bits of one byte read the same for ever.

        Args:
            offset: of the byte.
            bits: a mask: which of its bits.
            value: how these bits stand; others are ignored.

        Raises:
            ConfigError: there is no such byte, or these are no bits of one.
        """
        self.flash.geometry.index_at(offset)
        if not 0 < bits < 256:
            raise ConfigError("bits are a mask over one byte, 1 to 255")
        mask, stands = self._stuck.get(offset, (0, 0))
        self._stuck[offset] = (mask | bits, stands & ~bits | value & bits)

    def stick_somewhere(self, count: int, area: Area | None = None) -> tuple[int, ...]:
        """Let drawn bits read drawn values for ever. Returns the offsets of their bytes.

        Args:
            count: how many.
            area: where, without a hole; anywhere if None.

        Raises:
            ConfigError: there are not that many bytes.
        """
        areas = self.flash.geometry.sectors if area is None else (area,)
        if not 0 <= count <= sum(each.length for each in areas):
            raise ConfigError(f"there are no {count} bytes whose bits could stick")
        offsets = set[int]()
        while len(offsets) < count:
            each = self._random.choice(areas)
            offsets.add(self._random.randrange(each.start, each.end))
        for offset in sorted(offsets):
            self.stick(offset, 1 << self._random.randrange(8), self._random.choice((0, 255)))
        return tuple(sorted(offsets))

    def fail(
        self, kind: Kind, flaw: Flaw, *, sectors: Iterable[Area] = (), at: Iterable[int] = (), times: int | None = None
    ) -> None:
        """Let operations fail: all of a kind, or those in chosen places or at chosen times.

        Args:
            kind: READ, ERASE or PROGRAM.
            flaw: how. A read cannot be ignored.
            sectors: operations that touch any of these; everywhere if empty.
            at: how many operations that change something (for reads: how many reads) come before it, from now.
            times: how many operations in all; None for ever.

        Raises:
            ConfigError: there is no such failure.
        """
        if kind is Kind.OPTION or (kind is Kind.READ and flaw is Flaw.IGNORED):
            raise ConfigError(f"flash memory does not fail like this: {kind}, {flaw}")
        begun = self.flash.operations.counts[kind] if kind is Kind.READ else self.flash.operations.changes
        indices = frozenset(begun + index for index in at)
        self._failures.append(_Failure(kind, flaw, tuple(sectors), indices, times))

    def mend(self) -> None:
        """Nothing is wrong any more; what was spoilt stays as it is."""
        self._stuck.clear()
        self._failures.clear()

    def read(self, offset: int, data: bytes) -> bytes:
        """What a read gives instead of what is stored.

        Raises:
            ReadError: nothing.
        """
        if self._flaw(Kind.READ, self.flash.operations.counts[Kind.READ] - 1, offset, len(data)):
            raise ReadError(f"flash could not be read at {offset:#x}")
        end = offset + len(data)
        stuck = [(at - offset, *self._stuck[at]) for at in self._stuck if offset <= at < end]
        if not stuck:
            return data
        seen = bytearray(data)
        for at, bits, value in stuck:
            seen[at] = seen[at] & ~bits | value
        wrong = bytes(seen)
        self.hits += wrong != data
        return wrong

    def erase(self, sector: Sector) -> bool:
        """Whether an erase takes effect.

        Raises:
            EraseError: it failed, and says so.
        """
        flaw = self._flaw(Kind.ERASE, self.flash.operations.changes - 1, sector.start, sector.length)
        if flaw is Flaw.ERROR:
            self._half(sector.start, self.flash.geometry.blank(sector.length))
            raise EraseError(f"the sector at {sector.start:#x} could not be erased")
        return flaw is None

    def program(self, offset: int, data: memoryview) -> bool:
        """Whether a program takes effect.

        Raises:
            ProgramError: it failed, and says so.
        """
        flaw = self._flaw(Kind.PROGRAM, self.flash.operations.changes - 1, offset, len(data))
        if flaw is Flaw.ERROR:
            self._half(offset, bytes(data))
            raise ProgramError(f"flash could not be programmed at {offset:#x}")
        return flaw is None

    def _flaw(self, kind: Kind, index: int, offset: int, size: int) -> Flaw | None:
        for failure in self._failures:
            if failure.fits(kind, index, offset, size):
                self.hits += 1
                return failure.flaw
        return None

    def _half(self, offset: int, new: bytes) -> None:
        done = len(new) // 2
        self.flash.poke(offset, new[:done] + self.flash.peek(offset + done, len(new) - done))
