"""The proof bites: designs that lose devices are caught. Each test prints bricks and runs."""

import pytest
from bad_flash import BadProof, defects, stuck_bits
from controls import NaiveLog, NoRecommit, NoSealRule, TwoSectors, not_read_back, scratch_cuts
from sector_maps import BY_NAME
from swap_bench import Cut, MakeLog, starts
from swap_proof import SwapProof
from trial_controls import BareState, NamedSlot, trial_cuts

from mgota.core import swap
from mgota.core.recordlog import RecordLog
from mgota.testing import ALL_MODES, CutMode
from mgota.testing.power import ATOMIC_MODES

pytestmark = pytest.mark.no_cover  # measuring takes longer than proving; tests/core covers the rules

SCALE = 16
NOTHING, VALID_THEN_BLANK, BLANK_THEN_VALID = CutMode.NOTHING, CutMode.VALID_THEN_BLANK, CutMode.BLANK_THEN_VALID


@pytest.mark.parametrize("mode", ATOMIC_MODES)
def test_mongooses_scratch_swap_is_lost_at_34_of_45_cuts(mode: CutMode) -> None:
    """45: three sectors, three copies each, an erase and four programs a copy. Whole are the six cuts up to the first
    erase of the primary slot, and the five after its last program (one more and one fewer when the cut comes after)."""
    lost, cuts = scratch_cuts((mode,))
    print(f"control, scratch swap, cuts that leave {mode}: {lost} bricks of {cuts}")
    assert (lost, cuts) == (34, 45)


def test_mongooses_scratch_swap_is_lost_in_all_modes() -> None:
    lost, cuts = scratch_cuts(ALL_MODES)
    print(f"control, scratch swap, 8 modes: {lost} bricks of {cuts}")
    assert cuts == 360
    assert lost > 250


def test_a_naive_journal_passes_every_atomic_cut() -> None:
    proof = SwapProof("uniform", SCALE, make_log=NaiveLog, modes=ATOMIC_MODES)
    proof.single_cuts()
    proof.double_cuts()
    print(f"control, naive journal, cuts between operations only: {proof.tally}")
    proof.tally.check(least=1_500)


def test_a_naive_journal_fails_torn_double_cuts() -> None:
    proof = SwapProof("uniform", SCALE, make_log=NaiveLog)
    tally = proof.double_cuts(1, 4)
    print(f"control, naive journal, torn double cuts: {tally.lost} images lost, {tally}")
    assert tally.lost >= 10
    assert tally.broken_rules >= 100  # it goes on in a unit that only reads as blank


@pytest.mark.parametrize("name", ["uniform", "STM32F4 1 MiB"])
def test_a_bare_state_before_the_swap_ends_with_the_untried_image(name: str) -> None:
    start = starts(BY_NAME[name].layout(SCALE))[0]
    bare, named = trial_cuts(BareState(), start), trial_cuts(NamedSlot(), start)
    print(
        f"control, bare state before the swap, {name}: {len(bare.bricks)} bricks of {bare.runs}; with a slot: {named}"
    )
    assert len(bare.bricks) >= 10
    named.check(least=bare.runs)


THREE_FIRST_RECORDS: list[Cut] = [(1, VALID_THEN_BLANK), (1, VALID_THEN_BLANK), (1, NOTHING)]
"""Each mount is cut off in its first record. The first of them has to read well twice, the second once."""

SEAL_ERASE_RECORD: list[Cut] = [(2, VALID_THEN_BLANK), (0, BLANK_THEN_VALID), (1, NOTHING)]
"""A seal reads well once, and allows an erase that it should not."""


def directed(make_log: MakeLog, cuts: list[Cut]) -> SwapProof:
    """These cuts in the mounts of a journal that has been in use, for every start and many draws."""
    proof = SwapProof("uniform", SCALE, make_log=make_log)
    for seed in range(100):
        for which in (1, 2):
            proof.run(which, cuts, seed)
    return proof


@pytest.mark.parametrize(
    ("mutant", "cuts"),
    [(NoSealRule, THREE_FIRST_RECORDS), (TwoSectors, SEAL_ERASE_RECORD)],
    ids=["no seal rule", "two sectors"],
)
def test_a_log_without_this_rule_loses_its_value_to_three_cuts_in_a_row(
    mutant: type[RecordLog], cuts: list[Cut]
) -> None:
    found, sound = directed(mutant, cuts).tally, directed(RecordLog, cuts).tally
    print(f"control, {mutant.__name__}, directed: {len(found.bricks)} bricks of {found.runs}; with the rule: {sound}")
    assert found.lost >= 10
    sound.check(least=200)


MOUNT = 3
"""Operations of a mount, which is where the seal and the third sector matter."""

UNSTABLE = (NOTHING, VALID_THEN_BLANK, BLANK_THEN_VALID)


@pytest.mark.parametrize(
    ("mutant", "modes", "reach", "runs", "least"),
    [
        (NoRecommit, ALL_MODES, 0, 600, 5),
        (NoSealRule, UNSTABLE, MOUNT, 1_500, 2),
        (TwoSectors, UNSTABLE, MOUNT, 1_500, 4),
    ],
    ids=["no re-commit", "no seal rule", "two sectors"],
)
def test_a_log_without_this_rule_is_found_by_random_cuts(
    mutant: type[RecordLog], modes: tuple[CutMode, ...], reach: int, runs: int, least: int
) -> None:
    found = SwapProof("uniform", SCALE, make_log=mutant, modes=modes).random_cuts(runs, reach=reach)
    print(f"control, {mutant.__name__}, random cuts: {len(found.bricks)} bricks of {found.runs}")
    assert found.lost >= least


def test_a_log_with_all_rules_survives_what_finds_the_others() -> None:
    found = SwapProof("uniform", SCALE, modes=UNSTABLE).random_cuts(1_500, reach=MOUNT)
    print(f"control, the real log, random cuts in its mount: {found}")
    found.check(least=1_500)


def test_a_log_without_the_re_commit_is_found_by_double_cuts() -> None:
    found = SwapProof("uniform", SCALE, make_log=NoRecommit).double_cuts(2, 8)
    print(f"control, NoRecommit, double cuts: {len(found.bricks)} bricks of {found.runs}")
    assert found.lost >= 10


@pytest.mark.parametrize("name", ["uniform", "STM32F4 1 MiB"])
def test_a_swap_that_reads_nothing_back_is_found_by_bad_flash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum over the base still holds it up; what went aside is lost, and nobody notices."""
    start = starts(BY_NAME[name].layout(SCALE))[0]
    monkeypatch.setattr(swap, "rewrite", not_read_back)
    bad = BadProof(start, name)
    bad.prove(defects(start), every=100)
    bad.prove(stuck_bits(start, 2), every=100)
    print(f"control, no read-back, {name}: {len(bad.tally.bricks)} bricks of {bad.tally.runs}")
    assert bad.tally.lost >= 5
