"""Boards for tests: the images of this run, made once, and boards that are shown when a test fails."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import artefacts
import pytest
from images import Firmware, System
from machine import Board, Frozen, MakeBoard


def pytest_runtest_setup(item: pytest.Item) -> None:
    """U-Boot is no program of this machine, so that the marker cannot look for it."""
    if item.get_closest_marker("sbc") and not artefacts.uboot().exists():
        if os.environ.get("MGOTA_REQUIRE_ALL") == "1":
            pytest.fail("u-boot-qemu is not installed, and MGOTA_REQUIRE_ALL=1", pytrace=False)
        pytest.skip("u-boot-qemu is not installed")


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """The images of this run."""
    with _shared(tmp_path_factory, "system") as place:
        return System(place)


@pytest.fixture(scope="session")
def small_system(tmp_path_factory: pytest.TempPathFactory) -> System:
    """Smaller ones, for ways that are slow."""
    with _shared(tmp_path_factory, "small") as place:
        return System(place, small=True)


@pytest.fixture(scope="session")
def frozen(system: System, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    """A board with version 1.0 that has booted and waits."""
    with _shared(tmp_path_factory, "frozen") as place:
        frozen = Frozen(place / "machine", place / "emmc.img")
        if not frozen.disk.exists():
            board = Board.manufactured(place / "board", system.firmware("1.0"))
            with board.powered():
                board.freeze(place)
        return frozen


@contextmanager
def _shared(factory: pytest.TempPathFactory, name: str) -> Generator[Path]:
    """A directory that all processes of this run share; the first one fills it."""
    base = factory.getbasetemp()
    place = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / name
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield place


@pytest.fixture
def desk() -> Generator[list[Board]]:
    """Boards that are shown when their test fails, and thrown away."""
    boards: list[Board] = []
    yield boards
    for board in boards:
        board.cut()
        print(board.shown(400))
        board.disk.unlink(missing_ok=True)  # gigabytes of them otherwise


@pytest.fixture
def make_board(desk: list[Board], tmp_path: Path) -> MakeBoard:
    """A board that comes from the factory with an image in slot a, and was never switched on."""

    def make(firmware: Firmware) -> Board:
        desk.append(Board.manufactured(tmp_path / f"board{len(desk)}", firmware))
        return desk[-1]

    return make


@pytest.fixture
def board(desk: list[Board], tmp_path: Path, frozen: Frozen) -> Board:
    """A board that runs version 1.0 as soon as it is switched on."""
    desk.append(Board.thawed(tmp_path / "thawed", frozen))
    return desk[-1]
