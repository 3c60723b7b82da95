"""Replaced entirely or not at all; one holder at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mgota.errors import ConfigError, UpdateRunningError
from mgota.flash.files import FileLock, replace_file, sync_directory
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
