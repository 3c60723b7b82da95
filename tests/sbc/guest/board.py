"""The application of the board: updates itself by HTTP, MQTT or from a web server, and misbehaves as its image says.

`behaviour.json` lies beside it in the image:

    version      what it says that it is
    crash        "start": it ends before the boot decision; "trial": after it
    hang         "start": it does nothing, before the boot decision; "trial": its event loop stops after it;
                 "committed": it stops in the life in which it was committed
    commit       false: nobody commits
    network      false: the network does not come up; see init.sh
    window       seconds of a trial

Orders for all versions come from QEMU, as JSON in its `opt/mgota/orders`:

    halt         the mark at which to stop doing anything, so that the power can be cut there and nowhere else:
                 "VERSION: mark", or "VERSION: mark#2" for its second time in one life
    mqtt, pull   URLs: of a broker, of a manifest
"""

import json
import logging
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import cast

import anyio

from mgota import Device, Verifier, load_public_key, run_trial
from mgota.core.boot import Verdict
from mgota.core.bootvars import BootOrder
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord
from mgota.health import Check
from mgota.linux.blockslots import BlockSlots, BlockWriter
from mgota.linux.lifelong import LifelongWatchdog
from mgota.linux.running import running_slot
from mgota.linux.selected import SelectedSlots
from mgota.linux.state import FileState
from mgota.linux.uboot import UbootSelector
from mgota.linux.ubootenv import UbootEnvironment
from mgota.linux.watchdog import HardwareWatchdog
from mgota.ports import FlashWriter, ReadableBuffer
from mgota.transports.http import Request, Response, serve
from mgota.trial import boot_check

HERE = Path(__file__).parent
ORDERS = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/mgota/orders/raw")

BEHAVIOUR = json.loads((HERE / "behaviour.json").read_text())
VERSION = BEHAVIOUR["version"]
BITES = 10.0
"""Seconds that the watchdog waits: as on boards that cap it, less than a trial lasts."""

CONVENTION = BootOrder(attempts=2)

_marks: Counter[str] = Counter()


def order(name: str) -> str | None:
    """What QEMU was told for the board."""
    return cast(str | None, json.loads(ORDERS.read_bytes()).get(name))


def say(text: str) -> None:
    """A line on the console."""
    sys.stdout.write(f"board: {text}\n")
    sys.stdout.flush()


def mark(name: str) -> None:
    """Here the power may be cut."""
    _marks[name] += 1
    halt = order("halt")  # each time: a frozen board thaws with other orders
    names = [f"{VERSION}: {name}#{_marks[name]}"] + [f"{VERSION}: {name}"] * (_marks[name] == 1)
    if halt in names:
        say(f"halted at {halt}")
        time.sleep(1000)


class MarkedState(FileState):
    """The boot record, with marks."""

    async def store(self, record: BootRecord) -> None:
        mark(f"before storing {record.state}")
        await super().store(record)
        mark(f"after storing {record.state}")


class MarkedWriter:
    """An image on its way into a slot, with marks after each of its quarters."""

    def __init__(self, writer: BlockWriter, size: int) -> None:
        self.writer, self.size, self.written = writer, size, 0

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        self.writer.write_blocking(chunk)
        before, self.written = self.written, self.written + len(chunk)
        for quarter in (1, 2, 3):
            if before < self.size * quarter // 4 <= self.written:
                mark(f"writing, quarter {quarter}")

    async def write(self, chunk: ReadableBuffer) -> None:
        await anyio.to_thread.run_sync(self.write_blocking, chunk)

    async def sync(self) -> int:
        return await self.writer.sync()

    async def finish(self) -> None:
        mark("before finish")
        await self.writer.finish()
        mark("after finish")

    async def abort(self) -> None:
        await self.writer.abort()


class MarkedSlots(SelectedSlots):
    """The slots, with marks."""

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        return MarkedWriter(cast(BlockWriter, await super().open_writer(slot, size)), size)

    async def select(self, slot: Slot) -> None:
        mark(f"before selecting {slot}")
        await super().select(slot)
        mark(f"after selecting {slot}")

    async def settle(self, *, fallback: bool) -> None:
        mark("before settling")
        await super().settle(fallback=fallback)
        mark("after settling")


