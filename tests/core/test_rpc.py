"""Frames of the JSON-RPC dialect: bytes to values and back, and whatever is no frame."""

import contextlib
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, strategies as st

from mgota.core.rpc import (
    ABORT,
    KINDS,
    MAX_CHUNK,
    MAX_FRAME,
    OK,
    UPDATE,
    Abort,
    Chunk,
    Code,
    Fault,
    Reply,
    Request,
    RpcError,
    Standing,
    abort_request,
    code_of,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    encode_upload,
    is_reply,
    is_session,
    presence,
    read_abort,
    read_chunk,
    read_image,
    read_session,
    read_standing,
    upload_request,
)
from mgota.errors import MalformedError, OtaError, RejectedError, StalledError, UpdateRunningError

SESSION = "0123456789abcdef"

ids = st.none() | st.integers(-(2**62), 2**62) | st.text(st.characters(exclude_categories=["Cs"]), max_size=64)
sessions = st.none() | st.from_regex(r"[0-9A-Za-z_-]{16,64}", fullmatch=True)
counts = st.integers(0, 2**62)
chunks = st.builds(Chunk, counts, counts, st.binary(max_size=300), sessions)
faults = st.builds(
    Fault,
    st.integers(-33000, 10),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    sessions,
    st.none() | counts,
    st.booleans(),
    st.none() | st.sampled_from(sorted(KINDS)),
)


@given(ids, chunks)
def test_a_chunk_comes_out_as_it_went_in(reply_to: int | str | None, chunk: Chunk) -> None:
    request = decode_request(encode_request(upload_request(reply_to, chunk)))
    assert encode_upload(7, chunk) == encode_request(upload_request(7, chunk))
    assert encode_upload(7, chunk, UPDATE) == encode_request(upload_request(7, chunk, UPDATE))
    assert (request.reply_to, request.method) == (reply_to, "ota.upload")
    assert read_chunk(request) == chunk


@given(ids, faults)
def test_a_fault_comes_out_as_it_went_in(reply_to: int | str | None, fault: Fault) -> None:
    assert decode_reply(encode_reply(Reply(reply_to, fault=fault))) == Reply(reply_to, fault=fault)


@given(ids, st.builds(Standing, sessions.map(lambda s: s or SESSION), counts, st.booleans(), st.booleans()))
def test_a_standing_comes_out_as_it_went_in(reply_to: int | str | None, standing: Standing) -> None:
    assert read_standing(decode_reply(encode_reply(Reply(reply_to, standing))).result) == standing


def test_the_frames_are_those_of_the_specification() -> None:
    chunk = upload_request(1, Chunk(12345, 0, b"abc"))
    assert json.loads(encode_request(chunk)) == {
        "id": 1,
        "method": "ota.upload",
        "params": {"total": 12345, "offset": 0, "chunk": "YWJj"},
    }
    assert json.loads(encode_reply(Reply(1, OK))) == {"id": 1, "result": "ok"}
    assert json.loads(encode_reply(Reply(1, Standing(SESSION, 4096)))) == {
        "id": 1,
        "result": {"session": SESSION, "next": 4096},
    }
    assert json.loads(encode_reply(Reply(1, Standing(SESSION, 9, sealed=True, activated=True)))) == {
        "id": 1,
        "result": {"session": SESSION, "next": 9, "sealed": True, "activated": True},
    }
    assert json.loads(encode_reply(Reply(None, fault=Fault(Code.PARSE, "no")))) == {
        "id": None,
        "error": {"code": -32700, "message": "no"},
    }
    assert json.loads(encode_reply(Reply("x", fault=Fault(1, "gap", SESSION, 4096)))) == {
        "id": "x",
        "error": {"code": 1, "message": "gap", "data": {"session": SESSION, "next": 4096}},
    }
    assert json.loads(encode_reply(Reply("x", fault=Fault(1, "over", SESSION, final=True)))) == {
        "id": "x",
        "error": {"code": 1, "message": "over", "data": {"session": SESSION, "final": True}},
    }
    assert json.loads(presence(online=True, version="1.2.3")) == {
        "method": "status.notify",
        "params": {"status": "online", "firmware_version": "1.2.3"},
    }
    last = {"number": 7, "outcome": "rolled_back"}
    assert json.loads(presence(online=True, version="1", last_update=last))["params"]["last_update"] == last
    assert json.loads(presence(online=False, version=None))["params"] == {"status": "offline", "firmware_version": ""}
    member = json.loads(presence(online=True, version="1", gateway="site/gw/status"))["params"]
    assert member == {"status": "online", "firmware_version": "1", "gateway": "site/gw/status"}
    assert json.loads(presence(online=True, version=None, devices=("a", "b")))["params"]["devices"] == ["a", "b"]
    assert "id" not in json.loads(encode_request(Request(None, "ota.status")))


