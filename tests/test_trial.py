"""Trials: the boot check, the watched first run, commit and rollback."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from memory_device import (
    NEW,
    OLD,
    Board,
    MemoryWatchdog,
    Operation,
    digest,
    firmware,
    update,
    update_and_restart,
)

from mgota.core.boot import CANNOT_SELECT, MAX_SELECT_FAILURES, NEVER_CAME_UP, NO_WAY_BACK, OPERATOR, Verdict
from mgota.core.geometry import Slot
from mgota.core.record import Outcome, State
from mgota.device import GRACE
from mgota.errors import (
    FlashError,
    OtaError,
    RollbackRefusedError,
    SelectError,
    StateError,
    TrialRunningError,
    UnknownStateError,
    UpdateRunningError,
    WrongImageError,
)
from mgota.trial import boot_check, check_rollback, commit, keep_fed, rollback, run_trial

pytestmark = pytest.mark.asyncio

A, B = Slot.A, Slot.B
NEWER = firmware("3", 1100)


async def on_trial(**options: Any) -> Board:
    """Slot b runs on trial; slot a holds the proven image."""
    board = Board(OLD, **options)
    await boot_check(board.device)
    await update_and_restart(board.device, NEW)
    assert await boot_check(board.boot()) is Verdict.TRIAL
    board.reset.returns, board.reset.count = True, 0
    return board


async def committed(**options: Any) -> Board:
    """Slot b runs, committed; slot a holds the image before, proven."""
    board = await on_trial(**options)
    assert await commit(board.device)
    board.reset.count = 0
    await boot_check(board.boot())
    return board


def failing(board: Board, what: str, error: OtaError) -> list[Operation]:
    """From now on, operations of this kind fail and do nothing."""
    seen: list[Operation] = []

    def fail(op: Operation) -> None:
        if op.what.startswith(what):
            seen.append(op)
            raise error

    board.power.before = fail
    return seen


async def refused(board: Board, error: type[OtaError], action: Callable[[], Awaitable[object]]) -> None:
    """The request is refused, and leaves everything as it was."""
    before, running, resets = board.snapshot(), board.flash.running, board.reset.count
    with pytest.raises(error):
        await action()
    assert board.snapshot() == before
    assert (board.flash.running, board.reset.count) == (running, resets)


# --- boot check -----------------------------------------------------------------------------------------------------


async def test_a_boot_recovers_before_it_decides() -> None:
    board = Board()
    assert await boot_check(board.device) is Verdict.RUN
    assert board.flash.recovered == 1


async def test_a_trial_begins_with_a_durable_record_and_an_armed_watchdog() -> None:
    board = Board(window=30.0)
    await boot_check(board.device)
    await update_and_restart(board.device, NEW)
    board.boot()
    seen: list[list[float]] = []
    board.power.before = lambda op: seen.append(list(board.watchdog.armed))
    assert await boot_check(board.device) is Verdict.TRIAL
    assert seen == [[]], "armed before the record says so"
    assert board.watchdog.armed == [30.0 + GRACE]
    assert (board.record.state, board.record.trial, board.record.tries) == (State.FAILED, B, 0)
    assert board.device.live.trial_until is not None


async def test_a_trial_that_cannot_be_recorded_does_not_run() -> None:
    board = Board()
    await boot_check(board.device)
    await update_and_restart(board.device, NEW)
    board.boot()
    failing(board, "store", StateError("worn"))
    with pytest.raises(StateError):
        await boot_check(board.device)
    assert board.watchdog.armed == []


async def test_a_power_cut_during_a_trial_rolls_back() -> None:
    board = await on_trial()
    assert await boot_check(board.boot()) is Verdict.RESET
    assert (board.flash.selected, board.record.state) == (A, State.FAILED)
    assert await boot_check(board.boot()) is Verdict.RUN
    assert (board.record.state, board.record.outcome) == (State.CONFIRMED, Outcome.ROLLED_BACK)
    assert board.record.reason == "it was not committed"
    assert board.record.failed_sha256 == digest(NEW)
    assert board.content(board.flash.running) == OLD


async def test_with_more_tries_a_power_cut_uses_up_one() -> None:
    board = await on_trial(tries=3)
    assert board.record.tries == 2
    for left in (1, 0):
        assert await boot_check(board.boot()) is Verdict.TRIAL
        assert board.record.tries == left
    assert await boot_check(board.boot()) is Verdict.RESET
    assert board.flash.selected is A


async def test_the_reason_of_a_failed_trial_is_kept_for_a_reader() -> None:
    board = await on_trial()
    assert await boot_check(board.boot(), reason="exited with 1") is Verdict.RESET
    assert await boot_check(board.boot(), reason="something later") is Verdict.RUN
    assert (board.record.outcome, board.record.reason) == (Outcome.ROLLED_BACK, "exited with 1")


async def test_a_reason_without_a_trial_is_nobodys() -> None:
    board = await committed()
    before = board.record
    assert await boot_check(board.boot(), reason="exited with 1") is Verdict.RUN
    assert board.record == before


async def test_a_selection_that_did_not_take_is_repeated_and_counted() -> None:
    board = Board()
    await boot_check(board.device)
    await update_and_restart(board.device, NEW)
    board.reset.returns = True
    swaps = [board.record.swaps]
    for _ in range(2):
        board.flash.selected = A  # a bootloader fell back by itself
        assert await boot_check(board.boot()) is Verdict.RESET
        assert board.flash.selected is B
        swaps.append(board.record.swaps)
    assert swaps == [1, 2, 3]
    board.flash.selected = A
    assert await boot_check(board.boot()) is Verdict.RUN
    assert (board.record.outcome, board.record.reason) == (Outcome.ROLLED_BACK, NEVER_CAME_UP)
    assert board.record.failed_sha256 == digest(NEW)


async def test_check_then_use_a_trial_slot_that_changed_is_not_selected_again() -> None:
    board = Board()
    await boot_check(board.device)
    await update_and_restart(board.device, NEW)
    board.flash.selected = A
    board.flash.cells[B][9] ^= 1
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.record.reason == NEVER_CAME_UP
    assert board.flash.selected is A


async def test_without_a_whole_image_to_go_back_to_it_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    board = await on_trial()
    board.flash.cells[A][3] ^= 1
    assert await boot_check(board.boot()) is Verdict.RUN
    assert (board.record.outcome, board.record.reason) == (Outcome.STUCK, NO_WAY_BACK)
    assert (board.record.state, board.flash.selected) == (State.CONFIRMED, B)
    assert [r.levelno for r in caplog.records if r.name == "mgota.trial"][-1] == logging.CRITICAL


async def test_a_selection_that_fails_three_times_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    board = await on_trial()
    board.boot()
    failed = failing(board, "select", SelectError("the option bytes are worn"))
    assert await boot_check(board.device) is Verdict.RUN
    assert len(failed) == MAX_SELECT_FAILURES
    assert (board.record.outcome, board.record.reason) == (Outcome.STUCK, CANNOT_SELECT)
    assert (board.record.state, board.flash.selected) == (State.CONFIRMED, B)
    assert "the option bytes are worn" in caplog.text


async def test_power_cuts_on_the_way_back_do_not_count_as_failures() -> None:
    board = await on_trial()
    for _ in range(5):
        board.boot()
        board.flash.selected = B  # cut before the selection took
        board.flash.running = B
        assert await boot_check(board.device) is Verdict.RESET
    assert board.record.select_failures == 0


async def test_a_trial_slot_that_cannot_be_selected_is_given_up() -> None:
    board = Board()
    await boot_check(board.device)
    await update_and_restart(board.device, NEW)
    board.flash.selected = A
    board.boot()
    failed = failing(board, "select", SelectError("no"))
    assert await boot_check(board.device) is Verdict.RUN
    assert len(failed) == 2
    assert board.record.reason == NEVER_CAME_UP
    assert board.flash.selected is A


async def test_if_what_runs_cannot_be_selected_it_runs_and_the_record_stays(caplog: pytest.LogCaptureFixture) -> None:
    """A bootloader fell back by itself, and its selection cannot be changed: the next boot tries again."""
    board = await on_trial()
    board.boot()
    board.flash.running = A
    before = board.record
    failing(board, "select", SelectError("no"))
    assert await boot_check(board.device) is Verdict.RUN
    assert board.record == before
    board.power.restore()
    assert await boot_check(board.device) is Verdict.RUN
    assert board.record.outcome is Outcome.ROLLED_BACK
    assert board.flash.selected is A


async def test_an_unreadable_record_runs_what_runs_and_raises_the_alarm(caplog: pytest.LogCaptureFixture) -> None:
    board = await on_trial()
    board.state.damage()
    board.boot()
    before = board.snapshot()
    assert await boot_check(board.device) is Verdict.RUN
    assert board.snapshot() == before
    assert any(r.levelno == logging.CRITICAL and r.name == "mgota.trial" for r in caplog.records)


async def test_an_unreadable_record_may_count_as_none() -> None:
    board = Board(on_unknown="confirm")
    board.state.damage()
    assert await boot_check(board.device) is Verdict.RUN
    assert board.record.a
    assert board.record.a.proven


async def test_a_boot_waits_for_who_holds_the_device_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.trial.LOCK_WAIT", 0.01)
    board = Board()
    board.lock.taken = True
    with pytest.raises(UpdateRunningError):
        await boot_check(board.device)
    assert board.state.data is None


async def test_flash_that_cannot_be_recovered_does_not_boot(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()

    async def broken() -> None:
        raise FlashError("the swap cannot be finished")

    monkeypatch.setattr(board.flash, "recover", broken)
    with pytest.raises(FlashError):
        await boot_check(board.device)
    assert not board.lock.held


async def test_a_boot_forgets_the_life_before() -> None:
    """Where a reset does not end the process, the same device boots again."""
    board = await on_trial()
    assert await boot_check(board.device) is Verdict.RESET
    board.flash.running = A
    assert await boot_check(board.device) is Verdict.RUN
    assert board.device.live.trial_until is None
    assert not board.device.live.resetting
    assert await run_trial(board.device) is None


async def test_whoever_started_the_program_may_have_decided_already() -> None:
    board = await on_trial()
    before = board.snapshot()
    board.device.live.decided = True
    assert await boot_check(board.device) is Verdict.TRIAL
    board.device.live.trial_until = None
    assert await boot_check(board.device) is Verdict.RUN
    assert board.snapshot() == before


# --- the watched run ------------------------------------------------------------------------------------------------


async def test_without_a_trial_there_is_nothing_to_watch() -> None:
    board = await committed()
    assert await run_trial(board.device) is None
    assert board.reset.count == 0


async def test_a_check_that_answers_true_commits() -> None:
    board = await on_trial()
    answers = [False, False, True]

    async def healthy() -> bool:
        return answers.pop(0)

    assert await run_trial(board.device, check=healthy, interval=0.001) is Outcome.COMMITTED
    assert answers == []
    assert (board.record.state, board.record.outcome) == (State.CONFIRMED, Outcome.COMMITTED)
    assert board.record.b
    assert board.record.b.proven
    assert (board.watchdog.disarmed, board.reset.count) == (1, 0)
    assert board.device.live.trial_until is None


async def hangs() -> bool:
    await anyio.sleep_forever()
    return True


async def is_false() -> bool:
    return False


async def raises() -> bool:
    raise ConnectionRefusedError("no network")


@pytest.mark.parametrize("check", [is_false, raises, hangs, None])
async def test_a_trial_that_nobody_commits_ends_in_a_reset(check: Callable[[], Awaitable[bool]] | None) -> None:
    board = await on_trial(window=0.05)
    assert await run_trial(board.device, check=check, interval=0.01) is Outcome.ROLLED_BACK
    assert board.reset.count == 1
    assert board.watchdog.disarmed == 0
    assert board.record.state is State.FAILED
    assert await boot_check(board.boot()) is Verdict.RESET
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.record.outcome is Outcome.ROLLED_BACK
    assert board.content(board.flash.running) == OLD


async def test_a_check_that_recovers_commits() -> None:
    board = await on_trial()
    answers: list[bool | Exception] = [ConnectionRefusedError("not yet"), False, True]

    async def check() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert await run_trial(board.device, check=check, interval=0.001) is Outcome.COMMITTED
    assert answers == []


async def test_somebody_else_may_commit() -> None:
    """An endpoint of the same process, or an operator's command in another one."""
    board = await on_trial()
    outcome: list[Outcome | None] = []
    async with anyio.create_task_group() as tg:

        async def watch() -> None:
            outcome.append(await run_trial(board.device, interval=0.005))

        tg.start_soon(watch)
        await anyio.sleep(0.02)
        assert await commit(board.new_device())
    assert outcome == [Outcome.COMMITTED]
    assert board.watchdog.disarmed == 1, "the process that armed it has to stop it"
    assert board.device.live.trial_until is None
    assert board.reset.count == 0


