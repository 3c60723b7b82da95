"""The power is cut while a board updates itself: what runs in the end is one whole version, and it is known which.

The board stops at a mark of its application and the machine is killed there; see `guest/board.py`. Then it is switched
on again and left alone. The rule, in the order of an update: until TESTING is stored nothing has happened; from then on
the update goes on by itself; a cut on the trial uses the trial up; a commit that is stored is for good.
"""

import hashlib

import pytest
from images import Firmware, System
from machine import Board

from mgota.core.geometry import Slot

pytestmark = [
    pytest.mark.sbc,
    pytest.mark.timeout(600),
    pytest.mark.program("qemu-system-aarch64", "fw_printenv", "mkfs.ext4", "debugfs"),
]

CUTS = (
    # write
    ("1.0: before selecting a", "1.0"),
    ("1.0: before storing CONFIRMED", "1.0"),
    ("1.0: after storing CONFIRMED", "1.0"),
    ("1.0: writing, quarter 1", "1.0"),
    ("1.0: writing, quarter 3", "1.0"),
    ("1.0: before finish", "1.0"),
    ("1.0: after finish", "1.0"),
    # record
    ("1.0: before storing TESTING", "1.0"),
    ("1.0: after storing TESTING", "2.0"),
    # selection
    ("1.0: before selecting b", "2.0"),
    ("1.0: after selecting b", "2.0"),
    ("1.0: before the reset", "2.0"),
    # trial
    ("U-Boot starts B", "2.0"),
    ("2.0: before the boot decision", "2.0"),
    ("2.0: before storing FAILED", "2.0"),
    ("2.0: after storing FAILED", "1.0"),
    # commit
    ("2.0: before selecting b", "1.0"),
    ("2.0: before storing CONFIRMED", "1.0"),
    ("2.0: after storing CONFIRMED", "2.0"),
    ("2.0: before settling", "2.0"),
    ("2.0: after settling", "2.0"),
)


@pytest.mark.parametrize(("halt", "runs"), CUTS, ids=[halt for halt, _ in CUTS])
def test_a_power_cut_leaves_one_whole_version(board: Board, system: System, halt: str, runs: str) -> None:
    cut_and_look(board, system, system.firmware("2.0"), halt, runs)


@pytest.mark.parametrize("halt", ["2.0: before selecting a", "2.0: after selecting a"])
def test_a_power_cut_on_the_way_back_leaves_the_old_version(board: Board, system: System, halt: str) -> None:
    cut_and_look(board, system, system.firmware("2.0", crash="trial"), halt, "1.0")
    assert board.record().outcome == "rolled_back"


def cut_and_look(board: Board, system: System, two: Firmware, halt: str, runs: str) -> None:
    """Update a board, cut its power where it halts, and ask what it is when it is switched on again."""
    one = system.firmware("1.0")
    with board.powered(halt=halt), board.pushing(two.path):
        board.wait_for(rf"board: (halted at )?{halt}")
    with board.powered() as version:
        assert version == runs
        status = board.status()
        assert status["state"] == "CONFIRMED"
        assert status["image"]["sha256"] == (one if runs == "1.0" else two).sha256
    slot = "a" if runs == "1.0" else "b"
    firmware = one if runs == "1.0" else two
    assert hashlib.sha256(board.slot(slot, firmware.size)).hexdigest() == firmware.sha256
    environment = board.environment()
    assert environment["BOOT_ORDER"].split()[0] == slot.upper()
    assert environment[f"BOOT_{slot.upper()}_LEFT"] == "2"
    record = board.record()
    assert record.state == "CONFIRMED"
    image = record.image(Slot(slot))
    assert image
    assert (image.sha256, image.proven) == (firmware.sha256, True)
