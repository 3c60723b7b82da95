"""The commands of the ESP32's boot ROM byte by byte, and what any other bytes are."""

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from mgota.core import esp_rom
from mgota.core.slip import Unframer, frame, frames
from mgota.core.talk import Send, Talk
from mgota.errors import ConfigError, LinkError, NoAnswerError, OtaError, RefusedError

OK = bytes(4)


def answer(command: int, data: bytes = b"", value: int = 0, status: bytes = OK) -> bytes:
    data += status
    return frame(struct.pack("<BBHI", 1, command, len(data), value) + data)


def hold(talk: Talk[object], answers: bytes) -> tuple[list[bytes], object]:
    """Hold a talk with prepared answers; then comes silence. The requests, and the result."""
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
        return list(frames(Unframer(), sent)), exc.value


# The layout of each is that of Espressif's documentation.
@pytest.mark.parametrize(
    ("talk", "sent", "answers", "result"),
    [
        (esp_rom.find, ["00 08 2400 00000000 07071220" + "55" * 32], answer(8, value=0x20120707) * 8, None),
        (lambda: esp_rom.read_register(0x40001000), ["00 0a 0400 00000000 00100040"], answer(10, value=7), 7),
        (
            lambda: esp_rom.attach(4 << 20),
            [
                "00 0d 0800 00000000 0000000000000000",
                "00 0b 1800 00000000 00000000 00004000 00000100 00100000 00010000 ffff0000",
            ],
            answer(13) + answer(11), None,
        ),
        (
            lambda: esp_rom.begin(0x1000, 2, 1024, erase=4096),
            ["00 02 1000 00000000 00100000 02000000 00040000 00100000"], answer(2), None,
        ),
        (
            lambda: esp_rom.begin(0x1000, 2, 1024, words=5),
            ["00 02 1400 00000000 00000000 02000000 00040000 00100000 00000000"], answer(2), None,
        ),
        (
            lambda: esp_rom.data(1, b"\1\2\4\xc0"),
            ["00 03 1400 28000000 04000000 01000000 00000000 00000000 010204c0"], answer(3), None,
        ),
        (lambda: esp_rom.end(reboot=True), ["00 04 0400 00000000 00000000"], answer(4), None),
        (lambda: esp_rom.end(reboot=False), ["00 04 0400 00000000 01000000"], answer(4), None),
        (
            lambda: esp_rom.md5(0x1000, 5), ["00 13 1000 00000000 00100000 05000000 00000000 00000000"],
            answer(19, b"0123456789abcdef" * 2), bytes.fromhex("0123456789abcdef" * 2),
        ),
        (
            lambda: esp_rom.read(0x1000, 8), ["00 0e 0800 00000000 00100000 08000000"],
            answer(14, b"abcdefgh".ljust(64, b"\0")), b"abcdefgh",
        ),
        (lambda: esp_rom.change_baud(921600), ["00 0f 0800 00000000 00100e00 00000000"], answer(15), None),
        (
            esp_rom.chip_id, ["00 14 0000 00000000"], answer(20, struct.pack("<IB7xII", 0, 0, 9, 0)), 9,
        ),
        (
            esp_rom.chip_id, ["00 14 0000 00000000", "00 0a 0400 00000000 00100040"],
            answer(20, status=b"\1\5\0\0") + answer(10, value=0x00F01D83), 0,
        ),
        (  # an ESP32-S2 knows the command, but does not tell its id
            esp_rom.chip_id, ["00 14 0000 00000000", "00 0a 0400 00000000 00100040"],
            answer(20, bytes(12)) + answer(10, value=0x7C6), 2,
        ),
    ],
)  # fmt: skip
def test_commands(talk: Callable[[], Talk[object]], sent: list[str], answers: bytes, result: object) -> None:
    assert hold(talk(), answers) == ([bytes.fromhex(line) for line in sent], result)


