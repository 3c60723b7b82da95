"""Two cells: every torn write of the older one leaves the value before, or the new one."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.cells import MIN_CELL, Cells
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State
from mgota.core.recordlog import LAST_EPOCH, Kind, encode_entry
from mgota.core.register import Form, encode_word
from mgota.errors import ConfigError, StateError

CELLS = Cells(256)


def written(area: bytes, value: bytes, upto: int | None = None) -> bytes:
    write = CELLS.write(area, value)
    data = write.data[:upto]
    return area[: write.offset] + data + area[write.offset + len(data) :]


@pytest.mark.parametrize("blank", [b"\0", b"\xff"])
def test_every_torn_write_leaves_the_value_before_or_the_new_one(blank: bytes) -> None:
    area, before = blank * 256, None
    for number in range(6):
        value = b"value %d " % number * (number + 1)
        for upto in range(len(CELLS.write(area, value).data)):
            torn = written(area, value, upto)
            assert CELLS.read(torn) == before
            assert CELLS.read(written(torn, b"again")) == b"again"
        area, before = written(area, value), value
        assert CELLS.read(area) == value


def test_both_damaged_is_not_blank() -> None:
    area = written(written(bytes(256), b"one"), b"two")
    spoilt = bytearray(area)
    for at in (8, 136):
        spoilt[at] ^= 1
        if at == 8:
            assert CELLS.read(bytes(spoilt)) == b"two"
    with pytest.raises(StateError, match="both cells"):
        CELLS.read(bytes(spoilt))
    assert CELLS.read(written(bytes(spoilt), b"three")) == b"three", "and it can be written over"


def test_sizes_on_each_side_of_the_limits() -> None:
    assert Cells(2 * MIN_CELL).max_value == MIN_CELL - 16
    with pytest.raises(ConfigError, match="too small"):
        Cells(2 * MIN_CELL - 1)
    assert CELLS.read(written(bytes(256), b"x" * 112)) == b"x" * 112
    with pytest.raises(StateError, match="113 bytes does not fit its cell: 112"):
        CELLS.write(bytes(256), b"x" * 113)


def test_the_last_epoch_is_none() -> None:
    area = encode_entry(LAST_EPOCH, Kind.STATE, b"x").ljust(256, b"\0")
    assert CELLS.read(area) is None


@given(st.binary(min_size=256, max_size=256))
def test_any_bytes_are_a_value_or_an_error(area: bytes) -> None:
    try:
        assert CELLS.read(area) is None
    except StateError:
        return


@pytest.mark.parametrize(
    ("record", "raw", "encoded"),
    [
        (BootRecord(revision=0x1FF), 0, 0x4D00FF),
        (BootRecord(outcome=Outcome.ROLLED_BACK), 3, 0x4D0000),
        (BootRecord(outcome=Outcome.COMMITTED, revision=1), 0, 0x4D0001),
        (BootRecord(state=State.TESTING, trial=Slot.A, swaps=1, tries=2, revision=2), 1, 0x4D5602),
        (BootRecord(state=State.FAILED, trial=Slot.B, swaps=9, tries=9, outcome=Outcome.ROLLED_BACK), 2, 0x4DAF00),
    ],
)
def test_a_word(record: BootRecord, raw: int, encoded: int) -> None:
    assert encode_word(record, Form.RAW) == raw
    word = encode_word(record, Form.ENCODED)
    assert word >> 8 == encoded
    assert word != encode_word(record.next(), Form.ENCODED)
