"""The demo's pull act: a gateway without an open port fetches its updates from a plain web server.

The web server is Python's own, which knows nothing of firmware: any one that serves files will do.
"""

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import copy
from typing import Any

import anyio

from mgota.cli.stage import MGOTA, Stage, StepFailedError, free_port
from mgota.errors import TransferError
from mgota.transports.http.push import Remote

PATIENCE = 40.0
"""Seconds to wait for what has to happen."""


async def pull_act(stage: Stage, first: str, second: str, third: str) -> None:
    """Let a gateway fetch updates, or say what is missing.

    Args:
        stage: where it takes place; its directory has public.pem and private.pem.
        first: the signed image that the gateway runs.
        second: the signed image that it fetches, of version 2.0.0.
        third: a signed image of version 3.0.0, which an operator does not keep.

    Raises:
        StepFailedError: a step did not happen.
    """
    if find_spec("httpx") is None:
        stage.say("the pull act is left out: httpx is not installed: pip install 'mgota[pull]'")
        return
    act = _Act(stage)
    stage.say("elsewhere: a gateway behind a firewall, and a web server with a signed manifest and an image")
    await stage.mgota("provision", first, "--slots", "fetcher", "--key", "public.pem")
    await act.publish(second, seq=1)
    async with stage.running(*act.server, log=stage.directory / "www.log"):
        await act.answers()
        await _pulled_once(stage, act)
        await _pulled_by_itself(stage, act, third)


async def _pulled_once(stage: Stage, act: "_Act") -> None:
    await act.tamper()
    error = await stage.mgota(*act.pull, fails=True)
    stage.check("manifest" in error, f"the changed manifest is refused: {error}")
    stage.say(f"somebody changed the manifest: refused ({error.removeprefix('mgota: ')})")
    await act.mend()
    told = json.loads(await stage.mgota(*act.pull, "--json"))
    stage.check(told["installed"] is True and told["manifest"]["version"] == "2.0.0", "2.0.0 is installed")
    stage.say("2.0.0 is fetched, verified from flash and selected; its trial begins when the gateway starts")


async def _pulled_by_itself(stage: Stage, act: "_Act", third: str) -> None:
    stage.tell(f"mgota {' '.join(act.serve)}")
    async with stage.running(*MGOTA, *act.serve, log=act.log):
        await act.until("2.0.0 is on trial", lambda now: now["trial"] is not None and _version(now) == "2.0.0")
        await stage.mgota("commit", act.url)
        await act.until("2.0.0 is committed", lambda now: now["state"] == "CONFIRMED" and now["trial"] is None)
        stage.say("2.0.0 is kept; now the web server has 3.0.0, and nobody tells the gateway")
        await act.publish(third, seq=2)
        await act.until("3.0.0 is on trial", lambda now: now["trial"] is not None and _version(now) == "3.0.0")
        stage.say("it found 3.0.0 by itself; the operator does not like it, and goes back")
        await stage.mgota("rollback", act.url)
        await act.until("2.0.0 runs again", lambda now: now["outcome"] == "rolled_back" and _version(now) == "2.0.0")
        await act.logged("already failed")
        stage.say("2.0.0 runs again; 3.0.0 is still offered, and is not installed a second time")


class _Act:
    """Where the gateway and the web server are."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._www = stage.directory / "www"
        self._www.mkdir()
        self._manifest = self._www / "manifest.json"
        self._good = b""
        web, port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = stage.directory / "fetcher.log"
        self._web = f"http://127.0.0.1:{web}"
        self.server = (sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", "www", str(web))
        device = ("--slots", "fetcher", "--key", "public.pem")
        self.pull = ("pull", f"{self._web}/manifest.json", *device)
        self.serve = ("serve", *device, "--port", str(port), "--pull", f"{self._web}/manifest.json", "--interval", "1")

    async def publish(self, image: str, *, seq: int) -> None:
        """The image first, then the manifest that names it."""
        copy(self._stage.directory / image, self._www)
        options = ("--key", "private.pem", "--seq", str(seq), "-o", "www/next.json")
        await self._stage.mgota("manifest", "sign", f"www/{Path(image).name}", *options)
        (self._www / "next.json").replace(self._manifest)
        self._good = self._manifest.read_bytes()

    async def tamper(self) -> None:
        """Somebody without a key wants another version in it."""
        self._manifest.write_bytes(self._good.replace(b'"version": "2.0.0"', b'"version": "9.0.0"'))

    async def mend(self) -> None:
        """As it was."""
        self._manifest.write_bytes(self._good)

    async def answers(self) -> None:
        """Wait for the web server."""
        await self.until("the web server answers", lambda _: True, self._web, "/manifest.json")

    async def until(
        self, what: str, holds: Callable[[dict[str, Any]], bool], url: str | None = None, path: str = "/api/ota/status"
    ) -> None:
        """Ask until it is so."""
        seen: dict[str, Any] | None = None
        with anyio.move_on_after(PATIENCE):
            while True:
                try:
                    seen = await Remote(url or self.url, timeout=5).get(path)
                except TransferError:
                    seen = None  # it begins, or restarts
                if seen is not None and holds(seen):
                    return
                await anyio.sleep(0.1)
        raise StepFailedError(f"this did not happen within {PATIENCE:g} s: {what}; last seen: {seen}")

    async def logged(self, words: str) -> None:
        """Wait until the gateway's log says so."""
        with anyio.move_on_after(PATIENCE):
            while True:
                if words in self.log.read_text():
                    return
                await anyio.sleep(0.1)
        raise StepFailedError(f"the gateway's log does not say {words!r} within {PATIENCE:g} s")


def _version(now: dict[str, Any]) -> object:
    return now["image"] and now["image"]["version"]
