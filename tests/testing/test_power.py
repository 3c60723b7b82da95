"""What each cut mode leaves of a program and of an erase, and for how long."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mgota.core.geometry import Area, Geometry, Region, Sector
from mgota.errors import ConfigError, OtaError, ProgramError
from mgota.flash.banked import VirtualOptions
from mgota.testing import ALL_MODES, CutMode, Kind, NorSimulator, Operation, Operations, PowerCut, PowerSupply

GEOMETRY = Geometry((Region(0, 128, 64), Region(128, 256, 128)), program_unit=4, erased=b"\x39\xe3")
SECTOR = GEOMETRY.sectors[1]
OLD = bytes(range(64))
TORN = ALL_MODES[2:]
SETTLED = (CutMode.PREFIX, CutMode.SUFFIX, CutMode.RANDOM_BITS)

kinds = st.sampled_from([Kind.ERASE, Kind.PROGRAM])
seeds = st.integers(0, 2**32)
# A program inside a sector, over two of them, or of one unit.
programs = (
    st.tuples(st.integers(0, 90), st.integers(1, 40))
    .map(lambda found: (found[0] * 4, found[1] * 4))
    .filter(lambda found: sum(found) <= GEOMETRY.size)
)


def cut(flash: NorSimulator, mode: CutMode, work: Callable[[], object], seed: int = 0) -> PowerSupply:
    power = PowerSupply(flash, seed=seed)
    power.cut_at(0, mode)
    with pytest.raises(PowerCut):
        work()
    power.restore()
    return power


def torn_program(mode: CutMode, seed: int, offset: int = 68, data: bytes = OLD[:32]) -> NorSimulator:
    flash = NorSimulator(GEOMETRY)
    cut(flash, mode, lambda: flash.program_now(offset, data), seed)
    return flash


def torn_erase(mode: CutMode, seed: int, sector: Sector = SECTOR) -> NorSimulator:
    flash = NorSimulator(GEOMETRY)
    flash.program_now(sector.start, OLD * (sector.length // 64))
    cut(flash, mode, lambda: flash.erase_now(sector), seed)
    return flash


def differing(old: bytes, new: bytes) -> int:
    return int.from_bytes(old, "little") ^ int.from_bytes(new, "little")


def check(mode: CutMode, old: bytes, new: bytes, reads: list[bytes]) -> None:
    """Reads of a torn range, one after the other, are what the mode says."""
    if mode is CutMode.NOTHING:
        assert set(reads) == {old}
    elif mode is CutMode.ALL:
        assert set(reads) == {new}
    elif mode in (CutMode.PREFIX, CutMode.SUFFIX):
        first, second = (new, old) if mode is CutMode.PREFIX else (old, new)
        assert len(set(reads)) == 1
        assert reads[0] in {first[:at] + second[at:] for at in range(len(old) + 1)}
    elif mode is CutMode.RANDOM_BITS:
        assert len(set(reads)) == 1
        assert differing(old, reads[0]) & ~differing(old, new) == 0
    elif mode is CutMode.RANDOM_READS:
        assert all(differing(old, found) & ~differing(old, new) == 0 for found in reads)
    else:
        first, second = (new, old) if mode is CutMode.VALID_THEN_BLANK else (old, new)
        changed = reads.index(second)
        if old != new:
            assert 1 <= changed <= 3
        assert reads == [first] * changed + [second] * (len(reads) - changed)


@given(mode=st.sampled_from(ALL_MODES), seed=seeds, place=programs)
def test_a_program_that_is_cut_off_reads_as_its_mode_says(mode: CutMode, seed: int, place: tuple[int, int]) -> None:
    offset, size = place
    data = bytes((index * 7 + seed) % 256 for index in range(size))
    flash = torn_program(mode, seed, offset, data)
    parts = [Area(max(offset, s.start), min(offset + size, s.end) - max(offset, s.start)) for s in GEOMETRY.sectors]
    parts = [part for part in parts if part.length > 0]
    blank = GEOMETRY.blank(size)
    whole = [flash.read_now(offset, size) for _ in range(8)]
    if mode in (CutMode.NOTHING, CutMode.ALL, CutMode.PREFIX, CutMode.SUFFIX):
        check(mode, blank, data, whole)
    for part in parts:
        low, high = part.start - offset, part.end - offset
        check(mode, blank[low:high], data[low:high], [found[low:high] for found in whole])
    outside = bytearray(flash.peek(0, GEOMETRY.size))
    outside[offset : offset + size] = blank
    assert outside == GEOMETRY.blank(GEOMETRY.size)


@given(mode=st.sampled_from(ALL_MODES), seed=seeds, sector=st.sampled_from(GEOMETRY.sectors))
def test_an_erase_that_is_cut_off_reads_as_its_mode_says(mode: CutMode, seed: int, sector: Sector) -> None:
    flash = torn_erase(mode, seed, sector)
    old = OLD * (sector.length // 64)
    reads = [flash.read_now(sector.start, sector.length) for _ in range(8)]
    check(mode, old, GEOMETRY.blank(sector.length), reads)


@given(mode=st.sampled_from(TORN), seed=seeds, kind=kinds)
def test_what_is_torn_is_programmed_again_only_after_an_erase(mode: CutMode, seed: int, kind: Kind) -> None:
    flash = torn_program(mode, seed) if kind is Kind.PROGRAM else torn_erase(mode, seed)
    area = Area(68, 32) if kind is Kind.PROGRAM else SECTOR
    for offset in range(area.start, area.end, 4):
        with pytest.raises(ProgramError):
            flash.program_now(offset, b"1234")
    assert len(flash.operations.broken_rules) == area.length // 4
    flash.erase_now(SECTOR)
    assert {flash.read_now(64, 64) for _ in range(5)} == {GEOMETRY.blank(64)}
    assert flash.unstable == ()
    flash.program_now(64, OLD)
    assert {flash.read_now(64, 64) for _ in range(5)} == {OLD}


@pytest.mark.parametrize("kind", [Kind.ERASE, Kind.PROGRAM])
def test_where_nothing_happened_nothing_is_in_doubt(kind: Kind) -> None:
    flash = torn_program(CutMode.NOTHING, 1) if kind is Kind.PROGRAM else torn_erase(CutMode.NOTHING, 1)
    assert flash.unstable == ()
    if kind is Kind.PROGRAM:
        flash.program_now(68, OLD[:32])
    assert flash.operations.broken_rules == []


def test_all_of_it_happened_before_the_power_went() -> None:
    flash = torn_program(CutMode.ALL, 1)
    with pytest.raises(ProgramError):
        flash.program_now(68, b"1234")
    erased = torn_erase(CutMode.ALL, 1)
    erased.program_now(64, OLD)


@pytest.mark.parametrize("mode", [CutMode.PREFIX, CutMode.SUFFIX])
def test_a_range_is_torn_inside_units_and_between_them(mode: CutMode) -> None:
    data = bytes(64)  # no byte of it is the erased pattern's
    places = set[int]()
    for seed in range(1500):
        found = torn_program(mode, seed, 64, data).read_now(64, 64)
        new = [index for index in range(64) if found[index] == 0]
        assert new in (list(range(len(new))), list(range(64 - len(new), 64)))
        assert (new[0] == 0) is (mode is CutMode.PREFIX)
        places.add(len(new))
    assert places == set(range(1, 64))


def test_random_bits_are_few_half_or_most() -> None:
    data = bytes(byte ^ 0xFF for byte in GEOMETRY.blank(64))  # every bit differs
    shares = [
        differing(GEOMETRY.blank(64), torn_program(CutMode.RANDOM_BITS, seed, 64, data).read_now(64, 64)).bit_count()
        for seed in range(100)
    ]
    assert min(shares) < 60
    assert max(shares) > 512 - 60
    assert any(200 < share < 312 for share in shares)
    assert all(0 < share < 512 for share in shares)


def test_random_reads_show_every_bit_in_both_ways() -> None:
    flash = torn_program(CutMode.RANDOM_READS, 3)
    blank = GEOMETRY.blank(32)
    seen = [differing(blank, flash.read_now(68, 32)) for _ in range(64)]
    ever, always = 0, -1
    for each in seen:
        ever, always = ever | each, always & each
    assert ever == differing(blank, OLD[:32])
    assert always == 0
    assert flash.unstable == (Area(68, 32),)


@pytest.mark.parametrize("mode", [CutMode.VALID_THEN_BLANK, CutMode.BLANK_THEN_VALID])
def test_a_range_changes_its_mind_after_one_to_three_reads_that_touch_it(mode: CutMode) -> None:
    after = set[int]()
    for seed in range(60):
        flash = torn_program(mode, seed)
        reads = 0
        first = flash.peek(68, 32)
        assert list(flash.unstable) == [Area(68, 32)]
        while flash.peek(68, 32) == first:  # a peek is no read
            flash.read_now(0, 68)  # nor is one beside it
            assert flash.unstable_reads == reads
            flash.read_now(99, 1)
            reads += 1
            assert flash.unstable_reads == reads
        after.add(reads)
        assert not flash.unstable
        flash.read_now(68, 32)
        assert flash.unstable_reads == reads
    assert after == {1, 2, 3}


@given(mode=st.sampled_from(TORN), kind=kinds, seed=seeds, before=st.integers(0, 4))
def test_a_seed_says_everything_and_a_fork_goes_on_alike(mode: CutMode, kind: Kind, seed: int, before: int) -> None:
    make = torn_program if kind is Kind.PROGRAM else torn_erase
    one, two = make(mode, seed), make(mode, seed)
    for _ in range(before):
        assert one.read_now(60, 68) == two.read_now(60, 68)
    twin = one.fork()
    assert twin.unstable == one.unstable
    reads = [[flash.read_now(60, 68) for _ in range(5)] for flash in (one, two, twin)]
    assert reads[0] == reads[1] == reads[2]
    twin.erase_now(SECTOR)
    assert twin.unstable == ()
    assert one.unstable == two.unstable


def test_other_seeds_leave_other_things() -> None:
    for mode in (CutMode.PREFIX, CutMode.SUFFIX, CutMode.RANDOM_BITS, CutMode.RANDOM_READS):
        assert len({torn_erase(mode, seed).read_now(64, 64) for seed in range(20)}) > 5


def test_an_erase_ends_what_is_torn_in_its_sector_and_nowhere_else() -> None:
    flash = torn_program(CutMode.RANDOM_READS, 5, 32, bytes(64))
    assert list(flash.unstable) == [Area(32, 32), Area(64, 32)]
    flash.erase_now(GEOMETRY.sectors[0])
    assert list(flash.unstable) == [Area(64, 32)]
    assert {flash.read_now(0, 64) for _ in range(5)} == {GEOMETRY.blank(64)}
    assert len({flash.read_now(64, 32) for _ in range(5)}) > 1


@pytest.mark.parametrize("mode", SETTLED)
def test_what_a_second_cut_leaves_uncovered_stays_uncertain(mode: CutMode) -> None:
    flash = torn_erase(CutMode.RANDOM_READS, 1)
    cut(flash, mode, lambda: flash.erase_now(SECTOR), seed=2)
    blank = GEOMETRY.blank(64)
    ever = always = differing(blank, flash.read_now(64, 64))
    for _ in range(60):
        found = differing(blank, flash.read_now(64, 64))
        ever, always = ever | found, always & found
    assert always == 0
    uncovered = ever
    assert 0 < uncovered.bit_count() < differing(blank, OLD).bit_count()
    if mode is CutMode.PREFIX:  # nothing is uncertain below some byte, and everything that differs is above it
        lowest = (uncovered & -uncovered).bit_length() // 8 * 8
        assert uncovered == differing(blank, OLD) >> lowest << lowest
    assert flash.unstable == (Area(64, 64),)


@pytest.mark.parametrize("second", [CutMode.VALID_THEN_BLANK, CutMode.BLANK_THEN_VALID, CutMode.RANDOM_READS])
@pytest.mark.parametrize("first", TORN)
def test_a_second_cut_falls_back_to_what_the_first_one_left(first: CutMode, second: CutMode) -> None:
    flash = torn_erase(first, 11)
    if first is not CutMode.RANDOM_READS:
        for _ in range(3):
            flash.read_now(64, 64)
    between = flash.peek(64, 64)
    cut(flash, second, lambda: flash.erase_now(SECTOR), seed=12)
    reads = [flash.read_now(64, 64) for _ in range(8)]
    if first is CutMode.RANDOM_READS:
        check(CutMode.RANDOM_READS, OLD, GEOMETRY.blank(64), reads)
    else:
        check(second, between, GEOMETRY.blank(64), reads)


def test_an_erase_that_changes_nothing_is_torn_all_the_same() -> None:
    flash = NorSimulator(GEOMETRY)
    cut(flash, CutMode.PREFIX, lambda: flash.erase_now(SECTOR))
    assert flash.read_now(64, 64) == GEOMETRY.blank(64)
    with pytest.raises(ProgramError):
        flash.program_now(64, b"1234")


def test_a_single_byte_can_be_torn() -> None:
    flash = NorSimulator(Geometry((Region(0, 2, 1),)))
    for seed in range(20):
        for mode in ALL_MODES:
            cut(flash, mode, lambda: flash.program_now(0, b"\0"), seed)
            check(mode, b"\xff", b"\0", [flash.read_now(0, 1) for _ in range(6)])
            flash.erase_now(flash.geometry.sectors[0])


def test_a_poke_ends_what_is_torn() -> None:
    flash = torn_program(CutMode.RANDOM_READS, 1)
    flash.poke(68, OLD[:32])
    assert flash.unstable == ()
    assert flash.read_now(68, 32) == OLD[:32]


def test_nothing_goes_on_without_power() -> None:
    flash = NorSimulator(GEOMETRY)
    cell, done = flash.cell("c"), list[Operation]()
    power = PowerSupply(flash)
    power.cut_at(2, CutMode.ALL)
    flash.operations.after = done.append
    flash.program_now(0, b"1234")
    flash.read_now(0, 4)
    flash.program_now(4, b"1234")
    with pytest.raises(PowerCut):
        flash.program_now(8, b"1234")
    assert power.gone
    assert power.last == done[-1]
    assert power.last.index == 2
    counts = flash.operations.counts.copy()
    for call in (
        lambda: flash.read_now(0, 4),
        lambda: flash.erase_now(SECTOR),
        lambda: flash.program_now(12, b"1234"),
        lambda: cell.store(b"x"),
        cell.load,
    ):
        with pytest.raises(PowerCut):
            call()
    assert flash.operations.counts == counts
    with pytest.raises(ConfigError, match="restore"):
        power.cut_at(0)
    power.restore()
    assert not power.gone
    assert flash.read_now(0, 12) == b"1234" * 3
    power.cut_at(1)  # counted from now
    flash.program_now(12, b"1234")
    with pytest.raises(PowerCut):
        cell.store(b"x")
    power.restore()
    assert cell.load() is None


def test_a_cut_that_is_called_off_does_not_come() -> None:
    flash = NorSimulator(GEOMETRY)
    power = PowerSupply(flash)
    power.cut_at(0)
    power.restore()
    flash.program_now(0, b"1234")
    with pytest.raises(ConfigError, match="future"):
        power.cut_at(-1)


def test_nobody_who_handles_errors_goes_on_without_power() -> None:
    assert not issubclass(PowerCut, Exception)
    assert not issubclass(PowerCut, OtaError)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.asyncio
async def test_what_is_not_flash_is_atomic(mode: CutMode) -> None:
    operations, found = Operations(), set[int]()
    options = VirtualOptions(factory=7, operations=operations)
    for seed in range(20):
        power = PowerSupply(operations, seed=seed)
        power.cut_at(0, mode)
        with pytest.raises(PowerCut):
            await options.write(8)
        power.restore()
        found.add(await options.read())
        await options.write(7)
    assert found == ({7} if mode is CutMode.NOTHING else {8} if mode is CutMode.ALL else {7, 8})


@pytest.mark.parametrize("mode", ALL_MODES)
def test_a_program_that_the_chip_refuses_is_not_torn(mode: CutMode) -> None:
    flash = NorSimulator(GEOMETRY)
    flash.program_now(0, b"1234")
    power = PowerSupply(flash)
    power.cut_at(0, mode)
    with pytest.raises((PowerCut, ProgramError)):
        flash.program_now(0, b"\0\0\0\0\0\0\0\0")
    power.restore()
    assert flash.read_now(0, 8) == b"1234" + GEOMETRY.blank(4)
    assert flash.operations.broken_rules or mode is CutMode.NOTHING


@pytest.mark.asyncio
@pytest.mark.parametrize("mode", ALL_MODES)
async def test_a_memory_in_a_file_is_cut_off_alike(tmp_path: Path, mode: CutMode) -> None:
    flash = NorSimulator.on_file(tmp_path / "flash", GEOMETRY)
    power = PowerSupply(flash, seed=4)
    await flash.program(64, OLD)
    power.cut_at(0, mode)
    with pytest.raises(PowerCut):
        await flash.erase(SECTOR)
    with pytest.raises(PowerCut):
        await flash.read(0, 1)
    power.restore()
    check(mode, OLD, GEOMETRY.blank(64), [await flash.read(64, 64) for _ in range(8)])
    await flash.erase(SECTOR)
    assert await flash.read(64, 64) == GEOMETRY.blank(64)