async def test_a_commit_at_the_last_moment_is_not_rolled_back() -> None:
    """At the window's end the record is read again, under the lock."""
    board = await on_trial(window=0.4)

    async def too_late() -> bool:
        with anyio.CancelScope(shield=True):
            await commit(board.new_device())
        await anyio.sleep_forever()
        return False

    assert await run_trial(board.device, check=too_late) is Outcome.COMMITTED
    assert board.reset.count == 0
    assert board.watchdog.disarmed == 1


async def test_a_commit_that_cannot_be_stored_is_tried_again() -> None:
    board = await on_trial()
    failed: list[Operation] = []

    def twice(op: Operation) -> None:
        if op.what.startswith("store") and len(failed) < 2:
            failed.append(op)
            raise StateError("not now")

    async def healthy() -> bool:
        return True

    board.power.before = twice
    assert await run_trial(board.device, check=healthy, interval=0.001) is Outcome.COMMITTED
    assert len(failed) == 2
    assert board.record.outcome is Outcome.COMMITTED


async def test_a_record_that_cannot_be_read_was_not_committed() -> None:
    board = await on_trial(window=0.4)
    board.state.damage()
    asked = 0

    async def healthy() -> bool:
        nonlocal asked
        asked += 1
        return True

    assert await run_trial(board.device, check=healthy, interval=0.01) is Outcome.ROLLED_BACK
    assert asked
    assert board.reset.count == 1
    assert board.watchdog.disarmed == 0
    assert board.state.stores == 4, "a check that answers True does not overwrite what cannot be read"


