"""U-Boot's environment where it lies: with U-Boot's own tools, with a crash at every write, with a device around it."""

import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import pytest

from mgota.core.boot import Verdict
from mgota.core.bootvars import BootCount, BootOrder
from mgota.core.geometry import Slot
from mgota.core.record import Outcome, State
from mgota.core.ubootenv import EnvPlace
from mgota.device import Device
from mgota.errors import ConfigError, FlashError, OtaError, ReadError, SelectError, VerifyError
from mgota.flash.files import FileLock
from mgota.linux import ubootenv
from mgota.linux.selected import SelectedSlots
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.linux.uboot import UbootSelector
from mgota.linux.ubootenv import UbootEnvironment
from mgota.ports import BlockingReads, CountingBackend, FlashBackend, FlashWriter, Selector
from mgota.session import OtaSession
from mgota.testing import CrashPoint, Order, every_crash
from mgota.trial import boot_check, commit, rollback

A, B = Slot
SIZE = 0x2000
TEXT = "\n".join(["BOOT_ORDER=A B", "bootcmd=run x", *(f"variable{n}={'v' * 40} {n}" for n in range(80))])
"""Several sectors of variables."""

tools = pytest.mark.program("fw_printenv", "fw_setenv", "mkenvimage")
KINDS = pytest.mark.parametrize("redundant", [False, True], ids=["single", "redundant"])


def make(directory: Path, *, redundant: bool, text: str = TEXT, whole: bool = False) -> UbootEnvironment:
    """An environment as mkenvimage makes it, in a larger file, and the configuration that says where."""
    (directory / "text").write_text(text)
    image, offset = directory / "image", 0 if whole else 0x1000
    command: list[str | Path] = [
        "mkenvimage",
        *(["-r"] if redundant else []),
        "-s",
        hex(SIZE),
        "-o",
        directory / "one",
        directory / "text",
    ]
    subprocess.run(command, check=True)
    one = (directory / "one").read_bytes()
    image.write_bytes(bytes(offset) + one * (2 if redundant else 1) + bytes(offset))
    starts = [offset, offset + SIZE] if redundant else [offset]
    (directory / "config").write_text("".join(f"{image} {start:#x} {SIZE:#x}\n" for start in starts))
    return opened(directory)


def opened(directory: Path) -> UbootEnvironment:
    return UbootEnvironment.from_config(directory / "config", lock=directory / "lock")


def printed(directory: Path) -> dict[str, str]:
    command: list[str | Path] = ["fw_printenv", "-c", directory / "config"]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in found.splitlines())


def set_by_tool(directory: Path, name: str, value: str) -> None:
    subprocess.run(["fw_setenv", "-c", directory / "config", name, value], check=True)


@tools
@KINDS
def test_the_tools_of_u_boot_and_we_understand_each_other(tmp_path: Path, redundant: bool) -> None:
    environment = make(tmp_path, redundant=redundant)
    assert environment.variables() == printed(tmp_path)
    for turn in range(300 if redundant else 5):  # past the wrap of the flags
        if turn % 100 < 5 or 250 < turn < 260:
            set_by_tool(tmp_path, "turn", f"tool {turn}")
            assert environment.variables()["turn"] == f"tool {turn}"
        assert environment.change(lambda _, turn=turn: {"turn": f"we {turn}", "ß": None if turn % 2 else "ä$;x"})  # type: ignore[misc]
        if turn % 100 < 5 or 250 < turn < 260:
            assert printed(tmp_path) == environment.variables()
            assert environment.variables()["turn"] == f"we {turn}"
    assert not environment.change(lambda _: {})


