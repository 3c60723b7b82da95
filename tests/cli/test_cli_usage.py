"""How the command behaves as a whole: help, versions, exits, and what it loads."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import PROGRAM, Terminal, run

import mgota.cli
from mgota.cli.commands import _COMMANDS
from mgota.errors import BusyError


def test_help_and_version(mgota: Terminal) -> None:
    assert mgota.ok("--version").out.startswith("mgota ")
    text = mgota.ok("--help").out
    for name in _COMMANDS:
        assert name in text
        assert f"mgota {name}" in mgota.ok(name, "--help").out


def test_examples_in_the_help_keep_their_lines(mgota: Terminal) -> None:
    assert "\n      http://10.0.0.11:8000\n" in mgota.ok("push", "--help").out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["--fly"],
        ["sign"],
        ["sign", "fw", "--trailer", "der"],
        ["verify", "fw"],
        ["status"],
        ["status", "http://127.0.0.1:1", "--dir", "."],
        ["commit"],
        ["rollback"],
        ["push", "fw"],
        ["push", "fw", "http://127.0.0.1:1", "--devices", "list"],
        ["status", "http://127.0.0.1:1", "--timeout", "nan"],
        ["status", "https://127.0.0.1:1", "--key-file", "k"],
        ["serve"],
        ["serve", "--slots", "d", "--target", "stm32h5", "--flash", "f", "--state", "s"],
        ["serve", "--slots", "d", "--flash", "f"],
        ["serve", "--target", "stm32h5", "--flash", "f"],
        ["serve", "--target", "z80", "--flash", "f", "--state", "s"],
        ["serve", "--slots", "d", "--window", "0"],
        ["serve", "--slots", "d", "--window", "inf"],
        ["serve", "--slots", "d", "--port", "70000"],
        ["serve", "--slots", "d", "--client-ca", "ca"],
        ["run", "--dir", "d"],
        ["run", "--", "true"],
        ["provision", "fw"],
        ["provision", "fw", "--dir", "d", "--slots", "d"],
    ],
)
def test_wrong_usage_is_status_2_and_touches_nothing(
    mgota: Terminal, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mgota(*arguments).code == 2
    assert list(tmp_path.iterdir()) == []


def fails(monkeypatch: pytest.MonkeyPatch, exc: BaseException) -> None:
    def broken(*_: object) -> None:
        raise exc

    monkeypatch.setattr("mgota.cli.verify._scanned", broken)


@pytest.mark.parametrize(
    ("exc", "code", "words"),
    [
        (BusyError("somebody\nelse"), 1, "mgota: somebody else"),
        (BusyError(), 1, "mgota: BusyError"),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [BusyError("deep inside")])]), 1, "mgota: deep inside"),
        (PermissionError(13, "Permission denied", "/etc/x"), 1, "mgota: /etc/x: Permission denied"),
        (OSError(28, "No space left on device"), 1, "mgota: No space left on device"),
        (ZeroDivisionError("oops"), 1, "mgota: ZeroDivisionError: oops (a fault of mgota; run it with -v"),
        (BaseExceptionGroup("tasks", [KeyboardInterrupt()]), 130, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_every_failure_is_one_line(
    mgota: Terminal, monkeypatch: pytest.MonkeyPatch, exc: BaseException, code: int, words: str
) -> None:
    fails(monkeypatch, exc)
    done = mgota("info", "x")
    assert done.code == code
    if words:
        assert done.line.startswith(words)


def test_verbose_adds_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fails(monkeypatch, ZeroDivisionError("oops"))
    with pytest.raises(SystemExit):
        mgota.cli.main(["-v", "info", "x"])
    assert "Traceback" in capsys.readouterr().err


def test_without_click_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("mgota.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as exit_:
        mgota.cli.main(["info", "x"])
    assert "pip install 'mgota[cli]'" in str(exit_.value.code)
    assert "pip install" not in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "fw").write_bytes(b"x")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PROGRAM, "info", "fw"], cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.stderr == b""


@pytest.mark.parametrize("command", ["serve", "run"])
def test_serve_and_run_never_load_what_draws_or_talks(command: str) -> None:
    code = (
        f"import sys, mgota.cli, mgota.cli.commands as c; c.group.get_command(None, {command!r});"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "click" in loaded
    assert not {"rich", "httpx", "aiomqtt"} & set(loaded)


def test_the_command_is_installed() -> None:
    program = Path(sys.executable).with_name("mgota")
    if not program.exists():
        pytest.skip("mgota is not installed beside this Python")
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").out


def test_ctrl_c_is_status_130(tmp_path: Path) -> None:
    process = subprocess.Popen([*PROGRAM, "serve", "--slots", str(tmp_path), "--port", "0"], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
