"""What a board does with an environment that a power cut tore, or that is lost."""

import pytest
import uboot
from images import System
from machine import MakeBoard

pytestmark = [
    pytest.mark.sbc,
    pytest.mark.timeout(600),
    pytest.mark.program("qemu-system-aarch64", "fw_printenv", "mkfs.ext4", "debugfs"),
]

TORN = b"\xa5" * 512
"""A sector of a copy that was just being written."""


def test_with_one_copy_torn_uboot_and_mgota_go_by_the_other(make_board: MakeBoard, system: System) -> None:
    board = make_board(system.firmware("1.0"))
    board.write(uboot.COPIES[0], TORN)  # the newer one
    with board.powered() as version:
        assert version == "1.0"
        assert board.push(system.firmware("2.0").path).returncode == 0
        assert board.wait_until_settled() == "2.0"
    assert board.environment() == {"BOOT_ORDER": "B A", "BOOT_A_LEFT": "2", "BOOT_B_LEFT": "2"}


def test_with_both_copies_torn_the_board_boots_and_takes_no_update(make_board: MakeBoard, system: System) -> None:
    board = make_board(system.firmware("1.0"))
    for offset in uboot.COPIES:
        board.write(offset, TORN)
    with board.powered() as version:
        assert version == "1.0"
        assert any("both copies are bad" in line for line in board.log)
        pushed = board.push(system.firmware("2.0").path)
        assert pushed.returncode != 0
        assert "environment" in pushed.stderr
    for offset in uboot.COPIES:
        assert board.read(offset, len(TORN)) == TORN
    assert board.slot("b", 4096) == bytes(4096)
