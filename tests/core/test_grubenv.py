"""GRUB's environment block as bytes."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.grubenv import HEADER, MAX_SIZE, GrubBlock, decode_block, encode_block
from mgota.errors import ConfigError, FlashError

NAMES = st.text("abAB_ ä", min_size=1, max_size=5)
VALUES = st.text("ab\\\n#= ä", max_size=8)
VARIABLES = st.dictionaries(NAMES, VALUES, max_size=6)


@given(VARIABLES, VARIABLES)
def test_what_is_written_is_read_and_the_rest_stays(before: dict[str, str], changes: dict[str, str]) -> None:
    block = GrubBlock((b"# WARNING: do not edit",)).changed(before)
    data = encode_block(block)
    assert len(data) == 1024
    assert decode_block(data) == block
    assert block.variables == before
    after = decode_block(data).changed(changes)
    assert after.variables == before | changes
    assert after.lines[0] == block.lines[0]
    gone = after.changed(dict.fromkeys(changes))
    assert gone.variables == {name: value for name, value in before.items() if name not in changes}


@given(st.binary(max_size=80), st.booleans())
def test_any_bytes_are_a_block_or_an_error(data: bytes, headed: bool) -> None:
    try:
        block = decode_block(HEADER * headed + data)
    except FlashError:
        return
    assert isinstance(block.variables, dict)
    assert encode_block(block) == HEADER + data


def test_a_block_is_full_at_its_last_byte() -> None:
    room = 1024 - len(HEADER) - len("x=\n")
    full = GrubBlock().changed({"x": "1" * room})
    assert decode_block(encode_block(full)).variables == {"x": "1" * room}
    with pytest.raises(FlashError, match="full: 1025 bytes"):
        encode_block(GrubBlock().changed({"x": "1" * (room + 1)}))


@pytest.mark.parametrize("tail", [b"x=1", b"x=1\\\n", b"x=1\n#\n#x", b"####x"])
def test_a_last_line_that_does_not_end_is_damage(tail: bytes) -> None:
    with pytest.raises(FlashError, match="does not end"):
        decode_block(HEADER + tail)


def test_sizes_on_each_side_of_the_limit() -> None:
    assert decode_block(HEADER.ljust(MAX_SIZE, b"#")).size == MAX_SIZE
    with pytest.raises(FlashError, match="no environment block"):
        decode_block(HEADER.ljust(MAX_SIZE + 1, b"#"))


def test_a_name_that_comes_twice_is_one_afterwards() -> None:
    block = decode_block(HEADER + b"a=1\nb=2\na=3\n##")
    assert block.variables == {"a": "3", "b": "2"}
    assert block.changed({"a": "4"}).lines == (b"a=4", b"b=2")


@pytest.mark.parametrize("name", ["", "#a", "a=b", "a\nb", "a\\b", "a\0"])
def test_what_cannot_be_a_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        GrubBlock().changed({name: "x"})
