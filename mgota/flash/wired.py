"""A chip at the end of a link gets an image: what is there already is left, what is not is programmed and read back.

    async with PlainChip(connect, geometry).session() as held:     the chip is stopped
        await held.bring(image, whole=False, begin=note_it)
                                                                   and runs again, from its start
Rules:
- the chip tells by its own checksum what it holds, where the link can have that; otherwise its flash memory is read;
- sectors that hold what they should are left alone. All others are erased, then programmed from the last to the first:
  the first one has the vector table, so that a chip that starts half-programmed starts nothing;
- what was programmed is read back, or summed up, before anybody is told that it is there;
- a chip that was not brought to its end is not started; one that was not touched is.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import anyio

from mgota.core.geometry import Area, Geometry
from mgota.core.held import Piece, pieces, programmed, room
from mgota.errors import FlashError, OtaError, VerifyError
from mgota.flash.links.link import Comparing, Connect, Link
from mgota.ports import Flushable

log = logging.getLogger("mgota.wired")

LOOK = 1024
"""Bytes that are compared at once where they have to be read: a sector that differs mostly does so early."""

COPY = 4096
"""Bytes that are read at once when all of them are wanted."""


@dataclass(frozen=True, slots=True)
class Source:
    """An image that a chip is to hold.

    Args:
        size: bytes.
        read: gives so many bytes of it, from an offset on.
    """

    size: int
    read: Callable[[int, int], Awaitable[bytes]]


class Session(Protocol):
    """A chip that is stopped, and can be looked at and changed."""

    async def extent(self) -> int:
        """Bytes of what it runs, up to the last that is not blank; 0 if all is blank.

        Raises:
            ReadError: it could not be read.
        """
        ...

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of what it runs.

        Raises:
            ReadError: they could not be read.
        """
        ...

    async def holds(self, image: Source) -> bool:
        """Whether it runs this image.

        Raises:
            ReadError: it could not be read.
        """
        ...

    async def bring(self, image: Source, *, whole: bool, begin: Callable[[], Awaitable[None]]) -> bool:
        """See to it that it runs this image from its next start on.

        Args:
            image: what it is to hold; it fits.
            whole: believe nothing that is there: a power cut may have torn it.
            begin: awaited before anything is erased.

        Returns:
            Whether anything had to be programmed.

        Raises:
            FlashError: it does not hold it.
        """
        ...


class WiredChip(Protocol):
    """A chip that a gateway reaches."""

    async def capacity(self) -> int:
        """Bytes of the largest image.

        Raises:
            FlashError: the chip has to be asked, and does not answer.
        """
        ...

    def session(self) -> AbstractAsyncContextManager[Session]:
        """Stop the chip; leaving lets it run, from its start.

        Raises:
            LinkError: it cannot be reached, or does not start.
        """
        ...


