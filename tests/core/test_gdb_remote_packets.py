"""GDB's packets and what is said in them, against the examples of GDB's manual, and against any bytes."""

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from mgota.core import gdb_remote
from mgota.core.gdb_packets import MAX_PACKET, checksum, escape, expand, frame
from mgota.core.gdb_remote import GdbServer
from mgota.core.geometry import Geometry, Region
from mgota.core.memory_map import LIMIT, MAX_MEMORIES, Memory, flash_geometry, parse_memory_map
from mgota.core.talk import Send, Talk, Want
from mgota.errors import ConfigError, LinkError, NoAnswerError, OtaError, RefusedError


def hold(talk: Talk[object], answers: bytes, *, answer_once_asked: bool = False) -> tuple[bytes, object]:
    """What is sent in a talk, and its result; silence after the answers."""
    sent, left = b"", bytearray(b"" if answer_once_asked else answers)
    try:
        step = next(talk)
        while True:
            if isinstance(step, Send):
                sent += step.data
                if answer_once_asked and step.data.startswith(b"$"):
                    left += answers
                    answers = b"" if answers.startswith(b"-") else answers
                step = talk.send(b"")
                continue
            size = step.size
            if step.end and 0 <= (found := left.find(step.end)) < size:
                size = found + 1
            if len(left) < size:
                step = talk.throw(NoAnswerError("silence"))
            else:
                data = bytes(left[:size])
                del left[:size]
                step = talk.send(data)
    except StopIteration as exc:
        assert not left, "not all answers were heard"
        return sent, exc.value


def ask(talk: Talk[object], *answers: bytes) -> tuple[list[bytes], object]:
    """The requests of a talk without acknowledgements, and its result."""
    sent, result = hold(talk, b"".join(frame(answer) for answer in answers))
    return [expand(piece[1:-3]) for piece in split(sent)], result


def split(sent: bytes) -> list[bytes]:
    found = []
    while sent:
        end = sent.index(b"#") + 3
        found.append(sent[:end])
        sent = sent[end:]
    return found


def server(*features: bytes, binary: bool = False, packet: int = 400) -> GdbServer:
    made = GdbServer()
    made.acks, made.features, made.binary, made.packet = False, frozenset(features), binary, packet
    return made


# --- packets ---------------------------------------------------------------------------------------------------------


def test_packets_are_framed_as_the_manual_has_it() -> None:
    assert frame(b"") == b"$#00"
    assert frame(b"OK") == b"$OK#9a"
    assert frame(b"m8000000,4") == b"$m8000000,4#" + checksum(b"m8000000,4")
    assert escape(b"}") == b"}\x5d"  # the manual's own example
    assert expand(b"0* ") == b"0000"  # and this one
    assert expand(b"a}\x03b") == b"a#b"


@given(st.binary(max_size=300))
def test_what_is_escaped_is_what_comes_out(data: bytes) -> None:
    escaped = escape(data)
    assert not set(escaped) & set(b"#$*")
    assert expand(escaped) == data


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"}", b"*", b"~", b"a"])).map(b"".join))
def test_any_body_is_a_payload_or_a_link_error(body: bytes) -> None:
    try:
        assert len(expand(body)) <= MAX_PACKET
    except LinkError:
        assert b"}" in body or b"*" in body


@pytest.mark.parametrize("body", [b"}", b"a*", b"*~", b"a*\x1f", b"a*\x7f"])
def test_bodies_that_break_off_or_repeat_nothing(body: bytes) -> None:
    with pytest.raises(LinkError):
        expand(body)


