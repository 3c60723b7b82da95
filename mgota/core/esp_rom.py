"""The serial boot ROM of the ESP32 family, as Espressif's serial protocol documentation has it.

    00 command size16 check32 data ──►                     in a SLIP frame each
                      ◄── 01 command size16 value32 data status error 00 00

Rules:
- only the data of FLASH_DATA has a check (an XOR that begins with 0xEF); whoever needs to be sure asks for the MD5;
- what answers another command came late, and is skipped; after `find` all that came late is behind;
- a refusal ends a talk there, and the ROM waits for the next command.

Only the ROM is spoken to: no program is loaded into the chip's RAM (esptool calls that `--no-stub`).
Written from what is commonly known of Espressif's "Serial Protocol"; `esptool --no-stub` proves what it uses of it
on an ESP32.
"""

import binascii
import struct
from dataclasses import dataclass
from typing import Final

from mgota.core import slip
from mgota.core.esp_image import CHIPS
from mgota.core.talk import Send, Talk, Want
from mgota.errors import ConfigError, LinkError, NoAnswerError, RefusedError

FLASH_BEGIN: Final = 0x02
FLASH_DATA: Final = 0x03
FLASH_END: Final = 0x04
SYNC: Final = 0x08
WRITE_REG: Final = 0x09
READ_REG: Final = 0x0A
SPI_SET_PARAMS: Final = 0x0B
SPI_ATTACH: Final = 0x0D
READ_FLASH_SLOW: Final = 0x0E
CHANGE_BAUD: Final = 0x0F
SPI_FLASH_MD5: Final = 0x13
GET_SECURITY_INFO: Final = 0x14

REQUEST: Final = struct.Struct("<BBHI")
"""Direction, command, size of the data, check; of an answer the last is a value."""

CALL: Final = b"\x07\x07\x12\x20" + b"\x55" * 32
"""What SYNC carries."""

BLOCK: Final = 1024
"""Bytes that FLASH_DATA programs at once."""

MAX_READ: Final = 64
"""Bytes of one READ_FLASH_SLOW, which always answers with so many."""

ALIGNMENT: Final = 4
"""Flash is programmed in whole words."""

STATUS: Final = 4
"""Bytes at the end of each answer: status, error, two that mean nothing."""

MAGIC_REGISTER: Final = 0x40001000
MAGIC: Final = {0x00F01D83: 0, 0x000007C6: 2}
"""What the register holds in the two chips whose ROM does not tell its id: the id (see `esp_image.CHIPS`)."""

SHORT: Final = 1.0
FOUND: Final = 0.2
CALLS: Final = 8
"""How often a ROM is called: the first call may end a command that broke off."""

SECTOR_TIME: Final = 1.0
"""Seconds for the erase of a sector of 4 KiB: an estimate, several times what is typical of serial flash."""

MD5_TIME: Final = 8.0
"""Seconds that the ROM has for the MD5 of one MiB."""

MAX_ANSWERS: Final = 100
"""Answers to other commands that are skipped."""

_ERRORS: Final = {
    0x05: "the message is not valid",
    0x06: "it failed to act on it",
    0x07: "the check is wrong",
    0x08: "flash could not be written",
    0x09: "flash could not be read",
    0x0A: "the length for a read is wrong",
    0x0B: "it failed to inflate",
    0x0C: "the checksum of what was inflated is wrong",
    0x0D: "the command is not there",
}

_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """What the ROM answered.

    Args:
        value: of a register.
        data: without the status.
    """

    value: int
    data: bytes


def check(data: bytes) -> int:
    """The check of what is programmed."""
    found = 0xEF
    for byte in data:
        found ^= byte
    return found


def request(command: int, data: bytes = b"", checked: int = 0) -> bytes:
    """A command as it goes over the wire."""
    return slip.frame(REQUEST.pack(0, command, len(data), checked) + data)


def _answer(command: int, timeout: float) -> Talk[Answer]:
    unframer = slip.Unframer()
    left = MAX_ANSWERS
    while left:
        (byte,) = yield Want(1, timeout)
        found = unframer.feed(byte)
        if found is None:
            continue
        left -= 1
        answer = _parse(found, command)
        if answer:
            return answer
    raise LinkError("the boot ROM answers to everything but what was asked")


def _parse(found: bytes, command: int) -> Answer | None:
    if len(found) < REQUEST.size:
        raise LinkError("what answers is no boot ROM of an ESP32: its answer is too short")
    direction, told, size, value = REQUEST.unpack_from(found)
    data = found[REQUEST.size :]
    if direction != 1 or size != len(data):
        raise LinkError("what answers is no boot ROM of an ESP32: its answer has no sense")
    if told != command:
        return None
    if len(data) < STATUS:
        raise LinkError("what answers is no boot ROM of an ESP32: its answer has no status")
    status, error = data[-STATUS], data[-STATUS + 1]
    if status:
        raise RefusedError(f"the boot ROM refused: {_ERRORS.get(error, f'error {error:#04x}')}")
    return Answer(value, data[:-STATUS])


