"""The senders of the dialect, without a network: whatever a bad one does, the image is whole or the push fails."""

import json
import os
from typing import Any

import pytest
from dialect_bench import FATES, Network, RuledDevice, SmallDevice
from hypothesis import example, given, settings, strategies as st

from mgota import errors
from mgota.core.rpc import (
    MAX_CHUNK,
    UPDATE,
    UPLOAD,
    Code,
    Fault,
    Reply,
    Standing,
    decode_reply,
    encode_reply,
    presence,
)
from mgota.core.rpc_sender import MAX_ATTEMPTS, MAX_LINE, Ask, Chunk, Phase, error_of, read_online
from mgota.core.rpc_single import SINGLE_CHUNK, SinglePush
from mgota.core.rpc_window import GRACE, LOOK_AGAIN, MAX_FLIGHT, MAX_WINDOW, RETRY, RETRY_MAX, WindowPush

SESSION = "a-session-of-test"
IMAGE = os.urandom(1000)


def windowed(total: int = 1000, **options: Any) -> WindowPush:
    return WindowPush(total, session=SESSION, first_id=7, **{"window": 4, "chunk": 100, **options})


def answer(request: int, result: object = None, **fault: Any) -> Reply:
    """A reply that went through its bytes."""
    reply = Reply(
        request, result, Fault(**{"code": 1, "message": "no", "session": SESSION, **fault}) if fault else None
    )
    return decode_reply(encode_reply(reply))


def standing(request: int, position: int, **flags: bool) -> Reply:
    return answer(request, Standing(SESSION, position, **flags))


def begun(push: WindowPush, now: float = 0.0) -> int:
    """Connected and asked; the id of its first chunk."""
    push.connected(now)
    ask = push.next_message(now)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": None, "next": None, "total": None}), now)
    return ask.id + 1


def messages(push: WindowPush | SinglePush, now: float = 0.0) -> list[tuple[int, int]]:
    """Offsets and sizes of the chunks that it sends now."""
    found = []
    while message := push.next_message(now):
        assert isinstance(message, Chunk)
        found.append((message.offset, message.size))
    return found


# --- with a session, step by step -------------------------------------------------------------------------------------


def test_one_chunk_first_and_then_a_window_of_them() -> None:
    push = windowed()
    first = begun(push)
    assert messages(push) == [(0, 100)]
    push.take(standing(first, 100), 0.0)
    assert messages(push) == [(at, 100) for at in (100, 200, 300, 400)]
    push.take(standing(first + 2, 300), 0.0)
    assert messages(push) == [(at, 100) for at in (500, 600)], "one answer may tell of several chunks"
    assert push.acked == 300


@pytest.mark.parametrize(
    ("chunk", "count"), [(MAX_FLIGHT // MAX_WINDOW, MAX_WINDOW), (MAX_CHUNK, MAX_FLIGHT // MAX_CHUNK)]
)
def test_no_more_is_in_flight_than_a_device_keeps(chunk: int, count: int) -> None:
    push = windowed(10 * MAX_FLIGHT, window=MAX_WINDOW, chunk=chunk)
    first = begun(push)
    messages(push)
    push.take(standing(first, chunk), 0.0)
    assert len(messages(push)) == count


def test_the_end_is_sent_once_everything_is_written() -> None:
    push = windowed(150)
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    assert messages(push) == [(100, 50)]
    push.take(standing(first + 1, 150, sealed=True), 0.0)
    assert (push.phase, push.done) == (Phase.ENDING, False)
    assert messages(push) == [(150, 0)]
    push.take(standing(first + 1, 150, sealed=True), 0.0)
    assert messages(push) == []
    push.take(standing(first + 2, 150, sealed=True, activated=True), 0.0)
    assert push.done
    push.take(standing(first + 2, 150), 0.0)
    push.tick(1e9)
    assert push.done


def test_what_is_activated_before_the_end_is_not_believed() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100, activated=True), 0.0)
    assert not push.done


def test_a_gap_sends_everything_from_there_again_and_once() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    assert len(messages(push)) == 4
    for late in (2, 3, 4):  # the chunk at 100 was lost: three answers say so
        push.take(answer(first + late, next=100), 0.0)
    assert messages(push) == [(at, 100) for at in (100, 200, 300, 400)]
    push.take(answer(first + 4, next=100), 0.0)
    assert messages(push) == []


