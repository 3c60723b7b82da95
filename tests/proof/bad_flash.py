"""The swap on flash memory that is worn out, or that nobody answers for, with power cuts besides.

Each life is a request on a memory with one flaw. It boots, and makes the request, until one of these happened:
- the request was carried out: both images read well, through the flaw;
- it was refused (`SelectError`): the image that had run lies at the base;
- `FlashError`: nothing is promised until the memory works again.

Then the memory is mended. The next boot finishes whatever was begun: a whole image lies at the base, the one that the
journal names. If the other one was given up, it is stored again; and the request, made again, is carried out.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from random import Random

from swap_bench import Cut, SwapBench, seed_of
from tally import Brick, BrickError, RuleBrokenError, Tally

from mgota.core import swap
from mgota.core.geometry import Sector
from mgota.core.swap import Phase, SwapState
from mgota.errors import FlashError, ReadError, SelectError
from mgota.testing import ALL_MODES, BadFlash, CutMode, Flaw, Kind as Does, Operation, PowerCut, PowerSupply
from mgota.testing.jobs import carry_out_now

BOOTS = 3
"""How often a device tries with the flaw, power cuts not counted, before the memory is mended."""

FOR_EVER = 5000
"""More operations than a life has."""

DONE, REFUSED, FAILED = "carried out", "refused", "failed until mended"


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong with a memory.

    Args:
        name: in a report.
        arm: tells it to the memory, just before the first boot.
        honest: whether the memory says so; one that ignores an erase lets the code program what is not erased.
    """

    name: str
    arm: Callable[[BadFlash], None]
    honest: bool = True


@dataclass
class Listed:
    """What a request does, without a flaw: its changes, and how many reads come before each."""

    changes: list[Operation] = field(default_factory=list)
    before: list[int] = field(default_factory=list)
    reads: int = 0

    def note(self, operation: Operation) -> None:
        if operation.kind is Does.READ:
            self.reads += 1
        else:
            self.changes.append(operation)
            self.before.append(self.reads)


def listed(start: SwapBench) -> Listed:
    found, bench = Listed(), start.fork()
    bench.flash.operations.before = found.note
    bench.live()
    return found


def defects(start: SwapBench) -> Iterator[Defect]:
    """At every operation: it does nothing or fails, once or in this place for ever, or nothing answers from then on."""
    found = listed(start)
    for index, operation in enumerate(found.changes):
        yield Defect(f"silence from operation {index} on", _silence(index, found.before[index]))
        if operation.kind is Does.OPTION:
            continue
        place = Sector(operation.offset, operation.size)
        for flaw in Flaw:
            honest = (operation.kind, flaw) != (Does.ERASE, Flaw.IGNORED)
            name = f"{operation.kind} {index} {flaw}"
            yield Defect(f"{name} once", _fail(operation.kind, flaw, at=index), honest)
            yield Defect(f"{name} for ever", _fail(operation.kind, flaw, place=place), honest)
    for index in range(found.reads):
        yield Defect(f"read {index} fails once", _fail(Does.READ, Flaw.ERROR, at=index))
    for sector in start.layout.geometry.sectors:
        yield Defect(f"the sector at {sector.start:#x} cannot be read", _fail(Does.READ, Flaw.ERROR, place=sector))


def stuck_bits(start: SwapBench, draws: int) -> Iterator[Defect]:
    """Bits that stay as they are, whatever is programmed: some in each sector."""
    for sector in start.layout.geometry.sectors:
        for draw in range(draws):
            yield Defect(f"stuck bits at {sector.start:#x}, draw {draw}", _stick(start, sector, draw))


def _silence(index: int, reads: int) -> Callable[[BadFlash], None]:
    def arm(bad: BadFlash) -> None:
        for kind, first in ((Does.ERASE, index), (Does.PROGRAM, index), (Does.READ, reads)):
            bad.fail(kind, Flaw.ERROR, at=range(first, first + FOR_EVER))

    return arm


def _fail(kind: Does, flaw: Flaw, *, at: int | None = None, place: Sector | None = None) -> Callable[[BadFlash], None]:
    def arm(bad: BadFlash) -> None:
        if place:
            bad.fail(kind, flaw, sectors=[place])
        else:
            bad.fail(kind, flaw, at=[at or 0], times=1)

    return arm


def _stick(start: SwapBench, sector: Sector, draw: int) -> Callable[[BadFlash], None]:
    def arm(bad: BadFlash) -> None:
        random = Random(f"{sector.start} {draw}")
        # The first bytes are a record's, in the journal, and always an image's.
        for offset in (sector.start + random.randrange(28), random.randrange(sector.start, sector.end)):
            bad.stick(offset, 1 << random.randrange(8), start.flash.peek(offset, 1)[0])

    return arm


