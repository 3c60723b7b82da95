"""ESP32: the partition table, 0xC00 bytes that say what lies where in the flash memory.

    entry   AA 50  type  subtype  offset (4)  size (4)  name (16)  flags (4)       little-endian, 32 bytes each
    MD5     EB EB  14 of FF  digest of the entries before (16)                      may be missing in old tables
    end     32 of FF                                                               and so on to the end

Sources: ESP-IDF docs/api-guides/partition-tables.rst; components/partition_table/gen_esp32part.py (writes tables, and
the rules for them); components/bootloader_support/src/flash_partitions.c (reads them). Rules:
- names are unique, partitions do not overlap, and lie behind the table's own sector;
- an app begins at a multiple of 64 KiB, otadata at one of 4 KiB, anything else at one of 4 bytes;
- there is at most one otadata, and it has 8 KiB;
- any bytes are a table that obeys these rules, or a `ConfigError`.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise

from mgota.core.geometry import Area
from mgota.errors import ConfigError

_ENTRY = struct.Struct("<2sBBII16sI")
_MAGIC = b"\xaa\x50"
_MD5_MAGIC = b"\xeb\xeb"
_MD5_HEAD = _MD5_MAGIC + b"\xff" * 14
_END = b"\xff" * _ENTRY.size

TABLE_OFFSET = 0x8000
"""Where the table lies unless the bootloader was built otherwise (CONFIG_PARTITION_TABLE_OFFSET)."""

TABLE_SIZE = 0xC00
"""Bytes of the table, 96 entries; the rest of its sector may hold a signature."""

SECTOR = 0x1000
"""Bytes of a sector of the flash memory; of `otadata` there are two."""

MAX_PARTITIONS = TABLE_SIZE // _ENTRY.size - 2
"""94: the MD5 and the end need a place, too."""

APP, DATA, BOOTLOADER, PARTITION_TABLE = 0, 1, 2, 3
"""Types. The last two name the parts in front of the table, and the table."""

FACTORY, OTA_0, OTA_15 = 0x00, 0x10, 0x1F
"""Subtypes of an app; from the second to the third, OTA slots."""

OTADATA, NVS = 0x00, 0x02
"""Subtypes of data."""

ENCRYPTED, READONLY = 1 << 0, 1 << 1
"""Flags."""

_APP_ALIGNMENT = 0x10000


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One entry.

    Args:
        name: at most 16 bytes of UTF-8.
        type: a byte.
        subtype: a byte, its meaning depends on the type.
        offset: first byte, from the start of the flash memory.
        size: bytes.
        flags: 32 bits.
    """

    name: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @property
    def area(self) -> Area:
        """Where it lies."""
        return Area(self.offset, self.size)

    @property
    def slot(self) -> int | None:
        """Number of the OTA slot that it is, or None."""
        is_slot = self.type == APP and OTA_0 <= self.subtype <= OTA_15
        return self.subtype - OTA_0 if is_slot else None


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A whole table that obeys the rules.

    Args:
        partitions: in the order of the table.
        offset: where the table lies.

    Raises:
        ConfigError: a rule is broken; the message says by which partition.
    """

    partitions: tuple[Partition, ...]
    offset: int = TABLE_OFFSET

    def __post_init__(self) -> None:
        if len(self.partitions) > MAX_PARTITIONS:
            raise ConfigError(f"a partition table holds {MAX_PARTITIONS} partitions, not {len(self.partitions)}")
        for partition in self.partitions:
            _check(partition, self.offset + SECTOR)
        by_name: dict[str, Partition] = {}
        for partition in self.partitions:
            if by_name.setdefault(partition.name, partition) is not partition:
                raise ConfigError(f"two partitions are named {partition.name!r}")
        for one, next_one in pairwise(sorted(self.partitions, key=lambda partition: partition.offset)):
            if next_one.offset < one.area.end:
                raise ConfigError(f"the partitions {one.name!r} and {next_one.name!r} overlap")
        if len([partition for partition in self.partitions if _is_otadata(partition)]) > 1:
            raise ConfigError("there is more than one otadata partition")

    @property
    def end(self) -> int:
        """The first byte behind all of it."""
        return max((partition.area.end for partition in self.partitions), default=self.offset + SECTOR)

    @property
    def otadata(self) -> Partition | None:
        """Where the selection is kept, if it is."""
        return next(filter(_is_otadata, self.partitions), None)

    @property
    def factory(self) -> Partition | None:
        """The app that boots while nothing is selected, if there is one."""
        return next((p for p in self.partitions if p.type == APP and p.subtype == FACTORY), None)

    @property
    def slots(self) -> tuple[Partition, ...]:
        """The OTA slots, ota_0 first.

        Raises:
            ConfigError: they are not numbered without a gap: the bootloader counts them, and would miss some.
        """
        found = sorted(((p.slot, p) for p in self.partitions if p.slot is not None), key=lambda pair: pair[0])
        if [number for number, _ in found] != list(range(len(found))):
            raise ConfigError("the OTA slots of the partition table are not ota_0, ota_1 and so on, without a gap")
        return tuple(partition for _, partition in found)


def _is_otadata(partition: Partition) -> bool:
    return partition.type == DATA and partition.subtype == OTADATA


def _check(partition: Partition, start: int) -> None:
    name = repr(partition.name)
    if "\0" in partition.name or len(_encoded(partition.name)) > 16:
        raise ConfigError(f"{name} is no name of a partition: at most 16 bytes, and none of them 0")
    if not (0 <= partition.type < 0xFF and 0 <= partition.subtype <= 0xFF and 0 <= partition.flags < 1 << 32):
        raise ConfigError(f"the partition {name} has a type, subtype or flags that do not exist")
    if partition.offset < 0 or partition.size <= 0 or partition.area.end > 1 << 32:
        raise ConfigError(f"the partition {name} has no bytes, or more than there are addresses")
    if partition.type not in (BOOTLOADER, PARTITION_TABLE) and partition.offset < start:
        raise ConfigError(f"the partition {name} begins at {partition.offset:#x}, before the table ends ({start:#x})")
    alignment = _APP_ALIGNMENT if partition.type == APP else SECTOR if _is_otadata(partition) else 4
    if partition.offset % alignment:
        raise ConfigError(f"the partition {name} begins at {partition.offset:#x}, no multiple of {alignment:#x}")
    if _is_otadata(partition) and partition.size != 2 * SECTOR:
        raise ConfigError(f"the partition {name} holds otadata, and has {partition.size:#x} bytes, not {2 * SECTOR:#x}")


def _encoded(name: str) -> bytes:
    try:
        return name.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{name!r} is no name of a partition") from exc


def encode_table(table: PartitionTable) -> bytes:
    """The table's 0xC00 bytes, with an MD5 entry."""
    entries = b"".join(
        _ENTRY.pack(_MAGIC, p.type, p.subtype, p.offset, p.size, _encoded(p.name), p.flags) for p in table.partitions
    )
    return (entries + _MD5_HEAD + _digest(entries)).ljust(TABLE_SIZE, b"\xff")


