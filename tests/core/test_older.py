"""Mongoose's older routes: from a head to a piece, and from the record to what its dashboard shows."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.edge import Action, Decision, Edge
from mgota.core.geometry import Slot
from mgota.core.http import Head, Refusal
from mgota.core.older import MAX_PIECE, firmware_status, read_place
from mgota.core.record import BootRecord, SlotImage, State
from mgota.errors import ConfigError

EDGE = Edge(older="/api/firmware")
LENGTH = ("content-length", "5")


def route(method: str, target: str, *fields: tuple[str, str], edge: Edge = EDGE) -> Decision | int:
    decision = edge.route(Head(method, target, (("host", "localhost"), *fields)))
    return decision.status if isinstance(decision, Refusal) else decision


def test_the_routes() -> None:
    piece = Decision(Action.PIECE, size=5, offset=4096, total=9999, older=True)
    assert route("POST", "/api/firmware/upload?offset=4096&total=9999&name=fw.bin", LENGTH) == piece
    assert route("POST", "/api/firmware/upload?total=9999&offset=4096", LENGTH) == piece
    end = route("POST", "/api/firmware/upload?offset=9&total=9", ("content-length", "0"))
    assert end == Decision(Action.PIECE, size=0, offset=9, total=9, older=True)
    assert route("GET", "/api/firmware/status") == Decision(Action.SLOTS, older=True)
    assert route("POST", "/api/firmware/commit") == Decision(Action.COMMIT, older=True)
    assert route("POST", "/api/ota/commit") == Decision(Action.COMMIT)
    for target in ("/api/firmware", "/api/firmware/", "/api/firmware/nope", "/api/firmwareupload"):
        assert route("POST", target, LENGTH) == 404


def test_a_piece_that_is_packed_is_refused_and_not_stored_as_it_comes() -> None:
    target = "/api/firmware/upload?offset=0&total=9"
    assert route("POST", target, LENGTH, ("content-encoding", "gzip")) == 415
    assert isinstance(route("POST", target, LENGTH, ("content-encoding", "identity")), Decision)


def test_get_changes_nothing_unless_it_is_asked_for() -> None:
    legacy = Edge(older="/api/firmware", legacy_get=True)
    for what in ("commit", "rollback"):
        assert route("GET", f"/api/firmware/{what}") == 405
        assert isinstance(route("GET", f"/api/firmware/{what}", edge=legacy), Decision)
        assert route("GET", f"/api/firmware/{what}", ("sec-fetch-site", "same-origin"), edge=legacy) == 403
    assert route("GET", "/api/firmware/upload?offset=0&total=5", edge=legacy) == 405
    assert route("POST", "/api/firmware/status") == 405


def test_without_them_there_is_nothing() -> None:
    assert route("GET", "/api/firmware/status", edge=Edge()) == 404
    assert route("GET", "/api/firmware/status", edge=Edge(has_app=True)) == Decision(Action.APP)
    assert Edge(older="/old", has_app=True).guards(Head("GET", "/old/status"))


@pytest.mark.parametrize("older", ["old", "/old/", "/a b", "", "/api/ota", "/api/ota/old", "/api"])
def test_prefixes_that_cannot_be(older: str) -> None:
    with pytest.raises(ConfigError):
        Edge(older=older or "/")


def test_a_page_cannot_be_among_them() -> None:
    with pytest.raises(ConfigError):
        Edge(older="/old", page="/old/status")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((), 411),
        ((("transfer-encoding", "chunked"),), 411),
        ((("content-length", "x"),), 400),
        ((("content-length", str(MAX_PIECE + 1)),), 413),
    ],
)
def test_a_piece_says_how_long_it_is(fields: tuple[tuple[str, str], ...], status: int) -> None:
    assert route("POST", "/api/firmware/upload?offset=0&total=5", *fields) == status
    good = ("content-length", str(MAX_PIECE))
    assert isinstance(route("POST", "/api/firmware/upload?offset=0&total=5", good), Decision)


@pytest.mark.parametrize(
    "query",
    [
        "", "?", "?offset=0", "?total=5", "?offset=&total=5", "?offset=-1&total=5", "?offset=0&total=1e3",
        "?offset=0&offset=0&total=5", "?offset=0&total=5&total=6", "?offset=0x0&total=5", "?offset=0&total=" + "9" * 19,
        "?offset=%B2&total=5", "?offset=+0&total=5", "?" + "a&" * 20 + "offset=0&total=5",
    ],
)  # fmt: skip
def test_where_it_belongs_is_said_once_and_in_digits(query: str) -> None:
    assert route("POST", "/api/firmware/upload" + query, LENGTH) == 500


@given(st.text(max_size=60))
def test_any_query_is_a_place_or_a_refusal(query: str) -> None:
    found = read_place(Head("POST", "/api/firmware/upload?" + query))
    assert isinstance(found, Refusal) or (min(found) >= 0 and len(found) == 2)


def image(size: int, *, proven: bool = False) -> SlotImage:
    return SlotImage(size=size, image_size=size, sha256="ab" * 32, version="1.2.3", proven=proven)


def test_what_the_slots_hold() -> None:
    nothing = {"status": 0, "crc32": "0", "size": 0, "timestamp": 0}
    assert firmware_status(None, Slot.A) == [nothing, nothing]
    record = BootRecord().next_with(Slot.A, image(7, proven=True))
    assert firmware_status(record, Slot.A) == [
        {"status": 3, "crc32": "0", "size": 7, "timestamp": 0, "version": "1.2.3", "sha256": "ab" * 32},
        nothing,
    ]
    record = record.next_with(Slot.B, image(9))

    def states(record: BootRecord, running: Slot) -> list[object]:
        return [each["status"] for each in firmware_status(record, running)]

    assert states(record, Slot.A) == [3, 0]  # what was never proven is nothing to go back to
    assert states(record.next(state=State.TESTING, trial=Slot.B), Slot.A) == [3, 1]
    assert states(record.next(state=State.FAILED, trial=Slot.B), Slot.B) == [2, 3]
    assert states(record.next_with(Slot.B, image(9, proven=True)), Slot.B) == [3, 3]
