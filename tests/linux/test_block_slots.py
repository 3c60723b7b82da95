"""Slots on block devices: real loop devices where there are any, and a played driver for the rest."""

import errno
import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mgota.core.geometry import Slot
from mgota.device import Device
from mgota.errors import ConfigError, FlashError, ProgramError, ReadError, TooLargeError
from mgota.linux import blockslots
from mgota.linux.blockdev import BLKDISCARD, BLKGETSIZE64, discard, find_device, open_device
from mgota.linux.blockslots import PAGE, BlockSlots
from mgota.linux.running import running_slot, slot_of_cmdline, slot_of_root
from mgota.linux.selected import SelectedSlots
from mgota.linux.state import FileState
from mgota.ports import BlockingReads, BlockingWriter, FlashBackend, ResumableBackend, SyncingWriter
from mgota.session import OtaSession
from mgota.testing import check_flash_backend
from mgota.trial import boot_check

A, B = Slot
ROOM = 1 << 20


class Driver:
    """The two calls of a block device, on a file."""

    def __init__(self) -> None:
        self.discards = list[tuple[int, int]]()
        self.refuses: int | None = None

    def __call__(self, fd: int, number: int, argument: bytes) -> bytes:
        if number == BLKGETSIZE64:
            return struct.pack("=Q", os.fstat(fd).st_size)
        assert number == BLKDISCARD
        if self.refuses:
            raise OSError(self.refuses, os.strerror(self.refuses))
        self.discards.append(struct.unpack("=QQ", argument))
        os.pwrite(fd, bytes(os.fstat(fd).st_size), 0)
        return argument


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Files `a` and `b` that pass for devices."""
    for slot in Slot:
        (tmp_path / slot).write_bytes(b"old " * (ROOM // 4))

    def opened(path: Path, *, writing: bool) -> int:
        return os.open(path, os.O_RDWR if writing else os.O_RDONLY)

    monkeypatch.setattr(blockslots, "open_device", opened)
    return Driver()


def slots_of(directory: Path, driver: Driver) -> BlockSlots:
    return BlockSlots({slot: str(directory / slot) for slot in Slot}, ioctl=driver)


class Pointer:
    """A selector in memory."""

    def __init__(self) -> None:
        self.selected = A

    async def selected_slot(self) -> Slot:
        return self.selected

    async def select(self, slot: Slot, *, running: Slot) -> None:
        self.selected = slot

    async def tried(self, slot: Slot) -> bool:
        return False

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        pass

    async def recover(self) -> None:
        pass

    async def selftest(self) -> None:
        pass


@pytest.mark.asyncio
async def test_the_contract_of_a_backend(tmp_path: Path, driver: Driver) -> None:
    for slot in Slot:
        (tmp_path / slot).write_bytes(bytes(ROOM))
    pointer = Pointer()

    def make() -> SelectedSlots:
        return SelectedSlots(slots_of(tmp_path, driver), pointer, running=pointer.selected)

    backend = make()
    for protocol in (FlashBackend, BlockingReads, ResumableBackend):
        assert isinstance(backend, protocol)
    await check_flash_backend(make)


@pytest.mark.asyncio
@pytest.mark.parametrize("pieces", [[1], [PAGE], [PAGE - 1, 2], [3 * PAGE + 5, 1, 0, PAGE], [ROOM]])
@pytest.mark.parametrize("size", [1, PAGE, PAGE + 1, 5 * PAGE - 1])
async def test_whole_pages_are_written_however_they_come(
    tmp_path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch, pieces: list[int], size: int
) -> None:
    if pieces == [1]:
        size = min(size, PAGE + 1)
    real, written = os.pwrite, list[tuple[int, int]]()

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if len(data) != ROOM:
            written.append((offset, len(data)))
        return real(fd, data[: 2 * PAGE], offset) if len(data) != ROOM else real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    slots, image = slots_of(tmp_path, driver), os.urandom(size)
    writer = await slots.open_writer(B, size)
    assert isinstance(writer, BlockingWriter)
    assert isinstance(writer, SyncingWriter)
    position, turn = 0, 0
    while position < size:
        piece = image[position : position + pieces[turn % len(pieces)]]
        await writer.write(piece)
        position, turn = position + len(piece), turn + 1
    await writer.finish()
    assert (tmp_path / "b").read_bytes() == image + bytes(ROOM - size), "the stale tail is gone"
    assert driver.discards == [(0, ROOM)]
    assert all(offset % PAGE == 0 for offset, _ in written)
    assert all(length % PAGE == 0 for _, length in written[:-1])
    assert (tmp_path / "a").read_bytes() == b"old " * (ROOM // 4)


@pytest.mark.asyncio
async def test_sizes_on_each_side_of_the_limit(tmp_path: Path, driver: Driver) -> None:
    slots = slots_of(tmp_path, driver)
    assert slots.room(B) == ROOM
    with pytest.raises(TooLargeError):
        await slots.open_writer(B, ROOM + 1)
    assert driver.discards == []
    writer = await slots.open_writer(B, ROOM)
    await writer.write(b"x" * (ROOM - 1))
    with pytest.raises(ProgramError, match="more than the announced"):
        await writer.write(b"xx")
    with pytest.raises(FlashError, match=f"only {ROOM - 1} of {ROOM}"):
        await writer.finish()
    await writer.write(b"x")
    await writer.finish()
    assert (tmp_path / "b").read_bytes() == b"x" * ROOM
    with pytest.raises(ReadError, match="ends at"):
        slots.read_blocking(B, ROOM - 1, 2)


@pytest.mark.asyncio
async def test_a_device_without_discard_is_written_all_the_same(tmp_path: Path, driver: Driver) -> None:
    slots = slots_of(tmp_path, driver)
    for driver.refuses in (errno.EOPNOTSUPP, errno.EIO):
        if driver.refuses == errno.EIO:
            with pytest.raises(FlashError, match="cannot write slot b: Input/output"):
                await slots.open_writer(B, 10)
        else:
            writer = await slots.open_writer(B, 10)
            await writer.abort()


@pytest.mark.asyncio
async def test_an_image_is_gone_on_with_from_a_page(tmp_path: Path, driver: Driver) -> None:
    slots, image = slots_of(tmp_path, driver), os.urandom(3 * PAGE + 100)
    writer = await slots.open_writer(B, len(image))
    await writer.write(image[: PAGE + 50])
    assert await writer.sync() == PAGE, "half a page is not durable"
    await writer.abort()
    writer, start = await slots_of(tmp_path, driver).reopen_writer(B, len(image), PAGE + 30)
    assert start == PAGE
    await writer.write(image[start:])
    await writer.finish()
    assert slots.read_blocking(B, 0, len(image)) == image
    assert len(driver.discards) == 1
    with pytest.raises(TooLargeError):
        await slots.reopen_writer(B, ROOM + 1, 0)


@pytest.mark.asyncio
async def test_what_is_blank(tmp_path: Path, driver: Driver) -> None:
    size = (1 << 20) + PAGE
    for content, extent in (
        (bytes(size), 0),
        (b"\xff" * size, 0),
        (b"\x01" * size, size),
        (bytes(size - 1) + b"x", size),
        (b"x" + bytes(size - 1), size),
    ):
        (tmp_path / "b").write_bytes(content)
        assert await slots_of(tmp_path, driver).extent(B) == extent


@pytest.mark.asyncio
async def test_the_running_slot_is_not_written(tmp_path: Path, driver: Driver) -> None:
    backend = SelectedSlots(slots_of(tmp_path, driver), Pointer(), running=A)
    for call in (backend.open_writer(A, 10), backend.reopen_writer(A, 10, 0)):
        with pytest.raises(FlashError, match="slot a runs"):
            await call
    await backend.reopen_writer(B, 10, 0)
    assert await backend.running_slot() is A


def test_both_slots_cannot_be_one(tmp_path: Path, driver: Driver) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="both slots are"):
        BlockSlots({A: str(tmp_path / "a"), B: str(tmp_path / "link")})


def test_readers_are_closed_with_their_slots(tmp_path: Path, driver: Driver) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    slots = slots_of(tmp_path, driver)
    for _ in range(3):
        slots.read_blocking(A, 0, 1)
        slots.read_blocking(B, 0, 1)
    del slots
    assert set(Path("/proc/self/fd").iterdir()) == before


# devices


def test_what_is_no_block_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, why in ((tmp_path / "file", "no block device"), (Path("/dev/null"), "no block device")):
        with pytest.raises(FlashError, match=why):
            open_device(path, writing=True)
    with pytest.raises(FlashError, match="No such file"):
        open_device(tmp_path / "none", writing=False)


def test_a_device_that_is_mounted_or_holds_the_system_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path("/").stat().st_dev
    fields = [0o060600, *[0] * 9, 0.0, 0.0, 0.0, 0, 0, 0, 4096, 0, root]
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        if path != Path("/dev/root"):
            return real(path, **options)
        return os.stat_result(fields, {"st_rdev": root})

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(FlashError, match="holds the system that runs"):
        open_device(Path("/dev/root"), writing=True)

    def busy(*_: Any) -> int:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(FlashError, match="mounted, or in use"):
        open_device(Path("/dev/root"), writing=False)


def test_devices_are_found_by_their_names(tmp_path: Path) -> None:
    dev, sys = tmp_path / "dev", tmp_path / "sys"
    (dev / "disk/by-partlabel").mkdir(parents=True)
    (dev / "vda1").touch()
    (dev / "disk/by-partlabel/slot\\x20a").symlink_to("../../vda1")
    for name, text in (
        ("vda2", "DEVNAME=vda2\nPARTNAME=slot b\nPARTUUID=AB-cd\n"),
        ("vda3", "DEVNAME=vda3\nPARTNAME=twice\n"),
        ("vda4", "PARTNAME=twice\n"),
    ):
        (sys / "class/block" / name).mkdir(parents=True)
        (sys / "class/block" / name / "uevent").write_text(text)

    def find(name: str) -> Path:
        return find_device(name, dev=dev, sys=sys)

    assert find("/dev/sda1") == Path("/dev/sda1")
    assert find("PARTLABEL=slot a").resolve() == dev / "vda1"
    assert find("PARTLABEL=slot b") == find("PARTUUID=ab-CD") == dev / "vda2"
    for wrong, why in (
        ("sda1", "give its path"),
        ("NAME=x", "is no device"),
        ("LABEL=", "is no device"),
        ("LABEL=../x", "is no device"),
        ("LABEL=slot b", "no device is LABEL=slot b"),
        ("PARTLABEL=none", "no device is"),
        ("PARTLABEL=twice", "more than one device is PARTLABEL=twice: vda3, vda4"),
    ):
        with pytest.raises(ConfigError, match=why):
            find(wrong)


# which slot runs


@pytest.mark.parametrize(
    ("text", "slot"),
    [
        ("quiet mgota.slot=B root=/dev/sda2", B),
        ("rauc.slot=a", A),
        ("rauc.slot=a mgota.slot=b", B),
        ("mgota.slot=c", None),
        ("mgota.slot", None),
        ("", None),
    ],
)
def test_the_slot_on_the_command_line(tmp_path: Path, text: str, slot: Slot | None) -> None:
    names = {A: "A", B: "B"}
    assert slot_of_cmdline(text, names) is slot
    (tmp_path / "cmdline").write_text(text)
    if slot:
        assert running_slot(names, cmdline=tmp_path / "cmdline") is slot
    else:
        with pytest.raises(ConfigError, match=r"mgota\.slot=A"):
            running_slot(names, cmdline=tmp_path / "cmdline")
    with pytest.raises(ConfigError, match="cannot be read"):
        running_slot(names, cmdline=tmp_path / "none")


def test_the_slot_that_the_root_lies_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "cmdline").write_text("quiet")
    devices = {A: str(tmp_path / "a"), B: "/dev/zero"}
    assert slot_of_root(devices) is None
    number = Path("/dev/zero").stat().st_rdev
    real = os.stat

    def stat(path: Any, **options: Any) -> os.stat_result:
        return os.stat_result([0, 0, number, *[0] * 7]) if path == "/" else real(path, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert slot_of_root(devices) is B
    assert running_slot({A: "A", B: "B"}, devices, cmdline=tmp_path / "cmdline") is B
    with pytest.raises(ConfigError, match="cannot be looked at"):
        slot_of_root({A: str(tmp_path / "none")})


# loop devices


@pytest.mark.program("losetup")
@pytest.mark.asyncio
async def test_an_update_on_loop_devices(tmp_path: Path, loop: Callable[[Path], str]) -> None:
    devices = dict[Slot, str]()
    for slot in Slot:
        (tmp_path / slot).write_bytes(b"old " * ROOM)
        devices[slot] = loop(tmp_path / slot)
    slots = BlockSlots(devices)
    assert slots.room(A) == 4 * ROOM
    backend = SelectedSlots(slots, Pointer(), running=A)
    device = Device(flash=backend, state=FileState(tmp_path / "state"))
    await boot_check(device)
    image = os.urandom(3 * ROOM + 77)
    async with OtaSession(device, size=len(image)) as ota:
        for start in range(0, len(image), 300_001):
            await ota.write(image[start : start + 300_001])
        sealed = await ota.seal()
        await ota.activate(sealed)
    with Path(devices[B]).open("rb") as file:
        assert file.read(len(image)) == image
    assert (tmp_path / "a").read_bytes() == b"old " * ROOM
    with pytest.raises(TooLargeError):
        await slots.open_writer(B, 4 * ROOM + 1)


@pytest.mark.program("losetup")
@pytest.mark.program("mkfs.ext4")
def test_a_mounted_device_is_refused_by_the_kernel(
    tmp_path: Path, loop: Callable[[Path], str], mount: Callable[[str], object]
) -> None:
    (tmp_path / "image").write_bytes(bytes(4 << 20))
    device = loop(tmp_path / "image")
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    fd = open_device(Path(device), writing=True)
    try:
        assert discard(fd, 0, 4096, lambda *_: b"")
        with pytest.raises(FlashError, match="mounted, or in use"):
            open_device(Path(device), writing=True)
    finally:
        os.close(fd)
    mount(device)
    with pytest.raises(FlashError, match="mounted, or in use"):
        open_device(Path(device), writing=True)
    slots = BlockSlots({A: "/dev/null", B: device})
    with pytest.raises(FlashError, match="mounted, or in use"):
        anyio.run(slots.open_writer, B, 10)
