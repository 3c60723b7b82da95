"""The ESP32's partition table: against ESP-IDF's own tables, and against any bytes."""

import struct
from dataclasses import replace
from hashlib import md5

import pytest
from hypothesis import given, strategies as st

from mgota.core.esp_table import (
    APP,
    BOOTLOADER,
    DATA,
    ENCRYPTED,
    FACTORY,
    MAX_PARTITIONS,
    NVS,
    OTA_0,
    OTADATA,
    PARTITION_TABLE,
    READONLY,
    TABLE_SIZE,
    Partition,
    PartitionTable,
    decode_table,
    default_table,
    encode_table,
)
from mgota.errors import ConfigError, OtaError

# ESP-IDF components/partition_table/partitions_two_ota.csv, as `gen_esp32part.py` writes it: docs/api-guides.
TWO_OTA = (
    Partition(name="nvs", type=DATA, subtype=NVS, offset=0x9000, size=0x4000),
    Partition(name="otadata", type=DATA, subtype=OTADATA, offset=0xD000, size=0x2000),
    Partition(name="phy_init", type=DATA, subtype=0x01, offset=0xF000, size=0x1000),
    Partition(name="factory", type=APP, subtype=FACTORY, offset=0x10000, size=0x100000),
    Partition(name="ota_0", type=APP, subtype=OTA_0, offset=0x110000, size=0x100000),
    Partition(name="ota_1", type=APP, subtype=OTA_0 + 1, offset=0x210000, size=0x100000),
)
SLOT = TWO_OTA[4]


def entry(name: bytes = b"app", magic: bytes = b"\xaa\x50", offset: int = 0x10000, size: int = 0x1000) -> bytes:
    return struct.pack("<2sBBLL16sL", magic, APP, OTA_0, offset, size, name, 0)


def test_a_table_is_the_bytes_that_esp_idf_writes() -> None:
    entries = b"".join(
        struct.pack("<2sBBLL16sL", b"\xaa\x50", kind, subtype, offset, size, name, 0)
        for name, kind, subtype, offset, size in (
            (b"nvs", 1, 2, 0x9000, 0x4000),
            (b"otadata", 1, 0, 0xD000, 0x2000),
            (b"phy_init", 1, 1, 0xF000, 0x1000),
            (b"factory", 0, 0, 0x10000, 0x100000),
            (b"ota_0", 0, 0x10, 0x110000, 0x100000),
            (b"ota_1", 0, 0x11, 0x210000, 0x100000),
        )
    )
    whole = entries + b"\xeb\xeb" + b"\xff" * 14 + md5(entries).digest()
    assert encode_table(PartitionTable(TWO_OTA)) == whole + b"\xff" * (0xC00 - len(whole))
    table = decode_table(encode_table(PartitionTable(TWO_OTA)))
    assert table.partitions == TWO_OTA
    assert [slot.name for slot in table.slots] == ["ota_0", "ota_1"]
    assert (table.otadata, table.factory, table.end) == (TWO_OTA[1], TWO_OTA[3], 0x310000)


def test_the_default_table_is_the_one_that_is_promised() -> None:
    table = default_table(4 << 20)
    assert {p.name: (p.type, p.subtype, p.offset, p.size) for p in table.partitions} == {
        "nvs": (1, 2, 0x9000, 0x5000),
        "otadata": (1, 0, 0xE000, 0x2000),
        "ota_0": (0, 0x10, 0x10000, 0x1E0000),
        "ota_1": (0, 0x11, 0x1F0000, 0x1E0000),
    }
    assert table.offset == 0x8000
    assert table.factory is None
    assert default_table(16 << 20) == table
    with pytest.raises(ConfigError, match="too small for two slots"):
        default_table(2 << 20)


def test_a_table_without_md5_or_with_a_signature_behind_it_is_one() -> None:
    whole = encode_table(PartitionTable(TWO_OTA))
    old = whole[: 6 * 32] + b"\xff" * 32
    assert decode_table(old).partitions == TWO_OTA
    assert decode_table(whole + b"signature").partitions == TWO_OTA
    assert decode_table(whole[: 8 * 32] + b"anything" * 100).partitions == TWO_OTA


def test_flags_a_full_name_and_the_parts_before_the_table_are_kept() -> None:
    partitions = (
        Partition(name="bootloader", type=BOOTLOADER, subtype=0, offset=0x1000, size=0x7000),
        Partition(name="partition_table", type=PARTITION_TABLE, subtype=0, offset=0x8000, size=0x1000),
        Partition(name="sixteen letters!", type=0x40, subtype=0xFE, offset=0x9004, size=4, flags=ENCRYPTED | READONLY),
    )
    table = PartitionTable(partitions)
    assert decode_table(encode_table(table)) == table
    assert table.partitions[2].area.end == 0x9008
    assert (table.slots, table.otadata, table.factory) == ((), None, None)


