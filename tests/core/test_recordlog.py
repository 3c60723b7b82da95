"""The record log: what it keeps over full sectors, bad units, any bytes, and power cuts; and what each rule is for."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import product
from random import Random
from zlib import crc32

import pytest
from hypothesis import given, settings, strategies as st

from mgota.core.geometry import Geometry, Region, Sector, uniform
from mgota.core.nor import Job, Read
from mgota.core.recordlog import HEAD, LONGEST, MAGIC, Kind, RecordLog, Scanned, decode_entry, encode_entry
from mgota.errors import ConfigError, FlashError, ReadError, StateError, VerifyError
from mgota.testing import (
    ALL_MODES,
    BadFlash,
    CutMode,
    Flaw,
    Kind as Does,
    NorSimulator,
    Operation,
    PowerCut,
    PowerSupply,
)
from mgota.testing.jobs import carry_out_now
from mgota.testing.power import Torn

WCH = bytes.fromhex("39e339e3")
SMALL = uniform(6 * 128, 128, program_unit=16)  # a record of up to 16 bytes is two units, and a sector holds four
GEOMETRIES = (
    SMALL,
    uniform(4 * 256, 256),
    uniform(4 * 256, 256, program_unit=4, erased=WCH),
    uniform(4 * 1024, 1024, program_unit=256),
    uniform(4 * 2048, 2048, program_unit=512),
    Geometry((Region(64, 192, 64), Region(512, 512, 128)), program_unit=8, erased=b"\0"),
)


def log_on(flash: NorSimulator, kind: type[RecordLog] = RecordLog) -> RecordLog:
    """The log in the last three sectors, as a process that has just started sees it."""
    return kind(flash.geometry, flash.geometry.sectors[-3:], Kind.STATE)


def begun(log: RecordLog, fresh: bytes | None) -> Job[bytes | None]:
    """Mount; a new log, or one that is lost, begins with a value if there is one for it."""
    found = None
    try:
        found = yield from log.mount()
    except StateError:
        if fresh is None:
            raise
    if found is None and fresh is not None:
        yield from log.append(fresh)
    return fresh if found is None else found


def mount(flash: NorSimulator, fresh: bytes | None = None, kind: type[RecordLog] = RecordLog) -> bytes | None:
    """What a new process finds."""
    return carry_out_now(begun(log_on(flash, kind), fresh), flash)


def mounted(flash: NorSimulator, fresh: bytes | None = None) -> RecordLog:
    log = log_on(flash)
    carry_out_now(begun(log, fresh), flash)
    return log


def append(flash: NorSimulator, log: RecordLog, value: bytes) -> None:
    carry_out_now(log.append(value), flash)


def entry(epoch: int, value: bytes, geometry: Geometry = SMALL, kind: Kind = Kind.STATE) -> bytes:
    """A record, padded to units."""
    data = encode_entry(epoch, kind, value)
    room = -(-len(data) // geometry.program_unit) * geometry.program_unit
    return data + geometry.blank(room)[len(data) :]


def at(index: int, geometry: Geometry = SMALL) -> Sector:
    return geometry.sectors[-3 + index]


def laid(*sectors: bytes) -> NorSimulator:
    """A memory whose log's sectors begin with these bytes."""
    flash = NorSimulator(SMALL)
    for index, data in enumerate(sectors):
        flash.poke(at(index).start, data)
    return flash


# --- records ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.sampled_from(Kind), st.binary(max_size=80), st.binary(max_size=9))
def test_a_record_reads_back_wherever_it_stands(epoch: int, kind: Kind, value: bytes, before: bytes) -> None:
    data = before + encode_entry(epoch, kind, value)
    assert decode_entry(data + b"behind", kind, len(before)) == (epoch, value)
    assert decode_entry(data[:-1], kind, len(before)) is None
    other = Kind.SWAP if kind is Kind.STATE else Kind.STATE
    assert decode_entry(data, other, len(before)) is None


