"""What a crash may leave of files, by hand: the recorder misses nothing, and the model allows neither more nor less."""

import builtins
import errno
import io
import mmap
import os
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mgota.testing.crash_states import CrashPoint, CrashState, Order
from mgota.testing.crashes import every_crash
from mgota.testing.disk import SECTOR, STALE
from mgota.testing.recorder import FileRecorder

A, B, C = (letter * SECTOR for letter in (b"A", b"B", b"C"))
ZERO = bytes(SECTOR)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def tree(directory: Path) -> dict[str, object]:
    """What lies in a directory: bytes of files, targets of links, and the modes of files."""
    found = dict[str, object]()
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.is_dir():
            found[name] = None
        else:
            found[name] = (path.read_bytes(), path.stat().st_mode & 0o777)
    return found


def contents(state: CrashState) -> dict[str, bytes]:
    return {path: entry.content for path, entry in state.entries.items()}


def states(recording: FileRecorder, after: int | None = None, **options: Any) -> list[dict[str, bytes]]:
    found = recording.crash_states(after, **options)
    assert found.exhaustive
    return [contents(state) for state in found]


def whats(recording: FileRecorder) -> list[str]:
    return [operation.what for operation in recording.operations]


def as_set(found: list[dict[str, bytes]]) -> set[tuple[tuple[str, bytes], ...]]:
    as_tuples = [tuple(sorted(each.items())) for each in found]
    assert len(set(as_tuples)) == len(as_tuples), "two alike"
    return set(as_tuples)


def only(recording: FileRecorder, name: str = "x", **options: Any) -> set[bytes | None]:
    return {each.get(name) for each in states(recording, **options)}


def sync(path: Path, function: Callable[[int], None] | None = None) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        (function or os.fsync)(descriptor)
    finally:
        os.close(descriptor)


def overwrite(path: Path, data: bytes, offset: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    os.pwrite(descriptor, data, offset)
    os.close(descriptor)


# contents


def test_each_sector_of_a_write_is_lost_or_kept_by_itself(root: Path) -> None:
    (root / "x").write_bytes(A + A + A)
    with FileRecorder(root) as recording:
        overwrite(root / "x", B + B)
    assert only(recording) == {first + second + A for first in (A, B) for second in (A, B)}
    assert only(recording, after=0) == {A + A + A}


def test_a_sector_that_was_written_twice_holds_either(root: Path) -> None:
    (root / "x").write_bytes(A)
    with FileRecorder(root) as recording:
        overwrite(root / "x", b"12")
        overwrite(root / "x", b"34", 2)
    assert only(recording) == {A, b"12" + A[2:], b"1234" + A[4:]}


def test_what_grows_has_its_size_before_its_data_or_after(root: Path) -> None:
    (root / "x").write_bytes(A)
    with FileRecorder(root) as recording:
        overwrite(root / "x", B, SECTOR)
    assert only(recording) == {A, A + ZERO, A + STALE, A + B}


@pytest.mark.parametrize("function", [os.fsync, os.fdatasync])
def test_after_fsync_of_the_file_its_content_is_durable(root: Path, function: Callable[[int], None]) -> None:
    (root / "x").write_bytes(A)
    name = function.__name__
    with FileRecorder(root) as recording:
        overwrite(root / "x", B + B)
        sync(root / "x", getattr(os, name))
        overwrite(root / "x", C)
    assert only(recording, after=2) == {B + B}
    assert only(recording) == {B + B, C + B}
    assert whats(recording) == ["pwrite x", f"{name} x", "pwrite x"]


def test_a_truncation_is_pending_like_a_write(root: Path) -> None:
    (root / "x").write_bytes(A + A)
    with FileRecorder(root) as recording:
        os.truncate(root / "x", 5)
    assert only(recording) >= {A + A, A[:5], A[:5] + bytes(2 * SECTOR - 5)}
    assert {content[:5] for content in only(recording) if content} == {A[:5]}


def test_space_that_was_allocated_reads_as_zeros(root: Path) -> None:
    (root / "x").touch()
    with FileRecorder(root) as recording, (root / "x").open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, 2 * SECTOR)
    assert only(recording) == {b"", ZERO + ZERO}


