"""Boot records in an environment, in cells, on NOR flash, beside a register: each keeps what `StateStore` promises."""

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest
from mtd_driver import MtdDriver

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State, encode_record
from mgota.core.register import Form, encode_word
from mgota.core.ubootenv import Environment, EnvPlace, encode_copy
from mgota.errors import ConfigError, EraseError, FlashError, ProgramError, ReadError, StateError
from mgota.linux import ubootenv
from mgota.linux.apart import refuse_inside_slots, refuse_place_in_slots
from mgota.linux.grub import GrubEnvironment
from mgota.linux.mtd import MtdDevice, MtdFlash
from mgota.linux.state import FileState
from mgota.linux.states import CellState, MappedRegister, RegisterState, VariableState, mtd_state
from mgota.linux.ubootenv import UbootEnvironment
from mgota.testing import CrashPoint, check_nor_flash, check_state_store, every_crash

SIZE = 0x2000
RECORD = BootRecord(revision=7, state=State.FAILED, trial=Slot.B, reason="ä {not the body} x")


def environment(directory: Path) -> UbootEnvironment:
    """A redundant one, of two copies in a file."""
    image = directory / "env"
    if not image.exists():
        image.write_bytes(b"".join(encode_copy(Environment((b"bootcmd=run x",)), SIZE, flags=flag) for flag in (1, 0)))
    places = (EnvPlace(str(image), 0, SIZE), EnvPlace(str(image), SIZE, SIZE))
    return UbootEnvironment(places, lock=None)


# an environment


@pytest.mark.asyncio
async def test_a_record_in_u_boot_s_environment(tmp_path: Path) -> None:
    def damage() -> None:
        environment(tmp_path).change(
            lambda found: {"mgota_state": found["mgota_state"].replace("CONFIRMED", "confirmed")}
        )

    await check_state_store(lambda: VariableState(environment(tmp_path)), damage=damage)
    assert environment(tmp_path).variables()["bootcmd"] == "run x"


@pytest.mark.asyncio
async def test_an_environment_that_is_lost_is_an_error(tmp_path: Path) -> None:
    state = VariableState(environment(tmp_path))
    await state.store(RECORD)
    assert await state.load() == RECORD
    (tmp_path / "env").write_bytes(bytes(2 * SIZE))
    for call in (state.load(), state.store(RECORD)):
        with pytest.raises(StateError, match="no good copy"):
            await call


@pytest.mark.program("grub-editenv")
@pytest.mark.asyncio
async def test_a_record_in_grub_s_environment(tmp_path: Path) -> None:
    subprocess.run(["grub-editenv", tmp_path / "grubenv", "create"], check=True)
    state = VariableState(GrubEnvironment(tmp_path / "grubenv"))
    assert await state.load() is None
    await state.store(RECORD)
    assert await state.load() == RECORD
    long = BootRecord(reason="r" * 500, floor="f" * 500)
    with pytest.raises(StateError, match="full"):
        await state.store(long)
    assert await state.load() == RECORD


# cells


def cells(directory: Path, size: int = 8192) -> CellState:
    path = directory / "nvmem"
    if not path.exists():
        path.write_bytes(b"\xff" * (size + 100))
    return CellState(path, size, offset=100)


@pytest.mark.asyncio
async def test_a_record_in_cells(tmp_path: Path) -> None:
    def damage() -> None:
        data = bytearray((tmp_path / "nvmem").read_bytes())
        data[100 + 20] ^= 1
        data[100 + 4096 + 20] ^= 1
        (tmp_path / "nvmem").write_bytes(data)

    await check_state_store(lambda: cells(tmp_path), damage=damage)
    assert (tmp_path / "nvmem").read_bytes()[:100] == b"\xff" * 100


def test_a_record_in_cells_survives_every_crash(tmp_path: Path) -> None:
    def action(directory: Path, mark: Callable[[object], None]) -> None:
        for number in range(3):
            anyio.run(cells(directory).store, BootRecord(revision=number, reason="r" * 300 * number))
            mark(number)

    def check(directory: Path, point: CrashPoint) -> None:
        record = anyio.run(cells(directory).load)
        found = -1 if record is None else record.revision
        assert found in (len(point.marks) - 1, len(point.marks))
        anyio.run(cells(directory).store, RECORD)
        assert anyio.run(cells(directory).load) == RECORD

    report = every_crash(action, check, tmp_path, prepare=cells, limit=64)
    assert report.checked > 10


