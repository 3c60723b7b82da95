"""The boot ROM of the STM32 on its USART, as ST's application note AN3155 has it.

    0x7F ──► ACK                                                  the ROM measures the speed, and listens
    command, its complement ──► ACK ──► address, XOR ──► ACK …    each part is acknowledged by itself

Rules:
- every part has its check: a complement, or an XOR over its bytes; the ROM answers ACK (0x79) or NACK (0x1F);
- after a NACK the ROM waits for the next command, so that the talk ends there; after silence nobody knows what it waits
  for, and it has to be found again (`find`);
- anything else than ACK and NACK is not a boot ROM.

Numbers are those of AN3155 (revision 14), sections 3.1 to 3.11. Eight data bits, even parity, one stop bit.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from mgota.core.talk import Send, Talk, Want
from mgota.errors import ConfigError, LinkError, NoAnswerError, RefusedError

ACK: Final = 0x79
NACK: Final = 0x1F
SYNC: Final = 0x7F

GET: Final = 0x00
GET_VERSION: Final = 0x01
GET_ID: Final = 0x02
READ: Final = 0x11
GO: Final = 0x21
WRITE: Final = 0x31
ERASE: Final = 0x43
EXTENDED_ERASE: Final = 0x44

MAX_DATA: Final = 256
"""Bytes of one read or write."""

ALIGNMENT: Final = 4
"""A write begins and ends at multiples of so many bytes."""

MAX_SECTORS: Final = 64
"""Sectors that are erased by one command here; the protocol has room for more."""

SHORT: Final = 1.0
"""Seconds that the ROM has to answer what takes it no time."""

FOUND: Final = 0.2
"""Seconds that it has to answer while it is looked for."""

SINGLE_CALLS: Final = 3
BURST: Final = 512
"""Calls that are made at once to a ROM which waits for something."""

SECTOR_TIME: Final = 6.0
"""Seconds for the erase of one sector: an STM32F4 takes up to 4 s for 128 KiB at 32-bit parallelism, more at 8 bit."""

_NAMES: Final = {
    GET: "tell its commands",
    GET_ID: "tell its id",
    READ: "read",
    GO: "start the program",
    WRITE: "program",
    ERASE: "erase",
    EXTENDED_ERASE: "erase",
}


def checked(data: bytes) -> bytes:
    """Bytes with the XOR of all of them behind."""
    check = 0
    for byte in data:
        check ^= byte
    return data + bytes([check])


def _acknowledged(what: str, timeout: float = SHORT) -> Talk[None]:
    (answer,) = yield Want(1, timeout)
    if answer == NACK:
        raise RefusedError(f"the boot ROM refused to {what}: is the chip read or write protected?")
    if answer != ACK:
        raise LinkError(f"what answers is no boot ROM of an STM32: {answer:#04x} in the place of ACK")


def _command(code: int) -> Talk[None]:
    yield Send(bytes([code, code ^ 0xFF]))
    yield from _acknowledged(_NAMES[code])


def _address(code: int, address: int) -> Talk[None]:
    yield Send(checked(address.to_bytes(4, "big")))
    yield from _acknowledged(f"{_NAMES[code]} at {address:#x}")


def find(bursts: int = 2) -> Talk[None]:
    """Find the ROM: out of reset, already listening, or somewhere in a command that broke off.

    One that waits for the data of a write takes up to 257 calls for it, and one that waits for the numbers of sectors
    up to 65,283; both refuse them then, because their check is wrong.

    Args:
        bursts: of `BURST` calls each, if it does not answer to single ones: 2 end a write, 128 an erase. The last kind
            of search takes a minute; a reset takes less.

    Raises:
        NoAnswerError: nothing answers.
        LinkError: something else answers.
    """
    for burst in range(bursts + 1):
        if burst:
            yield Send(bytes([SYNC]) * BURST)
            yield from _silence()
        for _ in range(SINGLE_CALLS):
            yield Send(bytes([SYNC]))
            try:
                (answer,) = yield Want(1, FOUND)
            except NoAnswerError:
                continue  # it took the call for a part of something
            if answer in {ACK, NACK}:
                return
            raise LinkError(f"what answers is no boot ROM of an STM32: {answer:#04x} in the place of ACK")
    raise NoAnswerError("the boot ROM does not answer: is BOOT0 high, was the chip reset, is parity even?")


def _silence() -> Talk[None]:
    """Wait until nothing more is said."""
    for _ in range(BURST):
        try:
            yield Want(1, FOUND)
        except NoAnswerError:
            return
    raise LinkError("the link is never quiet: what answers is no boot ROM of an STM32")


def commands() -> Talk[frozenset[int]]:
    """The commands that this ROM knows."""
    yield from _command(GET)
    (count,) = yield Want(1, SHORT)
    found = yield Want(count + 1, SHORT)
    yield from _acknowledged(_NAMES[GET])
    return frozenset(found[1:])


def chip_id() -> Talk[int]:
    """The product id: the DEV_ID of the chip's DBGMCU, 12 bits."""
    yield from _command(GET_ID)
    (count,) = yield Want(1, SHORT)
    found = yield Want(count + 1, SHORT)
    yield from _acknowledged(_NAMES[GET_ID])
    return int.from_bytes(found, "big")


def read(address: int, size: int) -> Talk[bytes]:
    """Read memory.

    Args:
        address: of the first byte.
        size: bytes, 1 to `MAX_DATA`.
    """
    _expect(1 <= size <= MAX_DATA, f"{size} bytes are not read at once")
    yield from _command(READ)
    yield from _address(READ, address)
    yield Send(bytes([size - 1, size - 1 ^ 0xFF]))
    yield from _acknowledged(f"read at {address:#x}")
    return (yield Want(size, SHORT))


def write(address: int, data: bytes) -> Talk[None]:
    """Write memory that is erased.

    Args:
        address: of the first byte, a multiple of `ALIGNMENT`.
        data: 1 to `MAX_DATA` bytes, a multiple of `ALIGNMENT`.
    """
    _expect(0 < len(data) <= MAX_DATA, f"{len(data)} bytes are not written at once")
    _expect(not (address % ALIGNMENT or len(data) % ALIGNMENT), f"a write is aligned to {ALIGNMENT} bytes")
    yield from _command(WRITE)
    yield from _address(WRITE, address)
    yield Send(checked(bytes([len(data) - 1]) + data))
    yield from _acknowledged(f"program at {address:#x}")


def erase(sectors: Sequence[int], *, extended: bool = True) -> Talk[None]:
    """Erase sectors.

    Args:
        sectors: their numbers, at most `MAX_SECTORS`.
        extended: by the command that newer ROMs have in the place of the older one.
    """
    _expect(0 < len(sectors) <= MAX_SECTORS, f"{len(sectors)} sectors are not erased at once")
    size, code, end = (2, EXTENDED_ERASE, 0xFFF0) if extended else (1, ERASE, 0xF0)
    _expect(all(0 <= sector < end for sector in sectors), "there are no such sectors")  # numbers above mean all of them
    yield from _command(code)
    yield Send(checked(_numbers([len(sectors) - 1, *sectors], size)))
    yield from _acknowledged("erase", SHORT + SECTOR_TIME * len(sectors))


def _numbers(numbers: Iterable[int], size: int) -> bytes:
    return b"".join(number.to_bytes(size, "big") for number in numbers)


def go(address: int) -> Talk[None]:
    """Start a program by the vector table at this address; the ROM is gone then."""
    yield from _command(GO)
    yield from _address(GO, address)


def _expect(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)