class BadProof:
    """Lives on bad flash, counted.

    Args:
        start: where they begin.
        name: of the memory.
    """

    def __init__(self, start: SwapBench, name: str) -> None:
        self.start, self.name = start, name
        self.tally = Tally()
        self.ends: Counter[str] = Counter()
        self.kinds = 0

    def prove(self, flaws: Iterator[Defect], every: int = 1) -> None:
        """Each flaw alone, and with a power cut at every operation, in one mode after the other.

        Args:
            flaws: what may be wrong.
            every: of the cuts one in so many falls, not always the same ones.
        """
        operations = len(listed(self.start).changes)
        modes = cycle(ALL_MODES)
        for number, flaw in enumerate(flaws):
            self.kinds += 1
            self.run(flaw, [], number)
            for index in range(number % every, operations, every):
                self.run(flaw, [(index, next(modes))], number)

    def run(self, flaw: Defect, cuts: list[Cut], seed: int) -> None:
        """One life, counted."""
        self.tally.runs += 1
        try:
            self.ends[live_badly(self.start, flaw, cuts, seed, self.tally)] += 1
        except Exception as exc:  # whatever the code under proof raises
            recipe = f"{self.name}, to {self.start.goal}: {flaw.name}, {cuts}, seed {seed}"
            self.tally.bricked(Brick("bad flash", recipe, f"{type(exc).__name__}: {exc}"), exc)

    def __str__(self) -> str:
        ends = ", ".join(f"{number} {end}" for end, number in sorted(self.ends.items()))
        return f"{self.kinds} flaws: {self.tally}; {ends}"


def live_badly(start: SwapBench, flaw: Defect, cuts: list[Cut], seed: int, tally: Tally) -> str:
    """A life with a flaw and power cuts, then with the memory mended. Returns how the request ended.

    Raises:
        BrickError: the device is lost, or lies.
    """
    bench = start.fork()
    old = start.goal.other
    bad = BadFlash(bench.flash, seed=seed)
    flaw.arm(bad)
    waiting = list(enumerate(cuts))
    end, boots = FAILED, 0
    while end is FAILED and boots < BOOTS:
        power = PowerSupply(bench.flash, seed=seed_of(seed, len(waiting)))
        cut: tuple[int, CutMode] | None = waiting[0][1] if waiting else None
        if cut:
            power.cut_at(*cut)
        try:
            end = _attempt(bench)
            boots += 1
        except PowerCut:
            tally.cuts += 1
            tally.modes[cut[1] if cut else CutMode.NOTHING] += 1
            waiting.pop(0)
        power.restore()
    bad.mend()
    if not flaw.honest:
        bench.flash.operations.broken_rules.clear()  # nobody could know
    bench.boot()
    _settled(bench, end)
    if bench.state.base is old:
        if bench.state.tag != bench.tag:  # the new image was given up
            _stage_again(bench)
        bench.ask(bench.goal, bench.state.tag)
        bench.carry_out()
    if bench.flash.operations.broken_rules:
        raise RuleBrokenError(bench.flash.operations.broken_rules[0])
    return end


def _attempt(bench: SwapBench) -> str:
    """A boot and the request, with the flaw."""
    try:
        bench.boot()
        if bench.state.base is bench.goal:
            _reads(bench)
            return DONE
        job = swap.select(bench.layout, bench.journal, bench.state, bench.goal)
        bench.state = carry_out_now(job, bench.flash, bench.beside)
    except SelectError:
        _holds_old(bench)
        return REFUSED
    except FlashError:
        return FAILED
    if bench.state.base is not bench.goal:
        raise BrickError("success was reported, and the image at the base is the old one")
    _reads(bench)
    return DONE


def _reads(bench: SwapBench) -> None:
    """Both images, as a program would read them, where the flaw lets it read at all."""
    state, layout = bench.state, bench.layout
    for slot, start in ((state.base, layout.primary.start), (state.base.other, layout.aside(int(state.raised)).start)):
        image = bench.images[slot]
        with suppress(ReadError):
            if bench.flash.read_now(start, len(image)) != image:
                raise BrickError(f"success was reported, and image {slot} does not read well at {start:#x}")


def _holds_old(bench: SwapBench) -> None:
    """The image that had run lies at the base, as before."""
    bench.holds(bench.goal.other, bench.layout.primary.start)


def _settled(bench: SwapBench, end: str) -> None:
    """What must hold after the first boot on a memory that works again."""
    state = bench.state
    if state.phase is not Phase.IDLE:
        raise BrickError("the swap did not end")
    if not 0 <= state.tag - bench.tag <= BOOTS:
        raise BrickError(f"the journal counts {state.tag} swaps, after {bench.tag} and at most {BOOTS} requests")
    if end is DONE and state.base is not bench.goal:
        raise BrickError("success was reported, and now the old image lies at the base")
    if end is REFUSED and state.base is bench.goal:
        raise BrickError("the request was refused, and now the new image lies at the base")
    bench.holds(state.base, bench.layout.primary.start)
    if state.base is bench.goal or state.tag == bench.tag:
        bench.holds(state.base.other, bench.layout.aside(int(state.raised)).start)


def _stage_again(bench: SwapBench) -> None:
    """The image that was given up is stored once more, as `CopiedFlash.open_writer` has it."""
    layout, state = bench.layout, bench.state
    bench.state = SwapState(base=state.base, raised=True, tag=state.tag)
    carry_out_now(bench.journal.note(bench.state), bench.flash, bench.beside)
    for sector in layout.geometry.sectors_in(layout.secondary):
        bench.flash.erase_now(sector)
    bench.flash.program_now(layout.aside(1).start, bench.images[bench.goal])