@pytest.mark.asyncio
async def test_cells_that_fail_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = cells(tmp_path)
    await state.store(RECORD)

    def fails(*_: Any) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fails)
        with pytest.raises(StateError, match="cannot be stored: Input"):
            await state.store(RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda _fd, data, _offset: len(data))
        with pytest.raises(StateError, match="does not keep"):
            await state.store(RECORD.next())
    count = 0

    def changing(_fd: int, size: int, _offset: int) -> bytes:
        nonlocal count
        count += 1
        return bytes([count % 251]) * size if size else b""

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", changing)
        with pytest.raises(StateError, match="otherwise each time"):
            await state.load()
    assert await state.load() == RECORD
    (tmp_path / "nvmem").write_bytes(b"short")
    with pytest.raises(StateError, match="ends before byte 8292"):
        await state.load()
    (tmp_path / "nvmem").unlink()
    with pytest.raises(StateError, match="cannot be read: No such file"):
        await state.load()


# a register


@pytest.mark.asyncio
@pytest.mark.parametrize("form", list(Form))
async def test_a_record_with_a_register_that_mirrors_it(tmp_path: Path, form: Form) -> None:
    (tmp_path / "mem").write_bytes(bytes(8192))

    def make() -> RegisterState:
        return RegisterState(MappedRegister(tmp_path / "mem", 4096 + 8), FileState(tmp_path / "state"), form=form)

    await check_state_store(make, damage=lambda: (tmp_path / "state").write_bytes(b"junk"))
    for record in (RECORD, BootRecord(outcome=Outcome.ROLLED_BACK)):
        await make().store(record)
        memory = (tmp_path / "mem").read_bytes()
        assert memory[4104:4108] == struct.pack("=I", encode_word(record, form))
        assert memory == bytes(4104) + memory[4104:4108] + bytes(4084), "and nothing else is touched"
    (tmp_path / "mem").write_bytes(bytes(8192))  # its battery was empty
    await make().load()
    assert make().register.read() == encode_word(BootRecord(outcome=Outcome.ROLLED_BACK), form)


@pytest.mark.asyncio
async def test_a_register_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (2, -4):
        with pytest.raises(ConfigError, match="multiple of four"):
            MappedRegister(tmp_path / "mem", address)
    register = MappedRegister(tmp_path / "mem", 4096)
    for call in (register.read, lambda: register.write(1)):
        with pytest.raises(StateError, match="No such file"):
            call()
    (tmp_path / "mem").write_bytes(bytes(100))
    for call in (register.read, lambda: register.write(1)):
        with pytest.raises(StateError, match="cannot be"):
            call()
    (tmp_path / "mem").write_bytes(bytes(8192))
    monkeypatch.setattr(MappedRegister, "write", lambda *_: None)
    with pytest.raises(StateError, match="does not keep"):
        await RegisterState(register, FileState(tmp_path / "state")).store(RECORD)


# NOR flash


@pytest.mark.asyncio
@pytest.mark.parametrize("unit", [1, 16])
async def test_an_mtd_device_is_nor_flash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    driver = MtdDriver(tmp_path / "mtd0", unit=unit).installed(monkeypatch)
    await check_nor_flash(lambda: MtdFlash(MtdDevice(tmp_path / "mtd0", ioctl=driver)))
    await MtdFlash(MtdDevice(tmp_path / "mtd0", ioctl=driver)).flush()


@pytest.mark.asyncio
async def test_a_record_on_an_mtd_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = MtdDriver(tmp_path / "mtd0").installed(monkeypatch)
    driver.has_lock = True
    device = MtdDevice(tmp_path / "mtd0", ioctl=driver)
    await check_state_store(lambda: mtd_state(device, first=5))
    assert set(driver.erased) == {5, 6, 7}
    for first, good in ((0, True), (5, True), (6, False), (-1, False)):
        if good:
            mtd_state(device, first=first)
        else:
            with pytest.raises(ConfigError, match="no three erase blocks"):
                mtd_state(device, first=first)


@pytest.mark.asyncio
async def test_mtd_devices_that_are_refused_or_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = MtdDriver(tmp_path / "mtd0")
    device = MtdDevice(tmp_path / "mtd0", ioctl=driver)
    for name, value in (("kind", 4), ("oob", 64), ("block", 3000)):
        with monkeypatch.context() as patch:
            patch.setattr(driver, name, value)
            with pytest.raises(ConfigError, match="not NOR flash"):
                device.info()
    with pytest.raises(FlashError, match="No such file"):
        MtdDevice(tmp_path / "none").info()
    with pytest.raises(EraseError, match="Invalid argument"):
        device.erase(1, 4096)
    with pytest.raises(ReadError, match="ends before"):
        device.read(driver.size - 1, 2)
    device.program(0, b"\0")
    driver.installed(monkeypatch)
    with pytest.raises(ProgramError, match="does not keep"):
        device.program(0, b"\x01")