def test_a_mode_needs_fsync_and_not_fdatasync(root: Path) -> None:
    (root / "x").touch(0o600)
    for function, modes in (("fdatasync", {0o600, 0o755}), ("fsync", {0o755})):
        (root / "x").chmod(0o600)
        with FileRecorder(root) as recording:
            (root / "x").chmod(0o755)
            sync(root / "x", getattr(os, function))
        assert {state.entries["x"].mode for state in recording.crash_states()} == modes


def test_what_a_failed_fsync_should_have_covered_is_pending_for_ever(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "x").write_bytes(A + A)
    failures = iter([True, False, False])
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if next(failures):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with FileRecorder(root) as recording:
        overwrite(root / "x", B + B)
        with pytest.raises(OSError, match="Input/output"):
            sync(root / "x")
        sync(root / "x")
        overwrite(root / "x", C)
        sync(root / "x")
    assert whats(recording)[1:3] == ["failed fsync x", "fsync x"]
    assert only(recording, after=3) == {A + A, A + B, B + A, B + B}
    assert only(recording) == {C + A, C + B}


# names


def test_a_name_is_durable_after_fsync_of_its_directory_only(root: Path) -> None:
    with FileRecorder(root) as recording:
        with (root / "x").open("xb") as file:
            file.write(A)
            file.flush()
            os.fsync(file.fileno())
        recording.mark("the file")
        sync(root)
    assert only(recording, after=3) == {None, A}
    assert only(recording) == {A}
    assert whats(recording) == ["open x", "write past os x", "fsync x", "mark the file", "fsync ."]


def test_a_rename_may_be_durable_before_what_it_names(root: Path) -> None:
    (root / "x").write_bytes(A)
    with FileRecorder(root) as recording:
        (root / "t").write_bytes(B)
        (root / "t").replace(root / "x")
        sync(root)
    assert only(recording) == {b"", ZERO, STALE, B}, "the classic file of no bytes"


def test_names_are_lost_in_any_subset_or_in_their_order(root: Path) -> None:
    with FileRecorder(root) as recording:
        (root / "x").symlink_to("1")
        (root / "y").symlink_to("2")
        (root / "x").unlink()
        (root / "z").symlink_to("3")
    names = states(recording, order=Order.PREFIX)
    assert sorted(map(sorted, names)) == [[], ["x"], ["x", "y"], ["y"], ["y", "z"]]
    assert sorted(map(sorted, states(recording))) == sorted(
        [x + y + z for x in ([], ["x"]) for y in ([], ["y"]) for z in ([], ["z"])]
    )


def test_a_rename_between_two_directories_needs_both(root: Path) -> None:
    for name in ("from", "to"):
        (root / name).mkdir()
    (root / "from" / "x").write_bytes(A)
    for synced in ((), ("from",), ("to",), ("from", "to")):
        with FileRecorder(root) as recording:
            (root / "from" / "x").rename(root / "to" / "x")
            for name in synced:
                sync(root / name)
        old, new = {"from", "to", "from/x"}, {"from", "to", "to/x"}
        for order in Order:
            found = [set(each) for each in states(recording, order=order)]
            assert found == [new] if len(synced) == 2 else found == [new, old]
        (root / "to" / "x").rename(root / "from" / "x")


def test_the_order_of_one_directory_binds_no_other(root: Path) -> None:
    for name in ("d", "e"):
        (root / name).mkdir()
    (root / "d" / "x").touch()
    with FileRecorder(root) as recording:
        (root / "d" / "1").touch()
        (root / "d" / "x").rename(root / "e" / "x")
        (root / "e" / "2").touch()
    found = {frozenset(each) - {"d", "e"} for each in states(recording, order=Order.PREFIX)}
    assert found == {frozenset(names) for names in ({"d/x"}, {"d/1", "d/x"}, {"d/1", "e/x"}, {"d/1", "e/x", "e/2"})}


def test_a_directory_that_is_lost_takes_everything_along(root: Path) -> None:
    with FileRecorder(root) as recording:
        (root / "d" / "e").mkdir(parents=True)
        (root / "d" / "e" / "x").write_bytes(A)
        sync(root / "d" / "e" / "x")
        sync(root / "d" / "e")
        sync(root)
    assert [set(each) for each in states(recording)] == [{"d", "d/e", "d/e/x"}, {"d"}]


