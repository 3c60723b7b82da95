"""Entries of otadata: bits, CRC, who wins."""

import struct
from binascii import crc32

import pytest
from hypothesis import given, strategies as st

from mgota.core.otadata import (
    BLANK_LABEL,
    OtaEntry,
    OtaState,
    decode_entry,
    encode_entry,
    ota_entry,
    sequence_crc,
    winner,
)
from mgota.core.record import State
from mgota.errors import ConfigError

WORD = st.integers(0, 0xFFFFFFFF)


@pytest.mark.parametrize(("seq", "crc"), [(1, 0x4743989A), (2, 0x55F63774), (3, 0xED4A5011)])
def test_the_crc_is_over_the_sequence_alone(seq: int, crc: int) -> None:
    assert sequence_crc(seq) == crc
    assert ota_entry(seq, label=b"a label", state=OtaState.VALID).crc == crc
    # What otatool.py does; its zeros make the register that esp_rom_crc32_le(UINT32_MAX, ...) begins with.
    assert crc32(struct.pack("<I", seq), 0xFFFFFFFF) % (1 << 32) == crc


def test_an_entry_is_the_bytes_that_otatool_writes() -> None:
    # otatool.py switch_ota_partition on erased otadata: the sequence at 0, its CRC at 28, the rest stays erased.
    assert encode_entry(ota_entry(2)) == struct.pack("<I", 2) + b"\xff" * 24 + struct.pack("<I", 0x55F63774)
    entry = decode_entry(bytes.fromhex("01000000") + bytes(20) + bytes.fromhex("020000009a984347"))
    assert entry == OtaEntry(1, bytes(20), OtaState.VALID, 0x4743989A)
    assert entry.valid


@pytest.mark.parametrize(
    ("state", "boots", "recorded"),
    [
        (OtaState.NEW, True, State.TESTING),
        (OtaState.PENDING_VERIFY, True, State.FAILED),
        (OtaState.VALID, True, State.CONFIRMED),
        (OtaState.INVALID, False, State.FAILED),
        (OtaState.ABORTED, False, State.FAILED),
        (OtaState.UNDEFINED, True, State.CONFIRMED),
        (5, True, State.UNKNOWN),  # the bootloader boots what it does not know
    ],
)
def test_a_state_says_whether_it_boots_and_what_a_record_would_say(state: int, boots: bool, recorded: State) -> None:
    entry = ota_entry(7, state=state)
    assert entry.valid is boots
    assert entry.recorded is recorded


def test_an_erased_entry_and_one_with_another_crc_do_not_count() -> None:
    assert not decode_entry(b"\xff" * 32).valid
    assert not ota_entry(0xFFFFFFFF).valid
    assert not OtaEntry(1, crc=0x4743989B).valid
    assert ota_entry(0xFFFFFFFE).valid


@pytest.mark.parametrize(
    ("seq", "count", "slot"),
    [(1, 2, 0), (2, 2, 1), (3, 2, 0), (1, 3, 0), (3, 3, 2), (4, 3, 0), (0, 2, 1), (0, 3, 0), (0, 16, 15)],
)
def test_the_remainder_of_the_sequence_is_the_slot(seq: int, count: int, slot: int) -> None:
    assert ota_entry(seq).slot(count) == slot


def test_the_larger_sequence_wins_and_of_equal_ones_the_first() -> None:
    one, two, none = ota_entry(1), ota_entry(2), OtaEntry(9)
    assert winner([one, two]) == 1
    assert winner([two, one]) == 0
    assert winner([two, two]) == 0
    assert winner([none, one]) == 1
    assert winner([ota_entry(3, state=OtaState.ABORTED), one]) == 1
    assert winner([none, none]) is None


@given(WORD, st.binary(min_size=20, max_size=20), WORD, WORD)
def test_an_entry_comes_back_as_it_was(seq: int, label: bytes, state: int, crc: int) -> None:
    entry = OtaEntry(seq, label, state, crc)
    assert decode_entry(encode_entry(entry)) == entry
    assert isinstance(entry.recorded, State)


@given(st.binary(max_size=40))
def test_any_bytes_are_an_entry_or_an_ota_error(data: bytes) -> None:
    if len(data) == 32:
        assert encode_entry(decode_entry(data)) == data
    else:
        with pytest.raises(ConfigError, match="32 bytes"):
            decode_entry(data)


def test_an_entry_that_cannot_be_written_is_refused() -> None:
    for entry in (OtaEntry(1 << 32), OtaEntry(1, state=-1), OtaEntry(1, label=b"short")):
        with pytest.raises(ConfigError):
            encode_entry(entry)
    assert len(ota_entry(1, label=b"short").label) == len(BLANK_LABEL)
    with pytest.raises(ConfigError, match="20 bytes, not 21"):
        encode_entry(ota_entry(1, label=b"a label of 21 letters"))
