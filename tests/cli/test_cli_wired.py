"""`mgota serve --link`: a chip that is wired to the gateway, through the command."""

import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from terminal import Serving, Shop, Terminal

from mgota.flash.targets.table import find_target
from mgota.testing import NorSimulator
from mgota.testing.gdb_stub import SimulatedGdbStub
from mgota.testing.wire import network_port


@contextmanager
def gdb_server() -> Generator[tuple[int, SimulatedGdbStub]]:
    """A chip behind a GDB server, in a thread."""
    geometry = find_target("stm32f4").geometry
    assert geometry
    stub = SimulatedGdbStub(NorSimulator(geometry), running=True)
    ready, port, ends = threading.Event(), list[int](), list[Any]()

    async def serve() -> None:
        end = anyio.Event()
        async with network_port(stub) as found, anyio.from_thread.BlockingPortal() as portal:
            port.append(found)
            ends.append(lambda: portal.start_task_soon(end.set))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=anyio.run, args=(serve,))
    thread.start()
    ready.wait(10)
    try:
        yield port[0], stub
    finally:
        ends[0]()
        thread.join(10)


def test_a_wired_chip_is_provisioned_updated_committed_and_rolled_back(
    shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    one, two = shop.image("1.0.0"), shop.image("2.0.0")
    with gdb_server() as (port, stub):
        place = ["--target", "stm32f4", "--link", f"gdb://127.0.0.1:{port}", "--slots", tmp_path / "slots"]
        place += ["--state", tmp_path / "state"]
        mgota.ok("provision", one, *place, "--key", shop.public)
        assert stub.flash.peek(0, 4) == b"\xff" * 4  # the chip gets it when it is let run
        with Serving(*place, "--key", shop.public) as device:
            assert device.status()["image"]["version"] == "1.0.0"
            assert stub.running
            assert stub.flash.peek(0, one.stat().st_size) == one.read_bytes()
            mgota.ok("push", two, device.url)
            device.until(lambda now: now["trial"] is not None)
            assert stub.flash.peek(0, two.stat().st_size) == two.read_bytes()
            mgota.ok("commit", device.url)
            assert mgota.ok("rollback", device.url, "--json").json["rolled_back"] is True
            device.until(lambda now: now["state"] == "CONFIRMED" and now["image"]["version"] == "1.0.0")
            assert stub.flash.peek(0, one.stat().st_size) == one.read_bytes()
            assert stub.running


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--link", "gdb://127.0.0.1:1"], "--link URL needs --target NAME, --slots DIR and --state FILE"),
        (["--link", "gdb://127.0.0.1:1", "--flash", "x"], "and no --flash or --backend"),
        (["--link", "usb://1"], "a link begins with gdb://"),
        (["--link", "tcp://h:1", "--target", "ch32v307"], "is not spoken to"),
        (["--link", "gdb://h:1", "--target", "nothing"], "there is no target nothing"),
        (["--health-url", "http://h/"], "--health-line, --console and --health-url belong to --link"),
        (["--link", "gdb://h:1", "--health-line", "x"], "--health-line TEXT and --console URL belong together"),
        (["--link", "gdb://h:1", "--health-url", "x"], "--health-url begins with"),
        (
            ["--link", "tcp://h:1", "--console", "tcp://h:1", "--health-line", "x"],
            "the console needs a wire of its own",
        ),
        (["--link", "gdb://h:1", "--console", "x", "--health-line", "x"], "a link begins with"),
    ],
)
def test_what_makes_no_sense_is_told_before_a_file_is_made(
    options: list[str], said: str, mgota: Terminal, tmp_path: Path
) -> None:
    rest = [] if "--target" in options else ["--target", "stm32f4"]
    place = ["--slots", tmp_path / "slots", "--state", tmp_path / "state"]
    if said.startswith("--link URL needs"):
        place = place[:2]
    if said.startswith("--health-line, --console"):
        place, rest = place[:2], []
    done = mgota("serve", "--port", "0", *options, *rest, *place)
    assert done.code != 0
    assert said in " ".join(done.err.split())
    assert not list(tmp_path.iterdir())


def test_a_chip_that_does_not_answer_is_told_in_one_line(mgota: Terminal, tmp_path: Path) -> None:
    place = ["--target", "stm32f4", "--link", "gdb://127.0.0.1:1", "--slots", tmp_path / "slots"]
    assert "127.0.0.1:1 cannot be reached" in mgota("serve", "--port", "0", *place, "--state", tmp_path / "state").err
