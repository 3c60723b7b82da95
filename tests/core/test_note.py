"""The note of a download."""

from dataclasses import asdict
from json import dumps
from zlib import crc32

import pytest
from hypothesis import given, strategies as st

from mgota.core.note import MAX_NOTE, DownloadNote, decode_note, encode_note, identity_of, step_between_marks

NOTE = DownloadNote(identity="0f" * 32, validator='"v1"', revision=7, mark=65536, crc=0xFFFFFFFF)


def sealed(payload: bytes) -> bytes:
    return b"mgota-note 1 %08x\n" % crc32(payload) + payload


@given(
    validator=st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), min_size=1, max_size=100),
    revision=st.integers(0, 2**40),
    mark=st.integers(0, 2**40),
    crc=st.none() | st.integers(0, 2**64),
)
def test_a_note_survives_its_bytes(validator: str | None, revision: int, mark: int, crc: int | None) -> None:
    note = DownloadNote(identity=NOTE.identity, validator=validator, revision=revision, mark=mark, crc=crc)
    assert decode_note(encode_note(note)) == note


def test_the_longest_validator_fits() -> None:
    note = DownloadNote(identity="0" * 64, validator="\xff" * 256, revision=2**63, mark=2**63, crc=2**64)
    assert len(encode_note(note)) > MAX_NOTE  # six characters for each: such a note is no note, and nothing breaks
    assert decode_note(encode_note(note)) is None
    note = DownloadNote(identity="0" * 64, validator='"' + "x" * 254 + '"', revision=2**63, mark=2**63, crc=2**64)
    assert decode_note(encode_note(note)) == note


@pytest.mark.parametrize(
    "change",
    [
        {"identity": None}, {"identity": 7}, {"identity": "0F" * 32}, {"identity": "0f" * 31},
        {"validator": 1}, {"validator": ""}, {"validator": "x" * 257},
        {"revision": None}, {"revision": -1}, {"revision": True}, {"revision": 1.0},
        {"mark": "1"}, {"mark": -1}, {"crc": -1}, {"crc": "x"},
    ],
)  # fmt: skip
def test_what_is_no_note_is_none(change: dict[str, object]) -> None:
    assert decode_note(sealed(dumps({**asdict(NOTE), **change}).encode())) is None


def test_other_bytes_are_none() -> None:
    data = encode_note(NOTE)
    assert decode_note(None) is None
    assert decode_note(b"") is None
    assert decode_note(sealed(b"[]\n")) is None
    assert decode_note(sealed(b"[" * 900)) is None
    assert decode_note(sealed(b"{")) is None
    assert decode_note(data + b" " * (MAX_NOTE - len(data) + 1)) is None
    for at in range(len(data)):
        assert decode_note(data[:at]) is None
        assert decode_note(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_none(data: bytes) -> None:
    assert decode_note(data) is None
    found = decode_note(sealed(data))
    assert found is None or isinstance(found, DownloadNote)


def test_whatever_differs_is_another_download() -> None:
    names = {
        identity_of("http://a", 1, None), identity_of("http://b", 1, None), identity_of("http://a", 2, None),
        identity_of("http://a", 1, "00"), identity_of("http://a\udc80", 1, None),
    }  # fmt: skip
    assert len(names) == 5


@pytest.mark.parametrize(
    ("size", "step"),
    [
        (1, 1 << 16), (1 << 20, 1 << 16), ((1 << 21) - 1, 1 << 16), (1 << 21, 1 << 17), (15 << 20, 15 << 16),
        (16 << 20, 1 << 20), (1 << 40, 1 << 20),
    ],
)  # fmt: skip
def test_marks_are_a_small_part_apart_and_at_most_a_mebibyte(size: int, step: int) -> None:
    assert step_between_marks(size) == step
