"""A flash memory that exists only as bytes, and insists on a chip's rules.

Rules that it enforces:
- programming takes whole, aligned units, inside sectors;
- a unit is programmed once per erase, as flash with ECC demands; a second time is a `ProgramError`, whatever the bytes;
- a program that breaks a rule changes nothing, and is written down in `operations.broken_rules`;
- reads and erases stay inside the memory; a hole belongs to no sector and cannot be read.

On a file (`NorSimulator.on_file`) the bytes are all there is: a unit that was programmed with the erased pattern cannot
be told from an erased one there and may be programmed again. In memory it cannot.

Each operation is there twice: `read`, `erase`, `program` for who awaits, and `read_now`, `erase_now`, `program_now` for
who does not; they obey the same rules and are counted and stopped alike.

Tests stop it with a hook, before or after an operation took effect:

    def cut(operation: Operation) -> None:
        if operation.index == i:
            raise PowerCut

    flash.operations.before = cut         # nothing of operation i happened
    flash.operations.after = cut          # all of it happened

Torn operations, and flash that is worn out, are in `mgota.testing`: they lay *veils* over what is stored, which change
what a read gives, and *defects* under the operations.
"""

import os
from collections.abc import Iterator
from typing import TypeVar

from anyio import sleep, to_thread
from anyio.lowlevel import checkpoint

from mgota.core.geometry import Area, Geometry, Sector
from mgota.errors import ConfigError, EraseError, FlashError, ProgramError, ReadError
from mgota.flash.flaws import Defects, Veil
from mgota.flash.media import FileMedium, Medium, MemoryMedium
from mgota.flash.operations import Cell, Guard, Kind, Operation, Operations, Register
from mgota.ports import ReadableBuffer

__all__ = ["Cell", "Defects", "Guard", "Kind", "NorSimulator", "Operation", "Operations", "Register", "Veil"]

T = TypeVar("T")

NAP = 0.005
"""Seconds of throttling that are saved up before it sleeps: the event loop's clock is no finer than a millisecond."""


