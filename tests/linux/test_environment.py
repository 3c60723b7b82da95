"""How a program finds its device, and how another process does."""

import json
import os
import time
from pathlib import Path

import pytest

from mgota import Device, OtaSession, rollback
from mgota.core.geometry import Slot
from mgota.core.image import Verifier
from mgota.core.keys import PrivateKey
from mgota.errors import ConfigError, UpdateRunningError
from mgota.flash.files import FileLock
from mgota.linux.environment import LauncherInfo, device_at, device_from_environment, launcher_info
from mgota.linux.notify import NotifyReset, NotifyWatchdog


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"MGOTA_DIR": str(tmp_path), "MGOTA_SLOT": "b", "NOTIFY_SOCKET": "@x", "MGOTA_WINDOW": "7.5"}


@pytest.mark.asyncio
async def test_a_launched_program_finds_its_device(environ: dict[str, str], tmp_path: Path) -> None:
    until = time.monotonic() + 5
    device = Device.from_environment({**environ, "MGOTA_TRIAL_UNTIL": repr(until)})
    assert await device.flash.running_slot() is Slot.B
    assert device.window == 7.5
    assert device.live.trial_until == until
    assert isinstance(device.watchdog, NotifyWatchdog)
    assert isinstance(device.reset, NotifyReset)
    assert device.lock
    with device.lock.hold():
        assert (tmp_path / "lock").exists()


@pytest.mark.asyncio
async def test_a_program_that_outlived_its_turn_cannot_write(environ: dict[str, str], tmp_path: Path) -> None:
    """It believes that slot b runs; what it would take for the staging slot is what really does."""
    (tmp_path / "a").write_bytes(b"what runs")
    left_over = Device.from_environment(environ)
    with FileLock(tmp_path / "launcher").hold():
        (tmp_path / "launcher").write_bytes(LauncherInfo(os.getpid(), "@x", Slot.A).encode())
        with pytest.raises(UpdateRunningError, match="left over from slot b"):
            async with OtaSession(left_over, size=9):
                pytest.fail("it may write")
        with pytest.raises(UpdateRunningError, match="left over from slot b"):
            await rollback(left_over)
        (tmp_path / "launcher").write_bytes(LauncherInfo(os.getpid(), "@x", Slot.B).encode())
        assert left_over.lock
        with left_over.lock.hold():
            assert (tmp_path / "a").read_bytes() == b"what runs"


@pytest.mark.asyncio
async def test_options_replace_what_was_found(environ: dict[str, str]) -> None:
    verifier = Verifier(keys=[PrivateKey.generate().public])
    device = device_from_environment(environ, window=3.0, reset=None, verifier=verifier)
    assert (device.window, device.reset, device.verifier) == (3.0, None, verifier)
    assert device.live.trial_until is None


@pytest.mark.parametrize(
    ("found", "own", "holds"),
    [(None, None, None), ("1.9", None, "1.9"), (None, "1.9", "1.9"), ("1.9", "1.10", "1.10"), ("1.10", "1.9", "1.10")],
)
def test_of_two_floors_the_higher_one_holds(
    environ: dict[str, str], found: str | None, own: str | None, holds: str | None
) -> None:
    given = {"MGOTA_FLOOR": found, "MGOTA_HARDWARE": "rev-b"} if found else {}
    device = device_from_environment({**environ, **given}, **({"floor": own} if own else {}))
    assert (device.floor, device.hardware) == (holds, "rev-b" if found else None)
    assert device_from_environment({**environ, **given}, hardware="rev-c").hardware == "rev-c"


@pytest.mark.asyncio
async def test_a_program_that_nobody_supervises_runs_what_is_selected(tmp_path: Path) -> None:
    """Under systemd alone NOTIFY_SOCKET is systemd's, which knows nothing of X_MGOTA=RESET."""
    (tmp_path / "current").symlink_to("b")
    device = device_from_environment({"MGOTA_DIR": str(tmp_path), "NOTIFY_SOCKET": "@systemd"})
    assert await device.flash.running_slot() is Slot.B
    assert device.reset is None
    assert device.watchdog is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"MGOTA_DIR": ""}, "MGOTA_DIR is not set: start this program with `mgota run`"),
        ({"MGOTA_DIR": "/no/such"}, "MGOTA_DIR is no directory: /no/such"),
        ({"MGOTA_SLOT": "c"}, "MGOTA_SLOT is neither a nor b: 'c'"),
        ({"MGOTA_WINDOW": "long"}, "MGOTA_WINDOW is no number of seconds: 'long'"),
        ({"MGOTA_TRIAL_UNTIL": "nan"}, "MGOTA_TRIAL_UNTIL is no number of seconds: 'nan'"),
        ({"MGOTA_FLOOR": "nightly"}, "the floor 'nightly' is no version"),
        ({"MGOTA_HARDWARE": "a b"}, "a hardware id is"),
        ({"NOTIFY_SOCKET": "nowhere"}, "NOTIFY_SOCKET is neither"),
    ],
)
def test_a_wrong_environment_is_told_in_a_sentence(
    environ: dict[str, str], changes: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        device_from_environment({**environ, **changes})
    assert str(caught.value).startswith(sentence)


# from outside

INFO = LauncherInfo(pid=os.getpid(), notify="@x", slot=Slot.B, trial_until=123.5)


@pytest.mark.asyncio
async def test_a_living_launcher_says_what_runs(tmp_path: Path) -> None:
    with FileLock(tmp_path / "launcher").hold():
        (tmp_path / "launcher").write_bytes(INFO.encode())
        assert launcher_info(tmp_path) == INFO
        assert set(json.loads(INFO.encode())) == {"pid", "slot", "trial_until", "notify"}
        device = device_at(tmp_path)
        assert await device.flash.running_slot() is Slot.B
        assert device.live.trial_until == 123.5
        assert isinstance(device.reset, NotifyReset)
        assert not device.reset.forever
    assert launcher_info(tmp_path) is None, "it counts only while the lock is held"


@pytest.mark.asyncio
async def test_without_a_launcher_the_selected_slot_counts(tmp_path: Path) -> None:
    device = device_at(tmp_path, window=5.0)
    assert await device.flash.running_slot() is Slot.A
    assert device.reset is None
    assert device.window == 5.0
    with pytest.raises(ConfigError, match="no directory"):
        device_at(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"pid": 1}',
        b'{"pid": "x", "slot": "c", "notify": "", "trial_until": null}',
        b"\xff",
    ],
)
def test_what_is_half_written_is_looked_at_again(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileLock(tmp_path / "launcher").hold():
        (tmp_path / "launcher").write_bytes(content)
        assert launcher_info(tmp_path) is None
        monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "launcher").write_bytes(INFO.encode()))
        assert launcher_info(tmp_path) == INFO


def test_what_a_killed_launcher_left_does_not_count_while_another_looks(tmp_path: Path) -> None:
    gone = LauncherInfo(pid=2**22 + 1, notify="@x")
    with FileLock(tmp_path / "launcher").hold():
        (tmp_path / "launcher").write_bytes(gone.encode())
        assert launcher_info(tmp_path) is None
