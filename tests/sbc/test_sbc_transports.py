"""The other ways to a board: it is reached through a broker, and it fetches its updates from a web server."""

import functools
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import artefacts
import pytest
from images import System
from machine import MGOTA, MakeBoard
from mosquitto import Mosquitto

pytestmark = [
    pytest.mark.sbc,
    pytest.mark.timeout(600),
    pytest.mark.program("qemu-system-aarch64", "fw_printenv", "mkfs.ext4", "debugfs"),
]

HOST = "10.0.2.2"
"""The machine under the board, as the board sees it."""


@contextmanager
def site(directory: Path) -> Generator[int]:
    """A plain web server; its port."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_a_board_fetches_its_update(make_board: MakeBoard, system: System, tmp_path: Path) -> None:
    board, two = make_board(system.firmware("1.0")), system.firmware("2.0")
    served = tmp_path / "site"
    served.mkdir()
    shutil.copy(two.path, served / "two.img")
    key = ("--key", system.private_key)
    artefacts.run(
        *(MGOTA, "manifest", "sign", served / "two.img", *key),
        *("--version", "2.0", "--seq", "2", "--out", served / "manifest.json"),
    )
    with site(served) as port, board.powered(pull=f"http://{HOST}:{port}/manifest.json") as version:
        assert version == "1.0"
        assert board.wait_until_settled() == "2.0"
        status = board.status()
        assert (status["state"], status["active_slot"], status["outcome"]) == ("CONFIRMED", "b", "committed")
        assert (status["image"]["sha256"], status["image"]["version"]) == (two.sha256, "2.0")
    assert board.environment()["BOOT_ORDER"] == "B A"


@pytest.mark.program("mosquitto")
def test_a_board_is_updated_over_mqtt(make_board: MakeBoard, small_system: System, tmp_path: Path) -> None:
    board, two = make_board(small_system.firmware("1.0")), small_system.firmware("2.0")
    with (
        Mosquitto(tmp_path / "broker") as broker,
        board.powered(mqtt=f"mqtt://{HOST}:{broker.port}/sbc/one") as version,
    ):
        assert version == "1.0"
        board.wait_for_any("board: is online")
        pushed = board.push(two.path, f"{broker.url}/sbc/one")
        assert pushed.returncode == 0, pushed.stderr
        assert board.wait_until_settled() == "2.0"
        status = board.status()
        assert (status["state"], status["active_slot"], status["outcome"]) == ("CONFIRMED", "b", "committed")
        assert status["image"]["sha256"] == two.sha256
    assert board.environment()["BOOT_ORDER"] == "B A"
