"""A chip of the ESP32 family, reached through its boot ROM on a serial port.

    async with await open_serial("/dev/ttyUSB0", 115200) as wire:
        chip = EspRom(wire, find_target("esp32").geometry)
        await chip.enter(baud=921600)
        await chip.erase(sector)

Rules:
- the ROM cannot be overwritten: whatever broke off is begun again;
- a command that failed is made again after the ROM was found again; what a program that was not answered left is read
  before it is made again;
- one command at a time.

`read` asks for 64 bytes at once (READ_FLASH_SLOW): 4 MiB at 115,200 baud take ten minutes by the bytes alone. `digest`
has the chip sum up what it holds (SPI_FLASH_MD5), which costs next to nothing on the wire. No command but that of
programming has a check of its own: who needs to be sure that a noisy wire garbled nothing compares the digest.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint

from mgota.core import esp_rom
from mgota.core.geometry import Geometry, Sector
from mgota.core.talk import Talk
from mgota.errors import EraseError, LinkError, ProgramError, ReadError, RefusedError
from mgota.flash.links.talks import Talker
from mgota.flash.links.wire import Wire
from mgota.ports import ReadableBuffer

T = TypeVar("T")

TRIES = 4
"""How often a command is made."""

RESET_TIME = 0.1
"""Seconds that EN is held low."""

BOOT_TIME = 0.05
"""Seconds that GPIO0 is held low after it."""

Enter = Callable[[Wire], Awaitable[None]]
"""Brings a chip out of reset, into its boot ROM or into its program."""


async def by_lines(wire: Wire, *, boot: bool) -> None:
    """Reset a chip whose EN is pulled low by RTS and whose GPIO0 by DTR, as development boards have it.

    Args:
        wire: to it.
        boot: into its ROM; else into its program.
    """
    await wire.set_lines(dtr=False, rts=True)
    await anyio.sleep(RESET_TIME)
    if boot:
        await wire.set_lines(dtr=True, rts=False)
        await anyio.sleep(BOOT_TIME)
    await wire.set_lines(dtr=False, rts=False)


class EspRom:
    """Implements `NorFlash`, and `Flushable`: what is programmed is there.

    Args:
        wire: to the chip.
        geometry: of its flash memory.
        enter: brings the chip into its ROM; None takes the modem lines.
        leave: starts the chip's program; None takes the modem lines.
        baud: bits per second to go on with, once it was entered; None stays with those that the wire has.
    """

    def __init__(
        self,
        wire: Wire,
        geometry: Geometry,
        *,
        enter: Enter | None = None,
        leave: Enter | None = None,
        baud: int | None = None,
    ) -> None:
        self._baud = baud
        self._talker = Talker(wire)
        self._geometry = geometry
        self._enter = enter
        self._leave = leave
        self._words = 4
        self._lock = Lock()

    @property
    def geometry(self) -> Geometry:
        """Sectors, program unit, erased pattern."""
        return self._geometry

    async def enter(self, *, baud: int | None = None) -> int:
        """Bring the chip into its boot ROM.

        Args:
            baud: bits per second to go on with; None takes those that the link was made with.

        Returns:
            Its chip id, a key of `mgota.core.esp_image.CHIPS`.

        Raises:
            LinkError: it does not answer, or is something else.
        """
        baud = baud or self._baud
        async with self._lock:
            wire = self._talker.wire
            await (self._enter(wire) if self._enter else by_lines(wire, boot=True))
            await self._talker.forget()
            await self._talker.hold(esp_rom.find())
            chip = await self._repeated(esp_rom.chip_id)
            self._words = 5 if chip else 4
            if baud is not None:
                with CancelScope(shield=True):  # both ends have the new speed, or none
                    await self._talker.hold(esp_rom.change_baud(baud))
                    await wire.set_baud(baud)
                    await self._talker.forget(BOOT_TIME)
            await self._repeated(lambda: esp_rom.attach(self._geometry.size))
            return chip

    async def reset(self) -> None:
        """Let the chip run its program.

        Raises:
            LinkError: the wire is gone.
        """
        async with self._lock:
            wire = self._talker.wire
            await (self._leave(wire) if self._leave else by_lines(wire, boot=False))

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on, 64 at once.

        Raises:
            ReadError: the chip does not give them.
        """
        try:
            async with self._lock:
                return await self._read(offset, size)
        except LinkError as exc:
            raise ReadError(f"flash could not be read at {offset:#x}: {exc}") from exc

    async def digest(self, offset: int, size: int) -> bytes:
        """The MD5 of what the chip holds, summed up by the chip: 16 bytes.

        Raises:
            ReadError: the chip does not tell it.
        """
        try:
            async with self._lock:
                return await self._repeated(lambda: esp_rom.md5(offset, size))
        except LinkError as exc:
            raise ReadError(f"flash could not be summed up at {offset:#x}: {exc}") from exc

    async def holds(self, offset: int, data: ReadableBuffer) -> bool:
        """Whether the chip holds these bytes, by the MD5 that it computes.

        Raises:
            ReadError: the chip does not tell it.
        """
        expected = hashlib.md5(data, usedforsecurity=False).digest()
        return await self.digest(offset, len(memoryview(data))) == expected

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the chip did not.
        """
        try:
            async with self._lock:
                await self._repeated(
                    lambda: esp_rom.begin(sector.start, 0, esp_rom.BLOCK, erase=sector.length, words=self._words)
                )
        except LinkError as exc:
            raise EraseError(f"the sector at {sector.start:#x} could not be erased: {exc}") from exc

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        """Program bytes. The ROM programs words: what is not ours in the first and last is left as it is.

        Raises:
            ProgramError: the chip did not.
        """
        before = offset % esp_rom.ALIGNMENT
        padded = b"\xff" * before + bytes(data)
        padded += b"\xff" * (-len(padded) % esp_rom.ALIGNMENT)
        whole = len(padded) - len(padded) % esp_rom.BLOCK
        try:
            async with self._lock:
                await self._program(offset - before, padded[:whole], esp_rom.BLOCK)
                await self._program(offset - before + whole, padded[whole:], len(padded) - whole)
        except LinkError as exc:
            raise ProgramError(f"flash could not be programmed at {offset:#x}: {exc}") from exc

    async def flush(self) -> None:
        """Nothing waits."""
        await checkpoint()

    async def _read(self, offset: int, size: int) -> bytes:
        start = offset - offset % esp_rom.ALIGNMENT
        found = b""
        while start + len(found) < offset + size:
            at = start + len(found)
            piece = min(offset + size - at, esp_rom.MAX_READ)
            piece += -piece % esp_rom.ALIGNMENT
            found += await self._repeated(lambda at=at, piece=piece: esp_rom.read(at, piece))  # type: ignore[misc]
        return found[offset - start : offset - start + size]

    async def _program(self, offset: int, data: bytes, block: int) -> None:
        """Program blocks of one size, by one `begin` as long as nothing fails."""
        begun: int | None = None
        for at in range(0, len(data), block or 1):
            doubtful = False

            def talk(at: int = at) -> Talk[None]:
                nonlocal begun, doubtful
                if doubtful and (yield from self._holds(offset + at, data[at : at + block])):
                    return
                try:
                    if begun is None:
                        yield from esp_rom.begin(offset + at, (len(data) - at) // block, block, words=self._words)
                        begun = at
                    yield from esp_rom.data((at - begun) // block, data[at : at + block])
                except LinkError as exc:
                    begun = None
                    doubtful = doubtful or not isinstance(exc, RefusedError)
                    raise

            await self._repeated(talk)

    def _holds(self, offset: int, data: bytes) -> Talk[bool]:
        """Whether all of it is there; padding is no matter."""
        for at in range(0, len(data), esp_rom.MAX_READ):
            wanted = data[at : at + esp_rom.MAX_READ]
            found = yield from esp_rom.read(offset + at, len(wanted))
            if any(want not in {0xFF, have} for want, have in zip(wanted, found, strict=True)):
                return False
        return True

    async def _repeated(self, talk: Callable[[], Talk[T]]) -> T:
        """A talk, made again when the wire failed it."""
        with CancelScope(shield=True):
            for left in range(TRIES - 1, -1, -1):
                try:
                    return await self._talker.hold(talk())
                except LinkError:
                    if not left:
                        raise
                    await self._talker.forget()
                    await self._talker.hold(esp_rom.find())
        raise AssertionError("unreachable")
