"""The device's end of the dialect: whatever comes in, what goes out is a reply or nothing."""

import json
from typing import Any

import anyio
import pytest
from fake_device import FakeDevice
from hypothesis import given, settings, strategies as st

from mgota.core.rpc import MAX_FRAME, decode_reply
from mgota.errors import TransferError
from mgota.receiver import Receiver
from mgota.responder import Responder

SESSION = "0123456789abcdef"


def answers(*frames: bytes, fake: FakeDevice | None = None) -> list[tuple[dict[str, Any], bool]]:
    """What a device replies to frames, and whether each reply had to be certain."""
    replies: list[tuple[dict[str, Any], bool]] = []

    async def send(reply: bytes, certain: bool) -> None:
        decode_reply(reply)
        replies.append((json.loads(reply), certain))

    async def run() -> None:
        found = fake or FakeDevice()
        receiver = Receiver(found.device)
        responder = Responder(found.device, receiver)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receiver.run)
            for frame in frames:
                await responder.answer(frame, send)
            tasks.cancel_scope.cancel()
        assert not found.device.live.held

    anyio.run(run)
    return replies


methods = st.sampled_from(["ota.upload", "ota.update", "ota.abort", "ota.status", "ota.commit", "ota.rollback", "x"])
values = st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=4) | st.just("YWJj")
params = st.dictionaries(
    st.sampled_from(["total", "offset", "chunk", "session", "image"]), values | st.just(SESSION), max_size=5
)
uploads = st.fixed_dictionaries(
    {
        "total": st.integers(0, 9),
        "offset": st.integers(0, 9),
        "chunk": st.sampled_from(["", "YWJj", "YQ==", "YWJjZGVmZ2hp"]),
    },
    optional={"session": st.sampled_from([SESSION, "b" * 16])},
)
frames = st.builds(
    lambda number, method, given: json.dumps({"id": number, "method": method, "params": given}).encode(),
    st.integers(0, 99) | st.none(),
    methods,
    params | uploads,
)


@settings(max_examples=60)
@given(st.lists(frames | st.binary(max_size=40), max_size=12))
def test_any_frames_in_any_order_are_answered_or_not_and_nothing_else(given: list[bytes]) -> None:
    replies = answers(*given)
    assert len(replies) <= len(given)
    for reply, _ in replies:
        assert ("result" in reply) != ("error" in reply)


def request(method: str, number: int | None = 1, **given: object) -> bytes:
    return json.dumps({"id": number, "method": method, "params": given}).encode()


def test_replies_to_a_session_are_asked_for_again_and_all_others_must_arrive() -> None:
    chunk: dict[str, Any] = {"total": 3, "offset": 0, "chunk": "YWJj"}
    [(_, plain)] = answers(request("ota.upload", **chunk))
    assert plain
    replies = answers(
        request("ota.upload", session=SESSION, **chunk),
        request("ota.upload", session=SESSION, total=3, offset=3, chunk=""),
        request("ota.status"),
    )
    assert [certain for _, certain in replies] == [False, True, True]  # who resets next cannot be asked again


def test_what_is_no_request_gets_its_code_and_a_reply_gets_none() -> None:
    for frame, code in (
        (b"nonsense", -32700),
        (b" " * (MAX_FRAME + 1), -32700),
        (b"{}", -32600),
        (request("ota.nope"), -32601),
        (request("ota.upload"), -32602),
        (request("ota.abort"), -32602),
        (request("ota.commit", image="x"), -32602),
        (request("ota.status", session="x"), -32602),
        (request("ota.abort", session=SESSION), 1),
    ):
        [(reply, _)] = answers(frame)
        assert reply["error"]["code"] == code
    assert answers(b'{"id":1,"result":"ok"}') == []
    assert answers(request("ota.nope", None), request("ota.status", None)) == []


def test_what_was_promised_is_done_though_the_reply_is_lost() -> None:
    fake = FakeDevice()
    fake.prove(b"the one before")

    async def send(_reply: bytes, _certain: bool) -> None:
        raise TransferError("the line is dead")

    async def run() -> None:
        responder = Responder(fake.device, Receiver(fake.device))
        await responder.answer(request("ota.rollback"), send)

    anyio.run(run)
    assert fake.reset.count == 1


def test_a_failure_after_the_reply_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice()
    fake.prove(b"the one before")

    async def fails(*_: object, **__: object) -> None:
        raise TransferError("too late")

    monkeypatch.setattr("mgota.responder.rollback", fails)
    [(reply, certain)] = answers(request("ota.rollback"), fake=fake)
    assert (reply["result"], certain) == ("ok", True)
    assert "too late" in caplog.text
