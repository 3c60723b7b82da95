"""The boot table, row by row: what a device does with each record in each slot."""

from dataclasses import replace
from itertools import product

import pytest

from mgota.core.boot import (
    CANNOT_SELECT,
    MAX_SELECT_FAILURES,
    MAX_SWAPS,
    NEVER_CAME_UP,
    NO_WAY_BACK,
    NOT_COMMITTED,
    OPERATOR,
    TABLE,
    UNFINISHED,
    Action,
    Arm,
    Decision,
    Facts,
    Question,
    Recorded,
    Reset,
    Running,
    Select,
    Store,
    Verdict,
    activate_steps,
    begin_steps,
    commit_steps,
    decide,
    failure_of,
    finish_steps,
    forget_step,
    on_select_failure,
    provision_steps,
    questions,
    refuse_update,
    rollback_steps,
    stage_step,
    with_reason,
)
from mgota.core.geometry import Slot
from mgota.core.record import KNOWN_BY, MAX_EARLIER, MAX_TEXT, BootRecord, Outcome, SlotImage, State
from mgota.errors import RollbackRefusedError, TrialRunningError, UnknownStateError

A, B = Slot.A, Slot.B
OLD = SlotImage(size=100, image_size=164, sha256="01" * 32, version="1", proven=True, image_sha256="a1" * 32)
NEW = SlotImage(size=200, image_size=264, sha256="02" * 32, version="2", image_sha256="a2" * 32)
KNOWN = {image.sha256: (image.image_sha256, image.version) for image in (OLD, NEW)}
CONFIRMED = BootRecord(revision=7, a=OLD)
TESTING = BootRecord(revision=7, state=State.TESTING, trial=B, swaps=1, tries=1, a=OLD, b=NEW)
FAILED = replace(TESTING, state=State.FAILED, tries=0)
NOTHING = Facts()


def settled(record: BootRecord, outcome: Outcome, reason: str, failed: str | None) -> BootRecord:
    image_sha256, version = KNOWN.get(failed or "", (record.failed_image_sha256, record.failed_version))
    before = record.failed_sha256
    earlier = (before[:16],) if before and before != failed else record.failed_earlier
    return replace(
        record,
        revision=record.revision + 1,
        state=State.CONFIRMED,
        trial=None,
        swaps=0,
        tries=0,
        select_failures=0,
        outcome=outcome,
        reason=reason,
        failed_sha256=failed,
        failed_image_sha256=image_sha256,
        failed_version=version,
        failed_earlier=earlier,
    )


def check(decision: Decision, action: Action, verdict: Verdict, *steps: object) -> None:
    assert decision.row.action is action
    assert decision.steps == steps
    assert decision.verdict is verdict


# --- absent ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", Slot)
def test_absent_the_running_image_counts_as_proven(running: Slot) -> None:
    found = replace(OLD, proven=False)
    stored = BootRecord().next_with(running, OLD)
    decision = decide(None, running, Facts(found=found))
    check(decision, Action.FIRST_START, Verdict.RUN, Select(running), Store(stored))


@pytest.mark.parametrize("running", Slot)
def test_absent_and_blank_is_no_image(running: Slot) -> None:
    check(
        decide(None, running, NOTHING), Action.FIRST_START, Verdict.RUN, Select(running), Store(BootRecord(revision=1))
    )


# --- CONFIRMED ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", Slot)
def test_confirmed_runs(running: Slot) -> None:
    check(decide(CONFIRMED, running, NOTHING), Action.RUN, Verdict.RUN)


def test_confirmed_leaves_a_staged_image_alone() -> None:
    check(decide(replace(CONFIRMED, b=NEW, staged=B), A, NOTHING), Action.RUN, Verdict.RUN)


# --- TESTING --------------------------------------------------------------------------------------------------------


def test_testing_in_the_trial_slot_begins_the_trial() -> None:
    begun = replace(TESTING, revision=8, state=State.FAILED, tries=0)
    check(decide(TESTING, B, NOTHING), Action.TRIAL, Verdict.TRIAL, Store(begun), Arm())


def test_testing_with_tries_counts_one_down() -> None:
    steps = decide(replace(TESTING, tries=3), B, NOTHING).steps
    assert steps == (Store(replace(TESTING, revision=8, state=State.FAILED, tries=2)), Arm())