def test_a_payload_has_a_length() -> None:
    whole = b"a*~" * (MAX_PACKET // 98)  # 98 bytes each
    rest = MAX_PACKET - len(expand(whole))
    assert len(expand(whole + b"b" * rest)) == MAX_PACKET
    with pytest.raises(LinkError, match="longer"):
        expand(whole + b"b" * (rest + 1))


# --- a conversation --------------------------------------------------------------------------------------------------


def test_packets_are_acknowledged_until_it_is_agreed_not_to() -> None:
    talker = GdbServer()
    answers = b"+" + frame(b"PacketSize=800;QStartNoAckMode+;swbreak-;x") + b"+" + frame(b"OK") + frame(b"OK")
    sent, _ = hold(talker.greet(), answers)
    assert sent == frame(b"qSupported") + b"+" + frame(b"QStartNoAckMode") + b"+" + frame(b"X0,0:")
    assert (talker.acks, talker.packet, talker.binary) == (False, 0x800, True)
    assert talker.features == {b"QStartNoAckMode"}


def test_a_server_that_says_nothing_of_itself_is_one() -> None:
    talker = GdbServer()
    hold(talker.greet(), frame(b"") + frame(b""))
    assert (talker.acks, talker.packet, talker.binary) == (True, 400, False)


@pytest.mark.parametrize(
    ("size", "fits"), [("40", 64), ("3f", None), ("100000", MAX_PACKET), ("", None), ("xyz", None)]
)
def test_packets_have_a_size(size: str, fits: int | None) -> None:
    talker = server()
    answers = frame(b"PacketSize=" + size.encode()) + frame(b"")
    if fits is None:
        with pytest.raises(LinkError, match="too few"):
            hold(talker.greet(), answers)
    else:
        hold(talker.greet(), answers)
        assert talker.packet == fits
        assert talker.room >= 12


def test_a_request_is_said_again_when_it_was_garbled() -> None:
    talker = GdbServer()
    sent, result = hold(talker.read(16, 2), b"-" + b"+" + frame(b"0102"))
    assert (sent, result) == (frame(b"m10,2") * 2 + b"+", b"\1\2")


def test_an_answer_is_asked_for_again_when_it_was_garbled() -> None:
    talker = GdbServer()
    wrong = b"$0102#00"
    sent, result = hold(talker.read(16, 2), b"+" + wrong * 3 + frame(b"0102"))
    assert (sent, result) == (frame(b"m10,2") + b"---+", b"\1\2")
    with pytest.raises(LinkError, match="garbled"):
        hold(talker.read(16, 2), wrong * 4)
    with pytest.raises(LinkError, match="garbled"):
        hold(server().read(16, 2), wrong)


def test_what_nobody_asked_for_is_passed_over() -> None:
    asides = (
        frame(b"T05thread:01;") + frame(b"S05") + frame(b"O6869") + b"%Stop:T05#" + checksum(b"Stop:T05") + b"\r\n+"
    )
    sent, result = hold(GdbServer().read(16, 2), asides + b"$01" + frame(b"0102"))
    assert (sent, result) == (frame(b"m10,2") + b"++++", b"\1\2")
    with pytest.raises(LinkError, match="talks and talks"):
        hold(server().read(16, 2), frame(b"S05") * gdb_remote.UNASKED)
    with pytest.raises(LinkError, match="no GDB server"):
        hold(server().read(16, 2), b"x" * MAX_PACKET)
    with pytest.raises(LinkError, match="no GDB server"):
        hold(server().read(16, 2), b"$" * (MAX_PACKET + 1))


def test_a_server_is_found_behind_what_it_still_says() -> None:
    old = frame(b"T05") + frame(b"0000") + b"$00"
    talk = GdbServer().find()
    assert isinstance(next(talk), Send)
    for byte in old:
        assert isinstance(talk.send(bytes([byte])), Want)
    step = talk.throw(NoAnswerError("quiet"))
    assert step == Send(frame(b"vMustReplyEmpty"))
    late = bytearray(b"-+" + frame(b"OK") + frame(b""))
    step = talk.send(b"")
    while late:
        if isinstance(step, Send):
            step = talk.send(b"")
            continue
        size = late.index(step.end) + 1 if step.end else step.size
        data = bytes(late[:size])
        del late[:size]
        step = talk.send(data)
    with pytest.raises(StopIteration):  # noqa: PT012
        while True:
            step = talk.send(b"") if isinstance(step, Send) else talk.throw(NoAnswerError("quiet"))


def test_who_does_not_answer_is_not_found() -> None:
    with pytest.raises(NoAnswerError, match="nobody else connected"):
        hold(GdbServer().find(), b"")
    with pytest.raises(LinkError, match="garbled"):
        hold(server().find(), b"$x#00", answer_once_asked=True)
    with pytest.raises(NoAnswerError):
        hold(server().find(), frame(b"OK") * gdb_remote.UNASKED, answer_once_asked=True)


def test_a_link_that_is_never_quiet_is_none() -> None:
    with pytest.raises(LinkError, match="never quiet"):
        hold(GdbServer().find(), b"x" * MAX_PACKET)


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("talk", "request_", "answer", "result"),
    [
        (lambda s: s.read(0x8000000, 3), b"m8000000,3", b"0a0B0c", b"\x0a\x0b\x0c"),
        (lambda s: s.write(0x20000000, b"\1#"), b"M20000000,2:0123", b"OK", None),
        (lambda s: s.flash_erase(0x8000000, 0x4000), b"vFlashErase:8000000,4000", b"OK", None),
        (lambda s: s.flash_write(0x8000000, b"a#}"), b"vFlashWrite:8000000:a#}", b"OK", None),
        (lambda s: s.flash_done(), b"vFlashDone", b"OK", None),
        (lambda s: s.crc(0x8000000, 16), b"qCRC:8000000,10", b"C1a2b", 0x1A2B),
        (lambda s: s.crc(0x8000000, 16), b"qCRC:8000000,10", b"", None),
        (lambda s: s.monitor("reset"), b"qRcmd,7265736574", b"OK", ""),
        (lambda s: s.monitor("reset"), b"qRcmd,7265736574", b"6869", "hi"),
        (lambda s: s.detach(), b"D", b"OK", None),
    ],
)  # fmt: skip
def test_requests(talk: Callable[[GdbServer], Talk[object]], request_: bytes, answer: bytes, result: object) -> None:
    assert ask(talk(server()), answer) == ([request_], result)


