"""Chips with two equal banks, exchanged by one bit of an option register.

Slot a is physical bank 1, the lower one, and slot b physical bank 2: the bit says which of them the addresses of the
first lead to, and nothing moves. Offsets in the raw array are physical always. Rules:
- the running slot is what the bit said at boot; a bit that was changed since takes effect with the next reset;
- the other bits of the register are kept as they are;
- one atomic write decides, so that a `select` that was cut off needs no recovery.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anyio import CancelScope, to_thread

from mgota.core.geometry import Area, Geometry, Slot
from mgota.errors import FlashError, ReadError, SelectError, TooLargeError
from mgota.flash.areas import extent_of, read_slot
from mgota.flash.files import replace_file
from mgota.flash.simulator import Kind, Operations
from mgota.flash.writer import NorWriter, reopened
from mgota.ports import Flushable, Resetter

WORD = 4
"""Bytes of an option register."""


@dataclass(frozen=True, kw_only=True)
class Banks:
    """The numbers of a chip that swaps banks.

    Args:
        geometry: of both banks, as one raw array.
        bit: the number of the swap bit in its option register.
        factory: the option register of a new chip; the swap bit in it is 0.
        crc: the checksum of the read-back.
    """

    geometry: Geometry
    bit: int
    factory: int = 0
    crc: str = "crc-32"

    def area(self, slot: Slot) -> Area:
        """A slot's bank: one half of the raw array.

        Raises:
            ConfigError: the memory cannot be halved between two sectors.
        """
        half = self.geometry.size // 2
        return self.geometry.slot_area(0 if slot is Slot.A else half, half)


class OptionRegister(Protocol):
    """A register that survives power cuts. A write is atomic, or it did not happen."""

    async def read(self) -> int:
        """The register as it stands.

        Raises:
            FlashError: it could not be read.
        """
        ...

    async def write(self, value: int) -> None:
        """Change the register.

        Raises:
            FlashError: it was not changed, or nobody knows.
        """
        ...


class VirtualOptions:
    """An option register of a virtual chip: four bytes, little-endian, in a file or in memory.

    Args:
        path: the file, or None. A missing file is a new chip's register.
        factory: the register of a new chip.
        operations: where to count, and where a test can stop it.
    """

    def __init__(
        self, path: str | os.PathLike[str] | None = None, factory: int = 0, *, operations: Operations | None = None
    ) -> None:
        self._path = None if path is None else Path(path)
        self._factory = factory
        self._word = factory
        self._operations = operations or Operations()

    async def read(self) -> int:
        """The register as it stands; from a file, what every process sees.

        Raises:
            ReadError: the file cannot be read, or is not four bytes long.
        """
        if self._path is None:
            return self._word
        try:
            data = await to_thread.run_sync(self._path.read_bytes)
        except FileNotFoundError:
            return self._factory
        except OSError as exc:
            raise ReadError(f"the option bytes in {self._path} cannot be read: {exc.strerror}") from exc
        if len(data) != WORD:
            raise ReadError(f"the option bytes in {self._path} are {len(data)} bytes, not {WORD}")
        return int.from_bytes(data, "little")

    async def write(self, value: int) -> None:
        """Change the register.

        Raises:
            FlashError: it was not changed, or nobody knows.
        """
        data = value.to_bytes(WORD, "little")
        with self._operations.perform(Kind.OPTION, 0, WORD, data):
            if self._path is None:
                self._word = value
                return
            try:
                await to_thread.run_sync(replace_file, self._path, data)
            except OSError as exc:
                raise FlashError(f"the option bytes in {self._path} cannot be written: {exc.strerror}") from exc


class BankedFlash:
    """Two banks and a bit; implements `FlashBackend`.

    Args:
        flash: both banks as one raw array.
        options: the register with the swap bit.
        banks: the chip's numbers.
        reset: what the option launch does on this chip: it resets. Without it, `select` returns.
    """

    def __init__(
        self, flash: Flushable, options: OptionRegister, banks: Banks, *, reset: Resetter | None = None
    ) -> None:
        self._flash = flash
        self._options = options
        self._reset = reset
        self._crc = banks.crc
        self._mask = 1 << banks.bit
        self._areas = {slot: banks.area(slot) for slot in Slot}
        self._running: Slot | None = None

    @property
    def crc(self) -> str:
        """The checksum of the read-back."""
        return self._crc

    async def boot(self) -> Slot:
        """The chip comes out of reset: from now on, the slot that is selected runs.

        Raises:
            FlashError: the option register cannot be read.
        """
        self._running = await self.selected_slot()
        return self._running

    async def selected_slot(self) -> Slot:
        """The slot that runs after the next reset.

        Raises:
            FlashError: the option register cannot be read.
        """
        return Slot.B if await self._options.read() & self._mask else Slot.A

    async def running_slot(self) -> Slot:
        """The slot that was selected at `boot`, which is now if it was not called.

        Raises:
            FlashError: the option register cannot be read.
        """
        return self._running or await self.boot()

    async def capacity(self) -> int:
        """Bytes of a bank."""
        return self._areas[Slot.A].length

    async def open_writer(self, slot: Slot, size: int) -> NorWriter:
        """Begin to write an image of `size` bytes at the start of `slot`, which may be the running one of a blank chip.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
        """
        if size > await self.capacity():
            raise TooLargeError(size, await self.capacity())
        return NorWriter(self._flash, self._areas[slot], size, flush=self._flash.flush)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[NorWriter, int]:
        """Go on with an image that was cut off. See `ResumableBackend`.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
        """
        return reopened(self._flash, self._areas[slot], size, mark)

    async def extent(self, slot: Slot) -> int:
        """Bytes of the bank; 0 if all of it is the erased pattern.

        Raises:
            ReadError: it could not be read.
        """
        return await extent_of(self._flash, self._areas[slot])

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of `slot`, counted from its start.

        Raises:
            ReadError: they could not be read, or are not all in the slot.
        """
        return await read_slot(self._flash, slot, self._areas[slot], offset, size)

    async def select(self, slot: Slot) -> None:
        """Make this slot the one that boots; nothing to do if it is. Otherwise the chip resets.

        Raises:
            SelectError: the slot that boots is the same as before.
        """
        await self.running_slot()  # latched before the bit changes
        # Not around the reset: that never returns, and a virtual device's must be cancelled.
        changed = False
        with CancelScope(shield=True):
            changed = await self._change(slot)
        if changed and self._reset:
            await self._reset.reset()

    async def _change(self, slot: Slot) -> bool:
        try:
            old = await self._options.read()
        except FlashError as exc:
            raise SelectError(f"slot {slot} could not be selected: {exc}") from exc
        new = old | self._mask if slot is Slot.B else old & ~self._mask
        if new == old:
            return False
        try:
            await self._options.write(new)
        except FlashError as exc:
            await self._restore(old)
            raise SelectError(f"slot {slot} could not be selected: {exc}") from exc
        return True

    async def _restore(self, old: int) -> None:
        """After a write that failed, and may have taken effect all the same."""
        try:
            if await self._options.read() != old:
                await self._options.write(old)
        except FlashError:
            return  # the failure of the write itself is what is reported

    async def recover(self) -> None:
        """Nothing to do: the selection is one atomic write."""
