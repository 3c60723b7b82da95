"""AN3155's commands byte by byte, and what any other bytes are."""

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from mgota.core import an3155
from mgota.core.talk import Send, Talk
from mgota.errors import ConfigError, LinkError, NoAnswerError, OtaError

ACK, NACK = b"\x79", b"\x1f"


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


# Each from the diagrams of AN3155.
@pytest.mark.parametrize(
    ("talk", "sent", "answers", "result"),
    [
        (an3155.find, "7f", ACK, None),
        (an3155.find, "7f", NACK, None),
        (an3155.commands, "00 ff", ACK + bytes.fromhex("02 31 00 11") + ACK, frozenset({0x00, 0x11})),
        (an3155.chip_id, "02 fd", ACK + bytes.fromhex("01 04 19") + ACK, 0x419),
        (lambda: an3155.read(0x08000000, 3), "11 ee 08 00 00 00 08 02 fd", ACK * 3 + b"abc", b"abc"),
        (
            lambda: an3155.read(0x0801FF00, 256), "11 ee 08 01 ff 00 f6 ff 00", ACK * 3 + bytes(256), bytes(256),
        ),
        (
            lambda: an3155.write(0x08000004, b"\1\2\3\4"), "31 ce 08 00 00 04 0c 03 01 02 03 04 07", ACK * 3, None,
        ),
        (lambda: an3155.erase([5]), "44 bb 00 00 00 05 05", ACK * 2, None),
        (lambda: an3155.erase([1, 0x102]), "44 bb 00 01 00 01 01 02 03", ACK * 2, None),
        (lambda: an3155.erase([1, 2], extended=False), "43 bc 01 01 02 02", ACK * 2, None),
        (lambda: an3155.go(0x08000000), "21 de 08 00 00 00 08", ACK * 2, None),
    ],
)  # fmt: skip
def test_commands(talk: Callable[[], Talk[object]], sent: str, answers: bytes, result: object) -> None:
    assert hold(talk(), answers) == (bytes.fromhex(sent), result)


COMMANDS: list[Callable[[], Talk[object]]] = [
    an3155.find,
    an3155.commands,
    an3155.chip_id,
    lambda: an3155.read(0x08000000, 7),
    lambda: an3155.write(0x08000000, b"1234"),
    lambda: an3155.erase([1, 2, 3]),
    lambda: an3155.go(0x08000000),
]


@given(st.sampled_from(COMMANDS), st.binary(max_size=20) | st.lists(st.sampled_from([ACK, NACK, b"\3"])).map(b"".join))
def test_any_answer_is_a_result_or_a_link_error(command: Callable[[], Talk[object]], answers: bytes) -> None:
    try:
        hold(command(), answers)
    except OtaError as exc:
        assert isinstance(exc, LinkError)  # noqa: PT017  as long as there is one
    except AssertionError:
        pass  # more came than was asked for


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_a_refusal_and_nonsense_are_told_apart(command: Callable[[], Talk[object]]) -> None:
    with pytest.raises(LinkError, match=r"refused to .*: is the chip read or write protected"):
        hold(command(), NACK)
    with pytest.raises(LinkError, match="no boot ROM of an STM32: 0x42"):
        hold(command(), b"B")
    with pytest.raises(NoAnswerError):
        hold(command(), b"")


def test_a_rom_is_looked_for_again_and_again() -> None:
    with pytest.raises(NoAnswerError, match="is BOOT0 high"):
        hold(an3155.find(), b"")
    with pytest.raises(LinkError, match="no boot ROM"):
        hold(an3155.find(), b"U")


@pytest.mark.parametrize("waits", [1, 2, 3, 4, 258, 514, 515, 1020])
def test_a_rom_in_the_midst_of_something_is_called_until_it_refuses(waits: int) -> None:
    """It takes so many calls for the rest of what it waits for, refuses that, and then every pair of them."""
    heard, talk = 0, an3155.find(3)
    answers = bytearray()
    step = next(talk)
    while True:
        try:
            if isinstance(step, Send):
                for call in range(heard + 1, heard + len(step.data) + 1):
                    answers += NACK if call >= waits and not (call - waits) % 2 else b""
                heard += len(step.data)
                step = talk.send(b"")
            elif answers:
                step = talk.send(bytes([answers.pop(0)]))
            else:
                step = talk.throw(NoAnswerError("silence"))
        except StopIteration:
            break
    assert not answers


def test_a_rom_that_never_stops_talking_is_none() -> None:
    talk = an3155.find()
    step: object = next(talk)
    silences = 2 * an3155.SINGLE_CALLS

    def say() -> object:
        nonlocal silences
        if isinstance(step, Send):
            return talk.send(b"")
        silences -= 1
        return talk.throw(NoAnswerError("silence")) if silences >= an3155.SINGLE_CALLS else talk.send(ACK)

    with pytest.raises(LinkError, match="never quiet"):  # noqa: PT012
        while True:
            step = say()


@pytest.mark.parametrize("size", [0, 257])
def test_reads_have_a_size(size: int) -> None:
    with pytest.raises(ConfigError):
        next(an3155.read(0, size))
    for good in (1, 256):
        assert isinstance(next(an3155.read(0, good)), Send)


@pytest.mark.parametrize(("address", "size"), [(0, 0), (0, 260), (0, 3), (2, 4)])
def test_writes_are_aligned_and_have_a_size(address: int, size: int) -> None:
    with pytest.raises(ConfigError):
        next(an3155.write(address, bytes(size)))
    for good in (4, 256):
        assert isinstance(next(an3155.write(0, bytes(good))), Send)


@pytest.mark.parametrize(
    ("sectors", "extended"), [([], True), ([1] * 65, True), ([0xFFF0], True), ([0xF0], False), ([-1], True)]
)
def test_sectors_have_numbers(sectors: list[int], extended: bool) -> None:
    with pytest.raises(ConfigError):
        next(an3155.erase(sectors, extended=extended))
    for good, form in (([1] * 64, True), ([0xFFEF], True), ([0xEF], False)):
        assert isinstance(next(an3155.erase(good, extended=form)), Send)
