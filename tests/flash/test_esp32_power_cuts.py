"""An ESP32's whole life, with the power cut at every operation; many cuts in a row; and backends that must fail.

What may happen to the two sectors of otadata is explored without a limit in `tests/core/test_esp_select_model.py`. Here
the bytes are real: a simulated memory, torn in all eight ways.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from mgota.core.esp_table import APP, DATA, OTA_0, OTADATA, Partition, PartitionTable
from mgota.core.geometry import Geometry, Sector, Slot, uniform
from mgota.core.nor import Job, Read, rewrite
from mgota.core.otadata import ENTRY_SIZE, decode_entry, encode_entry, ota_entry, winner
from mgota.core.otaselect import OtaPlace, recover, select, selected_slot, settle
from mgota.flash.jobs import carry_out
from mgota.flash.targets.esp32 import EspFlash
from mgota.testing import ALL_MODES, CutMode, NorSimulator, PowerCut, PowerSupply, Report, every_power_cut
from mgota.testing.jobs import carry_out_now

# Counting lines takes longer than the proof; others cover the lines.
pytestmark = pytest.mark.no_cover

SLOT = 0x3000
TABLE = PartitionTable(
    (
        Partition(name="otadata", type=DATA, subtype=OTADATA, offset=0x9000, size=0x2000),
        Partition(name="ota_0", type=APP, subtype=OTA_0, offset=0x10000, size=SLOT),
        Partition(name="ota_1", type=APP, subtype=OTA_0 + 1, offset=0x20000, size=SLOT),
    )
)
OLD, NEW = bytes(range(1, 252)) * 21, bytes(range(251, 0, -1)) * 15  # two sectors, and one; no whole units
RUNS = 1500
WAVERING = (CutMode.VALID_THEN_BLANK, CutMode.BLANK_THEN_VALID)


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


class Naive(EspFlash):
    async def recover(self) -> None:
        pass

    async def select(self, slot: Slot) -> None:
        running = list(Slot).index(await self.running_slot())
        await carry_out(naive_select(self._place, running, list(Slot).index(slot)), self._flash)


async def lives(backend: type[EspFlash], unit: int = 1, **options: object) -> Report:
    geometry = uniform(0x20000 + SLOT, 0x1000, program_unit=unit)

    def build(flash: NorSimulator) -> EspFlash:
        return backend(flash, TABLE)

    report = await every_power_cut(build, geometry, old=OLD, new=NEW, **options)  # type: ignore[arg-type]
    print(f"{backend.__name__}, program unit {unit}: {report}")
    return report


@pytest.mark.asyncio
@pytest.mark.parametrize("unit", [1, 16])
async def test_no_cut_of_a_whole_life_bricks_it(unit: int) -> None:
    report = await lives(EspFlash, unit)
    report.check()
    assert report.cuts >= 290


@pytest.mark.slow
@pytest.mark.asyncio
async def test_no_two_cuts_of_a_whole_life_brick_it() -> None:
    report = await lives(EspFlash, modes=(CutMode.ALL, CutMode.RANDOM_BITS, *WAVERING), recuts=WAVERING)
    report.check()
    assert report.recuts >= 1000


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_recovery_that_does_nothing_is_bricked_by_two_cuts() -> None:
    report = await lives(Naive, modes=WAVERING, recuts=WAVERING)
    assert report.bricks


# --- many cuts in a row, on the two sectors alone


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
                self.power.cut_at(self.random.randrange(7), self.random.choice(ALL_MODES))
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


@pytest.mark.slow
def test_no_many_cuts_in_a_row_start_a_half_written_slot() -> None:
    cuts = 0
    for seed in range(RUNS):
        chip = Chip(seed)
        assert chip.live(3 + seed % 10), f"seed {seed}"
        assert not chip.flash.operations.broken_rules
        cuts += chip.cuts
    print(f"esp32, otadata alone: {RUNS} runs with {cuts} cuts, 0 bricks")


def test_without_recovery_many_cuts_in_a_row_do() -> None:
    bricks = sum(
        not Chip(seed, recover=do_nothing, settle=do_nothing, select=naive_select).live(3 + seed % 10)
        for seed in range(300)
    )
    print(f"naive, otadata alone: 300 runs, {bricks} bricks")
    assert bricks > 30
