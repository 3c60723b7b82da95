"""The ESP32 family: a partition table says where the slots lie, and otadata which of them boots. Nothing moves.

Slot a is ota_0 and slot b ota_1. Rules:
- the running slot is the one that otadata selected at boot, as the bootloader reads it: of a chip that is reached from
  outside nothing else is known. The bootloader's own fallback, to an image that it can verify, is not looked at;
- a partition table needs otadata and two OTA slots. More slots are left alone, and so is a factory app; while one of
  those runs there is no running slot, until one of the two is selected;
- what a power cut may leave of a selection is `mgota.core.otaselect`'s business.

Sources: ESP-IDF's docs/api-guides/partition-tables.rst and components/bootloader_support. Recovery is `hardware`. It
runs on the simulator; nobody has run it on silicon.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from mgota.core.esp_table import (
    SECTOR,
    TABLE_OFFSET,
    TABLE_SIZE,
    PartitionTable,
    decode_table,
    default_table,
    encode_table,
)
from mgota.core.geometry import Area, Slot, uniform
from mgota.core.nor import Job
from mgota.core.otadata import ENTRY_SIZE, decode_entry
from mgota.core.otaselect import OtaPlace, read_entries, recover, select, selected_slot, settle
from mgota.errors import ConfigError, FlashError, TooLargeError
from mgota.flash.areas import extent_of, read_slot
from mgota.flash.files import FileLock, replace_file
from mgota.flash.jobs import carry_out
from mgota.flash.simulator import NorSimulator
from mgota.flash.virtual import VirtualTarget, VirtualWatchdog
from mgota.flash.writer import NorWriter, reopened
from mgota.ports import Flushable, NorFlash

log = logging.getLogger("mgota.flash.esp32")

SIZE = 4 << 20
"""Bytes of the commonest flash memory."""

PIECE = 1 << 16
"""Bytes of a new chip's file that are written at once."""

_NUMBERS = {Slot.A: 0, Slot.B: 1}


async def read_table(flash: NorFlash, offset: int = TABLE_OFFSET) -> PartitionTable:
    """The partition table that lies in a flash memory.

    Args:
        flash: the memory.
        offset: where the bootloader looks for the table.

    Raises:
        ConfigError: there is none.
        ReadError: it could not be read.
    """
    return decode_table(await flash.read(offset, TABLE_SIZE), offset)


