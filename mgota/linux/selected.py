"""Slots on any medium, and a bootloader that starts one of them: together a `FlashBackend`.

Rules:
- the running slot is what the kernel was started with, never what is selected;
- the medium knows nothing of the bootloader, and the selector nothing of the medium.
"""

from typing import Protocol

from anyio import to_thread

from mgota.core.geometry import Slot
from mgota.errors import FlashError
from mgota.ports import FlashWriter, Selector


class SlotMedium(Protocol):
    """Where the images of two slots lie; as the calls of the same names of `FlashBackend` and `ResumableBackend`."""

    def room(self, slot: Slot) -> int:
        """Bytes of the largest image that the slot can take. Blocks.

        Raises:
            FlashError: nobody can tell.
        """
        ...

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        """Begin to write an image."""
        ...

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        """Go on with one."""
        ...

    async def extent(self, slot: Slot) -> int:
        """Bytes that can be read."""
        ...

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        ...


class SelectedSlots:
    """Implements `FlashBackend`, with `BlockingReads`, `ResumableBackend` and `CountingBackend`.

    Args:
        slots: where the images lie.
        selector: tells the bootloader.
        running: the slot whose image runs; `mgota.linux.running` finds it out.
    """

    crc = "crc-32"

    def __init__(self, slots: SlotMedium, selector: Selector, *, running: Slot) -> None:
        self.slots = slots
        self.selector = selector
        self._running = running

    async def running_slot(self) -> Slot:
        """The slot whose image runs."""
        return self._running

    async def capacity(self) -> int:
        """Bytes of the slot that does not run.

        Raises:
            FlashError: nobody can tell.
        """
        return await to_thread.run_sync(self.slots.room, self._running.other)

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        """Begin to write an image of `size` bytes.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the slot cannot be written, or runs.
        """
        self._refuse_running(slot)
        return await self.slots.open_writer(slot, size)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        """Go on with an image that was cut off. See `ResumableBackend`.

        Raises:
            FlashError: the slot cannot be written, or runs.
        """
        self._refuse_running(slot)
        return await self.slots.reopen_writer(slot, size, mark)

    def _refuse_running(self, slot: Slot) -> None:
        if slot is self._running:
            raise FlashError(f"slot {slot} runs, and is not written over")

    async def extent(self, slot: Slot) -> int:
        """Bytes that can be read from `slot`; 0 if it is blank.

        Raises:
            FlashError: it cannot be read.
        """
        return await self.slots.extent(slot)

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: they could not be read.
        """
        return await to_thread.run_sync(self.read_blocking, slot, offset, size)

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        """`read`, for who is in a thread already.

        Raises:
            ReadError: they could not be read.
        """
        return self.slots.read_blocking(slot, offset, size)

    async def select(self, slot: Slot) -> None:
        """Make this slot the one that boots.

        Raises:
            SelectError: the bootloader could not be told.
        """
        await self.selector.select(slot, running=self._running)

    async def recover(self) -> None:
        """Finish a `select` that was cut off.

        Raises:
            FlashError: it could not be finished.
        """
        await self.selector.recover()

    async def tried(self, slot: Slot) -> bool:
        """Whether the bootloader tried this slot and gave it up.

        Raises:
            FlashError: what it keeps cannot be read.
        """
        return await self.selector.tried(slot)

    async def settle(self, *, fallback: bool) -> None:
        """This boot was good.

        Raises:
            FlashError: the bootloader could not be told.
        """
        await self.selector.settle(self._running, fallback=fallback)
