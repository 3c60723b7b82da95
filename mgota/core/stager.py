"""From chunks of any length to the erases and programs of a flash memory.

Rules:
- whoever asks performs the operations in the order given, all of them, before the next chunk is fed;
- a sector is erased once, when the first unit is about to be programmed into it;
- what lies below `start`, of an earlier attempt, is left as it is;
- only whole program units come out, each once; what is left of a chunk is carried over, and nothing but that is copied;
- padding with the erased pattern stands at the very end of the image, nowhere else;
- at the end every sector that was not entered is erased, so that nothing of an older image stays.
"""

from collections.abc import Iterator

from mgota.core.geometry import Area, Geometry
from mgota.core.nor import Erase, Operation, Program, ReadableBuffer
from mgota.errors import ConfigError, OverrunError, TooLargeError, TruncatedError


class Stager:
    """One image on its way into one area.

    Args:
        geometry: of the flash memory.
        area: the slot; a run of whole sectors.
        size: bytes of the image.
        start: bytes of the image that are there already; see `whole_sectors`.

    Raises:
        ConfigError: the area is not a run of whole sectors, or `start` not a sector's first byte.
        TooLargeError: the image does not fit the area.
    """

    def __init__(self, geometry: Geometry, area: Area, size: int, *, start: int = 0) -> None:
        self._area = geometry.slot_area(area.start, area.length)
        if size > area.length:
            raise TooLargeError(size, area.length)
        self.size = size
        if start > size or whole_sectors(geometry, self._area, start) != start:
            raise ConfigError(f"an image of {size} bytes cannot go on at byte {start}, inside a sector")
        self.received = start
        """Bytes of the image that were fed so far, or were there."""
        self._geometry = geometry
        self._sectors = (sector for sector in geometry.sectors_in(area) if sector.start >= area.start + start)
        self._erased = area.start + start  # everything in the area below this was erased
        self._position = area.start + start  # everything in the area below this was programmed
        self._carry = bytearray()  # received and not yet a whole unit

    @property
    def stored(self) -> int:
        """Bytes of the image that have been programmed, once the operations are performed."""
        return self._position - self._area.start

    def feed(self, chunk: ReadableBuffer) -> Iterator[Operation]:
        """What to do for the next bytes of the image.

        Raises:
            OverrunError: more came than the image has; nothing was taken of the chunk.
        """
        view = memoryview(chunk)
        if self.received + view.nbytes > self.size:
            raise OverrunError(self.size)
        self.received += view.nbytes
        # A view of no bytes cannot be cast, and there is nothing to do with it.
        return self._take(view.cast("B")) if view.nbytes else iter(())

    def finish(self) -> Iterator[Operation]:
        """What to do when the image is complete: the padded last unit, and the rest of the slot.

        Raises:
            TruncatedError: less came than the image has.
        """
        if self.received < self.size:
            raise TruncatedError(self.received, self.size)
        return self._close()

    def _take(self, view: memoryview) -> Iterator[Operation]:
        unit = self._geometry.program_unit
        head = min(-len(self._carry) % unit, len(view))  # what the carry lacks
        self._carry += view[:head]
        bulk = (len(view) - head) // unit * unit
        whole = bytes(self._carry) if len(self._carry) == unit else b""
        yield from self._enter(self._position + len(whole) + bulk)
        if whole:
            self._carry.clear()
            yield self._program(whole)
        if bulk:
            yield self._program(view[head : head + bulk])
        self._carry += view[head + bulk :]

    def _close(self) -> Iterator[Operation]:
        if self._carry:
            unit = self._geometry.program_unit
            # A pattern of several bytes goes on in its phase: it is counted from the unit's start, not from the pad's.
            last = bytes(self._carry) + self._geometry.blank(unit)[len(self._carry) :]
            self._carry.clear()
            yield from self._enter(self._position + unit)
            yield self._program(last)
        yield from self._enter(self._area.end)

    def _enter(self, end: int) -> Iterator[Erase]:
        while self._erased < end:
            sector = next(self._sectors)
            self._erased = sector.end
            yield Erase(sector)

    def _program(self, data: ReadableBuffer) -> Program:
        program = Program(self._position, data)
        self._position += len(data)
        return program


def whole_sectors(geometry: Geometry, area: Area, size: int) -> int:
    """How many of the first `size` bytes of an area fill sectors: there an image can go on.

    Args:
        geometry: of the flash memory.
        area: a run of whole sectors.
        size: bytes from the start of the area, at most all of it.
    """
    if size >= area.length:
        return area.length
    return geometry.sectors[geometry.index_at(area.start + size)].start - area.start