def test_a_gap_answer_also_acknowledges() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    messages(push)
    push.take(answer(first + 3, next=200), 0.0)
    assert push.acked == 200
    assert messages(push) == [(at, 100) for at in (200, 300, 400, 500)]


def blocked(push: WindowPush, now: float = 0.0) -> int:
    """Connected; another upload is under way. The id of the question."""
    push.connected(now)
    ask = push.next_message(now)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": None, "next": None, "update": {"received": 5, "size": 9}}), now)
    return ask.id


def test_another_upload_is_waited_for_and_nothing_is_sent() -> None:
    push = windowed()
    number = blocked(push)
    assert (push.waiting, push.next_message(0.0)) == ("another upload is under way", None)
    for turn in range(1, 20):  # it asks again and again, at the same pace
        now = turn * LOOK_AGAIN
        assert push.deadline == now
        push.tick(now)
        ask = push.next_message(now)
        assert ask == Ask(number + turn)
        push.take(answer(ask.id, {"session": None, "update": {"received": 5 + turn, "size": 99}}), now)
    push.tick(10.0)
    ask = push.next_message(10.0)
    assert ask
    push.take(answer(ask.id, {"session": None, "update": None}), 10.0)
    assert (push.waiting, messages(push)) == ("", [(0, 100)])


def test_another_upload_that_does_not_end_is_what_the_push_fails_of() -> None:
    push = windowed(patience=30.0)
    blocked(push)
    push.tick(30.0 + GRACE - 0.01)  # one that died just before lasts as long as the device's patience
    with pytest.raises(errors.BusyError, match="another upload is under way on the device, and has been for 30 s"):
        push.tick(30.0 + GRACE)


def test_who_is_told_busy_looks_why() -> None:
    """An upload that began meanwhile is waited for; a trial, of which the second refusal tells, is not."""
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(answer(first, code=Code.BUSY, kind="busy"), 0.0)
    ask = push.next_message(0.0)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": None, "update": {"received": 5, "size": 9}}), 0.0)
    assert push.waiting
    push.tick(LOOK_AGAIN)
    ask = push.next_message(LOOK_AGAIN)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": None, "update": None}), LOOK_AGAIN)
    assert messages(push) == [(0, 100)]
    push.take(answer(ask.id + 1, code=Code.BUSY, kind="busy", message="an image is on trial"), LOOK_AGAIN)
    ask = push.next_message(LOOK_AGAIN)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": None, "update": None, "trial": {}}), LOOK_AGAIN)
    assert messages(push) == [(0, 100)]
    with pytest.raises(errors.BusyError, match="an image is on trial"):
        push.take(answer(ask.id + 1, code=Code.BUSY, kind="busy", message="an image is on trial"), LOOK_AGAIN)


def test_a_refused_duplicate_only_acknowledges() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    messages(push)
    push.take(answer(first + 1, next=300), 0.0)
    assert messages(push) == [(at, 100) for at in (500, 600)]


def test_silence_sends_one_chunk_again_and_then_later() -> None:
    push = windowed(patience=100.0)
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 1.0)
    assert len(messages(push, 1.0)) == 4
    assert push.deadline == 1.0 + RETRY
    push.tick(push.deadline - 0.01)
    assert messages(push, 2.0) == []
    now, waits = 1.0, []
    for _ in range(5):
        waits.append(push.deadline - now)
        now = push.deadline
        push.tick(now)
        assert messages(push, now) == [(100, 100)]
    assert waits == [2.0, 4.0, 8.0, RETRY_MAX, RETRY_MAX]
    push.take(standing(first + 2, 300), now)  # an answer to what was sent at first
    assert messages(push, now) == [(at, 100) for at in (300, 400, 500, 600)]
    assert push.deadline == now + RETRY


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        (Phase.AWAY, "broker was away"),
        (Phase.ASKING, "did not answer"),
        (Phase.SENDING, "took nothing"),
        (Phase.ENDING, "did not tell"),
    ],
)
def test_patience_ends(phase: Phase, words: str) -> None:
    push = windowed(100, patience=30.0)
    push.tick(1e9)  # nothing is awaited before the first connection
    if phase is Phase.ASKING:
        push.connected(0.0)
    else:
        first = begun(push)
    assert list(iter(lambda: push.next_message(0.0), None))
    if phase is Phase.ENDING:
        push.take(standing(first, 100), 0.0)
    elif phase is Phase.AWAY:
        push.disconnected()
    assert push.phase is phase
    push.tick(29.9)
    with pytest.raises(errors.StalledError, match=words):
        push.tick(30.0)