@tools
def test_a_change_writes_the_copy_that_does_not_count(tmp_path: Path) -> None:
    environment = make(tmp_path, redundant=True)
    for turn in range(4):
        before = (tmp_path / "image").read_bytes()
        environment.rewrite()
        after = (tmp_path / "image").read_bytes()
        changed = {(at - 0x1000) // SIZE for at in range(len(before)) if before[at] != after[at]}
        assert changed == {1 - turn % 2}


@tools
@KINDS
def test_without_a_good_copy_nothing_is_written(tmp_path: Path, redundant: bool) -> None:
    environment = make(tmp_path, redundant=redundant)
    image = bytearray((tmp_path / "image").read_bytes())
    for start in (0x1000, 0x1000 + SIZE):
        image[start + 100] ^= 1
    (tmp_path / "image").write_bytes(image)
    for call in (environment.variables, environment.rewrite, lambda: environment.change(lambda _: {"x": "y"})):
        with pytest.raises(ReadError, match="no good copy"):
            call()
    assert (tmp_path / "image").read_bytes() == image


@tools
def test_one_bad_copy_is_written_over(tmp_path: Path) -> None:
    environment = make(tmp_path, redundant=True)
    image = bytearray((tmp_path / "image").read_bytes())
    image[0x1000 + 100] ^= 1
    (tmp_path / "image").write_bytes(image)
    assert environment.change(lambda _: {"x": "y"})
    assert printed(tmp_path)["x"] == "y"


@tools
@KINDS
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("order", list(Order))
def test_a_change_survives_every_crash(tmp_path: Path, redundant: bool, whole: bool, order: Order) -> None:
    """A single copy on a device: as long as the change stays within its first sector, which BOOT_ORDER does."""
    order_of = ["A B", "B A", "A  "]

    def prepare(directory: Path) -> None:
        make(directory, redundant=redundant, whole=whole)
        config = (directory / "config").read_text().replace(str(directory), str(tmp_path / "DIR"))
        (directory / "config").write_text(config)

    def at(directory: Path) -> UbootEnvironment:
        places = UbootEnvironment.from_config(directory / "config").places
        here = tuple(EnvPlace(str(directory / "image"), place.offset, place.size) for place in places)
        return UbootEnvironment(here, lock=None)

    def action(directory: Path, mark: Callable[[object], None]) -> None:
        for value in order_of[1:]:
            at(directory).change(lambda _, value=value: {"BOOT_ORDER": value})  # type: ignore[misc]
            mark(value)

    def check(directory: Path, point: CrashPoint) -> None:
        found = at(directory).variables()
        assert found["BOOT_ORDER"] in order_of[len(point.marks) :][:2]
        assert len(found) == 82

    report = every_crash(action, check, tmp_path, prepare=prepare, order=order, limit=64)
    assert report.checked > 4


@tools
def test_a_torn_single_copy_is_an_error_and_never_an_empty_environment(tmp_path: Path) -> None:
    def prepare(directory: Path) -> None:
        make(directory, redundant=False)

    def at(directory: Path) -> UbootEnvironment:
        return UbootEnvironment((EnvPlace(str(directory / "image"), 0x1000, SIZE),), lock=None)

    def action(directory: Path, _: Callable[[object], None]) -> None:
        at(directory).change(lambda _: {"A": "x" * 50, "variable70": "longer " * 9})

    torn = 0

    def check(directory: Path, _: CrashPoint) -> None:
        nonlocal torn
        before = (directory / "image").read_bytes()
        try:
            assert len(at(directory).variables()) in (82, 83)
        except ReadError:
            torn += 1
            with suppress(FlashError):
                at(directory).change(lambda _: {"x": "y"})
            assert (directory / "image").read_bytes() == before

    every_crash(action, check, tmp_path, prepare=prepare, limit=64)
    assert torn > 10


@tools
def test_who_holds_the_lock_is_waited_for_and_not_for_ever(tmp_path: Path) -> None:
    make(tmp_path, redundant=True)
    environment = UbootEnvironment(opened(tmp_path).places, lock=tmp_path / "lock", wait=0)
    with FileLock(tmp_path / "lock").hold(), pytest.raises(FlashError, match="does not let go"):
        environment.variables()
    assert environment.variables()


@tools
def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make(tmp_path, redundant=True)
    monkeypatch.setattr(ubootenv, "_write", lambda *_, **__: None)
    with pytest.raises(VerifyError, match="does not keep"):
        environment.change(lambda _: {"x": "y"})


@tools
@KINDS
def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redundant: bool) -> None:
    environment = make(tmp_path, redundant=redundant)
    selector = UbootSelector(environment, BootOrder())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: 3)
        with pytest.raises(SelectError, match="cannot select slot b"):
            anyio.run(lambda: selector.select(B, running=A))
    assert environment.variables() or not redundant
    (tmp_path / "image").write_bytes(b"short")
    with pytest.raises(ReadError, match="ends before"):
        environment.variables()
    (tmp_path / "image").unlink()
    with pytest.raises(FlashError, match="No such file"):
        environment.variables()


def test_a_missing_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        UbootEnvironment.from_config(tmp_path / "config")
    (tmp_path / "config").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="no text"):
        UbootEnvironment.from_config(tmp_path / "config")


@tools
def test_an_offset_may_count_from_the_end(tmp_path: Path) -> None:
    """As U-Boot's own fw_env has it; Debian's tool does not know it."""
    environment = make(tmp_path, redundant=True)
    (tmp_path / "config").write_text(
        f"{tmp_path}/image -{SIZE * 2 + 0x1000:#x} {SIZE:#x}\n{tmp_path}/image {0x1000 + SIZE} {SIZE:x}\n"
    )
    for turn in range(3):
        opened(tmp_path).change(lambda _, turn=turn: {"x": f"{turn}"})  # type: ignore[misc]
        assert opened(tmp_path).variables() == environment.variables()
        assert environment.variables()["x"] == f"{turn}"


@tools
@pytest.mark.asyncio
async def test_the_selftest(tmp_path: Path) -> None:
    environment = make(tmp_path, redundant=True)
    selector = UbootSelector(environment, BootOrder())
    assert isinstance(selector, Selector)
    before = environment.variables()
    await selector.selftest()
    await selector.recover()
    assert environment.variables() == before
    with pytest.raises(SelectError, match="neither"):
        await UbootSelector(environment, BootCount()).selftest()


# a device whose board has a boot script


