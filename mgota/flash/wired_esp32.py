"""A chip of the ESP32 family at the end of a link: its own two slots and otadata, so that the way back moves nothing.

The image goes to the slot that is not selected, and otadata selects it once it was read back; the bootloader does the
rest. Where that slot holds the image already, as after a trial that failed, otadata is all that is written. Rules are
those of `mgota.flash.wired`; and whatever was cut off, the chip can be started: what otadata selects is whole.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from mgota.core.esp_table import TABLE_OFFSET
from mgota.core.geometry import Slot
from mgota.errors import ConfigError, FlashError
from mgota.flash.links.link import Connect
from mgota.flash.targets.esp32 import EspFlash, read_table
from mgota.flash.wired import Programmer, Source, entered
from mgota.ports import Flushable


class EspChip:
    """A chip with otadata; implements `WiredChip`.

    Args:
        connect: opens the link, which is `Flushable`.
        table: where its partition table lies.
    """

    def __init__(self, connect: Connect, table: int = TABLE_OFFSET) -> None:
        self._connect = connect
        self._table = table
        self._capacity: int | None = None

    async def capacity(self) -> int:
        """Bytes of the smaller of its slots. The chip is asked once, by its next session or by one for that.

        Raises:
            FlashError: it does not answer.
            ConfigError: it has no partition table with otadata and two slots.
        """
        if self._capacity is None:
            async with self.session():
                pass
        return self._capacity or 0

    @asynccontextmanager
    async def session(self) -> AsyncGenerator["EspSession"]:
        """Stop the chip. See `WiredChip`.

        Raises:
            ConfigError: it has no partition table with otadata and two slots.
        """
        async with entered(self._connect) as worker:
            table = await read_table(worker.link, self._table)
            if not isinstance(worker.link, Flushable):
                raise ConfigError("otadata needs a link that can be flushed")
            flash = EspFlash(worker.link, table)
            self._capacity = await flash.capacity()
            yield EspSession(worker, flash)


class EspSession:
    """Implements `Session`.

    Args:
        worker: at the chip.
        flash: its slots.
    """

    def __init__(self, worker: Programmer, flash: EspFlash) -> None:
        self._worker = worker
        self._flash = flash

    async def extent(self) -> int:
        """Bytes of the selected slot, up to the last that is not blank; 0 if none is selected."""
        running = await self._selected()
        return await self._worker.extent(self._flash.area(running)) if running else 0

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of the selected slot."""
        return await self._flash.read(await self._flash.running_slot(), offset, size)

    async def holds(self, image: Source) -> bool:
        """Whether the selected slot holds this image."""
        running = await self._selected()
        return running is not None and await self._has(running, image)

    async def bring(self, image: Source, *, whole: bool, begin: Callable[[], Awaitable[None]]) -> bool:
        """Program the slot that is not selected, unless it holds the image, and select it. See `Session`."""
        running = await self._selected()
        if running and await self._has(running, image):
            await self._flash.recover()
            return False
        other = running.other if running else Slot.A
        found = await self._worker.wanted(self._flash.area(other), image, whole=whole)
        await begin()
        if found:
            if running:
                await self._flash.settle()
            try:
                await self._worker.program(image, found)
            finally:
                self._worker.touched = False  # what otadata selects is whole
        await self._flash.select(other)
        return True

    async def _has(self, slot: Slot, image: Source) -> bool:
        return await self._worker.has(self._flash.area(slot), image)

    async def _selected(self) -> Slot | None:
        """The slot that runs, or None if a factory app does, or another slot."""
        try:
            return await self._flash.running_slot()
        except FlashError:
            return None  # what cannot be read will show at the next read
