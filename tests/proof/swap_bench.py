"""A flash memory with two images that change places, a power supply that is cut, and what must hold after each boot.

The code under proof is the real one (`mgota.core.swap`, `mgota.core.recordlog`), driven without an event loop. A run
is a request to select the other slot, and whatever number of power cuts in it: after each, the device boots, finishes
what was begun, is looked at, and the request is made again if it has not been carried out.

Rules, looked at after every boot and every request:
- the journal is at rest, and names the image at the base; both images are whole, and not on flash that may read
  otherwise the next time;
- a request is carried out once, and what was seen to be carried out stays so;
- no program or erase broke a rule of the chip.

Runs that differ only in their last cut share what comes before it: the memory is forked in the middle of the
operation, and the twin is cut off in it. That a twin is what a cut would have left is a test of its own.
"""

from collections.abc import Callable, Iterable
from random import Random
from zlib import crc32

from tally import BrickError, DoubledError, RuleBrokenError

from mgota.core import swap
from mgota.core.geometry import Geometry, Sector, Slot
from mgota.core.recordlog import Kind, RecordLog
from mgota.core.swap import ChipJournal, HostJournal, Journal, Phase, SwapLayout
from mgota.testing import ALL_MODES, CutMode, Kind as Does, NorSimulator, Operation, Operations, PowerCut, PowerSupply
from mgota.testing.jobs import KeptBeside, carry_out_now

LONGEST = 3
"""Logical sectors of the longer image. More of them repeat the same steps."""

Cut = tuple[int, CutMode]
"""An operation, counted from the boot before it, and what the cut leaves of it."""

MakeLog = Callable[[Geometry, tuple[Sector, ...], Kind], RecordLog]


class SwapBench:
    """A memory under a switch.

    Args:
        layout: of the memory.
        make_log: what keeps the journal on the chip; a mutant to show that the proof bites.
    """

    def __init__(self, layout: SwapLayout, make_log: MakeLog = RecordLog) -> None:
        self.layout = layout
        self.make_log = make_log
        self.images = make_images(layout)
        self.flash = NorSimulator(layout.geometry)
        self.beside = KeptBeside(self.flash.operations)
        self.goal, self.tag, self.done = Slot.A, 0, True
        """What was requested, the journal's count of swaps before it, and whether it was seen to be carried out."""
        self.boot()
        for slot, start in ((Slot.A, layout.primary.start), (Slot.B, layout.aside(1).start)):
            self.flash.program_now(start, self.images[slot])

    def fork(self, changes: int = 0) -> "SwapBench":
        """The same memory at the same moment, before its next boot.

        Args:
            changes: where the twin goes on to count operations.
        """
        twin = object.__new__(SwapBench)
        twin.layout, twin.make_log, twin.images = self.layout, self.make_log, self.images
        operations = Operations()
        operations._changes = changes
        twin.flash = self.flash.fork(operations=operations)
        twin.beside = KeptBeside(operations, self.beside.data)
        twin.goal, twin.tag, twin.done = self.goal, self.tag, self.done
        return twin

    def torn(self, operation: Operation, mode: CutMode, seed: int) -> "SwapBench":
        """The memory after the power was cut off in this operation, which has not taken effect yet."""
        assert operation.index is not None
        twin = self.fork(operation.index)
        power = PowerSupply(twin.flash, seed=seed)
        power.cut_at(0, mode)
        try:
            if operation.kind is Does.OPTION:
                twin.beside.store(bytes(operation.data or b""))
            elif operation.kind is Does.ERASE:
                twin.flash.erase_now(Sector(operation.offset, operation.size))
            else:
                twin.flash.program_now(operation.offset, operation.data or b"")
        except PowerCut:
            return twin.fork()
        raise AssertionError("the power was not cut")

    def boot(self) -> None:
        """What the code that owns the swap does out of reset."""
        layout = self.layout
        self.journal: Journal = (
            ChipJournal(self.make_log(layout.geometry, layout.journal, Kind.SWAP)) if layout.journal else HostJournal()
        )
        state = carry_out_now(self.journal.mount(), self.flash, self.beside) or carry_out_now(
            swap.begin_journal(self.journal), self.flash, self.beside
        )
        self.state = carry_out_now(swap.recover(layout, self.journal, state), self.flash, self.beside)

    def ask(self, goal: Slot, tag: int) -> None:
        """A request is about to be made: for `goal`, while the journal counts `tag` swaps."""
        self.goal, self.tag, self.done = goal, tag, False

    def carry_out(self) -> None:
        """Make the request that was asked for."""
        job = swap.select(self.layout, self.journal, self.state, self.goal)
        self.state = carry_out_now(job, self.flash, self.beside)
        self.look()
        if not self.done:
            raise BrickError(f"slot {self.goal} was not selected")

    def live(self) -> None:
        """Boot, and make the request again if it has not been carried out.

        Raises:
            BrickError: the device is lost.
        """
        self.boot()
        self.look()
        self.carry_out()

    def look(self) -> None:
        """Whether every rule holds.

        Raises:
            BrickError: not so.
        """
        state = self.state
        if state.phase is not Phase.IDLE:
            raise BrickError("the swap did not end")
        swaps = state.tag - self.tag
        if swaps < self.done:
            raise BrickError("the journal went back")
        if swaps > 1:
            raise DoubledError("a request was carried out twice")
        if (state.base is self.goal) != bool(swaps):
            raise BrickError(f"the journal counts {swaps} swaps, and says that image {state.base} lies at the base")
        self.done = bool(swaps)
        self.holds(state.base, self.layout.primary.start)
        self.holds(state.base.other, self.layout.aside(int(state.raised)).start)
        if self.flash.operations.broken_rules:
            raise RuleBrokenError(self.flash.operations.broken_rules[0])

    def holds(self, slot: Slot, start: int) -> None:
        """Whether the image lies there, to stay.

        Raises:
            BrickError: not so.
        """
        image = self.images[slot]
        if self.flash.peek(start, len(image)) != image:
            raise BrickError(f"image {slot} does not lie at {start:#x}")
        if any(area.start < start + len(image) and start < area.end for area in self.flash.unstable):
            raise BrickError(f"image {slot} lies on torn flash")