def test_memory_is_read_and_written_in_packets_that_the_server_takes() -> None:
    small = server(packet=64)
    assert ask(small.read(0, 30), b"aa" * 12, b"bb" * 5, b"cc" * 12, b"dd")[0] == [
        b"m0,c",
        b"mc,c",
        b"m11,c",
        b"m1d,1",
    ]  # the second time it gave less
    requests, _ = ask(small.write(0, b"\xaa" * 13), b"OK", b"OK")
    assert requests == [b"M0,c:" + b"aa" * 12, b"Mc,1:aa"]
    small.binary = True
    requests, _ = ask(small.write(0, b"}" * 13), b"OK", b"OK")
    assert requests == [b"X0,c:" + b"}" * 12, b"Xc,1:}"]
    requests, _ = ask(small.flash_write(8, b"#" * 13), b"OK", b"OK")
    assert requests == [b"vFlashWrite:8:" + b"#" * 12, b"vFlashWrite:14:#"]


def test_a_monitor_command_says_something() -> None:
    assert ask(server().monitor("reset"), b"O" + b"one ".hex().encode(), b"S05", b"O74776f", b"OK")[1] == "one two"
    with pytest.raises(RefusedError, match=r"refused to carry out 'x': error 0x01 \(no such thing\)"):
        ask(server().monitor("x"), b"O" + b"no such\n thing\n".hex().encode(), b"E01")