class Files(FileSlots):
    """Files as a medium: what a `SlotMedium` needs besides."""

    def room(self, slot: Slot) -> int:
        return self._room(slot)

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:  # type: ignore[override]
        return await super().open_writer(slot, size)


class Board:
    """A board with RAUC's boot script, and programs that come up or do not."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = make(directory, redundant=True)
        (directory / "slots").mkdir()
        (directory / "slots/a").write_bytes(b"factory")
        self.dead = set[bytes]()
        self.boots = list[Slot]()

    def script(self) -> Slot:
        """Until something comes up: a slot whose kernel does not is reset by the watchdog."""
        for _ in range(20):
            found = self.environment.variables()
            for name in found["BOOT_ORDER"].split():
                left = int(found.get(f"BOOT_{name}_LEFT", "3"), 16)
                if left:
                    set_by_tool(self.directory, f"BOOT_{name}_LEFT", f"{left - 1:x}")
                    slot = Slot(name.lower())
                    self.boots.append(slot)
                    if (self.directory / "slots" / slot).read_bytes() not in self.dead:
                        return slot
                    break
        raise AssertionError("bricked")

    async def boot(self) -> tuple[Device, Verdict]:
        verdict = Verdict.RESET
        while verdict is Verdict.RESET:
            running = self.script()
            flash = SelectedSlots(
                Files(self.directory / "slots", running=running),
                UbootSelector(self.environment, BootOrder()),
                running=running,
            )
            for protocol in (FlashBackend, BlockingReads, CountingBackend):
                assert isinstance(flash, protocol)
            device = Device(flash=flash, state=FileState(self.directory / "state"))
            verdict = await boot_check(device)
        return device, verdict

    async def update(self, device: Device, image: bytes) -> None:
        async with OtaSession(device, size=len(image)) as ota:
            await ota.write(image)
            await ota.activate(await ota.seal())


@tools
@pytest.mark.asyncio
async def test_an_image_whose_kernel_does_not_boot_is_not_tried_again(tmp_path: Path) -> None:
    board = Board(tmp_path)
    board.dead.add(b"dead kernel")
    device, verdict = await board.boot()
    assert verdict is Verdict.RUN
    await board.update(device, b"dead kernel")
    board.boots.clear()
    device, verdict = await board.boot()
    assert board.boots == [B, B, B, A], "the script gave it up once, and nobody selected it again"
    assert verdict is Verdict.RUN
    record = await device.state.load()
    assert record
    assert (record.state, record.outcome, record.reason) == (State.CONFIRMED, Outcome.ROLLED_BACK, "it never came up")
    assert printed(tmp_path)["BOOT_ORDER"].split() == ["A"], "it is no way back"


@tools
@pytest.mark.asyncio
async def test_a_good_image_is_committed_and_every_boot_counts_as_good(tmp_path: Path) -> None:
    board = Board(tmp_path)
    device, _ = await board.boot()
    await board.update(device, b"better")
    device, verdict = await board.boot()
    assert verdict is Verdict.TRIAL
    assert printed(tmp_path)["BOOT_B_LEFT"] == "2", "a trial is no good boot yet"
    await commit(device)
    assert printed(tmp_path)["BOOT_ORDER"] == "B A"
    for _ in range(5):
        device, verdict = await board.boot()
        assert (verdict, board.boots[-1]) == (Verdict.RUN, B)
    board.dead.add(b"better")  # its file system breaks in the field
    device, verdict = await board.boot()
    assert (verdict, board.boots[-4:]) == (Verdict.RUN, [B, B, B, A])
    with pytest.raises(OtaError):
        await rollback(device, sha256="0" * 64)
    async with OtaSession(device, size=100) as ota:
        assert printed(tmp_path)["BOOT_ORDER"].split() == ["A"], "nothing may boot what is being written"
        await ota.write(b"half")


@tools
@pytest.mark.asyncio
async def test_a_trial_that_is_not_committed_is_rolled_back(tmp_path: Path) -> None:
    board = Board(tmp_path)
    device, _ = await board.boot()
    await board.update(device, b"hangs")
    assert (await board.boot())[1] is Verdict.TRIAL
    device, verdict = await board.boot()
    assert verdict is Verdict.RUN
    assert board.boots[-3:] == [B, B, A]
    record = await device.state.load()
    assert record
    assert record.outcome is Outcome.ROLLED_BACK
    assert printed(tmp_path)["BOOT_ORDER"].split() == ["A"]


@tools
@pytest.mark.asyncio
async def test_an_environment_that_breaks_does_not_stop_a_boot(tmp_path: Path) -> None:
    board = Board(tmp_path)
    device, _ = await board.boot()
    await board.update(device, b"better")
    (tmp_path / "image").write_bytes(bytes(0x1000 * 2 + SIZE * 2))
    flash = SelectedSlots(
        Files(tmp_path / "slots", running=A), UbootSelector(board.environment, BootOrder()), running=A
    )
    device = Device(flash=flash, state=FileState(tmp_path / "state"))
    assert await boot_check(device) is Verdict.RUN
    with pytest.raises(FlashError):
        await flash.settle(fallback=True)