def test_only_new_bytes_are_movement() -> None:
    push = windowed(patience=30.0)
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 10.0)
    for now in (20.0, 39.0):
        push.take(standing(first, 100), now)
        push.disconnected()
        push.connected(now)
        ask = push.next_message(now)
        assert ask
        push.take(answer(ask.id, {"session": SESSION, "next": 100, "total": 1000}), now)
        messages(push, now)
    with pytest.raises(errors.StalledError):
        push.tick(40.0)


def test_a_reconnect_asks_and_goes_on_from_there() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    messages(push)
    push.disconnected()
    assert push.next_message(0.0) is None
    push.take(standing(first + 1, 200), 0.0)
    assert push.acked == 100, "what comes without a connection is not from this one"
    push.connected(5.0)
    ask = push.next_message(5.0)
    assert isinstance(ask, Ask)
    assert push.next_message(5.0) is None
    push.take(standing(first + 2, 300), 5.0)
    assert push.phase is Phase.ASKING
    push.take(answer(ask.id, {"session": SESSION, "next": 400, "total": 1000}), 5.0)
    assert messages(push) == [(at, 100) for at in (400, 500, 600, 700)]


def test_a_question_is_repeated() -> None:
    push = windowed(patience=60.0)
    push.connected(0.0)
    first = push.next_message(0.0)
    push.tick(RETRY)
    second = push.next_message(RETRY)
    assert isinstance(first, Ask)
    assert isinstance(second, Ask)
    push.take(answer(first.id, {"session": None}), 3.0)
    assert messages(push, 3.0) == [(0, 100)]


@pytest.mark.parametrize(
    "found",
    [
        {"session": None, "next": None, "total": None},
        {"session": "somebody-elses-one", "next": 300, "total": 1000},
        {"session": SESSION, "next": 300, "total": 999},
        {"session": SESSION, "next": 1001, "total": 1000},
        {"session": SESSION, "next": -1, "total": 1000},
        {"session": SESSION, "next": True, "total": 1000},
        {"session": SESSION, "next": 3.0, "total": 1000},
        {},
    ],
)
def test_a_device_that_does_not_know_the_session_gets_it_from_0(found: dict[str, object]) -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    messages(push)
    push.online(1.0)
    ask = push.next_message(1.0)
    assert ask
    push.take(answer(ask.id, found), 1.0)
    assert messages(push, 1.0) == [(0, 100)]
    for request, position in ((first, 100), (first + 1, 200)):
        push.take(standing(request, position), 1.0)
        assert messages(push, 1.0) == [], "an answer of the first attempt"
    push.take(standing(ask.id + 1, 100), 1.0)
    assert len(messages(push, 1.0)) == 4


def test_a_device_that_lost_bytes_is_asked_and_followed() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    messages(push)
    push.take(answer(first + 1, next=0), 0.0)
    ask = push.next_message(0.0)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": SESSION, "next": 50, "total": 1000}), 0.0)
    assert messages(push)[0] == (50, 100)
    assert push.acked == 50


def test_a_device_that_forgets_again_and_again_is_given_up() -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    push.take(standing(first, 100), 0.0)
    for attempt in range(MAX_ATTEMPTS):
        push.online(1.0)
        ask = push.next_message(1.0)
        assert ask
        last = attempt == MAX_ATTEMPTS - 1
        if last:
            with pytest.raises(errors.TransferError, match="lost what it had 5 times"):
                push.take(answer(ask.id, {"session": None}), 1.0)
        else:
            push.take(answer(ask.id, {"session": None}), 1.0)
            assert messages(push, 1.0) == [(0, 100)]


