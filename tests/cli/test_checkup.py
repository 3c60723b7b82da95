"""What the doctor says of watchdogs, by what the kernel says of them in sysfs, and of who is at work."""

from pathlib import Path

import pytest

from mgota.cli.checkup import RUN, Findings, Level, _check_watchdog, is_at_work
from mgota.core.config import Config, read_config
from mgota.flash.files import FileLock


def config(root: Path, watchdog: str = "", window: float = 60.0) -> Config:
    text = f"[device]\nwindow = {window}\ndata = '{root}'\nlock = '{root}/lock'\n[slots]\nkind = 'block'\n"
    return read_config(f"{text}a = '/a'\nb = '/b'\n[selector]\nkind = 'grub'\n{watchdog}", "x")


def look(root: Path, *, limit: str = "", window: float = 60.0, **files: str) -> list[tuple[Level, str]]:
    """What is found of a watchdog whose sysfs says this."""
    (root / "watchdog0").mkdir(exist_ok=True)
    for name, text in files.items():
        (root / "watchdog0" / name).write_text(f"{text}\n")
    (root / "watchdog").touch()
    section = f"[watchdog]\nkind = 'device'\npath = '{root}/watchdog'\n{limit}"
    found = Findings()
    _check_watchdog(config(root, section, window), found, sysfs=str(root))
    assert {one.where for one in found} == {"watchdog"}
    return [(one.level, one.text) for one in found]


def test_a_watchdog_that_counts_long_enough(tmp_path: Path) -> None:
    found = look(tmp_path, identity="i6300ESB timer", max_timeout="60", state="inactive", nowayout="0")
    assert found[0] == (Level.WELL, f"{tmp_path}/watchdog is i6300ESB timer")
    assert [(level, "fed on trial only" in text) for level, text in found[1:]] == [(Level.NOTE, True)]
    assert look(tmp_path, max_timeout="0", window=1000)[0][0] is Level.WELL  # its driver names no limit


@pytest.mark.parametrize(("more", "seconds"), [("", 30), ("timeout = 12.5\n", 12.5), ("limit = 15\n", 15)])
def test_one_that_is_fed_for_life(tmp_path: Path, more: str, seconds: float) -> None:
    found = look(tmp_path, limit=f"always = true\n{more}", window=10, identity="dog")
    assert found[1:] == [
        (Level.WELL, f"{tmp_path}/watchdog is fed for life: {seconds:g} s without a sign of it reset the board")
    ]
    ((level, text),) = look(tmp_path, limit=f"always = true\n{more}", window=10, nowayout="1")[2:]
    assert (level, "without `mgota run` the board resets" in text) == (Level.NOTE, True)


@pytest.mark.parametrize(("limit", "files"), [("", {"max_timeout": "15"}), ("limit = 15", {"max_timeout": "0"})])
def test_a_longer_window_is_told(tmp_path: Path, limit: str, files: dict[str, str]) -> None:
    levels, texts = zip(*look(tmp_path, limit=limit, window=15.5, **files), strict=True)
    assert levels == (Level.NOTE, Level.WELL, Level.NOTE)
    assert "counts 15 s, the window has 15.5 s" in texts[0]
    assert [level for level, _ in look(tmp_path, limit=limit, window=15, **files)] == [Level.WELL, Level.NOTE]


def test_one_that_another_program_has(tmp_path: Path) -> None:
    ((level, text), *_) = look(tmp_path, state="active")
    assert (level, "RuntimeWatchdogSec= is set; switch that off" in text) == (Level.WRONG, True)
    with FileLock(f"{tmp_path}/lock{RUN}").hold():  # it is `mgota run` itself
        assert [level for level, _ in look(tmp_path, state="active")] == [Level.WELL, Level.NOTE]


def test_one_that_cannot_be_stopped(tmp_path: Path) -> None:
    found = look(tmp_path, nowayout="1")
    assert (found[-1][0], "every commit resets the board" in found[-1][1]) == (Level.NOTE, True)


def test_none_and_systemds(tmp_path: Path) -> None:
    for section, level in (("", Level.NOTE), ("[watchdog]\nkind = 'systemd'\n", Level.WELL)):
        found = Findings()
        _check_watchdog(config(tmp_path, section), found)
        assert [one.level for one in found] == [level]


def test_who_is_at_work(tmp_path: Path) -> None:
    board = config(tmp_path)
    assert not is_at_work(board)
    assert not (tmp_path / f"lock{RUN}").exists()
    with FileLock(f"{tmp_path}/lock{RUN}").hold():
        assert is_at_work(board)
    assert not is_at_work(board)
    assert not is_at_work(read_config(f"[slots]\ndirectory = '{tmp_path}'\n", "x"))
