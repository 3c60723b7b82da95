"""From a configuration file to a device: every section, on files in the place of devices."""

import os
import re
from collections.abc import Callable
from configparser import ConfigParser
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

import mgota
from mgota.core.boot import Verdict
from mgota.core.bootvars import BootCount, BootOrder
from mgota.core.config import Config, read_config
from mgota.core.geometry import Slot
from mgota.core.keys import PrivateKey
from mgota.core.record import BootRecord, State
from mgota.core.register import Form
from mgota.core.sections import SelectorSection
from mgota.core.ubootenv import Environment, encode_copy
from mgota.device import Device
from mgota.errors import ConfigError, StateError
from mgota.linux import configured
from mgota.linux.configured import (
    board_of,
    device_of,
    load_config,
    refuse_selection_inside_slots,
    reset_of,
    running_of,
    selector_of,
    state_of,
    state_place,
    watchdog_of,
)
from mgota.linux.efi import EfiSelector
from mgota.linux.lifelong import LifelongWatchdog
from mgota.linux.notify import NotifyWatchdog
from mgota.linux.reset import RebootCommand
from mgota.linux.script import ScriptSelector
from mgota.linux.sdboot import SystemdBootSelector
from mgota.linux.selected import SelectedSlots
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.linux.states import CellState, RegisterState, VariableState
from mgota.linux.symlink import SymlinkSelector
from mgota.linux.tryboot import AUTOBOOT, TrybootSelector
from mgota.linux.uboot import UbootSelector
from mgota.linux.watchdog import HardwareWatchdog
from mgota.session import OtaSession
from mgota.trial import boot_check

A, B = Slot
SIZE = 0x1000