@given(st.integers(0, 2**32 - 1), st.binary(max_size=40), st.data())
def test_one_wrong_bit_makes_it_no_record(epoch: int, value: bytes, draw: st.DataObject) -> None:
    data = bytearray(encode_entry(epoch, Kind.SWAP, value))
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    data[bit // 8] ^= 1 << bit % 8
    assert decode_entry(bytes(data), Kind.SWAP) is None


@given(st.binary(max_size=64), st.integers(0, 70))
def test_any_bytes_are_a_record_or_none(data: bytes, start: int) -> None:
    assert decode_entry(data, Kind.SWAP, start) is None
    assert decode_entry(MAGIC + data, Kind.SWAP) is None or len(data) >= HEAD.size - 4


def test_the_bits_of_a_record() -> None:
    head = b"MGL1" + b"\4\3\2\1" + b"\2\0" + b"\1" + b"\0"
    crc = crc32(head + b"hi").to_bytes(4, "little")
    assert encode_entry(0x01020304, Kind.SWAP, b"hi") == head + crc + b"hi"


# --- the log without power cuts --------------------------------------------------------------------------------------


def test_it_takes_three_sectors_of_its_memory() -> None:
    sectors = SMALL.sectors
    for wrong in (sectors[:2], sectors[:4], (sectors[0], sectors[0], sectors[1]), (*sectors[:2], Sector(2, 128))):
        with pytest.raises(ConfigError, match="three sectors"):
            RecordLog(SMALL, wrong, Kind.SWAP)


@pytest.mark.parametrize(
    ("sector", "unit", "longest"),
    [(4096, 1, 2032), (4096, 256, 2032), (4096, 16, 2032), (1024, 512, 496), (64, 16, 16), (34, 1, 1)],
)
def test_a_value_is_as_long_as_a_sector_that_holds_it_twice(sector: int, unit: int, longest: int) -> None:
    flash = NorSimulator(uniform(4 * sector, sector, program_unit=unit))
    log = log_on(flash)
    assert log.max_value == longest
    value = bytes(i % 255 for i in range(longest))
    assert carry_out_now(begun(log, value), flash) == value
    for i in range(4):
        append(flash, log, bytes([i]) * longest)
    with pytest.raises(StateError, match="does not fit"):
        append(flash, log, bytes(longest + 1))
    assert mount(flash) == b"\3" * longest
    assert flash.peek(0, sector) == b"\xff" * sector  # the neighbour
    assert not flash.operations.broken_rules


def test_a_value_is_no_longer_than_its_head_can_say() -> None:
    flash = NorSimulator(uniform(3 << 18, 1 << 18, program_unit=512))
    log = mounted(flash, b"\1" * LONGEST)
    assert log.max_value == LONGEST == 65535
    with pytest.raises(StateError, match="65535 at most"):
        append(flash, log, bytes(LONGEST + 1))
    assert mount(flash) == b"\1" * LONGEST


@pytest.mark.parametrize(("sector", "unit"), [(32, 1), (32, 32), (512, 512), (16, 4)])
def test_sectors_that_hold_no_record_twice_are_refused(sector: int, unit: int) -> None:
    with pytest.raises(ConfigError, match="too small"):
        log_on(NorSimulator(uniform(4 * sector, sector, program_unit=unit)))


def test_sectors_of_different_lengths_go_by_the_shortest() -> None:
    geometry = Geometry((Region(0, 128, 64), Region(128, 512, 256)), program_unit=16)
    flash = NorSimulator(geometry)
    log = RecordLog(geometry, geometry.sectors[:3], Kind.STATE)
    assert log.max_value == 16
    carry_out_now(begun(log, b"0"), flash)
    for i in range(40):
        append(flash, log, b"%d" % i)
    assert carry_out_now(RecordLog(geometry, geometry.sectors[:3], Kind.STATE).mount(), flash) == b"39"


def test_a_value_that_does_not_fit_touches_nothing() -> None:
    flash = NorSimulator(SMALL)
    with pytest.raises(StateError, match="does not fit"):
        mount(flash, bytes(100))
    assert flash.operations.changes == 0


@given(
    st.sampled_from(GEOMETRIES),
    st.booleans(),
    st.lists(st.one_of(st.none(), st.binary(max_size=16)), max_size=30),
)
@settings(max_examples=60)
def test_the_newest_value_is_found_again(geometry: Geometry, fresh: bool, script: list[bytes | None]) -> None:
    """Values are appended, and None is a restart."""
    flash = NorSimulator(geometry)
    newest = b"fresh" if fresh else None
    log = mounted(flash, newest)
    for value in script:
        if value is None:
            log = log_on(flash)
            assert carry_out_now(begun(log, newest if fresh else None), flash) == newest
        else:
            append(flash, log, value)
            newest = value
    assert mount(flash, b"another" if newest is None else None) == (b"another" if newest is None else newest)
    assert not flash.operations.broken_rules
    first = geometry.sectors[-3].start
    used = [each.start for each in geometry.sectors if flash.programmed(each.start, each.length) is not None]
    assert all(start >= first for start in used)


def test_a_new_log_may_stay_blank_until_its_first_value() -> None:
    flash = NorSimulator(SMALL)
    log = log_on(flash)
    assert carry_out_now(log.mount(), flash) is None
    assert flash.operations.changes == 0
    append(flash, log, b"first")
    assert mount(flash) == b"first"


def erased(flash: NorSimulator, act: Callable[[], object]) -> list[int]:
    """Which of the log's sectors are erased meanwhile."""
    found: list[int] = []

    def note(operation: Operation) -> None:
        if operation.kind is Does.ERASE:
            found.append((operation.offset - at(0).start) // 128)

    flash.operations.before = note
    act()
    flash.operations.before = None
    return found


def test_a_full_sector_is_followed_by_the_oldest() -> None:
    flash = NorSimulator(SMALL)
    log = mounted(flash, b"0")
    assert [erased(flash, partial(append, flash, log, b"%d" % i)) for i in range(1, 10)] == [
        *([], [], [1]),  # two records and the seal are in sector 0
        *([], [], [2]),
        *([], [], [0]),
    ]
    assert mount(flash) == b"9"


def test_each_mount_writes_what_it_read_once_more_into_the_oldest() -> None:
    flash = NorSimulator(SMALL)
    mount(flash, b"value")
    assert [erased(flash, lambda: mount(flash)) for _ in range(5)] == [[2], [1], [0], [2], [1]]
    assert mount(flash) == b"value"


# --- what a mount finds ----------------------------------------------------------------------------------------------


def test_one_sector_without_a_record_is_a_first_record_that_was_torn() -> None:
    for index in range(3):
        flash = NorSimulator(SMALL)
        flash.poke(at(index).start + 40, b"\0")
        assert mount(flash) is None
        assert mount(flash, b"fresh") == b"fresh"
        assert mount(flash) == b"fresh"


def test_all_sectors_without_a_record_are_damage_unless_there_is_something_to_begin_with() -> None:
    flash = laid(b"\0", entry(1, b"torn")[:19], b"\0")
    with pytest.raises(StateError, match="damaged"):
        mount(flash)
    assert mount(flash, b"fresh") == b"fresh"


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_new_log_whose_first_sector_is_bad_survives_a_cut(mode: CutMode) -> None:
    for operation in range(6):
        flash = NorSimulator(SMALL)
        spoil(flash, "error", at(0))
        power = PowerSupply(flash, seed=operation)
        power.cut_at(operation, mode)
        with suppress(PowerCut):
            mount(flash, b"first")
        power.restore()
        assert mount(flash, b"again") in (b"first", b"again")


def test_a_log_of_another_kind_is_damage() -> None:
    flash = laid(*[entry(1, b"swap", kind=Kind.SWAP) * 2] * 3)
    with pytest.raises(StateError, match="damaged"):
        mount(flash)


def test_an_unsealed_sector_does_not_count_beside_its_predecessor() -> None:
    flash = laid(entry(7, b"seven") * 2 + entry(7, b"later"), entry(8, b"eight"), entry(6, b"six") * 2)
    assert erased(flash, lambda: mount(flash)) == [1]
    assert mount(flash) == b"later"
    assert [decode_entry(flash.peek(at(i).start, 128), Kind.STATE) for i in (0, 1)] == [(7, b"seven"), (9, b"later")]


def test_an_unsealed_sector_alone_counts() -> None:
    for index in range(3):
        flash = laid(*[b"\xff"] * index, entry(3, b"three"))
        (other,) = erased(flash, partial(mount, flash))
        assert other != index
        assert mount(flash) == b"three"


def test_a_sealed_sector_counts_and_the_oldest_is_overwritten() -> None:
    flash = laid(entry(7, b"seven") * 2, entry(8, b"eight") + b"\0", entry(6, b"six") * 2)  # a torn seal is one
    assert erased(flash, lambda: mount(flash)) == [2]
    assert mount(flash) == b"eight"


def test_one_valid_sector_beside_damage_counts() -> None:
    flash = laid(b"\0" * 128, entry(4, b"four") * 2, b"\x55" * 128)
    assert mount(flash) == b"four"


def test_records_of_another_epoch_behind_the_newest_are_remains() -> None:
    flash = laid(entry(7, b"seven") * 2 + entry(4, b"old"), entry(6, b"six") * 2)
    assert mount(flash) == b"seven"


@pytest.mark.parametrize("second", [entry(9, bytes(49)), entry(0xFFFFFFFF, b"last")], ids=["too long", "last epoch"])
def test_a_record_that_no_log_can_have_written_is_none(second: bytes) -> None:
    flash = laid(entry(5, b"five") * 2, second)
    assert mount(flash) == b"five"
    flash = laid(second, second, second)
    with pytest.raises(StateError, match="damaged"):
        mount(flash)
    assert not flash.operations.broken_rules


RECORDS = st.builds(entry, st.integers(0, 2**32 - 10) | st.integers(1, 4), st.binary(max_size=64))
CONTENT = st.builds(b"".join, st.lists(RECORDS | st.binary(max_size=40), max_size=4)).map(lambda data: data[:128])


@given(st.lists(CONTENT, min_size=3, max_size=3), st.booleans())
def test_any_bytes_give_a_value_or_none_or_a_clear_error(content: list[bytes], fresh: bool) -> None:
    flash = laid(*content)
    log = log_on(flash)
    try:
        value = carry_out_now(begun(log, b"fresh" if fresh else None), flash)
    except StateError:
        assert not fresh
        append(flash, log, b"anew")
        assert mount(flash) == b"anew"
        return
    if value is not None:
        log = log_on(flash)
        assert carry_out_now(log.mount(), flash) == value
    append(flash, log, b"next")
    assert mount(flash) == b"next"
    assert not flash.operations.broken_rules


def test_a_log_does_not_outlive_its_epochs() -> None:
    flash = laid(entry(0xFFFFFFFC, b"value") * 2)
    for _ in range(2):
        assert mount(flash) == b"value"
    for _ in range(2):
        with pytest.raises(StateError, match="last epoch"):
            mount(flash)


def test_a_log_that_was_damaged_under_a_running_process_begins_anew() -> None:
    flash = NorSimulator(SMALL)
    log = mounted(flash, b"value")
    append(flash, log, b"more")
    for sector in SMALL.sectors[-3:]:
        flash.erase_now(sector)
        flash.poke(sector.start, b"\0" * 4)
    with pytest.raises(StateError, match="damaged"):
        carry_out_now(log.mount(), flash)
    append(flash, log, b"operator")  # not behind the records that are gone
    assert mount(flash) == b"operator"


# --- bad flash -------------------------------------------------------------------------------------------------------


def spoil(flash: NorSimulator, flaw: str, area: Sector) -> BadFlash:
    bad = BadFlash(flash)
    match flaw:
        case "stuck":
            bad.stick(area.start, 0xFF, 0)
        case "unread":
            bad.fail(Does.READ, Flaw.ERROR, sectors=[area], times=1)
        case _:
            bad.fail(Does.PROGRAM, Flaw(flaw), sectors=[area])
    return bad


@pytest.mark.parametrize("flaw", ["stuck", "unread", "ignored", "error"])
def test_a_bad_unit_sends_the_record_to_the_next_sector(flaw: str) -> None:
    flash = NorSimulator(SMALL)
    log = mounted(flash, b"0")
    spoil(flash, flaw, Sector(at(0).start + 64, 32))
    assert erased(flash, lambda: append(flash, log, b"1")) == [1]
    append(flash, log, b"2")
    assert mount(flash) == b"2"
    assert mount(flash) == b"2"


@pytest.mark.parametrize(("flaw", "unit"), list(product(["stuck", "ignored", "error"], [0, 32])))
def test_a_sector_that_keeps_nothing_is_passed_over(flaw: str, unit: int) -> None:
    """When its turn comes in an append, and in every mount."""
    flash = NorSimulator(SMALL)
    log = mounted(flash, b"0")
    spoil(flash, flaw, Sector(at(1).start + unit, 32))
    for number in range(1, 20):
        append(flash, log, b"%d" % number)
        if number % 3 == 0:
            assert mount(flash) == b"%d" % number
            log = mounted(flash)
    assert mount(flash) == b"19"


@pytest.mark.parametrize("unit", [0, 32])
def test_two_sectors_that_keep_nothing_are_an_error_and_the_value_before_stands(unit: int) -> None:
    flash = NorSimulator(SMALL)
    log = mounted(flash, b"0")
    bad = BadFlash(flash)
    bad.fail(Does.PROGRAM, Flaw.IGNORED, sectors=[Sector(at(index).start + unit, 32) for index in (1, 2)])
    append(flash, log, b"1")
    append(flash, log, b"2")
    for _ in range(3):
        with pytest.raises(VerifyError, match="do not keep a record"):
            append(flash, log, b"3")
    bad.mend()
    # The first record may have been written before the seal was refused: then it is the newest, and as good.
    assert mount(flash) in ((b"2", b"3") if unit else (b"2",))


@pytest.mark.parametrize("kind", [Does.READ, Does.ERASE])
def test_a_memory_that_cannot_be_read_or_erased_is_an_error_and_loses_nothing(kind: Does) -> None:
    flash = NorSimulator(SMALL)
    mount(flash, b"value")
    bad = BadFlash(flash)
    bad.fail(kind, Flaw.ERROR)
    with pytest.raises(FlashError) as failed:
        mount(flash)
    assert not isinstance(failed.value, StateError)
    assert isinstance(failed.value, ReadError) == (kind is Does.READ)
    bad.mend()
    assert mount(flash) == b"value"


def unreadable(flash: NorSimulator, *areas: Sector, times: int | None = None) -> None:
    BadFlash(flash).fail(Does.READ, Flaw.ERROR, sectors=areas, times=times)


@pytest.mark.parametrize("times", [1, 2])
def test_a_read_that_fails_once_or_twice_is_made_again(times: int) -> None:
    flash = NorSimulator(SMALL)
    log = mounted(flash, b"0")
    append(flash, log, b"1")
    unreadable(flash, Sector(at(0).start + 64, 32), times=times)
    assert mount(flash) == b"1"


@pytest.mark.parametrize("silence", [*range(1, 40), 60, 100])
def test_a_link_that_is_silent_for_a_while_proves_nothing(silence: int) -> None:
    """However long: a value, the right one, or an error, and never that a record is torn."""
    flash = laid(entry(6, b"6") * 4, entry(7, b"seven"), entry(5, b"five") * 2)
    bad = BadFlash(flash)
    bad.fail(Does.READ, Flaw.ERROR, at=range(1, silence + 1))
    try:
        assert mount(flash) == b"6"
    except FlashError as exc:
        assert not isinstance(exc, StateError)  # noqa: PT017  as long as there is one
    bad.mend()
    assert mount(flash) == b"6"


def test_a_unit_that_a_cut_made_unreadable_is_a_torn_record() -> None:
    """As of flash with ECC: the last record of the newest sector, its seal, its first record."""
    full = entry(6, b"6") * 2 + entry(6, b"six") * 2
    flash = laid(full, entry(7, b"seven") * 2 + entry(7, b"torn"))
    unreadable(flash, Sector(at(1).start + 64, 32))
    assert mount(flash) == b"seven"

    flash = laid(full, entry(7, b"seven") * 2)
    unreadable(flash, Sector(at(1).start + 32, 16))  # sealed all the same: its first record was complete
    assert mount(flash) == b"seven"

    flash = laid(full, entry(7, b"seven"))
    unreadable(flash, Sector(at(1).start, 16))
    assert mount(flash) == b"six"

    flash = laid(full, entry(7, b"seven") * 2, entry(5, b"five") * 4)
    unreadable(flash, Sector(at(2).start, 16), Sector(at(2).start + 64, 16))  # its erase was torn
    assert mount(flash) == b"seven"


def test_a_whole_record_that_cannot_be_read_is_never_passed_over() -> None:
    """What it says is newer than what is before it: to go back to that would undo what was done since."""
    flash = laid(entry(6, b"6") * 4, entry(7, b"seven") * 2 + entry(7, b"8") + entry(7, b"9"))
    for first in (0, 32, 64):
        twin = flash.fork()
        unreadable(twin, Sector(at(1).start + first, 16))
        with pytest.raises(ReadError, match="cannot be read"):
            mount(twin)
    for index in range(3):
        twin = flash.fork()
        unreadable(twin, at(index))
        with pytest.raises(ReadError, match="cannot be read"):
            mount(twin)


# --- power cuts ------------------------------------------------------------------------------------------------------


def value(number: int) -> bytes:
    return number.to_bytes(4, "little")


def lives(flash: NorSimulator, power: PowerSupply, random: Random, cuts: int) -> None:
    """Appends and restarts with cuts at drawn operations. After each mount the value is one of those it may be."""
    allowed = {value(0)}
    number = 0
    for _ in range(cuts):
        power.cut_at(random.randrange(9), random.choice(ALL_MODES))
        try:
            log = log_on(flash)
            found = carry_out_now(log.mount(), flash)
            assert found in allowed
            allowed = {found}
            while True:
                number += 1
                allowed.add(value(number))
                append(flash, log, value(number))
                allowed = {value(number)}
        except PowerCut:
            power.restore()
    found = mount(flash)
    assert found in allowed
    assert mount(flash) == found
    assert not flash.operations.broken_rules


@pytest.mark.parametrize("geometry", [SMALL, uniform(4 * 256, 256, program_unit=4, erased=WCH)])
def test_cuts_leave_the_newest_value_or_the_one_before(geometry: Geometry) -> None:
    for seed in range(250):
        random = Random(seed)
        flash = NorSimulator(geometry)
        mount(flash, value(0))
        lives(flash, PowerSupply(flash, seed=seed), random, random.randrange(1, 8))


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_cut_in_the_very_first_record_leaves_it_or_nothing(mode: CutMode) -> None:
    for index in range(3):  # erase, record, seal
        flash = NorSimulator(SMALL)
        log = mounted(flash)
        power = PowerSupply(flash, seed=index)
        power.cut_at(index, mode)
        try:
            append(flash, log, b"first")
        except PowerCut:
            power.restore()
        found = mount(flash)
        assert found in (None, b"first")
        assert mount(flash) == found or found is None
        append(flash, mounted(flash), b"again")
        assert mount(flash) == b"again"


# --- the reason of each rule: without it, a log loses its value -------------------------------------------------------


class Cut(BaseException):
    """The power is gone."""


def cut(flash: NorSimulator, act: Callable[[], object], index: int, mode: CutMode, reads: int) -> None:
    """Cut off the operation with this index, counted from now; `reads` is how often it reads one way."""
    index += flash.operations.changes

    def leave(operation: Operation) -> None:
        if operation.index == index:
            new = SMALL.blank(operation.size) if operation.data is None else bytes(operation.data)
            flash.cover(Torn(mode, operation.offset, new, reads=reads))
            raise Cut

    flash.operations.before = leave
    with pytest.raises(Cut):
        act()
    flash.operations.before = None


FIRST, SEAL = 1, 2  # operations of a mount: the erase, the first record, the seal


class SealsNothing(RecordLog):
    """A mutant: the newest sector counts, sealed or not."""

    def _choose(self, scanned: list[Scanned]) -> tuple[Scanned, list[int]]:
        return super()._choose([Scanned(found.index, found.epoch, True, found.value) for found in scanned])


class CommitsNothing(RecordLog):
    """A mutant: what was read is not written once more; the log goes on where it ended."""

    mounting = False

    def mount(self) -> Job[bytes | None]:
        self.mounting = True
        found = yield from super().mount()
        self.mounting = False
        return found

    def _open(self, value: bytes) -> Job[None]:
        if not (self.mounting and self._epoch):
            yield from super()._open(value)
            return
        sector = self._sectors[self._order[0]]
        data = yield Read(sector.start, sector.length)
        self._position = 0
        while (found := self._entry(data, self._position)) and found[0] == self._epoch:
            self._position += self._room(len(found[1]))


class TwoSectors(RecordLog):
    """A mutant: the third sector is never used."""

    def _choose(self, scanned: list[Scanned]) -> tuple[Scanned, list[int]]:
        source = scanned[1] if not scanned[0].sealed and len(scanned) > 1 else scanned[0]
        return source, [source.index, 1 - source.index]

    def _open(self, value: bytes) -> Job[None]:
        self._order = [index for index in self._order if index < 2]
        yield from super()._open(value)


def in_use(kind: type[RecordLog]) -> NorSimulator:
    """A memory whose log has been in use for a while: all of its sectors were."""
    flash = NorSimulator(SMALL)
    log = log_on(flash, kind)
    carry_out_now(begun(log, b"0"), flash)
    for number in range(1, 11):
        append(flash, log, b"%d" % number)
    assert mount(flash, kind=kind) == b"10"
    return flash


def survives_three_cuts_in_first_records(kind: type[RecordLog]) -> bool:
    """Each mount is cut off in the first record, which reads well until the next mount but one."""
    flash = in_use(kind)
    for reads in (2, 1):
        cut(flash, lambda: mount(flash, b"lost", kind), FIRST, CutMode.VALID_THEN_BLANK, reads)
    cut(flash, lambda: mount(flash, b"lost", kind), FIRST, CutMode.NOTHING, 0)
    return mount(flash, b"lost", kind) == b"10"


def survives_a_record_that_reads_well_once(kind: type[RecordLog]) -> bool:
    """The last append is cut off, and whoever mounts may act on what it read."""
    flash = in_use(kind)
    log = log_on(flash, kind)
    carry_out_now(log.mount(), flash)
    cut(flash, lambda: append(flash, log, b"11"), 0, CutMode.VALID_THEN_BLANK, 2)
    found = mount(flash, kind=kind)
    assert found == b"11"
    return mount(flash, kind=kind) == found


def survives_a_seal_that_reads_well_once(kind: type[RecordLog]) -> bool:
    """The seal, then the erase that it allowed, and then the next first record."""
    flash = in_use(kind)
    cut(flash, lambda: mount(flash, b"lost", kind), SEAL, CutMode.VALID_THEN_BLANK, 1)
    cut(flash, lambda: mount(flash, b"lost", kind), 0, CutMode.BLANK_THEN_VALID, 1)
    cut(flash, lambda: mount(flash, b"lost", kind), FIRST, CutMode.NOTHING, 0)
    return mount(flash, b"lost", kind) == b"10"


@pytest.mark.parametrize(
    ("mutant", "survives"),
    [
        (SealsNothing, survives_three_cuts_in_first_records),
        (CommitsNothing, survives_a_record_that_reads_well_once),
        (TwoSectors, survives_a_seal_that_reads_well_once),
    ],
)
def test_without_this_rule_the_value_is_lost(
    mutant: type[RecordLog], survives: Callable[[type[RecordLog]], bool]
) -> None:
    assert survives(RecordLog)
    assert not survives(mutant)