COMMANDS: list[Callable[[], Talk[object]]] = [
    esp_rom.find,
    esp_rom.chip_id,
    lambda: esp_rom.read_register(0),
    lambda: esp_rom.attach(1),
    lambda: esp_rom.data(0, b"1234"),
    lambda: esp_rom.md5(0, 7),
    lambda: esp_rom.read(0, 7),
]


@given(
    st.sampled_from(COMMANDS),
    st.binary()
    | st.lists(
        st.builds(answer, st.sampled_from([3, 8, 10, 13, 14, 19, 20]), st.binary(max_size=40), st.just(0))
        | st.binary(max_size=14).map(frame)
    ).map(b"".join),
)
def test_any_answer_is_a_result_or_a_link_error(command: Callable[[], Talk[object]], answers: bytes) -> None:
    try:
        hold(command(), answers)
    except OtaError as exc:
        assert isinstance(exc, LinkError)  # noqa: PT017  as long as there is one


READ = 10


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (frame(b"short"), "too short"),
        (frame(struct.pack("<BBHI", 0, READ, 4, 0) + OK), "has no sense"),
        (frame(struct.pack("<BBHI", 1, READ, 5, 0) + OK), "has no sense"),
        (answer(READ, status=b"\0\0\0"), "has no status"),
        (answer(READ, status=b"\1\7\0\0"), "refused: the check is wrong"),
        (answer(READ, status=b"\1\x77\0\0"), "refused: error 0x77"),
        (answer(READ + 1) * esp_rom.MAX_ANSWERS + answer(READ), "everything but what was asked"),
    ],
)
def test_what_is_no_answer(answers: bytes, message: str) -> None:
    with pytest.raises(LinkError, match=message) as caught:
        hold(esp_rom.read_register(0), answers)
    assert isinstance(caught.value, RefusedError) is ("refused" in message)


def test_late_answers_are_skipped() -> None:
    late = answer(READ + 1) * (esp_rom.MAX_ANSWERS - 1)
    assert hold(esp_rom.read_register(0), late + answer(READ, value=3))[1] == 3


def test_a_rom_is_called_again_and_again() -> None:
    with pytest.raises(NoAnswerError, match="is GPIO0"):
        hold(esp_rom.find(), b"")
    requests, _ = hold(esp_rom.find(), frame(b"log") * 3 + answer(esp_rom.SYNC))
    assert len(requests) == 4
    with pytest.raises(LinkError, match="no boot ROM"):
        hold(esp_rom.find(), frame(b"log") * esp_rom.CALLS)


def test_chips_and_digests_that_are_none() -> None:
    with pytest.raises(LinkError, match="the id 1 is not known"):
        hold(esp_rom.chip_id(), answer(20, struct.pack("<IB7xII", 0, 0, 1, 0)))
    with pytest.raises(LinkError, match="magic number is 0x00000005 is not known"):
        hold(esp_rom.chip_id(), answer(20, bytes(12)) + answer(READ, value=5))
    for bad in (b"x" * 32, b"\xff" * 32, b"a" * 30 + b"  "):
        with pytest.raises(LinkError, match="something else than an MD5"):
            hold(esp_rom.md5(0, 1), answer(19, bad))
    with pytest.raises(LinkError, match="31 bytes in the place of 32"):
        hold(esp_rom.md5(0, 1), answer(19, b"a" * 31))


@pytest.mark.parametrize("size", [0, 2, 1028])
def test_data_has_a_size(size: int) -> None:
    with pytest.raises(ConfigError):
        next(esp_rom.data(0, bytes(size)))
    assert isinstance(next(esp_rom.data(0, bytes(1024))), Send)


@pytest.mark.parametrize("size", [0, 65])
def test_a_read_has_a_size(size: int) -> None:
    with pytest.raises(ConfigError):
        next(esp_rom.read(0, size))
    assert isinstance(next(esp_rom.read(0, 64)), Send)
