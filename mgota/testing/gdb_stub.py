"""A GDB server with a chip behind it, simulated: what drivers talk to, and GDB itself.

    stub = SimulatedGdbStub(NorSimulator(geometry))
    async with network_port(stub) as port: …      gdb-multiarch -batch -ex "target remote :PORT" -ex "load fw.srec"

Rules:
- it programs as OpenOCD does: an erase is carried out at once, what is to be programmed waits for `vFlashDone`, and
  what is missing to whole units is filled up with the erased pattern; a `vFlashDone` with nothing that waits, over
  which OpenOCD fails, is written down in `crashes`;
- a chip that runs is stopped by whatever comes next, which is lost, as QEMU has it; then a stop packet is sent;
- as `plain` it has no flash commands and no memory map, and memory that is written is written, as QEMU has it.

It stands for the server and the memories, and nothing else: there is no processor, and its registers are numbers.
"""

import re
from collections.abc import Callable
from typing import Final

from mgota.core.checksum import checksum
from mgota.core.gdb_packets import MAX_PACKET, checksum as sum_of, escape, expand, frame
from mgota.core.geometry import Area
from mgota.errors import LinkError, OtaError
from mgota.flash.simulator import NorSimulator

_RAM: Final = Area(0x20000000, 128 << 10)
_REGISTERS: Final = 17
_TARGET: Final = b"""<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target>
<architecture>arm</architecture><feature name="org.gnu.gdb.arm.m-profile">%b</feature></target>""" % b"".join(
    b'<reg name="%b" bitsize="32"/>' % name
    for name in (*(b"r%d" % number for number in range(13)), b"sp", b"lr", b"pc", b"xpsr")
)


