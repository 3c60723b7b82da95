"""What lies under a simulated flash memory: bytes in memory, or in a file.

Media store; they enforce nothing. Rules:
- ranges come checked: they lie inside sectors without a hole between them;
- memory is shared by sector between forks until one of them changes it, and a blank sector costs nothing;
- a file is opened for each operation and nothing of it is kept, so that all processes see the same bytes;
- these functions block and raise OSError.
"""

import errno
import os
from bisect import bisect_right
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from mgota.core.geometry import Geometry, Sector
from mgota.errors import ConfigError
from mgota.flash.files import replace_file, sweep_temporaries

PIECE = 1 << 16
"""Bytes that are compared or written at once where the whole would be large."""


class Medium(Protocol):
    """Where the simulated bytes are."""

    blocking: bool
    """Whether its operations wait for a disk, and belong into a thread."""

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        ...

    def programmed(self, offset: int, size: int) -> int | None:
        """Offset of the first unit in the range that was programmed since its erase, or None."""
        ...

    def program(self, offset: int, data: memoryview) -> None:
        """Store bytes; every unit that they touch counts as programmed."""
        ...

    def erase(self, sector: Sector) -> None:
        """Make a sector blank."""
        ...

    def flush(self) -> None:
        """Make everything durable."""
        ...

    def fork(self) -> "Medium":
        """A copy that changes by itself from now on."""
        ...


class _Cells:
    """A sector that is not blank: its bytes, and one flag for each program unit."""

    __slots__ = ("data", "programmed", "view")

    def __init__(self, data: bytearray, programmed: bytearray) -> None:
        self.data = data
        self.programmed = programmed
        self.view = memoryview(data)


