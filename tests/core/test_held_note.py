"""What a gateway notes of the images that it holds for a chip, and how an image falls into sectors."""

from json import dumps
from zlib import crc32

import pytest
from hypothesis import given, settings, strategies as st

from mgota.core.geometry import Area, Geometry, Region, Slot, uniform
from mgota.core.held import (
    MAX_NOTE,
    HeldImage,
    HeldNote,
    begun,
    brought,
    decode_note,
    doubtful,
    encode_note,
    is_unknown,
    pieces,
    programmed,
    room,
    selecting,
)
from mgota.errors import ConfigError

A, B = Slot.A, Slot.B
OLD, NEW = HeldImage(size=7, sha256="0a" * 32, held=True), HeldImage(size=9, sha256="0b" * 32)
NOTE = HeldNote(selected=B, running=A, doubt=True, a=OLD, b=NEW)

images = st.none() | st.builds(
    HeldImage,
    size=st.integers(1, 2**40),
    sha256=st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    held=st.booleans(),
)
notes = st.builds(
    HeldNote,
    selected=st.sampled_from(Slot), running=st.sampled_from(Slot), doubt=st.booleans(), a=images, b=images,
)  # fmt: skip


@given(note=notes)
@settings(max_examples=50)
def test_a_note_survives_its_bytes(note: HeldNote) -> None:
    data = encode_note(note)
    assert len(data) <= MAX_NOTE
    assert decode_note(data) == note


def sealed(payload: bytes) -> bytes:
    return b"mgota-held 1 %08x\n" % crc32(payload) + payload


TOLD = {"selected": "b", "running": "a", "doubt": True, "images": {"a": None, "b": None}}
GOOD = {"size": 7, "sha256": "0a" * 32, "held": True}


@pytest.mark.parametrize(
    "change",
    [
        {"selected": "c"}, {"selected": None}, {"running": 1}, {"doubt": 1}, {"doubt": None}, {"images": None},
        {"images": {"a": None}}, {"images": {"a": [], "b": None}}, {"images": {"a": 7, "b": None}},
        {"images": {"a": {**GOOD, "size": 0}, "b": None}}, {"images": {"a": {**GOOD, "size": True}, "b": None}},
        {"images": {"a": {**GOOD, "size": "7"}, "b": None}},
        {"images": {"a": {**GOOD, "sha256": "0A" * 32}, "b": None}},
        {"images": {"a": {**GOOD, "sha256": 7}, "b": None}}, {"images": {"a": {**GOOD, "held": 0}, "b": None}},
        {"images": {"a": {"size": 7, "held": True}, "b": None}},
    ],
)  # fmt: skip
def test_what_is_no_note_is_none(change: dict[str, object]) -> None:
    assert decode_note(sealed(dumps({**TOLD, "images": {"a": GOOD, "b": None}}).encode())) is not None
    assert decode_note(sealed(dumps({**TOLD, **change}).encode())) is None


def test_other_bytes_are_none() -> None:
    data = encode_note(NOTE)
    for other in (
        None,
        b"",
        sealed(b"[]\n"),
        sealed(b"{"),
        sealed(b"[" * 900),
        data + b" " * (MAX_NOTE + 1 - len(data)),
    ):
        assert decode_note(other) is None
    for at in range(len(data)):
        assert decode_note(data[:at]) is None


def test_an_update_as_the_note_tells_it() -> None:
    note = begun(HeldNote(a=OLD), B, 9)
    assert note == HeldNote(a=OLD, b=HeldImage(size=9))
    assert note.candidates() == (A,)
    note = selecting(note, B, NEW)
    assert (note.selected, note.running, note.b, note.doubt) == (B, A, NEW, False)
    assert note.candidates() == (B, A)  # the way back: the chip has held it
    note = doubtful(note)
    assert note.doubt
    note = brought(note, B)
    assert note == HeldNote(selected=B, running=B, a=OLD, b=HeldImage(size=9, sha256="0b" * 32, held=True))
    assert selecting(note, A, OLD).candidates() == (A, B)
    assert selecting(HeldNote(a=OLD, b=NEW), A, OLD).candidates() == (A,)  # the chip never held the other one
    assert brought(HeldNote(), B) == HeldNote(running=B)


@pytest.mark.parametrize(
    ("note", "unknown"),
    [
        (None, True),
        (HeldNote(), False),
        (HeldNote(a=HeldImage(size=1)), True),
        (HeldNote(a=OLD, b=HeldImage(size=1)), False),
        (HeldNote(selected=B, b=HeldImage(size=1)), True),
    ],
    ids=["none", "blank", "torn", "torn other", "torn b"],
)
def test_what_the_chip_runs_is_unknown_without_a_complete_image(note: HeldNote | None, unknown: bool) -> None:
    assert is_unknown(note) is unknown


UNEVEN = Geometry((Region(0, 64, 32), Region(64, 128, 64), Region(256, 64, 64)), program_unit=4)


@pytest.mark.parametrize(
    ("start", "length"), [(0, 192), (32, 160), (128, 64), (256, 64)], ids=["all", "second", "last", "behind the hole"]
)
def test_an_image_has_room_up_to_a_hole(start: int, length: int) -> None:
    assert room(UNEVEN, start) == Area(start, length)


@pytest.mark.parametrize("start", [1, 4, 192, 320])
def test_an_image_begins_with_a_sector(start: int) -> None:
    with pytest.raises(ConfigError):
        room(UNEVEN, start)


@pytest.mark.parametrize(
    ("start", "size", "found"),
    [
        (0, 1, [(0, 0, 1)]),
        (0, 32, [(0, 0, 32)]),
        (0, 33, [(0, 0, 32), (32, 32, 1)]),
        (32, 161 - 1, [(32, 0, 32), (64, 32, 64), (128, 96, 64)]),
        (32, 97, [(32, 0, 32), (64, 32, 64), (128, 96, 1)]),
    ],
)
def test_an_image_in_pieces(start: int, size: int, found: list[tuple[int, int, int]]) -> None:
    told = list(pieces(UNEVEN, room(UNEVEN, start), size))
    assert [(piece.sector.start, piece.start, piece.length) for piece in told] == found


WIDE = uniform(64, 16, program_unit=8, erased=b"\x39\xe3")


@pytest.mark.parametrize(
    ("geometry", "data", "whole"),
    [
        (UNEVEN, b"12345", b"12345\xff\xff\xff"),
        (UNEVEN, b"1234", b"1234"),
        (UNEVEN, b"1234\xff", b"1234"),
        (UNEVEN, b"\xff" * 9, b""),
        (UNEVEN, b"\xff" * 4 + b"1", b"\xff" * 4 + b"1\xff\xff\xff"),
        (WIDE, b"123", b"123\xe3\x39\xe3\x39\xe3"),
        (WIDE, b"\x39\xe3\x39", b""),
    ],
)
def test_whole_units_are_programmed_and_no_blank_end(geometry: Geometry, data: bytes, whole: bytes) -> None:
    assert programmed(geometry, data) == whole
