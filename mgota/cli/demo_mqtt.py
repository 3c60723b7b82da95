"""The demo's MQTT act: a gateway without an open port is updated through a broker.

Needs mosquitto. The gateway is a virtual one, in a process of its own; the broker is started here, on loopback, and
goes away once: the gateway finds it again by itself.
"""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import anyio

from mgota.cli.stage import MGOTA, Stage, StepFailedError, free_port
from mgota.errors import TransferError
from mgota.transports.mqtt.sender import Remote

PATIENCE = 40.0
"""Seconds to wait for what has to happen."""

_PLACES = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
# Where a broker lies that is no program for everybody's PATH.


def missing() -> str | None:
    """What this act needs and does not find, and how to get it; None if everything is there."""
    if _broker() is None:
        return "mosquitto is not installed: apt install mosquitto, dnf install mosquitto, or brew install mosquitto"
    if find_spec("aiomqtt") is None:
        return "aiomqtt is not installed: pip install 'mgota[mqtt]'"
    return None


async def mqtt_act(stage: Stage, first: str, second: str, unsigned: str) -> None:
    """Update a gateway through a broker, or say what is missing.

    Args:
        stage: where it takes place; its directory has public.pem.
        first: the signed image that the gateway runs.
        second: the signed image that it gets, of version 2.0.0.
        unsigned: an image that it must refuse.

    Raises:
        StepFailedError: a step did not happen.
    """
    if why := missing():
        stage.say(f"the MQTT act is left out: {why}")
        return
    port = free_port()
    act = _Act(stage, port)
    await stage.mgota("provision", first, "--slots", "gateway", "--key", "public.pem")
    stage.say("elsewhere: a broker, and a gateway without an open port, which only connects outwards")
    gateway = ("serve", "--slots", "gateway", "--key", "public.pem", "--port", "0", "--mqtt", act.url)
    stage.tell(f"mgota {' '.join(gateway)}")
    async with stage.running(*MGOTA, *gateway, log=stage.directory / "gateway.log"):
        async with act.broker():
            await act.until("the gateway is online", lambda _: True)
            stage.say("push version 2.0.0 over MQTT")
            told = await stage.mgota("push", second, act.url, "--json")
            stage.check(json.loads(told)["ok"] is True, "the gateway takes 2.0.0")
            await act.until("2.0.0 is on trial", lambda status: status["trial"] is not None)
            stage.say("2.0.0 is on trial; the operator looks at it and keeps it")
            await stage.mgota("commit", act.url)
            await act.until("2.0.0 is committed", _runs_2)
            stage.say("push an image that nobody signed, over MQTT")
            error = await stage.mgota("push", unsigned, act.url, fails=True)
            stage.check("signature" in error, f"it is refused for its signature: {error}")
            stage.say(f"refused ({error.removeprefix('mgota: ')})")
        stage.say("the broker goes away, and comes back")
        async with act.broker():
            await act.until("the gateway is online again", _runs_2)
            stage.say("the gateway is online again by itself, and runs 2.0.0")


class _Act:
    def __init__(self, stage: Stage, port: int) -> None:
        self.stage = stage
        self.url = f"mqtt://127.0.0.1:{port}/demo/gateway"
        self._config = stage.directory / "mosquitto.conf"
        self._config.write_text(
            f"listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n"
        )

    def broker(self) -> Any:
        """A broker while the block runs."""
        log = self.stage.directory / "mosquitto.log"
        return self.stage.running(_broker() or "mosquitto", "-c", str(self._config), log=log)

    async def until(self, what: str, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Ask the gateway until it is so."""
        seen: dict[str, Any] | None = None
        with anyio.move_on_after(PATIENCE):
            while True:
                try:
                    seen = await Remote(self.url, timeout=5).status()
                except TransferError:
                    seen = None  # the broker begins, or the gateway restarts
                if seen is not None and holds(seen):
                    return
                await anyio.sleep(0.1)
        raise StepFailedError(f"this did not happen within {PATIENCE:g} s: {what}; last seen: {seen}")


def _runs_2(status: dict[str, Any]) -> bool:
    runs = status["image"] is not None and status["image"]["version"] == "2.0.0"
    return runs and status["state"] == "CONFIRMED" and status["trial"] is None


def _broker() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=_PLACES)