class SimulatedGdbStub:
    """A GDB server; implements `SimulatedRom`.

    Args:
        flash: the chip's flash memory, in memory.
        base: absolute address of the flash memory.
        plain: no flash commands: memory is written.
        packet: bytes of the longest packet that it takes.
        silent_acks: whether it offers to do without acknowledgements.
        crc: whether it computes checksums.
        running: whether the chip runs when somebody connects.
        runs: whether it compresses what it says, by run-length.
    """

    def __init__(
        self,
        flash: NorSimulator,
        base: int = 0x08000000,
        *,
        plain: bool = False,
        packet: int = 1024,
        silent_acks: bool = True,
        crc: bool = True,
        running: bool = False,
        runs: bool = False,
    ) -> None:
        self.flash = flash
        self.running = running
        self.resets = 0
        """How often the chip was reset."""
        self.crashes = 0
        self._base = base
        self._plain, self._packet, self._silent, self._has_crc, self._runs = plain, packet, silent_acks, crc, runs
        self._acks = True
        self._in: bytearray | None = None
        self._last = b""
        self._out = bytearray()
        self._ram = bytearray(_RAM.length)
        self._registers = [0] * _REGISTERS
        self._waiting: dict[int, int] = {}
        """What is to be programmed: byte by byte, at its offset."""
        self._known = self._requests()

    def feed(self, data: bytes) -> bytes:
        """What it answers to these bytes."""
        for byte in data:
            self._take(byte)
        answer = bytes(self._out)
        self._out.clear()
        return answer

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None:
        """There are none."""

    def _take(self, byte: int) -> None:
        if self.running and byte not in b"+-":
            self.running = False
            self._say(b"T02thread:01;")
        elif byte == 0x24:  # "$": whatever came before broke off
            self._in = bytearray()
        elif self._in is not None:
            self._in.append(byte)
            if len(self._in) > MAX_PACKET:
                self._in = None
            elif len(self._in) > 2 and self._in[-3] == 0x23:  # "#"
                taken, self._in = bytes(self._in), None
                self._packet_came(taken[:-3], taken[-2:])
        elif byte == 0x2D and self._acks:
            self._out += self._last

    def _packet_came(self, body: bytes, digits: bytes) -> None:
        try:
            payload = expand(body) if digits.lower() == sum_of(body) else None
        except LinkError:
            payload = None
        if payload is None:
            if self._acks:
                self._out += b"-"
            return
        if payload.startswith(b"qSupported"):  # whoever connects asks that first
            self._acks = True
            self._waiting.clear()
        if self._acks:
            self._out += b"+"
        answer = self._answer(payload)
        if not self.running:
            self._say(answer)

    def _say(self, payload: bytes) -> None:
        self._last = frame(_compressed(payload) if self._runs else payload)
        self._out += self._last

    def _answer(self, payload: bytes) -> bytes:
        for pattern, run in self._known:
            found = pattern.fullmatch(payload)
            if found:
                try:
                    return run(*found.groups())
                except OtaError:
                    return b"E0e"
        return b""

    def _requests(self) -> list[tuple[re.Pattern[bytes], Callable[..., bytes]]]:
        always: list[tuple[bytes, Callable[..., bytes]]] = [
            (rb"qSupported.*", self._supported),
            (rb"\?", lambda: b"T05thread:01;"),
            (rb"H[cg].*|T.*", lambda: b"OK"),
            (rb"qAttached.*", lambda: b"1"),
            (rb"qC", lambda: b"QC1"),
            (rb"qfThreadInfo", lambda: b"m1"),
            (rb"qsThreadInfo", lambda: b"l"),
            (rb"qXfer:features:read:target.xml:NUMBER,NUMBER", self._tell_target),
            (rb"g", self._read_registers),
            (rb"pNUMBER", self._read_register),
            (rb"PNUMBER=([0-9a-f]{8})", self._write_register),
            (rb"mNUMBER,NUMBER", self._read_digits),
            (rb"MNUMBER,NUMBER:((?:[0-9a-f]{2})*)", self._write_digits),
            (rb"XNUMBER,NUMBER:(.*)", self._write),
            (rb"qRcmd,((?:[0-9a-f]{2})*)", self._monitor),
            (rb"D(?:;.*)?", self._detach),
            (rb"c", self._continue),
        ]
        if self._silent:
            always.append((rb"QStartNoAckMode", self._stop_acks))
        if self._has_crc:
            always.append((rb"qCRC:NUMBER,NUMBER", self._crc))
        if not self._plain:
            always += [
                (rb"qXfer:memory-map:read::NUMBER,NUMBER", self._tell_map),
                (rb"vFlashErase:NUMBER,NUMBER", self._erase),
                (rb"vFlashWrite:NUMBER:(.*)", self._collect),
                (rb"vFlashDone", self._carry_out),
            ]
        return [
            (re.compile(pattern.replace(b"NUMBER", rb"([0-9a-f]{1,16})"), re.DOTALL), run) for pattern, run in always
        ]

    def _supported(self) -> bytes:
        offers = [b"PacketSize=%x" % self._packet, b"qXfer:features:read+"]
        offers += [] if self._plain else [b"qXfer:memory-map:read+"]
        return b";".join(offers + ([b"QStartNoAckMode+"] if self._silent else []))

    def _stop_acks(self) -> bytes:
        self._acks = False
        return b"OK"

    def _tell_target(self, at: bytes, size: bytes) -> bytes:
        return _part(_TARGET, at, size)

    def _tell_map(self, at: bytes, size: bytes) -> bytes:
        flash = b"".join(
            b'<memory type="flash" start="%#x" length="%#x"><property name="blocksize">%#x</property></memory>\n'
            % (self._base + region.start, region.length, region.sector)
            for region in self.flash.geometry.regions
        )
        ram = b'<memory type="ram" start="%#x" length="%#x"/>' % (_RAM.start, _RAM.length)
        return _part(b"<memory-map>\n%b%b</memory-map>" % (flash, ram), at, size)

    def _read_registers(self) -> bytes:
        return b"".join(value.to_bytes(4, "little").hex().encode() for value in self._registers)

    def _read_register(self, number: bytes) -> bytes:
        index = int(number, 16)
        return self._registers[index].to_bytes(4, "little").hex().encode() if index < _REGISTERS else b"E01"

    def _write_register(self, number: bytes, value: bytes) -> bytes:
        if int(number, 16) >= _REGISTERS:
            return b"E01"
        self._registers[int(number, 16)] = int.from_bytes(bytes.fromhex(value.decode()), "little")
        return b"OK"

    def _read(self, address: int, size: int) -> bytes:
        if _RAM.start <= address and address + size <= _RAM.end:
            return bytes(self._ram[address - _RAM.start : address - _RAM.start + size])
        return self.flash.peek(address - self._base, size)

    def _read_digits(self, address: bytes, size: bytes) -> bytes:
        return self._read(int(address, 16), int(size, 16)).hex().encode()

    def _write_digits(self, address: bytes, size: bytes, digits: bytes) -> bytes:
        return self._write(address, size, bytes.fromhex(digits.decode()))

    def _write(self, address: bytes, size: bytes, data: bytes) -> bytes:
        at = int(address, 16)
        if len(data) != int(size, 16):
            return b"E16"
        if not data:
            return b"OK"
        if _RAM.start <= at and at + len(data) <= _RAM.end:
            self._ram[at - _RAM.start : at - _RAM.start + len(data)] = data
        elif self._plain:
            self.flash.poke(at - self._base, data)
        else:
            return b"E0e"
        return b"OK"

    def _crc(self, address: bytes, size: bytes) -> bytes:
        found = checksum("crc-32-mpeg")
        found.update(self._read(int(address, 16), int(size, 16)))
        return b"C%x" % found.value

    def _erase(self, address: bytes, length: bytes) -> bytes:
        start = int(address, 16) - self._base
        end = start + int(length, 16)
        sectors = [sector for sector in self.flash.geometry.sectors if start <= sector.start < end]
        if not sectors or sectors[0].start != start or sectors[-1].end != end:
            return b"E.not whole sectors"
        for sector in sectors:
            self.flash.erase_now(sector)
        return b"OK"

    def _collect(self, address: bytes, data: bytes) -> bytes:
        start = int(address, 16) - self._base
        self.flash.peek(start, len(data))  # whether it is there
        self._waiting.update(zip(range(start, start + len(data)), data, strict=True))
        return b"OK"

    def _carry_out(self) -> bytes:
        waiting, self._waiting = self._waiting, {}
        self.crashes += not waiting
        geometry = self.flash.geometry
        unit, erased = geometry.program_unit, geometry.blank(geometry.program_unit)
        starts = sorted({offset // unit * unit for offset in waiting})
        pieces: list[tuple[int, bytearray]] = []
        for start in starts:
            data = bytes(waiting.get(start + index, erased[index]) for index in range(unit))
            if pieces and pieces[-1][0] + len(pieces[-1][1]) == start:
                pieces[-1][1].extend(data)
            else:
                pieces.append((start, bytearray(data)))
        for start, piece in pieces:
            self.flash.program_now(start, piece)
        return b"OK"

    def _monitor(self, digits: bytes) -> bytes:
        command = bytes.fromhex(digits.decode())
        if command not in {b"reset", b"system_reset", b"reset halt"}:
            self._say(b"O" + b"what is that?\n".hex().encode())
            return b"E01"
        self.resets += 1
        self._say(b"O" + b"the chip ".hex().encode())
        self._say(b"O" + b"was reset\n".hex().encode())
        return b"OK"

    def _detach(self) -> bytes:
        self._say(b"OK")
        return self._continue()

    def _continue(self) -> bytes:
        self.running = True
        return b""  # which is not said


def _part(document: bytes, at: bytes, size: bytes) -> bytes:
    start, length = int(at, 16), int(size, 16)
    piece = document[start : start + length]
    return (b"m" if start + length < len(document) else b"l") + escape(piece)


def _compressed(payload: bytes) -> bytes:
    """With runs of up to 97 more of the same byte; counts that would be "#" and "$" are one or two shorter."""

    def short(found: re.Match[bytes]) -> bytes:
        out, left = b"", len(found[0])
        while left:
            more = min(left - 1, 97)
            while more + 29 in {0x23, 0x24, 0x2B, 0x2D}:
                more -= 1
            out += found[0][:1] + (b"*" + bytes([more + 29]) if more >= 3 else found[0][:1] * more)
            left -= more + 1
        return out

    return re.sub(rb"(?<!\})([^}])\1{3,}", short, payload, flags=re.DOTALL)
