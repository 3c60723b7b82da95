"""The boot ROM of an STM32 on its USART, simulated as AN3155 describes it: what drivers and flashing tools talk to.

    rom = SimulatedStm32Rom(NorSimulator(geometry), product=0x419)
    async with serial_port(rom) as path: …            stm32flash -m 8n1 -w fw.bin path

It stands for the ROM and nothing else: GO starts no program, and option bytes are not there. RAM is, as far as
programs that are loaded there write it.
"""

from collections.abc import Callable, Generator
from typing import Final

from mgota.core.an3155 import ACK, ERASE, EXTENDED_ERASE, GET, GET_ID, GET_VERSION, GO, NACK, READ, SYNC, WRITE
from mgota.core.geometry import Area
from mgota.errors import OtaError
from mgota.flash.simulator import NorSimulator

_RAM: Final = Area(0x20000000, 128 << 10)
_SYSTEM: Final = Area(0x1FFF0000, 64 << 10)
"""System memory, option bytes and the size register: reads as erased."""

Rom = Generator[int, bytes, None]
"""Yields how many bytes it waits for."""


class SimulatedStm32Rom:
    """A chip in its boot ROM; implements `SimulatedRom`.

    Args:
        flash: its flash memory, in memory.
        base: absolute address of the flash memory.
        product: what it answers to GET ID: the DEV_ID.
        extended: whether it has the newer erase command or the older one.
        protected: refuse to read and write, as a chip with read protection.
        wired: whether the modem lines are wired to NRST and BOOT0.
    """

    def __init__(
        self,
        flash: NorSimulator,
        base: int = 0x08000000,
        *,
        product: int = 0x419,
        extended: bool = True,
        protected: bool = False,
        wired: bool = False,
    ) -> None:
        self.flash = flash
        self.protected = protected
        self.started_at: int | None = None
        """Where a program was started, or None."""
        self._base = base
        self._product = product
        self._erase = EXTENDED_ERASE if extended else ERASE
        self._wired = wired
        self._boot0, self._held = not wired, False
        self._ram: dict[int, int] = {}
        self._in, self._out = bytearray(), bytearray()
        self._power_on()

    def _power_on(self) -> None:
        self._in.clear()
        self._out.clear()
        self._rom = self._run() if self._boot0 else None
        self._needs = next(self._rom) if self._rom else 0

    def feed(self, data: bytes) -> bytes:
        """What it answers to these bytes."""
        if self._rom is None or self._held:
            return b""
        self._in += data
        while len(self._in) >= self._needs:
            taken = bytes(self._in[: self._needs])
            del self._in[: self._needs]
            self._needs = self._rom.send(taken)
        answer = bytes(self._out)
        self._out.clear()
        return answer

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None:
        """DTR asserted holds NRST low, RTS asserted BOOT0: each is inverted."""
        if not self._wired:
            return
        if rts is not None:
            self._boot0 = not rts
        if dtr is not None:
            released, self._held = self._held and not dtr, dtr
            if released:
                self.started_at = None if self._boot0 else self._base
                self._power_on()

    def _run(self) -> Rom:
        while (yield 1)[0] != SYNC:
            pass
        self._say(ACK)
        while True:
            code, complement = yield 2
            run = self._known().get(code) if code ^ complement == 0xFF else None
            if run is None or (self.protected and code in {READ, WRITE, GO, self._erase}):
                self._say(NACK)
                continue
            self._say(ACK)
            yield from run()

    def _known(self) -> dict[int, Callable[[], Rom]]:
        return {
            GET: self._get,
            GET_VERSION: self._get_version,
            GET_ID: self._get_id,
            READ: self._read,
            GO: self._go,
            WRITE: self._write,
            self._erase: self._erase_sectors,
        }

    def _say(self, *data: int) -> None:
        self._out += bytes(data)

    def _get(self) -> Rom:
        yield from ()
        known = self._known()
        self._say(len(known), 0x31, *known, ACK)

    def _get_version(self) -> Rom:
        yield from ()
        self._say(0x31, 0, 0, ACK)

    def _get_id(self) -> Rom:
        yield from ()
        self._say(1, *self._product.to_bytes(2, "big"), ACK)

    def _address(self) -> Generator[int, bytes, int | None]:
        data = yield 5
        address = int.from_bytes(data[:4], "big")
        known = any(area.start <= address < area.end for area in (self._flash_area(), _RAM, _SYSTEM))
        if _xor(data) or not known:
            self._say(NACK)
            return None
        self._say(ACK)
        return address

    def _flash_area(self) -> Area:
        return Area(self._base, self.flash.geometry.size)

    def _read(self) -> Rom:
        address = yield from self._address()
        if address is None:
            return
        count, complement = yield 2
        if count ^ complement != 0xFF:
            self._say(NACK)
            return
        self._say(ACK, *(self._byte(at) for at in range(address, address + count + 1)))

    def _byte(self, address: int) -> int:
        area = self._flash_area()
        if area.start <= address < area.end:
            return self.flash.peek(address - area.start, 1)[0]
        return self._ram.get(address, 0xFF)

    def _write(self) -> Rom:
        address = yield from self._address()
        if address is None:
            return
        (count,) = yield 1
        data = yield count + 2
        self._say(NACK if _xor(bytes([count]) + data) or not self._put(address, data[:-1]) else ACK)

    def _put(self, address: int, data: bytes) -> bool:
        area = self._flash_area()
        if not area.start <= address < area.end:
            self._ram.update(zip(range(address, address + len(data)), data, strict=True))
            return True
        try:
            self.flash.program_now(address - area.start, data)
        except OtaError:
            return False
        return True

    def _erase_sectors(self) -> Rom:
        size = 2 if self._erase == EXTENDED_ERASE else 1
        head = yield size
        count = int.from_bytes(head, "big")
        every = {2: 0xFFFF, 1: 0xFF}[size] == count
        rest = yield 1 if every else (count + 1) * size + 1
        sectors = self.flash.geometry.sectors
        numbers = [int.from_bytes(rest[at : at + size], "big") for at in range(0, len(rest) - 1, size)]
        chosen = range(len(sectors)) if every else numbers
        if _xor(head + rest) or not all(number < len(sectors) for number in chosen):
            self._say(NACK)
            return
        try:
            for number in chosen:
                self.flash.erase_now(sectors[number])
        except OtaError:
            self._say(NACK)
            return
        self._say(ACK)

    def _go(self) -> Rom:
        address = yield from self._address()
        if address is not None:
            self.started_at = address
            while True:  # the program runs, and says nothing
                yield 1


def _xor(data: bytes) -> int:
    found = 0
    for byte in data:
        found ^= byte
    return found
