"""Any other chip: the seed's three calls as coroutines, and a fourth to read back what was stored.

    backend = CustomBackend(begin, write, end, read)

What each of them does, in plain words:
- `begin(size)`: make room for an image of `size` bytes where it disturbs nothing that runs;
- `write(chunk)`: store the next bytes; a chunk has any length, and is not to be kept after the call;
- `read(offset, size)`: exactly these bytes of the image in the *staging* slot, the one that does not run, from the
  memory and not from what was sent;
- `end()`: make the image that was written the one that boots. In the seed the verification happens inside; here it
  happened before, from what `read` gave, and nothing irreversible may happen earlier. It may reset the chip and not
  return;
- `rollback()`, optional: make the previous image the one that boots again. Without it a bad image cannot be left.

`end` and `rollback` may be called a second time after a power cut: let them *set* what boots, not toggle it.
A coroutine fails by an exception, or by returning False as in the seed; None, True and anything else are success.
`begin` and `write` run shielded: cancellation lands between two calls. `end` and `rollback` are not shielded, because
they may not return; shield inside them what must not be interrupted.

Slots. A chip that says nothing runs slot a, and the other slot is the staging one. What `end` or `rollback` selected
runs after the next boot, which is the next `recover()`. This is kept in memory only: if the process that uses the
backend can end while the chip goes on, or is itself what resets, bring `running`, a coroutine that says which slot runs
("a" or "b": any bit that the swap flips will do). It is asked once per boot.

`state`, if the device's own store is given here too, tells after a restart of the process whether the slot to select
holds an update (then `end` is right) or the previous image (then it is `rollback`). Without it, what this process did
not write counts as the previous image.

`read_running(offset, size)`, optional, reads the image that runs, and needs `max_image`. Without it the extent of the
running slot is 0: the image that runs when mgota first meets the device is unknown to it, hence nothing to go back to,
and the first update stays even if it is not committed ("stuck"). Bring this coroutine to have a way back from the first
update on.
"""

import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

from anyio import CancelScope
from anyio.lowlevel import checkpoint

from mgota.core.geometry import Slot
from mgota.core.record import State
from mgota.errors import (
    ConfigError,
    FlashError,
    OtaError,
    OverrunError,
    ProgramError,
    ReadError,
    SelectError,
    TooLargeError,
    TruncatedError,
)
from mgota.ports import ReadableBuffer, StateStore, Watchdog

T = TypeVar("T")

Begin = Callable[[int], Awaitable[object]]
Write = Callable[[ReadableBuffer], Awaitable[object]]
Finalise = Callable[[], Awaitable[object]]
Read = Callable[[int, int], Awaitable[bytes]]
Running = Callable[[], Awaitable[str]]