async def test_a_window_longer_than_the_watchdog_counts_is_fed_and_bites_at_its_end() -> None:
    board = await on_trial(window=1.0, watchdog=MemoryWatchdog(limit=0.4, stoppable=False))
    assert board.watchdog.armed == [0.4]
    assert await run_trial(board.device, interval=0.05) is Outcome.ROLLED_BACK
    assert len(board.watchdog.armed) > 1
    assert all(0 < timeout <= 0.4 for timeout in board.watchdog.armed)
    assert board.watchdog.disarmed == 0


async def test_a_window_that_the_watchdog_can_count_is_not_fed() -> None:
    board = await on_trial(window=0.1, watchdog=MemoryWatchdog(limit=10.0))
    assert await run_trial(board.device, interval=0.02) is Outcome.ROLLED_BACK
    assert board.watchdog.armed == [0.1 + GRACE]
    assert board.watchdog.fed == 0


async def test_a_trial_without_a_watchdog_is_watched_by_the_clock() -> None:
    board = await on_trial(window=0.05)
    board.options["watchdog"] = None
    device = board.new_device()
    device.live.trial_until = board.device.live.trial_until
    assert await run_trial(device, interval=0.01) is Outcome.ROLLED_BACK
    assert board.reset.count == 1


async def test_a_trial_of_a_process_that_came_late_ends_at_once() -> None:
    board = await on_trial(window=0.01)
    await anyio.sleep(0.02)
    assert await run_trial(board.device, check=raises) is Outcome.ROLLED_BACK
    assert board.reset.count == 1


