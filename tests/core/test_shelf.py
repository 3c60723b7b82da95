"""Which file a request asks for, and what of it."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given, strategies as st

from mgota.core.http import Head, Refusal
from mgota.core.shelf import MAX_PATH, Portion, parts_of, portion_of, tag_of

TAG = tag_of(7, 100, 12345)


def asked(size: int = 100, method: str = "GET", **fields: str) -> Portion | Refusal:
    return portion_of(Head(method, "/x", tuple((n.replace("_", "-"), v) for n, v in fields.items())), size, TAG)


def test_a_tag_is_another_one_for_another_file() -> None:
    assert TAG == '"7-64-3039"'
    assert len({tag_of(7, 100, 12345), tag_of(8, 100, 12345), tag_of(7, 101, 12345), tag_of(7, 100, 12346)}) == 4


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/a", ("a",)),
        ("/a/b.json", ("a", "b.json")),
        ("/a%20b/%C3%A4", ("a b", "ä")),
        ("/a..b", ("a..b",)),
        ("/" + "x" * (MAX_PATH - 1), ("x" * (MAX_PATH - 1),)),
    ],
)
def test_paths_that_lead_somewhere(path: str, parts: tuple[str, ...]) -> None:
    assert parts_of(path) == parts


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "*", "a", "//", "//a", "/a/", "/a//b", "/..", "/../a", "/a/../b", "/./a", "/.git/config", "/a/.hidden",
        "/%2e%2e/a", "/%2E%2E%2Fa", "/..%2fa", "/a%00b", "/a\\b", "/%5c..%5ca", "/..%5Ca", "/%ff", "/a%0ab", "/%c0%ae/",
        "/" + "x" * MAX_PATH, "/a/%2e",
    ],
)  # fmt: skip
def test_paths_that_lead_nowhere(path: str) -> None:
    assert parts_of(path) is None


@given(st.text("/.%2eEfF5cCab\\\0é", max_size=20))
def test_no_path_leads_out_of_the_shelf(path: str) -> None:
    parts = parts_of("/" + path)
    if parts is None:
        return
    whole = PurePosixPath("/shelf", *parts)
    assert ".." not in whole.parts
    assert whole.is_relative_to("/shelf")
    assert len(whole.parts) == len(parts) + 2


@pytest.mark.parametrize(
    ("value", "start", "size"),
    [
        ("bytes=0-99", 0, 100), ("bytes=0-0", 0, 1), ("bytes=10-", 10, 90), ("bytes=10-19", 10, 10),
        ("bytes=99-99", 99, 1),
        ("bytes=99-", 99, 1), ("bytes=50-1000", 50, 50), ("bytes=-1", 99, 1), ("bytes=-100", 0, 100),
        ("bytes=-500", 0, 100),
        ("BYTES = 3-4", 3, 2), ("bytes=0-9999999999999999999", 0, 100),
    ],
)  # fmt: skip
def test_a_range_is_a_part(value: str, start: int, size: int) -> None:
    found = asked(range=value)
    assert isinstance(found, Portion)
    assert (found.status, found.start, found.size) == (206, start, size)
    assert ("Content-Range", f"bytes {start}-{start + size - 1}/100") in found.headers
    assert ("ETag", TAG) in found.headers


@pytest.mark.parametrize(
    "value",
    [
        "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=5-3", "bytes=0-1,5-6", "bytes=1-2, 3-4", "items=0-1",
        "bytes=+1-2", "bytes=0x1-2", "bytes=٣-٤", "bytes=1-2 3", "bytes=" + "9" * 20 + "-",
    ],
)  # fmt: skip
def test_what_is_no_single_range_gets_all_of_it(value: str) -> None:
    found = asked(range=value)
    assert isinstance(found, Portion)
    assert (found.status, found.start, found.size) == (200, 0, 100)


@pytest.mark.parametrize(
    ("size", "value"),
    [(100, "bytes=100-"), (100, "bytes=100-200"), (100, "bytes=-0"), (0, "bytes=0-"), (0, "bytes=-5")],
)
def test_a_range_out_of_reach_is_refused(size: int, value: str) -> None:
    found = asked(size, range=value)
    assert isinstance(found, Refusal)
    assert found.status == 416
    assert ("Content-Range", f"bytes */{size}") in found.headers


@pytest.mark.parametrize(
    ("condition", "status"),
    [(TAG, 206), ('"other"', 200), (f"W/{TAG}", 200), ("Wed, 25 Nov 2026 10:00:00 GMT", 200), ("", 200)],
)
def test_if_range_asks_for_the_same_bytes(condition: str, status: int) -> None:
    found = asked(range="bytes=5-", if_range=condition)
    assert isinstance(found, Portion)
    assert found.status == status


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (TAG, 304),
        (f"W/{TAG}", 304),
        ("*", 304),
        (f'"a", {TAG}', 304),
        ('"other"', 200),
        (TAG.strip('"'), 200),
        ("", 200),
    ],
)
def test_if_none_match_spares_what_the_client_has(condition: str, status: int) -> None:
    for method in ("GET", "HEAD"):
        found = asked(method=method, if_none_match=condition)
        assert isinstance(found, Portion)
        assert found.status == status
    assert isinstance(found := asked(range="bytes=1-", if_none_match=TAG), Portion)
    assert found.status == 304


def test_two_ranges_in_two_fields_get_all_of_it() -> None:
    found = portion_of(Head("GET", "/x", (("range", "bytes=1-2"), ("range", "bytes=1-2"))), 100, TAG)
    assert isinstance(found, Portion)
    assert found.status == 200


def test_a_head_has_no_range() -> None:
    found = asked(method="HEAD", range="bytes=5-")
    assert isinstance(found, Portion)
    assert (found.status, found.size) == (200, 100)


def test_an_empty_file_is_sent_whole() -> None:
    assert asked(0) == Portion(200, 0, 0, (("ETag", TAG), ("Accept-Ranges", "bytes"), ("Cache-Control", "no-cache")))


@given(st.text("bytes=-0123456789, ", max_size=20) | st.from_regex(r"\Abytes=[0-9]*-[0-9]*\Z"), st.integers(0, 200))
def test_whatever_is_asked_for_lies_in_the_file(value: str, size: int) -> None:
    found = asked(size, range=value)
    if isinstance(found, Portion):
        assert 0 <= found.start <= found.start + found.size <= size
        assert found.size or not size
