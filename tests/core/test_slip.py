"""SLIP's frames, whole and damaged (RFC 1055)."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.slip import MAX_FRAME, Unframer, frame, frames
from mgota.errors import LinkError


def feed(unframer: Unframer, data: bytes) -> list[bytes]:
    return [found for byte in data if (found := unframer.feed(byte)) is not None]


def test_the_two_bytes_that_mean_something_are_escaped() -> None:
    assert frame(b"a\xc0b\xdbc\xdb\xdc") == bytes.fromhex("c0 61 dbdc 62 dbdd 63 dbdd dc c0")


@given(st.lists(st.binary(min_size=1)), st.binary().map(lambda log: log.replace(b"\xc0", b"")))
def test_frames_come_back(contents: list[bytes], log: bytes) -> None:
    stream = log + b"".join(frame(content) + log for content in contents)
    assert feed(Unframer(), stream) == contents


@given(st.binary())
def test_any_bytes_are_frames_or_a_link_error_and_then_frames_again(data: bytes) -> None:
    unframer = Unframer()
    list(frames(unframer, data + b"\xc0"))
    found = list(frames(unframer, frame(b"next") * 2))
    assert b"next" in found


@pytest.mark.parametrize("data", [b"\xc0a\xdbb", b"\xc0a\xdb\xc0", b"\xc0" + b"a" * (MAX_FRAME + 1)])
def test_damage_is_told_once(data: bytes) -> None:
    unframer = Unframer()
    assert feed(unframer, data[:-1]) == []
    with pytest.raises(LinkError):
        unframer.feed(data[-1])
    assert feed(unframer, frame(b"a" * MAX_FRAME)) == [b"a" * MAX_FRAME]
    assert list(frames(unframer, data + frame(b"b"))) == [b"b"]