def test_two_names_of_one_file_are_one_file(root: Path, tmp_path: Path) -> None:
    (root / "x").write_bytes(A)
    with FileRecorder(root) as recording:
        os.link(root / "x", root / "y")
        overwrite(root / "y", B)
        (root / "x").replace(root / "y")  # two names of one file: nothing happens
    assert as_set(states(recording)) == as_set([{"x": A}, {"x": B}, {"x": A, "y": A}, {"x": B, "y": B}])
    next(iter(recording.crash_states())).write_to(tmp_path / "copy")
    assert (tmp_path / "copy" / "x").samefile(tmp_path / "copy" / "y")


def test_a_name_that_is_used_again_is_another_file(root: Path) -> None:
    (root / "x").write_bytes(A)
    with FileRecorder(root) as recording:
        (root / "x").unlink()
        (root / "x").write_bytes(B)
    assert only(recording) == {A, None, b"", ZERO, STALE, B}


def test_a_knot_of_directories_is_cut(root: Path) -> None:
    (root / "a").mkdir()
    (root / "b").mkdir()
    with FileRecorder(root) as recording:
        (root / "a").rename(root / "c")
        (root / "b").rename(root / "c" / "b")
        (root / "c" / "b").rename(root / "b")
        (root / "c").rename(root / "b" / "a")
    assert all(len(each) < 10 for each in states(recording))


# what the recorder sees


def test_everything_is_put_back(root: Path) -> None:
    before = {name: getattr(os, name) for name in dir(os)}
    opens = builtins.open, io.open
    with suppress(ZeroDivisionError), FileRecorder(root):
        assert os.open is not before["open"]
        raise ZeroDivisionError
    assert {name: getattr(os, name) for name in dir(os)} == before
    assert (builtins.open, io.open) == opens


def test_what_goes_around_os_is_found(root: Path) -> None:
    (root / "mapped").write_bytes(A + A)
    with FileRecorder(root) as recording:
        file = (root / "buffered").open("xb", buffering=4 * SECTOR)
        file.write(A)
        descriptor = os.open(root / "mapped", os.O_RDWR)
        with mmap.mmap(descriptor, 0) as memory:
            memory[:2] = b"12"
        os.close(descriptor)
        file.close()
    assert whats(recording) == ["open buffered", "write past os mapped", "write past os buffered"]
    last = states(recording)[0]
    assert last == {"buffered": A, "mapped": b"12" + (A + A)[2:]}


