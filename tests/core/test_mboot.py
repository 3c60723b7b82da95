"""Packets and commands of NXP's boot loader byte by byte, and what any other bytes are."""

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from mgota.core import mboot
from mgota.core.checksum import checksum, checksum_function
from mgota.core.talk import Send, Talk
from mgota.errors import ConfigError, LinkError, NoAnswerError, OtaError, RefusedError

ACK, NAK, ABORT = b"\x5a\xa1", b"\x5a\xa2", b"\x5a\xa3"
PONG = mboot.pong(b"\0\3\1P")


def hold(talk: Talk[object], answers: bytes) -> tuple[bytes, object]:
    """Hold a talk with prepared answers; then comes silence. What was sent, and the result."""
    sent = b""
    left = bytearray(answers)
    try:
        step = next(talk)
        while True:
            if isinstance(step, Send):
                sent += step.data
                step = talk.send(b"")
            elif len(left) < step.size:
                step = talk.throw(NoAnswerError("silence"))
            else:
                data = bytes(left[: step.size])
                del left[: step.size]
                step = talk.send(data)
    except StopIteration as exc:
        assert not left, "not all answers were heard"
        return sent, exc.value


def answer(tag: int, *values: int) -> bytes:
    return mboot.packet(mboot.COMMAND, mboot.words(tag, *values))


def done(command: int, status: int = 0) -> bytes:
    return answer(mboot.GENERIC, status, command)


def data(content: bytes) -> bytes:
    return mboot.packet(mboot.DATA, content)


def damaged(packet: bytes) -> bytes:
    return packet[:-1] + bytes([packet[-1] ^ 1])


def test_packets_are_those_of_the_manual() -> None:
    """The examples of NXP's manual, chapter 4: a ping, GetProperty of the version, and its response."""
    assert mboot.sync(mboot.PING).hex() == "5aa6"
    assert mboot.pong(b"\0\2\1P") == bytes.fromhex("5aa7 00020150 0000 aaea")
    asked = mboot.packet(mboot.COMMAND, mboot.words(mboot.GET_PROPERTY, 1, 0))
    assert asked.hex(" ") == "5a a4 0c 00 4b 33 07 00 00 02 01 00 00 00 00 00 00 00"
    assert answer(0xA7, 0, 0x4B010000).hex(" ") == "5a a4 0c 00 07 7a a7 00 00 02 00 00 00 00 00 00 01 4b"


def test_a_checksum_of_packets_is_the_running_one() -> None:
    running = checksum("xmodem")
    running.update(b"123456789")
    assert checksum_function("xmodem")(b"123456789") == running.value == 0x31C3
    with pytest.raises(ConfigError, match="no checksum is called"):
        checksum_function("nonsense")


def test_words_are_parsed_or_refused() -> None:
    assert mboot.parse_words(mboot.words(0xA0, 1, 2)) == (0xA0, (1, 2))
    assert mboot.parse_words(mboot.words(0xA0, 1, 2) + b"more") == (0xA0, (1, 2))
    assert mboot.parse_words(b"\xa0\0\0\0") == (0xA0, ())
    for short in (b"", b"\xa0", b"\xa0\0\0", b"\xa0\0\0\1", b"\xa0\0\0\1\0\0\0"):
        with pytest.raises(LinkError, match="too short"):
            mboot.parse_words(short)


def command(tag: int, *values: int, with_data: bool = False) -> bytes:
    return mboot.packet(mboot.COMMAND, mboot.words(tag, *values, data=with_data))


