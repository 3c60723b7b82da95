"""`mgota run` on the command line. What the launcher does is tests/linux's."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from terminal import PROGRAM, Terminal

PROGRAM_TEXT = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(os.environ["MGOTA_SLOT"])
time.sleep(600)
"""


def test_run_starts_the_slot_and_other_commands_see_it(mgota: Terminal, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(PROGRAM_TEXT)
    mgota.ok("provision", tmp_path / "app.py", "--dir", tmp_path / "d")
    said = tmp_path / "said"
    command = [*PROGRAM, "run", "--dir", str(tmp_path / "d"), "--", sys.executable, "{slot}", str(said)]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 30
        while not said.exists() or not said.read_text():
            assert launcher.poll() is None, launcher.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert said.read_text() == "a"
        assert mgota.ok("status", "--dir", tmp_path / "d", "--json").json["active_slot"] == "a"
        assert "at work" in mgota("provision", tmp_path / "app.py", "--dir", tmp_path / "d", "--force").line
        assert "another launcher" in mgota("run", "--dir", tmp_path / "d", "--", "true").line.splitlines()[-1]
        launcher.send_signal(signal.SIGTERM)
        out, err = launcher.communicate(timeout=30)
    finally:
        launcher.kill()
        launcher.wait()
    assert (launcher.returncode, out) == (0, "")
    assert "running slot a" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("options", "words"), [(["--key", "missing"], "missing"), ([], "provision")])
def test_what_cannot_run_is_one_line(mgota: Terminal, tmp_path: Path, options: list[str], words: str) -> None:
    done = mgota("run", "--dir", tmp_path / "d", *options, "--", "true", "--option-of-its-own")
    assert done.code == 1
    assert words in done.err.splitlines()[-1]