class CustomBackend:
    """A backend made of coroutines; implements `FlashBackend`. The module says what each is to do.

    Args:
        begin: makes room.
        write: stores the next bytes.
        end: makes the new image the one that boots.
        read: reads the staging image.
        rollback: makes the previous image the one that boots.
        running: which slot runs, "a" or "b".
        read_running: reads the image that runs.
        max_image: bytes of the largest image; without it, only `begin` refuses.
        crc: the checksum of the read-back, if the chip computes another than CRC-32.
        state: the device's store.
        watchdog: the device's; kept here for whoever makes the `Device`.

    Raises:
        ConfigError: the options contradict each other.
    """

    def __init__(
        self,
        begin: Begin,
        write: Write,
        end: Finalise,
        read: Read,
        *,
        rollback: Finalise | None = None,
        running: Running | None = None,
        read_running: Read | None = None,
        max_image: int | None = None,
        crc: str = "crc-32",
        state: StateStore | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        if read_running and max_image is None:
            raise ConfigError("a running image that can be read needs max_image: how much of it can be read")
        self.state = state
        self.watchdog = watchdog
        self._begin, self._write, self._end, self._read = begin, write, end, read
        self._rollback, self._ask_running, self._read_running = rollback, running, read_running
        self._max_image = max_image
        self._crc = crc
        self._running: Slot | None = None
        self._selected = Slot.A
        self._fresh = False  # this process wrote a complete image into the staging slot

    @property
    def crc(self) -> str:
        """The checksum of the read-back."""
        return self._crc

    async def running_slot(self) -> Slot:
        """The slot that ran at the last `recover`, which is now if it was not called.

        Raises:
            FlashError: `running` failed.
        """
        return self._running or await self._boot()

    async def capacity(self) -> int:
        """`max_image`, or a number beyond every memory."""
        return sys.maxsize if self._max_image is None else self._max_image

    async def open_writer(self, slot: Slot, size: int) -> "CustomWriter":
        """Begin to write an image of `size` bytes.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: `begin` failed, or the slot is the running one.
        """
        if size > await self.capacity():
            raise TooLargeError(size, await self.capacity())
        if slot is await self.running_slot():
            raise FlashError(f"slot {slot} runs: a custom backend writes only the other one")
        self._fresh = False
        with CancelScope(shield=True):
            await _call(self._begin(size), FlashError, "the update could not begin")
        await checkpoint()
        return CustomWriter(self, self._write, size)

    async def extent(self, slot: Slot) -> int:
        """Bytes that can be read from `slot`; where nobody knows, as many as an image can have.

        Raises:
            FlashError: `running` failed.
        """
        if slot is await self.running_slot() and not self._read_running:
            return 0
        return await self.capacity()

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of `slot`, counted from its start.

        Raises:
            ReadError: they could not be read, or are more than an image can have.
        """
        if offset < 0 or size < 0 or (self._max_image is not None and offset + size > self._max_image):
            raise ReadError(f"{size} bytes at {offset:#x} are not all inside slot {slot}")
        read = self._read_running if slot is await self.running_slot() else self._read
        if read is None:
            raise ReadError(f"slot {slot} runs, and there is no coroutine that reads the running image")
        data = await _call(read(offset, size), ReadError, f"slot {slot} could not be read at {offset:#x}")
        # Whatever the annotation says: a count, as read(2) would give, must not become that many zeros.
        if not isinstance(cast(object, data), bytes | bytearray | memoryview) or len(data) != size:
            raise ReadError(f"slot {slot} did not give the {size} bytes at {offset:#x}")
        return bytes(data)

    async def select(self, slot: Slot) -> None:
        """Make this slot the one that boots: `end` for an update, `rollback` for the previous image.

        Raises:
            SelectError: the coroutine failed; it promises that the slot that boots is the same as before.
            FlashError: `running` or the store failed.
        """
        await self.running_slot()
        if slot is self._selected:
            return
        finalise = self._end if await self._holds_update(slot) else self._rollback
        if finalise is None:
            raise SelectError(f"slot {slot} could not be selected: there is no rollback coroutine")
        await _call(finalise(), SelectError, f"slot {slot} could not be selected")
        self._selected = slot

    async def recover(self) -> None:
        """A boot: what was selected runs now.

        Raises:
            FlashError: `running` failed.
        """
        await self._boot()

    async def _boot(self) -> Slot:
        if self._ask_running is None:
            running = self._selected
        else:
            answer = await _call(self._ask_running(), FlashError, "nobody can say which slot runs")
            if answer not in list(Slot):
                raise FlashError(f"the running slot is a or b, not {answer!r}")
            running = Slot(answer)
        if self._running not in (None, running):
            self._fresh = False  # the staging slot is another one now
        self._running = self._selected = running
        return running

    async def _holds_update(self, slot: Slot) -> bool:
        if slot is self._running:
            return False
        if self._fresh:
            return True
        record = await self.state.load() if self.state else None
        return record is not None and record.state is State.TESTING and record.trial is slot

    def complete(self) -> None:
        """The staging slot holds a new image. For the writer."""
        self._fresh = True


class CustomWriter:
    """An image on its way through the user's `write`; implements `FlashWriter`."""

    def __init__(self, backend: CustomBackend, write: Write, size: int) -> None:
        self._backend = backend
        self._write = write
        self._size = size
        self._received = 0
        self._usable = True

    async def write(self, chunk: ReadableBuffer) -> None:
        """The next bytes of the image, any number of them.

        Raises:
            OverrunError: more came than was declared; nothing was taken of the chunk.
            ProgramError: they could not be stored.
        """
        self._check_usable()
        length = memoryview(chunk).nbytes
        if self._received + length > self._size:
            raise OverrunError(self._size)
        if not length:
            return
        self._usable = False
        with CancelScope(shield=True):
            await _call(self._write(chunk), ProgramError, f"the image could not be stored at {self._received:#x}")
        self._received += length
        self._usable = True
        await checkpoint()

    async def finish(self) -> None:
        """The image is complete. There is nothing to call: `end` comes after the verification.

        Raises:
            TruncatedError: less came than was declared.
            FlashError: the image was given up.
        """
        self._check_usable()
        if self._received < self._size:
            raise TruncatedError(self._received, self._size)
        self._backend.complete()

    async def abort(self) -> None:
        """Give up. What was written stays, as garbage. Never raises."""
        self._usable = False

    def _check_usable(self) -> None:
        if not self._usable:
            raise FlashError("this image was given up: begin again")


async def _call(awaitable: Awaitable[T], error: type[FlashError], message: str) -> T:
    """Await a user's coroutine and translate how it fails."""
    try:
        result = await awaitable
    except OtaError:
        raise
    except Exception as exc:
        raise error(f"{message}: {str(exc) or type(exc).__name__}") from exc
    if result is False:
        raise error(message)
    return result
