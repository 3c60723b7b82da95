"""What the tests of the terminal share."""

import logging
import socket
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


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
