"""The boot record's bytes: each other's inverse, and any other bytes are a StateError."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, strategies as st

from mgota.core.geometry import Slot
from mgota.core.keychain import MAX_CHAIN, MAX_KEYS, KeyChain
from mgota.core.record import (
    KNOWN_BY,
    MAGIC,
    MAX_EARLIER,
    MAX_RECORD,
    MAX_TEXT,
    BootRecord,
    Outcome,
    SlotImage,
    State,
    decode_record,
    encode_record,
    trial_of,
)
from mgota.errors import StateError

IMAGE = SlotImage(size=10, image_size=74, sha256="ab" * 32, version="1.2.3", proven=True)
KEYS = ("A" * 86 + "==", "B" * 85 + "A==")
CHAIN = KeyChain(keys=KEYS, threshold=2, left=("0123456789abcdef", "f" * 16), retired=("0" * 16,))
RECORD = BootRecord(
    revision=41,
    state=State.FAILED,
    trial=Slot.B,
    swaps=2,
    tries=1,
    select_failures=1,
    staged=None,
    a=IMAGE,
    b=SlotImage(size=20, image_size=20, sha256="cd" * 32, image_sha256="ce" * 32, sequence=6),
    outcome=Outcome.INTERRUPTED,
    reason="because",
    failed_sha256="ef" * 32,
    floor="1.0",
    failed_image_sha256="ee" * 32,
    failed_version="0.9",
    failed_earlier=("0a" * 8, "0b" * 8),
    sequence=7,
    chain=CHAIN,
)

counts = st.integers(0, 1 << 62)
texts = st.none() | st.text(max_size=60)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
earlier = st.lists(digests.map(lambda digest: digest[:KNOWN_BY]), min_size=1, max_size=MAX_EARLIER).map(tuple)
images = st.none() | st.builds(
    SlotImage,
    size=counts,
    image_size=counts,
    sha256=digests,
    version=texts,
    proven=st.booleans(),
    image_sha256=st.none() | digests,
    sequence=st.none() | counts,
)
ids = st.lists(st.binary(min_size=8, max_size=8).map(bytes.hex), max_size=MAX_CHAIN).map(tuple)
chains = st.none() | st.builds(
    KeyChain,
    keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=MAX_KEYS).map(tuple),
    threshold=st.just(1),
    left=ids,
    retired=ids,
)
slots = st.sampled_from(Slot)
situations = st.one_of(
    st.tuples(st.just(State.CONFIRMED), st.none()),
    st.tuples(st.sampled_from([State.TESTING, State.FAILED]), slots),
)


@st.composite
def records(draw: st.DrawFn) -> BootRecord:
    state, trial = draw(situations)
    return BootRecord(
        revision=draw(counts),
        state=state,
        trial=trial,
        swaps=draw(counts),
        tries=draw(counts),
        select_failures=draw(counts),
        staged=draw(st.none() | slots),
        a=draw(images),
        b=draw(images),
        outcome=draw(st.none() | st.sampled_from(Outcome)),
        reason=draw(texts),
        failed_sha256=draw(st.none() | digests),
        floor=draw(texts),
        failed_image_sha256=draw(st.none() | digests),
        failed_version=draw(texts),
        failed_earlier=draw(st.none() | earlier),
        sequence=draw(st.none() | counts),
        chain=draw(chains),
    )


def framed(payload: bytes) -> bytes:
    return MAGIC + b"%08x\n" % crc32(payload) + payload


def plain(record: BootRecord = RECORD) -> dict[str, Any]:
    found = json.loads(encode_record(record).partition(b"\n")[2])
    assert isinstance(found, dict)
    return found


def decoded(found: object) -> BootRecord:
    return decode_record(framed(json.dumps(found).encode()))


@given(records())
def test_a_record_survives_its_bytes(record: BootRecord) -> None:
    data = encode_record(record)
    assert decode_record(data) == record
    assert data.isascii()
    assert data.count(b"\n") == 2


@given(st.binary(max_size=400))
def test_any_bytes_are_a_state_error(data: bytes) -> None:
    with pytest.raises(StateError):
        decode_record(data)


@given(st.binary(max_size=400))
def test_any_bytes_with_a_right_checksum_are_a_state_error(payload: bytes) -> None:
    with pytest.raises(StateError):
        decode_record(framed(payload))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([*State, *Slot]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
paths = st.sampled_from(
    [(name,) for name in plain()] + [(slot, name) for slot in "ab" for name in plain()["a"]] + [("later",)]
)


@given(paths, values)
def test_any_value_in_any_field_is_a_record_or_a_state_error(path: tuple[str, ...], value: object) -> None:
    found = plain()
    *outer, last = path
    inner = found[outer[0]] if outer else found
    inner[last] = value
    try:
        record = decoded(found)
    except StateError:
        return
    assert decode_record(encode_record(record)) == record


@given(values)
def test_any_json_is_a_record_or_a_state_error(value: object) -> None:
    try:
        record = decoded(value)
    except StateError:
        return
    assert decode_record(encode_record(record)) == record


def test_every_flipped_bit_is_noticed() -> None:
    data = encode_record(RECORD)
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(StateError):
                decode_record(bytes(damaged))


def test_every_torn_record_is_noticed() -> None:
    data = encode_record(RECORD)
    for end in range(len(data)):
        with pytest.raises(StateError):
            decode_record(data[:end])
    with pytest.raises(StateError):
        decode_record(data + b"\n")


WRONG: list[tuple[str, Callable[[dict[str, Any]], object]]] = [
    ("no state", lambda f: f.pop("state")),
    ("null state", lambda f: f.update(state=None)),
    ("unknown state", lambda f: f.update(state="UNKNOWN")),
    ("strange state", lambda f: f.update(state="BOOTING")),
    ("state that is no text", lambda f: f.update(state=["FAILED"])),
    ("strange trial", lambda f: f.update(trial="c")),
    ("trial without a slot", lambda f: f.update(trial=None)),
    ("slot without a trial", lambda f: f.update(state="CONFIRMED")),
    ("strange staged", lambda f: f.update(staged=1)),
    ("strange outcome", lambda f: f.update(outcome="won")),
    ("negative revision", lambda f: f.update(revision=-1)),
    ("revision true", lambda f: f.update(revision=True)),
    ("revision with a point", lambda f: f.update(revision=1.0)),
    ("swaps as text", lambda f: f.update(swaps="1")),
    ("tries null", lambda f: f.update(tries=None)),
    ("select_failures list", lambda f: f.update(select_failures=[])),
    ("reason a number", lambda f: f.update(reason=1)),
    ("floor an object", lambda f: f.update(floor={})),
    ("short failed_image_sha256", lambda f: f.update(failed_image_sha256="ab")),
    ("failed_version", lambda f: f.update(failed_version=1)),
    ("sequence", lambda f: f.update(sequence=-1)),
    ("sequence of an image", lambda f: f["b"].update(sequence="6")),
    ("image_sha256", lambda f: f["b"].update(image_sha256="ab")),
    ("chain", lambda f: f.update(chain=[])),
    ("chain without keys", lambda f: f["chain"].update(keys=[])),
    ("chain without left", lambda f: f["chain"].pop("left")),
    ("too many keys", lambda f: f["chain"].update(keys=[KEYS[0]] * (MAX_KEYS + 1))),
    ("a key in hex", lambda f: f["chain"].update(keys=["ab" * 64])),
    ("a key that is none", lambda f: f["chain"].update(keys=[1])),
    ("threshold", lambda f: f["chain"].update(threshold=3)),
    ("no threshold", lambda f: f["chain"].update(threshold=0)),
    ("ids", lambda f: f["chain"].update(left=["F" * 16])),
    ("too many ids", lambda f: f["chain"].update(retired=["0" * 16] * (MAX_CHAIN + 1))),
    ("no failed_earlier", lambda f: f.update(failed_earlier=[])),
    ("too many failed_earlier", lambda f: f.update(failed_earlier=["ab" * 8] * (MAX_EARLIER + 1))),
    ("long failed_earlier", lambda f: f.update(failed_earlier=["ab" * 8 + "c"])),
    ("number in failed_earlier", lambda f: f.update(failed_earlier=["ab" * 8, 7])),
    ("text for failed_earlier", lambda f: f.update(failed_earlier="ab" * 8)),
    ("short failed_sha256", lambda f: f.update(failed_sha256="ab")),
    ("upper-case digest", lambda f: f.update(failed_sha256="AB" * 32)),
    ("digest and a newline", lambda f: f.update(failed_sha256="ab" * 32 + "\n")),
    ("image as text", lambda f: f.update(a="a")),
    ("image false", lambda f: f.update(b=False)),
    ("image without a digest", lambda f: f["a"].pop("sha256")),
    ("image with a wrong digest", lambda f: f["a"].update(sha256="x" * 64)),
    ("image with a negative size", lambda f: f["a"].update(size=-1)),
    ("image with a wrong image_size", lambda f: f["b"].update(image_size="1")),
    ("image with a wrong version", lambda f: f["b"].update(version=2)),
]


@pytest.mark.parametrize(("what", "damage"), WRONG, ids=[what for what, _ in WRONG])
def test_a_damaged_field_is_a_state_error(what: str, damage: Callable[[dict[str, Any]], object]) -> None:
    found = plain()
    assert decoded(found) == RECORD
    damage(found)
    with pytest.raises(StateError):
        decoded(found)


@pytest.mark.parametrize("payload", [b"[]\n", b'"CONFIRMED"\n', b"null\n", b"{\n", b"\xff\n", b"", b"[" * 8000 + b"\n"])
def test_a_payload_that_is_no_object_is_a_state_error(payload: bytes) -> None:
    with pytest.raises(StateError):
        decode_record(framed(payload))


def test_only_true_is_proven() -> None:
    for value in (False, None, 1, "true", [True]):
        found = plain()
        found["a"]["proven"] = value
        image = decoded(found).a
        assert image
        assert image.proven is False


def test_unknown_keys_are_ignored_and_missing_ones_have_their_defaults() -> None:
    found = plain() | {"later": {"x": [1, 2]}}
    found["a"]["later"] = None
    assert decoded(found) == RECORD
    assert decoded({"state": "CONFIRMED"}) == BootRecord()


def test_too_long_a_record_is_refused_by_the_reader() -> None:
    found = plain()
    room = MAX_RECORD - len(framed(json.dumps(found).encode()))
    found["later"] = "x" * (room - len(', "later": ""'))
    data = framed(json.dumps(found).encode())
    assert len(data) == MAX_RECORD
    assert decode_record(data) == RECORD
    found["later"] += "x"
    with pytest.raises(StateError):
        decoded(found)


def test_too_long_a_record_is_refused_by_the_writer() -> None:
    with pytest.raises(StateError):
        encode_record(RECORD.next(floor="x" * MAX_RECORD))


def test_the_longest_record_that_an_update_makes_fits() -> None:
    """Every character of a reason may take twelve bytes."""
    image = SlotImage(size=1 << 62, image_size=1 << 62, sha256="a" * 64, version="v" * 64)
    image = replace(image, image_sha256="b" * 64, sequence=1 << 62)
    chain = KeyChain(keys=KEYS[:1] * MAX_KEYS, left=("0" * 16,) * MAX_CHAIN, retired=("0" * 16,) * MAX_CHAIN)
    record = BootRecord(
        revision=1 << 62,
        a=image,
        b=image,
        failed_sha256="a" * 64,
        reason="\U0001f600" * MAX_TEXT,
        floor="v" * 64,
        failed_image_sha256="b" * 64,
        failed_version="v" * 64,
        failed_earlier=("c" * KNOWN_BY,) * MAX_EARLIER,
        sequence=1 << 62,
        chain=chain,
    )
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize(
    "record",
    [
        BootRecord(state=State.UNKNOWN),
        BootRecord(state=State.TESTING),
        BootRecord(trial=Slot.A),
        BootRecord(revision=-1),
    ],
    ids=["unknown", "a trial without a slot", "a slot without a trial", "negative"],
)
def test_what_cannot_be_read_again_is_not_written(record: BootRecord) -> None:
    with pytest.raises(StateError):
        encode_record(record)


def test_the_bytes_are_the_documented_ones() -> None:
    record = BootRecord(revision=3, state=State.TESTING, trial=Slot.B, swaps=1, tries=1, a=IMAGE)
    payload = (
        b'{"revision": 3, "state": "TESTING", "trial": "b", "swaps": 1, "tries": 1, "select_failures": 0, '
        b'"staged": null, "a": {"size": 10, "image_size": 74, "sha256": "' + b"ab" * 32 + b'", "version": "1.2.3", '
        b'"proven": true}, "b": null, "outcome": null, "reason": null, "failed_sha256": null, "floor": null}\n'
    )
    assert encode_record(record) == b"mgota-state 1 %08x\n" % crc32(payload) + payload


def test_the_next_record_counts_and_replaces() -> None:
    after = RECORD.next_with(Slot.A, None, tries=0)
    assert (after.revision, after.a, after.b, after.tries, after.state) == (42, None, RECORD.b, 0, State.FAILED)
    assert [RECORD.image(slot) for slot in Slot] == [RECORD.a, RECORD.b]


@pytest.mark.parametrize(
    ("state", "trial", "size", "found"),
    [
        (State.TESTING, Slot.A, 74, Slot.A),
        (State.FAILED, Slot.A, 74, Slot.A),
        (State.FAILED, Slot.B, 20, Slot.B),
        (State.TESTING, Slot.A, 10, None),  # its size without the trailer
        (State.TESTING, Slot.A, 75, None),
        (State.TESTING, None, 74, None),
        (State.CONFIRMED, Slot.A, 74, None),
        (State.CONFIRMED, None, 74, None),
    ],
)
def test_the_image_on_trial_by_its_size(state: State, trial: Slot | None, size: int, found: Slot | None) -> None:
    assert trial_of(replace(RECORD, state=state, trial=trial), size) is found


def test_a_trial_of_an_image_that_nobody_knows() -> None:
    assert trial_of(replace(RECORD, b=None), 20) is None


def test_the_firmware_that_was_rolled_back_last_is_known_by_its_digest() -> None:
    record = BootRecord(failed_sha256="ab" * 32, failed_image_sha256="cd" * 32)
    assert record.rolled_back("ab" * 32)
    assert not record.rolled_back("cd" * 32)
    assert not BootRecord().rolled_back("ab" * 32)
    earlier = replace(record, failed_earlier=("ef" * 8,))
    assert earlier.rolled_back("ab" * 32)
    assert earlier.rolled_back("ef" * 32)
    assert not earlier.rolled_back("cd" * 32)
