"""NXP's boot loader on a UART ("mboot": MCUBOOT, KBOOT, blhost's protocol), in packets.

    5A A6 ──► 5A A7, version, CRC                        ping: the loader measures the speed, and listens
    command packet ──► ACK, response packet ──► ACK      5A A4: tag, flags, 0, count of words, words
       … data packets, each with its ACK, and a second response

Rules:
- a packet is 5A, kind, length, CRC, content; the CRC (crcmod's "xmodem") is over all of it but itself; every number is
  little-endian;
- a packet that comes damaged is answered NAK, and comes again; so are ours;
- the receiver of data may answer ABORT in the place of an ACK, their sender may send an empty packet: then the second
  response says why;
- a response with another status than 0 is a refusal, and the talk ends in it: `RefusedError`. After silence nobody
  knows what the loader waits for, and it has to be found again (`find`).

After NXP's published sources of it and of its clients (SPSDK, `blhost`), and the examples in NXP's manual of KBOOT.
Eight data bits, no parity, one stop bit.
"""

import struct
from typing import Final

from mgota.core.checksum import checksum_function
from mgota.core.talk import Send, Talk, Want
from mgota.errors import ConfigError, LinkError, NoAnswerError, RefusedError

START: Final = 0x5A
ACK: Final = 0xA1
NAK: Final = 0xA2
ABORT: Final = 0xA3
COMMAND: Final = 0xA4
DATA: Final = 0xA5
PING: Final = 0xA6
PONG: Final = 0xA7

ERASE: Final = 0x02
READ: Final = 0x03
WRITE: Final = 0x04
FILL: Final = 0x05
GET_PROPERTY: Final = 0x07
RESET: Final = 0x0B
CONFIGURE: Final = 0x11

GENERIC: Final = 0xA0
"""Tag of a response that tells a status and a command. A response of a command's own has this and the command's tag."""

VERSION: Final = 0x01
PACKET_SIZE: Final = 0x0B
"""Properties."""

HEAD: Final = struct.Struct("<HH")
"""Length and CRC, behind the start byte and the kind."""

WORD: Final = 4
MAX_PACKET: Final = 4096
"""Bytes of content that are believed. Loaders have 32 to 1,024."""

SMALLEST: Final = 32
"""Bytes of content that every loader takes."""

RESENDS: Final = 3
"""How often a packet is sent again that came damaged, at either end."""

SHORT: Final = 1.0
"""Seconds that the loader has to answer what takes it no time."""

FOUND: Final = 0.2
"""Seconds that it has to answer while it is looked for."""

PROGRAM_TIME: Final = 5.0
"""Seconds to program what one packet carries."""

SECTOR_TIME: Final = 6.0
"""Seconds for the erase of one sector: the HyperFlash of an RT1050 takes up to 2.9 s for 256 KiB."""

CONFIGURE_TIME: Final = 5.0
"""Seconds to get to know a serial flash memory."""

PINGS: Final = 3
FILLER: Final = 1100
"""Zeros that end a packet which broke off, in a loader that waits for the rest of it; ROMs wait 10 ms a byte."""

_CRC: Final = checksum_function("xmodem")

_NAMES: Final = {
    ERASE: "erase",
    READ: "read",
    WRITE: "program",
    FILL: "fill",
    GET_PROPERTY: "tell a property",
    RESET: "reset",
    CONFIGURE: "configure the memory",
}

STATUS: Final = {
    1: "it failed",
    3: "out of range",
    4: "an argument that it does not know",
    101: "not aligned to what the flash memory erases or programs",
    102: "an address outside of the flash memory",
    104: "the area is protected",
    105: "the flash memory failed",
    405: "the flash memory is not configured",
    10000: "it does not know this command",
    10001: "the chip is secured",
    10002: "the data broke off",
    10200: "no such memory",
    10202: "the memory could not be written",
    10203: "the memory is not erased",
    10205: "the memory is not configured",
    10206: "not aligned to what the memory erases or programs",
    10208: "the memory is write protected",
    10300: "it has no such property",
    20100: "the flash memory could not be found out about",
    20107: "the flash memory could not be found out about",
}
"""What loaders answer in the place of success, as far as somebody may meet it here."""


def packet(kind: int, content: bytes) -> bytes:
    """A packet of data or with a command."""
    head = bytes([START, kind]) + len(content).to_bytes(2, "little")
    return head + _CRC(head + content).to_bytes(2, "little") + content


