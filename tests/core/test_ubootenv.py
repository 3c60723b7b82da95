"""U-Boot's environment as bytes: what is one, which copy counts, and what stays as it was."""

from contextlib import suppress
from zlib import crc32

import pytest
from hypothesis import given, strategies as st

from mgota.core.ubootenv import (
    MAX_SIZE,
    MIN_SIZE,
    Copy,
    Environment,
    EnvPlace,
    choose,
    decode_copy,
    encode_copy,
    next_flags,
    parse_config,
)
from mgota.errors import ConfigError, FlashError, OtaError

NAMES = st.text("abzAZ_09äß ", min_size=1, max_size=6)
VALUES = st.text(max_size=12).filter(lambda text: "\0" not in text)
VARIABLES = st.dictionaries(NAMES, VALUES, max_size=6)


def environment(variables: dict[str, str], padding: int = 0) -> Environment:
    return Environment(padding=padding).changed(variables)


@given(VARIABLES, st.sampled_from([None, 0, 1, 255]), st.sampled_from([0, 255]))
def test_what_is_written_is_read(variables: dict[str, str], flags: int | None, padding: int) -> None:
    data = encode_copy(environment(variables, padding), 512, flags=flags)
    assert len(data) == 512
    copy = decode_copy(data, redundant=flags is not None)
    assert copy
    assert copy.environment.variables == variables
    assert copy.flags == (flags or 0)
    assert encode_copy(copy.environment, 512, flags=flags) == data


@given(VARIABLES, VARIABLES)
def test_a_change_changes_that_and_nothing_else(before: dict[str, str], changes: dict[str, str]) -> None:
    after = environment(before).changed(changes)
    assert after.variables == before | changes
    gone = after.changed(dict.fromkeys(changes))
    assert gone.variables == {name: value for name, value in before.items() if name not in changes}
    kept = [entry for entry in environment(before).entries if entry in after.entries]
    assert [entry for entry in after.entries if entry in kept] == kept, "in their order"


@given(st.binary(max_size=120), st.booleans())
def test_any_bytes_are_a_copy_or_none(data: bytes, redundant: bool) -> None:
    copy = decode_copy(data, redundant=redundant)
    assert copy is None or encode_copy(copy.environment, len(data), flags=copy.flags if redundant else None)


@given(st.binary(min_size=MIN_SIZE - 5, max_size=80))
def test_any_content_with_a_good_checksum_is_a_copy_or_none(content: bytes) -> None:
    data = crc32(content).to_bytes(4, "little") + content
    copy = decode_copy(data, redundant=False)
    if copy:
        assert isinstance(copy.environment.variables, dict)
        assert all(entry and b"\0" not in entry for entry in copy.environment.entries)


@given(st.binary(min_size=1, max_size=3), st.integers(0, 255))
def test_a_flipped_byte_makes_it_none(wrong: bytes, at: int) -> None:
    data = bytearray(encode_copy(environment({"bootcmd": "run x"}), 256, flags=7))
    data[at] ^= wrong[0] or 1
    copy = decode_copy(bytes(data), redundant=True)
    assert copy is None or at == 4, "the checksum covers all but the flags"


def test_sizes_on_each_side_of_the_limits() -> None:
    for size, good in ((MIN_SIZE - 1, False), (MIN_SIZE, True), (MAX_SIZE, True), (MAX_SIZE + 1, False)):
        assert (decode_copy(encode_copy(Environment(), size), redundant=False) is not None) is good


def test_an_environment_is_full_at_its_last_byte() -> None:
    for length, fits in ((0, True), (1, True), (24, True), (25, False)):
        env = environment({"x": "1" * length})
        if fits:
            data = encode_copy(env, 32)
            copy = decode_copy(data, redundant=False)
            assert copy
            assert copy.environment.variables == {"x": "1" * length}
        else:
            with pytest.raises(FlashError, match="full: 29 bytes do not fit the 28"):
                encode_copy(env, 32)


def raw(content: bytes) -> Copy | None:
    return decode_copy(crc32(content).to_bytes(4, "little") + content, redundant=False)


