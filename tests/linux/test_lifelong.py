"""A watchdog that is fed for life, on a driver that is played."""

import errno
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from launcher_bench import Bench, until
from watchdog_driver import Driver, about, made

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, SlotImage, State
from mgota.device import Device
from mgota.linux import lifelong
from mgota.linux.lifelong import LifelongWatchdog, left_in_order
from mgota.linux.listener import Systemd
from mgota.linux.notify import FEED
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.ports import Watchdog
from mgota.trial import boot_check, run_trial

QUICK = 0.03
"""Seconds of a timeout; the driver takes one second for it, and it is fed each hundredth."""


class Dog:
    """A watchdog of this kind, and its driver."""

    def __init__(self, directory: Path, driver: Driver, timeout: float = QUICK, *, nowayout: str = "0") -> None:
        about(directory, nowayout=nowayout)
        self.driver = driver
        self.file = directory / "watchdog"
        self.watchdog = LifelongWatchdog(made(directory, driver), timeout)

    @property
    def stopped(self) -> bool:
        return self.file.read_bytes() == b"V"

    async def is_fed(self, times: int = 3) -> None:
        """Return once it was fed some times more."""
        wanted = self.driver.feeds + times
        with anyio.fail_after(10):
            await until(lambda: self.driver.feeds >= wanted)

    async def starves(self) -> bool:
        """Whether nobody feeds it for much longer than the time in which it would be fed."""
        await anyio.sleep(0)
        before = self.driver.feeds
        await anyio.sleep(5 * QUICK)
        return self.driver.feeds == before

    @asynccontextmanager
    async def standing(self, **asked: Callable[[], bool]) -> AsyncIterator[None]:
        async with left_in_order(self.watchdog), anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: self.watchdog.stand_guard(**asked))
            yield
            tasks.cancel_scope.cancel()


@pytest.fixture
def dog(tmp_path: Path) -> Dog:
    return Dog(tmp_path, Driver())


@pytest.mark.asyncio
async def test_it_is_armed_at_once_fed_for_life_and_stopped_at_the_end(dog: Dog) -> None:
    assert isinstance(dog.watchdog, Watchdog)
    async with dog.standing():
        await dog.is_fed()
        assert dog.driver.armed_at == [1]
    assert dog.stopped


@pytest.mark.asyncio
@pytest.mark.parametrize(("cap", "timeout", "taken"), [(15, 30, 15), (15, 15, 15), (60, 30, 30)])
async def test_its_timeout_is_as_long_as_the_driver_counts(
    tmp_path: Path, cap: int, timeout: float, taken: int
) -> None:
    dog = Dog(tmp_path, Driver(cap), timeout)
    async with dog.standing():
        await until(lambda: dog.driver.timeout)
        assert dog.driver.timeout == taken
        assert dog.watchdog.limit == (cap if timeout > cap else None)


@pytest.mark.asyncio
async def test_on_trial_it_is_fed_by_nobody_else(dog: Dog) -> None:
    async with dog.standing():
        await dog.is_fed()
        await dog.watchdog.arm(12)
        assert dog.driver.timeout == 12
        assert await dog.starves()
        await dog.watchdog.feed()
        assert await dog.starves()
        await dog.watchdog.disarm()
        assert dog.driver.timeout == 1
        assert not dog.stopped
        await dog.is_fed()
        await dog.watchdog.arm(12)
    assert not dog.stopped, "a trial that its updater left is not proven"


@pytest.mark.asyncio
async def test_without_life_it_starves(dog: Dog) -> None:
    alive = True
    async with dog.standing(alive=lambda: alive):
        await dog.is_fed()
        alive = False
        assert await dog.starves()
        alive = True
        await dog.is_fed()
        before = dog.driver.feeds
        time.sleep(3 * QUICK)  # the event loop hangs
        assert dog.driver.feeds == before