def test_u_boot_s_environment_on_nor_flash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = MtdDriver(tmp_path / "mtd0").installed(monkeypatch)
    device = MtdDevice(tmp_path / "mtd0", ioctl=driver)
    monkeypatch.setattr(ubootenv, "is_mtd", lambda _: True)
    monkeypatch.setattr(ubootenv, "MtdDevice", lambda _: device)
    size = 0x800
    place = str(tmp_path / "mtd0")
    copies = (EnvPlace(place, 0x1000, size), EnvPlace(place, -0x6000 + 0x100, size))
    device.program(0x1000, encode_copy(Environment((b"bootcmd=run x",)), size, flags=1))
    device.program(0x1000 + size, b"something else in the same block")
    env = UbootEnvironment(copies, lock=None)
    for turn in range(5):
        env.change(lambda _, turn=turn: {"turn": str(turn)})  # type: ignore[misc]
        assert env.variables() == {"bootcmd": "run x", "turn": str(turn)}
        flags = [device.read(at + 4, 1) for at in (0x1000, 0x2100)]
        assert flags == ([b"\0", b"\x01"] if turn % 2 == 0 else [b"\x01", b"\0"])
    assert device.read(0x1000 + size, 9) == b"something"
    single = UbootEnvironment((EnvPlace(place, 0x4000, size),), lock=None)
    device.program(0x4000, encode_copy(Environment((b"a=b",)), size))
    single.change(lambda _: {"a": "c"})
    assert single.variables() == {"a": "c"}
    shared = UbootEnvironment((EnvPlace(place, 0x1000, size), EnvPlace(place, 0x1000 + size, size)), lock=None)
    with pytest.raises(ConfigError, match="share an erase block"):
        shared.change(lambda _: {"x": "y"})


# inside a slot


def test_a_record_inside_a_slot_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    refuse_inside_slots(tmp_path / "state", ["/dev/null", tmp_path / "a"])
    refuse_inside_slots("/dev/zero", ["/dev/null"])
    (tmp_path / "link").symlink_to("/dev/null")
    for path, slot in (("/dev/null", "/dev/null"), (tmp_path / "link", "/dev/null"), (tmp_path / "a", tmp_path / "a")):
        with pytest.raises(ConfigError, match="would lie in the slot"):
            refuse_inside_slots(path, ["/dev/zero", slot])
    with pytest.raises(ConfigError, match="cannot be looked at"):
        refuse_inside_slots(tmp_path / "none" / "state", ["/dev/null"])


@pytest.mark.parametrize(
    ("offset", "size", "inside"),
    [
        (0, 2048, False),
        (1, 2048, True),  # the partition begins at the fifth sector, byte 2048
        (2047, 1, False),
        (2048, 1, True),
        (4095, 1, True),
        (4096, 512, False),
        (0, 1 << 20, True),
    ],
)
def test_an_environment_between_partitions_of_a_disk_keeps_clear_of_them(
    tmp_path: Path, offset: int, size: int, inside: bool
) -> None:
    disk = tmp_path / "devices/disk"
    (disk / "part").mkdir(parents=True)
    (disk / "dev").write_text("1:5\n")  # /dev/zero
    for name, sectors in {"start": 4, "size": 4}.items():
        (disk / "part" / name).write_text(f"{sectors}\n")
    (tmp_path / "dev/block").mkdir(parents=True)
    (tmp_path / "dev/block/1:3").symlink_to("../../devices/disk/part")  # /dev/null
    place = EnvPlace("/dev/zero", offset, size)
    with pytest.raises(ConfigError, match=r"at .* would lie in the slot") if inside else nullcontext():
        refuse_place_in_slots(place, ["/dev/null"], what="an environment", sys=tmp_path)
    refuse_place_in_slots(EnvPlace("/dev/full", offset, size), ["/dev/null"], what="it", sys=tmp_path)  # another disk
    (disk / "part/start").unlink()  # no partition, or one that nobody describes
    refuse_place_in_slots(place, ["/dev/null"], what="it", sys=tmp_path)


def test_an_environment_in_a_slot_or_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^an environment /dev/null would lie in the slot /dev/null"):
        refuse_place_in_slots(EnvPlace("/dev/null", 0, 8), ["/dev/null"], what="an environment")
    with pytest.raises(ConfigError, match="cannot be looked at"):
        refuse_place_in_slots(EnvPlace(f"{tmp_path}/gone", 0, 8), ["/dev/null"], what="it")


@pytest.mark.program("losetup")
@pytest.mark.program("mkfs.ext4")
def test_a_file_on_a_slot_s_file_system_is_refused(
    tmp_path: Path, loop: Callable[[Path], str], mount: Callable[[str], Path]
) -> None:
    (tmp_path / "image").write_bytes(bytes(4 << 20))
    device = loop(tmp_path / "image")
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    where = mount(device)
    with pytest.raises(ConfigError, match="would lie in the slot"):
        refuse_inside_slots(where / "state", [device])


def test_an_encoded_record_is_two_lines_and_no_more() -> None:
    assert encode_record(RECORD).count(b"\n") == 2