def test_every_way_to_write_is_recorded(root: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(C * 4)
    with FileRecorder(root) as recording:
        descriptor = os.open(path=root / "x", flags=os.O_RDWR | os.O_CREAT)
        source = os.open(tmp_path / "source", os.O_RDONLY)
        os.write(descriptor, A)
        os.writev(descriptor, [b"1", b"2"])
        os.pwritev(descriptor, [B], SECTOR)
        os.sendfile(descriptor, source, None, 10)
        os.ftruncate(descriptor, 7)
        os.fsync(fd=descriptor)
        os.fchmod(descriptor, 0o600)
        directory = os.open(root, os.O_RDONLY)
        os.rename(src="x", dst="y", src_dir_fd=directory, dst_dir_fd=directory)
        os.mkdir("d", dir_fd=directory)
        os.rmdir("d", dir_fd=directory)
        os.unlink(b"y", dir_fd=directory)
        os.symlink("there", "l", dir_fd=directory)
        for each in (descriptor, source, directory):
            os.close(each)
    assert whats(recording) == [
        *("open x", "write x", "writev x", "pwritev x", "sendfile x", "ftruncate x", "fsync x", "fchmod x"),
        *("rename x to y", "mkdir d", "rmdir d", "unlink y", "symlink l"),
    ]
    assert states(recording, limit=1 << 12)[0] == {"l": b"there"}


def test_what_lies_elsewhere_is_not_recorded(root: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere" / "x")
    with FileRecorder(root) as recording:
        (tmp_path / "elsewhere" / "x").write_bytes(A)
        (tmp_path / "elsewhere" / "x").rename(tmp_path / "elsewhere" / "y")
        sync(tmp_path / "elsewhere")
        reader, writer = os.pipe()
        os.write(writer, b"x")
        os.close(writer)
        os.close(reader)
        os.mkfifo(root / "pipe")
        with pytest.raises(OSError):
            os.close(writer)
    assert whats(recording) == []


def test_what_comes_from_elsewhere_arrives_and_what_goes_leaves(root: Path, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(A)
    with FileRecorder(root) as recording:
        (tmp_path / "x").rename(root / "x")
        (root / "x").rename(tmp_path / "y")
    assert whats(recording) == ["rename x", "rename x"]
    assert states(recording)[0] == {}
    assert A in only(recording, after=1)


def test_a_file_is_found_by_another_path(root: Path, tmp_path: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "x").write_bytes(A)
    (tmp_path / "link").symlink_to(root / "d")
    (tmp_path / "file").symlink_to(root / "d" / "x")
    with FileRecorder(root) as recording:
        overwrite(tmp_path / "link" / "x", B)
        os.truncate(tmp_path / "file", 3)
        (tmp_path / "link" / "x").replace(root / "d" / ".." / "y")
    assert whats(recording) == ["pwrite d/x", "truncate d/x", "rename d/x to y"]


def test_an_operation_that_fails_is_as_if_it_were_not(root: Path) -> None:
    with FileRecorder(root) as recording:
        missing, works = root / "missing", list[Callable[[], object]]()
        works += [lambda: missing.rename(root / "x"), missing.unlink, missing.read_bytes, lambda: os.fsync(12345)]
        for work in works:
            with pytest.raises(OSError):
                work()
        with pytest.raises(TypeError):
            os.fsync(None)  # type: ignore[arg-type]
    assert whats(recording) == []


def test_threads_are_recorded_one_operation_at_a_time(root: Path) -> None:
    def work(name: str) -> None:
        for number in range(10):
            (root / name).write_bytes(b"%d" % number)
            sync(root / name)
            (root / name).rename(root / f"{name}{number}")

    with FileRecorder(root) as recording:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        sync(root)
    assert states(recording) == [{f"{name}{number}": b"%d" % number for name in "abc" for number in range(10)}]
    assert sum(" to " in what for what in whats(recording)) == 30


STEPS = st.tuples(
    st.sampled_from(
        [
            "write",
            "append",
            "truncate",
            "rename",
            "unlink",
            "link",
            "symlink",
            "chmod",
            "fsync",
            "sync",
            "mkdir",
            "into",
        ]
    ),
    st.sampled_from("xyz"),
    st.sampled_from("xyz"),
    st.binary(min_size=1, max_size=3),
)


def step(root: Path, what: str, name: str, other: str, data: bytes) -> None:
    path = root / name
    match what:
        case "write":
            path.write_bytes(data * 300)
        case "append":
            with path.open("ab") as file:
                file.write(data * 300)
        case "truncate":
            os.truncate(path, len(data) * 200)
        case "rename":
            path.rename(root / other)
        case "unlink":
            path.unlink()
        case "link":
            os.link(path, root / other)
        case "symlink":
            path.symlink_to(other)
        case "chmod":
            path.chmod(0o600 | len(data))
        case "mkdir":
            path.mkdir()
        case "into":
            path.rename(root / other / name)
        case _:
            sync(path if what == "fsync" else root)


@given(steps=st.lists(STEPS, max_size=25), order=st.sampled_from(Order))
def test_nothing_lost_is_what_there_is_and_fsync_of_all_leaves_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str, bytes]], order: Order
) -> None:
    base = tmp_path_factory.mktemp("any")
    (base / "root").mkdir()
    with FileRecorder(base / "root") as recording:
        for each in steps:
            try:
                step(base / "root", *each)
            except OSError:
                continue
        recording.mark("done")
        done = len(recording.operations)
        for path in [*(base / "root").rglob("*"), base / "root"]:
            if not path.is_symlink():
                sync(path)
    all_there = next(iter(recording.crash_states(done, order=order, limit=16)))
    all_there.write_to(base / "copy")
    assert tree(base / "copy") == tree(base / "root"), all_there.label
    (last,) = recording.crash_states(order=order)
    shutil.rmtree(base / "copy")
    last.write_to(base / "copy")
    assert tree(base / "copy") == tree(base / "root")
    seen = [state.key for state in recording.crash_states(done, order=order, limit=16)]
    assert len(set(seen)) == len(seen)
    shutil.rmtree(base)


# states


