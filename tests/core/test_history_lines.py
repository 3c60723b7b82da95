"""The history's lines, and how it grows out of boot records."""

from dataclasses import asdict, replace

import pytest
from hypothesis import given, strategies as st

from mgota.core.boot import NOT_COMMITTED, OPERATOR, UNFINISHED
from mgota.core.geometry import Slot
from mgota.core.history import MAX_HISTORY, Update, advance, decode_updates, encode_updates
from mgota.core.record import BootRecord, Outcome, SlotImage, State


def image(version: str, *, proven: bool = False) -> SlotImage:
    return SlotImage(size=1, image_size=65, sha256=version * 64, version=version, proven=proven)


OLD, NEW = image("1", proven=True), image("2")
BEGUN = BootRecord(revision=2, a=OLD, outcome=Outcome.INTERRUPTED, reason=UNFINISHED)
TESTING = BootRecord(revision=3, state=State.TESTING, trial=Slot.B, a=OLD, b=NEW)
FAILED = replace(TESTING, revision=4, state=State.FAILED)
COMMITTED = BootRecord(revision=5, a=OLD, b=NEW, outcome=Outcome.COMMITTED)
ROLLED_BACK = replace(COMMITTED, outcome=Outcome.ROLLED_BACK, reason=NOT_COMMITTED, failed_sha256=NEW.sha256)


def story(*records: BootRecord, reason: str | None = None) -> tuple[Update, ...]:
    """One record a second; the reason comes with the last."""
    updates: tuple[Update, ...] = ()
    for second, record in enumerate(records):
        updates = advance(updates, record, float(second), reason if record is records[-1] else None)
    return updates


def test_an_update_from_begin_to_commit() -> None:
    assert story(BEGUN) == (Update(number=1, began=0, from_version="1", from_sha256=OLD.sha256),)
    assert story(BEGUN, TESTING)[0].outcome == "testing"
    assert story(BEGUN, TESTING, FAILED)[0].outcome == "trial"
    (update,) = story(BEGUN, TESTING, FAILED, COMMITTED)
    assert asdict(update) == {
        "number": 1,
        "began": 0.0,
        "ended": 3.0,
        "outcome": "committed",
        "reason": None,
        "from_version": "1",
        "from_sha256": OLD.sha256,
        "to_version": "2",
        "to_sha256": NEW.sha256,
    }


@pytest.mark.parametrize("way", [(TESTING, FAILED), (TESTING,), (TESTING, replace(TESTING, swaps=2), FAILED, FAILED)])
def test_an_update_that_is_rolled_back(way: tuple[BootRecord, ...]) -> None:
    (update,) = story(BEGUN, *way, ROLLED_BACK)
    assert (update.outcome, update.reason, update.ended) == ("rolled_back", NOT_COMMITTED, float(len(way) + 1))
    assert (update.from_version, update.to_version) == ("1", "2")


def test_a_staged_image_is_one_update() -> None:
    staged = BootRecord(a=OLD, b=NEW, staged=Slot.B)
    (update,) = story(BEGUN, staged)
    assert (update.outcome, update.to_version, update.ended) == ("staged", "2", None)
    (update,) = story(BEGUN, staged, TESTING, FAILED, COMMITTED)
    assert (update.outcome, update.began, update.ended) == ("committed", 0, 4)
    assert story(BEGUN, staged, replace(staged, revision=9)) == story(BEGUN, staged)


def test_an_update_that_was_cut_off_and_the_next_one() -> None:
    first, second = story(BEGUN, BEGUN, TESTING, FAILED, COMMITTED)
    assert (first.outcome, first.ended) == ("interrupted", None)
    assert (second.number, second.outcome, second.began) == (2, "committed", 1)


@pytest.mark.parametrize("before", [None, Outcome.INTERRUPTED, Outcome.COMMITTED])
def test_an_image_that_is_refused(before: Outcome | None) -> None:
    """Whatever the record said before: that is what it says again."""
    (update,) = story(BEGUN, BootRecord(a=OLD, outcome=before), reason="bad signature")
    assert (update.outcome, update.reason, update.ended) == ("refused", "bad signature", 1)
    (update,) = story(BEGUN, BootRecord(a=OLD))  # nobody said why
    assert (update.outcome, update.reason) == ("refused", None)


