"""The swap survives power cuts at every operation, in all eight modes, and bad flash. Each test prints its counts.

`make proof` and `make soak` do more of the same: see `tools/proof.py`.
"""

import json

import pytest
from bad_flash import DONE, FAILED, REFUSED, BadProof, defects, stuck_bits
from sector_maps import BY_NAME, MAPS, SectorMap
from swap_bench import SwapBench, cut_everywhere, run, seed_of, starts
from swap_proof import SwapProof, replay
from tally import Tally

from mgota.core.geometry import Geometry
from mgota.core.swap import JournalPlace
from mgota.testing import ALL_MODES

pytestmark = pytest.mark.no_cover  # measuring takes longer than proving; tests/core covers the rules

SCALE = 16
SHARES = 4
"""Of the pairs of cuts, so that two processes have something to do."""
REQUESTS = ("forward", "reverse", "forward again")


def content(bench: SwapBench) -> bytes:
    return bench.flash.peek(0, bench.layout.geometry.size)


# --- the maps and the harness ----------------------------------------------------------------------------------------


def sectors(geometry: Geometry) -> list[tuple[int, int]]:
    return [(region.length // region.sector, region.sector >> 10) for region in geometry.regions]


def test_the_maps_are_those_of_the_chips() -> None:
    """STM32F4: RM0090 table 5; F7: RM0410 table 4; RP2040 W25Q16, RT1050 S26KS512S, CH32V307: targets.md."""
    found = {each.name: (sectors(each.make(1)), each.make(1).program_unit, each.journal) for each in MAPS}
    f4 = [(4, 16), (1, 64), (7, 128)]
    assert found == {
        "uniform": ([(16, 4)], 16, JournalPlace.CHIP),
        "STM32F4 1 MiB": (f4, 4, JournalPlace.HOST),
        "STM32F4 2 MiB": (f4 + f4, 4, JournalPlace.HOST),
        "STM32F7 2 MiB": ([(4, 32), (1, 128), (7, 256)], 4, JournalPlace.HOST),
        "RP2040": ([(512, 4)], 256, JournalPlace.CHIP),
        "RT1050": ([(256, 256)], 512, JournalPlace.CHIP),
        "CH32V307": ([(120, 4)], 4, JournalPlace.CHIP),
    }


@pytest.mark.parametrize("each", MAPS, ids=lambda each: each.name)
def test_a_scaled_map_makes_the_same_steps(each: SectorMap) -> None:
    real, scaled = SwapProof(each.name), SwapProof(each.name, SCALE)
    assert scaled.operations == real.operations
    assert min(each.layout().count, 3) == min(each.layout(SCALE).count, 3)


@pytest.mark.parametrize("name", ["uniform", "STM32F4 1 MiB"])
def test_a_twin_that_is_cut_off_is_what_a_power_cut_leaves(name: str) -> None:
    """Twins share what comes before the cut. Here the same cut is made on a memory of its own, from the beginning."""
    for start in starts(BY_NAME[name].layout(SCALE))[:2]:
        for seed in range(3):
            for first, twin in cut_everywhere(start.fork(), ALL_MODES, seed_of(seed, 0))[seed::11]:
                seconds = cut_everywhere(twin.fork(), ALL_MODES, seed_of(seed, 1))
                if not seconds:  # the first cut fell after the last operation
                    continue
                second, again = seconds[(first[0] * 7 + 5) % len(seconds)]
                again.live()
                alone = run(start, [first, second], seed)
                assert content(alone) == content(again)
                assert alone.state == again.state
                assert alone.flash.unstable == again.flash.unstable


def test_a_brick_can_be_found_again() -> None:
    recipe = {"map": "uniform", "scale": SCALE, "start": 1, "cuts": [[3, "prefix"], [0, "all"]], "seed": 5}
    tally = replay(json.dumps(recipe))
    tally.check(least=1)
    assert (tally.runs, tally.cuts) == (1, 2)


def test_a_proof_of_too_few_runs_is_none() -> None:
    with pytest.raises(AssertionError, match="prove too little"):
        Tally(runs=99).check(least=100)
    with pytest.raises(AssertionError, match="1 broken rules"):
        Tally(runs=100, broken_rules=1).check(least=100)


# --- the proof -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", MAPS, ids=lambda each: each.name)
def test_every_single_cut_on_the_real_size_leaves_both_images_whole(each: SectorMap) -> None:
    tally = SwapProof(each.name).single_cuts()
    print(f"single cuts, {each.name}: {', '.join(REQUESTS)}: {tally}")
    tally.check(least=500)
    assert set(tally.modes) == set(ALL_MODES)
    assert tally.cuts == tally.runs


@pytest.mark.slow
@pytest.mark.parametrize("share", range(SHARES))
def test_every_pair_of_cuts_leaves_both_images_whole(share: int) -> None:
    tally = SwapProof("uniform", SCALE).double_cuts(share, SHARES)
    print(f"double cuts, uniform, share {share + 1} of {SHARES}: forward, reverse: {tally}")
    tally.check(least=10_000)
    assert set(tally.modes) == set(ALL_MODES)


@pytest.mark.parametrize("each", MAPS, ids=lambda each: each.name)
def test_many_cuts_in_a_row_leave_both_images_whole(each: SectorMap) -> None:
    tally = SwapProof(each.name, SCALE).random_cuts(200)
    print(f"3 to 7 cuts, {each.name}: {tally}")
    tally.check(least=200)
    assert tally.cuts >= 3 * tally.runs


@pytest.mark.parametrize("each", MAPS, ids=lambda each: each.name)
def test_bad_flash_is_refused_or_waits_until_it_works_again(each: SectorMap) -> None:
    proof = Tally()
    for name, start in zip(REQUESTS, starts(each.layout(SCALE)), strict=True):
        bad = BadProof(start, each.name)
        bad.prove(defects(start), every=20)
        bad.prove(stuck_bits(start, 2), every=20)
        print(f"bad flash, {each.name}, {name}: {bad}")
        assert {end for end, number in bad.ends.items() if number > 10} == {DONE, REFUSED, FAILED}
        proof += bad.tally
    proof.check(least=800)
    assert set(proof.modes) == set(ALL_MODES)
