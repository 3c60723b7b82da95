"""Whole lives of a device, the power cut at every operation in every mode.

`make proof` has all places, and two cuts.
"""

import pytest
from life_proof import RECORD, counted, live, place_called, replay

from mgota.testing import ALL_MODES, CutMode, Life

pytestmark = pytest.mark.no_cover  # counting lines takes longer than the proof

LEAST = {"STM32F4 1 MiB": 800, "uniform": 1200, RECORD: 1500}
"""Places, and the least runs that must come of each: a proof must not become empty unnoticed."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LEAST)
def test_a_cut_at_any_operation_of_a_life_loses_nothing(name: str) -> None:
    report = live(place_called(name))
    print(f"whole lives, {name}: {report}")
    report.check()
    assert report.runs > LEAST[name]


def test_a_brick_can_be_found_again() -> None:
    tally = replay('{"place": "uniform", "life": "no commit", "cuts": [[2, "prefix"], [1, "all"]], "seed": 3}')
    tally.check(least=1)


def test_a_report_is_a_line_of_the_table() -> None:
    tally = counted("uniform", live(place_called("uniform"), lives=[Life.COMMIT], modes=[CutMode.ALL]))
    assert tally.runs == tally.cuts + 1
    assert set(tally.modes) == {CutMode.ALL}


def test_modes_are_all_eight() -> None:
    assert set(ALL_MODES) == set(CutMode)
    assert len(ALL_MODES) == 8