def make_images(layout: SwapLayout) -> dict[Slot, bytes]:
    """One ends in the middle of a unit, the other one a sector earlier; both are padded to whole units."""
    sector, unit = layout.sector, layout.geometry.program_unit
    longest = min(layout.count, LONGEST)
    sizes = {Slot.A: longest * sector - unit - 1, Slot.B: max(longest - 1, 1) * sector - sector // 3}
    blank = layout.geometry.blank(unit)
    return {
        slot: Random(slot.value).randbytes(size) + (blank[size % unit :] if size % unit else b"")
        for slot, size in sizes.items()
    }


def starts(layout: SwapLayout, make_log: MakeLog = RecordLog) -> list[SwapBench]:
    """Where runs begin: a request for forward, for reverse, and for forward once more, is about to be made."""
    bench = SwapBench(layout, make_log)
    found = []
    for goal in (Slot.B, Slot.A, Slot.B):
        bench.ask(goal, bench.state.tag)
        found.append(bench.fork())
        bench.carry_out()
    return found


def seed_of(seed: int, number: int) -> int:
    """Of what is drawn for the cut with this number of a run."""
    return crc32(f"{seed} {number}".encode())


def run(start: SwapBench, cuts: Iterable[Cut], seed: int = 0) -> SwapBench:
    """One life with these cuts. A request that ends before the next cut falls is followed by one for the other slot.

    Raises:
        BrickError: the device is lost.

    Returns the memory, at its end.
    """
    bench = start.fork()
    for number, (index, mode) in enumerate(cuts):
        PowerSupply(bench.flash, seed=seed_of(seed, number)).cut_at(index, mode)
        try:
            bench.live()
            while True:
                bench.ask(bench.state.base.other, bench.state.tag)
                bench.carry_out()
        except PowerCut:
            bench = bench.fork()
    bench.live()
    return bench


Twin = tuple[Cut, SwapBench]


def cut_everywhere(bench: SwapBench, modes: Iterable[CutMode] = ALL_MODES, seed: int = 0) -> list[Twin]:
    """One life without a cut, and its twins: one for each operation and mode, with the power cut off in it.

    Args:
        bench: lives to the end.
        modes: of the cuts.
        seed: of what is drawn for them.

    Raises:
        BrickError: the device is lost, without a further cut.
    """
    twins: list[Twin] = []

    def cut(operation: Operation) -> None:
        if operation.index is not None:
            twins.extend(((operation.index, mode), bench.torn(operation, mode, seed)) for mode in modes)

    bench.flash.operations.before = cut
    bench.live()
    return twins