class EspFlash:
    """Two OTA slots and otadata; implements `FlashBackend`.

    Args:
        flash: the memory.
        table: its partition table; `read_table` reads it.
        crc: the checksum of the read-back.

    Raises:
        ConfigError: the table has no otadata or fewer than two OTA slots, or does not fit the memory.
    """

    def __init__(self, flash: Flushable, table: PartitionTable, *, crc: str = "crc-32") -> None:
        slots, otadata, geometry = table.slots, table.otadata, flash.geometry
        if otadata is None or len(slots) < len(_NUMBERS):
            raise ConfigError(f"the partition table needs otadata and two OTA slots; of these it has {len(slots)}")
        if table.end > geometry.size:
            raise ConfigError(f"the partition table is one for {table.end:#x} bytes, the memory has {geometry.size:#x}")
        sectors = tuple(geometry.sectors_in(otadata.area))
        if len(sectors) != 2:
            raise ConfigError(f"otadata needs sectors of {SECTOR:#x} bytes")
        self.table = table
        self._flash = flash
        self._crc = crc
        self._areas = {slot: geometry.slot_area(slots[n].offset, slots[n].size) for slot, n in _NUMBERS.items()}
        default = 0 if table.factory is None else None
        self._place = OtaPlace(geometry, (sectors[0], sectors[1]), len(slots), default)
        self._running: Slot | None = None

    @property
    def crc(self) -> str:
        """The checksum of the read-back."""
        return self._crc

    async def boot(self) -> Slot:
        """The chip comes out of reset: from now on, the slot that is selected runs.

        Raises:
            FlashError: otadata cannot be read, or selects neither of the two slots.
        """
        self._running = None
        self._running = await self.selected_slot()
        return self._running

    async def selected_slot(self) -> Slot:
        """The slot that runs after the next reset. Otadata is read once, as the bootloader does.

        Raises:
            FlashError: otadata cannot be read, or selects neither of the two slots.
        """
        entries = [decode_entry(await self._flash.read(sector.start, ENTRY_SIZE)) for sector in self._place.sectors]
        number = selected_slot(entries, self._place.count)
        if number is None and self.table.factory is not None:
            raise FlashError("nothing is selected: the factory app runs, which is in no slot. Select one of the slots")
        for slot, its_number in _NUMBERS.items():
            if its_number == (number or 0):  # without an entry the bootloader takes the first slot
                return slot
        raise FlashError(f"ota_{number} runs, which is neither slot a nor b. Select one of the two")

    async def running_slot(self) -> Slot:
        """The slot that was selected at `boot`, which is now if it was not called.

        Raises:
            FlashError: otadata cannot be read, or selects neither of the two slots.
        """
        return self._running or await self.boot()

    async def capacity(self) -> int:
        """Bytes of the smaller slot: what does not fit both cannot be updated and rolled back."""
        return min(area.length for area in self._areas.values())

    def area(self, slot: Slot) -> Area:
        """Where a slot lies in the memory."""
        return self._areas[slot]

    async def settle(self) -> None:
        """Before the first erase in the other slot: whatever becomes of that, the running slot boots.

        Raises:
            FlashError: otadata could not be written.
        """
        await self._carry_out(settle(self._place, _NUMBERS[await self.running_slot()]))

    async def open_writer(self, slot: Slot, size: int) -> NorWriter:
        """Begin to write an image of `size` bytes at the start of `slot`, which may be the running one of a blank chip.

        Otadata of a new chip is written now: from here on the other slot may be half-written.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: otadata could not be written.
        """
        if size > await self.capacity():
            raise TooLargeError(size, await self.capacity())
        if slot is not await self.running_slot():
            await self.settle()
        return NorWriter(self._flash, self._areas[slot], size, flush=self._flash.flush)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[NorWriter, int]:
        """Go on with an image that was cut off. See `ResumableBackend`.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: otadata could not be written.
        """
        if slot is not await self.running_slot():
            await self.settle()
        return reopened(self._flash, self._areas[slot], size, mark)

    async def extent(self, slot: Slot) -> int:
        """Bytes of the slot; 0 if all of it is blank.

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
        """Make this slot the one that boots, from the next reset on; nothing to do if it is.

        To select the running slot is to recover: no power cut boots the other one after it.

        Raises:
            SelectError: the slot that boots is the same as before.
        """
        try:
            running: int | None = _NUMBERS[await self.running_slot()]
        except FlashError as exc:
            running = None  # neither runs, or otadata cannot be read, which will show
            log.warning("slot %s is selected, and none runs: %s", slot, exc)
        await self._carry_out(select(self._place, running, _NUMBERS[slot]))

    async def recover(self) -> None:
        """Finish a selection that was cut off: from then on the running slot boots, whatever is torn.

        Where otadata is worn out, but the running slot is selected, a warning must do: the device runs, and every
        update is refused.

        Raises:
            FlashError: it could not be finished.
        """
        running = _NUMBERS[await self.running_slot()]
        try:
            await self._carry_out(recover(self._place, running))
        except FlashError as exc:
            entries = await carry_out(read_entries(self._place), self._flash)
            if selected_slot(entries, self._place.count) != running:
                raise
            log.warning("otadata is worn out, the device cannot be updated: %s", exc)

    async def _carry_out(self, job: Job[None]) -> None:
        await carry_out(job, self._flash)
        await self._flash.flush()


def esp32(
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = SIZE,
    program_unit: int = 1,
    throttle: float | None = None,
) -> VirtualTarget[EspFlash]:
    """A virtual ESP32. Blocks if it has a file.

    Args:
        path: the raw array; the lock is PATH.lock. A missing file is a new chip: a partition table, otadata and slots
            blank. None keeps all in memory, and is a new chip as well.
        size: bytes of the flash memory.
        program_unit: bytes of the smallest programmable piece: 1, or 16 where flash is encrypted.
        throttle: bytes per second that can be programmed, or None.

    Raises:
        ConfigError: the memory is too small or the file is not one's flash memory, has no valid partition table, or one
            without two OTA slots.
    """
    if size <= 0 or size % SECTOR:
        raise ConfigError(f"the flash memory of an ESP32 is a whole number of sectors of {SECTOR:#x} bytes")
    geometry = uniform(size, SECTOR, program_unit=program_unit)
    lock = None
    if path is None:
        flash = NorSimulator(geometry, throttle=throttle)
        flash.poke(TABLE_OFFSET, encode_table(default_table(size)))
    else:
        file = Path(path)
        if not file.exists():
            _make(file, size)
        flash = NorSimulator.on_file(file, geometry, throttle=throttle)
        lock = FileLock(file.with_name(f"{file.name}.lock"))
    try:
        backend = EspFlash(flash, decode_table(flash.peek(TABLE_OFFSET, TABLE_SIZE)))
    except ConfigError as exc:
        raise ConfigError(f"{path or 'the flash memory'}: {exc}") from exc
    return VirtualTarget(backend=backend, flash=flash, watchdog=VirtualWatchdog(), lock=lock)


def _make(path: Path, size: int) -> None:
    """A new chip's file: at once with its table, so that a cut leaves no chip without one."""
    table = encode_table(default_table(size))

    def content() -> Iterator[bytes]:
        yield b"\xff" * TABLE_OFFSET + table
        blank = b"\xff" * PIECE
        for done in range(TABLE_OFFSET + len(table), size, PIECE):
            yield blank[: size - done]

    try:
        replace_file(path, content())
    except OSError as exc:
        raise ConfigError(f"the flash file {path} cannot be made: {exc.strerror}") from exc
