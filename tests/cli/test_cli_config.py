"""Commands that find their device in a configuration file; boards are in tests/linux."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import PATIENCE, PROGRAM, Shop, Terminal

from mgota.cli import board

PROGRAM_TEXT = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(os.environ["MGOTA_SLOT"] + " " + os.environ["MGOTA_HISTORY"])
time.sleep(600)
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mgota.toml"
    command = f'["{sys.executable}", "{{slot}}", "{tmp_path}/said"]'
    path.write_text(f'[slots]\ndirectory = "{tmp_path}/d"\n[program]\ncommand = {command}\n')
    return path


def test_a_program_is_run_and_updated_by_its_file(mgota: Terminal, tmp_path: Path, config: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM_TEXT)
    wrong = mgota("doctor", "--config", config)
    assert (wrong.code, "slots.directory: there is no directory" in wrong.out) == (1, True)
    mgota.ok("provision", tmp_path / "app.py", "--config", config)
    assert "slot a is selected, and holds an image" in mgota.ok("doctor", "--config", config).out
    said = tmp_path / "said"
    launcher = subprocess.Popen([*PROGRAM, "run", "--config", str(config)], stderr=subprocess.PIPE, text=True)

    def says(text: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not said.exists() or said.read_text() != text:
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    try:
        says(f"a {tmp_path}/d/history")
        (tmp_path / "new.py").write_text(PROGRAM_TEXT + "# a newer one\n")
        mgota.ok("install", tmp_path / "new.py", "--config", config)
        says(f"b {tmp_path}/d/history")
        assert mgota.ok("status", "--config", config, "--json").json["trial"]
        assert mgota.ok("commit", "--config", config).out == "committed\n"
        assert mgota.ok("rollback", "--config", config, "--json").json == {"rolled_back": True}
        says(f"a {tmp_path}/d/history")
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(PATIENCE) == 0
    finally:
        launcher.kill()
        launcher.communicate()


def test_the_usual_file_counts_when_nothing_else_is_named(
    mgota: Terminal, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "CONFIG", str(tmp_path / "gone.toml"))
    for command in ("status", "commit", "rollback"):
        done = mgota(command)
        assert (done.code, "which device?" in done.err) == (2, True)
        assert mgota(command, "--dir", tmp_path, "--config", config).code == 2
    assert mgota("run").code == 2
    assert mgota("run", "--config", config, "--", "true").code == 2
    assert "give --config FILE" in mgota("install", config).err
    monkeypatch.setattr(board, "CONFIG", str(config))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"image")
    assert mgota.ok("status", "--json").json["active_slot"] == "a"
    assert mgota("status", "--dir", tmp_path / "gone").code == 1


def test_all_faults_of_a_file_are_told_with_their_lines(mgota: Terminal, config: Path) -> None:
    config.write_text('[slots]\ndirectory = 7\n\n[program]\ncomand = "x"\n')
    done = mgota("doctor", "--config", config)
    assert done.code == 1
    assert [line.partition(": ")[0] for line in done.out.splitlines()] == [f"WRONG {config}:2", f"WRONG {config}:5"]
    assert [one["where"] for one in mgota("doctor", "--config", config, "--json").json] == [
        f"{config}:2",
        f"{config}:5",
    ]
    assert f"{config}:2: slots.directory" in mgota("status", "--config", config).line
    assert "cannot be read" in mgota("doctor", "--config", config.with_name("gone")).line


def test_there_has_to_be_something_to_run(mgota: Terminal, tmp_path: Path, config: Path) -> None:
    (tmp_path / "d").mkdir()
    config.write_text(f'[slots]\ndirectory = "{tmp_path}/d"\n')
    out = mgota("doctor", "--config", config).out
    assert "WRONG program.command" in out
    assert "WRONG slots: slot a is selected and empty" in out
    assert "what is there to run?" in mgota("run", "--config", config).err


def test_a_first_image_is_written_as_the_file_says(mgota: Terminal, shop: Shop, tmp_path: Path, config: Path) -> None:
    text = config.read_text()
    config.write_text(f'[device]\nfloor = "2"\n[keys]\nimages = ["{shop.public}"]\n{text}')
    bare = tmp_path / "bare"
    bare.write_bytes(b"MG_VERSION:3.0.0\0" + bytes(200))
    assert mgota("provision", bare, "--config", config).code == 1  # unsigned
    assert "below" in mgota("provision", shop.image("1.0.0"), "--config", config).line
    assert not (tmp_path / "d").exists()
    assert mgota.ok("provision", shop.image("2.0.0"), "--config", config, "--json").json["version"] == "2.0.0"
    assert mgota.ok("status", "--config", config, "--json").json["image"]["version"] == "2.0.0"
    for more in (["--dir", tmp_path], ["--key", shop.public], ["--floor", "1"], ["--target", "stm32h5"]):
        assert mgota("provision", bare, "--config", config, *more).code == 2, more


def test_a_board_gets_its_first_image_elsewhere(mgota: Terminal, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples/uboot_board.toml"
    (tmp_path / "fw").write_bytes(b"image")
    assert "with the tools that partition it" in mgota("provision", tmp_path / "fw", "--config", path).line