@pytest.mark.parametrize(
    "talk",
    [
        lambda: server().read(0, 1),
        lambda: server().write(0, b"1"),
        lambda: server().flash_erase(0, 1),
        lambda: server().monitor("x"),
        lambda: server(b"qXfer:memory-map:read").memory_map(),
    ],
)
def test_a_refusal_and_nonsense_are_told_apart(talk: Callable[[], Talk[object]]) -> None:
    with pytest.raises(RefusedError, match=r"refused to .*: error 0x0e"):
        ask(talk(), b"E0e")
    with pytest.raises(RefusedError, match=r"refused to .*: no! really"):
        ask(talk(), b"E.no!\nreally")
    with pytest.raises(RefusedError, match="does not know how to"):
        ask(talk(), b"")
    with pytest.raises(LinkError, match=r"makes no sense: .*'hm\?") as failed:
        ask(talk(), b"hm\x07")
    assert not isinstance(failed.value, RefusedError)


def test_a_chip_that_does_not_run_is_told_of() -> None:
    assert hold(server().run(), frame(b"T05")) == (frame(b"c"), None)  # that was before
    assert hold(server().run(), frame(b"O6869"), answer_once_asked=True) == (frame(b"c"), None)
    with pytest.raises(RefusedError, match="stopped at once: T05thread:01;"):
        hold(server().run(), b"-" + frame(b"T05thread:01;"), answer_once_asked=True)
    with pytest.raises(RefusedError, match=r"refused to let the chip run: error 0x01"):
        hold(server().run(), frame(b"E01"), answer_once_asked=True)


def test_a_checksum_may_be_refused() -> None:
    with pytest.raises(RefusedError, match="compute a checksum"):
        ask(server().crc(0, 1), b"E01")


def test_a_read_gives_no_more_than_was_asked_for() -> None:
    with pytest.raises(LinkError, match="no sense"):
        ask(server().read(0, 1), b"0102")


TALKS: list[Callable[[GdbServer], Talk[object]]] = [
    lambda s: s.find(),
    lambda s: s.greet(),
    lambda s: s.memory_map(),
    lambda s: s.read(0, 7),
    lambda s: s.write(0, b"1234"),
    lambda s: s.flash_write(0, b"1234"),
    lambda s: s.crc(0, 1),
    lambda s: s.monitor("x"),
    lambda s: s.run(),
]
PIECES = st.one_of(
    st.binary(max_size=6),
    st.sampled_from([b"+", b"-", b"$", b"#", b"$#00", b"$m#6d"]),
    st.sampled_from([b"OK", b"E01", b"l<memory-map/>", b"m<", b"O41", b"C1", b"00", b"PacketSize=40"]).map(frame),
)


@given(st.sampled_from(TALKS), st.lists(PIECES, max_size=8).map(b"".join), st.booleans())
def test_any_answer_is_a_result_or_a_link_error(
    talk: Callable[[GdbServer], Talk[object]], answers: bytes, acks: bool
) -> None:
    talker = server(b"qXfer:memory-map:read")
    talker.acks = acks
    try:
        hold(talk(talker), answers)
    except OtaError as exc:
        assert isinstance(exc, LinkError)  # noqa: PT017  as long as there is one
    except AssertionError:
        pass  # more came than was asked for


# --- the memory map --------------------------------------------------------------------------------------------------

MAP = b"""<?xml version="1.0"?>
<!DOCTYPE memory-map PUBLIC "+//IDN gnu.org//DTD GDB Memory Map V1.0//EN" "http://sourceware.org/gdb/gdb-memory-map.dtd">
<memory-map>
  <memory type="ram" start="0x20000000" length="0x20000"/>
  <memory type="flash" start="0x08010000" length="0x10000">
    <property name="blocksize">0x10000</property></memory>
  <memory type="flash" start="134217728" length="0x10000"><property name="color">red</property>
    <property name="blocksize"> 0x4000 </property></memory>
  <memory type="rom" start="0x1fff0000" length="0x800"/><memory type="ram" start="0x0" length="0x0"/>
  <other><deeper/>text</other>
</memory-map>"""
MEMORIES = (
    Memory(0x20000000, 0x20000, "ram"),
    Memory(0x08010000, 0x10000, "flash", 0x10000),
    Memory(0x08000000, 0x10000, "flash", 0x4000),
    Memory(0x1FFF0000, 0x800, "rom"),
)


