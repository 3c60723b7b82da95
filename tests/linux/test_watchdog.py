"""The kernel's watchdog on a driver that is played: caps, refusals, the last V. tests/sbc has a real one."""

import errno
import os
import time
from pathlib import Path

import anyio
import pytest
from watchdog_driver import Driver, about, made

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, SlotImage, State
from mgota.device import Device
from mgota.errors import ConfigError
from mgota.linux import watchdog as module
from mgota.linux.ioctl import request
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.linux.watchdog import GETSUPPORT, GETTIMEOUT, KEEPALIVE, SETTIMEOUT, HardwareWatchdog
from mgota.ports import Watchdog
from mgota.trial import boot_check, run_trial


def test_the_requests_have_the_kernel_s_numbers() -> None:
    assert (GETSUPPORT, KEEPALIVE, SETTIMEOUT, GETTIMEOUT, module.GETBOOTSTATUS) == (
        0x80285700,
        0x80045705,
        0xC0045706,
        0x80045707,
        0x80045702,
    )
    assert request("M", 0) == 0x4D00


@pytest.mark.asyncio
@pytest.mark.parametrize("clamps", [False, True])
@pytest.mark.parametrize(
    ("cap", "wanted", "taken"), [(15, 60, 15), (15, 15, 15), (15, 16, 15), (15, 14.2, 15), (1, 60, 1), (2046, 60, 60)]
)
async def test_the_longest_timeout_that_the_driver_takes(
    tmp_path: Path, clamps: bool, cap: int, wanted: float, taken: int
) -> None:
    driver = Driver(cap, clamps=clamps)
    dog = made(tmp_path, driver)
    assert isinstance(dog, Watchdog)
    assert dog.limit is None
    await dog.arm(wanted)
    assert (driver.timeout, driver.feeds) == (taken, 1)
    assert dog.limit == (cap if wanted > cap else None)
    await dog.arm(wanted)
    assert driver.timeout == taken
    await dog.arm(0.01)
    assert driver.timeout == 1


@pytest.mark.asyncio
async def test_a_chip_that_counts_one_time_only(tmp_path: Path) -> None:
    dog = made(tmp_path, Driver(fixed=22))
    await dog.arm(60)
    assert dog.limit == 22


@pytest.mark.asyncio
async def test_a_limit_that_is_known_is_not_searched(tmp_path: Path) -> None:
    driver = Driver(15)
    await made(tmp_path, driver, limit=15).arm(60)
    assert driver.armed_at == [15]


@pytest.mark.asyncio
async def test_what_cannot_be_armed_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        await HardwareWatchdog(tmp_path / "none").arm(5)
    with pytest.raises(ConfigError, match="takes no timeout of up to 9 s"):
        await made(tmp_path, Driver(0)).arm(9)
    driver = Driver()
    dog = made(tmp_path, driver)
    await dog.arm(5)
    driver.fails = errno.EIO
    with pytest.raises(ConfigError, match="cannot be armed: Input/output"):
        await dog.arm(5)
    with pytest.raises(ConfigError, match="cannot be fed: Input/output"):
        await dog.feed()

    def busy(*_: object) -> int:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(ConfigError, match="RuntimeWatchdogSec"):
        await made(tmp_path, Driver()).arm(5)


@pytest.mark.asyncio
async def test_it_is_stopped_by_a_last_v_and_only_so(tmp_path: Path) -> None:
    driver = Driver()
    dog = made(tmp_path, driver)
    await dog.disarm()
    await dog.feed()
    assert driver.feeds == 0, "what is not armed is not fed"
    await dog.arm(5)
    await dog.feed()
    assert driver.feeds == 2
    assert dog.stoppable
    await dog.disarm()
    assert (tmp_path / "watchdog").read_bytes() == b"V"
    await dog.feed()
    assert driver.feeds == 2
    await dog.arm(5)
    assert driver.feeds == 3, "and armed again"


@pytest.mark.asyncio
@pytest.mark.parametrize("why", ["nowayout", "no magic close"])
async def test_what_cannot_be_stopped_goes_on(tmp_path: Path, why: str) -> None:
    if why == "nowayout":
        about(tmp_path, nowayout="1")
    driver = Driver(options=0x8180 if why == "nowayout" else 0x8080)
    dog = made(tmp_path, driver)
    await dog.arm(5)
    assert not dog.stoppable
    await dog.disarm()
    assert (tmp_path / "watchdog").read_bytes() == b""
    await dog.feed()
    assert driver.feeds == 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [("32", "the watchdog reset the device"), ("0x20", "the watchdog reset the device"), ("0", None), ("x", None)],
)
def test_the_reason_of_the_last_reset(tmp_path: Path, status: str, reason: str | None) -> None:
    about(tmp_path, "watchdog1", bootstatus=status, identity="i6300ESB timer")
    dog = made(tmp_path, Driver(), name="watchdog1")
    assert dog.last_reset == reason
    assert dog.identity == "i6300ESB timer"
    assert (made(tmp_path, Driver()).last_reset, made(tmp_path, Driver()).identity) == (None, None)


@pytest.mark.asyncio
async def test_without_sysfs_the_reason_is_known_once_it_is_armed(tmp_path: Path) -> None:
    driver = Driver()
    driver.status = 0x21
    dog = made(tmp_path, driver)
    await dog.arm(5)
    assert dog.last_reset == "the watchdog reset the device"


@pytest.mark.asyncio
async def test_a_window_beyond_the_cap_is_fed_and_then_it_bites(tmp_path: Path) -> None:
    driver = Driver(1)
    image = SlotImage(size=1, image_size=1, sha256="0" * 64)
    state = FileState(tmp_path / "state")
    await state.store(BootRecord(state=State.TESTING, trial=Slot.B, swaps=1, tries=1, b=image))
    dog = made(tmp_path, driver)
    device = Device(flash=FileSlots(tmp_path, running=Slot.B), state=state, watchdog=dog, window=2.0)
    await boot_check(device)
    assert dog.limit == 1
    assert await run_trial(device, interval=0.05) is Outcome.ROLLED_BACK
    assert driver.feeds >= 2, "fed until its last timeout ends with the window"
    feeds = driver.feeds
    assert (tmp_path / "watchdog").read_bytes() == b"", "and nobody stops it then"
    await anyio.sleep(0.1)
    assert driver.feeds == feeds


@pytest.mark.asyncio
async def test_a_loop_that_hangs_starves_it(tmp_path: Path) -> None:
    driver = Driver(1)
    dog = made(tmp_path, driver)
    await dog.arm(60)
    async with anyio.create_task_group() as tg:

        async def feed() -> None:
            while True:
                await dog.feed()
                await anyio.sleep(0.01)

        tg.start_soon(feed)
        await anyio.sleep(0.05)
        before = driver.feeds
        time.sleep(0.1)  # the application hangs
        assert driver.feeds == before
        tg.cancel_scope.cancel()
