"""Health checks: what counts as healthy, what is told of what is not, and what a trial and a watchdog make of it."""

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import pytest
from memory_device import MemoryWatchdog
from test_trial import on_trial

from mgota import ConfigError, Outcome, State, boot_check, run_trial
from mgota.core.boot import Verdict
from mgota.device import GRACE
from mgota.errors import StateError
from mgota.health import Check, Health, checks_of
from mgota.trial import keep_fed

pytestmark = pytest.mark.asyncio


async def fine() -> bool:
    return True


async def down() -> bool:
    return False


async def broken() -> bool:
    raise ConnectionRefusedError("no route to host")


async def silent() -> bool:
    await anyio.sleep_forever()
    return True


async def slow() -> bool:
    raise TimeoutError("the broker did not answer")


class Asks:
    async def __call__(self) -> bool:
        return True


def script(*answers: bool) -> Callable[[], Awaitable[bool]]:
    left = list(answers)

    async def ask() -> bool:
        return left.pop(0)

    return ask


async def test_all_have_to_say_yes() -> None:
    health = Health([fine, Check("cloud", fine)])
    assert await health.ask()
    assert (health.failing, health.reason) == ({}, None)
    health = Health([fine, down, broken, slow, Check("silent", silent, timeout=0.01)])
    assert not await health.ask()
    assert health.failing == {
        "down": "it answered no",
        "broken": "ConnectionRefusedError: no route to host",
        "slow": "the broker did not answer",
        "silent": "it did not answer within 0.01 s",
    }
    assert health.reason
    assert health.reason.startswith("health check down: it answered no; broken: ConnectionRefusedError: ")


async def test_one_that_hangs_keeps_no_other_from_answering() -> None:
    health = Health([Check("hangs", silent, timeout=30), fine, down])
    with anyio.move_on_after(0.05):
        await health.ask()
    assert health.failing == {"hangs": "it has not answered yet", "down": "it answered no"}


async def test_so_many_rounds_in_a_row() -> None:
    health = Health([script(True, True, False, True, True, True)], consecutive=3)
    assert [await health.ask() for _ in range(6)] == [False] * 5 + [True]


async def test_without_a_check_all_is_well() -> None:
    health = Health([])
    assert not health.asks
    assert await health.ask()


async def test_functions_are_checks_by_their_own_names() -> None:
    named = checks_of([fine, Check("a", fine, timeout=3), Asks(), partial(fine)])
    assert [(check.name, check.timeout) for check in named] == [
        ("fine", 10), ("a", 3), ("Asks", 10), ("partial", 10),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "make",
    [
        lambda: Check("", fine),
        lambda: Check("a", fine, timeout=0),
        lambda: Health([fine, Check("fine", down)]),
        lambda: Health([fine], consecutive=0),
    ],
)
async def test_checks_that_make_no_sense(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


async def test_what_changes_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "mgota.health")
    health = Health([Check("net", script(False, False, True))])
    for _ in range(3):
        await health.ask()
    assert [record.message for record in caplog.records] == [
        "health check net: it answered no",
        "health check net: well again",
    ]


# --- the trial -------------------------------------------------------------------------------------------------------


async def test_a_trial_is_committed_when_all_were_well_for_so_long() -> None:
    board = await on_trial()
    net, cloud = script(True, False, True, True), script(True, True, True, True)
    outcome = await run_trial(board.device, checks=[Check("net", net), cloud], consecutive=2, interval=0.001)
    assert outcome is Outcome.COMMITTED
    with pytest.raises(IndexError):
        await net()  # each was asked four times


async def test_the_record_says_which_check_failed() -> None:
    board = await on_trial(window=0.05)
    assert await run_trial(board.device, checks=[fine, Check("cloud", broken)], interval=0.01) is Outcome.ROLLED_BACK
    assert (board.record.state, board.reset.count) == (State.FAILED, 1)
    assert await boot_check(board.boot()) is Verdict.RESET
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.record.outcome is Outcome.ROLLED_BACK
    assert board.record.reason == "health check cloud: ConnectionRefusedError: no route to host"


async def test_a_reason_that_cannot_be_stored_stops_no_reset() -> None:
    board = await on_trial(window=0.05)

    def worn(op: object) -> None:
        if str(getattr(op, "what", "")).startswith("store"):
            raise StateError("worn")

    board.power.before = worn
    assert await run_trial(board.device, checks=[down], interval=0.01) is Outcome.ROLLED_BACK
    assert board.reset.count == 1


async def test_a_window_of_the_caller_counts_from_now() -> None:
    board = await on_trial(window=0.01)
    await anyio.sleep(0.02)  # the device's own is over
    answers = script(False, True)
    assert await run_trial(board.device, checks=[answers], interval=0.01, window=30) is Outcome.COMMITTED
    assert board.watchdog.armed == [0.01 + GRACE, 30 + GRACE]
    board = await on_trial(window=30)
    assert await run_trial(board.device, checks=[down], interval=0.01, window=0.05) is Outcome.ROLLED_BACK
    board = await on_trial()
    with pytest.raises(ConfigError):
        await run_trial(board.device, window=0)


# --- the watchdog ----------------------------------------------------------------------------------------------------


async def test_a_watchdog_starves_when_the_checks_fail_for_long_enough() -> None:
    watchdog, answers = MemoryWatchdog(), [True, False, False, True, *[False] * 6]
    fed: list[int] = []
    async with anyio.create_task_group() as tasks:

        async def ask() -> bool:
            fed.append(watchdog.fed)
            if not answers:
                tasks.cancel_scope.cancel()
                return False
            return answers.pop(0)

        await keep_fed(watchdog, interval=0.001, checks=[ask], patience=3)
    assert fed == [0, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6]
