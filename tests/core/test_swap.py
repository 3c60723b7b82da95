"""Where two images lie, how they change places, and what a cut, a bad sector or a lost link leaves of them."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings, strategies as st

from mgota.core import swap
from mgota.core.geometry import Area, Geometry, Region, Slot, uniform
from mgota.core.nor import Erase, Job, Read
from mgota.core.recordlog import Kind, RecordLog, encode_entry
from mgota.core.stager import Stager
from mgota.core.swap import ChipJournal, HostJournal, JournalPlace, Phase, SwapLayout, SwapState, plan_swap
from mgota.errors import ConfigError, FlashError, SelectError, StateError
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

CHIP, HOST, NONE = JournalPlace
KIB = 1 << 10
A, B = Slot.A, Slot.B
WCH = bytes.fromhex("39e339e3")


def regions(*runs: tuple[int, int], start: int = 0) -> tuple[Region, ...]:
    """Regions without a hole, each a number of sectors and their length."""
    found: list[Region] = []
    for number, sector in runs:
        found.append(Region(start, number * sector, sector))
        start += number * sector
    return tuple(found)


F4 = ((4, 16 * KIB), (1, 64 * KIB))

# --- the layout ------------------------------------------------------------------------------------------------------


# The largest images: the list of the design, and the datasheets' sectors.
@pytest.mark.parametrize(
    ("geometry", "place", "image", "sector"),
    [
        (uniform(1024 * KIB, 128 * KIB, program_unit=32), HOST, 384, 128),  # H723; a bank of an H7 dual core with 2 M
        (Geometry(regions(*F4, (7, 128 * KIB)), 4), HOST, 384, 128),  # F405
        (Geometry(regions(*F4, (3, 128 * KIB)), 4), HOST, 128, 128),  # F411, F446, F722
        (Geometry(regions((4, 32 * KIB), (1, 128 * KIB), (3, 256 * KIB)), 4), HOST, 256, 256),  # F746
        (Geometry(regions(*F4, (7, 128 * KIB), *F4, (7, 128 * KIB)), 4), HOST, 896, 128),  # F42x with 2 M
        (uniform(64 << 20, 256 * KIB, program_unit=512), CHIP, 32256, 256),  # RT1050
        (uniform(2 << 20, 4 * KIB, program_unit=256), CHIP, 1016, 4),  # RP2040
        (uniform(480 * KIB, 4 * KIB, program_unit=4, erased=WCH), CHIP, 232, 4),  # CH32V307
    ],
)
def test_the_largest_image_of_a_real_chip(geometry: Geometry, place: JournalPlace, image: int, sector: int) -> None:
    layout = plan_swap(geometry, place)
    check(layout, place)
    assert (layout.max_image, layout.sector) == (image * KIB, sector * KIB)
    assert layout.primary.start == 0


def check(layout: SwapLayout, place: JournalPlace) -> None:
    """What holds for every layout."""
    geometry = layout.geometry
    assert geometry.slot_area(layout.primary.start, layout.primary.length) == layout.primary
    assert geometry.slot_area(layout.secondary.start, layout.secondary.length) == layout.secondary
    assert layout.primary.length == layout.count * layout.sector == layout.max_image > 0
    assert layout.secondary.length == layout.max_image + layout.sector
    assert layout.primary.end <= layout.secondary.start
    assert layout.journal == (geometry.sectors[-3:] if place is CHIP else ())
    assert all(layout.secondary.end <= sector.start for sector in layout.journal)
    assert layout.sector == max(region.sector for region in geometry.regions)
    for index in range(layout.count):
        assert sum(sector.length for sector in geometry.sectors_in(layout.at_base(index))) == layout.sector
        assert sum(sector.length for sector in geometry.sectors_in(layout.aside(index + 1))) == layout.sector
    assert layout.at_base(0).start == layout.primary.start
    assert layout.aside(layout.count).end == layout.secondary.end


@pytest.mark.parametrize("sectors", [0, 1, 2, 3, 4, 5, 6, 7, 8, 40])
def test_every_sector_of_a_uniform_memory_is_used(sectors: int) -> None:
    for place, kept in ((CHIP, 3), (HOST, 0), (NONE, 0)):
        geometry = uniform(max(sectors, 1) * 64, 64)
        count = (max(sectors, 1) - kept - 1) // 2
        if count < 1:
            with pytest.raises(ConfigError, match="too small for two slots"):
                plan_swap(geometry, place)
        else:
            assert plan_swap(geometry, place).count == count


def test_slots_keep_clear_of_holes() -> None:
    halves = Geometry((*regions((6, 64)), *regions((7, 64), start=1024)))
    layout = plan_swap(halves, NONE)
    check(layout, NONE)
    assert (layout.count, layout.primary.start, layout.secondary.start) == (6, 0, 1024)
    early = Geometry((*regions((2, 64)), *regions((9, 64), start=192)))
    layout = plan_swap(early, NONE)  # the hole limits the first half
    assert (layout.count, layout.secondary.start) == (2, 192 + 6 * 64)
    with pytest.raises(ConfigError):
        plan_swap(Geometry(tuple(Region(start, 64, 64) for start in range(0, 2048, 128))), NONE)


def test_a_run_that_is_no_logical_sector_is_left_out() -> None:
    # 48 bytes are too few, 48 + 64 too many, and the hole ends a run.
    layout = plan_swap(Geometry((*regions((3, 16), (6, 64)), *regions((2, 16), (3, 64), start=512))), NONE)
    check(layout, NONE)
    assert layout.sector == 64


def test_the_journal_counts_no_more_than_it_can() -> None:
    layout = plan_swap(uniform(70_000, 1), NONE)
    assert layout.count == swap.LARGEST
    SwapState(phase=Phase.FORWARD, count=layout.count, step=2 * layout.count).encode()


UNITS = st.sampled_from([1, 4, 8])
RUNS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12), st.integers(0, 3)), min_size=1, max_size=5)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """A few runs of sectors, each a power of two times 8 bytes; with holes between some."""
    found: list[Region] = []
    start = 0
    for hole, number, power in draw(RUNS):
        start += hole // 2 * 64
        found.append(Region(start, number * (8 << power), 8 << power))
        start = found[-1].end
    return Geometry(tuple(found), draw(UNITS))


@given(geometries(), st.sampled_from(JournalPlace))
@settings(max_examples=150)
def test_any_memory_gets_a_sound_layout_or_is_too_small(geometry: Geometry, place: JournalPlace) -> None:
    try:
        layout = plan_swap(geometry, place)
    except ConfigError as exc:
        assert "too small for two slots" in str(exc)  # noqa: PT017  either is right
    else:
        check(layout, place)


# --- the journal's bytes ---------------------------------------------------------------------------------------------

STATES = st.builds(
    SwapState,
    phase=st.sampled_from(Phase),
    base=st.sampled_from(Slot),
    raised=st.booleans(),
    count=st.integers(0, 0xFFFF),
    step=st.integers(0, 0xFFFF),
    tag=st.integers(0, 2**32 - 1),
    crc=st.integers(0, 2**32 - 1),
)


@given(STATES)
def test_a_state_reads_back(state: SwapState) -> None:
    assert len(state.encode()) == 16
    assert SwapState.decode(state.encode()) == state


@given(
    st.binary(max_size=20)
    | st.binary(min_size=16, max_size=16)
    | st.builds(bytes.__add__, st.just(b"\1\1\1\0"), st.binary(min_size=12, max_size=12))
)
def test_any_bytes_are_a_state_or_damage(data: bytes) -> None:
    try:
        state = SwapState.decode(data)
    except StateError:
        return
    assert SwapState.decode(state.encode()) == state


def test_the_bits_of_a_state() -> None:
    state = SwapState(phase=Phase.REVERSE, base=B, raised=False, count=0x0102, step=0x0304, tag=0x05060708, crc=9)
    assert state.encode().hex(" ", 1) == "02 01 00 00 02 01 04 03 08 07 06 05 09 00 00 00"


@given(st.binary(min_size=1, max_size=64))
def test_a_damaged_journal_beside_the_memory_is_an_error(data: bytes) -> None:
    flash = NorSimulator(uniform(512, 64))
    cell = flash.cell("journal")
    assert carry_out_now(HostJournal().mount(), flash, cell) is None
    for wrong in (data, encode_entry(1, Kind.STATE, SwapState().encode()), encode_entry(1, Kind.SWAP, data[:15])):
        cell.store(wrong)
        with pytest.raises(StateError, match="damaged"):
            carry_out_now(HostJournal().mount(), flash, cell)


def test_a_job_that_keeps_something_needs_a_place_for_it() -> None:
    with pytest.raises(ConfigError, match="bring"):
        carry_out_now(HostJournal().mount(), NorSimulator(uniform(512, 64)))


# --- a chip ----------------------------------------------------------------------------------------------------------

TINY = plan_swap(uniform(10 * 64, 64, program_unit=16), CHIP)  # three sectors a slot


def mounted(journal: ChipJournal | HostJournal) -> Job[SwapState]:
    """What the journal says; a new one begins."""
    state = yield from journal.mount()
    return state or (yield from swap.begin_journal(journal))


@dataclass
class Board:
    """A memory with two images, driven without an event loop."""

    layout: SwapLayout
    flash: NorSimulator
    log: type[RecordLog] = RecordLog

    @classmethod
    def of(cls, layout: SwapLayout, old: bytes, new: bytes) -> "Board":
        """Image a at the base, image b on its way in."""
        board = cls(layout, NorSimulator(layout.geometry))
        board.write(layout.primary, old)
        board.write(Area(layout.aside(1).start, layout.max_image), new)
        return board

    def fork(self, log: type[RecordLog] = RecordLog) -> "Board":
        return Board(self.layout, self.flash.fork(), log)

    def write(self, area: Area, data: bytes) -> None:
        stager = Stager(self.layout.geometry, area, len(data))
        for operations in (stager.feed(data), stager.finish()):
            for operation in operations:
                if isinstance(operation, Erase):
                    self.flash.erase_now(operation.sector)
                else:
                    self.flash.program_now(operation.offset, operation.data)

    def run(self, job: Job[SwapState]) -> SwapState:
        return carry_out_now(job, self.flash, self.flash.cell("journal"))

    def journal(self) -> ChipJournal | HostJournal:
        layout = self.layout
        return ChipJournal(self.log(layout.geometry, layout.journal, Kind.SWAP)) if layout.journal else HostJournal()

    def select(self, slot: Slot) -> SwapState:
        """As a process that has just started does it."""
        journal = self.journal()
        state = self.run(mounted(journal))
        assert state.phase is Phase.IDLE
        return self.run(swap.select(self.layout, journal, state, slot))

    def recover(self) -> SwapState:
        journal = self.journal()
        return self.run(swap.recover(self.layout, journal, self.run(mounted(journal))))

    def noted(self) -> SwapState:
        """What the journal says, for a test that looks."""
        twin = self.fork()
        return twin.run(mounted(twin.journal()))

    def read(self, slot: Slot) -> bytes:
        """All of a slot, as an idle journal says where it lies."""
        state, layout = self.noted(), self.layout
        assert state.phase is Phase.IDLE
        start = layout.primary.start if slot is state.base else layout.aside(int(state.raised)).start
        return self.flash.peek(start, layout.max_image)

    def holds(self, slot: Slot, data: bytes) -> bool:
        return self.read(slot)[: len(data)] == data

    def at_base(self, data: bytes) -> bool:
        """Whether the base holds this image, and nothing behind it."""
        blank = self.layout.geometry.blank(self.layout.max_image)
        unit = self.layout.geometry.program_unit
        whole = data + blank[:unit][len(data) % unit or unit :]
        return self.flash.peek(self.layout.primary.start, self.layout.max_image) == whole + blank[len(whole) :]


def image(seed: int, size: int) -> bytes:
    return Random(seed).randbytes(size)


def full(board: Board, fraction: float) -> int:
    return max(1, int(board.layout.max_image * fraction))


LAYOUTS = {
    "tiny": TINY,
    "host": plan_swap(uniform(8 * 64, 64, program_unit=4), HOST),
    "irregular": plan_swap(Geometry(regions((4, 16), (1, 64), (6, 128)), 8), HOST),
    "irregular on chip": plan_swap(Geometry(regions((4, 32), (1, 128), (3, 256), (4, 64)), 4), CHIP),
    "a hole": plan_swap(Geometry((*regions((4, 64)), *regions((8, 64), start=512)), 16), CHIP),
    "ch32v": plan_swap(uniform(14 * 128, 128, program_unit=4, erased=WCH), CHIP),
    "256": plan_swap(uniform(10 * 1024, 1024, program_unit=256), CHIP),
    "512": plan_swap(uniform(9 * 2048, 2048, program_unit=512), CHIP),
}
LENGTHS = [(1, 1), (1, -1), (-1, 1), (-1, -1), (77, 100), (64, 129), (200, 3)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_change_places_and_back_and_forth(name: str) -> None:
    layout = LAYOUTS[name]
    for sizes in LENGTHS:
        old, new = (
            image(i, layout.max_image if size < 0 else min(size, layout.max_image)) for i, size in enumerate(sizes)
        )
        board = Board.of(layout, old, new)
        for tag, (slot, running) in enumerate([(B, new), (A, old), (B, new), (A, old)]):
            assert board.select(slot).tag == tag + 1
            assert board.at_base(running)
            assert board.holds(A, old)
            assert board.holds(B, new)
            changes = board.flash.operations.changes
            board.recover()
            board.select(slot)  # there already
            journal = 2 * 3 if layout.journal else 0  # two mounts
            assert board.flash.operations.changes == changes + journal
        assert not board.flash.operations.broken_rules


def moved(board: Board, act: Callable[[], object]) -> list[int]:
    """Starts of the sectors that are erased meanwhile, those of the journal not counted."""
    found: list[int] = []

    def note(operation: Operation) -> None:
        if operation.kind is Does.ERASE and operation.offset < board.layout.secondary.end:
            found.append(operation.offset)

    board.flash.operations.before = note
    act()
    board.flash.operations.before = None
    return found


@pytest.mark.parametrize(("old", "new"), [(1, 64), (64, 65), (1, 192), (129, 20), (192, 192)])
def test_only_sectors_that_an_image_occupies_move_each_once_per_copy(old: int, new: int) -> None:
    board = Board.of(TINY, image(0, old), image(1, new))
    count = -(-max(old, new) // 64)
    p = [TINY.at_base(i).start for i in range(3)]
    s = [TINY.aside(i).start for i in range(4)]
    ascending = [start for i in range(count) for start in (s[i], p[i])] + [s[count]]
    descending = [start for i in reversed(range(count)) for start in (s[i + 1], p[i])]
    for slot, expected in ((B, ascending), (A, descending), (B, ascending)):
        assert moved(board, partial(board.select, slot)) == expected
        assert board.noted().count == count


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_slot_that_is_known_as_longer_than_what_moves_stays_what_it_was(name: str) -> None:
    """A chip that was not provisioned through mgota is recorded with its whole slot, and its image may end early."""
    layout = LAYOUTS[name]
    for old, new in product((1, 64, layout.max_image // 2, layout.max_image), repeat=2):
        board = Board.of(layout, image(0, old), image(1, new))
        recorded = board.read(A), board.read(B)
        for slot in (B, A, B, A):
            board.select(slot)
            assert (board.read(A), board.read(B)) == recorded


@pytest.mark.parametrize("flaw", [Flaw.ERROR, Flaw.IGNORED])
def test_a_sector_that_keeps_what_a_swap_leaves_behind_stops_nothing(flaw: Flaw) -> None:
    board = Board.of(TINY, image(0, 60), image(1, 60))
    bad = BadFlash(board.flash)
    bad.fail(Does.ERASE, flaw, sectors=[TINY.aside(1)])
    assert board.select(B).base is B
    assert bad.hits == 1
    bad.mend()
    assert board.at_base(image(1, 60))
    assert board.select(A).base is A
    assert board.at_base(image(0, 60))


def test_a_swap_of_nothing_is_refused_and_changes_nothing() -> None:
    board = Board(TINY, NorSimulator(TINY.geometry))
    with pytest.raises(SelectError, match="no image"):
        board.select(B)
    assert moved(board, board.recover) == []
    assert board.select(A) == SwapState()


def test_an_image_that_cannot_be_read_is_not_selected_and_nothing_moves() -> None:
    """Also behind the image: the device must go on with what it runs."""
    for index in range(4):
        board = Board.of(TINY, image(0, 100), image(1, 60))
        bad = BadFlash(board.flash)
        bad.fail(Does.READ, Flaw.ERROR, sectors=[TINY.aside(index + 1) if index < 3 else TINY.at_base(2)])
        with pytest.raises(SelectError, match="could not be selected"):
            board.select(B)
        bad.mend()
        assert (board.noted().phase, board.noted().base) == (Phase.IDLE, A)
        assert board.at_base(image(0, 100))
        board.select(B)
        assert board.at_base(image(1, 60))


@given(st.integers(0, 2**16), st.booleans())
@settings(max_examples=40)
def test_any_layout_and_any_sizes(seed: int, erased: bool) -> None:
    random = Random(seed)
    sector, unit = random.choice([(64, 16), (128, 4), (32, 1)])
    pattern = WCH if erased and unit >= 4 else b"\0" if erased else b"\xff"
    place = CHIP if sector > 64 else HOST
    number = random.randrange(6, 14)
    layout = plan_swap(uniform(number * sector, sector, program_unit=unit, erased=pattern), place)
    old, new = (image(seed + i, random.randrange(1, layout.max_image + 1)) for i in range(2))
    board = Board.of(layout, old, new)
    for slot, running in ((B, new), (A, old)):
        board.select(slot)
        assert board.at_base(running)
    assert not board.flash.operations.broken_rules


# --- a journal of another memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "state",
    [
        SwapState(phase=Phase.IDLE, count=4),
        SwapState(phase=Phase.FORWARD, count=4, step=0),
        SwapState(phase=Phase.REVERSE, count=3, step=7),
        SwapState(phase=Phase.UNDO_FORWARD, count=2, step=3),
        SwapState(phase=Phase.UNDO_REVERSE, count=2, step=3),
    ],
)
def test_a_journal_that_speaks_of_other_sectors_touches_nothing(state: SwapState) -> None:
    board = Board.of(LAYOUTS["host"], image(0, 100), image(1, 100))
    content = board.flash.peek(0, 512)
    board.run(as_job(HostJournal().note(state)))
    for act in (board.recover, lambda: board.run(swap.select(board.layout, HostJournal(), state, B))):
        with pytest.raises(StateError, match="another memory"):
            act()
    assert board.flash.peek(0, 512) == content


def as_job(job: Job[None]) -> Job[SwapState]:
    yield from job
    return SwapState()


# --- a destination that refuses its data -----------------------------------------------------------------------------

OLD, NEW = image(0, 150), image(1, 185)


def standing(forward: bool, layout: SwapLayout = TINY) -> tuple[Board, Slot]:
    """A chip before a swap, and the slot to select."""
    board = Board.of(layout, OLD, NEW)
    board.flash.poke(layout.aside(0).start, b"garbage " * (layout.sector // 8))
    if not forward:
        board.select(B)
        board.flash.poke(layout.aside(3).start, b"garbage " * (layout.sector // 8))  # no erase is to be left out
    return board, B if forward else A


def running(slot: Slot) -> bytes:
    return OLD if slot is A else NEW


def destination(layout: SwapLayout, forward: bool, count: int, step: int) -> Area:
    index, second = divmod(step, 2)
    if not forward:
        index = count - 1 - index
    return layout.at_base(index) if second else layout.aside(index if forward else index + 1)


def spoil_copy(board: Board, area: Area, flaw: str, times: int | None) -> BadFlash:
    bad = BadFlash(board.flash)
    match flaw:
        case "erase error":
            bad.fail(Does.ERASE, Flaw.ERROR, sectors=[area], times=times)
        case "erase ignored":
            bad.fail(Does.ERASE, Flaw.IGNORED, sectors=[area], times=times)
        case "program error":
            bad.fail(Does.PROGRAM, Flaw.ERROR, sectors=[area], times=times)
        case _:
            bad.fail(Does.PROGRAM, Flaw.IGNORED, sectors=[area], times=times)
    return bad


FLAWS = ["erase error", "erase ignored", "program error", "program ignored"]
STEPS = list(product([True, False], range(6)))


@pytest.mark.parametrize(("forward", "step"), STEPS)
@pytest.mark.parametrize("layout", [TINY, LAYOUTS["host"]], ids=["chip", "host"])
def test_a_refusal_is_tried_again_and_then_the_swap_turns_around(layout: SwapLayout, forward: bool, step: int) -> None:
    for flaw in FLAWS:
        board, slot = standing(forward, layout)
        bad = spoil_copy(board, destination(layout, forward, 3, step), flaw, 1)
        board.select(slot)  # one refusal is none
        assert board.at_base(running(slot))
        assert bad.hits == 1

        board, slot = standing(forward, layout)
        bad = spoil_copy(board, destination(layout, forward, 3, step), flaw, 2)
        with pytest.raises(SelectError, match="did not take its image"):
            board.select(slot)
        assert board.at_base(running(slot.other))
        assert (board.noted().phase, board.noted().base, board.noted().count) == (Phase.IDLE, slot.other, 0)
        # The next update works.
        board.write(Area(layout.aside(1).start, layout.max_image), image(7, 99))
        board.run(as_job(noting(board, replace(board.noted(), raised=True))))
        board.select(slot)
        assert board.at_base(image(7, 99))


def noting(board: Board, state: SwapState) -> Job[None]:
    journal = board.journal()
    yield from journal.mount()
    yield from journal.note(state)


@pytest.mark.parametrize(("forward", "step"), STEPS)
def test_a_sector_that_is_bad_for_good_keeps_the_base_or_is_an_error_until_it_works(forward: bool, step: int) -> None:
    for flaw in FLAWS:
        board, slot = standing(forward)
        bad = spoil_copy(board, destination(TINY, forward, 3, step), flaw, None)
        if step % 2:  # at the base: nothing can be put back there
            with pytest.raises(FlashError, match=r"does not keep|half") as failed:
                board.select(slot)
            assert not isinstance(failed.value, SelectError)
            for _ in range(2):
                with pytest.raises(FlashError):
                    board.recover()
            bad.mend()
            assert board.recover().base is slot.other
        else:
            with pytest.raises(SelectError):
                board.select(slot)
            board.recover()
        assert board.at_base(running(slot.other))
        assert not [rule for rule in board.flash.operations.broken_rules if flaw != "erase ignored"]


def at_last_copy(board: Board, forward: bool, act: Callable[[], None]) -> None:
    """Do something once, when the last copy is done and noted: before the checksum."""
    twin = board.fork()
    twin.select(B if forward else A)
    # In TINY every note begins a sector: an erase, a record, a seal. A forward swap erases one sector before.
    last = board.flash.operations.changes + twin.flash.operations.changes - 1 - 3 - forward

    def note(operation: Operation) -> None:
        if operation.index == last:
            board.flash.operations.after = None
            act()

    board.flash.operations.after = note


@pytest.mark.parametrize("forward", [True, False])
def test_a_base_that_differs_at_the_end_is_put_back(forward: bool) -> None:
    board, slot = standing(forward)
    at_last_copy(board, forward, lambda: board.flash.poke(TINY.at_base(1).start + 3, b"\x55\x54\x53"))
    with pytest.raises(SelectError):
        board.select(slot)
    assert board.at_base(running(slot.other))


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_base_that_cannot_be_read_at_the_end_is_read_again_and_then_put_back(forward: bool, times: int) -> None:
    board, slot = standing(forward)
    bad = BadFlash(board.flash)

    def spoil() -> None:
        bad.fail(Does.READ, Flaw.ERROR, sectors=[TINY.at_base(0)], times=times)

    at_last_copy(board, forward, spoil)
    if times == 1:
        assert board.select(slot).base is slot
        assert board.at_base(running(slot))
    else:  # the third is the question whether anybody answers: the memory's other end does
        with pytest.raises(SelectError):
            board.select(slot)
        assert board.at_base(running(slot.other))
    assert bad.hits == times


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("layout", [TINY, LAYOUTS["host"]], ids=["chip", "host"])
def test_a_link_that_is_lost_gives_nothing_up(layout: SwapLayout, forward: bool) -> None:
    """A probe is pulled out at any operation: nothing answers, and nothing may be decided but to go on later."""
    index = 0
    while True:
        board, slot = standing(forward, layout)
        board.recover()  # the journal of a new memory begins
        bad = BadFlash(board.flash)
        lost_at = board.flash.operations.changes + index

        def lose(operation: Operation, lost_at: int = lost_at, bad: BadFlash = bad) -> None:
            if operation.index == lost_at:
                for kind in (Does.READ, Does.ERASE, Does.PROGRAM):
                    bad.fail(kind, Flaw.ERROR)

        board.flash.operations.before = lose
        try:
            board.select(slot)
        except FlashError as exc:
            assert not isinstance(exc, SelectError)  # noqa: PT017  as long as there is one
        else:
            assert index > 12
            return
        board.flash.operations.before = None
        bad.mend()
        if board.recover().base is not slot:
            assert layout.journal, "a swap that was begun was given up"
            assert index < 6, "a swap that was begun was given up"  # mount and first note, three operations each
            board.select(slot)
        assert board.at_base(running(slot))
        assert board.holds(slot.other, running(slot.other))
        index += 1


# --- power cuts ------------------------------------------------------------------------------------------------------


def whole(board: Board) -> bool:
    """Whether one of the images runs, as the journal says, and the other is whole beside it."""
    state = board.noted()
    assert state.phase is Phase.IDLE
    return board.at_base(running(state.base)) and board.holds(state.base.other, running(state.base.other))


def cuts(layout: SwapLayout, forward: bool, log: type[RecordLog] = RecordLog) -> Iterator[tuple[Board, int, CutMode]]:
    """A board after each single cut, in each mode."""
    first, slot = standing(forward, layout)
    index = 0
    while True:
        for mode in ALL_MODES:
            board = first.fork(log)
            power = PowerSupply(board.flash, seed=index)
            power.cut_at(index, mode)
            try:
                board.select(slot)
            except PowerCut:
                power.restore()
                yield board, index, mode
            else:
                return
        index += 1


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("layout", [TINY, LAYOUTS["host"]], ids=["chip", "host"])
def test_a_cut_at_any_operation_leaves_both_images_whole(layout: SwapLayout, forward: bool) -> None:
    number = 0
    slot = B if forward else A
    for board, _, _ in cuts(layout, forward):
        board.recover()
        assert whole(board)
        board.select(slot)  # if it was not begun, or begun and done: once, not twice
        assert board.at_base(running(slot))
        assert not board.flash.operations.broken_rules
        number += 1
    assert number >= 18 * len(ALL_MODES)


def test_random_cuts_one_after_another_leave_both_images_whole() -> None:
    for seed in range(150):
        random = Random(seed)
        board, slot = standing(random.random() < 0.5)
        power = PowerSupply(board.flash, seed=seed)
        acts: list[Callable[[], object]] = [partial(board.select, slot), *[board.recover] * random.randrange(1, 6)]
        for act in acts:
            power.cut_at(random.randrange(14), random.choice(ALL_MODES))
            with suppress(PowerCut):
                act()
            power.restore()
        board.recover()
        assert whole(board)
        assert not board.flash.operations.broken_rules


class CommitsNothing(RecordLog):
    """A mutant: a mount believes what it read, and writes nothing."""

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


def bricks(log: type[RecordLog]) -> int:
    """Double cuts: a note that reads well and is gone later, and then any operation of the recovery."""
    found = 0
    layout = plan_swap(uniform(10 * 512, 512, program_unit=16), CHIP)  # so that a sector holds many notes
    first = Board(layout, NorSimulator(layout.geometry), log)
    first.write(layout.primary, OLD * 9)
    first.write(Area(layout.aside(1).start, layout.max_image), NEW * 7)
    first.select(A)  # a log in use
    for one, two in product(range(3, 26), range(8)):
        board = first.fork(log)
        power = PowerSupply(board.flash, seed=one)
        power.cut_at(one, CutMode.VALID_THEN_BLANK)
        with suppress(PowerCut):
            board.select(B)
        power.restore()
        power.cut_at(two, CutMode.NOTHING)
        with suppress(PowerCut):
            board.recover()
        power.restore()
        try:
            board.recover()
        except FlashError:  # the mutant programs over what was torn
            found += 1
            continue
        state = board.noted()
        base = OLD * 9 if state.base is A else NEW * 7
        found += not (state.phase is Phase.IDLE and board.at_base(base))
    return found


def test_without_writing_once_more_what_was_read_an_image_is_lost() -> None:
    assert bricks(RecordLog) == 0
    assert bricks(CommitsNothing) > 0
