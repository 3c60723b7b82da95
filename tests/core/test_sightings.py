"""What devices told of themselves."""

import json

import pytest
from hypothesis import given, strategies as st

from mgota.core.sightings import MAX_FIELDS, MAX_TEXT, Sighting, Sightings

MONGOOSE = "/m.json?arch=esp32&version=1.2.3&id=dev7&interval=3600&boot=3"


def test_a_mongoose_device_is_seen() -> None:
    table = Sightings()
    table.note(MONGOOSE, peer="192.0.2.1", now=5.0)
    (seen,) = table.latest()
    assert seen == Sighting(
        id="dev7", version="1.2.3", arch="esp32", boot="ROLLED BACK", interval="3600", path="/m.json", peer="192.0.2.1",
        seen=5.0,
    )  # fmt: skip
    assert json.loads(json.dumps(seen.as_dict()))["boot"] == "ROLLED BACK"


def test_the_last_thing_that_it_said_counts_and_who_spoke_last_is_first() -> None:
    table = Sightings()
    for number, (name, boot) in enumerate([("a", "0"), ("b", "1"), ("a", "2"), ("c", "9")]):
        table.note(f"/m?id={name}&boot={boot}", peer="x", now=float(number))
    assert [(s.id, s.boot, s.seen, s.count) for s in table.latest()] == [
        ("c", "9", 3.0, 1),
        ("a", "FAILED", 2.0, 2),
        ("b", "TESTING", 1.0, 1),
    ]


@pytest.mark.parametrize("target", ["/m.json", "/m.json?", "/m.json?x=1", "/m.json?arch=esp32", "?"])
def test_who_says_nothing_is_nobody(target: str) -> None:
    table = Sightings()
    table.note(target, peer="x", now=0.0)
    assert len(table) == 0


def test_who_has_no_name_is_known_by_its_address() -> None:
    table = Sightings()
    table.note("/m?version=1&id=", peer="192.0.2.1", now=0.0)
    assert table.latest()[0].id == "[192.0.2.1]"


def test_the_table_is_bounded_and_who_was_silent_longest_goes() -> None:
    table = Sightings(3)
    for name in ("a", "b", "c", "a", "d"):
        table.note(f"/m?id={name}", peer="x", now=0.0)
    assert [seen.id for seen in table.latest()] == ["d", "a", "c"]


def test_values_are_cut_and_fields_are_counted() -> None:
    table = Sightings()
    table.note(f"/m?id={'x' * MAX_TEXT}", peer="x", now=0.0)
    table.note(f"/m?id={'x' * (MAX_TEXT + 1)}", peer="x", now=0.0)
    assert [(seen.id, seen.count) for seen in table.latest()] == [("x" * MAX_TEXT, 2)]
    table.note("/m?id=y" + "&a=1" * (MAX_FIELDS - 1), peer="x", now=0.0)
    assert len(table) == 2
    table.note("/m?id=z" + "&a=1" * MAX_FIELDS, peer="x", now=0.0)
    assert len(table) == 2


@given(st.text(max_size=60))
def test_whatever_is_sent_is_printable_in_the_table(target: str) -> None:
    table = Sightings()
    table.note(f"/{target}?id={target}&boot=0", peer="x", now=0.0)
    for seen in table.latest():
        assert (seen.id + seen.path + seen.version).isprintable()
