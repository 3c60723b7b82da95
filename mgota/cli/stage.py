"""A stage for demonstrations: commands run as a user runs them, a clock, and steps that have to happen.

Rules:
- everything lies in one directory and listens on loopback;
- a step that did not happen ends the showing with a failure;
- whatever ends it, no process stays.
"""

import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import click

from mgota.errors import OtaError

MGOTA = (sys.executable, "-m", "mgota.cli")


class StepFailedError(OtaError):
    """A step of the demo did not happen."""


class Stage:
    """Where a showing takes place.

    Args:
        directory: where everything goes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._began = time.monotonic()

    def say(self, line: str) -> None:
        """A line of the story, with the time."""
        click.echo(f"{time.monotonic() - self._began:6.1f} s  {line}")

    def tell(self, command: str) -> None:
        """A command, as a user types it."""
        click.echo(f"          $ {command}")

    def check(self, happened: bool, what: str) -> None:
        """Nothing if it happened.

        Raises:
            StepFailedError: it did not.
        """
        if not happened:
            raise StepFailedError(f"this did not happen: {what}")

    async def mgota(self, *arguments: str, fails: bool = False) -> str:
        """Run a command as a user would.

        Args:
            arguments: of `mgota`.
            fails: whether it has to.

        Returns:
            What it printed, or why it failed if it had to.

        Raises:
            StepFailedError: it ended the other way.
        """
        self.tell(f"mgota {' '.join(arguments)}")
        done = await anyio.run_process([*MGOTA, *arguments], cwd=self.directory, check=False)
        out, error = done.stdout.decode(), done.stderr.decode().strip()
        self.check((done.returncode == 1) if fails else (done.returncode == 0), f"mgota {arguments[0]}: {error}")
        return error.splitlines()[-1] if fails else out

    @asynccontextmanager
    async def running(self, *command: str, log: Path) -> AsyncGenerator[None]:
        """A process while the block runs.

        Args:
            command: the program and its arguments.
            log: where what it says goes.
        """
        with log.open("wb") as file:
            process = subprocess.Popen(command, cwd=self.directory, stdout=file, stderr=file)  # noqa: ASYNC220  it only starts it
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_end, process)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()  # its program dies with it
        process.wait()
