"""The serial boot ROM of an ESP32, simulated: what drivers and esptool (`--no-stub`) talk to.

    rom = SimulatedEspRom(NorSimulator(geometry))
    async with serial_port(rom) as path: …

It stands for the ROM and its SPI flash; no program is loaded into its RAM, and none runs after FLASH_END.
"""

import hashlib
import struct
from typing import Final

from mgota.core import esp_rom, slip
from mgota.core.geometry import Area
from mgota.errors import OtaError
from mgota.flash.simulator import NorSimulator

_SPI: Final = 0x3FF42000
_SPI_USER2: Final = _SPI + 0x24
_SPI_W0: Final = _SPI + 0x80
_USER: Final = 1 << 18
_READ_ID: Final = 0x9F
_SYNC_ANSWERS: Final = 8

_INVALID, _FAILED, _WRONG_CHECK, _NOT_WRITTEN, _NO_READ, _WRONG_LENGTH = 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A


class _Refused(Exception):  # noqa: N818
    """The ROM answers this error."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class SimulatedEspRom:
    """A chip in its boot ROM; implements `SimulatedRom`.

    Args:
        flash: its flash memory, in memory.
        chip_id: 0 is an ESP32, which does not tell it.
        wired: whether the modem lines are wired to EN and GPIO0.
    """

    def __init__(self, flash: NorSimulator, *, chip_id: int = 0, wired: bool = False) -> None:
        self.flash = flash
        self.running = wired
        """Whether the chip's program runs, and not the ROM."""
        self.baud = 115200
        self._chip_id = chip_id
        self._wired = wired
        self._held = self._boot = False
        self._lines = {"rts": False, "dtr": False}
        # The divider of the UART's clock, from which esptool measures the crystal: 40 MHz.
        self._registers = {0x3FF40014: 40_000_000 // 115200}
        magic = {number: word for word, number in esp_rom.MAGIC.items()}
        self._registers[esp_rom.MAGIC_REGISTER] = magic.get(chip_id, 0)
        self._power_on()

    def _power_on(self) -> None:
        self._unframer = slip.Unframer()
        self._attached = False
        self._place: tuple[int, int, int] | None = None
        """Where blocks go, their size, and how many are left."""
        self._next = 0

    def feed(self, data: bytes) -> bytes:
        """What it answers to these bytes."""
        if self.running or self._held:
            return b""
        return b"".join(self._answer(found) for found in slip.frames(self._unframer, data))

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None:
        """RTS alone holds EN low, DTR alone GPIO0; both together neither."""
        if not self._wired:
            return
        self._lines.update({name: line for name, line in (("rts", rts), ("dtr", dtr)) if line is not None})
        held = self._lines["rts"] and not self._lines["dtr"]
        if self._held and not held:
            self.running = not self._lines["dtr"]
            self._power_on()
        self._held = held

    def _answer(self, found: bytes) -> bytes:
        if len(found) < esp_rom.REQUEST.size:
            return b""
        direction, command, size, checked = esp_rom.REQUEST.unpack_from(found)
        data = found[esp_rom.REQUEST.size :]
        if direction:
            return b""
        if size != len(data):
            return self._say(command, 0, b"\1\5\0\0")
        try:
            value, told = self._run(command, data, checked)
        except (_Refused, struct.error) as exc:
            return self._say(command, 0, bytes([1, exc.code if isinstance(exc, _Refused) else _INVALID, 0, 0]))
        return self._say(command, value, told + bytes(4)) * (_SYNC_ANSWERS if command == esp_rom.SYNC else 1)

    def _say(self, command: int, value: int, data: bytes) -> bytes:
        return slip.frame(esp_rom.REQUEST.pack(1, command, len(data), value) + data)

    def _run(self, command: int, data: bytes, checked: int) -> tuple[int, bytes]:
        if command == esp_rom.SYNC:
            if data != esp_rom.CALL:
                raise _Refused(_INVALID)
            return 0x20120707, b""
        if command == esp_rom.READ_REG:
            return self._registers.get(struct.unpack("<I", data)[0], 0), b""
        if command == esp_rom.WRITE_REG:
            self._set(*struct.unpack("<4I", data))
            return 0, b""
        if command == esp_rom.CHANGE_BAUD:
            self.baud = struct.unpack("<II", data)[0]
            return 0, b""
        if command == esp_rom.GET_SECURITY_INFO and self._chip_id:
            return 0, struct.pack("<IB7sII", 0, 0, bytes(7), self._chip_id, 0)
        if command == esp_rom.SPI_ATTACH:
            self._attached = True
            return 0, b""
        return 0, self._flash(command, data, checked)

    def _set(self, address: int, value: int, mask: int, delay: int) -> None:
        del delay
        old = self._registers.get(address, 0)
        self._registers[address] = old & ~mask | value & mask
        if address == _SPI and value & _USER:
            self._registers[_SPI] = 0  # done
            if self._registers.get(_SPI_USER2, 0) & 0xFF == _READ_ID:
                size = self.flash.geometry.size.bit_length() - 1
                self._registers[_SPI_W0] = 0x20 | 0x40 << 8 | size << 16

    def _flash(self, command: int, data: bytes, checked: int) -> bytes:
        if not self._attached:
            raise _Refused(_FAILED)
        if command == esp_rom.FLASH_BEGIN:
            self._begin(*struct.unpack("<5I" if self._chip_id else "<4I", data)[:4])
        elif command == esp_rom.FLASH_DATA:
            self._program(data, checked)
        elif command == esp_rom.FLASH_END:
            self.running = not struct.unpack("<I", data)[0]
        elif command == esp_rom.SPI_FLASH_MD5:
            offset, size, _, _ = struct.unpack("<4I", data)
            return hashlib.md5(self._look(offset, size), usedforsecurity=False).hexdigest().encode()
        elif command == esp_rom.READ_FLASH_SLOW:
            offset, size = struct.unpack("<II", data)
            if size > esp_rom.MAX_READ:
                raise _Refused(_WRONG_LENGTH)
            return self._look(offset, size).ljust(esp_rom.MAX_READ, b"\0")
        elif command != esp_rom.SPI_SET_PARAMS:
            raise _Refused(_INVALID)
        return b""

    def _look(self, offset: int, size: int) -> bytes:
        try:
            return self.flash.peek(offset, size)
        except OtaError:
            raise _Refused(_NO_READ) from None

    def _begin(self, erase: int, blocks: int, block: int, offset: int) -> None:
        try:
            if erase:
                for sector in list(self.flash.geometry.sectors_in(Area(offset, erase))):
                    self.flash.erase_now(sector)
        except OtaError:
            raise _Refused(_FAILED) from None
        self._place, self._next = (offset, block, blocks), 0

    def _program(self, data: bytes, checked: int) -> None:
        size, number, _, _ = struct.unpack_from("<4I", data)
        block = data[16:]
        if self._place is None or len(block) != size or number != self._next or number >= self._place[2]:
            raise _Refused(_FAILED)
        if esp_rom.check(block) != checked:
            raise _Refused(_WRONG_CHECK)
        offset = self._place[0] + number * self._place[1]
        # To program ones changes nothing in NOR flash: what is filled up with is not programmed.
        rest = block.lstrip(b"\xff")
        offset, rest = offset + len(block) - len(rest), rest.rstrip(b"\xff")
        try:
            self.flash.program_now(offset, rest)
        except OtaError:
            raise _Refused(_NOT_WRITTEN) from None
        self._next += 1
