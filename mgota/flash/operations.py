"""What a simulated device does, counted, and where a test stops it.

Rules:
- a read changes nothing, and has no index; everything else has one, counted from 0;
- an `Operation` is made only where somebody listens, a hook or a guard: counting alone is cheap;
- a guard is asked before an operation is counted: without power, it was never begun.
"""

import sys
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

ReadableBuffer = bytes | bytearray | memoryview

NEVER = sys.maxsize
"""An index that no operation reaches."""


class Kind(StrEnum):
    """What a simulated device does."""

    READ = "read"
    ERASE = "erase"
    PROGRAM = "program"
    OPTION = "option"


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a simulated device does.

    Args:
        kind: what it is.
        index: counts the operations that change something, from 0; None for a read, where a cut makes no difference.
        offset: first byte, counted from the start of the memory.
        size: bytes.
        data: what is programmed.
        source: the simulated part that does it, if it tells.
    """

    kind: Kind
    index: int | None
    offset: int
    size: int
    data: ReadableBuffer | None = field(default=None, repr=False, compare=False)
    source: object = field(default=None, repr=False, compare=False)


class Guard(Protocol):
    """What stands between a device and its operations, such as a power supply."""

    def admit(self, operation: Operation) -> None:
        """Called before an operation is counted; if it raises, the operation was never begun."""
        ...

    def begun(self, operation: Operation) -> None:
        """Called when it is counted and has not taken effect."""
        ...

    def ended(self, operation: Operation) -> None:
        """Called after an operation took effect."""
        ...


class Operations:
    """Counts what a simulated device does, and stops it where a test says so.

    The parts of one device, its flash and its option bytes, share one of these.
    """

    def __init__(self) -> None:
        self.before: Callable[[Operation], None] | None = None
        """Called before an operation takes effect; if it raises, the operation did not happen."""
        self.after: Callable[[Operation], None] | None = None
        """Called after an operation took effect."""
        self.counts: Counter[Kind] = Counter()
        """How many of each kind were begun."""
        self.broken_rules: list[str] = []
        """Every program and erase that was refused because the chip forbids it, in words."""
        self.guard: Guard | None = None
        self.guarded_from = NEVER
        """Index of the first operation that the guard is asked about; reads count as the operation that follows."""
        self._changes = 0

    @property
    def changes(self) -> int:
        """How many operations were begun that change something: the `index` of the next one."""
        return self._changes

    def begin(
        self, kind: Kind, offset: int, size: int, data: ReadableBuffer | None = None, source: object = None
    ) -> Operation | None:
        """An operation is about to take effect. Returns it, for `end`, if anybody listens."""
        index = self._changes
        change = kind is not Kind.READ
        if index < self.guarded_from and self.before is None and self.after is None:
            self.counts[kind] += 1
            if change:
                self._changes = index + 1
            return None
        operation = Operation(kind, index if change else None, offset, size, data, source)
        guard = self.guard if index >= self.guarded_from else None
        if guard:
            guard.admit(operation)
        self.counts[kind] += 1
        if change:
            self._changes = index + 1
        if self.before:
            self.before(operation)
        if guard:
            guard.begun(operation)
        return operation

    def end(self, operation: Operation) -> None:
        """An operation that `begin` returned took effect."""
        if self.after:
            self.after(operation)
        if self._changes > self.guarded_from and self.guard:
            self.guard.ended(operation)

    @contextmanager
    def perform(
        self, kind: Kind, offset: int, size: int, data: ReadableBuffer | None = None, source: object = None
    ) -> Generator[None]:
        """Around the effect of an operation."""
        operation = self.begin(kind, offset, size, data, source)
        yield
        if operation:
            self.end(operation)


class Cell:
    """A few bytes beside a flash memory that survive a power cut: an option register, an EEPROM, a file of the gateway.

    A store is one operation among the memory's, and atomic: all of it happens, or nothing. Made by
    `NorSimulator.cell`; whoever asks for the same name gets the same bytes, after a boot, too.

    Args:
        name: of the cell.
        cells: where its bytes are, by name.
        operations: where to count.
    """

    def __init__(self, name: str, cells: dict[str, bytes], operations: Operations) -> None:
        self.name = name
        self._cells = cells
        self._operations = operations

    def load(self) -> bytes | None:
        """What was stored last; None if nothing ever was."""
        found = self._cells.get(self.name)
        operation = self._operations.begin(Kind.READ, 0, len(found or b""), None, self)
        if operation:
            self._operations.end(operation)
        return found

    def store(self, data: bytes) -> None:
        """Replace the content."""
        operation = self._operations.begin(Kind.OPTION, 0, len(data), data, self)
        self._cells[self.name] = bytes(data)
        if operation:
            self._operations.end(operation)


class Register:
    """A cell that holds a number; what `BankedFlash` takes for its option register.

    Args:
        cell: where it is kept.
        factory: the number before the first write.
        size: bytes, little-endian.
    """

    def __init__(self, cell: Cell, factory: int = 0, size: int = 4) -> None:
        self._cell = cell
        self._factory = factory
        self._size = size

    async def read(self) -> int:
        """The number as it stands."""
        data = self._cell.load()
        return self._factory if data is None else int.from_bytes(data, "little")

    async def write(self, value: int) -> None:
        """Replace it: entirely, or not at all."""
        self._cell.store(value.to_bytes(self._size, "little"))