async def test_keep_fed_feeds_for_ever() -> None:
    watchdog = MemoryWatchdog()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tg:

            async def enough() -> None:
                while watchdog.fed < 3:
                    await anyio.sleep(0.001)
                scope.cancel()

            tg.start_soon(enough)
            await keep_fed(watchdog, interval=0.001)
    assert watchdog.fed >= 3


# --- commit ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [False, True])
async def test_a_commit_makes_it_permanent(bound: bool) -> None:
    board = await on_trial()
    assert await commit(board.device, sha256=digest(NEW).upper() if bound else None)
    assert (board.record.state, board.record.trial, board.record.outcome) == (State.CONFIRMED, None, Outcome.COMMITTED)
    assert board.watchdog.disarmed == 1
    assert board.reset.count == 0
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.content(board.flash.running) == NEW


async def test_a_commit_is_idempotent() -> None:
    board = await on_trial()
    assert await commit(board.device)
    before = board.snapshot()
    assert not await commit(board.device)
    assert not await commit(board.device, sha256=digest(NEW))
    assert board.snapshot() == before
    assert board.watchdog.disarmed == 1


@pytest.mark.parametrize("situation", ["no record", "confirmed", "before the reset"])
async def test_a_commit_with_nothing_on_trial_changes_nothing(situation: str) -> None:
    board = Board()
    if situation != "no record":
        await boot_check(board.device)
    if situation == "before the reset":
        board.reset.returns = True
        await update(board.device, NEW)
        board.reset.count = 0
    before = board.snapshot()
    assert not await commit(board.device)
    assert board.snapshot() == before
    assert board.reset.count == 0


