"""A reset line and a watchdog without a chip."""

import anyio
import pytest

from mgota.errors import ConfigError
from mgota.flash.virtual import VirtualReset, VirtualWatchdog
from mgota.ports import Resetter, Watchdog

pytestmark = pytest.mark.asyncio


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


async def test_a_reset_does_not_return_and_the_runner_sees_it() -> None:
    reset, returned = VirtualReset(), False
    assert isinstance(reset, Resetter)

    async def device() -> None:
        nonlocal returned
        await reset.reset()
        returned = True

    for _ in range(2):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(device)
            await reset.wait()
            assert reset.reason == "software"
            tasks.cancel_scope.cancel()
        reset.clear()
        assert reset.reason is None
    assert not returned


async def test_a_window_is_counted_from_the_last_feed() -> None:
    clock = Clock()
    dog = VirtualWatchdog(clock=clock)
    assert isinstance(dog, Watchdog)
    assert (dog.limit, dog.stoppable, dog.deadline) == (None, True, None)
    await dog.feed()  # not armed: nothing
    assert dog.deadline is None
    await dog.arm(10)
    clock.now += 9
    await dog.feed()
    assert dog.deadline == 119
    await dog.arm(2)
    assert dog.deadline == 111
    await dog.disarm()
    assert dog.deadline is None


async def test_what_ran_out_is_not_fed_armed_or_disarmed_any_more() -> None:
    clock = Clock()
    dog = VirtualWatchdog(clock=clock)
    await dog.arm(10)
    clock.now += 10
    await dog.feed()
    await dog.arm(5)
    await dog.disarm()
    assert dog.deadline == 110
    with anyio.fail_after(10):
        await dog.expired()
    dog.restart()
    assert dog.deadline is None


async def test_one_that_cannot_be_stopped_goes_on() -> None:
    dog = VirtualWatchdog(limit=65.52, stoppable=False, clock=Clock())
    await dog.arm(65.52)
    await dog.disarm()
    assert dog.deadline == 100 + 65.52
    assert (dog.limit, dog.stoppable) == (65.52, False)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), 65.53])
async def test_what_cannot_be_counted_is_refused(timeout: float) -> None:
    dog = VirtualWatchdog(limit=65.52)
    with pytest.raises(ConfigError):
        await dog.arm(timeout)
    assert dog.deadline is None


async def test_expired_follows_arming_feeding_and_disarming() -> None:
    dog, seen = VirtualWatchdog(), list[str]()

    async def watch() -> None:
        await dog.expired()
        seen.append("expired")

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            await dog.arm(3600)
            await anyio.wait_all_tasks_blocked()
            await dog.disarm()
            await anyio.wait_all_tasks_blocked()
            await dog.arm(3600)
            await anyio.wait_all_tasks_blocked()
            await dog.feed()
            assert not seen
            await dog.arm(0.02)
    assert seen == ["expired"]
