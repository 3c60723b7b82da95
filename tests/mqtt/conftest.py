"""Brokers for tests; each test says `@pytest.mark.program("mosquitto")`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mosquitto import Mosquitto
from pki import make_pki


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker of this test's own: it may be restarted."""
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield broker


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of ca.pem, server.pem and client.pem."""
    return make_pki(tmp_path_factory.mktemp("pki"))
