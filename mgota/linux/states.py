"""Boot records in other places than files: variables of a bootloader, cells of an EEPROM, NOR flash, a register.

| store | where | survives a cut because |
|---|---|---|
| `VariableState` | U-Boot's or GRUB's environment | its change is one write of one copy |
| `CellState` | nvmem in sysfs, an EEPROM, an FRAM | two cells, of which the older one is written |
| `mtd_state` | `/dev/mtdN`, NOR flash | the record log of `mgota.core.recordlog` |
| `RegisterState` | another store, and four bytes that mirror it | the other store does |

A record inside of a slot would be written over by the next update: see `mgota.linux.apart`.
"""

import mmap
import os
from contextlib import suppress
from pathlib import Path

from anyio import CancelScope, to_thread
from anyio.lowlevel import checkpoint

from mgota.core.cells import Cells
from mgota.core.record import BootRecord, decode_record, encode_record
from mgota.core.register import Form, encode_word
from mgota.errors import ConfigError, FlashError, StateError
from mgota.flash.norstate import NorState
from mgota.linux.mtd import MtdDevice, MtdFlash
from mgota.linux.variables import VariableStore
from mgota.ports import StateStore

VARIABLE = "mgota_state"
SECTORS = 3
"""Erase blocks of a record log."""

_READS = 2


class VariableState:
    """A boot record in a variable; implements `StateStore`.

    The record's two lines become one: a blank stands between them.

    Args:
        environment: where the variable lies.
        name: of the variable.
    """

    def __init__(self, environment: VariableStore, name: str = VARIABLE) -> None:
        self.environment = environment
        self.name = name

    async def load(self) -> BootRecord | None:
        """The record, or None if there is no such variable.

        Raises:
            StateError: the environment cannot be read, or the variable holds no record.
        """
        try:
            text = (await to_thread.run_sync(self.environment.variables)).get(self.name)
        except FlashError as exc:
            raise StateError(f"the boot record cannot be read: {exc}") from exc
        if text is None:
            return None
        head, _, body = text.partition(" {")
        return decode_record(f"{head}\n{{{body}\n".encode("utf-8", "surrogateescape"))

    async def store(self, record: BootRecord) -> None:
        """Replace the variable.

        Raises:
            StateError: it was not stored, or nobody knows.
        """
        text = encode_record(record).decode("ascii").rstrip("\n").replace("\n", " ", 1)
        try:
            await to_thread.run_sync(self._replace, text)
        except FlashError as exc:
            raise StateError(f"the boot record cannot be stored: {exc}") from exc

    def _replace(self, text: str) -> None:
        self.environment.change(lambda _: {self.name: text})


class CellState:
    """A boot record in two cells of a byte-wise memory; implements `StateStore`.

    Args:
        path: of the memory: `/sys/bus/nvmem/devices/NAME/nvmem`, an EEPROM's `eeprom`, or a device.
        size: bytes of it that are the store's.
        offset: where they begin.

    Raises:
        ConfigError: they are too few.
    """

    def __init__(self, path: str | os.PathLike[str], size: int, *, offset: int = 0) -> None:
        self.path = Path(path)
        self._cells = Cells(size)
        self._offset = offset

    async def load(self) -> BootRecord | None:
        """The record, or None if the cells are blank.

        Raises:
            StateError: there is something, but it cannot be read.
        """
        return await to_thread.run_sync(self._load)

    async def store(self, record: BootRecord) -> None:
        """Write the older cell.

        Raises:
            StateError: it was not stored, or nobody knows.
        """
        await to_thread.run_sync(self._store, encode_record(record))

    def _load(self) -> BootRecord | None:
        value = self._cells.read(self._read())
        return None if value is None else decode_record(value)

    def _store(self, value: bytes) -> None:
        write = self._cells.write(self._read(), value)
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                done = 0
                while done < len(write.data):
                    done += os.pwrite(fd, write.data[done:], self._offset + write.offset + done)
                with suppress(OSError):  # sysfs has nothing to sync: what was written is in the memory
                    os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            raise StateError(f"the boot record in {self.path} cannot be stored: {exc.strerror}") from exc
        if self._cells.read(self._read()) != value:
            raise StateError(f"{self.path} does not keep the boot record")

    def _read(self) -> bytes:
        """The area, if it reads the same each time: what a cut left uncertain shows itself."""
        found = {self._read_once() for _ in range(_READS)}
        if len(found) > 1:
            raise StateError(f"{self.path} reads otherwise each time")
        return found.pop()

    def _read_once(self) -> bytes:
        data = b""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while piece := os.pread(fd, self._cells.size - len(data), self._offset + len(data)):
                    data += piece
            finally:
                os.close(fd)
        except OSError as exc:
            raise StateError(f"the boot record in {self.path} cannot be read: {exc.strerror}") from exc
        if len(data) != self._cells.size:
            raise StateError(f"{self.path} ends before byte {self._offset + self._cells.size}")
        return data


