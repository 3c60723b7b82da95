"""What a device does at boot, and what an update, a commit and a rollback do to its boot record.

The table below *is* the design: the first row that fits decides, and DESIGN.md's diagram is made from it. Rules:
- the record is written before the selection it speaks of, and names the slot;
- a row that ends in CONFIRMED selects the running slot before it stores: a bootloader that fell back by itself leaves
  a selection behind that a later, half-written update would inherit;
- the way back is taken only to an image that is whole and proven;
- FAILED means: a trial has begun. Only from there can an image be committed.

Each decision is a list of steps; whoever executes them may be cut off after any of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from mgota.core.floor import below_floor, effective_floor, raised
from mgota.core.geometry import Slot
from mgota.core.record import KNOWN_BY, MAX_EARLIER, MAX_TEXT, BootRecord, Outcome, SlotImage, State
from mgota.errors import RollbackRefusedError, TrialRunningError, UnknownStateError

MAX_SWAPS = 3
"""How often a trial slot is selected before it counts as one that never came up."""

MAX_SELECT_FAILURES = 3
"""How often the selection on the way back may report failure before the device runs what it has."""

NOT_COMMITTED = "it was not committed"
NEVER_CAME_UP = "it never came up"
NO_WAY_BACK = "there is no whole and proven image to go back to"
CANNOT_SELECT = "the previous image could not be selected"
UNFINISHED = "the update did not finish"
OPERATOR = "operator"


class Verdict(StrEnum):
    """How a boot goes on."""

    RUN = "run"
    TRIAL = "trial"
    RESET = "reset"


@dataclass(frozen=True, slots=True)
class Select:
    """Make this slot the one that boots."""

    slot: Slot


@dataclass(frozen=True, slots=True)
class Store:
    """Store this record."""

    record: BootRecord


@dataclass(frozen=True, slots=True)
class Arm:
    """Arm the watchdog for the trial's window."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Start the device again."""


Step = Select | Store | Arm | Reset


class Recorded(StrEnum):
    """What the state store answered."""

    ABSENT = "absent"
    CONFIRMED = "CONFIRMED"
    TESTING = "TESTING"
    FAILED = "FAILED"
    UNREADABLE = "unreadable"


class Running(StrEnum):
    """The running slot, as the record sees it."""

    ANY = "any"
    TRIAL = "the trial slot"
    OTHER = "the other"


class Guard(StrEnum):
    """What has to hold for a row to fit."""

    ALWAYS = ""
    TRIES_LEFT = "tries are left"
    SELECT_AGAIN = f"selected fewer than {MAX_SWAPS} times, no sign that it was tried, and it verifies"
    WAY_BACK = f"the other slot is whole and proven, and fewer than {MAX_SELECT_FAILURES} selections failed"


class Action(StrEnum):
    """What a row does."""

    FIRST_START = "count the running image as proven, store CONFIRMED, run"
    RUN = "run"
    TRIAL = "store FAILED, arm the watchdog, run the trial"
    SELECT_TRIAL = "count the selection, select the trial slot, reset"
    GIVE_UP = "select the running slot, store CONFIRMED (rolled back: it never came up), run"
    ROLL_BACK = "select the other slot, reset"
    STUCK = "select the running slot, store CONFIRMED (stuck), run"
    ROLLED_BACK = "select the running slot, store CONFIRMED (rolled back), run"
    RUN_UNKNOWN = "run, select and store nothing, raise the alarm"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the boot table."""

    recorded: Recorded
    running: Running
    guard: Guard
    action: Action


TABLE: tuple[Row, ...] = (
    Row(Recorded.ABSENT, Running.ANY, Guard.ALWAYS, Action.FIRST_START),
    Row(Recorded.CONFIRMED, Running.ANY, Guard.ALWAYS, Action.RUN),
    Row(Recorded.TESTING, Running.TRIAL, Guard.ALWAYS, Action.TRIAL),
    Row(Recorded.TESTING, Running.OTHER, Guard.SELECT_AGAIN, Action.SELECT_TRIAL),
    Row(Recorded.TESTING, Running.OTHER, Guard.ALWAYS, Action.GIVE_UP),
    Row(Recorded.FAILED, Running.TRIAL, Guard.TRIES_LEFT, Action.TRIAL),
    Row(Recorded.FAILED, Running.TRIAL, Guard.WAY_BACK, Action.ROLL_BACK),
    Row(Recorded.FAILED, Running.TRIAL, Guard.ALWAYS, Action.STUCK),
    Row(Recorded.FAILED, Running.OTHER, Guard.ALWAYS, Action.ROLLED_BACK),
    Row(Recorded.UNREADABLE, Running.ANY, Guard.ALWAYS, Action.RUN_UNKNOWN),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a decision may have to know beyond the record; see `questions`.

    Args:
        found: what lies in the running slot, when there is no record: None if it is blank.
        tried: the selector shows that the trial slot was tried and did not boot.
        verified: the image in the trial slot was verified again and is the recorded one.
        whole: the image in the other slot is the recorded one.
    """

    found: SlotImage | None = None
    tried: bool = False
    verified: bool = False
    whole: bool = False


