"""A small value that survives power cuts on raw NOR flash: a log in three sectors.

    sector 1   │ value 4 │ seal 4 │ value 5 │ value 6 │ value 7 │   full: the next value opens the oldest sector
    sector 2   │ value 7 │ seal 7 │ value 8 │ blank …
    sector 3   │ value 2 │ seal 2 │ value 3 │ value 4 │ …           the oldest

Rules:
- a unit is programmed once per erase, as flash with ECC demands, and what was programmed is read back;
- a sector begins with its first record and a second copy of it, the *seal*: sealed, it stands without its predecessor;
- `mount` writes what it read into a fresh sector before anybody acts on it. A record that was torn by a power cut may
  read well now and be gone later: this is the rule that naive journals miss;
- three sectors, because the one that is erased must be neither the newest nor the one before: two are not enough;
- epochs keep the remains of a torn erase from winning;
- a unit that cannot be read at all, as a torn one of flash with ECC, is a torn one if no record follows it;
- a sector that does not take a record is passed over as long as the newest one stands by itself.

SPEC.md describes the bits, and DESIGN.md why every cut recovers.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from zlib import crc32

from mgota.core.geometry import Geometry, Sector
from mgota.core.nor import Erase, Job, Program, Read
from mgota.errors import ConfigError, FlashError, ReadError, StateError, VerifyError

MAGIC = b"MGL1"
HEAD = struct.Struct("<4sIHBxI")
"""Magic, epoch, bytes of the value, kind, a zero byte, CRC-32 of the twelve bytes before and the value."""

SECTORS = 3

LAST_EPOCH = 0xFFFFFFFF
"""No record has it: a log that got there would begin to lose its newest value."""

ATTEMPTS = 3
"""How often a read may fail: what a link garbled once is not to count as torn."""

LONGEST = 0xFFFF
"""Bytes of a value that the head can say."""


class Kind(Enum):
    """What a log is for: one is never mistaken for the other."""

    SWAP = 1
    STATE = 2


def encode_entry(epoch: int, kind: Kind, value: bytes) -> bytes:
    """The bytes of a record, not padded yet."""
    head = HEAD.pack(MAGIC, epoch, len(value), kind.value, 0)[:-4]
    return head + crc32(head + value).to_bytes(4, "little") + value


def decode_entry(data: bytes, kind: Kind, at: int = 0) -> tuple[int, bytes] | None:
    """Epoch and value of the record at offset `at`, or None if none begins there."""
    start = at + HEAD.size
    if start > len(data):
        return None
    magic, epoch, length, found, crc = HEAD.unpack_from(data, at)
    if magic != MAGIC or found != kind.value or start + length > len(data):
        return None
    value = data[start : start + length]
    return (epoch, value) if crc == crc32(data[at : start - 4] + value) else None


@dataclass(frozen=True, slots=True)
class Scanned:
    """What a sector of a log says.

    Args:
        index: which of the three.
        epoch: of its first record.
        sealed: anything follows its first record.
        value: of its last valid record.
    """

    index: int
    epoch: int
    sealed: bool
    value: bytes


@dataclass(frozen=True, slots=True)
class _Content:
    """What was read of a sector.

    Args:
        data: all of it; in the place of units that cannot be read, what is not blank and no record.
        torn: offset of the first unit that cannot be read; the length if there is none.
    """

    data: bytes
    torn: int

    def behind(self, unit: int) -> range:
        """Offsets of the units behind the first one that cannot be read."""
        return range(self.torn + unit, len(self.data), unit)


class RecordLog:
    """A log of values in three sectors; only its newest value counts.

    Args:
        geometry: of the flash memory.
        sectors: three of its sectors, which hold nothing else.
        kind: what the log is for.

    Raises:
        ConfigError: these are not three sectors, or they are too small for any record.
    """

    def __init__(self, geometry: Geometry, sectors: tuple[Sector, ...], kind: Kind) -> None:
        if len(set(sectors)) != SECTORS or not set(sectors) <= set(geometry.sectors):
            raise ConfigError("a record log needs three sectors of its flash memory")
        self._geometry = geometry
        self._sectors = sectors
        self._kind = kind
        self._blank = geometry.blank(max(sector.length for sector in sectors))
        self._garbage = bytes(byte ^ 0xFF for byte in geometry.blank(geometry.program_unit))  # one unit
        self._order = list(range(SECTORS))  # newest first
        self._epoch = 0
        self._position = 0  # where the next record goes, in the newest sector
        if self.max_value < 1:
            raise ConfigError("the sectors of a record log must hold a record twice: these are too small")

    @property
    def max_value(self) -> int:
        """Bytes of the longest value: a sector must hold it twice."""
        half = min(sector.length for sector in self._sectors) // 2
        return min(half // self._geometry.program_unit * self._geometry.program_unit - HEAD.size, LONGEST)

    def mount(self) -> Job[bytes | None]:
        """The newest value, after it was written once more. To be called before anything else, at every boot.

        Returns by the generator's value None if there is none: the log is new, and the first `append` begins it.

        Raises:
            StateError: there is something in each of the sectors, but no value.
            FlashError: the memory failed.
        """
        self._order, self._epoch = [2, 1, 0], 0  # what was known before counts no more
        contents: list[_Content] = []
        for sector in self._sectors:
            contents.append((yield from self._read(sector)))  # noqa: PERF401  a comprehension cannot yield
        scanned = [found for index, content in enumerate(contents) if (found := self._scan(index, content.data))]
        self._check_readable(contents, max((found.epoch for found in scanned), default=0))
        used = sum(content.data != self._blank[: len(content.data)] for content in contents)
        if not scanned:
            if used == SECTORS:  # fewer: the very first record was torn, after a bad sector perhaps
                raise StateError("the record log is damaged: no sector of it begins with a valid record")
            return None
        scanned.sort(key=lambda found: found.epoch, reverse=True)
        source, order = self._choose(scanned)
        self._order, self._epoch = order, scanned[0].epoch
        yield from self._open(source.value)
        return source.value

    def append(self, value: bytes) -> Job[None]:
        """Make `value` the newest. When this ends, it is durable.

        Raises:
            StateError: it is too long.
            FlashError: the memory failed, and nobody knows which value is the newest.
        """
        data = self._padded(value)
        newest = self._sectors[self._order[0]]
        if self._epoch and self._position + len(data) <= newest.length and (yield from self._put(data)):
            return
        yield from self._open(value)  # full, or a bad unit

    def _read(self, sector: Sector) -> Job["_Content"]:
        """All of a sector, where some units of it may be unreadable.

        Raises:
            ReadError: nothing of it can be read, or only now and then: the fault is the link's, and proves nothing.
        """
        for _ in range(ATTEMPTS):
            try:
                return _Content((yield Read(sector.start, sector.length)), sector.length)
            except FlashError:
                continue
        units: dict[int, bytes | None] = {}
        for at in range(0, sector.length, self._geometry.program_unit):
            units[at] = yield from self._read_unit(sector.start + at)
        witness = _readable(sector, units)
        for at in [at for at, found in units.items() if not found]:
            units[at] = yield from self._read_again(sector.start + at, witness)
        return self._content(units)

    def _content(self, units: dict[int, bytes | None]) -> "_Content":
        data = b"".join(found or self._garbage for found in units.values())
        return _Content(data, min((at for at, found in units.items() if not found), default=len(data)))

    def _check_readable(self, contents: list["_Content"], newest: int) -> None:
        """What a cut made unreadable is the last record, or part of a sector that was being erased: the oldest.

        A record that was whole and cannot be read might matter: to go back to the one before it would undo what was
        done since.
        """
        for content in contents:
            entries = (self._entry(content.data, at) for at in content.behind(self._geometry.program_unit))
            if any(entry[0] >= newest for entry in entries if entry):
                raise ReadError("a sector of the record log cannot be read, and it may be the newest")

    def _read_unit(self, offset: int) -> Job[bytes | None]:
        try:
            return (yield Read(offset, self._geometry.program_unit))
        except FlashError:
            return None

    def _read_again(self, offset: int, witness: int) -> Job[bytes | None]:
        """A unit that could not be read; None if it still cannot, while another one can each time.

        Raises:
            ReadError: the other one cannot, either.
        """
        for _ in range(ATTEMPTS):
            found = yield from self._read_unit(offset)
            yield Read(witness, self._geometry.program_unit)
            if found:
                return found
        return None

    def _scan(self, index: int, data: bytes) -> Scanned | None:
        first = self._entry(data, 0)
        if first is None:
            return None
        epoch, value = first
        position = behind_first = self._room(len(value))
        while (entry := self._entry(data, position)) and entry[0] == epoch:
            value = entry[1]
            position += self._room(len(value))
        sealed = data[behind_first:] != self._blank[: len(data) - behind_first]
        return Scanned(index, epoch, sealed, value)

    def _entry(self, data: bytes, at: int) -> tuple[int, bytes] | None:
        """The record at an offset of a sector; one that no log can have written is none."""
        entry = decode_entry(data, self._kind, at)
        return entry if entry and entry[0] < LAST_EPOCH and len(entry[1]) <= self.max_value else None

    def _choose(self, scanned: list[Scanned]) -> tuple[Scanned, list[int]]:
        """Whose value counts, and the sectors from the newest to the one to open next, newest `scanned` first."""
        newest = scanned[0].index
        if not scanned[0].sealed and len(scanned) > 1:  # its predecessor still stands, and nothing else was touched
            source = scanned[1].index
            return scanned[1], [source, SECTORS - newest - source, newest]
        second = scanned[1].index if len(scanned) > 1 else (newest + 1) % SECTORS
        return scanned[0], [newest, second, SECTORS - newest - second]

    def _open(self, value: bytes) -> Job[None]:
        """Begin the oldest sector with `value`, and seal it; the one after it if that does not keep it."""
        self._padded(value)
        before = self._order
        for index in before[:0:-1]:
            self._epoch, self._position = self._epoch + 1, 0
            self._order = [index, *(other for other in self._order if other != index)]
            if (yield from self._begin(self._sectors[index], self._padded(value))):
                return
        self._order, self._position = before, self._sectors[before[0]].length  # the newest one stands, and is kept
        raise VerifyError("the record log's sectors do not keep a record")

    def _begin(self, sector: Sector, data: bytes) -> Job[bool]:
        """Erase a sector and write its first record, twice: whether it keeps it."""
        try:
            yield Erase(sector)
        except FlashError:
            return False
        return (yield from self._put(data)) and (yield from self._put(data))

    def _put(self, data: bytes) -> Job[bool]:
        """Program the next record of the newest sector and read it back."""
        offset = self._sectors[self._order[0]].start + self._position
        self._position += len(data)
        try:
            yield Program(offset, data)
            return (yield Read(offset, len(data))) == data
        except FlashError:
            return False

    def _padded(self, value: bytes) -> bytes:
        if len(value) > self.max_value:  # before anything is erased
            raise StateError(f"a record of {len(value)} bytes does not fit this log: {self.max_value} at most")
        if self._epoch >= LAST_EPOCH:
            raise StateError("the record log is at its last epoch: no memory lives to see it, so it is damaged")
        entry = encode_entry(self._epoch, self._kind, value)
        room = self._room(len(value))
        return entry + self._geometry.blank(room)[len(entry) :]

    def _room(self, length: int) -> int:
        unit = self._geometry.program_unit
        return -(-(HEAD.size + length) // unit) * unit


def _readable(sector: Sector, units: dict[int, bytes | None]) -> int:
    """Where a unit of a sector is that could be read.

    Raises:
        ReadError: none could.
    """
    for at, found in units.items():
        if found:
            return sector.start + at
    raise ReadError(f"the record log's sector at {sector.start:#x} cannot be read")
