"""Whole lives of a device, the power cut at every operation in every mode.

`make proof` has all places, and two cuts.
"""

import pytest
from life_proof import RECORD, counted, live, place_called, replay

from mgota.testing import ALL_MODES, CutMode, Life

pytestmark = pytest.mark.no_cover  # counting lines takes longer than the proof

SOME = (CutMode.ALL, CutMode.SUFFIX, CutMode.RANDOM_READS, CutMode.VALID_THEN_BLANK)
PLACES = {"STM32F4 1 MiB": (ALL_MODES, 1100), RECORD: (SOME, 1200)}
"""Places, modes, and the least runs that must come of each: a proof must not become empty unnoticed."""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", PLACES)
def test_a_cut_at_any_operation_of_a_life_loses_nothing(name: str) -> None:
    modes, least = PLACES[name]
    report = live(place_called(name), modes=modes)
    print(f"whole lives, {name}: {report}")
    report.check()
    assert report.runs > least


def test_a_brick_can_be_found_again() -> None:
    tally = replay(
        '{"place": "uniform", "life": "no commit", "cuts": [[2, "prefix", null], [1, "all", null]], "seed": 3}'
    )
    tally.check(least=1)


def test_a_report_is_a_line_of_the_table() -> None:
    tally = counted("uniform", live(place_called("uniform"), lives=[Life.COMMIT], modes=[CutMode.ALL]))
    assert tally.runs == tally.cuts + 1
    assert set(tally.modes) == {CutMode.ALL}


def test_modes_are_all_eight() -> None:
    assert set(ALL_MODES) == set(CutMode)
    assert len(ALL_MODES) == 8
