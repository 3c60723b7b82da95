"""`mgota demo`: a real program is replaced over the network, proves itself, and is rolled back when it does not.

Everything happens in a temporary directory and on loopback, with the commands that a user has. Rules:
- after every step the device itself is asked: what it says is what the timeline says;
- an act that needs a program which is missing says so, and how to get it.
"""

import json
import signal
import sys
import tempfile
import zipapp
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import anyio
import click

from mgota.cli.demo_mqtt import mqtt_act
from mgota.cli.demo_pull import pull_act
from mgota.cli.stage import MGOTA, Stage, StepFailedError, free_port
from mgota.errors import OtaError, TransferError
from mgota.transports.http.push import Remote

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "demo_app", _HERE.parents[1] / "examples" / "app")  # in a wheel, in the repository

WINDOW = 8.0
"""Seconds that a version on trial has: enough for a slow machine to start Python."""

PATIENCE = 40.0
"""Seconds to wait for what has to happen."""

FAULTS = {
    "1.0.0": "",
    "2.0.0": "",
    "3.0.0": "import time\ntime.sleep(3600)  # it hangs before it serves anything\n",
    "4.0.0": "raise RuntimeError('this version is broken')  # it crashes while it is imported\n",
    "5.0.0": "",
}
"""The versions of the application, and what is wrong with each."""

Found = dict[str, Any]


@click.command()
def demo() -> None:
    """Watch a device being updated, rolled back, and refusing bad images. Takes under a minute."""
    with tempfile.TemporaryDirectory(prefix="mgota-demo-") as directory:
        anyio.run(_until_terminated, Path(directory))


async def _until_terminated(directory: Path) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_terminated, tasks.cancel_scope)
        await Demo(directory).play()
        tasks.cancel_scope.cancel()
        return
    raise StepFailedError("the demo was terminated")