def sync(kind: int) -> bytes:
    """A packet that is nothing but its kind: ACK, NAK, ABORT, PING."""
    return bytes([START, kind])


def pong(version: bytes = b"\0\3\1P") -> bytes:
    """The answer to a ping.

    Args:
        version: of the protocol: bugfix, minor, major, name.
    """
    told = sync(PONG) + version + bytes(2)
    return told + _CRC(told).to_bytes(2, "little")


def words(tag: int, *values: int, data: bool = False) -> bytes:
    """The content of a packet with a command or a response.

    Args:
        tag: which one.
        values: words of 32 bits.
        data: whether packets of data belong to it.
    """
    return struct.pack(f"<4B{len(values)}I", tag, data, 0, len(values), *values)


def parse_words(content: bytes) -> tuple[int, tuple[int, ...]]:
    """The tag and the words of a command or a response; what stands behind them is dropped.

    Raises:
        LinkError: it is none.
    """
    count = content[3] if len(content) >= WORD else 0
    if len(content) < WORD * (1 + count) or not content:
        raise LinkError("what answers is no boot loader of NXP: a response that is too short")
    return content[0], struct.unpack_from(f"<{count}I", content, WORD)


def find(bursts: int = 1) -> Talk[bytes]:
    """Find the loader: out of reset, already listening, or somewhere in a command that broke off.

    Args:
        bursts: of `FILLER` zeros, if it does not answer to pings alone.

    Returns:
        The version of its protocol: bugfix, minor, major, name ("P").

    Raises:
        NoAnswerError: nothing answers.
        LinkError: something else answers.
    """
    for burst in range(bursts + 1):
        if burst:
            yield Send(bytes(FILLER))
        for _ in range(PINGS):
            yield Send(sync(PING))
            try:
                version = yield from _ponged()
            except NoAnswerError:
                continue  # it took the ping for a part of something
            if version:
                return version
    raise NoAnswerError(
        "NXP's boot loader does not answer: is the chip in ISP mode, was it reset, does an i.MX RT's flashloader run?"
    )


def _ponged() -> Talk[bytes]:
    """The version in the answer to a ping; nothing if that is damaged."""
    while (yield from _kind(FOUND, ponged=True)) != PONG:
        pass  # the end of what broke off
    told = yield Want(8, FOUND)
    return told[:4] if _CRC(sync(PONG) + told[:6]) == int.from_bytes(told[6:], "little") else b""


def _kind(timeout: float, *, ponged: bool = False) -> Talk[int]:
    """The kind of the next packet; what stands before its start is noise, and so is the answer to a ping before."""
    started = False
    for _ in range(MAX_PACKET):
        (byte,) = yield Want(1, SHORT if started else timeout)
        if byte == START:
            started = True
        elif started and byte in range(ACK, PONG + 1) and (ponged or byte != PONG):
            return byte
        else:
            started = False
    raise LinkError("what answers is no boot loader of NXP: nothing but noise")


def _sent(data: bytes, timeout: float) -> Talk[bool]:
    """Send a packet.

    Returns:
        Whether the loader took it; else it wants no more of them.
    """
    for _ in range(1 + RESENDS):
        yield Send(data)
        kind = yield from _kind(timeout)
        if kind in {ACK, ABORT}:
            return kind == ACK
        if kind != NAK:
            raise LinkError(f"the boot loader speaks out of turn: {kind:#04x} in the place of ACK")
    raise LinkError("the boot loader received a packet damaged, again and again")


def _received(timeout: float) -> Talk[tuple[int, bytes]]:
    """The kind and the content of the loader's next packet."""
    for _ in range(1 + RESENDS):
        kind = yield from _kind(timeout)
        if kind not in {COMMAND, DATA}:
            raise LinkError(f"the boot loader speaks out of turn: {kind:#04x} in the place of a packet")
        head = yield Want(HEAD.size, SHORT)
        size, check = HEAD.unpack(head)
        if size > MAX_PACKET:
            raise LinkError(f"what answers is no boot loader of NXP: a packet of {size} bytes")
        content = (yield Want(size, SHORT)) if size else b""
        if _CRC(sync(kind) + head[:2] + content) == check:
            yield Send(sync(ACK))
            return kind, content
        yield Send(sync(NAK))
    raise LinkError("a packet of the boot loader came damaged, again and again")