def test_a_memory_map_is_read_and_becomes_a_geometry() -> None:
    assert parse_memory_map(MAP) == MEMORIES
    geometry = flash_geometry(MEMORIES, 0x08000000, 4)
    assert geometry == Geometry((Region(0, 0x10000, 0x4000), Region(0x10000, 0x10000, 0x10000)), 4)
    for base in (0x08004000, 0x20000000, 0):
        with pytest.raises(ConfigError, match="no flash memory"):
            flash_geometry(MEMORIES, base, 4)
    flash_geometry((Memory(0, 65536, "flash", 1),), 0, 1)
    with pytest.raises(ConfigError, match="more than 65536 sectors"):
        flash_geometry((Memory(0, 65537, "flash", 1),), 0, 1)


def test_a_memory_map_comes_in_pieces() -> None:
    talker = server(b"qXfer:memory-map:read", packet=0x400)
    half = talker.room
    requests, found = ask(talker.memory_map(), b"m" + MAP[:half], b"l" + MAP[half:])
    assert requests == [b"qXfer:memory-map:read::0,%x" % half, b"qXfer:memory-map:read::%x,%x" % (half, half)]
    assert found == MEMORIES
    assert ask(server().memory_map()) == ([], ())
    with pytest.raises(LinkError, match="makes no sense"):
        ask(talker.memory_map(), b"m")
    with pytest.raises(LinkError, match="longer than"):
        ask(talker.memory_map(), *[b"m" + b" " * 60000] * 5)


BOMB = b'<!DOCTYPE memory-map [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><memory-map>&b;</memory-map>'


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "no XML"),
        (b"<memory-map>", "no XML"),
        (b'<?xml version="1.0" encoding="no-such"?><memory-map/>', "encoding"),
        (b"<target/>", "another document"),
        (b"<memory-map>" + b"<a>" * 16 + b"</a>" * 16 + b"</memory-map>", "too deep"),
        (BOMB, "declares entities"),
        (BOMB.replace(b'"aaaa"', b'SYSTEM "file:///etc/passwd"'), "declares entities"),
        (b'<memory-map><memory type="ram" start="x" length="1"/></memory-map>', "'x' in the place of a number"),
        (b'<memory-map><memory type="ram" start="1"/></memory-map>', "'' in the place of a number"),
        (b'<memory-map><memory type="flash" start="1" length="4"/></memory-map>', "in the place of a number"),
        (MAP.replace(b"0x4000", b"0x4001"), "not whole blocks"),
        (MAP.replace(b"0x4000", b"0"), "not whole blocks"),
        (b" " * LIMIT + b"<memory-map/>", "longer than"),
    ],
)
def test_documents_that_are_no_memory_map(document: bytes, why: str) -> None:
    with pytest.raises(LinkError, match=why):
        parse_memory_map(document)


def test_a_memory_map_has_limits() -> None:
    one = b'<memory type="ram" start="1" length="1"/>'
    assert len(parse_memory_map(b"<memory-map>" + one * MAX_MEMORIES + b"</memory-map>")) == MAX_MEMORIES
    with pytest.raises(LinkError, match="more than"):
        parse_memory_map(b"<memory-map>" + one * (MAX_MEMORIES + 1) + b"</memory-map>")
    assert parse_memory_map(b"<memory-map/>" + b" " * (LIMIT - 13)) == ()
    assert parse_memory_map(b"<memory-map>" + b"<a>" * 15 + b"</a>" * 15 + b"</memory-map>") == ()


@given(st.binary(max_size=200), st.integers(0, len(MAP)), st.integers(0, 20))
def test_any_document_is_a_map_or_a_link_error(junk: bytes, at: int, gone: int) -> None:
    for document in (junk, MAP[:at] + junk[:3] + MAP[at + gone :]):
        try:
            assert len(parse_memory_map(document)) <= MAX_MEMORIES
        except LinkError as exc:
            assert "\n" not in str(exc)  # noqa: PT017