def test_an_operator_who_goes_back() -> None:
    updates = story(BEGUN, TESTING, FAILED, COMMITTED, replace(ROLLED_BACK, reason=OPERATOR))
    assert len(updates) == 2
    assert (updates[1].outcome, updates[1].reason) == ("rolled_back", OPERATOR)
    assert (updates[1].from_version, updates[1].to_version) == ("2", "1")
    lost = BootRecord(outcome=Outcome.ROLLED_BACK, reason=OPERATOR)
    (update,) = story(lost)
    assert (update.from_version, update.to_version) == (None, None)
    (update,) = story(replace(lost, b=NEW, failed_sha256=NEW.sha256))
    assert (update.from_version, update.to_version) == ("2", None)


@pytest.mark.parametrize("record", [BootRecord(a=OLD), COMMITTED, ROLLED_BACK, FAILED])
def test_what_is_no_news_is_no_update(record: BootRecord) -> None:
    assert story(record) == ()
    assert story(BEGUN, TESTING, FAILED, COMMITTED, record) == story(BEGUN, TESTING, FAILED, COMMITTED)


def test_a_history_that_was_lost_goes_on() -> None:
    (update,) = story(TESTING, FAILED, COMMITTED)
    assert (update.outcome, update.from_version, update.to_version) == ("committed", "1", "2")
    (update,) = story(BootRecord(a=OLD, b=NEW, outcome=Outcome.INTERRUPTED))
    assert update.from_version is None
    (update,) = story(replace(TESTING, a=None, b=None))
    assert (update.from_version, update.to_version) == (None, None)
    (update,) = story(BootRecord(b=NEW, outcome=Outcome.INTERRUPTED), TESTING, BootRecord())
    assert (update.from_version, update.outcome) == ("1", "interrupted")


UPDATES = st.builds(
    Update,
    number=st.integers(0, 2**53),
    began=st.floats(0, 1e11),
    ended=st.none() | st.floats(0, 1e11),
    outcome=st.sampled_from(["interrupted", "staged", "testing", "trial", *Outcome]).map(str),
    reason=st.none() | st.text(max_size=20),
    to_version=st.none() | st.text(max_size=20),
)


@given(st.lists(UPDATES, max_size=5).map(tuple))
def test_lines_read_back(updates: tuple[Update, ...]) -> None:
    data = encode_updates(updates)
    assert decode_updates(data) == updates
    assert data.count(b"\n") == len(updates)


LINES = [
    b'{"number": 1, "began": 2, "outcome": "trial"}',
    b'{"number": true, "began": 2, "outcome": "trial"}',
    b'{"number": 1, "began": "2", "outcome": "trial"}',
    b'{"number": 1, "began": 2, "outcome": []}',
    b'{"number": 1, "began": 2, "outcome": "trial", "reason": 7}',
    b'{"number": 1, "began": 1e300, "outcome": "trial"}',
    b'{"number": 1, "began": 2, "ended": "x", "outcome": "trial"}',
    b"[]",
    b"[" * 100_000,
    b"\xff",
    b"nonsense",
]


@given(st.binary(max_size=200) | st.lists(st.sampled_from(LINES), max_size=4).map(b"\n".join))
def test_any_bytes_are_updates_or_left_out(data: bytes) -> None:
    assert decode_updates(encode_updates(decode_updates(data))) == decode_updates(data)


def test_the_oldest_go_first() -> None:
    updates = tuple(Update(number=number, began=0, reason="x" * 400) for number in range(60))
    assert [update.number for update in decode_updates(encode_updates(updates))] == list(range(10, 60))
    one = len(encode_updates(updates[:1]))
    assert len(decode_updates(encode_updates(updates, limit=3 * one + 10))) == 3
    assert encode_updates(updates, limit=one - 1) == b""
    longest = replace(updates[0], reason="\N{GRINNING FACE}" * 500, from_version="v" * 64, to_version="v" * 64)
    assert len(encode_updates((longest,) * 60)) <= MAX_HISTORY
