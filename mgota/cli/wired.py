"""A chip that is wired to this machine: `--link`, and what tells that an image on it is well.

    mgota serve --target stm32f4 --link serial:///dev/ttyUSB0?baud=115200 --slots DIR --state FILE \
        --console serial:///dev/ttyACM0 --health-line ready

Without a health check somebody else commits: an operator, or the server that sent the image.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from mgota.cli.virtual_device import VirtualDevice
from mgota.core.held import MAX_NOTE
from mgota.core.link_url import LinkUrl, parse_link
from mgota.device import Device
from mgota.errors import ConfigError
from mgota.flash.files import DurableFile, FileLock
from mgota.flash.held import HeldFlash
from mgota.flash.links.console import Console
from mgota.flash.links.opened import BAUD, connector
from mgota.flash.links.wire import open_wire
from mgota.flash.targets.target import Swap, Target
from mgota.flash.virtual import VirtualReset, VirtualWatchdog
from mgota.flash.wired import PlainChip, WiredChip
from mgota.health import Check
from mgota.linux.names import LAUNCHER, LOCK
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState

NOTE = "held"
"""What the chip should hold, in the directory of the slots."""


def chip_at(target: Target, link: LinkUrl) -> WiredChip:
    """The chip at the end of a link.

    Raises:
        ConfigError: it cannot be reached that way.
    """
    connect = connector(link, target)
    if target.swap is Swap.OTADATA:
        from mgota.flash.wired_esp32 import EspChip  # noqa: PLC0415  other chips do without

        return EspChip(connect)
    if target.geometry is None:
        raise ConfigError(f"{target.name} cannot be programmed: nobody has verified where its sectors lie")
    return PlainChip(connect, target.geometry)


def wired_chip(target: Target, link: LinkUrl, directory: Path, state: Path, **options: Any) -> VirtualDevice:
    """A chip whose images this machine holds. Blocks.

    Args:
        target: which chip.
        link: where it is reached.
        directory: of its images; made if it is missing.
        state: the boot record.
        options: further arguments of `Device`.

    Raises:
        ConfigError: it cannot be reached that way.
    """
    reset, watchdog, slots = VirtualReset(), VirtualWatchdog(), FileSlots(directory)
    flash = HeldFlash(slots, chip_at(target, link), DurableFile(slots.directory / NOTE, MAX_NOTE))
    lock, power = FileLock(slots.directory / LOCK), FileLock(slots.directory / LAUNCHER)
    device = Device(flash=flash, state=FileState(state), watchdog=watchdog, reset=reset, lock=lock, **options)
    # The boot decision brings the image into the chip: out of reset there is nothing to do before it.
    return VirtualDevice(device=device, latch=anyio.lowlevel.checkpoint, reset=reset, watchdog=watchdog, power=(power,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What has to be so before an image on trial is committed.

    Args:
        line: a text that the chip prints.
        console: where it does.
        url: what answers with a status below 400.
    """

    line: str | None = None
    console: LinkUrl | None = None
    url: str | None = None

    def watching(self, machine: VirtualDevice) -> VirtualDevice:
        """The same device, watched."""
        checks = list[Check]()
        if self.url:
            checks.append(Check("url", partial(_answers, self.url)))
        if not (self.line and self.console):
            return replace(machine, checks=tuple(checks))
        console = Console(partial(open_wire, self.console, baud=BAUD))
        checks.append(Check("line", partial(console.heard, self.line)))

        async def latch() -> None:
            console.forget()  # what it printed in the life before
            await machine.latch()

        return replace(machine, checks=tuple(checks), beside=console.listen, latch=latch)


async def _answers(url: str) -> bool:
    from mgota.cli.reports import fetched  # noqa: PLC0415  who does not ask does not load it

    await to_thread.run_sync(fetched, url, None, 5.0, abandon_on_cancel=True)
    return True


def health_of(line: str | None, console: str | None, url: str | None, link: LinkUrl) -> Health:
    """The health checks that the options name.

    Raises:
        ConfigError: they contradict each other.
    """
    if (line is None) != (console is None):
        raise ConfigError("--health-line TEXT and --console URL belong together")
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError("--health-url begins with https:// or http://")
    found = parse_link(console) if console else None
    if found and (found.path, found.host, found.port) == (link.path, link.host, link.port):
        raise ConfigError("the console needs a wire of its own: the one of --link is the boot ROM's")
    return Health(line=line, console=found, url=url)