async def test_a_commit_with_nothing_on_trial_does_not_wait_for_an_update() -> None:
    board = await committed()
    board.lock.taken = True
    assert not await commit(board.device)
    assert board.lock.taken


async def test_replayed_commit_after_the_next_update_is_refused() -> None:
    board = await committed()
    await update(board.device, NEWER)
    assert await boot_check(board.boot()) is Verdict.TRIAL
    await refused(board, WrongImageError, lambda: commit(board.device, sha256=digest(NEW)))
    assert board.record.state is State.FAILED
    assert await commit(board.device, sha256=digest(NEWER))


async def test_a_commit_for_a_blank_device_meant_another() -> None:
    board = Board(b"")
    await boot_check(board.device)
    await refused(board, WrongImageError, lambda: commit(board.device, sha256=digest(NEW)))


async def test_a_commit_on_an_unknown_state_counts_what_runs_as_proven() -> None:
    board = await committed()
    board.state.damage()
    assert await boot_check(board.boot()) is Verdict.RUN
    await refused(board, WrongImageError, lambda: commit(board.device, sha256=digest(OLD)))
    assert await commit(board.device)
    assert board.record.state is State.CONFIRMED
    assert board.record.b
    assert (board.record.b.sha256, board.record.b.proven) == (digest(NEW), True)
    assert board.record.a is None
    await update(board.device, NEWER)


async def test_a_commit_on_an_unknown_state_may_be_bound() -> None:
    board = await committed()
    board.state.damage()
    assert await commit(board.device, sha256=digest(NEW))
    assert board.record.b is not None


async def test_a_watchdog_that_cannot_be_stopped_resets_after_the_commit() -> None:
    board = await on_trial(watchdog=MemoryWatchdog(stoppable=False, limit=65.5))
    assert await commit(board.device)
    assert board.reset.count == 1
    assert board.watchdog.disarmed == 0
    assert board.record.state is State.CONFIRMED
    assert await boot_check(board.boot()) is Verdict.RUN


@pytest.mark.parametrize(("stoppable", "override", "resets"), [(True, True, 1), (False, False, 0), (True, False, 0)])
async def test_whether_a_commit_resets_can_be_said(stoppable: bool, override: bool, resets: int) -> None:
    board = await on_trial(watchdog=MemoryWatchdog(stoppable=stoppable), reset_after_commit=override)
    assert await commit(board.device)
    assert board.reset.count == resets
    assert board.watchdog.disarmed == stoppable


async def test_a_watched_commit_with_such_a_watchdog_resets_once() -> None:
    board = await on_trial(watchdog=MemoryWatchdog(stoppable=False))

    async def healthy() -> bool:
        return True

    assert await run_trial(board.device, check=healthy, interval=0.001) is Outcome.COMMITTED
    assert board.reset.count == 1


async def test_a_commit_that_cannot_be_stored_is_not_one() -> None:
    board = await on_trial()
    failing(board, "store", StateError("worn"))
    await refused(board, StateError, lambda: commit(board.device))
    assert board.watchdog.disarmed == 0


async def test_a_commit_that_finds_it_done_when_it_gets_the_lock() -> None:
    board = await on_trial()
    board.lock.taken = True
    answers: list[bool] = []
    async with anyio.create_task_group() as tg:

        async def second() -> None:
            answers.append(await commit(board.device))

        tg.start_soon(second)
        await anyio.sleep(0.01)
        board.state.data = (await committed()).state.data
        board.lock.taken = False
    assert answers == [False]


# --- rollback -------------------------------------------------------------------------------------------------------


async def test_a_rollback_during_a_trial() -> None:
    board = await on_trial(tries=3)
    await check_rollback(board.device)
    await rollback(board.device, sha256=digest(NEW))
    assert (board.record.state, board.flash.selected, board.reset.count) == (State.FAILED, A, 1)
    assert await boot_check(board.boot()) is Verdict.RUN
    assert (board.record.outcome, board.record.reason) == (Outcome.ROLLED_BACK, OPERATOR)
    assert board.record.failed_sha256 == digest(NEW)
    assert board.content(board.flash.running) == OLD