def _ask(command: int, data: bytes = b"", *, checked: int = 0, timeout: float = SHORT, size: int = 0) -> Talk[Answer]:
    yield Send(request(command, data, checked))
    answer = yield from _answer(command, timeout)
    if len(answer.data) < size:
        raise LinkError(f"the boot ROM answered {len(answer.data)} bytes in the place of {size}")
    return answer


def find() -> Talk[None]:
    """Find the ROM: out of reset, already listening, or in the midst of a command that broke off.

    Raises:
        NoAnswerError: nothing answers.
        LinkError: something else answers.
    """
    last: LinkError = NoAnswerError("silence")
    for _ in range(CALLS):
        try:
            yield from _ask(SYNC, CALL, timeout=FOUND)
        except LinkError as exc:  # it took the call for a part of something, or still printed its log
            last = exc
        else:
            return
    if isinstance(last, NoAnswerError):
        raise NoAnswerError("the boot ROM does not answer to sync: is GPIO0 (GPIO9 of a C3) low, was the chip reset?")
    raise last


def read_register(address: int) -> Talk[int]:
    """The word at an address."""
    return (yield from _ask(READ_REG, struct.pack("<I", address))).value


def chip_id() -> Talk[int]:
    """Which chip it is: the id that images carry, a key of `esp_image.CHIPS`.

    Raises:
        LinkError: it is none that is known.
    """
    try:
        told = (yield from _ask(GET_SECURITY_INFO)).data
    except RefusedError:  # the ESP32 does not know the command
        told = b""
    if len(told) >= 16:
        found: int = struct.unpack_from("<I", told, 12)[0]
        if found not in CHIPS:
            raise LinkError(f"a chip with the id {found} is not known")
        return found
    magic = yield from read_register(MAGIC_REGISTER)
    if magic not in MAGIC:
        raise LinkError(f"a chip whose magic number is {magic:#010x} is not known")
    return MAGIC[magic]


def attach(size: int) -> Talk[None]:
    """Attach the flash memory at the default pins.

    Args:
        size: of it, bytes.
    """
    yield from _ask(SPI_ATTACH, bytes(8))
    yield from _ask(SPI_SET_PARAMS, struct.pack("<6I", 0, size, 64 << 10, 4 << 10, 256, 0xFFFF))


def begin(offset: int, blocks: int, block: int, *, erase: int = 0, words: int = 4) -> Talk[None]:
    """Erase, and say where the blocks to come go.

    Args:
        offset: of the first byte that is erased or programmed.
        blocks: how many come.
        block: bytes of each.
        erase: bytes to erase, whole sectors.
        words: of the request: 4 for the ESP32, 5 for those after it (the last says whether to encrypt).
    """
    data = struct.pack("<5I", erase, blocks, block, offset, 0)[: words * 4]
    yield from _ask(FLASH_BEGIN, data, timeout=SHORT + SECTOR_TIME * -(-erase // 4096))


def data(number: int, block: bytes) -> Talk[None]:
    """Program one block.

    Args:
        number: of the block since `begin`.
        block: its bytes, whole words, at most `BLOCK`.
    """
    if not 0 < len(block) <= BLOCK or len(block) % ALIGNMENT:
        raise ConfigError(f"{len(block)} bytes are not programmed at once")
    head = struct.pack("<4I", len(block), number, 0, 0)
    yield from _ask(FLASH_DATA, head + block, checked=check(block), timeout=SHORT * 3)


def end(*, reboot: bool) -> Talk[None]:
    """Leave the flash memory; with `reboot` the chip starts its program."""
    yield from _ask(FLASH_END, struct.pack("<I", not reboot))


def md5(offset: int, size: int) -> Talk[bytes]:
    """The MD5 of what is in flash memory, 16 bytes."""
    timeout = SHORT + MD5_TIME * -(-size // _MIB)
    answer = yield from _ask(SPI_FLASH_MD5, struct.pack("<4I", offset, size, 0, 0), timeout=timeout, size=32)
    try:
        return binascii.unhexlify(answer.data[:32])
    except ValueError as exc:
        raise LinkError("the boot ROM answered something else than an MD5") from exc


def read(offset: int, size: int) -> Talk[bytes]:
    """Read flash memory, slowly.

    Args:
        offset: of the first byte.
        size: bytes, at most `MAX_READ`.
    """
    if not 0 < size <= MAX_READ:
        raise ConfigError(f"{size} bytes are not read at once")
    return (yield from _ask(READ_FLASH_SLOW, struct.pack("<II", offset, size), size=size)).data[:size]


def change_baud(baud: int) -> Talk[None]:
    """Another speed: the answer comes with the old one."""
    yield from _ask(CHANGE_BAUD, struct.pack("<II", baud, 0))
