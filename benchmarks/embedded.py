"""A device inside a program, for what cannot be asked of `mgota serve`: slow flash, and how late the event loop runs.

    embedded.py --slots DIR --key PUBLIC.pem [--throttle MIB_PER_S] [--ticks FILE]

It takes one image; nothing resets it. On SIGTERM it writes to FILE, as JSON, when each tick of a millisecond was due
(CLOCK_MONOTONIC, seconds) and how late it came (seconds), and ends.
"""

import argparse
import json
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import anyio

from mgota import Device, Slot, Verifier, boot_check, load_public_key
from mgota.linux.environment import file_device
from mgota.ports import FlashBackend, FlashWriter, ReadableBuffer
from mgota.transports.http import serve

TICK = 0.001
"""Seconds. The selector of asyncio counts in whole milliseconds, so that an idle loop is up to one late."""


@dataclass(frozen=True)
class SlowWriter:
    """A writer that takes its time: `rate` bytes per second."""

    writer: FlashWriter
    rate: float

    async def write(self, chunk: ReadableBuffer) -> None:
        """The next bytes, slowly."""
        await self.writer.write(chunk)
        await anyio.sleep(memoryview(chunk).nbytes / self.rate)

    async def finish(self) -> None:
        """As ever."""
        await self.writer.finish()

    async def abort(self) -> None:
        """As ever."""
        await self.writer.abort()


@dataclass(frozen=True)
class SlowFlash:
    """Flash that is written at `rate` bytes per second, and otherwise as the one inside."""

    flash: FlashBackend
    rate: float

    @property
    def crc(self) -> str:
        return self.flash.crc

    async def running_slot(self) -> Slot:
        return await self.flash.running_slot()

    async def capacity(self) -> int:
        return await self.flash.capacity()

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        """A writer that sleeps."""
        return SlowWriter(await self.flash.open_writer(slot, size), self.rate)

    async def extent(self, slot: Slot) -> int:
        return await self.flash.extent(slot)

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        return await self.flash.read(slot, offset, size)

    async def select(self, slot: Slot) -> None:
        await self.flash.select(slot)

    async def recover(self) -> None:
        await self.flash.recover()


async def tick(late: list[tuple[float, float]]) -> None:
    """Note how late every tick comes, for ever."""
    while True:
        due = time.monotonic() + TICK
        await anyio.sleep(TICK)
        late.append((due, time.monotonic() - due))


def make_device(given: argparse.Namespace) -> Device:
    """Two slots as files, as `mgota serve --slots` has them."""
    verifier = Verifier(keys=[load_public_key(given.key.read_bytes())])
    device = file_device(given.slots, verifier=verifier)
    if not given.throttle:
        return device
    return replace(device, flash=SlowFlash(device.flash, given.throttle * (1 << 20)))


async def main(given: argparse.Namespace) -> None:
    """Serve until SIGTERM."""
    late: list[tuple[float, float]] = []
    device = make_device(given)
    await boot_check(device)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with serve(device, host="127.0.0.1", port=0) as server, anyio.create_task_group() as tasks:
            if given.ticks:
                tasks.start_soon(tick, late)
            print(f"listening on http://127.0.0.1:{server.port}", flush=True)
            await anext(signals)
            tasks.cancel_scope.cancel()
    if given.ticks:
        given.ticks.write_text(json.dumps(late))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    parser.add_argument("--throttle", type=float, metavar="MIB_PER_S")
    parser.add_argument("--ticks", type=Path)
    anyio.run(main, parser.parse_args())
