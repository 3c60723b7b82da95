"""A bare state that is stored before the swap, as the seed has it, against the record that names a slot.

The life: the new image is put on trial. It hangs, as untried images may, and nobody commits anything: whatever is on
trial is reset by its watchdog. In the end the old image must run. An image that hangs without a watchdog is a *brick*.

The swap is the real one for both; the state lies in a cell, where a store is atomic.
"""

import json
from collections.abc import Iterable

from swap_bench import Cut, SwapBench
from tally import Brick, BrickError, Tally

from mgota.core import boot, swap
from mgota.core.boot import Facts, Select, Step, Store, Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, SlotImage, decode_record, encode_record
from mgota.testing import ALL_MODES, PowerCut, PowerSupply
from mgota.testing.jobs import KeptBeside, carry_out_now

BOOTS = 8
"""Resets after which a device counts as one that does not settle."""


class Board:
    """A device: the old image at the base, the new one sealed beside it, and a state.

    Args:
        start: of the swap.
    """

    def __init__(self, start: SwapBench) -> None:
        self.bench = start.fork()
        self.state = KeptBeside(self.bench.flash.operations)

    def running(self) -> Slot:
        """Out of reset, once the swap has recovered."""
        self.bench.boot()
        self.bench.holds(self.bench.state.base, self.bench.layout.primary.start)
        return self.bench.state.base

    def select(self, slot: Slot) -> None:
        bench = self.bench
        job = swap.select(bench.layout, bench.journal, bench.state, slot)
        bench.state = carry_out_now(job, bench.flash, bench.beside)


class BareState:
    """The seed's `MG_OTA_BOOT_CHECK`: a state says nothing of slots."""

    def activate(self, board: Board) -> None:
        board.state.store(b"TESTING")
        board.select(Slot.B)

    def boot(self, board: Board, running: Slot) -> Verdict:
        match board.state.load():
            case b"FAILED":
                board.state.store(b"CONFIRMED")
                board.select(running.other)
                return Verdict.RESET
            case b"TESTING":
                board.state.store(b"FAILED")
                return Verdict.TRIAL
            case _:
                return Verdict.RUN


class NamedSlot:
    """`mgota.core.boot`: the record names the slot on trial."""

    image = SlotImage(size=1, image_size=1, sha256="0" * 64, proven=True)

    def activate(self, board: Board) -> None:
        self._perform(boot.activate_steps(BootRecord(a=self.image), Slot.B, self.image, tries=1), board)

    def boot(self, board: Board, running: Slot) -> Verdict:
        data = board.state.load()
        record = decode_record(data) if data else BootRecord(a=self.image)
        decision = boot.decide(record, running, Facts(verified=True, whole=True))
        self._perform(decision.steps, board)
        return decision.verdict

    def _perform(self, steps: Iterable[Step], board: Board) -> None:
        for step in steps:
            if isinstance(step, Store):
                board.state.store(encode_record(step.record))
            elif isinstance(step, Select):
                board.select(step.slot)


Rules = BareState | NamedSlot


def settle(rules: Rules, board: Board) -> None:
    """Boots until an image runs that is not on trial.

    Raises:
        BrickError: it is the one that hangs, or there is no end to it.
    """
    for _ in range(BOOTS):
        running = board.running()
        if rules.boot(board, running) is Verdict.RUN:
            if running is Slot.B:
                raise BrickError("the untried image hangs, and nothing resets it")
            return
    raise BrickError("the device does not settle")


def live(rules: Rules, board: Board) -> None:
    board.running()
    rules.activate(board)
    settle(rules, board)


def trial_cuts(rules: Rules, start: SwapBench) -> Tally:
    """The life with a cut at every operation, in every mode."""
    clean = Board(start)
    live(rules, clean)
    tally = Tally()
    for index in range(clean.bench.flash.operations.changes):
        for mode in ALL_MODES:
            _count(tally, rules, Board(start), (index, mode))
    return tally


def _cut(rules: Rules, board: Board, cut: Cut) -> None:
    power = PowerSupply(board.bench.flash, seed=cut[0])
    power.cut_at(*cut)
    try:
        live(rules, board)
    except PowerCut:
        power.restore()
        settle(rules, board)


def _count(tally: Tally, rules: Rules, board: Board, cut: Cut) -> None:
    tally.runs += 1
    tally.cuts += 1
    tally.modes[cut[1]] += 1
    try:
        _cut(rules, board, cut)
    except BrickError as exc:
        tally.bricked(Brick("trial", json.dumps(cut), str(exc)), exc)
