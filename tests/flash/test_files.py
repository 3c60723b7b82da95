"""Replaced entirely or not at all; one holder at a time."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mgota.errors import ConfigError, UpdateRunningError
from mgota.flash.files import DoubtfulError, DurableFile, FileLock, replace_file, sync_directory
from mgota.ports import ProcessLock


def test_two_holders_in_one_process_conflict(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    assert isinstance(lock, ProcessLock)
    for _ in range(2):
        with lock.hold():
            for other in (lock, FileLock(tmp_path / "lock")):
                with pytest.raises(UpdateRunningError, match="lock is locked"), other.hold():
                    pass


def test_another_process_conflicts_until_the_holder_ends(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    program = (
        "import sys; from mgota.flash.files import FileLock\n"
        "with FileLock(sys.argv[1]).hold(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(lock.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(UpdateRunningError), lock.hold():
            pass
        child.kill()
    with lock.hold():
        pass


def test_a_failure_inside_releases_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with pytest.raises(ZeroDivisionError), lock.hold():
        raise ZeroDivisionError
    with lock.hold():
        pass


def test_a_fork_that_lives_on_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    with lock.hold():
        # What a fork would inherit: a second descriptor of the same open file.
        held = next(int(fd.name) for fd in Path("/proc/self/fd").iterdir() if _leads_to(fd, lock.path))
        assert not os.get_inheritable(held)
        copy = os.dup(held)
    with lock.hold():
        os.close(copy)


def _leads_to(descriptor: Path, path: Path) -> bool:
    try:
        return descriptor.readlink() == path
    except OSError:
        return False


def test_a_lock_that_cannot_be_is_a_matter_of_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"), FileLock(tmp_path / "no" / "lock").hold():
        pass

    def fail(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(ConfigError, match="No locks"), FileLock(tmp_path / "lock").hold():
        pass


def test_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state"
    replace_file(path, b"old")
    replace_file(path, bytearray(b"new"), mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    replace_file(path, iter([b"in ", b"pieces"]))
    assert path.read_bytes() == b"in pieces"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "state"
    link.symlink_to(tmp_path / "data" / "state")
    replace_file(link, b"there")
    assert link.is_symlink()
    assert (tmp_path / "data" / "state").read_bytes() == b"there"


def test_what_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to("pipe")
    for path in (pipe, link):
        with pytest.raises(OSError, match="no file") as caught:
            replace_file(path, b"new")
        assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, str(pipe))
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path, b"new")
    assert pipe.is_fifo()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


def test_the_order_is_fsync_rename_fsync_of_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "state", list[str]()
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(descriptor: int) -> None:
        done.append("directory" if Path(f"/proc/self/fd/{descriptor}").is_dir() else "file")
        assert path.exists() == (done[-1] == "directory")
        fsync(descriptor)

    def spy_replace(self: Path, target: Path) -> Path:
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr("os.fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    replace_file(path, b"new")
    assert done == ["file", "rename", "directory"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failing_fsync_is_raised_and_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path, calls = tmp_path / "state", list[int]()
    replace_file(path, b"old")

    def fail(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="Input/output error"):
        replace_file(path, b"new")
    assert len(calls) == failing  # never retried
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    assert path.read_bytes() == (b"old" if failing == 1 else b"new")


def test_a_directory_is_synced_or_it_is_an_error(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    with pytest.raises(OSError):
        sync_directory(tmp_path / "missing")


# durable files


class Syncs:
    """Lets the fsyncs with these numbers fail, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *failing: int) -> None:
        self.count = 0
        self.failing = failing
        self.real = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.count += 1
        if self.count in self.failing:
            raise OSError(errno.EIO, "Input/output error")
        self.real(descriptor)


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "x", 8)
    assert file.load() is None
    for data in (b"", b"12345678", b"1"):
        file.store(data)
        assert file.load() == DurableFile(tmp_path / "x", 8).load() == data


def test_content_is_made_durable_once_before_it_is_acted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(b"1")
    syncs, file = Syncs(monkeypatch), DurableFile(tmp_path / "x", 8)
    assert file.load() == file.load() == b"1"
    assert syncs.count == 2, "the file and its directory"


def test_more_than_the_limit_is_refused_and_seen(tmp_path: Path) -> None:
    file = DurableFile(tmp_path / "x", 8)
    with pytest.raises(OSError, match="9 bytes, and 8 are the limit") as caught:
        file.store(bytes(9))
    assert caught.value.errno == errno.EFBIG
    assert file.load() is None
    (tmp_path / "x").write_bytes(bytes(100))
    assert file.load() == bytes(9)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.read
    monkeypatch.setattr(os, "read", lambda descriptor, size: real(descriptor, min(size, 3)))
    (tmp_path / "x").write_bytes(b"12345678")
    assert DurableFile(tmp_path / "x", 8).load() == b"12345678"


@pytest.mark.parametrize("failing", [1, 2])
def test_content_that_could_not_be_made_durable_is_doubtful_until_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    (tmp_path / "x").write_bytes(b"1")
    syncs, file = Syncs(monkeypatch, failing), DurableFile(tmp_path / "x", 8)
    with pytest.raises(OSError, match="Input/output"):
        file.load()
    for _ in range(2):
        with pytest.raises(DoubtfulError, match="nobody knows"):
            file.load()
    assert syncs.count == failing
    file.store(b"1")
    assert file.load() == b"1"


def test_a_doubt_outlives_a_store_that_failed_before_it_changed_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = DurableFile(tmp_path / "x", 8)
    file.store(b"old")
    Syncs(monkeypatch, 2, 3)
    for data in (b"new", b"newer"):  # the first fails after the rename, the second before it
        with pytest.raises(OSError, match="Input/output"):
            file.store(data)
    assert (tmp_path / "x").read_bytes() == b"new"
    with pytest.raises(DoubtfulError):
        file.load()
    file.store(b"newest")
    assert file.load() == b"newest"


def test_what_an_early_failure_left_in_place_is_not_doubtful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DurableFile(tmp_path / "x", 8)
    file.store(b"old")
    Syncs(monkeypatch, 1)
    with pytest.raises(OSError, match="Input/output"):
        file.store(b"new")
    assert file.load() == b"old"


def test_what_one_thread_is_making_durable_is_not_in_doubt_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program loads its record for a status and for its trial at once; one of them found it unreadable."""
    (tmp_path / "record").write_bytes(b"what is there")
    file = DurableFile(tmp_path / "record", 100)
    found: list[bytes | Exception | None] = []

    def load() -> None:
        try:
            found.append(file.load())
        except OSError as exc:
            found.append(exc)

    others: list[threading.Thread] = []
    fsync = os.fsync

    def slow(descriptor: int) -> None:
        if not others:
            others.append(threading.Thread(target=load))
            others[0].start()
            others[0].join(0.1)  # it ends in this time, or waits for us
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    load()
    others[0].join()
    assert found == [b"what is there"] * 2
