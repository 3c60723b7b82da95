"""What a virtual board must not do to the machine under it, nor that machine to the board."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from images import System
from machine import DIES_WITH_US, PATIENCE, MakeBoard

pytestmark = [
    pytest.mark.sbc,
    pytest.mark.timeout(600),
    pytest.mark.program("qemu-system-aarch64", "fw_printenv", "mkfs.ext4", "debugfs", "setpriv"),
]

STARTER = """\
import subprocess, sys
print(subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL).pid, flush=True)
sys.stdin.read()
"""


def state_of(pid: int) -> str:
    """As /proc says it: a letter, or nothing if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def test_a_machine_dies_with_the_process_that_started_it() -> None:
    command = [sys.executable, "-c", STARTER, *DIES_WITH_US, "sleep", "1000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout
        machine = int(starter.stdout.readline())
        deadline = time.monotonic() + PATIENCE
        while Path(f"/proc/{machine}/comm").read_text() != "sleep\n":  # the wish is made before that
            assert time.monotonic() < deadline
            time.sleep(0.01)
        starter.send_signal(signal.SIGKILL)
        while state_of(machine) not in ("", "Z"):  # whoever adopts it may never look
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_nobody_types_at_the_board_s_console(
    make_board: MakeBoard, system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    discarded = tmp_path / "null"  # what /dev/null is where a program of root's has replaced it with a file
    discarded.write_text("/usr/bin/setpriv\n" * 100)
    board = make_board(system.firmware("1.0"))
    descriptor = os.open(discarded, os.O_RDONLY)
    try:
        monkeypatch.setattr(subprocess, "DEVNULL", descriptor)
        with board.powered() as version:
            assert version == "1.0"
    finally:
        os.close(descriptor)
    assert not any("setpriv" in line for line in board.log)