def code(data: bytes) -> Code:
    with pytest.raises(RpcError) as caught:
        read_chunk(decode_request(data))
    assert code_of(caught.value) is caught.value.code
    return caught.value.code


NO_COUNTS: list[object] = [-1, True, False, 1.0, "1", None, [], 1e3]
NO_BASE64: list[object] = [None, 1, [], "YWJ", "YWJj=", "YWJj\n", "Y WJj", "YR==", "YWJk-_==", "é", "=", "YQ="]
GOOD: dict[str, Any] = {"total": 3, "offset": 0, "chunk": "YWJj"}


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (b"", Code.PARSE),
        (b"{", Code.PARSE),
        (b"[]", Code.PARSE),
        (b"\xff", Code.PARSE),
        (b'{"method":"a","method":"b"}', Code.PARSE),
        (b'{"id":NaN,"method":"ota.upload"}', Code.PARSE),
        (b'{"method":"x","params":' + b"[" * 100_000, Code.PARSE),
        ({"params": GOOD}, Code.INVALID),
        ({"method": 7, "params": GOOD}, Code.INVALID),
        ({"id": True, "method": "ota.upload", "params": GOOD}, Code.INVALID),
        ({"id": 1.5, "method": "ota.upload", "params": GOOD}, Code.INVALID),
        ({"id": [], "method": "ota.upload", "params": GOOD}, Code.INVALID),
        ({"id": "x" * 65, "method": "ota.upload", "params": GOOD}, Code.INVALID),
        ({"method": "ota.upload", "params": []}, Code.BAD_PARAMS),
        ({"method": "ota.upload"}, Code.BAD_PARAMS),
        *[
            ({"method": "ota.upload", "params": GOOD | {name: value}}, Code.BAD_PARAMS)
            for name in ("total", "offset")
            for value in NO_COUNTS
        ],
        *[({"method": "ota.upload", "params": GOOD | {"chunk": value}}, Code.BAD_PARAMS) for value in NO_BASE64],
        *[
            ({"method": "ota.upload", "params": GOOD | {"session": value}}, Code.BAD_PARAMS)
            for value in (1, "", "a" * 15, "a" * 65, "a" * 15 + "/", "a" * 16 + "\n")
        ],
    ],
)
def test_what_is_no_chunk_has_a_code(frame: bytes | dict[str, Any], expected: Code) -> None:
    assert code(frame if isinstance(frame, bytes) else json.dumps(frame).encode()) is expected


def test_the_id_is_kept_where_it_can_be_read() -> None:
    with pytest.raises(RpcError) as caught:
        decode_request(b'{"id":7}')
    assert caught.value.reply_to == 7


def test_limits_have_two_sides() -> None:
    whole = encode_request(upload_request(1, Chunk(MAX_CHUNK, 0, bytes(MAX_CHUNK), "s" * 64)))
    assert len(whole) <= MAX_FRAME
    assert read_chunk(decode_request(whole)).data == bytes(MAX_CHUNK)
    assert code(encode_request(upload_request(1, Chunk(MAX_CHUNK, 0, bytes(MAX_CHUNK + 1))))) is Code.BAD_PARAMS
    assert decode_request(whole, limit=len(whole)).method == "ota.upload"
    with pytest.raises(RpcError, match="longer"):
        decode_request(whole, limit=len(whole) - 1)
    assert read_session(Request(1, "x", {"session": "a" * 16})) == "a" * 16
    assert is_session("a" * 64)
    assert not is_session("a" * 65)
    assert decode_request(b'{"id":"%s","method":"m"}' % (b"x" * 64)).reply_to == "x" * 64


