"""From chunks of any length to the erases and programs of a flash memory.

Rules:
- whoever asks performs the operations in the order given, all of them, before the next chunk is fed;
- a sector is erased once, when the first unit is about to be programmed into it;
- only whole program units come out, each once; what is left of a chunk is carried over, and nothing but that is copied;
- padding with the erased pattern stands at the very end of the image, nowhere else;
- at the end every sector that was not entered is erased, so that nothing of an older image stays.
"""

from collections.abc import Iterator

from mgota.core.geometry import Area, Geometry
from mgota.core.nor import Erase, Operation, Program, ReadableBuffer
from mgota.errors import OverrunError, TooLargeError, TruncatedError


class Stager:
    """One image on its way into one area.

    Args:
        geometry: of the flash memory.
        area: the slot; a run of whole sectors.
        size: bytes of the image.

    Raises:
        ConfigError: the area is not a run of whole sectors.
        TooLargeError: the image does not fit the area.
    """

    def __init__(self, geometry: Geometry, area: Area, size: int) -> None:
        self._area = geometry.slot_area(area.start, area.length)
        if size > area.length:
            raise TooLargeError(size, area.length)
        self.size = size
        self.received = 0
        """Bytes that were fed so far."""
        self._geometry = geometry
        self._sectors = geometry.sectors_in(area)
        self._erased = area.start  # everything in the area below this was erased
        self._position = area.start  # everything in the area below this was programmed
        self._carry = bytearray()  # received and not yet a whole unit

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
