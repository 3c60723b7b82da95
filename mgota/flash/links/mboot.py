"""A chip of NXP, reached through its boot loader on a serial port: an MCX's or RW's ROM, an i.MX RT's flashloader.

    async with await open_serial("/dev/ttyUSB0", 115200) as wire:
        chip = Mboot(wire, target.geometry, target.base)
        await chip.enter()
        await chip.erase(sector)

Rules:
- the loader is not in the flash memory: whatever broke off is begun again;
- a command that failed is made again after the loader was found again, one that it refused is not: packets have a
  check. What a write that was not answered left is read, and only what is still erased is written: units with ECC are
  programmed once;
- one command at a time.

The ROM of an i.MX RT1020 to RT1170 speaks another protocol (SDP) and has no command for flash memory: NXP's flashloader
for the chip has to run in its RAM. What loads it is the caller's `enter`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio
from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint

from mgota.core import mboot
from mgota.core.geometry import Geometry, Sector
from mgota.core.talk import Talk
from mgota.errors import EraseError, LinkError, ProgramError, ReadError, RefusedError
from mgota.flash.links.talks import Talker
from mgota.flash.links.wire import Wire
from mgota.ports import ReadableBuffer

T = TypeVar("T")

TRIES = 4
"""How often a command is made."""

AT_ONCE = 16 << 10
"""Bytes of one command, at most: what is made again when it fails."""

RESET_TIME = 0.05
"""Seconds that the reset line is held, and that the loader has to come up."""

Enter = Callable[[Wire], Awaitable[None]]
"""Brings a chip out of reset, into its boot loader or into its program."""


_QUAD = 0xC0000007
"""A quad SPI flash memory that tells its own tables (SFDP), at up to 133 MHz."""

_HYPER = 0xC0233007
"""HyperFlash of 1.8 V at up to 133 MHz."""

SWITCH = 0xCF900000
"""A word that chooses a FlexSPI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """A memory outside of the chip, and how its loader gets to know it.

    Args:
        memory: its id: 9 is a serial flash memory on the FlexSPI.
        options: the words that describe it, as the loader's manual has them; none leaves it as the loader has it.
        instance: which FlexSPI it is on; None leaves that to the loader.
        ram: where words are put, an address in RAM that the loader does not use.
    """

    memory: int = 9
    options: tuple[int, ...] = (_QUAD,)
    instance: int | None = None
    ram: int = 0x2000


_EXTERNAL = {
    "rt1020": External(),
    "rt1050": External(options=(_HYPER,)),
    "rt1050-qspi-8mb": External(),
    "rt1060": External(),
    "rt1064": External(instance=2),
    "rt1170": External(),
    "rw612": External(ram=0x20008000),
}
"""By target, or by part. Words, ids and addresses as NXP's SPSDK has them (its database of devices and memories)."""


def external_of(name: str, part: str = "") -> External | None:
    """Where the flash memory of a target is, if not in the chip.

    Args:
        name: of the target.
        part: of the variant.
    """
    return _EXTERNAL.get(part.lower()) or _EXTERNAL.get(name.lower())


async def by_lines(wire: Wire, *, boot: bool) -> None:
    """Reset a chip whose reset is wired to DTR and whose ISP pin to RTS, each of them inverted.

    Args:
        wire: to it.
        boot: into its loader; else into its program.
    """
    await wire.set_lines(dtr=True, rts=boot)
    await anyio.sleep(RESET_TIME)
    await wire.set_lines(dtr=False)
    await anyio.sleep(RESET_TIME)
    await wire.set_lines(rts=False)  # so that a reset by command starts the program


