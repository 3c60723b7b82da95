"""Two slots as files: what lies on the disk, what is refused, and what a cut at every operation leaves."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio
import pytest

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.record import State
from mgota.device import Device
from mgota.errors import FlashError, ProgramError, ReadError, SelectError, TooLargeError
from mgota.linux.environment import file_device
from mgota.linux.slots import MAX_HOP, FileSlots
from mgota.ports import FlashBackend, FlashWriter
from mgota.session import OtaSession
from mgota.trial import boot_check, commit, rollback

OLD = b"old program " * 3000
NEW = b"new program, shorter " * 1000


def failing(number: int) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


async def stage(slots: FileSlots, data: bytes, slot: Slot = Slot.B) -> None:
    writer = await slots.open_writer(slot, len(data))
    await writer.write(data)
    await writer.finish()


# what lies on the disk


@pytest.mark.asyncio
async def test_a_directory_is_made_and_its_slots_are_blank(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path / "x" / "y")
    assert isinstance(slots, FlashBackend)
    assert await slots.running_slot() is Slot.A
    assert await slots.extent(Slot.A) == await slots.extent(Slot.B) == 0
    await slots.recover()
    assert list((tmp_path / "x" / "y").iterdir()) == []


@pytest.mark.asyncio
async def test_an_image_is_written_in_any_pieces_and_read_back(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    data = os.urandom(2 * MAX_HOP + 12345)
    writer = await slots.open_writer(Slot.B, len(data))
    assert isinstance(writer, FlashWriter)
    for start, end in ((0, 1), (1, 1), (1, 5000), (5000, len(data))):
        await writer.write(memoryview(data)[start:end])
    await writer.finish()
    assert (tmp_path / "b").read_bytes() == data
    assert (tmp_path / "b").stat().st_mode & 0o100, "a slot may be started by its path"
    assert await slots.extent(Slot.B) == len(data)
    assert await slots.read(Slot.B, 5, 700) == data[5:705]
    await writer.abort()  # after the end it changes nothing
    with pytest.raises(FlashError, match="no longer being written"):
        await writer.write(b"x")


@pytest.mark.asyncio
async def test_a_slot_is_overwritten_then_cut_never_truncated_first(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    (tmp_path / "b").write_bytes(OLD)
    (tmp_path / "b").chmod(0o640)
    inode = (tmp_path / "b").stat().st_ino
    writer = await slots.open_writer(Slot.B, len(NEW))
    assert (tmp_path / "b").read_bytes() == OLD
    await writer.write(NEW)
    assert (tmp_path / "b").stat().st_size == len(OLD)
    await writer.finish()
    assert (tmp_path / "b").read_bytes() == NEW, "no tail of the old image"
    assert (tmp_path / "b").stat().st_ino == inode
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o750, "who may read it may start it"


@pytest.mark.asyncio
async def test_an_aborted_image_leaves_no_open_file(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    before = set(Path("/proc/self/fd").iterdir())
    writer = await slots.open_writer(Slot.B, 100)
    await writer.write(b"x" * 50)
    await writer.abort()
    await writer.abort()
    assert set(Path("/proc/self/fd").iterdir()) == before
    with pytest.raises(FlashError):
        await writer.finish()


@pytest.mark.asyncio
async def test_more_or_less_than_announced_is_refused(tmp_path: Path) -> None:
    writer = await FileSlots(tmp_path).open_writer(Slot.B, 10)
    with pytest.raises(ProgramError):
        await writer.write(b"x" * 11)
    await writer.write(b"x" * 9)
    with pytest.raises(FlashError, match="only 9 of 10"):
        await writer.finish()
    await writer.abort()


@pytest.mark.asyncio
async def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:1000], offset))
    await stage(FileSlots(tmp_path), OLD)
    assert (tmp_path / "b").read_bytes() == OLD


@pytest.mark.asyncio
async def test_a_cancelled_write_is_not_closed_under_its_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def slowly(fd: int, data: memoryview, offset: int) -> int:
        time.sleep(0.1)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", slowly)
    writer = await FileSlots(tmp_path).open_writer(Slot.B, 3 * MAX_HOP)
    with anyio.move_on_after(0.05) as scope:
        await writer.write(bytes(3 * MAX_HOP))
    assert scope.cancelled_caught
    assert writer._written == MAX_HOP, "the hop under way ended, no other began"
    await writer.abort()


# selection


@pytest.mark.asyncio
async def test_the_running_slot_is_latched_until_the_next_boot(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    assert await slots.running_slot() is Slot.A
    await slots.select(Slot.B)
    assert (tmp_path / "current").readlink() == Path("b")
    assert await slots.running_slot() is Slot.A
    await slots.boot()
    assert await slots.running_slot() is Slot.B
    assert await FileSlots(tmp_path, running=Slot.A).running_slot() is Slot.A
    await slots.select(Slot.A)
    assert slots.latch() is Slot.A


@pytest.mark.asyncio
async def test_selecting_what_is_selected_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = FileSlots(tmp_path)
    await slots.select(Slot.A)
    assert (tmp_path / "current").readlink() == Path("a")
    monkeypatch.setattr(os, "replace", failing(errno.EROFS))
    await slots.select(Slot.A)
    with pytest.raises(SelectError, match="cannot select slot b: Read-only file system"):
        await slots.select(Slot.B)


@pytest.mark.asyncio
async def test_a_selection_that_may_not_be_durable_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = FileSlots(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing(errno.EIO))
        with pytest.raises(SelectError):
            await slots.select(Slot.B)
    before = (tmp_path / "current").lstat().st_ino
    await slots.select(Slot.B)
    again = (tmp_path / "current").lstat().st_ino
    assert again != before
    await slots.select(Slot.B)
    assert (tmp_path / "current").lstat().st_ino == again


@pytest.mark.asyncio
@pytest.mark.parametrize("target", ["c", "/etc", "", "../a", "aa"])
async def test_a_link_that_points_elsewhere_is_refused(tmp_path: Path, target: str) -> None:
    current = tmp_path / "current"
    if target:
        current.symlink_to(target)
    else:
        current.write_text("a")
    with pytest.raises(FlashError, match=str(current)):
        await FileSlots(tmp_path).running_slot()
    with pytest.raises(FlashError, match=str(current)):
        await FileSlots(tmp_path).recover()


@pytest.mark.asyncio
async def test_recover_removes_what_a_cut_left_behind(tmp_path: Path) -> None:
    (tmp_path / ".current.tmp").symlink_to("b")
    (tmp_path / ".state.0123abcd.tmp").touch()
    (tmp_path / "state").touch()
    await FileSlots(tmp_path).recover()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.asyncio
async def test_recover_reports_a_medium_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(FlashError, match="cannot recover"):
        await FileSlots(tmp_path).recover()


# what is refused


@pytest.mark.asyncio
async def test_a_slot_has_room_for_what_is_free_and_what_it_has(tmp_path: Path) -> None:
    slots = FileSlots(tmp_path)
    free = await slots.capacity()
    assert free > 0
    await stage(slots, bytes(1 << 20))
    (tmp_path / "a").write_bytes(b"the running one's room does not count")
    assert slots._room(Slot.B) - slots._room(Slot.A) >= (1 << 20) - 8192
    with pytest.raises(TooLargeError) as caught:
        await slots.open_writer(Slot.B, 1 << 60)
    assert caught.value.size == 1 << 60
    assert (tmp_path / "b").stat().st_size == 1 << 20


@pytest.mark.asyncio
@pytest.mark.parametrize("exists", [True, False])
async def test_a_full_disk_is_told_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, exists: bool
) -> None:
    if exists:
        (tmp_path / "b").write_bytes(b"old")

    def fill(fd: int, offset: int, size: int) -> None:
        os.ftruncate(fd, offset + size // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fill)
    with pytest.raises(TooLargeError) as caught:
        await FileSlots(tmp_path).open_writer(Slot.B, 100)
    assert caught.value.limit < 100
    assert (tmp_path / "b").exists() is exists
    if exists:
        assert (tmp_path / "b").read_bytes() == b"old"


@pytest.mark.asyncio
async def test_a_file_system_that_cannot_allocate_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    monkeypatch.setattr(os, "posix_fadvise", failing(errno.EINVAL))
    await stage(FileSlots(tmp_path), OLD)
    assert (tmp_path / "b").read_bytes() == OLD


@pytest.mark.asyncio
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
async def test_a_slot_is_a_regular_file(tmp_path: Path, kind: str) -> None:
    slots, path = FileSlots(tmp_path), tmp_path / "b"
    (tmp_path / "victim").write_text("mine")
    match kind:
        case "link":
            path.symlink_to("victim")
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises(FlashError, match="not a regular file"):
        await slots.open_writer(Slot.B, 1)
    with pytest.raises(FlashError, match="not a regular file"):
        await slots.extent(Slot.B)
    with pytest.raises(ReadError):
        await slots.read(Slot.B, 0, 1)
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.asyncio
async def test_a_slot_that_was_exchanged_for_a_pipe_just_now_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "b")
    slots = FileSlots(tmp_path)
    monkeypatch.setattr(slots, "_stat", lambda slot: None)
    with pytest.raises(FlashError, match="not a regular file"):
        await slots.open_writer(Slot.B, 1)


@pytest.mark.asyncio
async def test_a_program_that_runs_is_not_overwritten(tmp_path: Path) -> None:
    shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / "b")
    process = subprocess.Popen([tmp_path / "b", "1000"])
    try:
        with pytest.raises(FlashError, match="cannot write slot b: the program in it is running") as caught:
            await FileSlots(tmp_path).open_writer(Slot.B, 1)
        assert isinstance(caught.value.__cause__, OSError)
    finally:
        process.kill()
        process.wait()


@pytest.mark.asyncio
async def test_every_failure_of_the_disk_is_an_ota_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> None:
        await FileSlots(tmp_path).read(Slot.B, 0, 1)

    async def write() -> None:
        writer = await FileSlots(tmp_path).open_writer(Slot.A, 4)
        try:
            await writer.write(b"1234")
            await writer.finish()
        finally:
            await writer.abort()

    async def capacity() -> None:
        await FileSlots(tmp_path).capacity()

    async def extent() -> None:
        await FileSlots(tmp_path).extent(Slot.B)

    cases = {
        "pwrite": write,
        "ftruncate": write,
        "fsync": write,
        "open": write,
        "posix_fallocate": write,
        "pread": read,
        "statvfs": capacity,
        "lstat": extent,
    }
    (tmp_path / "b").write_bytes(b"x")
    for call, work in cases.items():
        (tmp_path / "a").unlink(missing_ok=True)
        with monkeypatch.context() as broken:
            broken.setattr(os, call, failing(errno.EIO))
            with pytest.raises(FlashError, match="Input/output error"):
                await work()
    (tmp_path / "a").touch()
    monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
    with pytest.raises(FlashError):
        await write()
    with pytest.raises(FlashError, match="cannot make the directory"):
        FileSlots(tmp_path / "a" / "x")


@pytest.mark.asyncio
async def test_reading_past_the_end_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    slots = FileSlots(tmp_path)
    with pytest.raises(ReadError, match="ends at 4, before 5"):
        await slots.read(Slot.A, 1, 4)
    with pytest.raises(ReadError):
        await slots.read(Slot.B, 0, 1)


@pytest.mark.asyncio
async def test_somebody_elses_file_keeps_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b").touch(0o600)
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    await stage(FileSlots(tmp_path), OLD)
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600


# cuts


class Cut(BaseException):
    """The power is gone."""


class Mains:
    """Counts the operations that change the disk, and cuts the power before one of them, or in the midst of a write."""

    CALLS = ("pwrite", "ftruncate", "posix_fallocate", "fsync", "fdatasync", "replace", "symlink", "unlink", "fchmod")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.cut_at = sys.maxsize
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self.metered(name, getattr(os, name)))

    def metered(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.cut_at and name == "pwrite":
                real(args[0], args[1][: len(args[1]) // 2], args[2])
            if self.count >= self.cut_at:
                raise Cut
            return real(*args, **options)

        return call

    def plan(self, cut_at: int = sys.maxsize) -> None:
        self.count, self.cut_at = 0, cut_at


async def boots(directory: Path) -> tuple[Device, Verdict]:
    """Switch on: as often as the boot decision says."""
    while True:
        device = file_device(directory)
        verdict = await boot_check(device)
        if verdict is not Verdict.RESET:
            return device, verdict


async def update(device: Device) -> None:
    async with OtaSession(device, size=len(NEW)) as ota:
        for start in range(0, len(NEW), 7000):
            await ota.write(NEW[start : start + 7000])
        await ota.activate(await ota.seal())


async def lives(directory: Path) -> None:
    """A whole life: first start, update, trial, commit, rollback by an operator."""
    device, _ = await boots(directory)
    await update(device)
    device, verdict = await boots(directory)
    assert verdict is Verdict.TRIAL
    await commit(device)
    await rollback(device)
    await boots(directory)


async def check_device(directory: Path) -> tuple[Device, Verdict]:
    """What boots is one whole image, and the record speaks of it."""
    device, verdict = await boots(directory)
    running = await device.flash.running_slot()
    data = (directory / running.value).read_bytes()
    assert data in (OLD, NEW), "a torn image runs"
    record = await device.state.load()
    assert record
    image = record.image(running)
    assert image is not None
    assert await device.is_whole(running, image)
    if verdict is Verdict.TRIAL:
        assert data == NEW
        assert record.trial is running
    else:
        assert record.state is State.CONFIRMED
        assert image.proven
    return device, verdict


def fresh(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    (directory / "a").write_bytes(OLD)


async def cut_short(work: Callable[[], Any]) -> bool:
    """Run until the power is cut, if it is."""
    try:
        await work()
    except Cut:
        return True
    return False


@pytest.mark.asyncio
async def test_a_cut_at_every_operation_leaves_a_whole_image_and_a_true_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "device"
    mains = Mains(monkeypatch)
    fresh(directory)
    mains.plan()
    await lives(directory)
    operations = mains.count
    assert operations > 40
    for i in range(1, operations + 1):
        mains.plan()
        fresh(directory)
        mains.plan(cut_at=i)
        assert await cut_short(lambda: lives(directory)), f"operation {i} never came"
        mains.plan()
        device, verdict = await check_device(directory)
        if verdict is Verdict.TRIAL:
            device, verdict = await check_device(directory)  # a cut during a trial rolls back
            assert verdict is Verdict.RUN
        if (directory / (await device.flash.running_slot()).value).read_bytes() == OLD:
            await update(device)  # and the next update works
            _, verdict = await check_device(directory)
            assert verdict is Verdict.TRIAL


@pytest.mark.asyncio
@pytest.mark.parametrize("record", [1, 2, 3, 5, 8])
async def test_a_second_cut_in_the_recovery_leaves_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: int
) -> None:
    directory = tmp_path / "device"
    mains = Mains(monkeypatch)
    mains.plan()
    fresh(directory)
    await lives(directory)
    operations = mains.count
    for i in range(record, operations + 1, 9):
        j = 1
        while True:
            mains.plan()
            fresh(directory)
            mains.plan(cut_at=i)
            await cut_short(lambda: lives(directory))
            mains.plan(cut_at=j)
            if not await cut_short(lambda: boots(directory)):
                break
            mains.plan()
            await check_device(directory)
            j += 1


VICTIM = """\
import sys, anyio
from mgota.linux.environment import file_device
from mgota.session import OtaSession
from mgota.trial import boot_check, commit, rollback
new = sys.stdin.buffer.read()

async def main():
    print("up", flush=True)
    while True:
        device = file_device(sys.argv[1])
        if await boot_check(device) == "reset":
            continue
        if device.live.trial_until:
            await commit(device)
            await rollback(device)
            continue
        async with OtaSession(device, size=len(new)) as ota:
            for start in range(0, len(new), 7000):
                await ota.write(new[start:start + 7000])
            await ota.activate(await ota.seal())

anyio.run(main)
"""


@pytest.mark.slow
@pytest.mark.asyncio
async def test_killed_at_random_points_nothing_is_lost(tmp_path: Path) -> None:
    """Kill -9 proves nothing about fsync, but a good deal about order."""
    directory = tmp_path / "device"
    fresh(directory)
    for round_ in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")},
        )
        assert process.stdin
        assert process.stdout
        with process, process.stdin, process.stdout:
            process.stdin.write(NEW)
            process.stdin.close()
            process.stdout.readline()
            await anyio.sleep(0.005 + 0.037 * round_ % 0.29)
            process.send_signal(signal.SIGKILL)
        await check_device(directory)
