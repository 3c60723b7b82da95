"""A chip behind a GDB server: OpenOCD, pyOCD, Black Magic Probe, a J-Link's or ST-Link's server, QEMU.

    async with await open_tcp("127.0.0.1", 3333) as wire:
        chip = GdbRemote(wire, find_target("stm32f4").geometry, base=0x08000000)
        await chip.enter()
        await chip.erase(sector)

Rules:
- flash memory is programmed by `vFlashErase`, `vFlashWrite` and `vFlashDone`, where the server's memory map has flash
  memory at that place. Where it has not, memory is written as if it were RAM, and read back: a simulator accepts that,
  QEMU for one; real flash memory does not, and then each erase and program fails with a message that says so;
- a request that was not answered is made again after the server was found again. To read and to erase again changes
  nothing; what a program that was not answered left is read before it is made again;
- `vFlashDone` is said after `vFlashWrite` and never else: OpenOCD fails over one without bytes to program. So a server
  that does nothing before it (pyOCD) erases a sector when that is programmed; until then it may read as before;
- one request at a time.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint

from mgota.core.checksum import checksum
from mgota.core.gdb_remote import GdbServer
from mgota.core.geometry import Area, Geometry, Sector
from mgota.core.memory_map import Memory
from mgota.core.talk import Talk
from mgota.errors import ConfigError, EraseError, LinkError, ProgramError, ReadError, RefusedError
from mgota.flash.links.talks import Talker
from mgota.flash.links.wire import Wire
from mgota.ports import ReadableBuffer

log = logging.getLogger("mgota.links")

T = TypeVar("T")

TRIES = 3
"""How often a request is made."""

BLOCK = 16384
"""Bytes that are programmed together, and asked for again together."""

CRC = "crc-32-mpeg"
"""What `qCRC` computes."""

Reset = Callable[["GdbRemote"], Awaitable[None]]
"""Resets a chip, however that is done, and lets its program run."""


class GdbRemote:
    """Implements `NorFlash`, and `Flushable`: what is programmed is there.

    Args:
        wire: to the server.
        geometry: of the flash memory.
        base: absolute address of the memory's first byte.
        reset: the server's command for it, or a callback. "reset" is OpenOCD's and pyOCD's; QEMU's is "system_reset".
    """

    def __init__(self, wire: Wire, geometry: Geometry, base: int = 0x08000000, *, reset: str | Reset = "reset") -> None:
        self._talker = Talker(wire)
        self._server = GdbServer()
        self._geometry = geometry
        self._base = base
        self._reset = reset
        self._flash = False
        self._lock = Lock()

    @property
    def geometry(self) -> Geometry:
        """Sectors, program unit, erased pattern."""
        return self._geometry

    @property
    def programs_flash(self) -> bool:
        """Whether the server programs flash memory; else memory is written, which only a simulator accepts."""
        return self._flash

    async def enter(self) -> tuple[Memory, ...]:
        """Stop the chip, and learn what the server can.

        Returns:
            The memories that it knows of; none if it does not tell.

        Raises:
            LinkError: it does not answer, or is something else.
            ConfigError: its flash memory has other blocks than the geometry.
        """
        async with self._lock:
            self._server = GdbServer()
            await self._talker.forget()
            await self._talker.hold(self._server.find())
            await self._repeated(self._server.greet)
            memories = await self._repeated(self._server.memory_map)
        self._flash = _has_flash(memories, self._geometry, self._base)
        if not self._flash:
            log.warning(
                "the GDB server knows no flash memory at %#x: memory is written there, which only a simulator accepts",
                self._base,
            )
        return memories

    async def monitor(self, command: str) -> str:
        """A command in the server's own language, made once.

        Returns:
            What it said.

        Raises:
            LinkError: it failed.
        """
        return await self._once(self._server.monitor(command))

    async def reset(self) -> None:
        """Reset the chip and let its program run; `enter` stops it again.

        Raises:
            LinkError: the server did not.
        """
        if not isinstance(self._reset, str):
            await self._reset(self)
            return
        await self.monitor(self._reset)
        await self.run()

    async def run(self) -> None:
        """Let the chip go on from where it was stopped; `enter` stops it again.

        Raises:
            LinkError: it does not run.
        """
        await self._once(self._server.run())

    async def detach(self) -> None:
        """Let the chip go on, and part from the server. Nothing more may be asked on this wire.

        Raises:
            LinkError: the server did not.
        """
        await self._once(self._server.detach())

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the server does not give them.
        """
        data = b""
        try:
            async with self._lock:
                while len(data) < size:
                    address, piece = self._base + offset + len(data), min(size - len(data), BLOCK)
                    data += await self._repeated(lambda: self._server.read(address, piece))  # noqa: B023  used at once
        except LinkError as exc:
            raise ReadError(f"flash could not be read at {offset + len(data):#x}: {exc}") from exc
        return data

    async def holds(self, offset: int, data: ReadableBuffer) -> bool:
        """Whether the memory holds these bytes: by a checksum that the server computes, or by reading them.

        Raises:
            ReadError: nobody can tell.
        """
        size = len(memoryview(data))
        found = await self._checksum(offset, size) if size else None
        if found is not None:
            expected = checksum(CRC)
            expected.update(data)
            return found == expected.value
        return await self.read(offset, size) == data

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the server did not.
        """
        self._geometry.index_at(sector.start)
        try:
            async with self._lock:
                await self._repeated(lambda: self._erase(sector))
        except LinkError as exc:
            raise EraseError(f"the sector at {sector.start:#x} could not be erased: {exc}") from exc

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program whole units.

        Raises:
            ProgramError: the server did not.
        """
        view = memoryview(data)
        at, unit = 0, self._geometry.program_unit
        if offset % unit or len(view) % unit:
            raise ProgramError(f"{len(view)} bytes at {offset:#x} are not whole units of {unit} bytes")
        try:
            async with self._lock:
                for at in range(0, len(view), BLOCK):
                    await self._program(offset + at, bytes(view[at : at + BLOCK]))
        except LinkError as exc:
            raise ProgramError(f"flash could not be programmed at {offset + at:#x}: {exc}") from exc

    async def flush(self) -> None:
        """Nothing waits."""
        await checkpoint()

    async def _checksum(self, offset: int, size: int) -> int | None:
        """What the server computes over the memory, or None if it computes nothing there."""
        try:
            async with self._lock:
                return await self._repeated(lambda: self._server.crc(self._base + offset, size))
        except RefusedError:
            return None
        except LinkError as exc:
            raise ReadError(f"flash could not be checked at {offset:#x}: {exc}") from exc

    def _erase(self, sector: Sector) -> Talk[None]:
        if self._flash:
            yield from self._server.flash_erase(self._base + sector.start, sector.length)
        else:
            yield from self._write(sector.start, self._geometry.blank(sector.length))

    async def _program(self, offset: int, data: bytes) -> None:
        """One block. A try that was not answered may have been carried out: then it is not made again."""
        doubtful = False

        def talk() -> Talk[None]:
            nonlocal doubtful
            if doubtful and (yield from self._survived(offset, data)):
                return
            doubtful = True
            yield from self._server.flash_write(self._base + offset, data)
            yield from self._server.flash_done()

        await self._repeated(talk if self._flash else lambda: self._write(offset, data))

    def _survived(self, offset: int, data: bytes) -> Talk[bool]:
        """Whether a program that was not answered was carried out.

        Raises:
            RefusedError: half of it was.
        """
        found = yield from self._server.read(self._base + offset, len(data))
        if found not in {data, self._geometry.blank(len(data))}:
            raise RefusedError("the link broke in the midst of it, and part of it is there: erase the sector first")
        return found == data

    def _write(self, offset: int, data: bytes) -> Talk[None]:
        """Write memory, and read it back."""
        yield from self._server.write(self._base + offset, data)
        if (yield from self._server.read(self._base + offset, len(data))) != data:
            raise RefusedError(
                "the GDB server has no flash commands, and what is written to memory does not stay there"
            )

    async def _once(self, talk: Talk[T]) -> T:
        """A talk that may not be made again."""
        async with self._lock:
            with CancelScope(shield=True):
                return await self._talker.hold(talk)
        raise AssertionError("unreachable")

    async def _repeated(self, talk: Callable[[], Talk[T]]) -> T:
        """A talk, made again when the wire failed it."""
        with CancelScope(shield=True):  # a request that is broken off leaves an answer that nobody waits for
            for left in range(TRIES - 1, -1, -1):
                try:
                    return await self._talker.hold(talk())
                except RefusedError:
                    raise
                except LinkError:
                    if not left:
                        raise
                    await self._talker.hold(self._server.find())
        raise AssertionError("unreachable")


def _has_flash(memories: tuple[Memory, ...], geometry: Geometry, base: int) -> bool:
    """Whether a server programs flash memory where a geometry has it.

    Raises:
        ConfigError: it does, but in other blocks, or not everywhere.
    """
    flash = [memory for memory in memories if memory.kind == "flash"]
    places = [Area(base + region.start, region.length) for region in geometry.regions]
    if not any(memory.start < place.end and place.start < memory.end for memory in flash for place in places):
        return False
    for sector in geometry.sectors:
        start = base + sector.start
        while start < base + sector.end:
            memory = next((memory for memory in flash if memory.start <= start < memory.end), None)
            if memory is None or (start - memory.start) % memory.block:
                raise ConfigError(f"the GDB server's flash memory at {start:#x} is not the target's")
            start = min(base + sector.end, memory.end)
            if (start - memory.start) % memory.block:
                raise ConfigError(
                    f"the GDB server erases {memory.block:#x} bytes at once, the target {sector.length:#x}"
                )
    return True