def test_a_state_is_written_with_its_modes_and_its_links(root: Path, tmp_path: Path) -> None:
    (root / "d").mkdir(0o750)
    (root / "d" / "x").write_bytes(A)
    (root / "d" / "x").chmod(0o640)
    (root / "inside").symlink_to(root / "d" / "x")
    (root / "outside").symlink_to("/somewhere/else")
    with FileRecorder(root) as recording:
        (root / "d").chmod(0o500)
    states_ = list(recording.crash_states())
    assert [state.label for state in states_] == [
        "after operation 1 (chmod d); lost: nothing",
        "after operation 1 (chmod d); lost: the mode of d, which is 750",
    ]
    copy = tmp_path / "copy"
    states_[1].write_to(copy)
    assert (copy / "inside").readlink() == copy / "d" / "x"
    assert (copy / "outside").readlink() == Path("/somewhere/else")
    assert (copy / "d" / "x").stat().st_mode & 0o777 == 0o640
    assert (copy / "d").stat().st_mode & 0o777 == 0o750
    with pytest.raises(FileExistsError):
        states_[0].write_to(copy)


def test_a_label_says_what_was_lost(root: Path) -> None:
    (root / "x").write_bytes(A + A)
    with FileRecorder(root) as recording:
        overwrite(root / "x", B + B + B)
        (root / "y").symlink_to("x")
    labels = {state.label for state in recording.crash_states()}
    assert "after operation 2 (symlink y); lost: create y, 2 of 3 sectors of x, the size of x, which is 1024" in labels


def test_many_states_are_drawn_with_the_corners_among_them_and_the_same_ones_again(root: Path) -> None:
    (root / "x").write_bytes(A * 40)
    with FileRecorder(root) as recording:
        overwrite(root / "x", B * 40)
        (root / "y").touch()
    found = recording.crash_states(limit=50)
    assert not found.exhaustive
    assert found.possible == 2 * 2**40
    drawn = [contents(state)["x"] for state in found]
    assert 40 <= len(drawn) <= 50
    assert {A * 40, B * 40} <= set(drawn)
    assert [state.key for state in found] == [state.key for state in recording.crash_states(limit=50)]
    assert [state.key for state in found] != [state.key for state in recording.crash_states(limit=50, seed=1)]


@pytest.mark.parametrize("order", list(Order))
def test_many_names_are_drawn_too(root: Path, order: Order) -> None:
    directories = 12 if order is Order.PREFIX else 1
    with FileRecorder(root) as recording:
        for number in range(12):
            directory = root / str(number % directories)
            directory.mkdir(exist_ok=True)
            (directory / f"x{number}").touch()
    found = recording.crash_states(limit=40)
    names = [frozenset(contents(state)) for state in found]
    assert not found.exhaustive
    assert len(names) >= 10
    assert frozenset() in names or order is Order.PREFIX
    assert max(map(len, names)) == 12 + directories


def test_a_point_that_was_not_recorded_is_an_error(root: Path) -> None:
    with FileRecorder(root) as recording:
        (root / "x").touch()
    with pytest.raises(IndexError):
        recording.crash_states(2)


# the driver


def write_x(directory: Path, mark: Callable[[object], None]) -> None:
    (directory / "x").write_bytes(B)
    mark(None)
    sync(directory / "x")
    sync(directory)
    mark("synced")


def fill(directory: Path) -> None:
    (directory / "x").write_bytes(A)


def test_the_first_failure_is_raised_with_what_was_lost(tmp_path: Path) -> None:
    def check(directory: Path, point: CrashPoint) -> None:
        assert (directory / "x").read_bytes() in (A, B)

    with pytest.raises(AssertionError) as caught:
        every_crash(write_x, check, tmp_path, prepare=fill)
    assert caught.value.__notes__[-1].startswith("after operation 1 (open x); lost: ")
    assert list(tmp_path.iterdir()) == []


def test_failures_are_collected_and_counted(tmp_path: Path) -> None:
    def check(directory: Path, point: CrashPoint) -> None:
        shutil.rmtree(directory / "x", ignore_errors=True)
        assert (directory / "x").read_bytes() == (B if point.marks else A)

    report = every_crash(write_x, check, tmp_path, prepare=fill, keep_going=True)
    assert report.points == 7
    assert {failure.point.operation for failure in report.failures} == {1, 2, 3}
    assert {failure.point.marks for failure in report.failures} == {(), (None,)}
    assert str(report) == (
        f"7 crash points, {report.possible} states, {report.checked} distinct ones checked (all of them), "
        f"{len(report.failures)} failures"
    )


def test_an_action_that_fails_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        every_crash(lambda directory, mark: 1 / 0, lambda directory, point: None, tmp_path)
    assert list(tmp_path.iterdir()) == []