def test_a_device_that_has_everything_gets_only_the_end() -> None:
    push = windowed()
    push.connected(0.0)
    ask = push.next_message(0.0)
    assert ask
    push.take(answer(ask.id, {"session": SESSION, "next": 1000, "total": 1000}), 0.0)
    assert messages(push) == [(1000, 0)]


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"code": Code.BUSY}, errors.BusyError),
        ({"code": 1, "final": True}, errors.RejectedError),
        ({"code": 1, "final": True, "next": 100}, errors.RejectedError),
        ({"code": 1}, errors.RejectedError),
        ({"code": Code.BAD_PARAMS}, errors.TransferError),
        ({"code": Code.PARSE}, errors.TransferError),
        ({"code": Code.UNKNOWN_METHOD}, errors.ConfigError),
        ({"code": 12345}, errors.RejectedError),
        ({"code": 1, "final": True, "kind": "rejected"}, errors.RejectedError),
        ({"code": 1, "final": True, "kind": "transfer"}, errors.TransferError),
        ({"code": 1, "final": True, "kind": "flash"}, errors.FlashError),
        ({"code": 1, "kind": "flash"}, errors.FlashError),
        ({"code": 1, "kind": "busy"}, errors.BusyError),
        ({"code": 1, "kind": "whatever"}, errors.RejectedError),
    ],
)
def test_a_refusal_is_an_error_of_its_kind(fault: dict[str, Any], kind: type[errors.OtaError]) -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    if kind is errors.BusyError:  # it looks why, and tries once more
        push.take(answer(first, **{"message": "its own line", **fault}), 0.0)
        assert push.next_message(0.0) == Ask(first + 1)
        push.take(answer(first + 1, {"session": None}), 0.0)
        assert messages(push) == [(0, 100)]
        first += 2
    with pytest.raises(kind, match=r"^its own line$") as caught:
        push.take(answer(first, **{"message": "its own line", **fault}), 0.0)
    assert type(caught.value) is kind


def test_a_device_that_is_stopping_is_waited_for() -> None:
    push = windowed(patience=10.0)
    first = begun(push)
    messages(push)
    push.take(answer(first, kind="transfer", message="the device is stopping"), 0.0)
    assert messages(push) == []
    push.tick(RETRY)
    assert messages(push, RETRY) == [(0, 100)]
    with pytest.raises(errors.StalledError, match="took nothing for 10 s; it says: the device is stopping"):
        push.tick(10.0)
    push = windowed(patience=10.0)
    first = begun(push)
    messages(push)
    push.take(answer(first, kind="transfer", message="the device is stopping"), 0.0)
    push.take(standing(first, 100), 5.0)
    with pytest.raises(errors.StalledError, match=r"took nothing for 10 s$"):
        push.tick(15.0)


def test_a_refusal_is_one_short_line() -> None:
    assert str(error_of(Fault(1, "a\nb" + "x" * 1000))).startswith("a")
    assert len(str(error_of(Fault(1, "a\nb" + "x" * 1000)))) <= MAX_LINE
    assert "\n" not in str(error_of(Fault(1, "a\nb")))
    assert "code 5" in str(error_of(Fault(5, "")))


def test_a_device_without_sessions_is_told_apart() -> None:
    push = windowed()
    push.connected(0.0)
    ask = push.next_message(0.0)
    assert ask
    with pytest.raises(errors.ConfigError, match="stop-and-wait"):
        push.take(answer(ask.id, code=Code.UNKNOWN_METHOD), 0.0)
    push = windowed()
    first = begun(push)
    messages(push)
    with pytest.raises(errors.ConfigError, match="stop-and-wait"):
        push.take(answer(first, "ok"), 0.0)


