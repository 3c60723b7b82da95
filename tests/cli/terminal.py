"""The command as a user has it: inside this process where that will do, as a process where it must."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import anyio
import pytest

from mgota.cli import main
from mgota.core.keys import PrivateKey
from mgota.errors import TransferError
from mgota.transports.http.push import Remote

PROGRAM = [sys.executable, "-m", "mgota.cli"]
PATIENCE = 30.0


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """The one line that a failure has."""
        assert self.err.startswith("mgota: "), self.err
        assert self.err.count("\n") == 1, self.err
        return self.err.strip()


class Terminal:
    """Commands run inside this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Done:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        found = self._capsys.readouterr()
        assert "Traceback" not in found.err
        return Done(int(exit_.value.code or 0), found.out, found.err)

    def ok(self, *arguments: object) -> Done:
        done = self(*arguments)
        assert done.code == 0, done.err
        return done


def run(*arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> Done:
    """A command as a process."""
    done = subprocess.run(
        [*PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Serving:
    """`mgota serve` as a process; a context manager."""

    def __init__(self, *arguments: object, env: dict[str, str] | None = None) -> None:
        self._arguments = [str(argument) for argument in arguments]
        self._env = env
        self.first_line = ""
        self.url = ""

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [*PROGRAM, "serve", "--port", "0", *self._arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._env,
        )
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        self.first_line = self.process.stdout.readline() if ready else ""
        if not self.first_line.startswith("listening on "):
            self.process.kill()
            raise AssertionError(f"it does not listen: {self.first_line!r} {self.process.communicate()[1]}")
        self.url = self.first_line.split()[-1]
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Exit status, and what else it printed."""
        if self.process.returncode is None:
            self.process.send_signal(number)
            self.rest = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, *self.rest

    def status(self, **options: Any) -> dict[str, Any]:
        return anyio.run(Remote(self.url, **options).status)

    def until(self, holds: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE) -> dict[str, Any]:
        """The first status that is so."""
        deadline = time.monotonic() + seconds
        now: dict[str, Any] = {}
        while True:
            with suppress(TransferError):  # cut off by a reset
                now = self.status()
                if holds(now):
                    return now
            assert time.monotonic() < deadline, now
            time.sleep(0.05)

    def peak_memory(self) -> float:
        """MiB, with the pages of libraries and files."""
        return self._memory("VmHWM")

    def own_memory(self) -> float:
        """MiB that are nobody else's, and are no file's."""
        return self._memory("RssAnon")

    def _memory(self, name: str) -> float:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(rf"{name}:\s+(\d+)", text)[0]) / 1024


@dataclass
class Shop:
    """A build machine: keys and images."""

    directory: Path
    key: PrivateKey

    @classmethod
    def open(cls, directory: Path) -> "Shop":
        key = PrivateKey.generate()
        (directory / "public.pem").write_bytes(key.public.pem())
        (directory / "private.pem").write_bytes(key.pem())
        return cls(directory, key)

    @property
    def public(self) -> Path:
        return self.directory / "public.pem"

    def image(self, version: str, size: int = 70_000) -> Path:
        """A signed image with a version in it."""
        firmware = f"MG_VERSION:{version}\0".encode() + os.urandom(size)
        path = self.directory / f"fw-{version}.signed.bin"
        path.write_bytes(firmware + self.key.sign(sha256(firmware).digest()))
        return path
