"""A gateway of several chips that are wired to it: one HTTP server, and each is updated by its name and for itself.

python3 examples/gateway.py DIR stm32f4=gdb://127.0.0.1:3333 stm32h7=…   # mgota push FILE http://…:8000/api/ota/stm32f4
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
from mgota.gateway import Gateway
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.transports.http import serve


async def live(gateway: Gateway, name: str, link: str, directory: Path) -> None:
    """One chip, for ever: each round is a boot of it, and a new `Device`. The others notice nothing."""
    await anyio.Path(directory).mkdir(parents=True, exist_ok=True)
    target = find_target(name)
    if target.geometry is None:
        raise SystemExit(f"nobody knows the sectors of {name}")
    wired = PlainChip(connector(parse_link(link), target), target.geometry)
    flash = HeldFlash(FileSlots(directory), wired, DurableFile(directory / "held", MAX_NOTE))
    state, lock, reset = FileState(directory / "state"), FileLock(directory / "lock"), VirtualReset()
    while True:
        reset.clear()
        async with anyio.create_task_group() as life:
            life.start_soon(boot, gateway, name, Device(flash=flash, state=state, lock=lock, reset=reset))
            await reset.wait()
            life.cancel_scope.cancel()
        await gateway.away(name)


async def boot(gateway: Gateway, name: str, device: Device) -> None:
    """Decide, then be there, then be watched until somebody commits; or give it `checks`, as in wired_chip.py."""
    await boot_check(device)
    gateway.put(name, device)
    await run_trial(device)


async def main(directory: Path, links: dict[str, str], port: int = 8000) -> None:
    """All chips are away until they have booted; the gateway's own Linux would be one more, `"main"`."""
    gateway = Gateway(dict.fromkeys(links))
    async with serve(gateway, port=port), anyio.create_task_group() as tasks:
        for name, link in links.items():
            tasks.start_soon(live, gateway, name, link, directory / name)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), dict(word.split("=", 1) for word in sys.argv[2:]))
