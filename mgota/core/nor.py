"""What is done to a flash memory, said and not done.

A `Job` is a generator: it yields an action; whoever performs it sends back the bytes of a `Read` or a `Kept` (nothing
for the others), or throws the `FlashError` that it ended in; at its end the job returns a result. So the rules of
swapping and recording stand in the core, and tests drive them without an event loop.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

from mgota.core.geometry import Area, Geometry, Sector

ReadableBuffer = bytes | bytearray | memoryview

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Read:
    """Read `size` bytes from `offset` on, counted from the start of the flash memory."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Erase:
    """Erase this sector."""

    sector: Sector


@dataclass(frozen=True, slots=True)
class Program:
    """Program whole units, from `offset` on.

    Args:
        offset: counted from the start of the flash memory.
        data: valid until the next action is asked for; it may be a view of somebody else's bytes.
    """

    offset: int
    data: ReadableBuffer


@dataclass(frozen=True, slots=True)
class Kept:
    """Read what is kept beside the flash memory: the data of the last `Keep`, or nothing."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Replace what is kept beside the flash memory, durably and atomically."""

    data: bytes


Operation = Erase | Program
Action = Read | Erase | Program | Kept | Keep
Job = Generator[Action, bytes, T]


def rewrite(geometry: Geometry, area: Area, data: bytes) -> Job[bool]:
    """Erase an area, program `data` at its start, read all of it back.

    The area is erased whatever it reads as: a blank look proves nothing after a power cut. Blank units at the end of
    `data` are not programmed.

    Args:
        geometry: of the memory.
        area: whole sectors.
        data: whole program units, no longer than the area.

    Returns by the generator's value whether the area reads as it should.
    """
    for sector in geometry.sectors_in(area):
        yield Erase(sector)
    blank = geometry.blank(len(data))
    length = occupied(data, blank, geometry.program_unit)
    if length:
        yield Program(area.start, memoryview(data)[:length])
    return (yield Read(area.start, len(data))) == data


def occupied(data: bytes, blank: bytes, unit: int) -> int:
    """Bytes of `data` up to the end of its last unit that is not blank.

    Args:
        data: whole units.
        blank: as many erased bytes.
        unit: bytes of a program unit.
    """
    if data == blank:
        return 0
    low, high = 0, len(data) // unit  # from unit `high` on all is blank; from `low` on it is not
    while high - low > 1:
        middle = (low + high) // 2
        if data[middle * unit :] == blank[middle * unit :]:  # slices of bytes: a memoryview compares one by one
            high = middle
        else:
            low = middle
    return high * unit
