"""The power goes in the middle of an operation, and comes back.

    power = PowerSupply(flash, seed=1)
    power.cut_at(7, CutMode.PREFIX)       operation 7, counted from now, is torn
    try:
        swap(flash)
    except PowerCut:
        power.restore()
    recover(flash)

Rules:
- what a cut leaves is one of eight modes, and depends on nothing but seed, mode, index and what was cut before;
- once the power is gone, every operation raises, reads included, until `restore`;
- a torn range counts as programmed: nothing may be programmed into it before its sector is erased, whatever it reads
  as. So does a unit of a torn program that was not reached: no chip says which these are;
- a torn range stays torn over power cycles and forks; an erase that takes effect ends it, sector by sector;
- options, cells and other operations that are not flash are atomic: they happened, or not.
"""

from enum import StrEnum
from random import Random
from zlib import crc32

from mgota.core.geometry import Area
from mgota.errors import ConfigError
from mgota.flash.operations import NEVER, Kind, Operation, Operations
from mgota.flash.simulator import NorSimulator

READS = (1, 1, 2, 3)
"""After how many reads a range changes its mind, drawn: most often after the first."""


class PowerCut(BaseException):
    """The power is gone.

    Not an `Exception`: nobody who handles errors may go on as if there were power.
    """


class CutMode(StrEnum):
    """What a power cut leaves of the operation that it hits.

    *Old* is what the range held before: a program finds the erased pattern there. *New* is what it would hold: a
    program's data, or the erased pattern of an erase. Where old and new have the same bit, that bit is certain in every
    mode. In all modes but the first two the range counts as programmed, all of a torn erase's sector too.
    """

    NOTHING = "nothing"
    """The operation did not begin: old, and units that were not programmed still are not."""
    ALL = "all"
    """The operation ended, and nobody was told: new. Where it failed instead, the power goes before the next one."""
    PREFIX = "prefix"
    """New up to a byte inside the range, old from there on. It is drawn, half of the time at a unit's boundary."""
    SUFFIX = "suffix"
    """Old up to a byte inside the range, new from there on."""
    RANDOM_BITS = "random bits"
    """Of the bits in which old and new differ, a half, a sixteenth or fifteen sixteenths (drawn) is new, for good."""
    RANDOM_READS = "random reads"
    """Each bit in which old and new differ reads as either, drawn again at each read, for good."""
    VALID_THEN_BLANK = "valid then blank"
    """The first read, or the first two or three (drawn), give new; from then on it is old, for good."""
    BLANK_THEN_VALID = "blank then valid"
    """The first read, or the first two or three (drawn), give old; from then on it is new, for good."""


ALL_MODES: tuple[CutMode, ...] = tuple(CutMode)
"""All eight."""

WAVERING_MODES = (CutMode.VALID_THEN_BLANK, CutMode.BLANK_THEN_VALID)
"""The two that change their mind once, after a number of reads."""

ATOMIC_MODES = (CutMode.NOTHING, CutMode.ALL)
"""The two that an operation knows which is not on flash memory."""


class Torn:
    """A part of a sector on which an operation was cut off; a `Veil`.

    Args:
        mode: of the cut.
        start: first byte.
        new: what the operation would have left there.
        mask: where PREFIX, SUFFIX and RANDOM_BITS are new: a number of as many bits.
        reads: after how many reads it changes its mind.
        seed: of what is drawn at each read.
    """

    __slots__ = ("_count", "_mask", "_mode", "_new", "_reads", "_seed", "end", "start")

    def __init__(self, mode: CutMode, start: int, new: bytes, *, mask: int = 0, reads: int = 1, seed: int = 0) -> None:
        self.start = start
        self.end = start + len(new)
        self._mode = mode
        self._new = new
        self._mask = mask
        self._reads = reads
        self._seed = seed
        self._count = 0  # reads so far

    @property
    def stable(self) -> bool:
        """Whether every further read gives the same."""
        match self._mode:
            case CutMode.RANDOM_READS:
                return False
            case CutMode.VALID_THEN_BLANK | CutMode.BLANK_THEN_VALID:
                return self._count >= self._reads
            case _:
                return True

    def look(self, offset: int, below: bytes) -> bytes:
        """What a read of this part gives now."""
        size, start = len(below), offset - self.start
        new = self._new[start : start + size]
        match self._mode:
            case CutMode.VALID_THEN_BLANK:
                return new if self._count < self._reads else below
            case CutMode.BLANK_THEN_VALID:
                return below if self._count < self._reads else new
            case CutMode.RANDOM_READS:
                return mix(below, new, Random(self._seed + self._count).getrandbits(8 * size))  # noqa: S311
            case _:
                whole = self._mask.to_bytes(len(self._new), "little")
                return mix(below, new, int.from_bytes(whole[start : start + size], "little"))

    def counted(self) -> None:
        """A read has touched it."""
        self._count += 1

    def fork(self) -> "Torn":
        """Its twin."""
        twin = Torn(self._mode, self.start, self._new, mask=self._mask, reads=self._reads, seed=self._seed)
        twin._count = self._count
        return twin


def mix(old: bytes, new: bytes, mask: int) -> bytes:
    """The bits of `new` where `mask` is 1, and those of `old` elsewhere; the first byte is the lowest of the mask."""
    low = int.from_bytes(old, "little")
    return (low ^ (low ^ int.from_bytes(new, "little")) & mask).to_bytes(len(old), "little")


