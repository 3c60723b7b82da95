"""A bench for the launcher: a directory with programs in its slots, a launcher in this process or in its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord
from mgota.device import Device
from mgota.linux.environment import file_device
from mgota.linux.launcher import launch
from mgota.session import OtaSession

PATIENCE = 30.0

HEAD = """\
import os, signal, socket, sys, time
directory, slot = os.environ["MGOTA_DIR"], os.environ["MGOTA_SLOT"]

def say(text):
    with open(os.path.join(directory, "log"), "a") as log:
        log.write(f"{slot} {os.getpid()} {text}\\n")

def send(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])

say("started")
"""
RUNS = HEAD + "time.sleep(1000)\n"
EXITS = HEAD + "sys.exit(3)\n"
CRASHES = HEAD + "import no_such_module\n"
COMMITS = (
    HEAD
    + """
import anyio
from mgota import Device, commit

async def main():
    say(f"committed {await commit(Device.from_environment())}")
    await anyio.sleep_forever()

anyio.run(main)
"""
)

LAUNCHER = """\
import json, logging, sys
import anyio
from mgota.errors import OtaError
from mgota.linux.launcher import launch

logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
options = json.loads(sys.argv[2])

async def main():
    return await launch(sys.argv[1], [sys.executable, "-I", "{slot}"], **options)

try:
    sys.exit(anyio.run(main))
except OtaError as exc:
    sys.exit(f"{type(exc).__name__}: {exc}")
"""


class Bench:
    """A directory, the programs in it, and what they said."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[subprocess.Popen[bytes]] = []
        directory.mkdir(parents=True, exist_ok=True)

    def install(self, program: str, slot: Slot = Slot.A) -> None:
        (self.directory / slot.value).write_text(program)

    def device(self, running: Slot | None = None) -> Device:
        return file_device(self.directory, running=running)

    async def update(self, program: str) -> None:
        """Put a program on trial, as an update without a reset does."""
        image = program.encode()
        async with OtaSession(self.device(), size=len(image)) as ota:
            await ota.write(image)
            await ota.activate(await ota.seal())

    async def record(self) -> BootRecord:
        record = await self.device().state.load()
        assert record
        return record

    def said(self) -> list[str]:
        """Lines of the programs' log, without their process numbers."""
        return [f"{slot} {text}" for slot, _, text in self._lines()]

    def pids(self) -> list[int]:
        return [int(pid) for _, pid, text in self._lines() if text == "started"]

    def _lines(self) -> list[list[str]]:
        path = self.directory / "log"
        return [line.split(" ", 2) for line in path.read_text().splitlines()] if path.exists() else []

    @asynccontextmanager
    async def launched(self, **options: object) -> AsyncIterator[None]:
        """A launcher inside this process."""
        settings = {"watchdog": None, "grace": 2.0, **options}
        async with anyio.create_task_group() as tg:
            command = [sys.executable, "-I", "{slot}"]
            tg.start_soon(lambda: launch(self.directory, command, **settings))  # type: ignore[arg-type]
            yield
            tg.cancel_scope.cancel()

    def start(self, environ: dict[str, str] | None = None, **options: object) -> subprocess.Popen[bytes]:
        """A launcher of its own process."""
        command = [sys.executable, "-c", LAUNCHER, str(self.directory), json.dumps(options)]
        with (self.directory / "stderr").open("ab") as stderr:
            self.processes.append(subprocess.Popen(command, stderr=stderr, env={**os.environ, **(environ or {})}))
        return self.processes[-1]

    def errors(self) -> str:
        return (self.directory / "stderr").read_text()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        await anyio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(PATIENCE)