class Question(StrEnum):
    """A fact that takes reading flash, so that it is asked for only where it decides."""

    FOUND = "found"
    VERIFIED = "verified"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Decision:
    """The row that fitted, the steps to take, in order, and how the boot goes on then."""

    row: Row
    steps: tuple[Step, ...]
    verdict: Verdict


def questions(record: BootRecord | None, running: Slot, *, readable: bool = True) -> Question | None:
    """The fact without which `decide` cannot decide, if there is one."""
    if not readable:
        return None
    if record is None:
        return Question.FOUND
    if record.state is State.TESTING and record.trial is not running and record.swaps < MAX_SWAPS:
        return Question.VERIFIED
    if record.state is State.FAILED and record.trial is running and not record.tries:
        return Question.WHOLE
    return None


def decide(record: BootRecord | None, running: Slot, facts: Facts, *, readable: bool = True) -> Decision:
    """What to do at boot.

    Args:
        record: what the state store holds; None if there never was a record, or it cannot be read.
        running: the slot that runs.
        facts: the answers to `questions`.
        readable: False if the store holds something that cannot be read.
    """
    recorded = Recorded.UNREADABLE if not readable else Recorded.ABSENT if record is None else Recorded(record.state)
    record = record or BootRecord()
    where = Running.TRIAL if record.trial is running else Running.OTHER
    row = next(
        row
        for row in TABLE
        if row.recorded is recorded
        and row.running in (Running.ANY, where)
        and _holds(row.guard, record, running, facts)
    )
    steps, verdict = _steps(row.action, record, running, facts)
    return Decision(row, steps, verdict)


def _holds(guard: Guard, record: BootRecord, running: Slot, facts: Facts) -> bool:
    match guard:
        case Guard.ALWAYS:
            return True
        case Guard.TRIES_LEFT:
            return record.tries > 0
        case Guard.SELECT_AGAIN:
            return record.swaps < MAX_SWAPS and not facts.tried and facts.verified
        case Guard.WAY_BACK:  # pragma: no branch  there is no other
            back = record.image(running.other)
            failed = record.select_failures >= MAX_SELECT_FAILURES
            return back is not None and back.proven and facts.whole and not failed


def _steps(action: Action, record: BootRecord, running: Slot, facts: Facts) -> tuple[tuple[Step, ...], Verdict]:
    match action:
        case Action.FIRST_START:
            found = facts.found and replace(facts.found, proven=True)
            return (Select(running), Store(record.next_with(running, found))), Verdict.RUN
        case Action.RUN | Action.RUN_UNKNOWN:
            return (), Verdict.RUN
        case Action.TRIAL:
            begun = record.next(state=State.FAILED, tries=max(record.tries - 1, 0))
            return (Store(begun), Arm()), Verdict.TRIAL
        case Action.SELECT_TRIAL:
            again = record.next(swaps=record.swaps + 1)
            return (Store(again), Select(running.other), Reset()), Verdict.RESET
        case Action.ROLL_BACK:
            return (Select(running.other), Reset()), Verdict.RESET
        case Action.GIVE_UP:
            return _settle(record, running, Outcome.ROLLED_BACK, NEVER_CAME_UP)
        case Action.ROLLED_BACK:
            return _settle(record, running, Outcome.ROLLED_BACK, record.reason or NOT_COMMITTED)
        case Action.STUCK:  # pragma: no branch  there is no other
            failing = record.select_failures >= MAX_SELECT_FAILURES
            return _settle(record, running, Outcome.STUCK, CANNOT_SELECT if failing else NO_WAY_BACK)


def _settle(record: BootRecord, running: Slot, outcome: Outcome, reason: str) -> tuple[tuple[Step, ...], Verdict]:
    failed = record.image(record.trial) if record.trial else None
    settled = record.next(**_SETTLED, outcome=outcome, reason=reason[:MAX_TEXT], **failure_of(record, failed))
    return (Select(running), Store(settled)), Verdict.RUN


def failure_of(record: BootRecord, image: SlotImage | None) -> dict[str, Any]:
    """What is remembered of an image that was rolled back, so that it is not installed again and again.

    Of those before it only a few digits: servers that disagree would else have two bad ones tried in turn, for ever.
    """
    if image is None:
        return {}
    last = (record.failed_sha256[:KNOWN_BY],) if record.failed_sha256 else ()
    earlier = (*last, *(record.failed_earlier or ()))
    earlier = tuple(known for known in earlier if known != image.sha256[:KNOWN_BY])[:MAX_EARLIER]
    return {
        "failed_sha256": image.sha256,
        "failed_image_sha256": image.image_sha256,
        "failed_version": image.version,
        "failed_earlier": earlier or None,
    }


_SETTLED = {"state": State.CONFIRMED, "trial": None, "swaps": 0, "tries": 0, "select_failures": 0}


