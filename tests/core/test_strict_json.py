"""JSON from outside: what is taken, what is not, and that there is no third way."""

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mgota.core.strict_json import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, decode_base64, encode_base64, parse_object
from mgota.errors import MalformedError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)  # fmt: skip


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def nested(levels: int) -> bytes:
    return b'{"":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    "text",
    [
        b"", b"1", b"[]", b"null", b"{", b"{}x", b'{"a":}', b'{"a":1,}', b"{'a':1}", b'{"a":01}', b'{"a":+1}',
        b'{"a":"\x01"}', b'{"a":"\xff"}', b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16"), b'{"a":"\\ud800"}',
        b'{"\\udfff":1}', b'{"a":[["\\ud83d"]]}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":-Infinity}', b'{"a":1e999}',
        b'{"a":-1e999}', b'{"a":1,"a":1}', b'{"b":[{"a":1,"\\u0061":2}]}', b'{"a":"',
    ],
)  # fmt: skip
def test_what_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedError, match="JSON"):
        parse_object(text)


def test_what_is_taken() -> None:
    assert parse_object(b' {"a": "\\ud83d\\ude00 [[[[[[[[[[", "b": [1, -2.5e3, true, null, {}]} ') == {
        "a": "\U0001f600 [[[[[[[[[[",
        "b": [1, -2500.0, True, None, {}],
    }


def test_the_limit_of_size() -> None:
    text = b'{"a":"' + b"x" * (MAX_BYTES - 8) + b'"}'
    assert len(text) == MAX_BYTES
    assert parse_object(text)
    with pytest.raises(MalformedError, match="longer"):
        parse_object(text + b" ")
    with pytest.raises(MalformedError, match="longer"):
        parse_object(b"{}", limit=1)


def test_the_limit_of_depth() -> None:
    assert parse_object(nested(MAX_DEPTH))
    with pytest.raises(MalformedError, match="deeper"):
        parse_object(nested(MAX_DEPTH + 1))
    assert parse_object(nested(3), depth=3)
    with pytest.raises(MalformedError, match="deeper"):
        parse_object(nested(3), depth=2)
    with pytest.raises(MalformedError, match="deeper"):
        parse_object(nested(100_000), limit=1_000_000)
    assert parse_object(b'{"a":[' + b",".join([b"[]"] * 100) + b"]}", depth=3)


def test_brackets_inside_strings_do_not_count() -> None:
    assert parse_object(rb'{"a": "\\\"[[[[[[[[[[[[", "b": "{{{{{{{{{{{{"}')


def test_many_quotes_are_looked_through_once() -> None:
    # Each of them could begin a string that never ends; to try them all would take minutes.
    with pytest.raises(MalformedError):
        parse_object(b"[" * 9 + b'"' + b'\\"' * 500_000, limit=2_000_000, depth=9)


def test_the_limit_of_digits() -> None:
    assert parse_object(b'{"a":-' + b"9" * MAX_DIGITS + b"}") == {"a": -int("9" * MAX_DIGITS)}
    with pytest.raises(MalformedError, match="digits"):
        parse_object(b'{"a":' + b"9" * (MAX_DIGITS + 1) + b"}")
    with pytest.raises(MalformedError, match="digits"):
        parse_object(b'{"a":' + b"9" * 100_000 + b"}", limit=1_000_000)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), VALUES, max_size=4))
def test_what_json_can_say_is_read_as_python_reads_it(value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    if depth(value) <= MAX_DEPTH:
        assert parse_object(data) == value
    else:
        with pytest.raises(MalformedError, match="deeper"):
            parse_object(data)


@given(st.binary(max_size=64) | st.text('{}[]":,\\u0d819eE-.truefalsn ', max_size=64).map(str.encode))
def test_any_bytes_are_an_object_or_malformed(data: bytes) -> None:
    try:
        found = parse_object(data)
    except MalformedError:
        return
    assert json.loads(data) == found
    json.dumps(found, ensure_ascii=False).encode()


@given(st.binary(max_size=100))
def test_base64_there_and_back(data: bytes) -> None:
    assert encode_base64(data) == b64encode(data).decode()
    assert decode_base64(encode_base64(data)) == data


@pytest.mark.parametrize(
    "text",
    ["A", "AA", "AA=", "AA==\n", " AA==", "AB==", "AAB=", "AA==AA==", "====", "A-_=", "é", "\ud800"],
)
def test_base64_has_one_form(text: str) -> None:
    with pytest.raises(MalformedError, match="base64"):
        decode_base64(text)


@given(st.text("ABab01+/=\n-", max_size=12))
def test_any_text_is_canonical_base64_or_malformed(text: str) -> None:
    try:
        data = decode_base64(text)
    except MalformedError:
        return
    assert b64encode(data).decode() == text
