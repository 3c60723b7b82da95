"""What mgota asks of the outside: Protocols, nothing else.

A backend implements these; the core and the transports know nothing further of it. Rules:
- every operation finishes or raises an `OtaError`; foreign exceptions do not pass;
- an operation may be cancelled only where nothing is half done: one that touches the medium runs to its end;
- a store is atomic, or it did not happen.
"""

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from mgota.core.geometry import Geometry, Sector, Slot
from mgota.core.record import BootRecord

ReadableBuffer = bytes | bytearray | memoryview
"""What may be written: contiguous bytes; a backend does not keep it after the call returned."""


@runtime_checkable
class NorFlash(Protocol):
    """A medium that is erased by sectors and programmed by units, each once per erase."""

    @property
    def geometry(self) -> Geometry:
        """Sectors, program unit, erased pattern."""
        ...

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the medium failed, or the range is not all there.
        """
        ...

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the medium failed, or it has no such sector.
        """
        ...

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program whole units, as many as there are in `data`; they may span sectors.

        Raises:
            ProgramError: the medium failed, or a rule of the chip was broken.
        """
        ...


@runtime_checkable
class Flushable(NorFlash, Protocol):
    """A flash memory with something under it that could lose what was programmed."""

    async def flush(self) -> None:
        """Make everything durable.

        Raises:
            FlashError: it is not durable, or nobody knows.
        """
        ...


@runtime_checkable
class FlashWriter(Protocol):
    """An image on its way into a slot, from the first byte to the last."""

    async def write(self, chunk: ReadableBuffer) -> None:
        """The next bytes of the image, any number of them.

        Raises:
            FlashError: they could not be stored.
        """
        ...

    async def finish(self) -> None:
        """The image is complete: store what is held back and make all of it durable.

        Raises:
            FlashError: it could not be stored.
        """
        ...

    async def abort(self) -> None:
        """Give up and release what is held; what was written stays, as garbage. Never raises."""
        ...


@runtime_checkable
class FlashBackend(Protocol):
    """Where images live: two slots, one of them running."""

    @property
    def crc(self) -> str:
        """The checksum of the read-back: "crc-32" (zlib's), or a name of crcmod's predefined ones."""
        ...

    async def running_slot(self) -> Slot:
        """The slot whose image runs: fixed at boot, whatever was selected since."""
        ...

    async def capacity(self) -> int:
        """Bytes of the largest image that the staging slot can take, trailer included."""
        ...

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        """Begin to write an image of `size` bytes at the start of `slot`.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the slot cannot be written.
        """
        ...

    async def extent(self, slot: Slot) -> int:
        """Bytes that can be read from `slot`; 0 if it is blank."""
        ...

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of `slot`, counted from its start.

        Raises:
            ReadError: they could not be read.
        """
        ...

    async def select(self, slot: Slot) -> None:
        """Make this slot the one that boots; nothing to do if it is. Survives a cut at any moment.

        On chips whose selection takes effect by a reset, this call does not return.

        Raises:
            SelectError: the slot that boots is the same as before.
        """
        ...

    async def recover(self) -> None:
        """Finish a `select` that was cut off. Called at every boot, before anything else.

        Raises:
            FlashError: it could not be finished.
        """
        ...


@runtime_checkable
class SyncingWriter(Protocol):
    """A writer may offer this besides `write`: an image can be marked half-way, to go on from there after a restart."""

    async def sync(self) -> int:
        """Make durable what was stored so far.

        Returns:
            Bytes of the image, from its first, that a power cut leaves.

        Raises:
            FlashError: they are not durable, or nobody knows.
        """
        ...


@runtime_checkable
class ResumableBackend(Protocol):
    """A backend may offer this besides `open_writer`: to go on with an image that was cut off."""

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        """Go on with an image of `size` bytes that `open_writer` began in `slot`, in this life or an earlier one.

        Nothing is changed before the first `write`. What lies there below `mark` may be another image's by now: the
        caller reads it and decides.

        Args:
            slot: where it lies.
            size: bytes of the image.
            mark: bytes of it that a `sync` found durable.

        Returns:
            A writer, and the byte of the image that it takes next: at most `mark`, and less where only whole sectors
            can be kept.

        Raises:
            FlashError: there is no such image, or the slot cannot be written.
        """
        ...


@runtime_checkable
class Note(Protocol):
    """A few bytes that survive a restart: the progress of a download, a history.

    Losing it costs time, or a story, and nothing else; a torn one is found out.
    """

    async def load(self) -> bytes | None:
        """What was stored last, or None.

        Raises:
            StateError: it cannot be read.
        """
        ...

    async def store(self, data: bytes) -> None:
        """Replace it.

        Raises:
            StateError: it was not stored.
        """
        ...


@runtime_checkable
class BlockingWriter(Protocol):
    """A writer whose medium blocks may offer this besides `write`: receiving, checksum and storing share a thread."""

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        """As `FlashWriter.write`; called in a thread.

        Raises:
            FlashError: the bytes could not be stored.
        """
        ...


@runtime_checkable
class BlockingReads(Protocol):
    """A backend whose medium blocks may offer this besides `read`: an image is read back and hashed in one thread."""

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        """As `FlashBackend.read`; called in a thread.

        Raises:
            ReadError: they could not be read.
        """
        ...


@runtime_checkable
class CountingBackend(Protocol):
    """A backend whose bootloader counts boots may offer this besides `select`: to be asked, and told of good ones."""

    async def tried(self, slot: Slot) -> bool:
        """Whether the bootloader shows that it tried this slot since that was selected, and gave it up.

        Raises:
            FlashError: what it keeps cannot be read.
        """
        ...

    async def settle(self, *, fallback: bool) -> None:
        """This boot was good: what the bootloader counts down begins anew. Called at boot, and after a commit.

        Args:
            fallback: the slot that does not run holds a proven image, so that the bootloader may fall back to it.

        Raises:
            FlashError: it could not be told.
        """
        ...


@runtime_checkable
class Selector(Protocol):
    """Which of two slots a bootloader starts: what is kept where the bootloader looks for it."""

    async def selected_slot(self) -> Slot | None:
        """The slot that boots next, as far as it can be known; None if it is neither.

        Raises:
            FlashError: it cannot be read.
        """
        ...

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Make this slot the one that boots, in one step; nothing to do if it is. Survives a cut at any moment.

        Args:
            slot: the slot. If it is the running one, nothing else may boot from now on; the other one may be erased.
            running: the slot that runs. If another one is selected, the bootloader may fall back to this one.

        Raises:
            SelectError: the slot that boots is the same as before, or nobody knows.
        """
        ...

    async def tried(self, slot: Slot) -> bool:
        """As `CountingBackend.tried`. A selector that cannot know says no."""
        ...

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """As `CountingBackend.settle`."""
        ...

    async def recover(self) -> None:
        """Finish a `select` that was cut off. Called at every boot, before anything else.

        Raises:
            FlashError: it could not be finished.
        """
        ...

    async def selftest(self) -> None:
        """Write what is there already, and read it back. Changes nothing that a bootloader would notice.

        Raises:
            OtaError: a selection would not work, and why.
        """
        ...


@runtime_checkable
class StateStore(Protocol):
    """Where the boot record survives resets and power cuts."""

    async def load(self) -> BootRecord | None:
        """The record, or None if there never was one.

        Raises:
            StateError: there is something, but it cannot be read.
        """
        ...

    async def store(self, record: BootRecord) -> None:
        """Replace the record: entirely, or not at all.

        Raises:
            StateError: it was not stored, or nobody can know whether it was.
        """
        ...


@runtime_checkable
class RecordObserver(Protocol):
    """Somebody who is told of each boot record that a device stored: a history. No decision depends on it."""

    async def stored(self, record: BootRecord, reason: str | None = None) -> None:
        """A device stored this record. Never raises, and does not take long.

        Args:
            record: what was stored.
            reason: why an image was refused, if it was stored for that.
        """
        ...


@runtime_checkable
class Watchdog(Protocol):
    """The dead man's switch: what is armed and not fed resets the device."""

    @property
    def stoppable(self) -> bool:
        """Whether `disarm` works. An independent watchdog, once started, ends only with a reset."""
        ...

    @property
    def limit(self) -> float | None:
        """Seconds of the longest timeout that it can count, or None. Longer windows are fed."""
        ...

    async def arm(self, timeout: float) -> None:
        """Reset the device in `timeout` seconds unless fed. Armed again, the new timeout counts from now."""
        ...

    async def feed(self) -> None:
        """Begin the timeout anew."""
        ...

    async def disarm(self) -> None:
        """Stop it, if it is stoppable; otherwise do nothing."""
        ...


@runtime_checkable
class Resetter(Protocol):
    """How the device is started again."""

    async def reset(self) -> None:
        """Reset. On a real device this call does not return."""
        ...


@runtime_checkable
class ProcessLock(Protocol):
    """Keeps other processes from the same device."""

    def hold(self) -> AbstractContextManager[None]:
        """Hold the lock inside a `with` block. Does not wait.

        Raises:
            UpdateRunningError: another process holds it.
        """
        ...