class _Plan:
    """What all forks of a memory have in common: looked up once."""

    def __init__(self, geometry: Geometry) -> None:
        self.unit = geometry.program_unit
        self.starts = [sector.start for sector in geometry.sectors]
        self.lengths = [sector.length for sector in geometry.sectors]
        blanks = {length: geometry.blank(length) for length in set(self.lengths)}
        self.blanks = [blanks[length] for length in self.lengths]
        self.ones = b"\x01" * (max(blanks) // self.unit)


class MemoryMedium:
    """Bytes in memory, copied on write by sector."""

    blocking = False

    def __init__(self, geometry: Geometry, plan: _Plan | None = None) -> None:
        self._geometry = geometry
        self._plan = plan or _Plan(geometry)
        self._cells: list[_Cells | None] = [None] * len(geometry.sectors)  # None is blank
        self._owned: set[int] = set()  # sectors that no fork shares

    def _pieces(self, offset: int, size: int) -> list[tuple[int, int, int]]:
        """Sector by sector: its index, and where the range begins and ends in it."""
        plan = self._plan
        index = bisect_right(plan.starts, offset) - 1
        start = offset - plan.starts[index]
        if 0 < size <= plan.lengths[index] - start:  # the case that proofs repeat a million times
            return [(index, start, start + size)]
        pieces: list[tuple[int, int, int]] = []
        while size > 0:
            start = offset - plan.starts[index]
            taken = min(size, plan.lengths[index] - start)
            pieces.append((index, start, start + taken))
            offset += taken
            size -= taken
            index += 1
        return pieces

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        plan = self._plan
        index = bisect_right(plan.starts, offset) - 1
        start = offset - plan.starts[index]
        if start + size <= plan.lengths[index]:  # most reads stay inside a sector: one copy
            cells = self._cells[index]
            return (
                plan.blanks[index][start : start + size] if cells is None else bytes(cells.view[start : start + size])
            )
        return b"".join(
            (plan.blanks[index] if (cells := self._cells[index]) is None else cells.view)[start:end]
            for index, start, end in self._pieces(offset, size)
        )

    def programmed(self, offset: int, size: int) -> int | None:
        """Offset of the first unit in the range that was programmed since its erase, or None."""
        plan = self._plan
        for index, start, end in self._pieces(offset, size):
            cells = self._cells[index]
            if cells and (found := cells.programmed.find(1, start // plan.unit, -(-end // plan.unit))) >= 0:
                return plan.starts[index] + found * plan.unit
        return None

    def program(self, offset: int, data: memoryview) -> None:
        """Store bytes; every unit that they touch counts as programmed."""
        plan, position = self._plan, 0
        for index, start, end in self._pieces(offset, len(data)):
            piece = data[position : position + end - start]
            position += end - start
            if end - start == plan.lengths[index]:
                self._cells[index] = _Cells(bytearray(piece), bytearray(plan.ones[: len(piece) // plan.unit]))
                self._owned.add(index)
                continue
            cells = self._own(index)
            cells.data[start:end] = piece
            first, last = start // plan.unit, -(-end // plan.unit)
            cells.programmed[first:last] = plan.ones[: last - first]

    def erase(self, sector: Sector) -> None:
        """Make a sector blank."""
        index = bisect_right(self._plan.starts, sector.start) - 1
        self._cells[index] = None
        self._owned.discard(index)

    def flush(self) -> None:
        """Nothing to do."""

    def fork(self) -> "MemoryMedium":
        """A copy that shares every sector until one of the two changes it."""
        twin = MemoryMedium(self._geometry, self._plan)
        twin._cells = self._cells.copy()
        self._owned.clear()
        return twin

    def _own(self, index: int) -> _Cells:
        cells = self._cells[index]
        if cells is not None and index in self._owned:
            return cells
        if cells is None:
            blank = self._plan.blanks[index]
            cells = _Cells(bytearray(blank), bytearray(len(blank) // self._plan.unit))
        else:
            cells = _Cells(cells.data.copy(), cells.programmed.copy())
        self._cells[index] = cells
        self._owned.add(index)
        return cells


class FileMedium:
    """Bytes in a file: the raw array, offset 0 first. Made blank if it is missing.

    There are no flags beside the bytes: a unit that was programmed with the erased pattern counts as erased.

    Raises:
        ConfigError: the file cannot be used, or is not as long as the memory.
    """

    blocking = True

    def __init__(self, path: str | os.PathLike[str], geometry: Geometry) -> None:
        self._path = Path(path)
        self._geometry = geometry
        unit = geometry.program_unit
        self._piece = max(PIECE // unit, 1) * unit
        self._blank_piece = geometry.blank(self._piece)
        sweep_temporaries(self._path)
        try:
            if not self._path.exists():
                replace_file(self._path, self._blank(geometry.size))
            with self._open() as descriptor:
                length = os.fstat(descriptor).st_size
        except OSError as exc:
            raise ConfigError(f"the flash file {self._path} cannot be used: {exc.strerror}") from exc
        if length != geometry.size:
            raise ConfigError(f"the flash file {self._path} has {length} bytes, the memory {geometry.size}")

    def _blank(self, size: int) -> Iterator[bytes]:
        for done in range(0, size, self._piece):
            yield self._blank_piece[: size - done]

    @contextmanager
    def _open(self) -> Generator[int]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes."""
        with self._open() as descriptor:
            return _pread(descriptor, offset, size)

    def programmed(self, offset: int, size: int) -> int | None:
        """Offset of the first unit in the range that is not blank, or None."""
        with self._open() as descriptor:
            position = offset
            for blank in self._blank(size):
                found = _pread(descriptor, position, len(blank))
                if found != blank:
                    return position + self._first_difference(found, blank)
                position += len(blank)
        return None

    def _first_difference(self, found: bytes, blank: bytes) -> int:
        unit = self._geometry.program_unit
        return next(at for at in range(0, len(found), unit) if found[at : at + unit] != blank[at : at + unit])

    def program(self, offset: int, data: memoryview) -> None:
        """Store bytes."""
        with self._open() as descriptor:
            _pwrite(descriptor, offset, data)

    def erase(self, sector: Sector) -> None:
        """Make a sector blank."""
        with self._open() as descriptor:
            position = sector.start
            for blank in self._blank(sector.length):
                _pwrite(descriptor, position, memoryview(blank))
                position += len(blank)

    def flush(self) -> None:
        """Make everything durable."""
        with self._open() as descriptor:
            os.fdatasync(descriptor)

    def fork(self) -> "FileMedium":
        """Refused.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("a flash memory in a file cannot be forked: copy the file")


def _pread(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    while len(data) < size:
        more = os.pread(descriptor, size - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "the file ends early")
        data += more
    return data


def _pwrite(descriptor: int, offset: int, data: memoryview) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written