@given(
    st.binary(max_size=200) | st.binary(max_size=60).map(lambda tail: b'{"id":1,"method":"ota.upload","params":' + tail)
)
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    with contextlib.suppress(OtaError):
        read_chunk(decode_request(data))
    with contextlib.suppress(OtaError):
        decode_reply(data)
    assert isinstance(is_reply(data), bool)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["id", "method", "params", "result", "error", "total", "offset", "chunk", "session"]),
        json_values
        | st.dictionaries(st.sampled_from(["total", "offset", "chunk", "session", "next", "code"]), json_values),
    )
)
def test_any_object_is_a_frame_or_an_error(frame: dict[str, object]) -> None:
    data = json.dumps(frame).encode()
    for read in (lambda: read_chunk(decode_request(data)), lambda: read_image(decode_request(data))):
        with contextlib.suppress(OtaError):
            read()
    with contextlib.suppress(OtaError):
        read_standing(decode_reply(data).result)


@given(st.text("ABCDabcd0189+/=", max_size=12))
def test_base64_has_one_spelling(text: str) -> None:
    frame = json.dumps({"id": 1, "method": "ota.upload", "params": GOOD | {"chunk": text}}).encode()
    try:
        data = read_chunk(decode_request(frame)).data
    except OtaError:
        return
    assert b64encode(data).decode() == text


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"id":1}',
        b'{"id":[],"result":1}',
        b'{"id":1,"error":null}',
        b'{"id":1,"error":{"message":"x"}}',
        b'{"id":1,"error":{"code":true,"message":"x"}}',
        b'{"id":1,"error":{"code":1,"message":7}}',
    ],
)
def test_what_is_no_reply(data: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_reply(data)


def test_the_data_of_a_foreign_devices_error_may_be_anything() -> None:
    fault = decode_reply(b'{"id":1,"error":{"code":-5,"message":"x","data":{"next":-1,"session":3,"final":1}}}').fault
    assert fault == Fault(-5, "x")
    assert decode_reply(b'{"id":1,"error":{"code":1,"data":[]}}').fault == Fault(1, "")


@pytest.mark.parametrize(
    "result", ["ok", None, {}, {"session": SESSION}, {"session": SESSION, "next": True}, {"session": 1, "next": 1}]
)
def test_what_says_nothing_of_an_upload(result: object) -> None:
    with pytest.raises(MalformedError):
        read_standing(result)
    with pytest.raises(MalformedError):
        read_standing({"session": SESSION, "next": 1, "sealed": 1})


def test_the_image_that_a_commit_is_meant_for() -> None:
    assert read_image(Request(1, "ota.commit")) is None
    assert read_image(Request(1, "ota.commit", {"image": "aB" * 32})) == "aB" * 32
    for wrong in ("", "a" * 63, "g" * 64, 1):
        with pytest.raises(RpcError):
            read_image(Request(1, "ota.commit", {"image": wrong}))


def test_every_error_has_a_code() -> None:
    assert code_of(UpdateRunningError("x")) is Code.BUSY
    assert code_of(RejectedError("x")) is Code.FAILED
    assert code_of(StalledError("x")) is Code.FAILED


def test_a_reply_that_went_astray_is_known() -> None:
    assert is_reply(b'{"id":1,"result":"ok"}')
    assert is_reply(b'{"id":1,"error":{}}')
    assert not is_reply(b'{"id":1,"method":"x","params":{"result":1}}')
    assert not is_reply(b"nonsense")


def test_an_abort_names_its_session() -> None:
    request = decode_request(encode_request(abort_request(7, Abort("s" * 16))))
    assert (request.reply_to, request.method) == (7, ABORT)
    assert read_abort(request) == Abort("s" * 16)
    wrong: list[dict[str, object]] = [{}, {"session": None}, {"session": "short"}, {"session": 5}]
    for params in wrong:
        with pytest.raises(RpcError) as caught:
            read_abort(Request(7, ABORT, params))
        assert caught.value.code is Code.BAD_PARAMS