def mtd_state(device: MtdDevice, *, first: int = 0) -> NorState:
    """A boot record in three erase blocks of an MTD character device that hold nothing else.

    Args:
        device: NOR flash.
        first: number of the first of the blocks.

    Raises:
        ConfigError: the device has no such blocks, or is no NOR flash.
        FlashError: it cannot be opened.
    """
    flash = MtdFlash(device)
    sectors = flash.geometry.sectors[first : first + SECTORS]
    if first < 0 or len(sectors) != SECTORS:
        raise ConfigError(f"{device.path} has no three erase blocks from number {first} on")
    return NorState(flash, sectors)


class MappedRegister:
    """Four bytes of memory: of a chip's registers by `/dev/mem`, or of a file.

    Args:
        path: what to map.
        address: of the register, a multiple of four.
    """

    def __init__(self, path: str | os.PathLike[str], address: int) -> None:
        if address < 0 or address % 4:
            raise ConfigError(f"a register lies at a multiple of four bytes, not at {address:#x}")
        self.path = Path(path)
        self.address = address

    def write(self, word: int) -> None:
        """Set it by one access of 32 bits, in the processor's byte order.

        Raises:
            StateError: it cannot be mapped.
        """
        page, within = divmod(self.address, mmap.ALLOCATIONGRANULARITY)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC)
            try:
                offset = page * mmap.ALLOCATIONGRANULARITY
                with (
                    mmap.mmap(fd, within + 4, offset=offset) as mapped,
                    memoryview(mapped) as view,
                    view[within:].cast("I") as register,
                ):
                    register[0] = word
            finally:
                os.close(fd)
        except (OSError, ValueError) as exc:
            raise StateError(f"the register at {self.address:#x} of {self.path} cannot be written: {exc}") from exc

    def read(self) -> int:
        """Its 32 bits.

        Raises:
            StateError: it cannot be mapped.
        """
        page, within = divmod(self.address, mmap.ALLOCATIONGRANULARITY)
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_SYNC | os.O_CLOEXEC)
            try:
                offset = page * mmap.ALLOCATIONGRANULARITY
                with (
                    mmap.mmap(fd, within + 4, offset=offset, access=mmap.ACCESS_READ) as mapped,
                    memoryview(mapped) as view,
                    view[within:].cast("I") as register,
                ):
                    return register[0]
            finally:
                os.close(fd)
        except (OSError, ValueError) as exc:
            raise StateError(f"the register at {self.address:#x} of {self.path} cannot be read: {exc}") from exc


class RegisterState:
    """A boot record somewhere else, and four bytes that say of it what a bootloader asks; implements `StateStore`.

    The other store is written first, and counts: a register that lost its power, or its write, is set again at the next
    load.

    Args:
        register: the four bytes.
        rest: where the record itself lies.
        form: how the register says it.
    """

    def __init__(self, register: MappedRegister, rest: StateStore, *, form: Form = Form.ENCODED) -> None:
        self.register = register
        self.rest = rest
        self.form = form

    async def load(self) -> BootRecord | None:
        """The record; the register follows it.

        Raises:
            StateError: it cannot be read, or the register not be set.
        """
        record = await self.rest.load()
        if record is not None:
            await to_thread.run_sync(self._mirror, record)
        return record

    async def store(self, record: BootRecord) -> None:
        """Store the record, then set the register.

        Raises:
            StateError: it was not stored, or the register not set.
        """
        with CancelScope(shield=True):
            await self.rest.store(record)
            await to_thread.run_sync(self._mirror, record)
        await checkpoint()

    def _mirror(self, record: BootRecord) -> None:
        word = encode_word(record, self.form)
        if self.register.read() == word:
            return
        self.register.write(word)
        if self.register.read() != word:
            raise StateError(f"the register at {self.register.address:#x} does not keep what is written")