def tear(flash: NorSimulator, mode: CutMode, offset: int, new: bytes, seed: int, *, reads: int | None = None) -> None:
    """Leave behind what a cut leaves of an operation on flash memory.

    Args:
        flash: the memory; whether the operation is allowed was looked at before.
        mode: neither NOTHING nor ALL.
        offset: first byte of the operation.
        new: what the operation would have left, from there on.
        seed: of all that is drawn.
        reads: after how many of them a wavering mode changes its mind; drawn if omitted.
    """
    random = Random(seed)  # noqa: S311  nothing is kept secret here
    mask = draw_mask(mode, len(new), flash.geometry.program_unit, random)
    drawn = random.choice(READS)
    reads = drawn if reads is None else reads
    for sector in flash.geometry.sectors_in(Area(offset, len(new))):
        start, end = max(sector.start, offset), min(sector.end, offset + len(new))
        part = new[start - offset : end - offset]
        bits = mask >> 8 * (start - offset) & (1 << 8 * len(part)) - 1
        torn = Torn(mode, start, part, mask=bits, reads=reads, seed=random.getrandbits(64))
        if torn.stable and not flash.covered(Area(start, len(part))):
            flash.poke(start, mix(flash.peek(start, len(part)), part, bits))
        else:  # also a stable one over what was torn before: what it leaves uncovered stays uncertain
            flash.cover(torn)


def draw_mask(mode: CutMode, size: int, unit: int, random: Random) -> int:
    """Which of the bits of an operation are new, for the modes that say so once and for good; 0 for the others."""
    bits = 8 * size
    match mode:
        case CutMode.PREFIX | CutMode.SUFFIX:
            at = random.randrange(1, size) if size > 1 else random.randrange(2)
            if size > unit and random.randrange(2):
                at = random.randrange(unit, size, unit)
            prefix = (1 << 8 * at) - 1
            return prefix if mode is CutMode.PREFIX else ((1 << bits) - 1) ^ prefix
        case CutMode.RANDOM_BITS:
            share, mask = random.randrange(3), random.getrandbits(bits)
            for _ in range(3 if share else 0):
                mask &= random.getrandbits(bits)
            return mask if share < 2 else ((1 << bits) - 1) ^ mask
        case _:
            return 0


class PowerSupply:
    """What a simulated device runs on.

    Args:
        device: the memory, or the operations that several parts of a device share.
        seed: of what is left of the operations that are cut off.
    """

    def __init__(self, device: NorSimulator | Operations, *, seed: int = 0) -> None:
        self.operations = device if isinstance(device, Operations) else device.operations
        self.gone = False
        """Whether the power is gone."""
        self.last: Operation | None = None
        """The operation that was cut off last."""
        self._seed = seed
        self._cuts = 0
        self._mode = CutMode.NOTHING
        self._reads: int | None = None
        self._armed = -1
        self._hit: Operation | None = None

    def cut_at(self, index: int, mode: CutMode = CutMode.NOTHING, *, reads: int | None = None) -> None:
        """Let the power go at an operation. Without flash under it, only `NOTHING` and `ALL` differ.

        Args:
            index: how many operations that change something still come before it.
            mode: what is left of it. A mode that the operation does not know is `NOTHING` or `ALL`, drawn.
            reads: after how many of them a wavering mode changes its mind; drawn if omitted.

        Raises:
            ConfigError: the power is gone already, or the index is negative.
        """
        if self.gone or index < 0:
            raise ConfigError("the power is gone: restore it first" if self.gone else "a cut lies in the future")
        self._mode, self._reads, self._hit = CutMode(mode), reads, None
        self._armed = self.operations.changes + index
        self.operations.guard, self.operations.guarded_from = self, self._armed

    def restore(self) -> None:
        """The power is back, and nothing will cut it. What is torn stays torn."""
        self.gone = False
        self.operations.guard, self.operations.guarded_from = None, NEVER

    def admit(self, operation: Operation) -> None:  # noqa: ARG002  all alike
        """Nothing happens without power."""
        if self.gone:
            raise PowerCut
        if self._hit and self.operations.changes > self._armed:  # it failed, and so nobody heard that it had ended
            self._cut(self._hit)

    def begun(self, operation: Operation) -> None:
        """Cut the armed operation off, unless all of it is to happen."""
        if operation.index != self._armed:
            return
        self._hit = operation
        flash = operation.source if operation.kind in (Kind.ERASE, Kind.PROGRAM) else None
        seed = crc32(f"{self._seed} {self._cuts} {operation.index} {self._mode}".encode())
        if not isinstance(flash, NorSimulator):
            if self._mode not in ATOMIC_MODES:
                self._mode = ATOMIC_MODES[seed & 1]
        elif self._mode not in ATOMIC_MODES and _allowed(flash, operation):
            tear(flash, self._mode, operation.offset, _new(flash, operation), seed, reads=self._reads)
        if self._mode is not CutMode.ALL:
            self._cut(operation)

    def ended(self, operation: Operation) -> None:
        """Cut after the armed operation."""
        if operation.index == self._armed:
            self._cut(operation)

    def _cut(self, operation: Operation) -> None:
        self.gone, self.last = True, operation
        self._cuts += 1
        self.operations.guarded_from = -1
        raise PowerCut


def _allowed(flash: NorSimulator, operation: Operation) -> bool:
    """Whether the chip would do it: it refuses a program that breaks its rules, power or not."""
    if operation.kind is Kind.ERASE or flash.programmed(operation.offset, operation.size) is None:
        return True
    flash.operations.broken_rules.append(f"a unit at {operation.offset:#x} was programmed before and not erased")
    return False


def _new(flash: NorSimulator, operation: Operation) -> bytes:
    if operation.kind is Kind.ERASE:
        return flash.geometry.blank(operation.size)
    return bytes(operation.data or b"")