class Board:
    """A directory with what a board has."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for slot in Slot:
            (root / f"slot-{slot}").write_bytes(b"factory " * 4096)
        (root / "data").mkdir()
        self.boot(A)
        copy = encode_copy(Environment((b"BOOT_ORDER=A B", b"bootcmd=run x")), SIZE, flags=1)
        (root / "env").write_bytes(copy + bytes(SIZE))
        (root / "fw_env.config").write_text("".join(f"{root}/env {at:#x} {SIZE:#x}\n" for at in (0, SIZE)))

    def boot(self, slot: Slot) -> None:
        (self.root / "cmdline").write_text(f"quiet mgota.slot={slot}\n")

    @property
    def uboot(self) -> str:
        return f'[selector]\nkind = "uboot"\nconfig = "{self.root}/fw_env.config"\nlock = "{self.root}/env.lock"\n'

    def text(self, selector: str | None = None, more: str = "", device: str = "", slots: str = "") -> str:
        root = self.root
        return (
            f'[device]\ndata = "{root}/data"\nlock = "{root}/lock"\nreboot = ["true"]\n{device}\n'
            f'[slots]\nkind = "block"\na = "{root}/slot-a"\nb = "{root}/slot-b"\ncmdline = "{root}/cmdline"\n{slots}\n'
            f"{self.uboot if selector is None else selector}\n{more}\n"
        )

    def config(self, *args: str, **kwargs: str) -> Config:
        return read_config(self.text(*args, **kwargs), "mgota.toml")


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def section(text: str) -> SelectorSection:
    found = read_config(
        f"[device]\ndata = '/d'\n[slots]\nkind = 'block'\na = '/a'\nb = '/b'\n[selector]\n{text}", "x"
    ).selector
    assert found
    return found


@pytest.mark.asyncio
async def test_a_board_boots_and_keeps_its_record_and_history(board: Board) -> None:
    device = device_of(board.config(device='window = 90\ntries = 2\nfloor = "1.0"\nhardware = "gw"'))
    assert (device.window, device.tries, device.floor, device.hardware) == (90.0, 2, "1.0", "gw")
    assert device.watchdog is None
    assert isinstance(device.flash, SelectedSlots)
    assert isinstance(device.reset, RebootCommand)
    assert device.reset.command == ("true",)
    assert isinstance(device.state, FileState)
    assert device.state.path == board.root / "data/state"
    assert device.lock
    with device.lock.hold():
        assert (board.root / "lock").exists()
    assert await device.flash.running_slot() is A
    board.boot(B)
    assert await device_of(board.config()).flash.running_slot() is B
    selector = device.flash.selector
    assert await selector.selected_slot() is A
    await selector.selftest()


@pytest.mark.parametrize("kind", ["uboot", "grub", "symlink"])
def test_a_slot_that_holds_what_selects_it_is_refused(board: Board, kind: str) -> None:
    slot = board.root / "slot-b"
    (board.root / "fw_env.config").write_text(f"{slot} 0x0 {SIZE:#x}\n")
    selector = board.uboot if kind == "uboot" else f'[selector]\nkind = "{kind}"\npath = "{slot}"\n'
    with pytest.raises(ConfigError, match="would lie in the slot"):
        refuse_selection_inside_slots(board.config(selector))
    with pytest.raises(ConfigError, match="would lie in the slot" if kind != "symlink" else "slot"):
        device_of(board.config(selector))
    refuse_selection_inside_slots(board.config("[selector]\nkind = 'script'\ncommand = ['x']\n"))
    refuse_selection_inside_slots(read_config("[slots]\ndirectory = '/d'\n", "x"))


@pytest.mark.asyncio
async def test_slots_that_are_files(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"first")
    device = device_of(read_config(f"[slots]\ndirectory = '{tmp_path}/d'\n[device]\nwindow = 7\n", "x"))
    assert isinstance(device.flash, FileSlots)
    assert device.window == 7
    assert await boot_check(device) is Verdict.RUN
    async with OtaSession(device, size=3) as ota:
        await ota.write(b"two")
        await ota.activate(await ota.seal())
    assert (tmp_path / "d" / "history").read_text().count('"testing"') == 1
    with pytest.raises(ConfigError, match="there is no directory"):
        device_of(read_config(f"[slots]\ndirectory = '{tmp_path}/e'\n", "x"))


def test_keys_are_read_and_told_by_their_names(board: Board) -> None:
    key = PrivateKey.generate().public
    (board.root / "k.pem").write_bytes(key.pem())
    (board.root / "no.pem").write_bytes(b"nothing")
    device = device_of(board.config(more=f'[keys]\nimages = ["{board.root}/k.pem"]\ntrailer = "mgsg"'))
    assert device.verifier
    assert (list(device.verifier.keys), device.verifier.trailer.value) == ([key], "mgsg")
    for name, why in (("no.pem", "not a public key"), ("gone.pem", "cannot be read: No such file")):
        with pytest.raises(ConfigError, match=f"the public key .*/{name}.* {why}"):
            device_of(board.config(more=f'[keys]\nimages = ["{board.root}/{name}"]'))


def test_u_boot_has_two_conventions(board: Board) -> None:
    found = selector_of(section(f"{board.uboot[11:]}attempts = 5\na = 'one'\nb = 'two'"))
    assert isinstance(found, UbootSelector)
    assert found.convention == BootOrder({A: "one", B: "two"}, attempts=5)
    found = selector_of(section(f"{board.uboot[11:]}convention = 'bootcount'\nvariable = 'part'\na = '2'\nb = '3'"))
    assert isinstance(found, UbootSelector)
    assert found.convention == BootCount("part", {A: "2", B: "3"}, 1)
    with pytest.raises(ConfigError, match=r"/gone cannot be read"):
        selector_of(section("kind = 'uboot'\nconfig = '/gone'"))


@pytest.mark.asyncio
async def test_other_selectors(board: Board) -> None:
    entries = {slot: board.root / f"{slot}.conf" for slot in Slot}
    for path in entries.values():
        path.write_text("title x\nlinux /vmlinuz\n")
    found: Any = selector_of(section(f"kind = 'systemd-boot'\na = '{entries[A]}'\nb = '{entries[B]}'\npath = '/e'"))
    assert isinstance(found, SystemdBootSelector)
    assert (found.directory, found.attempts, found.templates[B]) == (Path("/e"), 3, "title x\nlinux /vmlinuz\n")
    with pytest.raises(ConfigError, match=r"selector\.b: the boot entry .*/gone cannot be read"):
        selector_of(section(f"kind = 'systemd-boot'\na = '{entries[A]}'\nb = '{board.root}/gone'"))
    found = selector_of(section("kind = 'efi'\na = '000A'\nb = '0003'"))
    assert isinstance(found, EfiSelector)
    assert found.entries == {A: 10, B: 3}
    found = selector_of(section("kind = 'symlink'\npath = '/l'\na = 'x'\nb = 'y'"))
    assert isinstance(found, SymlinkSelector)
    assert (found.path, found.targets) == (Path("/l"), {A: "x", B: "y"})
    found = selector_of(section("kind = 'script'\ncommand = ['sh', '-c', 'echo b']\ntimeout = 3"))
    assert isinstance(found, ScriptSelector)
    assert found.timeout == 3
    assert await found.selected_slot() is B
    found = selector_of(section(f"kind = 'grub'\npath = '{board.root}/grubenv'"))
    assert found.environment.path == board.root / "grubenv"


def test_a_raspberry_pi_is_asked_where_its_firmware_booted(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    config = board.config("[selector]\nkind = 'tryboot'\na = '2'\nb = '3'\n")
    device = device_of(config)
    assert isinstance(device.flash, SelectedSlots)
    selector = device.flash.selector
    assert isinstance(selector, TrybootSelector)
    (board.root / "cmdline").write_text("quiet\n")
    monkeypatch.setattr(configured, "running_partition", lambda: 3)
    assert running_of(config, selector) is B
    monkeypatch.setattr(configured, "running_partition", lambda: 1)
    with pytest.raises(ConfigError, match="the firmware booted partition 1, which is neither slot's"):
        running_of(config, selector)
    with pytest.raises(ConfigError, match="which slot runs"):
        device_of(board.config())
    assert isinstance(device.reset, RebootCommand)


def test_the_names_of_u_boot_are_those_of_the_command_line(board: Board) -> None:
    (board.root / "cmdline").write_text("rauc.slot=system1\n")
    config = board.config(f"{board.uboot}a = 'system0'\nb = 'system1'\n")
    assert config.selector
    assert running_of(config, selector_of(config.selector)) is B


def cells(root: Path) -> str:
    (root / "eeprom").write_bytes(b"\xff" * 4096)
    return f"kind = 'cells'\npath = '{root}/eeprom'\nsize = 2048\noffset = 512"


def register(root: Path) -> str:
    (root / "mem").write_bytes(bytes(8192))
    return f"kind = 'register'\npath = '{root}/mem'\naddress = 0x1004\nraw = true\nrecord = '{root}/data/r'"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda root: f"path = '{root}/data/other'", FileState),
        (lambda _: "kind = 'uboot'\nvariable = 'boot_record'", VariableState),
        (cells, CellState),
        (register, RegisterState),
    ],
)
@pytest.mark.asyncio
async def test_states(board: Board, make: Callable[[Path], str], kind: type) -> None:
    config = board.config(more=f"[state]\n{make(board.root)}\n")
    device = board_of(config)
    assert isinstance(device.state, kind)
    assert await device.state.load() is None
    await device.state.store(BootRecord(revision=7, state=State.CONFIRMED))
    assert await device_of(config).state.load() == BootRecord(revision=7, state=State.CONFIRMED)
    if isinstance(device.state, RegisterState):
        assert (device.state.form, device.state.register.address) == (Form.RAW, 0x1004)
    if isinstance(device.state, VariableState):
        assert "boot_record" in device.state.environment.variables()
    if isinstance(device.state, CellState):
        assert (board.root / "eeprom").read_bytes()[:512] == b"\xff" * 512
    if isinstance(device.state, FileState):
        assert (board.root / "data/other").exists()


@pytest.mark.parametrize("state", ["path = '{}/slot-b'", "kind = 'cells'\nsize = 512\npath = '{}/slot-b'"])
def test_a_record_inside_a_slot_is_refused(board: Board, state: str) -> None:
    with pytest.raises(ConfigError, match="would lie in the slot"):
        state_of(board.config(more=f"[state]\n{state.format(board.root)}"))


def test_watchdogs(board: Board) -> None:
    found: Any = watchdog_of(board.config(more="[watchdog]\nkind = 'device'\npath = '/dev/watchdog1'\nlimit = 15"), {})
    assert isinstance(found, HardwareWatchdog)
    assert (found.path, found.limit) == (Path("/dev/watchdog1"), 15)
    always: Any = watchdog_of(board.config(more="[watchdog]\nkind = 'device'\nalways = true\ntimeout = 45"), {})
    assert isinstance(always, LifelongWatchdog)
    assert (always.inner.path, always.timeout) == (Path("/dev/watchdog"), 45)
    systemd = board.config(more="[watchdog]\nkind = 'systemd'")
    assert isinstance(watchdog_of(systemd, {"NOTIFY_SOCKET": "/run/x"}), NotifyWatchdog)
    with pytest.raises(ConfigError, match="systemd does not watch this process"):
        watchdog_of(systemd, {})
    assert watchdog_of(board.config(), {}) is None
    assert isinstance(board_of(board.config(), found), Device)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff", "is no text in UTF-8"),
        (b"#" * 65537, "is longer than 65536 bytes"),
        (b"[slots]\nx = 1\n", r"mgota\.toml:2: slots\.x: there is no such key"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, data: bytes | None, said: str) -> None:
    path = tmp_path / "mgota.toml"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=said):
        load_config(path)
    path.write_bytes(f"[slots]\ndirectory = '{tmp_path}'\n".encode().ljust(65536, b"#"))
    assert load_config(path).data == os.fspath(tmp_path)


def test_slots_that_are_not_there(board: Board) -> None:
    text = board.text().replace("/slot-b", "/gone")
    with pytest.raises(ConfigError, match="cannot be looked at"):
        device_of(read_config(text, "x"))
    text = board.text().replace(f"{board.root}/slot-b", "PARTUUID=00000000-99")
    with pytest.raises(ConfigError, match="no device is PARTUUID=00000000-99"):
        device_of(read_config(text, "x"))
    (board.root / "slot-b").unlink()
    (board.root / "slot-b").symlink_to(board.root / "slot-a")
    with pytest.raises(ConfigError, match="both slots are"):
        device_of(board.config())


@pytest.mark.asyncio
async def test_cells_that_are_too_few_and_a_register_that_is_not_there(board: Board) -> None:
    with pytest.raises(ConfigError, match="too small for two cells"):
        state_of(board.config(more=f"[state]\nkind = 'cells'\nsize = 64\npath = '{board.root}/env'"))
    with pytest.raises(ConfigError, match="multiple of four"):
        state_of(board.config(more="[state]\nkind = 'register'\naddress = 2"))
    state = state_of(board.config(more=f"[state]\nkind = 'cells'\nsize = 512\npath = '{board.root}/data/none'"))
    with pytest.raises(StateError, match="cannot be read"):
        await state.load()


EXAMPLES = Path(mgota.__file__).parents[1] / "examples"


@pytest.mark.parametrize("name", ["uboot_board", "raspberry_board"])
def test_the_examples_say_what_the_boards_in_python_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    board = import_module(name)
    config = load_config(EXAMPLES / f"{name}.toml")
    assert config.selector
    assert {A: config.slots.a, B: config.slots.b} == board.DEVICES
    assert config.data == board.DATA
    assert config.keys.images
    assert config.health
    found: Any = watchdog_of(config, {})
    if name == "raspberry_board":
        selector = selector_of(config.selector)
        assert isinstance(selector, TrybootSelector)
        assert (selector.partitions, str(selector.path)) == (board.BOOT, AUTOBOOT)
        assert found.limit == 15
        selector._trial = B
        assert reset_of(config, selector).command == ("reboot",)
    else:
        assert (config.selector.kind, config.selector.convention, found.limit) == ("uboot", "rauc", None)
        assert config.selector.config == board.CONFIG
    assert state_place(config) == Path(board.DATA, "state")


def test_the_unit_starts_what_there_is() -> None:
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((EXAMPLES / "mgota-board.service").read_text())
    assert unit["Service"]["ExecStart"].split()[1:] == ["run", "--config", configured.CONFIG]
    assert (unit["Service"]["Type"], unit["Service"]["Restart"]) == ("notify", "always")


def test_the_specification_names_every_key() -> None:
    text = (EXAMPLES.parent / "SPEC.md").read_text().partition("## Configuration")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `\[(\w+)\]` \| (.*) \|$", text, re.MULTILINE))
    assert set(rows) == {one.name for one in fields(Config)}
    for name, kind in get_type_hints(Config).items():
        section = next(one for one in (*get_args(kind), kind) if is_dataclass(one))
        missing = {one.name for one in fields(section)} - set(re.findall(r"`([\w-]+)`", rows[name]))
        assert not missing, (name, missing)
