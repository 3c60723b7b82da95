r"""The environment of U-Boot: its bytes, which of two copies counts, and where `/etc/fw_env.config` says they lie.

    CRC-32, little-endian │ flags, of redundant ones only │ name=value\0 name=value\0 \0 │ padding, 00 or FF

Rules:
- the CRC covers everything behind itself and the flags, padding included;
- of two good copies the one with the higher flags counts, and 0 is higher than 255; of equal ones the first does;
- a copy whose CRC does not fit is none. With no copy left there is no environment, and nothing is written: U-Boot runs
  on its built-in one then, and a nearly empty one in its place would stop the board;
- what is not changed stays byte for byte, in its order; a new variable goes where U-Boot, which sorts, would put it. So
  a change of a few short variables at the front stays within one sector of a disk.

Sources: U-Boot, env/common.c (`env_check_redund`, `env_import_redund`), lib/hashtable.c (`himport_r`, `hexport_r`),
tools/env/fw_env.config; libubootenv.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from mgota.errors import ConfigError, FlashError

CRC = 4
"""Bytes of the checksum."""

ACTIVE, OBSOLETE = b"\x01", b"\x00"
"""Flags of copies on NOR flash, where the old one is marked by programming its flags to 0."""

MIN_SIZE = 16
MAX_SIZE = 1 << 20
"""Bytes of the smallest and of the largest copy that is believed to be one."""

_NAME = re.compile(r"[^=\0]+")


@dataclass(frozen=True, slots=True)
class Environment:
    """The variables of one copy.

    Args:
        entries: `name=value`, in their order; an entry without `=` is kept, and means nothing.
        padding: the byte that fills the rest: 0 or 255.
    """

    entries: tuple[bytes, ...] = ()
    padding: int = 0

    @property
    def variables(self) -> dict[str, str]:
        """All of them; the last one counts where a name comes twice. Bytes that are no UTF-8 are surrogates."""
        pairs = (entry.partition(b"=") for entry in self.entries)
        return {_text(name): _text(value) for name, equals, value in pairs if name and equals}

    def changed(self, changes: Mapping[str, str | None]) -> "Environment":
        """The environment with some variables set, or removed where the value is None.

        Raises:
            ConfigError: a name or a value cannot stand in an environment.
        """
        for name, value in changes.items():
            if not _NAME.fullmatch(name) or "\0" in (value or ""):
                raise ConfigError(f"{name!r} cannot be a variable of U-Boot's environment, or {value!r} its value")
        entries = list(self.entries)
        for name, value in changes.items():
            places = [index for index, entry in enumerate(entries) if entry.startswith(_bytes(name) + b"=")]
            for index in reversed(places[1:] if value is not None else places):
                del entries[index]
            if value is not None:
                entry = _bytes(name) + b"=" + _bytes(value)
                if places:
                    entries[places[0]] = entry
                else:
                    entries.insert(_place_of(_bytes(name), entries), entry)
        return Environment(tuple(entries), self.padding)


def _place_of(name: bytes, entries: Sequence[bytes]) -> int:
    """Before the first variable whose name comes later."""
    return next((index for index, other in enumerate(entries) if other.partition(b"=")[0] > name), len(entries))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Copy:
    """What one of the places holds.

    Args:
        environment: its variables.
        flags: of a redundant one; 0 of a single one.
    """

    environment: Environment
    flags: int = 0


def encode_copy(environment: Environment, size: int, *, flags: int | None = None) -> bytes:
    """The bytes of a copy.

    Args:
        environment: its variables.
        size: bytes of the copy.
        flags: of a redundant one; None for a single one.

    Raises:
        FlashError: the variables do not fit.
    """
    head = b"" if flags is None else bytes([flags])
    data = b"".join(entry + b"\0" for entry in environment.entries) or b"\0"
    data += b"\0"
    room = size - CRC - len(head)
    if len(data) > room:
        raise FlashError(f"U-Boot's environment is full: {len(data)} bytes do not fit the {room} of it")
    data += bytes([environment.padding]) * (room - len(data))
    return crc32(data).to_bytes(CRC, "little") + head + data


def decode_copy(data: bytes, *, redundant: bool) -> Copy | None:
    """What one of the places holds; None if that is no environment.

    Args:
        data: all bytes of the place.
        redundant: there are two of them, and so there are flags.
    """
    start = CRC + redundant
    if not MIN_SIZE <= len(data) <= MAX_SIZE or crc32(data[start:]) != int.from_bytes(data[:CRC], "little"):
        return None
    end = data.find(b"\0\0", start)
    pieces = data[start : len(data) if end < 0 else end + 1].split(b"\0")
    if b"" not in pieces:
        return None  # its last variable does not end
    entries = tuple(pieces[: pieces.index(b"")])
    return Copy(Environment(entries, 0xFF if data[-1] == 0xFF else 0), data[CRC] if redundant else 0)


def choose(copies: Sequence[Copy | None]) -> int | None:
    """Index of the copy that counts; None if none is good."""
    good = [index for index, copy in enumerate(copies) if copy]
    if len(good) < 2:
        return good[0] if good else None
    one, two = (copy.flags for copy in copies if copy)
    if (one, two) in ((0, 255), (255, 0)):
        return 0 if one == 0 else 1
    return 1 if two > one else 0


def next_flags(flags: int) -> int:
    """The flags of the copy that follows one with `flags`."""
    return (flags + 1) & 0xFF


@dataclass(frozen=True, slots=True)
class EnvPlace:
    """A line of `/etc/fw_env.config`.

    Args:
        device: a file, a block device, or the character device of an MTD partition.
        offset: first byte; negative counts from the device's end.
        size: bytes of the environment, head included.
        sector: bytes of a sector of flash memory; 0 where the line does not say.
    """

    device: str
    offset: int
    size: int
    sector: int = 0


def parse_config(text: str) -> tuple[EnvPlace, ...]:
    """The places that a configuration names: one, or two for a redundant environment.

    Raises:
        ConfigError: a line cannot be understood, there are not one or two, or they contradict each other.
    """
    places = tuple(
        _parse_line(fields, number)
        for number, line in enumerate(text.splitlines(), 1)
        if (fields := line.partition("#")[0].split())
    )
    if len(places) not in (1, 2):
        raise ConfigError(f"fw_env.config names {len(places)} places for the environment: it has to be one or two")
    one, two = places[0], places[-1]
    if len(places) > 1:
        if one.size != two.size:
            raise ConfigError("fw_env.config: both copies of the environment must have one size")
        if one.device == two.device and abs(one.offset - two.offset) < one.size:
            raise ConfigError("fw_env.config: the two copies of the environment overlap")
    return places


def _parse_line(fields: Sequence[str], number: int) -> EnvPlace:
    if not 3 <= len(fields) <= 6 or not fields[0].startswith("/"):
        raise ConfigError(f"fw_env.config, line {number}: it has to be a device, an offset and a size")
    try:
        # Offsets as C reads them, 0x for hexadecimal and 0 for octal; sizes are hexadecimal with or without it.
        sign, digits = fields[1].startswith("-"), fields[1].lstrip("-")
        offset = int(digits, 8 if re.fullmatch("0[0-7]+", digits) else 0)
        size, sector = int(fields[2], 16), int(fields[3], 16) if len(fields) > 3 else 0
    except ValueError as exc:
        raise ConfigError(f"fw_env.config, line {number}: an offset or a size is no number") from exc
    if not MIN_SIZE <= size <= MAX_SIZE or sector < 0:
        raise ConfigError(f"fw_env.config, line {number}: no environment has {size:#x} bytes")
    return EnvPlace(fields[0], -offset if sign else offset, size, sector)