def on_select_failure(record: BootRecord) -> BootRecord:
    """The record after the selection on the way back reported failure."""
    return record.next(select_failures=record.select_failures + 1)


def with_reason(record: BootRecord, reason: str) -> BootRecord:
    """The record of a trial that is known to have failed, and why. No decision depends on it."""
    return record.next(reason=reason[:MAX_TEXT])


def refuse_update(record: BootRecord | None, *, readable: bool = True) -> None:
    """Whether an update may begin.

    Raises:
        UnknownStateError: nobody knows what an update would destroy.
        TrialRunningError: it would destroy the way back.
    """
    if not readable:
        raise UnknownStateError("the boot record is unreadable: commit the running image, or provision the device anew")
    if record is not None and record.state is not State.CONFIRMED:
        raise TrialRunningError(
            "an image is on trial: commit or roll back first"
            if record.state is State.FAILED
            else "an image is about to go on trial: the device has to reset first"
        )


def begin_steps(record: BootRecord, running: Slot) -> tuple[Step, ...]:
    """Before the first erase: forget what the staging slot held.

    The outcome says what will be true if nothing more is ever stored.
    """
    forgotten = record.next_with(running.other, None, staged=None, outcome=Outcome.INTERRUPTED, reason=UNFINISHED)
    return Select(running), Store(forgotten)


def stage_step(record: BootRecord, slot: Slot, image: SlotImage) -> Store:
    """Keep a sealed image for later."""
    return Store(record.next_with(slot, image, staged=slot, outcome=None, reason=None))


def activate_steps(record: BootRecord, slot: Slot, image: SlotImage, *, tries: int) -> Iterator[Step]:
    """Put a sealed image on trial. From the first step on, the update survives any cut."""
    yield Store(
        record.next_with(
            slot,
            replace(image, proven=False),
            **{**_SETTLED, "state": State.TESTING, "trial": slot, "swaps": 1, "tries": tries},
            staged=None,
            outcome=None,
            reason=None,
        )
    )
    yield Select(slot)
    yield Reset()


def finish_steps(record: BootRecord, running: Slot) -> tuple[Step, ...]:
    """What is left of an activation that was cut off after its record was stored; nothing if none was.

    Args:
        record: the boot record.
        running: the slot that runs.
    """
    if record.state is not State.TESTING or record.trial in (None, running):
        return ()
    return Select(running.other), Reset()


def commit_steps(record: BootRecord, running: Slot, *, floor: str | None = None) -> tuple[Step, ...]:
    """Make the running image permanent, if it is on trial; otherwise there is nothing to do.

    One store does it, and raises the floor: there is no moment at which one is done and not the other.

    Args:
        record: the boot record.
        running: the slot that runs.
        floor: the device's.
    """
    image = record.image(running)
    if record.state is not State.FAILED or record.trial is not running or image is None:
        return ()
    lowest, sequence = raised((record.floor, record.sequence), (image.version, image.sequence), floor)
    committed = record.next_with(
        running,
        replace(image, proven=True),
        **{**_SETTLED, "floor": lowest, "sequence": sequence},
        outcome=Outcome.COMMITTED,
        reason=None,
    )
    return Select(running), Store(committed)


def rollback_steps(record: BootRecord, running: Slot, *, whole: bool, floor: str | None = None) -> tuple[Step, ...]:
    """Return to the other image because an operator says so.

    The floor does not keep anybody from ending a trial: the device would go back by itself.

    Args:
        record: the boot record.
        running: the slot that runs.
        whole: the image in the other slot is the recorded one.
        floor: the device's.

    Raises:
        TrialRunningError: an activation is under way.
        RollbackRefusedError: there is no whole and proven image to go back to, or it is below the floor.
    """
    if record.state is State.TESTING:
        raise TrialRunningError("an image is about to go on trial: the device has to reset first")
    back = record.image(running.other)
    if back is None or not back.proven or not whole:
        raise RollbackRefusedError(NO_WAY_BACK)
    if record.state is State.FAILED:
        leaving = record.next(tries=0, select_failures=0, reason=OPERATOR)
    else:
        if why := below_floor(back.version, effective_floor(record.floor, floor)):
            raise RollbackRefusedError(f"the previous image stays where it is: {why}")
        leaving = record.next(outcome=Outcome.ROLLED_BACK, reason=OPERATOR, **failure_of(record, record.image(running)))
    return Store(leaving), Select(running.other), Reset()


def forget_step(record: BootRecord, slot: Slot) -> Store:
    """Before a slot is provisioned: whatever it held, it is no image now."""
    return Store(record.next_with(slot, None, **_SETTLED, staged=None, outcome=None, reason=None))


def provision_steps(record: BootRecord, slot: Slot, image: SlotImage) -> tuple[Step, ...]:
    """A device's first image is in its slot: it is proven without a trial."""
    return Select(slot), Store(record.next_with(slot, replace(image, proven=True)))