@pytest.mark.parametrize(
    ("talk", "sent", "answers", "result"),
    [
        (mboot.find, b"\x5a\xa6", PONG, b"\0\3\1P"),
        (mboot.find, b"\x5a\xa6", b"\0\0\xff" + ACK + PONG, b"\0\3\1P"),
        (mboot.find, b"\x5a\xa6" * 2, damaged(PONG) + PONG, b"\0\3\1P"),
        (lambda: mboot.get_property(11), command(7, 11, 0) + ACK, ACK + answer(0xA7, 0, 512), (512,)),
        (lambda: mboot.get_property(11), command(7, 11, 0) + ACK, PONG + ACK + answer(0xA7, 0, 512), (512,)),
        (lambda: mboot.get_property(11), command(7, 11, 0) + ACK, b"\x5a" + ACK + answer(0xA7, 0), ()),
        (lambda: mboot.erase(0x1000, 0x2000, 9), command(2, 0x1000, 0x2000, 9) + ACK, ACK + done(2), None),
        (lambda: mboot.erase(0, 1), command(2, 0, 1, 0) * 3 + ACK, NAK * 2 + ACK + done(2), None),
        (lambda: mboot.erase(0, 1), command(2, 0, 1, 0) + NAK + ACK, ACK + damaged(done(2)) + done(2), None),
        (
            lambda: mboot.read(0x10, 5),
            command(3, 0x10, 5, 0) + ACK * 4,
            ACK + answer(0xA3, 0, 5) + data(b"abc") + data(b"de") + done(3),
            b"abcde",
        ),
        (
            lambda: mboot.write(0x10, b"abcdefgh", 9, size=5),
            command(4, 0x10, 8, 9, with_data=True) + ACK + data(b"abcde") + data(b"fgh") + ACK,
            ACK + done(4) + ACK * 2 + done(4),
            None,
        ),
        (lambda: mboot.fill(0x2000, 4, 0xC0000007), command(5, 0x2000, 4, 0xC0000007) + ACK, ACK + done(5), None),
        (lambda: mboot.configure(9, 0x2000), command(0x11, 9, 0x2000) + ACK, ACK + done(0x11), None),
        (mboot.reset, command(0x0B) + ACK, ACK + done(0x0B), None),
        (mboot.reset, command(0x0B), ACK, None),
    ],
    ids=[
        *("find", "find behind noise", "find damaged", "property", "property behind a ping", "no property"),
        *("erase", "erase again", "answer again", "read", "write", "fill", "configure", "reset", "reset unanswered"),
    ],
)
def test_commands(talk: Callable[[], Talk[object]], sent: bytes, answers: bytes, result: object) -> None:
    assert hold(talk(), answers) == (sent, result)


COMMANDS: list[Callable[[], Talk[object]]] = [
    mboot.find,
    lambda: mboot.get_property(1),
    lambda: mboot.erase(0, 1),
    lambda: mboot.read(0, 7),
    lambda: mboot.write(0, b"1234"),
    lambda: mboot.fill(0, 4, 0),
    lambda: mboot.configure(9, 0),
    mboot.reset,
]
PIECES = [ACK, NAK, ABORT, PONG, done(3), done(4), done(4, 1), answer(0xA3, 0, 7), data(b"1234567"), data(b""), b"\x5a"]


@given(st.sampled_from(COMMANDS), st.binary(max_size=20) | st.lists(st.sampled_from(PIECES), max_size=9).map(b"".join))
def test_any_answer_is_a_result_or_a_link_error(talk: Callable[[], Talk[object]], answers: bytes) -> None:
    try:
        hold(talk(), answers)
    except OtaError as exc:
        assert isinstance(exc, LinkError)  # noqa: PT017  as long as there is one
    except AssertionError:
        pass  # more came than was asked for


@pytest.mark.parametrize("talk", COMMANDS[1:])
def test_silence_noise_and_what_is_out_of_turn_are_told_apart(talk: Callable[[], Talk[object]]) -> None:
    with pytest.raises(NoAnswerError):
        hold(talk(), b"")
    with pytest.raises(LinkError, match="nothing but noise"):
        hold(talk(), b"\xa1" * mboot.MAX_PACKET)
    with pytest.raises(LinkError, match="received a packet damaged, again and again"):
        hold(talk(), NAK * (1 + mboot.RESENDS))
    with pytest.raises(LinkError, match="out of turn: 0xa4 in the place of ACK"):
        hold(talk(), done(2))
    with pytest.raises(LinkError, match="out of turn: it wants no data"):
        hold(talk(), ABORT)
    with pytest.raises(LinkError, match="out of turn: 0xa1 in the place of a packet"):
        hold(talk(), ACK + ACK)
    with pytest.raises(LinkError, match="came damaged, again and again"):
        hold(talk(), ACK + damaged(done(2)) * (1 + mboot.RESENDS))
    with pytest.raises(LinkError, match="data in the place of a response"):
        hold(talk(), ACK + data(b"x"))
    with pytest.raises(LinkError, match="answered something else: 0xa9"):
        hold(talk(), ACK + answer(0xA9, 0))
    with pytest.raises(LinkError, match="answered something else"):
        hold(talk(), ACK + answer(0xA0))