class Mboot:
    """Implements `NorFlash`, and `Flushable`: what is programmed is there.

    Args:
        wire: to the chip; no parity.
        geometry: of its flash memory.
        base: absolute address of the memory's first byte.
        external: where that is no memory of the chip's own.
        enter: brings the chip into its loader; None takes the modem lines.
        leave: starts the chip's program; None has the loader reset the chip.
    """

    def __init__(
        self,
        wire: Wire,
        geometry: Geometry,
        base: int = 0,
        *,
        external: External | None = None,
        enter: Enter | None = None,
        leave: Enter | None = None,
    ) -> None:
        self._talker = Talker(wire)
        self._geometry = geometry
        self._base = base
        self._external = external
        self._memory = external.memory if external else 0
        self._enter = enter
        self._leave = leave
        self._packet = mboot.SMALLEST
        self._lock = Lock()

    @property
    def geometry(self) -> Geometry:
        """Sectors, program unit, erased pattern."""
        return self._geometry

    async def enter(self) -> int:
        """Bring the chip into its boot loader.

        Returns:
            The loader's version, as property 1 has it: bugfix, minor, major, a letter, from the lowest byte on.

        Raises:
            LinkError: it does not answer, or is something else, or does not find the memory outside of the chip.
        """
        async with self._lock:
            wire = self._talker.wire
            await (self._enter(wire) if self._enter else by_lines(wire, boot=True))
            await self._talker.forget()
            await self._talker.hold(mboot.find())
            version = await self._property(mboot.VERSION, 0)
            size = await self._property(mboot.PACKET_SIZE, mboot.SMALLEST)
            self._packet = size if mboot.SMALLEST <= size <= mboot.MAX_PACKET else mboot.SMALLEST
            if self._external:
                await self._configure(self._external)
            return version

    async def reset(self) -> None:
        """Let the chip run its program.

        Raises:
            LinkError: the wire is gone, or the loader does not answer.
        """
        async with self._lock:
            if self._leave:
                await self._leave(self._talker.wire)
            else:
                await self._repeated(mboot.reset)

    async def read(self, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset` on.

        Raises:
            ReadError: the chip does not give them.
        """
        data = b""
        try:
            async with self._lock:
                while len(data) < size:
                    data += await self._read(offset + len(data), min(size - len(data), AT_ONCE))
        except LinkError as exc:
            raise ReadError(f"flash could not be read at {offset + len(data):#x}: {exc}") from exc
        return data

    async def erase(self, sector: Sector) -> None:
        """Erase one sector.

        Raises:
            EraseError: the chip did not.
        """
        try:
            async with self._lock:
                await self._repeated(lambda: mboot.erase(self._base + sector.start, sector.length, self._memory))
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
                for at in range(0, len(view), AT_ONCE):
                    await self._program(offset + at, bytes(view[at : at + AT_ONCE]))
        except LinkError as exc:
            raise ProgramError(f"flash could not be programmed at {offset + at:#x}: {exc}") from exc

    async def flush(self) -> None:
        """Nothing waits."""
        await checkpoint()

    async def _property(self, number: int, default: int) -> int:
        """The first value of a property; loaders do not have all of them."""
        try:
            found = await self._repeated(lambda: mboot.get_property(number))
        except RefusedError:
            return default
        return found[0] if found else default

    async def _configure(self, external: External) -> None:
        """Choose the FlexSPI, and describe what is on it."""
        switch = () if external.instance is None else (SWITCH | external.instance,)
        for options in (switch, external.options):
            for number, word in enumerate(options):
                address = external.ram + mboot.WORD * number
                await self._repeated(lambda address=address, word=word: mboot.fill(address, mboot.WORD, word))  # type: ignore[misc]
            if options:
                await self._repeated(lambda: mboot.configure(external.memory, external.ram))

    async def _read(self, offset: int, size: int) -> bytes:
        return await self._repeated(lambda: mboot.read(self._base + offset, size, self._memory))

    async def _program(self, offset: int, data: bytes) -> None:
        """One write. A try that was not answered may have been carried out, wholly or in part."""
        done, doubtful = 0, False

        def talk() -> Talk[None]:
            nonlocal done, doubtful
            if doubtful:
                there = yield from mboot.read(self._base + offset, len(data), self._memory)
                done = self._done(data, there)
                if done == len(data):
                    return
            doubtful = True
            yield from mboot.write(self._base + offset + done, data[done:], self._memory, size=self._packet)

        await self._repeated(talk)

    def _done(self, data: bytes, there: bytes) -> int:
        """How many bytes of it were programmed, in whole units.

        Raises:
            LinkError: the rest is neither there nor erased.
        """
        unit = self._geometry.program_unit
        same = next((at for at in range(len(data)) if data[at] != there[at]), len(data))
        done = same - same % unit if same < len(data) else same
        erased = self._geometry.erased
        if there[done:] != (erased * len(there))[: len(there) - done]:
            raise RefusedError("a write broke off in the midst of a unit: the sector has to be erased again")
        return done

    async def _repeated(self, talk: Callable[[], Talk[T]]) -> T:
        """A talk, made again when the wire failed it."""
        with CancelScope(shield=True):  # a command that is broken off leaves the loader waiting for the rest of it
            for left in range(TRIES - 1, -1, -1):
                try:
                    return await self._talker.hold(talk())
                except RefusedError:
                    raise
                except LinkError:
                    if not left:
                        raise
                    await self._talker.forget()
                    await self._talker.hold(mboot.find())
        raise AssertionError("unreachable")