@pytest.mark.parametrize("swaps", range(MAX_SWAPS))
def test_testing_in_the_other_slot_selects_again_and_counts_it_first(swaps: int) -> None:
    record = replace(TESTING, swaps=swaps)
    counted = replace(record, revision=8, swaps=swaps + 1)
    decision = decide(record, A, Facts(verified=True))
    check(decision, Action.SELECT_TRIAL, Verdict.RESET, Store(counted), Select(B), Reset())


@pytest.mark.parametrize(
    ("swaps", "facts"),
    [
        (MAX_SWAPS, Facts(verified=True)),
        (MAX_SWAPS + 1, Facts(verified=True)),
        (1, Facts(verified=False)),
        (1, Facts(verified=True, tried=True)),
    ],
    ids=["selected often enough", "more than often enough", "does not verify", "was tried"],
)
def test_testing_in_the_other_slot_gives_up(swaps: int, facts: Facts) -> None:
    record = replace(TESTING, swaps=swaps)
    stored = settled(record, Outcome.ROLLED_BACK, NEVER_CAME_UP, NEW.sha256)
    check(decide(record, A, facts), Action.GIVE_UP, Verdict.RUN, Select(A), Store(stored))


# --- FAILED ---------------------------------------------------------------------------------------------------------


def test_failed_in_the_trial_slot_with_tries_left_is_tried_again() -> None:
    record = replace(FAILED, tries=2)
    check(decide(record, B, NOTHING), Action.TRIAL, Verdict.TRIAL, Store(replace(record, revision=8, tries=1)), Arm())


def test_failed_in_the_trial_slot_goes_back_and_leaves_the_record() -> None:
    check(decide(FAILED, B, Facts(whole=True)), Action.ROLL_BACK, Verdict.RESET, Select(A), Reset())


@pytest.mark.parametrize(
    ("record", "whole", "reason"),
    [
        (FAILED, False, NO_WAY_BACK),
        (replace(FAILED, a=replace(OLD, proven=False)), True, NO_WAY_BACK),
        (replace(FAILED, a=None), True, NO_WAY_BACK),
        (replace(FAILED, select_failures=MAX_SELECT_FAILURES), True, CANNOT_SELECT),
    ],
    ids=["not whole", "not proven", "no image", "cannot be selected"],
)
def test_failed_in_the_trial_slot_without_a_way_back_is_stuck(record: BootRecord, whole: bool, reason: str) -> None:
    stored = settled(record, Outcome.STUCK, reason, NEW.sha256)
    check(decide(record, B, Facts(whole=whole)), Action.STUCK, Verdict.RUN, Select(B), Store(stored))


def test_failed_in_the_trial_slot_tries_to_select_three_times() -> None:
    record, decisions = FAILED, 0
    while decide(record, B, Facts(whole=True)).row.action is Action.ROLL_BACK:
        record, decisions = on_select_failure(record), decisions + 1
    assert decisions == MAX_SELECT_FAILURES == 3


def test_failed_in_the_other_slot_is_rolled_back() -> None:
    stored = settled(FAILED, Outcome.ROLLED_BACK, NOT_COMMITTED, NEW.sha256)
    check(decide(FAILED, A, NOTHING), Action.ROLLED_BACK, Verdict.RUN, Select(A), Store(stored))


def test_failed_in_the_other_slot_keeps_the_reason_that_is_known() -> None:
    record = with_reason(FAILED, "exited with 1")
    assert record == replace(FAILED, revision=8, reason="exited with 1")
    stored = settled(record, Outcome.ROLLED_BACK, "exited with 1", NEW.sha256)
    assert decide(record, A, NOTHING).steps == (Select(A), Store(stored))


def test_a_long_reason_is_cut() -> None:
    assert with_reason(FAILED, "x" * 9999).reason == "x" * MAX_TEXT


def test_rolled_back_without_a_known_image_keeps_the_last_digest() -> None:
    record = replace(FAILED, b=None, failed_sha256="03" * 32)
    stored = settled(record, Outcome.ROLLED_BACK, NOT_COMMITTED, "03" * 32)
    assert decide(record, A, NOTHING).steps == (Select(A), Store(stored))


# --- unreadable -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", Slot)
def test_unreadable_runs_and_touches_nothing(running: Slot) -> None:
    check(decide(None, running, NOTHING, readable=False), Action.RUN_UNKNOWN, Verdict.RUN)