class Reboot:
    """The kernel's shortest way: nothing is synced, nothing unmounted."""

    async def reset(self) -> None:
        mark("before the reset")
        Path("/proc/sysrq-trigger").write_text("b")
        await anyio.sleep_forever()


def build_device(watchdog: LifelongWatchdog) -> Device:
    """The device that this board is."""
    slots = BlockSlots({slot: f"PARTLABEL=slot-{slot}" for slot in Slot})
    selector = UbootSelector(UbootEnvironment.from_config(), CONVENTION)
    return Device(
        flash=MarkedSlots(slots, selector, running=running_slot(CONVENTION.names)),
        state=MarkedState("/data/mgota/state"),
        verifier=Verifier(keys=[load_public_key((HERE / "public.pem").read_bytes())]),
        watchdog=watchdog,
        reset=Reboot(),
        window=float(BEHAVIOUR.get("window", 30)),
    )


async def answer(_request: Request) -> Response:
    """What this board is for."""
    return Response.json({"version": VERSION})


async def online() -> bool:
    """Whether the board reaches the world: QEMU answers at this address."""
    async with await anyio.connect_tcp("10.0.2.100", 80) as stream:
        return b"alive" in await stream.receive()


async def stop() -> None:
    """Nothing more happens on this event loop."""
    say("hangs")
    time.sleep(1000)


async def serve_mqtt(device: Device, url: str) -> None:
    """Be reached through a broker."""
    from mgota.transports.mqtt.device import serve as serve_over_mqtt  # noqa: PLC0415  imports cost seconds here

    async with serve_over_mqtt(device, url) as served:
        await served.online()
        say("is online")
        await anyio.sleep_forever()


async def fetch(device: Device, url: str) -> None:
    """Ask a web server again and again."""
    from mgota.transports.pull import poll  # noqa: PLC0415  the same

    await poll(device, url, interval=2, current_version=VERSION)


async def main() -> None:
    """Decide, serve, and commit once healthy."""
    watchdog = LifelongWatchdog(HardwareWatchdog(limit=BITES), BITES)
    await watchdog.disarm()  # from here on it is on guard
    last_reset = watchdog.last_reset
    if BEHAVIOUR.get("crash") == "start":
        raise SystemExit("this version crashes at its start")
    if BEHAVIOUR.get("hang") == "start":
        await stop()
    device = build_device(watchdog)
    mark("before the boot decision")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(watchdog.stand_guard, resetting=lambda: device.live.resetting))
        await live(device, last_reset)


async def live(device: Device, last_reset: str | None) -> None:
    """From the boot decision on."""
    verdict = await boot_check(device, reason=last_reset)
    slot = await device.flash.running_slot()
    say(f"version {VERSION} in slot {slot}: {verdict}; last reset: {last_reset}")
    if verdict is Verdict.RESET:
        await anyio.sleep_forever()
    if BEHAVIOUR.get("crash") == "trial":
        raise SystemExit("this version crashes on its trial")
    async with serve(device, host="0.0.0.0", port=8000, insecure=True, app=answer), anyio.create_task_group() as tasks:
        say("serves")
        if BEHAVIOUR.get("hang") == "trial":
            await stop()
        if url := order("mqtt"):
            tasks.start_soon(serve_mqtt, device, url)
        if (url := order("pull")) and verdict is Verdict.RUN:
            tasks.start_soon(fetch, device, url)
        checks = [Check("network", online, timeout=5)] if BEHAVIOUR.get("commit", True) else []
        outcome = await run_trial(device, checks=checks, interval=0.2)
        status = await device.status()
        say(f"settled: version {VERSION} in slot {slot}, {status.state}, {outcome or status.outcome}, {status.reason}")
        if BEHAVIOUR.get("hang") == "committed" and outcome:
            await stop()
        await anyio.sleep_forever()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="board: %(name)s %(message)s", stream=sys.stdout)
    anyio.run(main)