@pytest.mark.parametrize(
    ("content", "variables"),
    [
        (bytes(20), {}),
        (b"a=1\0\0b=2\0\0" + bytes(10), {"a": "1"}),
        (b"\0x=1\0\0" + bytes(20), {}),
        (b"\0\0x=1\0\0" + bytes(20), {}),
        (b"a\0b=1\0b=2\0\0" + b"\xff" * 20, {"b": "2"}),
        (b"=no name\0c=\0\0" + bytes(20), {"c": ""}),
        (b"a=" + b"1" * 17 + b"\0", {"a": "1" * 17}),
    ],
)
def test_odd_contents(content: bytes, variables: dict[str, str]) -> None:
    copy = raw(content)
    assert copy
    assert copy.environment.variables == variables


def test_a_variable_that_does_not_end_is_none() -> None:
    assert raw(b"a=" + b"1" * 18) is None


def test_bytes_that_are_no_text_survive() -> None:
    env = Environment((b"mac=\xff\xfe", b"no equals sign"))
    changed = env.changed({"mac2": env.variables["mac"]})
    assert changed.entries == (b"mac=\xff\xfe", b"mac2=\xff\xfe", b"no equals sign")


def test_a_name_that_comes_twice_is_one_afterwards() -> None:
    env = Environment((b"a=1", b"b=2", b"a=3"))
    assert env.variables == {"a": "3", "b": "2"}
    assert env.changed({"a": "4"}).entries == (b"a=4", b"b=2")
    assert env.changed({"a": None}).entries == (b"b=2",)


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "x\0")])
def test_what_cannot_stand_there_is_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigError):
        Environment().changed({name: value})


@pytest.mark.parametrize(
    ("one", "two", "wins"),
    [(0, 0, 0), (1, 0, 0), (0, 1, 1), (255, 0, 1), (0, 255, 0), (254, 255, 1), (255, 254, 0), (1, 255, 1), (7, 7, 0)],
)
def test_which_of_two_counts(one: int, two: int, wins: int) -> None:
    assert choose((Copy(Environment(), one), Copy(Environment(), two))) == wins


def test_a_bad_copy_does_not_count() -> None:
    good = Copy(Environment(), 3)
    assert choose((good,)) == choose((good, None)) == 0
    assert choose((None, good)) == 1
    assert choose((None, None)) is None
    assert choose((None,)) is None


@given(st.integers(0, 255))
def test_the_next_one_wins(flags: int) -> None:
    following = Copy(Environment(), next_flags(flags))
    assert choose((Copy(Environment(), flags), following)) == 1
    assert choose((following, Copy(Environment(), flags))) == 0


def test_a_configuration() -> None:
    text = """# device  offset  size  sector
/dev/mmcblk0boot0  0x0000  0x4000
/dev/mmcblk0boot1  -0x4000 4000  0x200  2  # the other
"""
    assert parse_config(text) == (
        EnvPlace("/dev/mmcblk0boot0", 0, 0x4000),
        EnvPlace("/dev/mmcblk0boot1", -0x4000, 0x4000, 0x200),
    )
    assert parse_config("/dev/x 010 0x100")[0].offset == 8


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "names 0 places"),
        ("/a 0 100\n/b 0 100\n/c 0 100", "names 3 places"),
        ("/a 0", "line 1: it has to be"),
        ("\na 0 100", "line 2: it has to be"),
        ("/a 0 100 1 1 1 1", "line 1: it has to be"),
        ("/a x 100", "no number"),
        ("/a 0 1g", "no number"),
        ("/a 09 100", "no number"),
        ("/a 0 f", "no environment has 0xf bytes"),
        ("/a 0 100001", "no environment has"),
        ("/a 0 -100", "no environment has"),
        ("/a 0 100 -1", "no environment has"),
        ("/a 0 100\n/b 0 200", "one size"),
        ("/a 0 100\n/a 0xff 100", "overlap"),
        ("fw: [1]", "line 1"),
    ],
)
def test_a_wrong_configuration_says_why(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config(text)


def test_copies_may_lie_side_by_side() -> None:
    assert len(parse_config("/a 0 100\n/a 0x100 100")) == 2


@given(st.text(max_size=60))
def test_any_configuration_is_places_or_an_error(text: str) -> None:
    with suppress(OtaError):
        assert parse_config(text)