# --- the table as a whole -------------------------------------------------------------------------------------------

RECORDS = [
    None,
    CONFIRMED,
    replace(CONFIRMED, b=NEW, staged=B),
    *(
        replace(base, trial=trial, a=a, b=b, swaps=swaps, tries=tries, select_failures=failures)
        for base, trial, a, b, swaps, tries, failures in product(
            (TESTING, FAILED), Slot, (OLD, None), (NEW, None), (0, 3), (0, 1), (0, 3)
        )
    ),
]
FACTS = [
    Facts(found=OLD if bits & 1 else None, tried=bool(bits & 2), verified=bool(bits & 4), whole=bool(bits & 8))
    for bits in range(16)
]
EVERY = [(record, running, facts) for record in RECORDS for running in Slot for facts in FACTS]


def test_every_row_is_reached_and_nothing_falls_through() -> None:
    reached = {decide(record, running, facts).row for record, running, facts in EVERY}
    reached |= {decide(None, running, NOTHING, readable=False).row for running in Slot}
    assert reached == set(TABLE)


def answered(facts: Facts, question: Question, *, yes: bool) -> Facts:
    match question:
        case Question.FOUND:
            return replace(facts, found=OLD if yes else None)
        case Question.VERIFIED:
            return replace(facts, verified=yes)
        case Question.WHOLE:
            return replace(facts, whole=yes)


def test_what_is_not_asked_does_not_decide() -> None:
    for record, running, facts in EVERY:
        for question in set(Question) - {questions(record, running)}:
            yes, no = (answered(facts, question, yes=answer) for answer in (True, False))
            assert decide(record, running, yes) == decide(record, running, no)


def test_what_is_asked_may_decide() -> None:
    decided: set[Question] = set()
    for record, running, facts in EVERY:
        if question := questions(record, running):
            yes, no = (answered(facts, question, yes=answer) for answer in (True, False))
            decided |= {question} if decide(record, running, yes) != decide(record, running, no) else set()
    assert decided == set(Question)


def test_an_unreadable_record_asks_nothing() -> None:
    assert [questions(None, running, readable=False) for running in Slot] == [None, None]


def test_a_row_that_ends_in_confirmed_selects_the_running_slot_before_it_stores() -> None:
    seen = 0
    for record, running, facts in EVERY:
        steps = decide(record, running, facts).steps
        for at, step in enumerate(steps):
            if isinstance(step, Store) and step.record.state is State.CONFIRMED:
                assert steps[at - 1] == Select(running)
                seen += 1
    assert seen > 100


def test_every_store_raises_the_revision() -> None:
    for record, running, facts in EVERY:
        before = record.revision if record else 0
        for step in decide(record, running, facts).steps:
            if isinstance(step, Store):
                assert step.record.revision == before + 1


def test_the_table_speaks_of_every_record_and_place() -> None:
    assert {row.recorded for row in TABLE} == set(Recorded)
    for recorded in (Recorded.TESTING, Recorded.FAILED):
        assert {row.running for row in TABLE if row.recorded is recorded} == {Running.TRIAL, Running.OTHER}


# --- begin ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [None, CONFIRMED, replace(CONFIRMED, b=NEW, staged=B)])
def test_an_update_may_begin(record: BootRecord | None) -> None:
    refuse_update(record)  # does not raise
    assert record is None or record.state is State.CONFIRMED


@pytest.mark.parametrize(("record", "words"), [(TESTING, "about to go on trial"), (FAILED, "is on trial")])
def test_no_update_during_a_trial_or_before_it(record: BootRecord, words: str) -> None:
    with pytest.raises(TrialRunningError, match=words):
        refuse_update(record)


def test_no_update_on_an_unknown_state() -> None:
    with pytest.raises(UnknownStateError):
        refuse_update(None, readable=False)


def test_begin_selects_what_runs_and_forgets_the_staging_slot() -> None:
    record = replace(CONFIRMED, b=NEW, staged=B, outcome=Outcome.COMMITTED, floor="1.0", failed_sha256="03" * 32)
    forgotten = replace(record, revision=8, b=None, staged=None, outcome=Outcome.INTERRUPTED, reason=UNFINISHED)
    assert begin_steps(record, A) == (Select(A), Store(forgotten))