def _results(command: int, content: bytes) -> tuple[int, ...]:
    """What a response tells behind its status."""
    tag, values = parse_words(content)
    if tag not in {GENERIC, GENERIC | command} or not values:
        raise LinkError(f"the boot loader answered something else: {tag:#04x} to {command:#04x}")
    if values[0]:
        why = STATUS.get(values[0], "it tells no more")
        raise RefusedError(f"NXP's boot loader refused to {_NAMES[command]}: {why} (status {values[0]})")
    return values[1:]


def _response(command: int, timeout: float) -> Talk[tuple[int, ...]]:
    kind, content = yield from _received(timeout)
    if kind != COMMAND:
        raise LinkError("the boot loader speaks out of turn: data in the place of a response")
    return _results(command, content)


def _command(command: int, *values: int, data: bool = False, timeout: float = SHORT) -> Talk[tuple[int, ...]]:
    """Give a command, and hear its response."""
    if not (yield from _sent(packet(COMMAND, words(command, *values, data=data)), SHORT)):
        raise LinkError("the boot loader speaks out of turn: it wants no data")
    return (yield from _response(command, timeout))


def get_property(number: int, memory: int = 0) -> Talk[tuple[int, ...]]:
    """The values of a property."""
    return (yield from _command(GET_PROPERTY, number, memory))


def erase(address: int, size: int, memory: int = 0, *, sectors: int = 1) -> Talk[None]:
    """Erase whole sectors.

    Args:
        address: of the first byte.
        size: bytes.
        memory: id of the memory: 0 is the chip's own, 9 a serial flash on its FlexSPI.
        sectors: how many they are, for how long it may take.
    """
    yield from _command(ERASE, address, size, memory, timeout=SHORT + SECTOR_TIME * sectors)


def read(address: int, size: int, memory: int = 0) -> Talk[bytes]:
    """Read memory, at least one byte."""
    _expect(size > 0, "there is nothing to read")
    yield from _command(READ, address, size, memory)
    found, ended = b"", False
    for _ in range(size + 2):
        kind, content = yield from _received(SHORT)
        if kind == COMMAND:
            _read_whole(content, ended=ended)
            break
        ended = not content
        found += content
    if len(found) != size:
        raise LinkError(f"the boot loader sent {len(found)} bytes in the place of {size}")
    return found


def _read_whole(response: bytes, *, ended: bool) -> None:
    """The second response to a read. If it refuses without an empty packet before, the wire made something of an ACK.

    Raises:
        RefusedError: the loader cannot read this.
        LinkError: it may be read again.
    """
    try:
        _results(READ, response)
    except RefusedError as exc:
        if ended:
            raise
        raise LinkError(f"a read broke off: {exc}") from exc


def write(address: int, data: bytes, memory: int = 0, *, size: int = SMALLEST) -> Talk[None]:
    """Write memory that is erased.

    Args:
        address: of the first byte, a multiple of the program unit.
        data: whole units; loaders fill up the last one with 0xFF.
        memory: see `erase`.
        size: bytes in one packet.
    """
    _expect(bool(data), "there is nothing to write")
    yield from _command(WRITE, address, len(data), memory, data=True)
    wanted = True
    for at in range(0, len(data), size):
        wanted = yield from _sent(packet(DATA, data[at : at + size]), PROGRAM_TIME)
        if not wanted:
            break
    yield from _response(WRITE, PROGRAM_TIME)
    if not wanted:
        raise LinkError("the boot loader wanted no more data, and says that it has all of them")


def fill(address: int, size: int, pattern: int) -> Talk[None]:
    """Fill memory with a word."""
    yield from _command(FILL, address, size, pattern)


def configure(memory: int, address: int) -> Talk[None]:
    """Have the loader get to know a memory outside of the chip.

    Args:
        memory: its id.
        address: of the words that describe it, in RAM.
    """
    yield from _command(CONFIGURE, memory, address, timeout=CONFIGURE_TIME)


def reset() -> Talk[None]:
    """Reset the chip. That it took the command is enough: the response may be lost in the reset."""
    if not (yield from _sent(packet(COMMAND, words(RESET)), SHORT)):
        raise LinkError("the boot loader speaks out of turn: it wants no data")
    try:
        yield from _response(RESET, SHORT)
    except NoAnswerError:
        return


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
