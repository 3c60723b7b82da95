"""A chip of the STM32 family, reached through its boot ROM on a serial port (AN3155).

    async with await open_serial("/dev/ttyUSB0", 115200, parity="even") as wire:
        chip = Stm32Rom(wire, find_target("stm32f4"))
        await chip.enter()
        await chip.erase(sector)

Rules:
- the ROM cannot be overwritten: whatever broke off is begun again;
- a command that failed is made again after the ROM was found again: a byte that the wire garbled looks like a refusal.
  To read and erase again changes nothing, and what a write that was not answered left is read before it is made again;
- one command at a time.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint

from mgota.core import an3155
from mgota.core.geometry import Geometry, Sector
from mgota.core.talk import Talk
from mgota.errors import ConfigError, EraseError, LinkError, ProgramError, ReadError, RefusedError
from mgota.flash.links.talks import Talker
from mgota.flash.links.wire import Wire
from mgota.ports import ReadableBuffer

T = TypeVar("T")

TRIES = 4
"""How often a command is made. An answer that came too late may cost one more: the ROM then heard half a command."""

RESET_TIME = 0.05
"""Seconds that the reset line is held, and that the ROM has to come up."""

Enter = Callable[[Wire], Awaitable[None]]
"""Brings a chip out of reset, into its boot ROM or into its program."""


async def by_lines(wire: Wire, *, boot: bool) -> None:
    """Reset a chip whose NRST is wired to DTR and whose BOOT0 to RTS, each of them inverted, as many adapters have it.

    Args:
        wire: to it.
        boot: into its ROM; else into its program.
    """
    await wire.set_lines(dtr=True, rts=not boot)
    await anyio.sleep(RESET_TIME)
    await wire.set_lines(dtr=False)
    await anyio.sleep(RESET_TIME)


class Stm32Rom:
    """Implements `NorFlash`, and `Flushable`: what is programmed is there.

    Args:
        wire: to the chip; even parity.
        geometry: of its flash memory.
        base: absolute address of the memory's first byte.
        enter: brings the chip into its ROM; None takes the modem lines.
        leave: starts the chip's program; None takes the modem lines.

    Raises:
        ConfigError: the chip programs less at once than the ROM does.
    """

    def __init__(
        self,
        wire: Wire,
        geometry: Geometry,
        base: int = 0x08000000,
        *,
        enter: Enter | None = None,
        leave: Enter | None = None,
    ) -> None:
        if an3155.MAX_DATA % geometry.program_unit:
            raise ConfigError("the boot ROM writes 256 bytes at once, which is no multiple of the program unit")
        self._talker = Talker(wire)
        self._geometry = geometry
        self._base = base
        self._enter = enter
        self._leave = leave
        self._extended = True
        self._lock = Lock()

    @property
    def geometry(self) -> Geometry:
        """Sectors, program unit, erased pattern."""
        return self._geometry

    async def enter(self, *, bursts: int = 2) -> int:
        """Bring the chip into its boot ROM.

        Args:
            bursts: see `mgota.core.an3155.find`: how long it is looked for where it cannot be reset.

        Returns:
            Its product id (DEV_ID).

        Raises:
            LinkError: it does not answer, or is something else.
        """
        async with self._lock:
            wire = self._talker.wire
            await (self._enter(wire) if self._enter else by_lines(wire, boot=True))
            await self._talker.forget()
            await self._talker.hold(an3155.find(bursts))
            known = await self._repeated(an3155.commands)
            self._extended = an3155.EXTENDED_ERASE in known
            return await self._repeated(an3155.chip_id)

    async def reset(self) -> None:
        """Let the chip run its program.

        Raises:
            LinkError: the wire is gone.
        """
        async with self._lock:
            wire = self._talker.wire
            await (self._leave(wire) if self._leave else by_lines(wire, boot=False))

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the chip does not give them.
        """
        data = b""
        try:
            async with self._lock:
                while len(data) < size:
                    piece = min(size - len(data), an3155.MAX_DATA)
                    address = self._base + offset + len(data)
                    data += await self._repeated(lambda address=address, piece=piece: an3155.read(address, piece))  # type: ignore[misc]
        except LinkError as exc:
            raise ReadError(f"flash could not be read at {offset + len(data):#x}: {exc}") from exc
        return data

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the chip did not.
        """
        number = self._geometry.index_at(sector.start)
        try:
            async with self._lock:
                await self._repeated(lambda: an3155.erase([number], extended=self._extended))
        except LinkError as exc:
            raise EraseError(f"the sector at {sector.start:#x} could not be erased: {exc}") from exc

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program whole units.

        Raises:
            ProgramError: the chip did not.
        """
        view = memoryview(data)
        at = 0
        try:
            async with self._lock:
                for at in range(0, len(view), an3155.MAX_DATA):
                    await self._program(offset + at, bytes(view[at : at + an3155.MAX_DATA]))
        except LinkError as exc:
            raise ProgramError(f"flash could not be programmed at {offset + at:#x}: {exc}") from exc

    async def flush(self) -> None:
        """Nothing waits."""
        await checkpoint()

    async def _program(self, offset: int, data: bytes) -> None:
        """One write. A try that was not answered may have been carried out: then it is not made again."""
        doubtful = False

        def talk() -> Talk[None]:
            nonlocal doubtful
            if doubtful and (yield from self._holds(offset, data)):
                return
            try:
                yield from an3155.write(self._base + offset, data)
            except LinkError as exc:
                doubtful = not isinstance(exc, RefusedError)
                raise

        await self._repeated(talk)

    def _holds(self, offset: int, data: bytes) -> Talk[bool]:
        return (yield from an3155.read(self._base + offset, len(data))) == data

    async def _repeated(self, talk: Callable[[], Talk[T]]) -> T:
        """A talk, made again when the wire failed it."""
        with CancelScope(shield=True):  # a command that is broken off leaves the ROM waiting for the rest of it
            for left in range(TRIES - 1, -1, -1):
                try:
                    return await self._talker.hold(talk())
                except LinkError:
                    if not left:
                        raise
                    await self._talker.forget()
                    await self._talker.hold(an3155.find())
        raise AssertionError("unreachable")