def test_the_table_may_lie_elsewhere() -> None:
    far = Partition(name="nvs", type=DATA, subtype=NVS, offset=0x11000, size=0x5000)
    assert decode_table(encode_table(PartitionTable((far,), 0x10000)), 0x10000).offset == 0x10000
    assert PartitionTable((), 0x10000).end == 0x11000
    with pytest.raises(ConfigError, match="before the table ends"):
        PartitionTable(TWO_OTA, 0x10000)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"offset": 0x111000}, "no multiple of 0x10000"),
        ({"offset": 0x8000}, "before the table ends"),
        ({"name": "ota_1"}, "two partitions are named 'ota_1'"),
        ({"name": "seventeen letters"}, "no name"),
        ({"name": "a\0b"}, "no name"),
        ({"name": "\ud800"}, "no name"),
        ({"size": 0x110000}, "'ota_0' and 'ota_1' overlap"),
        ({"size": 0}, "has no bytes"),
        ({"size": 1 << 32}, "more than there are addresses"),
        ({"offset": -0x10000}, "has no bytes"),
        ({"type": 0xFF}, "do not exist"),
        ({"subtype": 0x100}, "do not exist"),
        ({"flags": -1}, "do not exist"),
        ({"type": DATA, "subtype": OTADATA}, "'ota_0' holds otadata"),
        ({"type": DATA, "subtype": OTADATA, "size": 0x2000}, "more than one otadata"),
        ({"type": DATA, "subtype": OTADATA, "size": 0x2000, "offset": 0x110004}, "no multiple of 0x1000"),
        ({"type": DATA, "subtype": NVS, "offset": 0x110002}, "no multiple of 0x4"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused(changed: dict[str, object], said: str) -> None:
    broken = replace(SLOT, **changed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        PartitionTable(tuple(broken if partition is SLOT else partition for partition in TWO_OTA))


def test_a_table_holds_as_many_partitions_as_have_room() -> None:
    many = tuple(
        Partition(name=f"p{number}", type=0x40, subtype=0, offset=0x9000 + 4 * number, size=4)
        for number in range(MAX_PARTITIONS + 1)
    )
    full = PartitionTable(many[:-1])
    assert len(encode_table(full)) == TABLE_SIZE
    assert encode_table(full).endswith(b"\xff" * 32)
    assert decode_table(encode_table(full)) == full
    with pytest.raises(ConfigError, match="94 partitions, not 95"):
        PartitionTable(many)


@pytest.mark.parametrize("numbers", [(1,), (0, 2), (0, 0)])
def test_slots_with_a_gap_are_refused(numbers: tuple[int, ...]) -> None:
    slots = tuple(
        Partition(name=f"app{at}", type=APP, subtype=OTA_0 + number, offset=0x10000 * (at + 1), size=0x1000)
        for at, number in enumerate(numbers)
    )
    with pytest.raises(ConfigError, match="without a gap"):
        _ = PartitionTable(slots).slots


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no end"),
        (b"\xff" * TABLE_SIZE, "all is blank"),
        (bytes(TABLE_SIZE), "entry 0 does not begin with AA 50"),
        (entry() + entry(magic=b"\xaa\x51") + b"\xff" * 32, "entry 1 does not begin"),
        (entry(), "no end"),
        (entry() + b"\xff" * 31, "no end"),
        (entry(name=b"\xff\xfe") + b"\xff" * 32, "has no name"),
        (entry() + b"\xeb\xeb" + b"\xff" * 14 + bytes(16) + b"\xff" * 32, "its MD5 is another one"),
        (entry() + b"\xeb\xeb" + b"\xff" * 14 + md5(entry()).digest() + entry(b"x", offset=0x20000), "no end"),
        (entry() + entry() + b"\xff" * 32, "two partitions are named"),
    ],
)
def test_what_is_no_table_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        decode_table(data)


@given(st.binary(max_size=200), st.integers(0, 7 * 32))
def test_any_bytes_are_a_table_or_an_ota_error(noise: bytes, at: int) -> None:
    whole = encode_table(PartitionTable(TWO_OTA))
    for data in (noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            table = decode_table(data)
        except OtaError:
            continue
        assert decode_table(encode_table(table)) == table
