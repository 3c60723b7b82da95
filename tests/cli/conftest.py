"""What the tests of the terminal share."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Shop, Terminal


@pytest.fixture(autouse=True)
def _quiet_logger() -> Iterator[None]:
    """Commands set up logging for a process of their own: undo it for the next test."""
    logger = logging.getLogger("mgota")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def mgota(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)