async def _terminated(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


@dataclass(frozen=True, slots=True)
class Seen:
    """What the device is at.

    Args:
        version: that the application tells at `/`.
        status: of the device.
    """

    version: str
    status: Found


class Demo(Stage):
    """One showing.

    Args:
        directory: where everything goes.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.device = directory / "device"
        self.log = directory / "launcher.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"

    async def play(self) -> None:
        """All of it.

        Raises:
            StepFailedError: a step did not happen.
        """
        await self._prepare()
        async with self._launched():
            try:
                await self._play()
            except OtaError:
                click.echo(f"--- what the launcher said ---\n{self.log.read_text()}", err=True)
                raise
        self.say("the device runs 2.0.0, the only new version that proved itself")
        await pull_act(self, *(self._image(version).name for version in ("1.0.0", "2.0.0", "3.0.0")))
        await mqtt_act(self, self._image("1.0.0").name, self._image("2.0.0").name, "app-5.0.0.pyz")
        self.say("done")

    async def _prepare(self) -> None:
        self.say("on the build machine: make a pair of keys, pack and sign five versions of a small application")
        await self.mgota("keygen", "--out", ".")
        for version, fault in FAULTS.items():
            build(self.directory / f"app-{version}.pyz", version, fault, self.directory / "public.pem")
            if version != "5.0.0":
                await self.mgota("sign", f"app-{version}.pyz", "--key", "private.pem")
        tampered = bytearray(self._image("2.0.0").read_bytes())
        tampered[len(tampered) // 2] ^= 1
        (self.directory / "tampered.pyz").write_bytes(tampered)
        self.say("in the factory: write version 1.0.0 into slot a of a new device")
        await self.mgota("provision", self._image("1.0.0").name, "--dir", "device", "--key", "public.pem")

    async def _play(self) -> None:
        seen = await self._await("1.0.0 runs", lambda seen: seen.version == "1.0.0")
        first = _sha256(seen)
        self.say("in the field: `mgota run` has started it, and it answers: version 1.0.0")

        await self._push("2.0.0", "a good one")
        seen = await self._await("2.0.0 commits itself", lambda seen: _settled(seen, "2.0.0", "committed"))
        self.check(seen.status["active_slot"] == "b" and _sha256(seen) != first, "2.0.0 runs from slot b")
        self.say("2.0.0 runs from slot b, found itself healthy and committed itself")

        await self._push("3.0.0", "it hangs at its start")
        self.say(f"3.0.0 is on trial and says nothing; it has {WINDOW:g} s to be committed ...")
        await self._rolled_back("3.0.0", "not committed")
        await self._push("4.0.0", "it crashes while it is imported")
        await self._rolled_back("4.0.0", "exited")

        await self._refused(self.directory / "app-5.0.0.pyz", "an image that nobody signed")
        await self._refused(self.directory / "tampered.pyz", "2.0.0 with one bit changed")

    async def _push(self, version: str, what: str) -> None:
        self.say(f"push version {version} over HTTP ({what})")
        told = await self.mgota("push", self._image(version).name, self.url, "--json")
        self.check(json.loads(told)["ok"] is True, f"the device takes {version}")

    async def _rolled_back(self, version: str, why: str) -> None:
        seen = await self._await(f"{version} is rolled back", lambda seen: _settled(seen, "2.0.0", "rolled_back"))
        self.check(why in seen.status["reason"], f"{version} is rolled back because it {why}")
        self.say(f"{version} was rolled back ({seen.status['reason']}); 2.0.0 answers again")

    async def _refused(self, image: Path, what: str) -> None:
        self.say(f"push {what}")
        before = await self._look()
        error = await self.mgota("push", image.name, self.url, fails=True)
        self.check("signature" in error, f"{what} is refused for its signature: {error}")
        seen = await self._look()
        same = seen is not None and before is not None and _sha256(seen) == _sha256(before)
        self.check(same and _settled(seen, "2.0.0", "refused"), "the running version stays")
        self.say(f"refused ({error.removeprefix('mgota: ')}); 2.0.0 was not disturbed")

    @asynccontextmanager
    async def _launched(self) -> AsyncGenerator[None]:
        program = (sys.executable, "{slot}", str(self.port))
        options = ("--dir", "device", "--window", f"{WINDOW:g}", "--key", "public.pem")
        self.tell(f"mgota run {' '.join(options)} -- python3 {{slot}} {self.port}")
        async with self.running(*MGOTA, "run", *options, "--", *program, log=self.log):
            yield

    async def _await(self, what: str, holds: Callable[[Seen], bool]) -> Seen:
        """Ask the device until it is so."""
        seen: Seen | None = None
        with anyio.move_on_after(PATIENCE):
            while True:
                seen = await self._look() or seen
                if seen and holds(seen):
                    return seen
                await anyio.sleep(0.1)
        raise StepFailedError(f"this did not happen within {PATIENCE:g} s: {what}; last seen: {seen}")

    async def _look(self) -> Seen | None:
        """What the device says now; None while it restarts."""
        remote = Remote(self.url, timeout=5)
        try:
            greeting = await remote.get("/")
            return Seen(str(greeting["version"]), await remote.status())
        except (TransferError, KeyError):
            return None

    def _image(self, version: str) -> Path:
        return self.directory / f"app-{version}.signed.pyz"


def build(target: Path, version: str, fault: str, public_key: Path) -> None:
    """Pack a version of the application: a zip of its own code, which Python runs as it is.

    Args:
        target: the file to make.
        version: its version.
        fault: Python code that runs when it is imported.
        public_key: the key that it trusts.
    """
    source = next(path for path in _SOURCES if path.is_dir())
    with tempfile.TemporaryDirectory(prefix="mgota-build-") as directory:
        copytree(source, directory, dirs_exist_ok=True)
        code = Path(directory)
        (code / "release.py").write_text(f'VERSION = "{version}"\n{fault}')
        (code / "tag").write_bytes(f"MG_VERSION:{version}\0".encode())  # so that devices and tools see it in the image
        (code / "public.pem").write_bytes(public_key.read_bytes())
        zipapp.create_archive(code, target, filter=lambda path: "__pycache__" not in path.parts)


def _settled(seen: Seen | None, version: str, outcome: str) -> bool:
    if seen is None:
        return False
    status = seen.status
    same = seen.version == version and status["image"] is not None and status["image"]["version"] == version
    return same and status["state"] == "CONFIRMED" and status["trial"] is None and status["outcome"] == outcome


def _sha256(seen: Seen) -> str:
    return str(seen.status["image"]["sha256"])
