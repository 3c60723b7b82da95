"""Power goes while files are written: every state that POSIX allows, on the code that a Linux device runs.

What killing cannot show: what was written, renamed or linked and not fsynced may be gone, in any subset. The counts
are printed (`pytest -s`).
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, State, decode_record
from mgota.device import Device
from mgota.errors import OtaError
from mgota.flash.files import DurableFile, replace_file, sync_directory
from mgota.linux.environment import file_device
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.session import OtaSession
from mgota.testing.crash_states import CrashPoint, Order
from mgota.testing.crashes import every_crash
from mgota.trial import boot_check, commit, rollback

Mark = Callable[[object], None]
ORDERS = pytest.mark.parametrize("order", list(Order))

OLD = b"old program " * 600
NEW = b"new program, shorter " * 240
RECORDS = [BootRecord(revision=7, reason="x" * 400).next(reason="y" * length) for length in (450, 30, 480)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model says what is durable: the disk under the test need not wait for its own, nor tasks for threads."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, os.fstat)

    async def at_once(work: Callable[..., object], *args: object, **_: object) -> object:
        return work(*args)

    monkeypatch.setattr("anyio.to_thread.run_sync", at_once)
    monkeypatch.setattr("anyio.from_thread.check_cancelled", lambda: None)


def tell(what: str, report: object) -> None:
    print(f"\n{what}: {report}")


# files that are replaced


def old_or_new(directory: Path, point: CrashPoint) -> None:
    content = (directory / "x").read_bytes()
    assert content in ((NEW,) if point.marks else (OLD, NEW))
    replace_file(directory / "x", b"and again")
    assert (directory / "x").read_bytes() == b"and again"


def with_old(directory: Path) -> None:
    (directory / "x").write_bytes(OLD)


@ORDERS
def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path: Path, order: Order) -> None:
    def action(directory: Path, mark: Mark) -> None:
        replace_file(directory / "x", NEW)
        mark("replaced")

    report = every_crash(action, old_or_new, tmp_path, prepare=with_old, order=order)
    tell("replace_file", report)
    assert report.points == 7


def without_fsync_of_the_file(path: Path) -> None:
    path.with_name("tmp").write_bytes(NEW)
    path.with_name("tmp").replace(path)
    sync_directory(path.parent)


def without_fsync_of_the_directory(path: Path) -> None:
    descriptor = os.open(path.with_name("tmp"), os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(descriptor, NEW)
    os.fsync(descriptor)
    os.close(descriptor)
    path.with_name("tmp").replace(path)


def in_place(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, NEW)
    os.fsync(descriptor)
    os.close(descriptor)


def in_place_by_a_buffer(path: Path) -> None:
    path.write_bytes(NEW)
    path.with_name("later").touch()


def directory_first(path: Path) -> None:
    path.with_name("tmp").write_bytes(NEW)
    descriptor = os.open(path.with_name("tmp"), os.O_RDONLY)
    path.with_name("tmp").replace(path)
    sync_directory(path.parent)
    os.fsync(descriptor)
    os.close(descriptor)


def remove_and_rename(path: Path) -> None:
    replace_file(path.with_name("tmp"), NEW)
    path.unlink()
    path.with_name("tmp").rename(path)
    sync_directory(path.parent)


@ORDERS
@pytest.mark.parametrize(
    ("careless", "before", "after"),
    [
        (without_fsync_of_the_file, True, True),
        (without_fsync_of_the_directory, False, True),
        (in_place, True, False),
        (in_place_by_a_buffer, True, True),
        (directory_first, True, False),
        (remove_and_rename, True, False),
    ],
)
def test_a_careless_writer_is_found_out(
    tmp_path: Path, careless: Callable[[Path], None], *, before: bool, after: bool, order: Order
) -> None:
    def action(directory: Path, mark: Mark) -> None:
        careless(directory / "x")
        mark("replaced")

    report = every_crash(action, old_or_new, tmp_path, prepare=with_old, order=order, keep_going=True)
    tell(f"control {careless.__name__}", report)
    assert any(not failure.point.marks for failure in report.failures) is before
    assert any(failure.point.marks for failure in report.failures) is after


# processes that are killed, and disks that fail


class Killed(BaseException):
    """The process is no more; the kernel goes on."""


class Kernel:
    """Kills at an operation, or lets an fsync fail. To be made after the recorder was entered, or before.

    A dead process does nothing: once it was killed, every operation kills again, until `revive`.
    """

    CALLS = ("open", "write", "pwrite", "ftruncate", "fsync", "fdatasync", "rename", "replace", "symlink", "unlink")

    def __init__(self) -> None:
        self.count = 0
        self.kill_at = 0
        self.syncs_until_failure = 0
        self.calls = {name: getattr(os, name) for name in self.CALLS}

    @contextmanager
    def installed(self) -> Iterator["Kernel"]:
        with pytest.MonkeyPatch.context() as patch:
            for name, real in self.calls.items():
                patch.setattr(os, name, self.metered(name, real))
            yield self

    def metered(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            self.count += 1
            if 0 < self.kill_at <= self.count:
                raise Killed
            if "sync" in name and self.syncs_until_failure:
                self.syncs_until_failure -= 1
                if not self.syncs_until_failure:
                    raise OSError(errno.EIO, "Input/output error")
            return real(*args, **options)

        return call

    def killed(self, work: Callable[[], object], at: int) -> bool:
        """Run until the process is killed, if it is."""
        self.count, self.kill_at = 0, at
        try:
            work()
        except Killed:
            return True
        finally:
            self.kill_at = 0
        return False


def load(directory: Path) -> BootRecord | None:
    return FileState(directory / "state")._load()


def store(directory: Path, record: BootRecord) -> None:
    FileState(directory / "state")._store(record)


@ORDERS
def test_a_record_is_the_old_one_or_the_new_one_and_never_unreadable(tmp_path: Path, order: Order) -> None:
    def action(directory: Path, mark: Mark) -> None:
        for record in RECORDS:
            store(directory, record)
            mark(record)

    def check(directory: Path, point: CrashPoint) -> None:
        stored = len(point.marks)
        allowed = [None, *RECORDS, None][stored : stored + 2]
        assert load(directory) in allowed[: 2 if stored < len(RECORDS) else 1]
        store(directory, RECORDS[0])
        assert load(directory) == RECORDS[0]

    tell("FileState", every_crash(action, check, tmp_path, order=order))


def read_and_believe(directory: Path) -> BootRecord | None:
    """A reader who acts on what it reads without making it durable: a control."""
    return decode_record((directory / "state").read_bytes())


def last_known(load: Callable[[Path], object]) -> Callable[[Path, CrashPoint], None]:
    def check(directory: Path, point: CrashPoint) -> None:
        if point.marks:
            assert load(directory) == point.marks[-1]

    return check


@pytest.mark.parametrize("reader", [load, read_and_believe])
def test_a_record_that_was_acted_on_stays_though_its_writer_was_killed(
    tmp_path: Path, reader: Callable[[Path], BootRecord | None]
) -> None:
    checked, failures, killed, at = 0, 0, True, 0
    while killed:
        at += 1

        def action(directory: Path, mark: Mark, at: int = at) -> None:
            nonlocal killed
            with Kernel().installed() as kernel:
                killed = kernel.killed(lambda: store(directory, RECORDS[1]), at)
            mark(reader(directory))
            (directory / "acted").touch()

        (tmp_path / str(at)).mkdir()
        report = every_crash(
            action,
            last_known(reader),
            tmp_path / str(at),
            prepare=lambda directory: store(directory, RECORDS[0]),
            keep_going=reader is not load,
        )
        checked, failures = checked + report.checked, failures + len(report.failures)
    tell(f"killed writer, {reader.__name__}", f"{at - 1} kills, {checked} states, {failures} failures")
    assert at > 5
    assert (failures > 0) is (reader is read_and_believe)


class OneDoubt(DurableFile):
    """Remembers only the last content of which nobody knows: a control."""

    def store(self, data: bytes) -> None:
        self._doubtful.clear()
        super().store(data)


class Believer(DurableFile):
    """Takes what it can read for durable after an fsync that failed: a control."""

    def load(self) -> bytes | None:
        self._doubtful.clear()
        return super().load()


@pytest.mark.parametrize("kind", [DurableFile, OneDoubt, Believer])
def test_after_fsyncs_that_failed_nothing_is_believed_that_a_crash_could_take_back(
    tmp_path: Path, kind: type[DurableFile]
) -> None:
    checked = failures = runs = 0
    for faults in product(range(3), repeat=3):  # the which fsync of each store fails: none, the file's, the directory's

        def action(directory: Path, mark: Mark, faults: tuple[int, ...] = faults) -> None:
            file = kind(directory / "x", 100)
            file.load()
            for number, fault in enumerate(faults):
                data = b"%d" % number
                kernel.syncs_until_failure = fault
                mark(("stores", data))
                with suppress(OSError):
                    file.store(data)
                kernel.syncs_until_failure = 0
                with suppress(OSError):
                    mark(("knows", file.load()))

        def check(directory: Path, point: CrashPoint) -> None:
            allowed: set[bytes | None] = {b"old"}
            for told, data in cast(tuple[tuple[str, bytes | None], ...], point.marks):
                allowed = {data} if told == "knows" else allowed | {data}
            assert DurableFile(directory / "x", 100).load() in allowed

        runs += 1
        (tmp_path / str(runs)).mkdir()
        with Kernel().installed() as kernel:
            report = every_crash(
                action,
                check,
                tmp_path / str(runs),
                prepare=lambda directory: replace_file(directory / "x", b"old"),
                limit=16,
                keep_going=kind is not DurableFile,
            )
        checked, failures = checked + report.checked, failures + len(report.failures)
    tell(f"failing fsyncs, {kind.__name__}", f"{runs} runs, {checked} states, {failures} failures")
    assert (failures > 0) is (kind is not DurableFile)


# slots


def make_slots(directory: Path) -> None:
    (directory / "a").write_bytes(OLD)
    (directory / "a").chmod(0o755)


@ORDERS
def test_current_names_a_slot_whatever_was_lost(tmp_path: Path, order: Order) -> None:
    def action(directory: Path, mark: Mark) -> None:
        slots = FileSlots(directory)
        for slot in (Slot.B, Slot.A, Slot.B):
            slots._select(slot)
            mark(slot)

    def check(directory: Path, point: CrashPoint) -> None:
        slots = FileSlots(directory)
        selected = [Slot.A, Slot.B, Slot.A, Slot.B][len(point.marks) :][:2]
        assert slots.latch() in selected
        slots._recover()
        slots._select(Slot.B)
        assert slots.latch() is Slot.B

    tell("FileSlots.select", every_crash(action, check, tmp_path, order=order))


def test_a_selection_that_was_recovered_stays_though_its_maker_was_killed(tmp_path: Path) -> None:
    checked, killed, at = 0, True, 0
    while killed:
        at += 1

        def action(directory: Path, mark: Mark, at: int = at) -> None:
            nonlocal killed
            with Kernel().installed() as kernel:
                killed = kernel.killed(lambda: FileSlots(directory)._select(Slot.B), at)
            slots = FileSlots(directory)
            slots._recover()
            mark(slots.latch())

        (tmp_path / str(at)).mkdir()
        check = last_known(lambda directory: FileSlots(directory).latch())
        report = every_crash(action, check, tmp_path / str(at), prepare=make_slots)
        checked += report.checked
    tell("killed selection", f"{at - 1} kills, {checked} states")
    assert at > 4


def blank(directory: Path) -> None:
    """Nothing has been written yet."""


def longer(directory: Path) -> None:
    (directory / "b").write_bytes(OLD + b"tail" * 300)
    (directory / "b").chmod(0o755)


def not_startable(directory: Path) -> None:
    (directory / "b").write_bytes(b"was copied here by hand")
    (directory / "b").chmod(0o644)


async def write(directory: Path, end: str = "finish") -> None:
    writer = await FileSlots(directory).open_writer(Slot.B, len(NEW))
    for start in range(0, len(NEW), 1000):
        await writer.write(NEW[start : start + 1000])
    await getattr(writer, end)()


@ORDERS
@pytest.mark.parametrize("before", [blank, longer, not_startable])
@pytest.mark.parametrize("attempts", [("finish",), ("abort", "finish")])
def test_a_finished_image_is_whole_and_the_running_one_untouched(
    tmp_path: Path, before: Callable[[Path], None], attempts: tuple[str, ...], order: Order
) -> None:
    def prepare(directory: Path) -> None:
        make_slots(directory)
        before(directory)

    def action(directory: Path, mark: Mark) -> None:
        for end in attempts:
            anyio.run(write, directory, end)
        mark("finished")

    def check(directory: Path, point: CrashPoint) -> None:
        assert (directory / "a").read_bytes() == OLD
        if point.marks:
            assert (directory / "b").read_bytes() == NEW
            assert (directory / "b").stat().st_mode & 0o700 == 0o700

    report = every_crash(action, check, tmp_path, prepare=prepare, order=order, limit=64)
    tell(f"writer, {before.__name__}, {attempts}", report)


@ORDERS
def test_a_new_directory_is_as_durable_as_the_image_in_it(tmp_path: Path, order: Order) -> None:
    def action(directory: Path, mark: Mark) -> None:
        anyio.run(write, directory / "var" / "device")
        mark("finished")

    def check(directory: Path, point: CrashPoint) -> None:
        if point.marks:
            assert (directory / "var" / "device" / "b").read_bytes() == NEW
        else:
            FileSlots(directory / "var" / "device")

    tell("new directory", every_crash(action, check, tmp_path, order=order, limit=64))


# a life


async def boots(directory: Path) -> tuple[Device, Verdict]:
    """Switch on: as often as the boot decision says."""
    while True:
        device = file_device(directory)
        verdict = await boot_check(device)
        if verdict is not Verdict.RESET:
            return device, verdict


async def update(device: Device) -> None:
    async with OtaSession(device, size=len(NEW)) as ota:
        for start in range(0, len(NEW), 1000):
            await ota.write(NEW[start : start + 1000])
        await ota.activate(await ota.seal())


async def live(directory: Path, mark: Mark) -> None:
    """First start, an update that is given up, one that is taken, trial, commit, rollback by an operator, and again."""
    device, _ = await boots(directory)
    async with OtaSession(device, size=len(NEW)) as ota:
        await ota.write(NEW[:2000])
    mark("began")
    for _ in range(2):
        await update(device)
        mark("activated")
        device, verdict = await boots(directory)
        assert verdict is Verdict.TRIAL
        mark("tried")
        await commit(device)
        mark("committed")
        await rollback(device)
        device, _ = await boots(directory)
        mark("rolled back")
        mark("began")


async def boot_and_look(directory: Path) -> tuple[Device, Verdict, bytes]:
    """What boots is one whole image, and the record speaks of it."""
    device, verdict = await boots(directory)
    running = await device.flash.running_slot()
    path = directory / running.value
    data = path.read_bytes() if path.exists() else b""
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
    return device, verdict, data


EXPECTED: dict[object, set[tuple[Verdict, bytes]]] = {
    None: {(Verdict.RUN, OLD)},
    "began": {(Verdict.RUN, OLD), (Verdict.TRIAL, NEW)},
    "activated": {(Verdict.TRIAL, NEW), (Verdict.RUN, OLD)},  # old: the trial was stored as begun, and is cut off
    "tried": {(Verdict.RUN, OLD), (Verdict.RUN, NEW)},
    "committed": {(Verdict.RUN, NEW), (Verdict.RUN, OLD)},
    "rolled back": {(Verdict.RUN, OLD)},
}
"""What may boot after a crash, by the last mark: (verdict, image)."""


async def check_life(directory: Path, point: CrashPoint) -> None:
    device, verdict, data = await boot_and_look(directory)
    assert (verdict, data) in EXPECTED[point.marks[-1] if point.marks else None]
    if verdict is Verdict.TRIAL:
        device, verdict, data = await boot_and_look(directory)  # a cut during a trial rolls back
        assert (verdict, data) == (Verdict.RUN, OLD)
    if data == OLD:
        await update(device)
        _, verdict, data = await boot_and_look(directory)
        assert (verdict, data) == (Verdict.TRIAL, NEW), "the update was not taken again"


def lives(directory: Path, mark: Mark) -> None:
    anyio.run(live, directory, mark)


def checks(directory: Path, point: CrashPoint) -> None:
    anyio.run(check_life, directory, point)


@ORDERS
def test_a_whole_life_survives_every_crash(tmp_path: Path, order: Order) -> None:
    report = every_crash(lives, checks, tmp_path, prepare=make_slots, order=order, limit=24)
    tell("a life", report)
    assert report.points > 100


@pytest.mark.parametrize("kept", ["files", "directories", "nothing"])
def test_a_life_without_fsync_does_not(tmp_path: Path, kept: str) -> None:
    def action(directory: Path, mark: Mark) -> None:
        real = os.fsync

        def fsync(descriptor: int) -> None:
            if kept == ("directories" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "files"):
                real(descriptor)

        with pytest.MonkeyPatch.context() as patch:
            for name in ("fsync", "fdatasync"):
                patch.setattr(os, name, fsync)
            lives(directory, mark)

    with pytest.raises((AssertionError, OtaError)) as caught:
        every_crash(action, checks, tmp_path, prepare=make_slots, limit=1)
    tell(f"control life, fsync of {kept}", f"{caught.type.__name__}, {caught.value.__notes__[-1]}")


def test_what_a_boot_decided_stays_though_the_process_before_was_killed(tmp_path: Path) -> None:
    async def decide(directory: Path, mark: Mark) -> None:
        _, verdict, data = await boot_and_look(directory)
        mark((Verdict.RUN, OLD if verdict is Verdict.TRIAL else data))  # a cut during a trial rolls back

    def check(directory: Path, point: CrashPoint) -> None:
        if point.marks:
            verdict, data = anyio.run(boot_and_look, directory)[1:]
            assert (verdict, data) == point.marks[-1]

    checked, killed, at = 0, True, 1
    while killed:

        def action(directory: Path, mark: Mark, at: int = at) -> None:
            nonlocal killed
            with Kernel().installed() as kernel:
                killed = kernel.killed(lambda: lives(directory, lambda _: None), at)
            anyio.run(decide, directory, mark)
            anyio.run(boots, directory)

        (tmp_path / str(at)).mkdir()
        checked += every_crash(action, check, tmp_path / str(at), prepare=make_slots, limit=8).checked
        at += 11
    tell("killed lives", f"{at // 11} kills, {checked} states")
    assert at > 100
