"""A board updates its own system: real U-Boot, a real kernel, a real watchdog; what goes wrong is its image."""

import hashlib

import pytest
from images import System
from machine import Board, MakeBoard

pytestmark = [
    pytest.mark.sbc,
    pytest.mark.timeout(600),
    pytest.mark.program("qemu-system-aarch64", "fw_printenv", "mkfs.ext4", "debugfs"),
]


def test_an_update_over_http_is_tried_and_committed(make_board: MakeBoard, system: System) -> None:
    one, two = system.firmware("1.0"), system.firmware("2.0")
    board = make_board(one)
    with board.powered():
        pushed = board.push(two.path)
        assert pushed.returncode == 0, pushed.stderr
        assert board.wait_until_settled() == "2.0"
        assert board.ask("/") == (200, '{"version": "2.0"}\n')
        status = board.status()
        assert (status["state"], status["active_slot"], status["outcome"]) == ("CONFIRMED", "b", "committed")
        assert status["image"]["sha256"] == two.sha256
        assert board.watchdog_bites() == 0
        assert board.qmp.count("RESET") == 1
    assert board.boots() == ["A", "B"]
    assert board.environment() == {"BOOT_ORDER": "B A", "BOOT_A_LEFT": "2", "BOOT_B_LEFT": "2"}
    assert hashlib.sha256(board.slot("a", one.size)).hexdigest() == one.sha256
    assert hashlib.sha256(board.slot("b", two.size)).hexdigest() == two.sha256
    with board.powered() as version:
        assert version == "2.0"
    assert board.boots() == ["A", "B", "B"]


def stays_at_the_old_version(board: Board, system: System, reason: str) -> None:
    """After an update that was rolled back: the board runs version 1.0, says why, and boots it again."""
    assert board.wait_until_settled() == "1.0"
    status = board.status()
    assert (status["state"], status["active_slot"], status["outcome"]) == ("CONFIRMED", "a", "rolled_back")
    assert reason in status["reason"]
    board.cut()
    environment = board.environment()
    assert environment["BOOT_ORDER"].split()[0] == "A"
    assert environment["BOOT_A_LEFT"] == "2"
    one = system.firmware("1.0")
    assert hashlib.sha256(board.slot("a", one.size)).hexdigest() == one.sha256


def test_a_version_that_hangs_on_its_trial_is_reset_by_the_watchdog(board: Board, system: System) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", hang="trial").path).returncode == 0
        board.wait_for("board: hangs")
        board.wait_for("slot b runs, record FAILED: select the other slot")
        assert board.watchdog_bites() == 1
        stays_at_the_old_version(board, system, "the watchdog reset the device")
    assert board.boots() == ["B", "B", "A"]


def test_a_version_that_hangs_before_it_decides_is_given_up_by_uboot(board: Board, system: System) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", hang="start").path).returncode == 0
        board.wait_for("board: hangs")
        board.wait_for("board: hangs")
        board.wait_for("U-Boot starts A of B A")
        stays_at_the_old_version(board, system, "it never came up")
        assert board.boots() == ["B", "B", "A"]


def test_a_version_that_hangs_after_its_commit_is_reset_as_well_and_starts_again(board: Board, system: System) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", hang="committed").path).returncode == 0
        board.wait_for("board: settled: version 2.0 in slot b, CONFIRMED, committed")
        board.wait_for("board: hangs")
        board.wait_for("version 2.0 in slot b: run; last reset: the watchdog reset the device")
        assert board.wait_until_settled() == "2.0"
        assert board.watchdog_bites() == 1
        status = board.status()
        assert (status["state"], status["active_slot"], status["outcome"]) == ("CONFIRMED", "b", "committed")
    assert board.boots() == ["B", "B"]
    assert board.environment() == {"BOOT_ORDER": "B A", "BOOT_A_LEFT": "2", "BOOT_B_LEFT": "2"}


@pytest.mark.parametrize("when", ["start", "trial"])
def test_a_version_that_crashes_is_rolled_back(board: Board, system: System, when: str) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", crash=when).path).returncode == 0
        board.wait_for("this version crashes")
        board.wait_for("init: the application ended")
        stays_at_the_old_version(board, system, "it never came up" if when == "start" else "it was not committed")
        assert board.boots() == ["B", "B", "A"]


@pytest.mark.parametrize("kernel", ["hangs", "is none"])
def test_a_kernel_that_does_not_boot_is_given_up_by_uboot(board: Board, system: System, kernel: str) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", kernel=kernel).path).returncode == 0
        board.wait_for("U-Boot starts A of B A")
        assert board.watchdog_bites() == (2 if kernel == "hangs" else 0)
        stays_at_the_old_version(board, system, "it never came up")
        assert board.boots() == ["B", "B", "A"]


def test_a_corrupt_image_is_refused(board: Board, system: System) -> None:
    two = system.firmware("2.0")
    data = bytearray(two.path.read_bytes())
    data[len(data) // 2] ^= 1
    corrupt = two.path.with_suffix(".corrupt")
    corrupt.write_bytes(data)
    with board.powered():
        pushed = board.push(corrupt)
        assert pushed.returncode != 0
        assert "bad signature" in pushed.stderr
        status = board.status()
        assert (status["state"], status["active_slot"], status["outcome"]) == ("CONFIRMED", "a", "refused")
    assert board.environment()["BOOT_ORDER"].split() == ["A"]
    with board.powered() as version:
        assert version == "1.0"
    assert board.boots() == ["A"]


def test_a_version_that_nobody_commits_is_rolled_back_and_takes_no_update_before(board: Board, system: System) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", commit=False, window=12).path).returncode == 0
        board.wait_for("version 2.0 in slot b: trial")
        board.wait_for("board: serves")
        status, said = board.ask("/api/ota/update", b"3.0")  # `mgota push` may take too long to start
        assert (status, "trial" in said) == (409, True)
        stays_at_the_old_version(board, system, "it was not committed")
        assert board.boots() == ["B", "B", "A"]


def test_a_version_whose_network_never_comes_up_is_rolled_back_and_the_record_says_why(
    board: Board, system: System
) -> None:
    with board.powered():
        assert board.push(system.firmware("2.0", network=False, window=8).path).returncode == 0
        board.wait_for("version 2.0 in slot b: trial")
        stays_at_the_old_version(board, system, "health check network")
        assert board.boots() == ["B", "B", "A"]