class Programmer:
    """What is done to one area of a linked flash memory.

    Args:
        link: to the chip, which was entered.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.touched = False
        """Whether something was erased that may not be whole again."""

    async def holds(self, offset: int, data: bytes) -> bool:
        """Whether the memory holds these bytes."""
        if isinstance(self.link, Comparing):
            return await self.link.holds(offset, data)
        for at in range(0, len(data), LOOK):
            if await self.link.read(offset + at, len(data[at : at + LOOK])) != data[at : at + LOOK]:
                return False
        return True

    async def wanted(self, area: Area, image: Source, *, whole: bool) -> list[Piece]:
        """The pieces of an image that the area does not hold; all of them if nothing there is believed.

        Raises:
            FlashError: the image does not fit the area.
        """
        if image.size > area.length:
            raise FlashError(f"an image of {image.size} bytes does not fit the chip's {area.length}")
        return [
            piece
            for piece in pieces(self.link.geometry, area, image.size)
            if whole or not await self.holds(piece.sector.start, await image.read(piece.start, piece.length))
        ]

    async def has(self, area: Area, image: Source) -> bool:
        """Whether the area holds all of an image. The first difference is enough."""
        if image.size > area.length:
            return False
        for piece in pieces(self.link.geometry, area, image.size):
            if not await self.holds(piece.sector.start, await image.read(piece.start, piece.length)):
                return False
        return True

    async def program(self, image: Source, found: Iterable[Piece]) -> None:
        """Erase and program these pieces, and read them back.

        Raises:
            FlashError: they are not there.
        """
        found = tuple(found)
        log.info("%d of the image's sectors are programmed", len(found))
        self.touched = True
        for piece in found:
            await self.link.erase(piece.sector)
        for piece in reversed(found):
            data = programmed(self.link.geometry, await image.read(piece.start, piece.length))
            if data:
                await self.link.program(piece.sector.start, data)
        if isinstance(self.link, Flushable):
            await self.link.flush()
        for piece in found:
            if not await self.holds(piece.sector.start, await image.read(piece.start, piece.length)):
                raise VerifyError("the chip does not hold what was programmed")
        self.touched = False

    async def extent(self, area: Area) -> int:
        """Bytes of the area up to the last one that is not blank, found from its end."""
        geometry = self.link.geometry
        for sector in reversed(list(geometry.sectors_in(area))):
            blank = geometry.blank(sector.length)
            if await self.holds(sector.start, blank):
                continue
            unit = geometry.program_unit
            for at in range(sector.end - COPY, sector.start - COPY, -COPY):
                start = max(at, sector.start)
                data = await self.link.read(start, at + COPY - start)
                for last in range(len(data) - unit, -1, -unit):
                    if data[last : last + unit] != blank[:unit]:
                        return start + last + unit - area.start
        return 0


class PlainChip:
    """A chip that runs what lies at one place in its flash memory; implements `WiredChip`.

    Args:
        connect: opens the link.
        geometry: of its flash memory.
        start: where an image lies: a sector's first byte.

    Raises:
        ConfigError: no sector begins there.
    """

    def __init__(self, connect: Connect, geometry: Geometry, start: int = 0) -> None:
        self._connect = connect
        self._area = room(geometry, start)

    async def capacity(self) -> int:
        """Bytes up to the end of the flash memory, or its first hole."""
        return self._area.length

    @asynccontextmanager
    async def session(self) -> AsyncGenerator["PlainSession"]:
        """Stop the chip. See `WiredChip`."""
        async with entered(self._connect) as worker:
            yield PlainSession(worker, self._area)


class PlainSession:
    """Implements `Session`.

    Args:
        worker: at the chip.
        area: where an image lies.
    """

    def __init__(self, worker: Programmer, area: Area) -> None:
        self._worker = worker
        self._area = area

    async def extent(self) -> int:
        """Bytes up to the last that is not blank."""
        return await self._worker.extent(self._area)

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of what it runs."""
        return await self._worker.link.read(self._area.start + offset, size)

    async def holds(self, image: Source) -> bool:
        """Whether it runs this image."""
        return await self._worker.has(self._area, image)

    async def bring(self, image: Source, *, whole: bool, begin: Callable[[], Awaitable[None]]) -> bool:
        """Program what is not there. See `Session`."""
        found = await self._worker.wanted(self._area, image, whole=whole)
        if not found:
            return False
        await begin()
        await self._worker.program(image, found)
        return True


@asynccontextmanager
async def entered(connect: Connect) -> AsyncGenerator[Programmer]:
    """A chip that is stopped; leaving lets it run, unless it was left half-programmed.

    Args:
        connect: opens the link.

    Raises:
        LinkError: it cannot be reached, or does not start.
    """
    async with connect() as link:
        await link.enter()
        worker = Programmer(link)
        try:
            yield worker
        except BaseException:
            if not worker.touched:
                with anyio.CancelScope(shield=True):
                    await _start_again(link)
            raise
        await link.reset()


async def _start_again(link: Link) -> None:
    try:
        await link.reset()
    except OtaError as exc:
        log.error("the chip could not be started again: %s", exc)  # noqa: TRY400  what failed first is raised
