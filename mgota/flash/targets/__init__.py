"""Chip families: the numbers of each, and what it takes to run a virtual one."""

from dataclasses import dataclass

from mgota.flash.banked import BankedFlash
from mgota.flash.files import FileLock
from mgota.flash.simulator import NorSimulator
from mgota.flash.virtual import VirtualWatchdog


@dataclass(frozen=True, kw_only=True, eq=False)
class VirtualTarget:
    """A chip that lives inside a process: what a `Device` is made of, and what a test looks at.

    Args:
        backend: the slots.
        flash: the memory under them.
        watchdog: the chip's own.
        lock: keeps other processes from the chip's files; None if it has none.
    """

    backend: BankedFlash
    flash: NorSimulator
    watchdog: VirtualWatchdog
    lock: FileLock | None

    async def boot(self) -> None:
        """The chip comes out of reset: the selected slot runs, the watchdog is off.

        Raises:
            FlashError: the selection cannot be read.
        """
        self.watchdog.restart()
        await self.backend.boot()