# --- stage, activate ------------------------------------------------------------------------------------------------


def test_staging_changes_nothing_but_the_image_and_the_mark() -> None:
    record = replace(CONFIRMED, outcome=Outcome.INTERRUPTED, reason=UNFINISHED)
    kept = replace(record, revision=8, b=NEW, staged=B, outcome=None, reason=None)
    assert stage_step(record, B, NEW) == Store(kept)


@pytest.mark.parametrize("tries", [1, 3])
def test_activation_records_before_it_selects(tries: int) -> None:
    record = replace(CONFIRMED, staged=B, outcome=Outcome.INTERRUPTED, reason=UNFINISHED, select_failures=2, floor="1")
    stored, *rest = activate_steps(record, B, replace(NEW, proven=True), tries=tries)
    assert rest == [Select(B), Reset()]
    assert stored == Store(replace(TESTING, revision=8, tries=tries, floor="1")), (
        "the image on trial is not proven, whatever was said of it"
    )


# --- commit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tries", [0, 2])
def test_a_commit_makes_the_trial_image_proven(tries: int) -> None:
    record = replace(FAILED, tries=tries, reason="exited with 1", failed_sha256="03" * 32)
    proven = settled(record, Outcome.COMMITTED, "", "03" * 32)
    committed = replace(proven, reason=None, b=replace(NEW, proven=True))
    assert commit_steps(record, B) == (Select(B), Store(committed))


@pytest.mark.parametrize(
    ("record", "running"),
    [
        (CONFIRMED, A),
        (replace(CONFIRMED, b=NEW, staged=B), A),
        (TESTING, A),
        (TESTING, B),
        (FAILED, A),
        (replace(FAILED, b=None), B),
    ],
    ids=["confirmed", "staged", "before the reset", "before the boot check", "rolled back", "no image"],
)
def test_a_commit_without_a_trial_does_nothing(record: BootRecord, running: Slot) -> None:
    assert commit_steps(record, running) == ()


def test_a_commit_raises_floor_and_sequence_in_the_store_that_makes_it_permanent() -> None:
    brought = replace(NEW, sequence=5)
    for record, floor, expected in (
        (FAILED, None, (None, None)),
        (FAILED, "1.5", ("1.5", None)),
        (replace(FAILED, floor="1.9", sequence=4), "1.5", ("1.9", 4)),
        (replace(FAILED, b=brought), None, ("2", 5)),
        (replace(FAILED, b=brought, sequence=4, floor="3"), "1", ("3", 5)),
        (replace(FAILED, b=brought, sequence=5), None, (None, 5)),
    ):
        (_, store) = commit_steps(record, B, floor=floor)
        assert isinstance(store, Store)
        assert (store.record.floor, store.record.sequence) == expected
        assert store.record.state is State.CONFIRMED


def test_a_trial_that_fails_raises_nothing() -> None:
    record = replace(FAILED, b=replace(NEW, sequence=5), floor="1", sequence=4)
    for decision in (decide(record, A, NOTHING), decide(replace(record, a=None), B, NOTHING)):
        store = decision.steps[-1]
        assert isinstance(store, Store)
        assert (store.record.floor, store.record.sequence) == ("1", 4)


# --- rollback -------------------------------------------------------------------------------------------------------

BOTH = replace(CONFIRMED, b=replace(NEW, proven=True), outcome=Outcome.COMMITTED)


def test_a_rollback_from_a_trial_leaves_failed() -> None:
    record = replace(FAILED, tries=2, select_failures=2)
    leaving = replace(record, revision=8, tries=0, select_failures=0, reason=OPERATOR)
    assert rollback_steps(record, B, whole=True) == (Store(leaving), Select(A), Reset())
    assert decide(leaving, B, Facts(whole=True)).row.action is Action.ROLL_BACK  # cut off before it was selected
    stored = decide(leaving, A, NOTHING).steps[1]
    assert stored == Store(settled(leaving, Outcome.ROLLED_BACK, OPERATOR, NEW.sha256))


@pytest.mark.parametrize("running", Slot)
def test_a_rollback_from_confirmed_only_selects(running: Slot) -> None:
    left = BOTH.image(running)
    assert left
    leaving = settled(BOTH, Outcome.ROLLED_BACK, OPERATOR, left.sha256)
    assert rollback_steps(BOTH, running, whole=True) == (Store(leaving), Select(running.other), Reset())
    assert decide(leaving, running.other, NOTHING).row.action is Action.RUN


