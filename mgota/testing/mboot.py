"""NXP's boot loader on a UART, simulated: what drivers and `blhost` talk to.

    rom = SimulatedMboot(NorSimulator(geometry), base=0x08000000)
    async with serial_port(rom) as path: …            blhost -p path,115200 write-memory 0x08000000 fw.bin

It stands for the loader and nothing else: no program runs, and there is one memory, of the chip's own or outside of it.
In one thing it is worse than real ones: it waits for the rest of a packet for ever.

What it does out of turn is what NXP's sources do: a packet of the wrong kind, and a ping, end a write without its
second response, and a read with it; a packet longer than its buffer is cut off, and damaged therefore.
"""

from collections.abc import Callable, Generator
from typing import Final

from mgota.core import mboot
from mgota.core.geometry import Area
from mgota.errors import OtaError
from mgota.flash.simulator import NorSimulator

_RAM: Final = (Area(0, 128 << 10), Area(0x20000000, 4 << 20))
_FAIL, _OUT_OF_RANGE, _ARGUMENT, _ALIGNMENT, _UNKNOWN_COMMAND, _SECURED = 1, 3, 4, 101, 10000, 10001
_ABORTED, _NO_MEMORY, _NOT_WRITTEN, _NOT_CONFIGURED, _NO_PROPERTY = 10002, 10200, 10202, 10205, 10300
_OPTION: Final = 0xC
"""What the highest four bits of the word are that describes a serial flash memory."""

_SWITCH: Final = 0xCF9
"""The highest twelve bits of a word that chooses one of two FlexSPI."""

Loader = Generator[int, bytes, None]
"""Yields how many bytes it waits for."""


class _Lost(Exception):  # noqa: N818
    """The host said something else than was its turn: the command is over."""