@pytest.mark.parametrize("result", [None, 1, [], "what", {"session": SESSION}, {"session": "x", "next": 100}])
def test_what_makes_no_sense_or_is_for_others_is_left_alone(result: object) -> None:
    push = windowed()
    first = begun(push)
    messages(push)
    for request in (0, first - 2, first + 1, "7", None):
        push.take(Reply(request, result), 0.0)
    push.take(answer(first, result), 0.0)
    push.take(answer(first, {"session": "another-session-x", "next": 100}), 0.0)
    push.take(standing(first, 101), 0.0)
    assert (push.acked, push.phase) == (0, Phase.SENDING)
    push.online(0.0)
    ask = push.next_message(0.0)
    assert ask
    push.take(answer(ask.id, [1]), 0.0)
    push.take(answer(ask.id, next=0), 0.0)
    assert push.phase is Phase.ASKING


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 0},
        {"chunk": MAX_CHUNK + 1},
        {"window": 0},
        {"window": MAX_WINDOW + 1},
        {"session": "short"},
        {"session": "x" * 65},
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ConfigError):
        WindowPush(1, **{"session": SESSION, "first_id": 1, **options})
    if "chunk" in options:
        with pytest.raises(errors.ConfigError):
            SinglePush(1, first_id=1, **options)
    WindowPush(1, session=SESSION, first_id=1, chunk=MAX_CHUNK, window=1)
    WindowPush(1, session=SESSION, first_id=1, chunk=1, window=MAX_WINDOW)
    SinglePush(1, first_id=1, chunk=1)


# --- doubt ------------------------------------------------------------------------------------------------------------


def doubting(status: dict[str, Any]) -> WindowPush:
    """The end was sent, and the device restarted."""
    push = windowed(100)
    first = begun(push)
    messages(push)
    push.take(standing(first, 100, sealed=True), 0.0)
    assert messages(push) == [(100, 0)]
    push.online(0.0)
    ask = push.next_message(0.0)
    assert ask
    push.take(answer(ask.id, {"session": None, **status}), 0.0)
    assert push.phase is Phase.DOUBT
    assert push.next_message(0.0) is None
    push.online(0.0)
    push.take(standing(first, 100, activated=True), 0.0)
    assert push.phase is Phase.DOUBT
    return push


@pytest.mark.parametrize("name", ["image", "staged"])
def test_a_device_that_restarted_with_the_image_took_it(name: str) -> None:
    push = doubting({name: {"sha256": "ab", "size": 100}})
    push.settle({"ab", "cd"}, 1.0)
    assert push.done


def test_a_device_that_is_about_to_restart_is_asked_again() -> None:
    push = doubting({"state": "TESTING", "image": None, "staged": 5})
    push.settle({"ab"}, 1.0)
    assert push.next_message(1.0) is None
    assert push.deadline == 1.0 + LOOK_AGAIN
    push.tick(1.0 + LOOK_AGAIN)
    ask = push.next_message(2.0)
    assert isinstance(ask, Ask)
    push.take(answer(ask.id, {"session": None, "image": {"sha256": "ab"}}), 2.0)
    push.settle({"ab"}, 2.0)
    assert push.done


def test_a_device_that_was_interrupted_gets_it_from_0() -> None:
    push = doubting({"state": "CONFIRMED", "outcome": "interrupted", "image": {"sha256": "other"}})
    push.settle({"ab"}, 1.0)
    assert messages(push, 1.0) == [(0, 100)]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"outcome": "rolled_back", "reason": "not committed"}, "not committed"),
        ({"outcome": "rolled_back"}, "rolled_back"),
        ({}, "does not say why"),
    ],
)
def test_a_device_that_does_not_run_it_is_no_success(status: dict[str, Any], words: str) -> None:
    push = doubting(status)
    with pytest.raises(errors.TransferError, match=words):
        push.settle({"ab"}, 1.0)


def test_an_activation_that_is_told_while_we_ask_counts() -> None:
    push = windowed(100)
    first = begun(push)
    messages(push)
    push.take(standing(first, 100, sealed=True), 0.0)
    messages(push)
    push.online(0.0)
    push.take(standing(first + 1, 100, sealed=True, activated=True), 0.0)
    assert push.done


# --- without a session ------------------------------------------------------------------------------------------------


