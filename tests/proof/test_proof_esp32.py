"""An ESP32's whole life, with the power cut at every operation; many cuts in a row; and backends that must fail.

What may happen to the two sectors of otadata is explored without a limit in `tests/core/test_esp_select_model.py`. Here
the bytes are real: a simulated memory, torn in all eight ways. `make proof` has more of it, and two cuts in a life.
"""

import pytest
from life_proof import WAVERING, esp32, live
from otadata_proof import Chip, do_nothing, naive_select, random_cuts, replay

from mgota.core.geometry import Slot
from mgota.flash.jobs import carry_out
from mgota.flash.targets.esp32 import EspFlash
from mgota.testing import Life

# Counting lines takes longer than the proof; others cover the lines.
pytestmark = pytest.mark.no_cover

RUNS = 300


class Naive(EspFlash):
    async def recover(self) -> None:
        pass

    async def select(self, slot: Slot) -> None:
        running = list(Slot).index(await self.running_slot())
        await carry_out(naive_select(self._place, running, list(Slot).index(slot)), self._flash)


@pytest.mark.parametrize("unit", [1, 16])
def test_no_cut_of_a_whole_life_bricks_it(unit: int) -> None:
    report = live(esp32(unit=unit))
    print(f"whole lives on the ESP32, program unit {unit}: {report}")
    report.check()
    assert report.cuts >= 290


def test_a_recovery_that_does_nothing_is_bricked_by_two_cuts() -> None:
    report = live(esp32(Naive), modes=WAVERING, recuts=WAVERING, lives=[Life.UPDATE, Life.COMMIT])
    print(f"naive: {report}")
    assert report.bricks


def test_no_many_cuts_in_a_row_start_a_half_written_slot() -> None:
    tally = random_cuts(RUNS)
    print(f"esp32, otadata alone: {tally}")
    tally.check(least=RUNS)
    assert tally.cuts >= 3 * RUNS


def test_a_brick_can_be_found_again() -> None:
    tally = replay('{"seed": 7, "cuts": 10}')
    tally.check(least=1)
    assert tally.cuts >= 10


def test_without_recovery_many_cuts_in_a_row_do() -> None:
    bricks = sum(
        not Chip(seed, recover=do_nothing, settle=do_nothing, select=naive_select).live(3 + seed % 10)
        for seed in range(300)
    )
    print(f"naive, otadata alone: 300 runs, {bricks} bricks")
    assert bricks > 30
