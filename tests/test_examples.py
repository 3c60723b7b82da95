"""Every example runs and is short. The application is run by the demo's test, too."""

import json
import os
import re
import runpy
import select
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

import mgota
from mgota.errors import BusyError, TransferError
from mgota.flash.targets.table import find_target
from mgota.testing import NorSimulator
from mgota.testing.gdb_stub import SimulatedGdbStub
from mgota.testing.wire import network_port
from mgota.transports.http.push import Remote, push

EXAMPLES = Path(mgota.__file__).parents[1] / "examples"
SOURCES = sorted(EXAMPLES.rglob("*.py"))


@contextmanager
def update_server(directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, str(EXAMPLES / "update_server.py"), str(directory), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            ready, _, _ = select.select([process.stdout], [], [], 30)
            yield process.stdout.readline().split()[-1] if ready else "", process
        finally:
            process.kill()


def test_the_update_server_serves_and_tells_who_went_back(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    with update_server(tmp_path) as (url, process):
        with urllib.request.urlopen(f"{url}/manifest.json?id=dev7&version=1.0&boot=3", timeout=30) as reply:
            assert reply.read() == b"{}"
        assert process.stdout
        ready, _, _ = select.select([process.stdout], [], [], 30)
        assert ready
        assert process.stdout.readline() == "dev7 went back to 1.0\n"


@contextmanager
def minimal_device(directory: Path) -> Iterator[str]:
    command = [sys.executable, str(EXAMPLES / "minimal_device.py"), str(directory), "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        ready, _, _ = select.select([process.stdout], [], [], 30)
        yield process.stdout.readline().split()[-1] if ready else ""
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def send(url: str, image: bytes) -> None:
    async def run() -> None:
        async for _ in push(image, url):
            pass

    anyio.run(run)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_an_example_is_short(source: Path) -> None:
    assert len(source.read_text().splitlines()) <= 60


def test_the_minimal_device_is_updated_and_committed(tmp_path: Path) -> None:
    with minimal_device(tmp_path / "d") as url:
        send(url, b"firmware one")  # it says ok, and ends: that is its reset
    with minimal_device(tmp_path / "d") as url:
        status = anyio.run(Remote(url).status)
        assert (status["state"], status["active_slot"], status["image"]["size"]) == ("FAILED", "b", 12)
        anyio.run(Remote(url).commit)
        while anyio.run(Remote(url).status)["state"] != "CONFIRMED":
            time.sleep(0.05)
        send(url, b"firmware two!")
    with minimal_device(tmp_path / "d") as url:
        assert anyio.run(Remote(url).status)["image"]["size"] == 13
        # nobody commits: the next start, which is a power cut now, rolls back
        anyio.run(Remote(url).rollback)
    with minimal_device(tmp_path / "d") as url:
        status = anyio.run(Remote(url).status)
        assert (status["image"]["size"], status["outcome"]) == (12, "rolled_back")
        send(url, b"the end")


@pytest.mark.asyncio
async def test_the_gateway_updates_the_chip_that_is_wired_to_it(tmp_path: Path) -> None:
    run = runpy.run_path(str(EXAMPLES / "wired_chip.py"))["gateway"]
    geometry = find_target("stm32f4").geometry
    assert geometry
    chip = SimulatedGdbStub(NorSimulator(geometry), running=True)
    chip.flash.poke(0, b"what it came with")
    port = _free_port()
    remote = Remote(f"http://127.0.0.1:{port}")
    async with network_port(chip) as probe, anyio.create_task_group() as tasks:
        tasks.start_soon(run, f"gdb://127.0.0.1:{probe}", "stm32f4", tmp_path, port)
        status = await _until(remote, lambda now: now["state"] == "CONFIRMED")
        assert chip.running
        assert status["image"]["size"] == 20  # whole units
        async for _ in remote.push(b"new firmware"):
            pass
        status = await _until(remote, lambda now: now["outcome"] == "committed")
        assert status["image"]["size"] == 12
        assert chip.flash.peek(0, 12) == b"new firmware"
        assert chip.running
        tasks.cancel_scope.cancel()


@pytest.mark.asyncio
async def test_the_gateway_updates_two_chips_and_one_at_a_time(tmp_path: Path) -> None:
    run = runpy.run_path(str(EXAMPLES / "gateway.py"))["main"]
    geometry = find_target("stm32f4").geometry
    assert geometry
    chips = [SimulatedGdbStub(NorSimulator(geometry), running=True) for _ in range(2)]
    for chip in chips:
        chip.flash.poke(0, b"what it came with")
    port = _free_port()
    names = ("stm32f4", "stm32f2")
    one, other = (Remote(f"http://127.0.0.1:{port}/api/ota/{name}") for name in names)
    async with network_port(chips[0]) as first, network_port(chips[1]) as second, anyio.create_task_group() as tasks:
        links = {name: f"gdb://127.0.0.1:{probe}" for name, probe in zip(names, (first, second), strict=True)}
        tasks.start_soon(run, tmp_path, links, port)
        for remote in (one, other):
            await _until(remote, lambda now: now["state"] == "CONFIRMED")
        async for _ in one.push(b"new firmware"):
            pass
        await _until(one, lambda now: now["state"] == "FAILED")  # on trial, in a new life
        await one.commit()
        await _until(one, lambda now: now["outcome"] == "committed")
        async for _ in one.push(b"a third one!"):
            pass
        await _until(one, lambda now: now["state"] == "FAILED")
        await one.rollback()
        await _until(one, lambda now: now["outcome"] == "rolled_back")
        assert (await other.status())["outcome"] is None
        tasks.cancel_scope.cancel()
    assert chips[0].flash.peek(0, 12) == b"new firmware"
    assert chips[1].flash.peek(0, 12) == b"what it came"


async def _until(remote: Remote, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        with suppress(TransferError, BusyError):  # not yet, or cut off by a reset
            now = await remote.status()
            if holds(now):
                return now
        await anyio.sleep(0.02)


def test_the_custom_target_is_updated(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "custom_target.py"), str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "after the reset: trial" in done.stdout
    assert "committed: True" in done.stdout
    assert "b'new firmware'" in done.stdout


def test_a_custom_backend_is_proven() -> None:
    command = [sys.executable, str(EXAMPLES / "prove_custom_backend.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    runs = re.fullmatch(
        r"(\d+) runs: 7 lives of \d+ .*, 8 modes, (\d+) cuts, (\d+) second cuts, 0 bricks\n", done.stdout
    )
    assert runs
    assert int(runs[1]) == 7 + int(runs[2]) + int(runs[3]) > 300
    assert done.stderr == ""


def test_the_application_serves_its_version_beside_the_update(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for source in (EXAMPLES / "app").glob("*.py"):
        (app / source.name).write_bytes(source.read_bytes())
    (app / "public.pem").write_bytes(mgota.PrivateKey.generate().public.pem())
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "a").write_bytes(b"itself")
    port = _free_port()
    env = {**os.environ, "MGOTA_DIR": str(tmp_path / "device")}
    process = subprocess.Popen([sys.executable, app, str(port)], env=env)
    try:
        greeting = _get(f"http://127.0.0.1:{port}/")
        assert greeting == {"application": "greeter", "version": "0.0.0"}
        assert _get(f"http://127.0.0.1:{port}/api/ota/status")["active_slot"] == "a"
    finally:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _get(url: str) -> dict[str, str]:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                found: dict[str, str] = json.load(answer)
                return found
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