def test_a_rollback_from_an_unknown_image_keeps_the_last_digest() -> None:
    record = replace(BOTH, a=None, failed_sha256="03" * 32)
    stored = rollback_steps(record, A, whole=True)[0]
    assert isinstance(stored, Store)
    assert stored.record.failed_sha256 == "03" * 32


@pytest.mark.parametrize(
    ("version", "recorded", "configured", "said"),
    [
        ("1", "1.1", None, "below the floor 1.1"),
        ("1", None, "1.1", "below the floor 1.1"),
        ("1", "1.2", "1.1", "below the floor 1.2"),
        (None, "1", None, "not known"),
        ("nightly", "1", None, "cannot be compared"),
    ],
)
def test_an_explicit_rollback_below_the_floor_is_refused(
    version: str | None, recorded: str | None, configured: str | None, said: str
) -> None:
    record = replace(BOTH, a=replace(OLD, version=version), floor=recorded)
    with pytest.raises(RollbackRefusedError, match=said):
        rollback_steps(record, B, whole=True, floor=configured)


def test_the_floor_keeps_nobody_from_going_back_to_what_it_allows_or_from_ending_a_trial() -> None:
    assert rollback_steps(replace(BOTH, floor="1.0"), B, whole=True, floor="0.9")
    assert rollback_steps(replace(FAILED, floor="1.1"), B, whole=True, floor="1.2")
    automatic = decide(replace(FAILED, floor="9"), B, Facts(whole=True))
    assert automatic.row.action is Action.ROLL_BACK


@pytest.mark.parametrize(
    ("record", "running", "whole"),
    [
        (BOTH, A, False),
        (CONFIRMED, A, True),
        (replace(CONFIRMED, b=NEW), A, True),
        (replace(CONFIRMED, b=NEW, staged=B), A, True),
        (FAILED, B, False),
        (FAILED, A, True),
    ],
    ids=["not whole", "no image", "not proven", "staged", "on trial, not whole", "to the image that failed"],
)
def test_a_rollback_without_a_way_back_is_refused(record: BootRecord, running: Slot, whole: bool) -> None:
    with pytest.raises(RollbackRefusedError):
        rollback_steps(record, running, whole=whole)


@pytest.mark.parametrize("running", Slot)
def test_no_rollback_while_an_activation_is_under_way(running: Slot) -> None:
    with pytest.raises(TrialRunningError):
        rollback_steps(replace(TESTING, b=replace(NEW, proven=True)), running, whole=True)


def test_an_activation_that_was_cut_off_goes_on_where_it_was() -> None:
    assert finish_steps(TESTING, A) == (Select(B), Reset())
    assert finish_steps(TESTING, B) == ()  # it has started
    for record in (CONFIRMED, FAILED, replace(TESTING, trial=None)):
        assert finish_steps(record, A) == ()


# --- provisioning ---------------------------------------------------------------------------------------------------


def test_provisioning_forgets_first_and_proves_last() -> None:
    before = replace(FAILED, staged=B, outcome=Outcome.STUCK, reason="x", floor="1")
    forgotten = forget_step(before, B).record
    assert forgotten == BootRecord(revision=8, a=OLD, floor="1")
    steps = provision_steps(forgotten, B, NEW)
    assert steps == (Select(B), Store(replace(forgotten, revision=9, b=replace(NEW, proven=True))))


def test_what_failed_earlier_is_remembered_newest_first_and_not_without_end() -> None:
    record, firmwares = BootRecord(), [f"{n:02x}" * 32 for n in range(MAX_EARLIER + 3)]
    for sha256 in [*firmwares, firmwares[-2]]:  # one of them fails again
        record = record.next(**failure_of(record, replace(NEW, sha256=sha256)))
    *_, older, again, last = firmwares
    assert record.failed_sha256 == again
    assert record.failed_earlier is not None
    assert record.failed_earlier[:2] == (last[:KNOWN_BY], older[:KNOWN_BY])
    assert len(record.failed_earlier) == MAX_EARLIER
    assert failure_of(record, None) == {}
    assert not record.rolled_back(firmwares[0])