class NorSimulator:
    """A simulated flash memory; implements `NorFlash`.

    Args:
        geometry: of the memory.
        throttle: bytes per second that can be programmed, or None; erasing and reading are not slowed down.
        operations: where to count, if the memory shares the counter with other parts of a device.
        medium: where the bytes are; a blank memory if omitted.
        plan: of a memory with the same geometry: for forks.
    """

    def __init__(
        self,
        geometry: Geometry,
        *,
        throttle: float | None = None,
        operations: Operations | None = None,
        medium: Medium | None = None,
        plan: "_Plan | None" = None,
    ) -> None:
        self.operations = operations or Operations()
        self.throttle = throttle
        self.defects: Defects | None = None
        """What is wrong with this memory, if anything is."""
        self.unstable_reads = 0
        """How many reads touched a range whose content a power cut left uncertain."""
        self._debt = 0.0
        self._geometry = geometry
        self._medium = medium or MemoryMedium(geometry)
        self._plan = plan or _Plan(geometry)
        self._start, self._end = self._plan.first.start, self._plan.first.end  # most memories have no hole
        self._veils: list[Veil] = []
        self._cells: dict[str, bytes] = {}

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

    @property
    def unstable(self) -> tuple[Area, ...]:
        """The ranges that two reads may find different, because a power cut tore an operation there."""
        return tuple(Area(veil.start, veil.end - veil.start) for veil in self._veils if not veil.stable)

    def fork(self, *, operations: Operations | None = None) -> "NorSimulator":
        """A second memory with the same content, torn ranges and cells included. Cheap: what does not change is shared.

        Its operations are counted from zero; hooks and defects stay behind.

        Args:
            operations: where the twin counts, if it shares the counter with other parts of a device.

        Raises:
            ConfigError: the memory is in a file.
        """
        twin = NorSimulator(
            self._geometry,
            throttle=self.throttle,
            operations=operations,
            medium=self._medium.fork(),
            plan=self._plan,
        )
        twin._veils, twin._cells = [veil.fork() for veil in self._veils], self._cells.copy()
        return twin

    def cell(self, name: str) -> Cell:
        """A few bytes beside the memory that survive a power cut; a fork has its own of the same content.

        Args:
            name: of the cell; it is made if there is none, and kept in this process only.
        """
        return Cell(name, self._cells, self.operations)

    def register(self, name: str, factory: int = 0) -> Register:
        """A cell that holds a number: an option register.

        Args:
            name: of the cell.
            factory: the number before the first write.
        """
        return Register(self.cell(name), factory)

    def peek(self, offset: int, size: int) -> bytes:
        """What a read would give, for a test to look at: not counted, not stopped, no defects. Blocks on a file.

        Raises:
            ConfigError: the range is not all inside sectors.
        """
        self._check_range(offset, size, ConfigError)
        return self._look(offset, self._medium.read(offset, size), counted=False)

    def poke(self, offset: int, data: ReadableBuffer) -> None:
        """Store bytes against all rules, for a test: not counted, not stopped. Blocks on a file.

        Every unit that it touches counts as programmed until its sector is erased; a torn range that it touches is torn
        no more.

        Raises:
            ConfigError: the range is not all inside sectors.
        """
        self._check_range(offset, len(data), ConfigError)
        end = offset + len(data)
        self._veils = [veil for veil in self._veils if veil.end <= offset or end <= veil.start]
        self._medium.program(offset, memoryview(data))

    def cover(self, veil: Veil) -> None:
        """Lay a veil over what is stored, for a test. Every unit under it counts as programmed.

        Args:
            veil: over whole units of one sector.
        """
        self._medium.program(veil.start, memoryview(self._medium.read(veil.start, veil.end - veil.start)))
        self._veils.append(veil)

    def covered(self, area: Area) -> bool:
        """Whether a veil lies over any of it."""
        return any(veil.start < area.end and area.start < veil.end for veil in self._veils)

    def programmed(self, offset: int, size: int) -> int | None:
        """Offset of the first unit in the range that was programmed since its erase, or None. Blocks on a file."""
        self._check_range(offset, size, ConfigError)
        return self._medium.programmed(offset, size)

    def read_now(self, offset: int, size: int) -> bytes:
        """`read`, without an event loop.

        Raises:
            ReadError: the range is not all there.
            ConfigError: the memory is in a file.
        """
        if size < 0 or offset < self._start or offset + size > self._end:
            self._check_range(offset, size, ReadError)
        self._check_memory()
        begun = self.operations.begin(Kind.READ, offset, size, None, self)
        data = self._medium.read(offset, size)
        if self._veils or self.defects:
            data = self._seen(offset, data)
        if begun:
            self.operations.end(begun)
        return data

    def erase_now(self, sector: Sector) -> None:
        """`erase`, without an event loop.

        Raises:
            EraseError: the memory has no such sector.
            ConfigError: the memory is in a file.
        """
        self._check_sector(sector)
        self._check_memory()
        begun = self.operations.begin(Kind.ERASE, sector.start, sector.length, None, self)
        self._erase(sector)
        if begun:
            self.operations.end(begun)

    def program_now(self, offset: int, data: ReadableBuffer) -> None:
        """`program`, without an event loop; not throttled.

        Raises:
            ProgramError: a rule of the chip was broken; then nothing was changed.
            ConfigError: the memory is in a file.
        """
        view = self._checked(offset, data)
        self._check_memory()
        if not view:
            return
        begun = self.operations.begin(Kind.PROGRAM, offset, len(view), data, self)
        self._program(offset, view)
        if begun:
            self.operations.end(begun)

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the file failed, or the range is not all there.
        """
        self._check_range(offset, size, ReadError)
        await checkpoint()
        if not self._medium.blocking:
            return self.read_now(offset, size)
        with self.operations.perform(Kind.READ, offset, size, source=self):
            try:
                return self._seen(offset, await to_thread.run_sync(self._medium.read, offset, size))
            except OSError as exc:
                raise ReadError(f"flash could not be read at {offset:#x}: {exc.strerror}") from exc

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the file failed, or the memory has no such sector.
        """
        if not self._medium.blocking:
            self.erase_now(sector)
            return
        self._check_sector(sector)
        with self.operations.perform(Kind.ERASE, sector.start, sector.length, source=self):
            try:
                await to_thread.run_sync(self._erase, sector)
            except OSError as exc:
                raise EraseError(f"the sector at {sector.start:#x} could not be erased: {exc.strerror}") from exc

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program whole units, as many as there are in `data`; they may span sectors.

        Raises:
            ProgramError: the file failed, or a rule of the chip was broken; then nothing was changed.
        """
        if self.throttle is not None:
            await self._slow_down(len(self._checked(offset, data)) / self.throttle)
        if not self._medium.blocking:
            self.program_now(offset, data)
            return
        view = self._checked(offset, data)
        if not view:
            return
        with self.operations.perform(Kind.PROGRAM, offset, len(view), data, source=self):
            try:
                await to_thread.run_sync(self._program, offset, view)
            except OSError as exc:
                raise ProgramError(f"flash could not be programmed at {offset:#x}: {exc.strerror}") from exc

    async def flush(self) -> None:
        """Make everything durable, where there is something under the memory that could lose it.

        Raises:
            ProgramError: it is not durable, or nobody knows.
        """
        if not self._medium.blocking:
            return
        try:
            await to_thread.run_sync(self._medium.flush)
        except OSError as exc:
            raise ProgramError(f"flash could not be made durable: {exc.strerror}") from exc

    def _erase(self, sector: Sector) -> None:
        if self.defects and not self.defects.erase(sector):
            return
        if self._veils:
            self._veils = [veil for veil in self._veils if veil.end <= sector.start or sector.end <= veil.start]
        self._medium.erase(sector)

    def _program(self, offset: int, view: memoryview) -> None:
        programmed = self._medium.programmed(offset, len(view))
        if programmed is not None:
            raise self._broken(ProgramError(f"the unit at {programmed:#x} was programmed before and not erased"))
        if self.defects and not self.defects.program(offset, view):
            return
        self._medium.program(offset, view)

    def _seen(self, offset: int, data: bytes) -> bytes:
        if self._veils:
            data = self._look(offset, data, counted=True)
        return self.defects.read(offset, data) if self.defects else data

    def _look(self, offset: int, data: bytes, *, counted: bool) -> bytes:
        """Through the veils, the lowest first."""
        unstable = False
        for veil in self._veils:
            low, high = max(offset, veil.start), min(offset + len(data), veil.end)
            if low < high:
                seen = veil.look(low, data[low - offset : high - offset])
                data = data[: low - offset] + seen + data[high - offset :]
                if counted:
                    unstable = unstable or not veil.stable
                    veil.counted()
        self.unstable_reads += unstable
        return data

    async def _slow_down(self, seconds: float) -> None:
        # Before the operation: when this is cancelled, nothing has happened.
        self._debt += seconds
        if self._debt >= NAP:
            nap, self._debt = self._debt, 0.0
            await sleep(nap)

    def _checked(self, offset: int, data: ReadableBuffer) -> memoryview:
        view = memoryview(data)
        size, unit = view.nbytes, self._geometry.program_unit
        if offset % unit or size % unit:
            raise self._broken(ProgramError(f"{size} bytes at {offset:#x} are not whole units of {unit} bytes"))
        if offset < self._start or offset + size > self._end:
            self._check_range(offset, size, ProgramError)
        return view.cast("B") if size else memoryview(b"")  # a view of no bytes cannot be cast

    def _check_memory(self) -> None:
        if self._medium.blocking:
            raise ConfigError("a flash memory in a file blocks: await its operations")

    def _check_sector(self, sector: Sector) -> None:
        found = self._plan.by_start.get(sector.start)
        if found is not sector and found != sector:
            raise self._broken(
                EraseError(f"there is no sector at {sector.start:#x} with {sector.length:#x} bytes"),
            )

    def _check_range(self, offset: int, size: int, error: type[FlashError | ConfigError]) -> None:
        if size < 0 or not any(run.start <= offset and offset + size <= run.end for run in self._plan.runs):
            exc = error(f"{size} bytes at {offset:#x} are not all inside the flash memory's sectors")
            raise self._broken(exc) if error is ProgramError else exc

    def _broken(self, error: T) -> T:
        self.operations.broken_rules.append(str(error))
        return error


class _Plan:
    """What is looked up of a geometry at every operation."""

    def __init__(self, geometry: Geometry) -> None:
        self.runs = tuple(_runs(geometry))
        self.first = self.runs[0]
        self.by_start = {sector.start: sector for sector in geometry.sectors}


def _runs(geometry: Geometry) -> Iterator[Area]:
    """The areas between the holes."""
    start, end = geometry.regions[0].start, geometry.regions[0].start
    for region in geometry.regions:
        if region.start != end:
            yield Area(start, end - start)
            start = region.start
        end = region.end
    yield Area(start, end - start)
