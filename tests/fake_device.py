"""A device of nothing but memory, for tests of what stands in front of it."""

import hashlib
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, SlotImage, State
from mgota.device import Device
from mgota.errors import EraseError, StateError, TooLargeError
from mgota.ports import FlashWriter, ReadableBuffer


class FakeFlash:
    """Two slots of `room` bytes. `on_write` is awaited before each chunk is stored."""

    crc = "crc-32"

    def __init__(self, room: int = 1 << 16) -> None:
        self.room = room
        self.slots = {Slot.A: bytearray(), Slot.B: bytearray()}
        self.running = Slot.A
        self.selected = Slot.A
        self.opened = 0
        self.aborted = 0
        self.chunks: list[int] = []
        self.on_write: Callable[[], Awaitable[None]] | None = None
        self.keep = True
        self.broken = False
        self.blocking = False

    async def running_slot(self) -> Slot:
        return self.running

    async def capacity(self) -> int:
        return self.room

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        if size > self.room:
            raise TooLargeError(size, self.room)
        if self.broken:
            raise EraseError("sector 3 does not erase")
        self.opened += 1
        self.slots[slot] = bytearray()
        return (BlockingFakeWriter if self.blocking else FakeWriter)(self, self.slots[slot])

    async def extent(self, slot: Slot) -> int:
        return len(self.slots[slot])

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        return bytes(self.slots[slot][offset : offset + size])

    async def select(self, slot: Slot) -> None:
        self.selected = slot

    async def recover(self) -> None:
        pass


class FakeWriter:
    def __init__(self, flash: FakeFlash, cells: bytearray) -> None:
        self.flash = flash
        self.cells = cells

    async def write(self, chunk: ReadableBuffer) -> None:
        if self.flash.on_write:
            await self.flash.on_write()
        self.flash.chunks.append(len(chunk))
        if self.flash.keep:
            self.cells += chunk

    async def finish(self) -> None:
        pass

    async def abort(self) -> None:
        self.flash.aborted += 1


class BlockingFakeWriter(FakeWriter):
    """Of a medium that blocks: written to in a thread."""

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.flash.chunks.append(len(chunk))
        if self.flash.keep:
            self.cells += chunk


class FakeState:
    def __init__(self, record: BootRecord | None = None) -> None:
        self.record = record
        self.broken = False

    async def load(self) -> BootRecord | None:
        if self.broken:
            raise StateError("the record is torn")
        return self.record

    async def store(self, record: BootRecord) -> None:
        self.record = record


class FakeReset:
    def __init__(self) -> None:
        self.count = 0
        self.happened = anyio.Event()

    async def reset(self) -> None:
        self.count += 1
        self.happened.set()


class FakeDevice:
    """A device with handles on its parts."""

    def __init__(
        self, *, room: int = 1 << 16, old: bytes = b"the old firmware", blocking: bool = False, **options: Any
    ) -> None:
        self.flash = FakeFlash(room)
        self.flash.blocking = blocking
        self.flash.slots[Slot.A] += old
        self.old = old
        self.state = FakeState()
        self.reset = FakeReset()
        self.device = Device(flash=self.flash, state=self.state, reset=self.reset, **options)

    @property
    def staged(self) -> bytes:
        return bytes(self.flash.slots[Slot.B])

    def boot(self) -> None:
        """The selected slot runs, and every trial is over."""
        self.flash.running = self.flash.selected
        self.device.live.resetting = False
        assert self.state.record
        image = self.state.record.image(self.flash.running)
        assert image
        self.state.record = confirmed(
            self.flash.running, {self.flash.running: bytes(self.flash.slots[self.flash.running])}
        )

    def prove(self, other: bytes | None = None) -> None:
        """A record in which the running image is proven, and `other` in the other slot, too."""
        images = {Slot.A: self.old}
        if other is not None:
            self.flash.slots[Slot.B] = bytearray(other)
            images[Slot.B] = other
        self.state.record = confirmed(Slot.A, images)

    def on_trial(self) -> None:
        """Slot a runs on trial."""
        self.prove(b"the proven one before")
        assert self.state.record
        self.state.record = self.state.record.next(state=State.FAILED, trial=Slot.A)

    def untouched(self) -> bool:
        """The running slot is what it was, and is what boots."""
        return self.flash.slots[Slot.A] == self.old and self.flash.selected is Slot.A


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def confirmed(running: Slot, images: dict[Slot, bytes]) -> BootRecord:
    record = BootRecord()
    for slot, data in images.items():
        image = SlotImage(size=len(data), image_size=len(data), sha256=digest(data), version=None, proven=True)
        record = record.next_with(slot, image)
    return record