def test_one_at_a_time() -> None:
    push = SinglePush(250, first_id=5, chunk=100)
    assert push.next_message(0.0) is None
    push.connected(0.0)
    seen = []
    for request in range(5, 9):
        assert not push.done
        seen += messages(push)
        assert messages(push) == []
        push.take(answer(request - 1, "ok"), 0.0)
        push.take(answer(request, "ok"), 1.0 * request)
        assert push.deadline == request + 60.0
    assert seen == [(0, 100), (100, 100), (200, 50), (250, 0)]
    assert push.done
    push.take(answer(8, "ok"), 0.0)
    push.online(0.0)
    push.tick(1e9)
    assert push.done
    assert push.next_message(0.0) is None


def test_nothing_is_repeated_and_a_cut_begins_again() -> None:
    push = SinglePush(250, first_id=5, chunk=100)
    push.tick(1e9)
    push.connected(0.0)
    assert messages(push) == [(0, 100)]
    push.tick(59.0)
    assert messages(push) == []
    push.take(answer(5, "ok"), 59.0)
    assert messages(push) == [(100, 100)]
    push.disconnected()
    push.take(answer(6, "ok"), 60.0)
    assert push.next_message(60.0) is None
    push.connected(60.0)
    assert messages(push) == [(0, 100)]
    push.online(60.0)
    assert messages(push) == [(0, 100)]
    push.take(answer(7, "ok"), 60.0)
    assert messages(push) == []
    with pytest.raises(errors.StalledError, match="took nothing for 60 s"):
        push.tick(120.0)


def test_cut_off_again_and_again() -> None:
    push = SinglePush(250, first_id=5, chunk=100)
    push.connected(0.0)
    for _ in range(MAX_ATTEMPTS - 1):
        messages(push)
        push.online(0.0)
    with pytest.raises(errors.TransferError, match="cut off 5 times"):
        push.online(0.0)


def test_a_lost_answer_to_the_end_stays_lost() -> None:
    for how in ("online", "broker"):
        push = SinglePush(100, first_id=5, chunk=100)
        push.connected(0.0)
        messages(push)
        push.take(answer(5, "ok"), 0.0)
        assert messages(push) == [(100, 0)]
        push.disconnected()
        with pytest.raises(errors.TransferError, match="which version the device runs"):
            (push.online if how == "online" else push.connected)(0.0)


def test_a_device_of_mongoose_refuses() -> None:
    push = SinglePush(100, first_id=5)
    push.connected(0.0)
    assert messages(push) == [(0, 100)]
    with pytest.raises(errors.RejectedError, match="OTA begin failed"):
        push.take(answer(5, code=1, message="OTA begin failed"), 0.0)
    assert SINGLE_CHUNK == 4096


def test_a_device_knows_uploads_by_one_of_two_names() -> None:
    push = SinglePush(100, first_id=5)
    push.connected(0.0)
    messages(push)
    assert push.method == UPLOAD
    push.take(answer(5, code=Code.UNKNOWN_METHOD), 0.0)
    assert messages(push) == [(0, 100)]
    assert push.method == UPDATE
    with pytest.raises(errors.ConfigError):
        push.take(answer(6, code=Code.UNKNOWN_METHOD), 0.0)
    push = SinglePush(100, first_id=5, chunk=50)
    push.connected(0.0)
    messages(push)
    push.take(answer(5, "ok"), 0.0)
    messages(push)
    with pytest.raises(errors.ConfigError):
        push.take(answer(6, code=Code.UNKNOWN_METHOD), 0.0)


# --- whatever happens -------------------------------------------------------------------------------------------------

fates = st.lists(st.sampled_from(FATES), max_size=60)


