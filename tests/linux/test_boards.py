"""The boards of the examples, on loop devices: an update of a partition, its trial and its commit."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

import mgota
from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.record import Outcome
from mgota.core.ubootenv import Environment, encode_copy
from mgota.device import Device
from mgota.errors import ConfigError
from mgota.flash.virtual import VirtualWatchdog
from mgota.linux.ubootenv import UbootEnvironment
from mgota.session import OtaSession
from mgota.trial import boot_check, commit

A, B = Slot
SIZE = 0x1000


@pytest.fixture
def boards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(mgota.__file__).parents[1] / "examples"))


@pytest.mark.usefixtures("boards")
@pytest.mark.program("losetup")
@pytest.mark.asyncio
async def test_a_board_with_u_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: Callable[[Path], str]
) -> None:
    uboot_board = import_module("uboot_board")

    devices = dict[Slot, str]()
    for slot in Slot:
        (tmp_path / slot).write_bytes(b"factory " * (1 << 17))
        devices[slot] = loop(tmp_path / slot)
    copy = encode_copy(Environment((b"BOOT_ORDER=A B", b"bootcmd=run x")), SIZE, flags=1)
    (tmp_path / "env").write_bytes(copy + bytes(SIZE))
    (tmp_path / "config").write_text("".join(f"{tmp_path}/env {at:#x} {SIZE:#x}\n" for at in (0, SIZE)))
    (tmp_path / "data").mkdir()
    for name, value in (
        ("DEVICES", devices),
        ("DATA", str(tmp_path / "data")),
        ("CMDLINE", tmp_path / "cmdline"),
        ("CONFIG", tmp_path / "config"),
    ):
        monkeypatch.setattr(uboot_board, name, value)

    def boot(name: str) -> Device:
        (tmp_path / "cmdline").write_text(f"quiet rauc.slot={name}\n")
        environ = {"MGOTA_DEVICE": "uboot_board:device"}
        return Device.from_environment(environ, watchdog=VirtualWatchdog(), reset=None)  # the next life is this test's

    device = boot("A")
    assert await boot_check(device) is Verdict.RUN
    image = os.urandom(300_001)
    async with OtaSession(device, size=len(image)) as ota:
        await ota.write(image)
        await ota.activate(await ota.seal())
    environment = UbootEnvironment.from_config(tmp_path / "config", lock=None)
    assert environment.variables()["BOOT_ORDER"] == "B A"
    device = boot("B")
    assert await boot_check(device, reason=uboot_board.reason(device)) is Verdict.TRIAL
    assert await commit(device)
    record = await device.state.load()
    assert record
    assert record.outcome is Outcome.COMMITTED
    wanted = {"BOOT_ORDER": "B A", "BOOT_B_LEFT": "3", "BOOT_A_LEFT": "3", "bootcmd": "run x"}
    assert environment.variables() == wanted
    with Path(devices[B]).open("rb") as file:
        assert file.read(len(image)) == image
    monkeypatch.setattr(uboot_board, "DATA", devices[B])
    with pytest.raises(ConfigError, match="would lie in the slot"):
        boot("B")


@pytest.mark.usefixtures("boards")
@pytest.mark.asyncio
async def test_a_raspberry_pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raspberry_board = import_module("raspberry_board")

    (tmp_path / "cmdline").write_text("mgota.slot=b\n")
    monkeypatch.setattr(raspberry_board, "CMDLINE", tmp_path / "cmdline")
    device = Device.from_environment({"MGOTA_DEVICE": "raspberry_board:device"})
    assert await device.flash.running_slot() is B
    assert device.watchdog
    assert device.watchdog.limit == 15