class _Refused(Exception):  # noqa: N818
    """The loader answers this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class SimulatedMboot:
    """A chip in its boot loader; implements `SimulatedRom`.

    Args:
        flash: its flash memory, in memory.
        base: absolute address of it.
        memory: id of it; one outside of the chip (9) has to be configured before it is used.
        max_packet: bytes that a packet has at most.
        secured: refuse to read and write, as a chip that is closed.
        wired: whether the modem lines are wired to reset and the ISP pin.
    """

    def __init__(
        self,
        flash: NorSimulator,
        base: int = 0,
        *,
        memory: int = 0,
        max_packet: int = 512,
        secured: bool = False,
        wired: bool = False,
    ) -> None:
        self.flash = flash
        self.secured = secured
        self.running = wired
        """Whether the chip's program runs, and not the loader."""
        self.resets = 0
        self.options: tuple[int, ...] = ()
        """The words by which its memory was configured."""
        self.instance = 0
        """Which FlexSPI was chosen; 0 is the loader's choice."""
        self._base = base
        self._memory = memory
        self._max_packet = max_packet
        self._wired = wired
        self._isp = self._held = False
        self._ram: dict[int, int] = {}
        self._in, self._out = bytearray(), bytearray()
        self._power_on()

    def _power_on(self) -> None:
        self._in.clear()
        self._out.clear()
        self._configured = not self._memory
        self._loader = self._run()
        self._needs = next(self._loader)

    def feed(self, data: bytes) -> bytes:
        """What it answers to these bytes."""
        if self.running or self._held:
            return b""
        self._in += data
        while len(self._in) >= self._needs and not self.running:
            taken = bytes(self._in[: self._needs])
            del self._in[: self._needs]
            self._needs = self._loader.send(taken)
        answer = bytes(self._out)
        self._out.clear()
        return answer

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None:
        """DTR asserted holds reset low, RTS asserted the ISP pin: each is inverted."""
        if not self._wired:
            return
        if rts is not None:
            self._isp = rts
        if dtr is not None:
            released, self._held = self._held and not dtr, dtr
            if released:
                self._start()

    def _start(self) -> None:
        """Out of reset: the ISP pin decides. Without lines to tell, a reset ends in the program."""
        self.resets += 1
        self.running = not self._isp
        self._power_on()

    # --- packets -----------------------------------------------------------------------------------------------------

    def _run(self) -> Loader:
        while True:
            try:
                content = yield from self._receive(mboot.COMMAND)
                self._say(mboot.sync(mboot.ACK))
                yield from self._obey(*mboot.parse_words(content))
            except (_Lost, OtaError):
                continue

    def _say(self, data: bytes) -> None:
        self._out += data

    def _kind(self) -> Generator[int, bytes, int]:
        while (yield 1)[0] != mboot.START:
            pass
        return (yield 1)[0]

    def _receive(self, wanted: int) -> Generator[int, bytes, bytes]:
        """The content of the host's next packet; who takes it says ACK."""
        while True:
            kind = yield from self._kind()
            if kind == mboot.PING:
                self._say(mboot.pong())
            if kind != wanted:
                raise _Lost
            head = yield mboot.HEAD.size
            size, _ = mboot.HEAD.unpack(head)
            content = yield min(size, self._max_packet)
            if mboot.packet(kind, content)[2:6] == head and len(content) == size:
                return content
            self._say(mboot.sync(mboot.NAK))

    def _send(self, kind: int, content: bytes) -> Loader:
        """Send a packet until the host has it."""
        while True:
            self._say(mboot.packet(kind, content))
            answer = yield from self._kind()
            if answer == mboot.ACK:
                return
            if answer != mboot.NAK:
                raise _Lost

    def _respond(self, command: int, status: int, *, tag: int = mboot.GENERIC) -> Loader:
        yield from self._send(mboot.COMMAND, mboot.words(tag, status, command))

    # --- commands ----------------------------------------------------------------------------------------------------

    def _obey(self, command: int, values: tuple[int, ...]) -> Loader:
        known: dict[int, Callable[[int, int, int], Loader]] = {
            mboot.GET_PROPERTY: self._get_property,
            mboot.ERASE: self._erase,
            mboot.READ: self._read,
            mboot.WRITE: self._write,
            mboot.FILL: self._fill,
            mboot.CONFIGURE: self._configure,
            mboot.RESET: self._reset,
        }
        first, second, third = (*values, 0, 0, 0)[:3]
        try:
            if command not in known:
                raise _Refused(_UNKNOWN_COMMAND)
            if self.secured and command in {mboot.ERASE, mboot.READ, mboot.WRITE, mboot.FILL}:
                raise _Refused(_SECURED)
            yield from known[command](first, second, third)
        except _Refused as exc:
            yield from self._respond(command, exc.status)

    def _get_property(self, number: int, memory: int, _: int) -> Loader:
        del memory
        geometry = self.flash.geometry
        told = {
            mboot.VERSION: 0x4B030100,
            0x03: self._base,
            0x04: geometry.size,
            0x05: geometry.sectors[0].length,
            mboot.PACKET_SIZE: self._max_packet,
            0x0E: _RAM[1].start,
            0x0F: _RAM[1].length,
        }
        if number not in told:
            raise _Refused(_NO_PROPERTY)
        tag = mboot.GENERIC | mboot.GET_PROPERTY
        yield from self._send(mboot.COMMAND, mboot.words(tag, 0, told[number]))

    def _flash_offset(self, address: int, size: int, memory: int) -> int | None:
        """Where in the flash memory it is; None if in RAM."""
        offset = address - self._base
        if 0 <= offset <= offset + size <= self.flash.geometry.size:
            if not self._configured:
                raise _Refused(_NOT_CONFIGURED)
            if memory not in {0, self._memory}:  # without an id the address decides
                raise _Refused(_NO_MEMORY)
            return offset
        if any(area.start <= address <= address + size <= area.end for area in _RAM):
            return None
        raise _Refused(_NO_MEMORY)

    def _erase(self, address: int, size: int, memory: int) -> Loader:
        offset = self._flash_offset(address, size, memory)
        if offset is None:
            raise _Refused(_OUT_OF_RANGE)
        sectors = list(self.flash.geometry.sectors_in(Area(offset, size))) if size else []
        if sectors and (sectors[0].start != offset or sectors[-1].end != offset + size):
            raise _Refused(_ALIGNMENT)
        try:
            for sector in sectors:
                self.flash.erase_now(sector)
        except OtaError:
            raise _Refused(_FAIL) from None
        yield from self._respond(mboot.ERASE, 0)

    def _read(self, address: int, size: int, memory: int) -> Loader:
        """What cannot be read is told behind the response, by an empty packet and the second response."""
        tag = mboot.GENERIC | mboot.READ
        yield from self._send(mboot.COMMAND, mboot.words(tag, 0, size, data=True))
        try:
            data = self._look(address, size, memory)
        except _Refused:
            yield from self._send(mboot.DATA, b"")
            raise
        for at in range(0, size, self._max_packet):
            try:
                yield from self._send(mboot.DATA, data[at : at + self._max_packet])
            except _Lost:  # the second response comes all the same
                raise _Refused(_ARGUMENT) from None
        yield from self._respond(mboot.READ, 0)

    def _look(self, address: int, size: int, memory: int) -> bytes:
        offset = self._flash_offset(address, size, memory)
        if offset is None:
            return bytes(self._ram.get(at, 0) for at in range(address, address + size))
        return self.flash.peek(offset, size)

    def _write(self, address: int, size: int, memory: int) -> Loader:
        """What cannot be written is told by ABORT, or behind the last packet by the second response alone."""
        yield from self._respond(mboot.WRITE, 0)
        waiting, left = b"", size
        while left:
            piece = yield from self._receive(mboot.DATA)
            if not piece or len(piece) > left:
                self._say(mboot.sync(mboot.ACK))
                raise _Refused(_ABORTED)
            left -= len(piece)
            try:
                waiting = self._take(address + size - left, waiting + piece, memory, last=not left)
            except _Refused:
                self._say(mboot.sync(mboot.ABORT if left else mboot.ACK))
                raise
            self._say(mboot.sync(mboot.ACK))
        yield from self._respond(mboot.WRITE, 0)

    def _take(self, end: int, data: bytes, memory: int, *, last: bool) -> bytes:
        """Write data that end there; those of a unit that is not whole yet are left."""
        unit = self.flash.geometry.program_unit
        start = end - len(data)
        offset = self._flash_offset(start, len(data), memory)
        if offset is not None and offset % unit:
            raise _Refused(_ALIGNMENT)
        ready = len(data) if last else len(data) - len(data) % unit
        try:
            self._put(start, data[:ready], in_flash=offset is not None)
        except OtaError:
            raise _Refused(_NOT_WRITTEN) from None
        return data[ready:]

    def _put(self, address: int, data: bytes, *, in_flash: bool) -> None:
        if not in_flash:
            self._ram.update(zip(range(address, address + len(data)), data, strict=True))
        elif data:
            unit = self.flash.geometry.program_unit
            self.flash.program_now(address - self._base, data + b"\xff" * (-len(data) % unit))

    def _fill(self, address: int, size: int, pattern: int) -> Loader:
        if self._flash_offset(address, size, 0) is not None or size % mboot.WORD:
            raise _Refused(_OUT_OF_RANGE)
        self._put(address, pattern.to_bytes(4, "little") * (size // mboot.WORD), in_flash=False)
        yield from self._respond(mboot.FILL, 0)

    def _configure(self, memory: int, address: int, _: int) -> Loader:
        words = tuple(
            int.from_bytes(bytes(self._ram.get(at + byte, 0) for byte in range(4)), "little")
            for at in (address, address + mboot.WORD)
        )
        if not memory or memory != self._memory or words[0] >> 28 != _OPTION:
            raise _Refused(_NO_MEMORY)
        if words[0] >> 20 == _SWITCH:
            self.instance = words[0] & 0xF
        else:
            self.options = words[: 1 + (words[0] >> 24 & 0xF)]  # the next four bits count the words behind
            self._configured = True
        yield from self._respond(mboot.CONFIGURE, 0)

    def _reset(self, *_: int) -> Loader:
        yield from self._respond(mboot.RESET, 0)
        self.resets += 1
        self.running = not self._isp
        self._configured = not self._memory