@pytest.mark.parametrize("kind", [SmallDevice, RuledDevice])
@settings(max_examples=300)
@given(fates=fates, size=st.integers(1, 1200), chunk=st.integers(1, 300), window=st.integers(1, 9))
@example(fates=["there"] * 6 + ["device"] * 3, size=100, chunk=100, window=1)
def test_a_bad_network_never_spoils_an_image(
    kind: type[SmallDevice], fates: list[str], size: int, chunk: int, window: int
) -> None:
    """A device that restarts is up to three times a matter of the network; more often it may be given up."""
    chunk = max(chunk, size // 40)
    image = os.urandom(size)
    device = kind()
    push = WindowPush(size, session=SESSION, first_id=1, window=window, chunk=chunk, patience=600.0)
    network = Network(push, image, device, fates)
    restarts = fates.count("device")
    try:
        network.run()
    except errors.TransferError:
        assert restarts > 3
    else:
        assert device.installed == image
        assert push.acked == size


@pytest.mark.parametrize("kind", [SmallDevice, RuledDevice])
@settings(max_examples=100)
@given(fates=st.lists(st.sampled_from(["there", "there", "lost", "twice"]), max_size=200))
def test_a_lossy_network_costs_little(kind: type[SmallDevice], fates: list[str]) -> None:
    """Every loss costs a window at most, every message twice nothing but itself."""
    device = kind()
    push = windowed(patience=600.0)
    network = Network(push, IMAGE, device, fates)
    network.run()
    assert device.installed == IMAGE
    assert device.begun == 1
    assert sum(device.written) == len(IMAGE)
    assert len(network.sent) <= 12 + 5 * fates.count("lost") + fates.count("twice")


@settings(max_examples=200)
@given(fates=st.lists(st.sampled_from(["there", "there", "there", "device", "broker", "online"]), max_size=40))
def test_without_a_session_the_image_is_whole_or_the_push_fails(fates: list[str]) -> None:
    device = SmallDevice()
    network = Network(SinglePush(1000, first_id=1, chunk=130), IMAGE, device, fates)
    try:
        network.run()
    except errors.TransferError:
        assert device.installed in {None, IMAGE}
    else:
        assert device.installed == IMAGE


RESULTS: list[object] = [
    "ok",
    None,
    {"next": 5},
    {"session": SESSION, "next": 100},
    {"session": SESSION, "next": 10**9},
    {"session": SESSION, "next": 100, "total": 1000},
    {"session": SESSION, "next": 1000, "total": 1000},
    {"session": SESSION, "next": 1000, "activated": True},
    {"session": None, "image": [], "staged": 5},
]
ids = st.integers(0, 12)
data = st.fixed_dictionaries({}, optional={"next": st.integers(-1, 1001), "final": st.booleans()})
error = st.fixed_dictionaries(
    {"code": st.sampled_from([1, 2, -32601]), "message": st.text(max_size=5)}, optional={"data": data}
)
frames = st.one_of(
    st.fixed_dictionaries({"id": ids, "result": st.sampled_from(RESULTS)}),
    st.fixed_dictionaries({"id": ids, "error": error}),
)


@settings(max_examples=300)
@given(heard=st.lists(st.tuples(frames, st.sampled_from(["", "online", "tick", "away"])), max_size=30))
def test_whatever_a_device_says_the_push_keeps_its_numbers(heard: list[tuple[dict[str, Any], str]]) -> None:
    pushes: list[WindowPush | SinglePush] = [
        WindowPush(1000, session=SESSION, first_id=1, window=3, chunk=100),
        SinglePush(1000, first_id=1),
    ]
    for push in pushes:
        push.connected(0.0)
        now = 0.0
        try:
            for frame, then in heard:
                while message := push.next_message(now):
                    if isinstance(message, Chunk):
                        assert 0 <= message.offset <= message.offset + message.size <= 1000
                push.take(decode_reply(json.dumps(frame).encode()), now)
                if then == "online":
                    push.online(now)
                elif then == "away":
                    push.disconnected()
                    push.connected(now)
                elif then == "tick":
                    now = push.deadline
                    push.tick(now)
                if isinstance(push, WindowPush) and push.phase is Phase.DOUBT:
                    push.settle({"ab"}, now)
                assert 0 <= push.acked <= 1000
        except errors.OtaError:
            pass


# --- presence ---------------------------------------------------------------------------------------------------------


def test_presence() -> None:
    assert read_online(presence(online=True, version="1")) is True
    assert read_online(presence(online=False, version=None)) is False


@given(data=st.one_of(st.binary(max_size=50), frames.map(lambda frame: json.dumps(frame).encode())))
@example(data=b'{"method":"status.notify","params":{"status":"asleep"}}')
@example(data=b'{"method":"status.notify","params":["online"]}')
@example(data=b'{"method":"other","params":{"status":"online"}}')
@example(data=b"")
def test_what_is_no_presence(data: bytes) -> None:
    assert read_online(data) is None