@pytest.mark.asyncio
async def test_a_reset_that_does_not_come_is_given_up(dog: Dog, monkeypatch: pytest.MonkeyPatch) -> None:
    resetting = False
    async with dog.standing(resetting=lambda: resetting):
        await dog.is_fed()
        resetting = True
        await dog.is_fed()  # a shutdown takes its time
        monkeypatch.setattr(lifelong, "RESET_TIME", 0.0)
        assert await dog.starves()
        resetting = False  # the reset failed, and the program lives
        await dog.is_fed()


@pytest.mark.asyncio
async def test_a_driver_that_refuses_is_told_of_and_asked_again(dog: Dog, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    dog.driver.fails = errno.EIO
    async with dog.standing():
        await until(lambda: "cannot be armed" in caplog.text)
        dog.driver.fails = None
        await dog.is_fed()
        dog.driver.fails = errno.EIO
        await until(lambda: "cannot be fed" in caplog.text)
        dog.driver.fails = None
        await dog.is_fed()


@pytest.mark.asyncio
async def test_a_cancellation_stops_it_and_an_exception_does_not(tmp_path: Path) -> None:
    for name, raises in (("cancelled", False), ("failed", True)):
        (tmp_path / name).mkdir()
        dog = Dog(tmp_path / name, Driver())
        with anyio.CancelScope() as scope:
            try:
                async with left_in_order(dog.watchdog):
                    await dog.watchdog.disarm()  # on guard
                    if raises:
                        raise RuntimeError("a mistake")
                    scope.cancel()
                    await anyio.sleep_forever()
            except RuntimeError:
                pass
        assert dog.stopped is not raises
    async with left_in_order(None):
        pass


@pytest.mark.asyncio
async def test_a_commit_needs_no_reset_even_if_nobody_can_stop_it(tmp_path: Path) -> None:
    dog = Dog(tmp_path, Driver(), nowayout="1")
    for slot in Slot:
        (tmp_path / slot).write_bytes(b"image")
    (tmp_path / "current").symlink_to("b")
    state = FileState(tmp_path / "state")
    image = SlotImage(size=5, image_size=5, sha256="0" * 64, proven=True)
    await state.store(BootRecord(revision=1, state=State.TESTING, trial=Slot.B, tries=1, a=image, b=image))
    device = Device(flash=FileSlots(tmp_path), state=state, watchdog=dog.watchdog, window=30)
    async with dog.standing(resetting=lambda: device.live.resetting):
        await dog.is_fed()
        assert await boot_check(device) is Verdict.TRIAL
        assert dog.driver.timeout == 15
        assert await dog.starves()

        async def healthy() -> bool:
            return True

        assert await run_trial(device, checks=[healthy], interval=0.01) is Outcome.COMMITTED
        assert not device.live.resetting
        assert dog.driver.timeout == 1
        await dog.is_fed()
    assert not dog.stopped  # it cannot be


def test_the_reason_of_the_last_reset_is_the_inner_one_s(tmp_path: Path) -> None:
    dog = Dog(tmp_path, Driver())
    assert dog.watchdog.last_reset is None
    about(tmp_path, bootstatus="32")
    assert dog.watchdog.last_reset == "the watchdog reset the device"


@pytest.mark.asyncio
async def test_the_launcher_feeds_it_until_it_ends(dog: Dog, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "device")
    bench.install("import time\ntime.sleep(1000)\n")
    async with bench.launched(guard=dog.watchdog):
        await dog.is_fed(10)
    assert dog.stopped


def test_a_program_that_has_begun_to_feed_has_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    systemd = Systemd(None, None)
    assert systemd.lives(5)  # it has not begun, and is not asked to
    systemd.forward(FEED)
    now += 5
    assert systemd.lives(5)
    now += 0.01
    assert not systemd.lives(5)
    assert systemd.lives(None)  # nobody counts
    systemd.feeds_itself = True  # it was ended
    assert systemd.lives(5)
