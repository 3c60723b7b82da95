"""Boards for tests: the images of this run, made once, and boards that are shown when a test fails."""

import fcntl
import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from images import Firmware, System
from machine import Board

from mgota.core.record import BootRecord

MakeBoard = Callable[[Firmware], Board]


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """The images of this run, shared by all of its processes."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "system"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return System(place)


@pytest.fixture
def make_board(tmp_path: Path) -> Generator[MakeBoard]:
    """A board that came from the factory with an image in slot a."""
    boards: list[Board] = []

    def make(firmware: Firmware) -> Board:
        record = BootRecord(revision=1, a=firmware.as_proven())
        boards.append(Board(tmp_path / f"board{len(boards)}", firmware.path, record))
        return boards[-1]

    yield make
    for board in boards:
        board.cut()
        print(board.shown(400))
        board.disk.unlink()  # a gigabyte of them otherwise


@pytest.fixture
def board(make_board: MakeBoard, system: System) -> Board:
    """A board with version 1.0."""
    return make_board(system.firmware("1.0"))
