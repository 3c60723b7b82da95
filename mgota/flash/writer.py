"""Writes an image into a slot of a flash memory as it comes.

Rules:
- an operation on the flash memory, once begun, runs to its end; cancellation lands between two of them;
- after a failure or a cancellation inside a write, the image has a hole: nothing more is taken.
"""

from collections.abc import Awaitable, Callable, Iterator

from anyio import CancelScope
from anyio.lowlevel import checkpoint

from mgota.core.geometry import Area
from mgota.core.nor import Erase, Operation
from mgota.core.stager import Stager, whole_sectors
from mgota.errors import FlashError
from mgota.ports import Flushable, NorFlash, ReadableBuffer


def reopened(flash: Flushable, area: Area, size: int, mark: int) -> tuple["NorWriter", int]:
    """A writer that goes on with an image, and the byte at which it does: the first of the sector that `mark` is in.

    Args:
        flash: the memory.
        area: the slot.
        size: bytes of the image.
        mark: bytes of it that are there; what of them does not fill a sector is erased and has to come again.

    Raises:
        ConfigError: the area is not a run of whole sectors.
        TooLargeError: the image does not fit the area.
    """
    start = whole_sectors(flash.geometry, area, min(mark, size))
    return NorWriter(flash, area, size, start=start, flush=flash.flush), start


class NorWriter:
    """An image on its way into an area; implements `FlashWriter`.

    Args:
        flash: the memory.
        area: the slot.
        size: bytes of the image.
        start: bytes of the image that are there already, whole sectors of them.
        flush: what makes the memory durable, if it is not by itself.

    Raises:
        ConfigError: the area is not a run of whole sectors, or `start` not a sector's first byte.
        TooLargeError: the image does not fit the area.
    """

    def __init__(
        self,
        flash: NorFlash,
        area: Area,
        size: int,
        *,
        start: int = 0,
        flush: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._flash = flash
        self._stager = Stager(flash.geometry, area, size, start=start)
        self._flush = flush
        self._usable = True

    async def write(self, chunk: ReadableBuffer) -> None:
        """The next bytes of the image, any number of them.

        Raises:
            OverrunError: more came than was declared; nothing was taken of the chunk.
            FlashError: they could not be stored.
        """
        self._check_usable()
        await self._perform(self._stager.feed(chunk))

    async def finish(self) -> None:
        """Store what is held back, erase the rest of the slot, and make all of it durable.

        Raises:
            TruncatedError: less came than was declared.
            FlashError: it could not be stored.
        """
        self._check_usable()
        await self._perform(self._stager.finish())
        if self._flush:
            with CancelScope(shield=True):
                await self._flush()

    async def sync(self) -> int:
        """Make durable what was programmed so far: so many bytes of the image, without a rest smaller than a unit.

        Raises:
            FlashError: it could not be.
        """
        self._check_usable()
        if self._flush:
            with CancelScope(shield=True):
                await self._flush()
        return self._stager.stored

    async def abort(self) -> None:
        """Give up. What was written stays, as garbage. Never raises."""
        self._usable = False

    def _check_usable(self) -> None:
        if not self._usable:
            raise FlashError("this image was given up: erase the slot and write it again")

    async def _perform(self, operations: Iterator[Operation]) -> None:
        self._usable = False
        for operation in operations:
            with CancelScope(shield=True):
                if isinstance(operation, Erase):
                    await self._flash.erase(operation.sector)
                else:
                    await self._flash.program(operation.offset, operation.data)
            await checkpoint()
        self._usable = True