async def test_a_rollback_from_confirmed_and_back_again() -> None:
    board = await committed()
    for slot, running in ((A, NEW), (B, OLD)):
        await check_rollback(board.device)
        await rollback(board.device, sha256=digest(running))
        assert (board.record.state, board.flash.selected) == (State.CONFIRMED, slot)
        assert (board.record.outcome, board.record.reason) == (Outcome.ROLLED_BACK, OPERATOR)
        assert await boot_check(board.boot()) is Verdict.RUN
    assert board.reset.count == 2
    assert board.content(board.flash.running) == NEW


async def test_a_cut_between_record_and_selection_of_a_rollback_still_rolls_back_a_trial() -> None:
    board = await on_trial()
    failed = failing(board, "select", SelectError("no"))
    with pytest.raises(SelectError):
        await rollback(board.device)
    assert len(failed) == 1
    assert (board.record.state, board.record.reason, board.flash.selected) == (State.FAILED, OPERATOR, B)
    assert board.reset.count == 0
    assert await boot_check(board.boot()) is Verdict.RESET
    assert board.flash.selected is A


async def test_a_rollback_from_confirmed_that_cannot_be_selected_says_nothing_else_than_before() -> None:
    board = await committed()
    failing(board, "select", SelectError("no"))
    with pytest.raises(SelectError):
        await rollback(board.device)
    assert (board.record.state, board.record.outcome, board.record.reason) == (
        State.CONFIRMED, Outcome.COMMITTED, None,
    )  # fmt: skip
    assert board.record.failed_sha256 is None
    assert board.flash.selected is B
    assert board.reset.count == 0


async def no_image(board: Board) -> None:
    del board.flash.cells[A][:]


async def torn(board: Board) -> None:
    board.flash.cells[A][40] ^= 1


async def shorter(board: Board) -> None:
    del board.flash.cells[A][-1:]


@pytest.mark.parametrize("lost", [no_image, torn, shorter])
@pytest.mark.parametrize("situation", [on_trial, committed])
async def test_a_rollback_to_what_is_not_whole_is_refused(
    situation: Callable[[], Awaitable[Board]], lost: Callable[[Board], Awaitable[None]]
) -> None:
    board = await situation()
    await lost(board)
    for action in (rollback, check_rollback):
        await refused(board, RollbackRefusedError, lambda action=action: action(board.device))  # type: ignore[misc]


async def test_a_rollback_to_the_image_that_failed_is_refused() -> None:
    """After an automatic rollback it lies there whole."""
    board = await on_trial()
    await boot_check(board.boot())
    await boot_check(board.boot())
    assert board.content(B) == NEW
    for action in (rollback, check_rollback):
        await refused(board, RollbackRefusedError, lambda action=action: action(board.device))  # type: ignore[misc]


async def test_a_rollback_of_a_device_with_one_image_is_refused() -> None:
    board = Board()
    await refused(board, RollbackRefusedError, lambda: rollback(board.device))
    await boot_check(board.device)
    await refused(board, RollbackRefusedError, lambda: rollback(board.device))


async def test_a_rollback_before_the_reset_is_refused() -> None:
    board = await committed()
    await update(board.device, NEWER)
    await refused(board, TrialRunningError, lambda: rollback(board.device))


async def test_a_rollback_on_an_unknown_state_is_refused() -> None:
    board = await committed()
    board.state.damage()
    await refused(board, UnknownStateError, lambda: rollback(board.device))


async def test_a_rollback_while_somebody_holds_the_device_is_refused() -> None:
    board = await committed()
    board.lock.taken = True
    await refused(board, UpdateRunningError, lambda: rollback(board.device))


async def test_replayed_rollback_after_the_next_update_is_refused() -> None:
    board = await committed()
    for action in (rollback, check_rollback):
        await refused(board, WrongImageError, lambda action=action: action(board.device, sha256=digest(OLD)))  # type: ignore[misc]


async def test_a_rollback_is_not_possible_while_a_staged_image_waits() -> None:
    board = await committed()
    await update(board.device, NEWER, reset=False)
    await refused(board, RollbackRefusedError, lambda: rollback(board.device))
