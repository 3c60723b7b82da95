"""A flash memory with two images that change places, a supply that is cut, and what must hold after each boot.

The code under proof is the real one (`mgota.core.swap`, `mgota.core.recordlog`), driven without an event loop. A run is
one request, from the first operation to the end, with any number of cuts in it: after each the memory boots, finishes
what was begun, is looked at, and the request is made again if it has not been carried out.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from mgota.core import swap
from mgota.core.geometry import Geometry, Region, Slot, uniform
from mgota.core.recordlog import Kind, RecordLog
from mgota.core.swap import ChipJournal, HostJournal, Journal, JournalPlace, Phase, SwapLayout, SwapState, plan_swap
from mgota.testing import ALL_MODES, CutMode, NorSimulator, PowerCut, PowerSupply
from mgota.testing.jobs import KeptBeside, carry_out_now

K = 1 << 10


def regions(*runs: tuple[int, int], unit: int, scale: int = 1) -> Geometry:
    """Sectors as manuals list them: how many, and KiB of each; all of them divided by `scale`."""
    found, start = [], 0
    for number, size in runs:
        sector = size * K // scale
        found.append(Region(start, number * sector, sector))
        start += number * sector
    return Geometry(tuple(found), unit)


@dataclass(frozen=True)
class SectorMap:
    """A flash memory to prove the swap on; `scale` divides its sectors, so that many runs take less time."""

    name: str
    make: Callable[[int], Geometry]
    journal: JournalPlace

    def layout(self, scale: int = 1) -> SwapLayout:
        return plan_swap(self.make(scale), self.journal)


F4 = ((4, 16), (1, 64), (7, 128))
MAPS = (
    SectorMap("uniform", lambda _: uniform(64 * K, 4 * K, program_unit=16), JournalPlace.CHIP),
    SectorMap("STM32F4 1 MiB", lambda scale: regions(*F4, unit=4, scale=scale), JournalPlace.HOST),
    SectorMap("STM32F4 2 MiB", lambda scale: regions(*F4, *F4, unit=4, scale=scale), JournalPlace.HOST),
    SectorMap(
        "STM32F7 2 MiB", lambda scale: regions((4, 32), (1, 128), (7, 256), unit=4, scale=scale), JournalPlace.HOST
    ),
    SectorMap("RP2040", lambda _: uniform(2 * K * K, 4 * K, program_unit=256), JournalPlace.CHIP),
    SectorMap(
        "RT1050", lambda scale: uniform(64 * K * K // scale, 256 * K // scale, program_unit=512), JournalPlace.CHIP
    ),
    SectorMap(
        "CH32V307",
        lambda _: uniform(480 * K, 4 * K, program_unit=4, erased=bytes.fromhex("39e339e3")),
        JournalPlace.CHIP,
    ),
)
BY_NAME = {each.name: each for each in MAPS}


class BrickError(AssertionError):
    """The device is lost, or lies."""


@dataclass
class Tally:
    """What was tried, and what became of it."""

    runs: int = 0
    cuts: int = 0
    modes: Counter[CutMode] = field(default_factory=Counter)
    bricks: list[str] = field(default_factory=list)
    broken_rules: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.runs + other.runs,
            self.cuts + other.cuts,
            self.modes + other.modes,
            self.bricks + other.bricks,
            self.broken_rules + other.broken_rules,
        )

    def __str__(self) -> str:
        return (
            f"{self.runs:,} runs, {self.cuts:,} cuts in {len(self.modes)} modes, {len(self.bricks)} bricks, "
            f"{self.broken_rules} programs that broke a chip's rule"
        )


def image(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


LogMaker = Callable[[Geometry, tuple], RecordLog]


class SwapBench:
    """A memory under a switch.

    Args:
        layout: of the memory.
        make_log: what keeps the journal on the chip; a mutant to show that the proof bites.
    """

    def __init__(self, layout: SwapLayout, make_log: Callable[..., RecordLog] = RecordLog) -> None:
        self.layout = layout
        self.make_log = make_log
        sector, unit = layout.sector, layout.geometry.program_unit
        count = min(layout.count, 3)
        # One of them ends in the middle of a unit, the other one sector earlier.
        sizes = {Slot.A: count * sector - unit - 1, Slot.B: max(count - 1, 1) * sector - sector // 3}
        blank = layout.geometry.blank(unit)
        self.images = {}
        for slot, size in sizes.items():
            firmware = image(ord(slot.value), size)
            self.images[slot] = firmware + blank[len(firmware) % unit or unit :]
        flash = NorSimulator(layout.geometry)
        self.flash, self.beside, self.power = flash, KeptBeside(flash.operations), PowerSupply(flash)
        self.state = SwapState()
        self._install()

    def _install(self) -> None:
        self.boot()
        for slot, start in ((Slot.A, self.layout.primary.start), (Slot.B, self.layout.aside(1).start)):
            self.flash.program_now(start, self.images[slot])

    def fork(self) -> "SwapBench":
        """The same memory, at the same moment."""
        twin = object.__new__(SwapBench)
        twin.layout, twin.make_log, twin.images = self.layout, self.make_log, self.images
        twin.flash = self.flash.fork()
        twin.beside = KeptBeside(twin.flash.operations, self.beside.data)
        twin.power = PowerSupply(twin.flash)
        twin.state = self.state  # the journal's head is lost: a twin begins with a boot
        return twin

    def boot(self) -> None:
        """What the code that owns the swap does out of reset."""
        layout = self.layout
        self.journal: Journal = (
            ChipJournal(self.make_log(layout.geometry, layout.journal, Kind.SWAP)) if layout.journal else HostJournal()
        )
        state = carry_out_now(self.journal.mount(), self.flash, self.beside)
        self.state = carry_out_now(swap.recover(layout, self.journal, state), self.flash, self.beside)

    def request(self, slot: Slot) -> None:
        """Select a slot."""
        job = swap.select(self.layout, self.journal, self.state, slot)
        self.state = carry_out_now(job, self.flash, self.beside)

    def look(self, tag: int) -> None:
        """Both images whole, and no swap too many.

        Raises:
            BrickError: not so.
        """
        if self.state.phase is not Phase.IDLE:
            raise BrickError("the swap did not end")
        if self.state.tag > tag:
            raise BrickError("a request was carried out twice")
        base, aside = self.images[self.state.base], self.images[self.state.base.other]
        if self.flash.peek(self.layout.primary.start, len(base)) != base:
            raise BrickError(f"what lies at the base is not image {self.state.base}")
        if self.flash.peek(self.layout.aside(int(self.state.raised)).start, len(aside)) != aside:
            raise BrickError(f"image {self.state.base.other} is lost")


Cut = tuple[int, CutMode]


def run(start: SwapBench, goal: Slot, cuts: Iterator[Cut], seed: int = 0) -> tuple[int, int]:
    """One request, cut as often as `cuts` says; each index counts from the boot before.

    Raises:
        BrickError: the device is lost.

    Returns how many cuts hit something, and the operations after the last one.
    """
    bench = start.fork()
    bench.power = PowerSupply(bench.flash, seed=seed)
    tag = start.state.tag + 1
    hit = 0
    while True:
        planned = next(cuts, None)
        if planned:
            bench.power.cut_at(*planned)
        begun = bench.flash.operations.changes
        try:
            bench.boot()
            bench.look(tag)
            bench.request(goal)
            bench.power.restore()
            bench.look(tag)
            if bench.state.base is not goal or bench.flash.operations.broken_rules:
                raise BrickError(
                    f"slot {goal} was not selected, or a rule broken: {bench.flash.operations.broken_rules}"
                )
            return hit, bench.flash.operations.changes - begun
        except PowerCut:
            hit += 1
            bench.power.restore()


def guarded(tally: Tally, start: SwapBench, goal: Slot, cuts: list[Cut], seed: int, name: str) -> int:
    """A run that is counted, whatever becomes of it. Returns the operations after its last cut."""
    tally.runs += 1
    tally.modes.update(mode for _, mode in cuts)
    try:
        hit, operations = run(start, goal, iter(cuts), seed)
    except Exception as exc:  # whatever the code under proof raises: a device that does not boot is a brick
        tally.cuts += len(cuts)
        tally.bricks.append(f"{name}, to {goal}, seed {seed}, {cuts}: {type(exc).__name__}: {exc}")
        return 0
    tally.cuts += hit
    return operations


def starts(layout: SwapLayout, make_log: Callable[..., RecordLog] = RecordLog) -> list[tuple[SwapBench, Slot]]:
    """Where a run begins, and what it wants: forward, reverse, and forward once more from there."""
    bench = SwapBench(layout, make_log)
    found = []
    for goal in (Slot.B, Slot.A, Slot.B):
        found.append((bench.fork(), goal))
        bench.request(goal)
    return found


def single_cuts(name: str, layout: SwapLayout, make_log: Callable[..., RecordLog] = RecordLog) -> Tally:
    """Every operation, every mode."""
    tally = Tally()
    for start, goal in starts(layout, make_log):
        _, operations = run(start, goal, iter(()))
        for index in range(operations):
            for mode in ALL_MODES:
                guarded(tally, start, goal, [(index, mode)], index, name)
    return tally


def double_cuts(
    name: str, layout: SwapLayout, make_log: Callable[..., RecordLog] = RecordLog, part: int = 0, parts: int = 1
) -> Tally:
    """Every operation and mode, and again in every operation of what follows. `parts` share the first cuts."""
    tally = Tally()
    for start, goal in starts(layout, make_log)[:2]:
        _, operations = run(start, goal, iter(()))
        for index in range(part, operations, parts):
            for first in ALL_MODES:
                second = guarded(tally, start, goal, [(index, first)], index, name)
                for again in range(second):
                    for mode in ALL_MODES:
                        guarded(tally, start, goal, [(index, first), (again, mode)], index, name)
    return tally


def random_cuts(
    name: str, layout: SwapLayout, runs: int, seed: int, make_log: Callable[..., RecordLog] = RecordLog
) -> Tally:
    """Three to seven cuts, wherever they fall."""
    tally, random = Tally(), Random(seed)
    ready = [(start, goal, run(start, goal, iter(()))[1]) for start, goal in starts(layout, make_log)]
    for number in range(runs):
        start, goal, operations = random.choice(ready)
        cuts = [
            (random.randrange(operations if random.randrange(2) else 8), random.choice(ALL_MODES))
            for _ in range(random.randint(3, 7))
        ]
        guarded(tally, start, goal, cuts, seed * 1_000_003 + number, name)
    return tally
