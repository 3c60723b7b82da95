"""Whether a firmware for a Cortex-M can run where its slot lies: what its vector table says.

A vector table begins with two words, little endian: the initial stack pointer and the reset vector, whose lowest bit
is set because a Cortex-M runs Thumb code only (Armv7-M Architecture Reference Manual, B1.5.3; Armv8-M, B4.30). On an
i.MX RT it lies behind a boot header, whose IVT names an entry (i.MX RT1060 Reference Manual, 9.7.1: tag 0xD1, entry in
the second word).

Rules:
- only what cannot run is refused: a firmware that was linked for another address, or none at all;
- it is enough that one of the addresses fits which the slot can be reached by.
"""

import struct
from collections.abc import Sequence

from mgota.core.geometry import Area
from mgota.core.inspect import ReadableBuffer
from mgota.errors import WrongHardwareError

WORDS = struct.Struct("<II")
RAM = ((0x00000000, 0x00080000), (0x04000000, 0x05000000), (0x10000000, 0x40000000), (0x60000000, 0xA0000000))
"""Where a stack can lie: TCM, RAM by the code bus, CCM, SRAM, external memory. Peripherals and the system cannot."""

IVT = 0x1000
IVT_TAG = 0xD1


class VectorInspector:
    """Looks at the vector table of one firmware; implements `ImageInspector`.

    Args:
        links: absolute addresses that the slot's first byte may be reached by.
        length: bytes of the slot.
        offsets: where in the firmware a vector table may lie.
        _size: bytes of the firmware; its vectors are looked at whatever it is.
    """

    def __init__(self, links: Sequence[int], length: int, offsets: Sequence[int], _size: int) -> None:
        self._areas = [Area(link, length) for link in links]
        self._offsets = offsets
        self._wanted = max(*offsets, IVT) + WORDS.size
        self._head = bytearray()

    def update(self, block: ReadableBuffer) -> None:
        """The firmware's next bytes."""
        if len(self._head) < self._wanted:
            self._head += memoryview(block)[: self._wanted - len(self._head)]

    def finish(self) -> None:
        """All of it was seen.

        Raises:
            WrongHardwareError: no vector table is where one must be, or it leads out of the slot.
        """
        reasons = [self._fault(offset) for offset in self._offsets]
        if all(reasons) and not (max(self._offsets) > 0 and self._has_ivt()):
            raise WrongHardwareError(f"the firmware is for another chip or address: {reasons[0]}")

    def _fault(self, offset: int) -> str | None:
        """Why no vector table lies there, or None."""
        if len(self._head) < offset + WORDS.size:
            return "it is too short for a vector table"
        stack, reset = WORDS.unpack_from(self._head, offset)
        if stack % 4 or not any(start <= stack <= end for start, end in RAM):
            return f"no stack can begin at {stack:#010x}"
        if not reset & 1:
            return f"the reset vector {reset:#010x} is no Thumb code"
        if not self._inside(reset - 1):
            places = " or ".join(f"{area.start:#010x} to {area.end - 1:#010x}" for area in self._areas)
            return f"the reset vector {reset:#010x} lies outside of the slot, {places}"
        return None

    def _has_ivt(self) -> bool:
        if len(self._head) < IVT + WORDS.size:
            return False
        header, entry = WORDS.unpack_from(self._head, IVT)
        return header & 0xFF == IVT_TAG and self._inside(entry)

    def _inside(self, address: int) -> bool:
        return any(area.start <= address < area.end for area in self._areas)
