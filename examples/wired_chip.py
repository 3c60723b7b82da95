"""A gateway that updates the chip wired to it: two images on its disk, a debug probe, a health check of its own.

    python3 examples/wired_chip.py gdb://127.0.0.1:3333 stm32f4 DIR [PORT]
    mgota push firmware.bin http://127.0.0.1:8000

A reset of the *device* is a round of `gateway`: the boot decision programs the chip and starts it. The gateway runs on.
"""

import sys
from pathlib import Path

import anyio

from mgota import Device, boot_check, run_trial
from mgota.core.held import MAX_NOTE
from mgota.core.link_url import parse_link
from mgota.flash.files import DurableFile, FileLock
from mgota.flash.held import HeldFlash
from mgota.flash.links.opened import connector
from mgota.flash.targets.table import find_target
from mgota.flash.virtual import VirtualReset
from mgota.flash.wired import PlainChip
from mgota.health import Check
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.transports.http import serve


async def chip_is_well() -> bool:
    """Yours: ask it over its bus, look for it in the network, wait for what it prints."""
    return True


async def gateway(link: str, target: str, directory: Path, port: int) -> None:
    """For ever; killing it is a power cut."""
    chip = find_target(target)
    if chip.geometry is None:
        raise SystemExit(f"nobody knows the sectors of {target}")
    wired = PlainChip(connector(parse_link(link), chip), chip.geometry)
    flash = HeldFlash(FileSlots(directory), wired, DurableFile(directory / "held", MAX_NOTE))
    state, lock, reset = FileState(directory / "state"), FileLock(directory / "lock"), VirtualReset()
    while True:
        reset.clear()
        device = Device(flash=flash, state=state, lock=lock, reset=reset, window=30)  # each boot has a new one
        async with anyio.create_task_group() as life:
            life.start_soon(_end, reset, life.cancel_scope)
            await boot_check(device)
            async with serve(device, port=port) as server:
                print(f"listening on {server.url}", flush=True)
                await run_trial(device, checks=[Check("chip", chip_is_well)], consecutive=2, interval=0.5)
                await anyio.sleep_forever()


async def _end(reset: VirtualReset, life: anyio.CancelScope) -> None:
    await reset.wait()
    life.cancel()


if __name__ == "__main__":
    anyio.run(gateway, sys.argv[1], sys.argv[2], Path(sys.argv[3]), int((sys.argv[4:] or ["8000"])[0]))