def decode_table(data: bytes, offset: int = TABLE_OFFSET) -> PartitionTable:
    """The table that these bytes begin with.

    Args:
        data: the 0xC00 bytes, or fewer with an end entry in them.
        offset: where they lie.

    Raises:
        ConfigError: they are no table, or one that breaks a rule.
    """
    return PartitionTable(tuple(_entries(data[:TABLE_SIZE])), offset)


def _entries(data: bytes) -> Iterator[Partition]:
    summed = False
    for start in range(0, len(data), _ENTRY.size):
        entry = data[start : start + _ENTRY.size]
        if entry == _END:
            if not start:
                raise ConfigError("there is no partition table: all is blank")
            return
        if len(entry) < _ENTRY.size or summed:
            break
        if entry[:2] == _MD5_MAGIC:
            summed = True
            if entry[16:] != _digest(data[:start]):
                raise ConfigError("the partition table is damaged: its MD5 is another one")
        else:
            yield _partition(entry, start)
    raise ConfigError("the partition table has no end")


def _partition(entry: bytes, start: int) -> Partition:
    magic, kind, subtype, offset, size, name, flags = _ENTRY.unpack(entry)
    if magic != _MAGIC:
        raise ConfigError(f"there is no partition table: entry {start // _ENTRY.size} does not begin with AA 50")
    try:
        text = name.partition(b"\0")[0].decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"entry {start // _ENTRY.size} of the partition table has no name") from exc
    return Partition(name=text, type=kind, subtype=subtype, offset=offset, size=size, flags=flags)


def _digest(entries: bytes) -> bytes:
    return md5(entries, usedforsecurity=False).digest()


def default_table(size: int = 4 << 20) -> PartitionTable:
    """The table of a new chip: two OTA slots, and no factory app.

        0x9000 nvs (0x5000)   0xE000 otadata (0x2000)   0x10000 ota_0 (0x1E0000)   0x1F0000 ota_1 (0x1E0000)

    Args:
        size: bytes of the flash memory; what is beyond 0x3D0000 is the application's.

    Raises:
        ConfigError: it is too small.
    """
    table = PartitionTable(
        (
            Partition(name="nvs", type=DATA, subtype=NVS, offset=0x9000, size=0x5000),
            Partition(name="otadata", type=DATA, subtype=OTADATA, offset=0xE000, size=2 * SECTOR),
            Partition(name="ota_0", type=APP, subtype=OTA_0, offset=0x10000, size=0x1E0000),
            Partition(name="ota_1", type=APP, subtype=OTA_0 + 1, offset=0x1F0000, size=0x1E0000),
        )
    )
    if table.end > size:
        raise ConfigError(f"an ESP32 with {size:#x} bytes of flash memory is too small for two slots")
    return table
