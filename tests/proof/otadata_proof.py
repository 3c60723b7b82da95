"""Proves the selection in otadata: many cuts in a row, on its two sectors alone."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tally import Brick, Tally

from mgota.core.geometry import Geometry, Sector, uniform
from mgota.core.nor import Job, Read, rewrite
from mgota.core.otadata import ENTRY_SIZE, decode_entry, encode_entry, ota_entry, winner
from mgota.core.otaselect import OtaPlace, recover, select, selected_slot, settle
from mgota.testing import ALL_MODES, CutMode, NorSimulator, PowerCut, PowerSupply
from mgota.testing.jobs import carry_out_now

NAME = "otadata"
"""Under which `tools/proof.py` finds a brick of this proof again."""


def do_nothing(place: OtaPlace, running: int) -> Job[None]:
    del place, running
    yield from ()


def naive_select(place: OtaPlace, running: int | None, slot: int) -> Job[None]:
    """As ESP-IDF does: one entry, into the sector that loses; what is selected is left alone."""
    if running == slot:
        return
    first = yield Read(place.sectors[0].start, ENTRY_SIZE)
    second = yield Read(place.sectors[1].start, ENTRY_SIZE)
    entries = [decode_entry(first), decode_entry(second)]
    best, top = winner(entries), max((entry.seq for entry in entries if entry.valid), default=0)
    entry = ota_entry(top + 1 + (slot - top) % place.count)
    yield from rewrite(place.geometry, place.sectors[0 if best is None else 1 - best], encode_entry(entry))


@dataclass
class Chip:
    """Two slots and otadata, driven without an event loop.

    Args:
        seed: of all that is drawn.
        recover: what every boot does.
        settle: what comes before an update's first erase.
        select: selects a slot.
    """

    seed: int
    recover: Callable[[OtaPlace, int], Job[None]] = recover
    settle: Callable[[OtaPlace, int], Job[None]] = settle
    select: Callable[[OtaPlace, int | None, int], Job[None]] = select
    half_written: int | None = field(default=None, init=False)
    cuts: int = field(default=0, init=False)
    modes: Counter[CutMode] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        geometry: Geometry = uniform(0x2000, 0x1000)
        self.flash = NorSimulator(geometry)
        self.power = PowerSupply(self.flash, seed=self.seed)
        self.place = OtaPlace(geometry, (Sector(0, 0x1000), Sector(0x1000, 0x1000)), 2)

    def do(self, job: Job[None]) -> None:
        carry_out_now(job, self.flash)

    def boot(self) -> int:
        entries = [decode_entry(self.flash.read_now(sector.start, ENTRY_SIZE)) for sector in self.place.sectors]
        return selected_slot(entries, 2) or 0

    def live(self, cuts: int) -> bool:
        """Boot after boot; whether no half-written slot was started. A cut comes within a few operations."""
        while True:
            running = self.boot()
            if running == self.half_written:
                return False
            if self.cuts < cuts:
                mode = self.random.choice(ALL_MODES)
                self.power.cut_at(self.random.randrange(7), mode)
                self.modes[mode] += 1
            elif self.cuts > cuts:
                return True
            try:
                self.act(running)
                self.cuts += self.cuts >= cuts
            except PowerCut:
                self.cuts += 1
            self.power.restore()

    def act(self, running: int) -> None:
        """What a device does from a boot on, until it resets: updates that end, are given up, are rolled back."""
        other = 1 - running
        self.do(self.recover(self.place, running))
        if self.half_written is None and self.random.random() < 0.3:
            self.do(self.select(self.place, running, other))
            return
        self.do(self.select(self.place, running, running))
        self.do(self.settle(self.place, running))
        self.half_written = other
        if self.random.random() < 0.5:
            return  # given up, and the device resets
        self.half_written = None
        self.do(self.select(self.place, running, other))


def random_cuts(runs: int, *, first: int = 0, seed: int = 0) -> Tally:
    """Lives with 3 to 12 cuts.

    Args:
        runs: how many.
        first: number of the first one, where others do those before.
        seed: of everything that is drawn.
    """
    tally = Tally()
    for number in range(first, first + runs):
        tally += one(seed * 1_000_000_007 + number, 3 + number % 10)
    return tally


def one(seed: int, cuts: int) -> Tally:
    """One life, counted."""
    chip = Chip(seed)
    why = "" if chip.live(cuts) else "the boot loader starts a slot that is half-written"
    broken = len(chip.flash.operations.broken_rules)
    recipe = json.dumps({"seed": seed, "cuts": cuts})
    bricks = [Brick(NAME, recipe, why or "a rule of the chip was broken")] if why or broken else []
    return Tally(runs=1, cuts=chip.cuts, modes=chip.modes, bricks=bricks, broken_rules=broken)


def replay(recipe: str) -> Tally:
    """A run that ended badly, once more.

    Args:
        recipe: of the brick.
    """
    told = json.loads(recipe)
    return one(told["seed"], told["cuts"])