@pytest.mark.parametrize(("size", "accepted"), [(mboot.MAX_PACKET, True), (mboot.MAX_PACKET + 1, False)])
def test_packets_have_a_size(size: int, accepted: bool) -> None:
    told = ACK + answer(0xA3, 0, size) + data(bytes(size))
    if accepted:
        assert hold(mboot.read(0, size), told + done(3))[1] == bytes(size)
    else:
        with pytest.raises(LinkError, match="a packet of 4097 bytes"):
            hold(mboot.read(0, size), told)


@pytest.mark.parametrize(
    ("status", "said"), [(10203, "program: the memory is not erased"), (77777, "program: it tells no more")]
)
def test_a_refusal_says_what_was_refused_and_why(status: int, said: str) -> None:
    with pytest.raises(RefusedError, match=rf"refused to {said} \(status {status}\)"):
        hold(mboot.write(0, b"1234"), ACK + done(4, status))


def test_a_write_that_is_aborted_ends_in_its_second_response() -> None:
    begun = ACK + done(4) + ACK + ABORT
    sent = command(4, 0, 99, 0, with_data=True) + ACK + data(bytes(32)) * 2 + ACK
    talk = mboot.write(0, bytes(99))
    with pytest.raises(RefusedError, match="10202"):
        hold(talk, begun + done(4, 10202))
    assert sent.count(data(bytes(32))) == 2
    with pytest.raises(LinkError, match="says that it has all of them"):
        hold(mboot.write(0, bytes(99)), begun + done(4))
    with pytest.raises(LinkError, match="says that it has all of them"):
        hold(mboot.write(0, bytes(4)), ACK + done(4) + ABORT + done(4))  # at the last packet, too


@pytest.mark.parametrize("pieces", [(b"1234567", b"8"), (b"123456",), (b"",) * 9, ()])
def test_a_read_has_as_many_bytes_as_were_asked_for(pieces: tuple[bytes, ...]) -> None:
    told = ACK + answer(0xA3, 0, 7) + b"".join(map(data, pieces))
    with pytest.raises(LinkError, match=r"sent \d bytes in the place of 7"):
        hold(mboot.read(0, 7), told + (b"" if len(pieces) == 9 else done(3)))


def test_a_read_that_is_aborted_says_why() -> None:
    with pytest.raises(RefusedError, match="refused to read: the chip is secured"):
        hold(mboot.read(0, 7), ACK + answer(0xA3, 0, 7) + data(b"123") + data(b"") + done(3, 10001))


@pytest.mark.parametrize("pieces", [(), (b"123",), (b"1234567",)])
def test_a_read_that_ends_in_the_midst_may_be_made_again(pieces: tuple[bytes, ...]) -> None:
    """What the wire made of an ACK ends it, and the loader blames the argument."""
    with pytest.raises(LinkError, match=r"a read broke off: .*status 4") as failed:
        hold(mboot.read(0, 7), ACK + answer(0xA3, 0, 7) + b"".join(map(data, pieces)) + done(3, 4))
    assert not isinstance(failed.value, RefusedError)


def test_nothing_is_neither_read_nor_written() -> None:
    for talk in (mboot.read(0, 0), mboot.write(0, b"")):
        with pytest.raises(ConfigError):
            next(talk)


def test_a_loader_in_the_midst_of_a_packet_is_found_behind_it() -> None:
    """It takes pings and zeros for the rest of it, says NAK, and hears the next ping."""
    heard, answers = 0, bytearray()
    talk = mboot.find()
    step = next(talk)
    with pytest.raises(StopIteration) as found:  # noqa: PT012
        while True:
            if isinstance(step, Send):
                heard += len(step.data)
                answers += NAK if heard == 6 + mboot.FILLER else PONG if heard > 6 + mboot.FILLER else b""
                step = talk.send(b"")
            elif len(answers) < step.size:
                step = talk.throw(NoAnswerError("silence"))
            else:
                piece = bytes(answers[: step.size])
                del answers[: step.size]
                step = talk.send(piece)
    assert found.value.value == b"\0\3\1P"


def test_nobody_answers_and_something_else_does() -> None:
    with pytest.raises(NoAnswerError, match="is the chip in ISP mode"):
        hold(mboot.find(), b"")
    with pytest.raises(NoAnswerError, match="is the chip in ISP mode"):
        hold(mboot.find(), damaged(PONG) * 6)
    with pytest.raises(LinkError, match="nothing but noise"):
        hold(mboot.find(), b"U" * mboot.MAX_PACKET)
