"""A flash memory that exists only as bytes, and insists on a chip's rules.

Rules that it enforces:
- programming takes whole, aligned units, inside sectors;
- a unit is programmed once per erase, as flash with ECC demands; a second time is a `ProgramError`, whatever the bytes;
- a program that breaks a rule changes nothing;
- reads and erases stay inside the memory; a hole belongs to no sector and cannot be read.

On a file (`NorSimulator.on_file`) the bytes are all there is: a unit that was programmed with the erased pattern cannot
be told from an erased one there and may be programmed again. In memory it cannot.

Tests stop it with a hook, before or after an operation took effect:

    def cut(operation: Operation) -> None:
        if operation.index == i:
            raise PowerCut

    flash.operations.before = cut         # nothing of operation i happened
    flash.operations.after = cut          # all of it happened

A torn operation is a `before` hook that leaves a part of it behind with `poke`, and then raises.
"""

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeVar

from anyio import sleep, to_thread
from anyio.lowlevel import checkpoint

from mgota.core.geometry import Area, Geometry, Sector
from mgota.errors import ConfigError, EraseError, FlashError, ProgramError, ReadError
from mgota.flash.media import FileMedium, Medium, MemoryMedium
from mgota.ports import ReadableBuffer

T = TypeVar("T")

NAP = 0.005
"""Seconds of throttling that are saved up before it sleeps: the event loop's clock is no finer than a millisecond."""


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
    """

    kind: Kind
    index: int | None
    offset: int
    size: int
    data: ReadableBuffer | None = field(default=None, repr=False, compare=False)


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

    @property
    def changes(self) -> int:
        """How many operations were begun that change something: the `index` of the next one."""
        return self.counts.total() - self.counts[Kind.READ]

    @contextmanager
    def perform(self, kind: Kind, offset: int, size: int, data: ReadableBuffer | None = None) -> Generator[None]:
        """Around the effect of an operation."""
        operation = Operation(kind, None if kind is Kind.READ else self.changes, offset, size, data)
        self.counts[kind] += 1
        if self.before:
            self.before(operation)
        yield
        if self.after:
            self.after(operation)


class NorSimulator:
    """A simulated flash memory; implements `NorFlash`.

    Args:
        geometry: of the memory.
        throttle: bytes per second that can be programmed, or None; erasing and reading are not slowed down.
        operations: where to count, if the memory shares the counter with other parts of a device.
        medium: where the bytes are; a blank memory if omitted.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        throttle: float | None = None,
        operations: Operations | None = None,
        medium: Medium | None = None,
    ) -> None:
        self.operations = operations or Operations()
        self.throttle = throttle
        self._debt = 0.0
        self._geometry = geometry
        self._medium = medium or MemoryMedium(geometry)
        self._runs = tuple(_runs(geometry))

    @classmethod
    def on_file(
        cls,
        path: str | os.PathLike[str],
        geometry: Geometry,
        *,
        throttle: float | None = None,
        operations: Operations | None = None,
    ) -> "NorSimulator":
        """A memory whose bytes are in a file, the raw array; it is made blank if missing. Blocks.

        Raises:
            ConfigError: the file cannot be used, or is not as long as the memory.
        """
        return cls(geometry, throttle=throttle, operations=operations, medium=FileMedium(path, geometry))

    @property
    def geometry(self) -> Geometry:
        """Sectors, program unit, erased pattern."""
        return self._geometry

    def fork(self) -> "NorSimulator":
        """A second memory with the same content, counted from zero. Cheap: sectors are shared until they change.

        Raises:
            ConfigError: the memory is in a file.
        """
        return NorSimulator(self._geometry, throttle=self.throttle, medium=self._medium.fork())

    def peek(self, offset: int, size: int) -> bytes:
        """What is stored, for a test to look at: not counted, not stopped. Blocks on a file.

        Raises:
            ConfigError: the range is not all inside sectors.
        """
        self._check_range(offset, size, ConfigError)
        return self._medium.read(offset, size)

    def poke(self, offset: int, data: ReadableBuffer) -> None:
        """Store bytes against all rules, for a test: not counted, not stopped. Blocks on a file.

        Every unit that it touches counts as programmed until its sector is erased.

        Raises:
            ConfigError: the range is not all inside sectors.
        """
        self._check_range(offset, len(data), ConfigError)
        self._medium.program(offset, memoryview(data))

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the file failed, or the range is not all there.
        """
        self._check_range(offset, size, ReadError)
        await checkpoint()
        with self.operations.perform(Kind.READ, offset, size):
            try:
                return await self._run(partial(self._medium.read, offset, size))
            except OSError as exc:
                raise ReadError(f"flash could not be read at {offset:#x}: {exc.strerror}") from exc

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the file failed, or the memory has no such sector.
        """
        if not self._has(sector):
            raise EraseError(f"there is no sector at {sector.start:#x} with {sector.length:#x} bytes")
        with self.operations.perform(Kind.ERASE, sector.start, sector.length):
            try:
                await self._run(partial(self._medium.erase, sector))
            except OSError as exc:
                raise EraseError(f"the sector at {sector.start:#x} could not be erased: {exc.strerror}") from exc

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program whole units, as many as there are in `data`; they may span sectors.

        Raises:
            ProgramError: the file failed, or a rule of the chip was broken; then nothing was changed.
        """
        view = memoryview(data)
        unit = self._geometry.program_unit
        if offset % unit or view.nbytes % unit:
            raise ProgramError(f"{view.nbytes} bytes at {offset:#x} are not whole units of {unit} bytes")
        self._check_range(offset, view.nbytes, ProgramError)
        if not view.nbytes:
            return
        await self._slow_down(view.nbytes)
        with self.operations.perform(Kind.PROGRAM, offset, view.nbytes, data):
            try:
                await self._run(partial(self._program, offset, view.cast("B")))
            except OSError as exc:
                raise ProgramError(f"flash could not be programmed at {offset:#x}: {exc.strerror}") from exc

    async def flush(self) -> None:
        """Make everything durable, where there is something under the memory that could lose it.

        Raises:
            ProgramError: it is not durable, or nobody knows.
        """
        try:
            await self._run(self._medium.flush)
        except OSError as exc:
            raise ProgramError(f"flash could not be made durable: {exc.strerror}") from exc

    def _program(self, offset: int, view: memoryview) -> None:
        programmed = self._medium.programmed(offset, len(view))
        if programmed is not None:
            raise ProgramError(f"the unit at {programmed:#x} was programmed before and not erased")
        self._medium.program(offset, view)

    async def _run(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work) if self._medium.blocking else work()

    async def _slow_down(self, size: int) -> None:
        # Before the operation: when this is cancelled, nothing has happened.
        if self.throttle is None:
            return
        self._debt += size / self.throttle
        if self._debt >= NAP:
            nap, self._debt = self._debt, 0.0
            await sleep(nap)

    def _has(self, sector: Sector) -> bool:
        try:
            return self._geometry.sectors[self._geometry.index_at(sector.start)] == sector
        except ConfigError:
            return False

    def _check_range(self, offset: int, size: int, error: type[FlashError | ConfigError]) -> None:
        if size < 0 or not any(run.start <= offset and offset + size <= run.end for run in self._runs):
            raise error(f"{size} bytes at {offset:#x} are not all inside the flash memory's sectors")


def _runs(geometry: Geometry) -> Iterator[Area]:
    """The areas between the holes."""
    start, end = geometry.regions[0].start, geometry.regions[0].start
    for region in geometry.regions:
        if region.start != end:
            yield Area(start, end - start)
            start = region.start
        end = region.end
    yield Area(start, end - start)
