"""Every selection in otadata, cut off anywhere, any number of times, with torn sectors that read as they like.

The real jobs of `mgota.core.otaselect` run on two abstract sectors. An operation that was cut off leaves a sector that
*may* read as the entry that was there or was to come, or as garbage. From every state all that may happen happens:
boots, recoveries, updates that end or are given up, selections, and a cut before, in and after each operation; there
are few states, so this ends, and the number of cuts has no limit.

A *brick*: the bootloader may start a slot that is half-written. Two kinds of torn sectors:

- SETTLING: a sector that was read often enough has shown that it wavers, or made up its mind for good;
- WAVERING: it never does, and may read the same eight times, and otherwise at the next boot.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import pytest

from mgota.core import otaselect
from mgota.core.geometry import Sector, uniform
from mgota.core.nor import Erase, Job, Program, Read, rewrite
from mgota.core.otadata import (
    ENTRY_SIZE,
    NO_SEQUENCE,
    OtaEntry,
    OtaState,
    decode_entry,
    encode_entry,
    ota_entry,
    winner,
)
from mgota.core.otaselect import Entries, OtaPlace, Step, next_step, recover, select, selected_slot, settle
from mgota.testing import power

FACTORY = -1
ENOUGH = 2
"""Reads in a row after which a torn sector has made up its mind, or wavers. It stands for `otaselect.READS`."""

BLANK = b"\xff" * ENTRY_SIZE
GARBAGE = b"\x5a" * ENTRY_SIZE


@dataclass(frozen=True, slots=True)
class Cell:
    """A sector.

    Args:
        data: what is read at its start.
        torn: garbage may be read as well.
    """

    data: bytes = BLANK
    torn: bool = False

    def readings(self) -> list[bytes]:
        return [self.data, GARBAGE] if self.torn else [self.data]


@dataclass(frozen=True, slots=True)
class World:
    """What survives a cut.

    Args:
        cells: the two sectors.
        half_written: the slot that is half-written, until an update was written into it.
        rejected: a slot with an image that the bootloader does not start: it starts the other one.
    """

    cells: tuple[Cell, Cell]
    half_written: int | None = None
    rejected: int | None = None

    def with_cell(self, index: int, cell: Cell) -> "World":
        return replace(self, cells=(cell, self.cells[1]) if index == 0 else (self.cells[0], cell))


class Phase(Enum):
    RECOVER = "recover"
    RUN = "run"
    BEGIN = "begin an update"
    OPEN = "open a writer"
    SELECT = "select"


@dataclass(frozen=True, slots=True)
class Doing:
    """What a device does while it has power.

    Args:
        phase: where it is.
        running: the slot that runs.
        slot: what is selected.
    """

    phase: Phase
    running: int
    slot: int = 0


State = tuple[World, Doing | None]  # None: no power
Settle = Callable[[OtaPlace, int], Job[None]]
Select = Callable[[OtaPlace, int | None, int], Job[None]]


@dataclass
class Model:
    """A device with two slots.

    Args:
        settling: whether torn sectors make up their minds.
        fallback: an update may be one that the bootloader does not start.
        default: what boots while no entry counts: slot 0, or FACTORY.
        recover: what every boot does.
        settle: what comes before an update's first erase.
        select: selects a slot.
    """

    settling: bool = True
    fallback: bool = False
    default: int = 0
    recover: Settle = recover
    settle: Settle = settle
    select: Select = select
    states: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        default = None if self.default == FACTORY else self.default
        self.place = OtaPlace(uniform(2 * 4096, 4096), (Sector(0, 4096), Sector(4096, 4096)), 2, default)

    def fewest_cuts(self, *starts: World) -> tuple[int | None, list[str]]:
        """The cuts of the shortest way to a brick, and the way; None if there is none in all states."""
        cuts: dict[State, int] = {(world, None): 0 for world in starts}
        came: dict[State, tuple[State, str]] = {}
        queue = deque(cuts)
        while queue:
            state = queue.popleft()
            for event, after in self.events(*state):
                if after is None:
                    self.states = len(cuts)
                    return cuts[state], [*self.way(came, state), event]
                went = state[1] is not None and after[1] is None
                there = normal(after)
                if there not in cuts or cuts[state] + went < cuts[there]:
                    cuts[there] = cuts[state] + went
                    came[there] = (state, event)
                    (queue.append if went else queue.appendleft)(there)
        self.states = len(cuts)
        return None, []

    def way(self, came: dict[State, tuple[State, str]], state: State) -> list[str]:
        found = list[str]()
        while state in came:
            state, event = came[state]
            found.append(event)
        return found[::-1]

    def events(self, world: World, doing: Doing | None) -> Iterator[tuple[str, State | None]]:
        if doing is None:
            for running in self.boots(world):
                brick = running == world.half_written
                yield f"slot {running} boots", None if brick else (world, Doing(Phase.RECOVER, running))
            return
        yield "the power goes", (world, None)
        running, other = doing.running, 1 - doing.running
        match doing.phase:
            case Phase.RECOVER if running == FACTORY:
                for slot in {0, 1} - {world.half_written, world.rejected}:
                    yield f"nothing runs, select {slot}", (world, Doing(Phase.SELECT, FACTORY, slot))
            case Phase.RECOVER:
                yield from self.outcomes(
                    world, doing, partial(self.recover, self.place, running), Doing(Phase.RUN, running)
                )
            case Phase.RUN:
                yield "begin an update", (world, Doing(Phase.BEGIN, running))
                if other not in (world.half_written, world.rejected):
                    yield f"select {other}", (world, Doing(Phase.SELECT, running, other))
            case Phase.BEGIN:
                job = partial(self.select, self.place, running, running)
                yield from self.outcomes(world, doing, job, Doing(Phase.OPEN, running))
            case Phase.OPEN:
                job = partial(self.settle, self.place, running)
                for event, (after, then) in self.outcomes(world, doing, job, Doing(Phase.RUN, running)):
                    if then is None:
                        yield event, (after, None)
                        continue
                    yield f"{other} is half-written", (replace(after, half_written=other, rejected=None), then)
                    turn = Doing(Phase.SELECT, running, other)
                    for bad in (None, other) if self.fallback else (None,):
                        yield f"{other} is written", (replace(after, half_written=None, rejected=bad), turn)
            case Phase.SELECT:
                from_slot = None if running == FACTORY else running
                # It is told to reset then, and need not at once.
                then = None if from_slot is None else Doing(Phase.RUN, running)
                yield from self.outcomes(world, doing, partial(self.select, self.place, from_slot, doing.slot), then)

    def boots(self, world: World) -> set[int]:
        found = set[int]()
        for first in world.cells[0].readings():
            for second in world.cells[1].readings():
                slot = selected_slot([decode_entry(first), decode_entry(second)], 2)
                slot = self.default if slot is None else slot
                found.add(1 - slot if slot == world.rejected else slot)
        return found

    def outcomes(
        self, world: World, doing: Doing, job: Callable[[], Job[None]], then: Doing | None
    ) -> Iterator[tuple[str, State]]:
        """A job with every reading and every cut.

        A way through it is a list of choices; each that was not made on one way begins another.
        """
        ways: list[list[int]] = [[]]
        while ways:
            way = ways.pop()
            choices: list[tuple[int, int]] = []
            event, after, cut = self.follow(world, job(), way, choices)
            yield f"{doing.phase.value}: {event}", (after, None if cut else then)
            made = [choice for choice, _ in choices]
            for step in range(len(way), len(choices)):
                ways += [[*made[:step], another] for another in range(1, choices[step][1])]

    def follow(
        self, world: World, job: Job[None], way: Sequence[int], choices: list[tuple[int, int]]
    ) -> tuple[str, World, bool]:
        def choose(possible: int) -> int:
            choices.append((way[len(choices)] if len(choices) < len(way) else 0, possible))
            return choices[-1][0]

        row: tuple[int, list[bytes]] = -1, []  # which sector is read again and again, and what the next reads give
        reads, what, answer = 0, "", b""
        try:
            action = next(job)
            while True:
                if isinstance(action, Read):
                    index = action.offset // 4096
                    if row[0] != index:
                        row, reads = (index, self.read(world, index, choose)), 0
                    answer, reads = row[1][reads % len(row[1])], reads + 1
                    if self.settling and reads == ENOUGH and len(row[1]) == 1:
                        world = world.with_cell(index, Cell(answer))
                else:
                    assert isinstance(action, Erase | Program)
                    index, done, torn = effect(world, action)
                    row = -1, []
                    what += f" {type(action).__name__.lower()} {index}"
                    if cut := choose(3):
                        return f"{what}: cut", world if cut == 1 else world.with_cell(index, torn), True
                    world, answer = world.with_cell(index, done), b""
                action = job.send(answer)
        except StopIteration:
            return what or "nothing to do", world, False

    def read(self, world: World, index: int, choose: Callable[[int], int]) -> list[bytes]:
        """What the reads of a sector give, in turn."""
        readings = world.cells[index].readings()
        choice = choose(len(readings) + 1) if len(readings) > 1 else 0
        return readings if choice == len(readings) else [readings[choice]]


def effect(world: World, action: Erase | Program) -> tuple[int, Cell, Cell]:
    """Which sector an operation is about, what it leaves if it ends, and what if it is cut off."""
    if isinstance(action, Erase):
        index = action.sector.start // 4096
        return index, Cell(), replace(world.cells[index], torn=True)
    index, at = divmod(action.offset, 4096)
    assert at == 0
    assert world.cells[index] == Cell(), "programmed over what was not erased"
    return index, Cell(bytes(action.data)), Cell(bytes(action.data), torn=True)


def normal(state: State) -> State:
    """The same with the lowest sequences that are in the same order, and leave room below: else there is no end."""
    world, doing = state
    lowest, found = 9, dict[int, int]()
    for seq in sorted({entry.seq for entry in map(entry_of, world.cells) if entry.valid and entry.seq < 1 << 31}):
        lowest += 1 + (lowest + 1 - seq) % 2
        found[seq] = lowest
    cells = [
        replace(cell, data=encode_entry(ota_entry(found[entry.seq], state=entry.state)))
        if (entry := entry_of(cell)).valid and entry.seq in found
        else cell
        for cell in world.cells
    ]
    return replace(world, cells=(cells[0], cells[1])), doing


def entry_of(cell: Cell) -> OtaEntry:
    return decode_entry(cell.data)


def selects(slot: int, seq: int, state: OtaState = OtaState.UNDEFINED) -> Cell:
    assert (seq - 1) % 2 == slot
    return Cell(encode_entry(ota_entry(seq, state=state)))


HIGHEST = NO_SEQUENCE - 1
STARTS = {
    "a new chip": World((Cell(), Cell())),
    "settled on 0": World((selects(0, 1), selects(0, 3)), half_written=1),
    "settled on 1": World((selects(1, 4), selects(1, 2)), half_written=0),
    "ESP-IDF's, an update of 0 was given up": World(
        (selects(0, 1, OtaState.VALID), selects(1, 2, OtaState.VALID)), half_written=0
    ),
    "ESP-IDF's, the bootloader's first": World((selects(0, 1, OtaState.VALID), Cell())),
    "ESP-IDF's, rolled back": World((selects(0, 3), selects(1, 4, OtaState.ABORTED)), half_written=1),
    "the last sequences, on 1": World((selects(1, HIGHEST), selects(0, HIGHEST - 1)), half_written=0),
    "the last sequences, on 0": World((selects(0, HIGHEST - 1), selects(0, HIGHEST - 3)), half_written=1),
}


@pytest.fixture(autouse=True)
def no_more_reads_than_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(power.READS) < otaselect.READS, "the simulator's sectors make up their minds by then"
    monkeypatch.setattr(otaselect, "READS", ENOUGH)


@pytest.mark.parametrize("fallback", [False, True], ids=["boots all", "falls back"])
@pytest.mark.parametrize("default", [0, FACTORY], ids=["no factory", "factory"])
@pytest.mark.parametrize("start", list(STARTS))
def test_no_number_of_cuts_boots_a_half_written_slot(start: str, default: int, fallback: bool) -> None:
    model = Model(default=default, fallback=fallback)
    cuts, way = model.fewest_cuts(STARTS[start])
    print(f"{start}: {model.states} states")
    assert cuts is None, "\n".join(way)
    assert model.states > 40


@pytest.mark.no_cover  # measuring takes longer than the search
@pytest.mark.parametrize("start", ["a new chip", "settled on 1"])
def test_sectors_that_waver_for_ever_need_three_cuts_in_a_row(start: str) -> None:
    cuts, way = Model(settling=False).fewest_cuts(STARTS[start])
    assert cuts is not None, "the model is not as bad as it should be"
    assert cuts >= 3, "\n".join(way)


def do_nothing(place: OtaPlace, slot: int) -> Job[None]:
    del place, slot
    yield from ()


def select_unsettled(place: OtaPlace, running: int | None, slot: int) -> Job[None]:
    """As ESP-IDF does: one entry, into the sector that loses, whatever the other one is."""
    entries = yield from otaselect.read_entries(place)
    if running != slot:
        best = winner(entries)
        seq = max((entry.seq for entry in entries if entry.valid), default=0)
        sector = place.sectors[0 if best is None else 1 - best]
        yield from rewrite(place.geometry, sector, encode_entry(ota_entry(seq + 1 + (slot - seq) % 2)))


def the_right_one_first(place: OtaPlace, slot: int) -> Job[None]:
    """Be sure of the entry that wins before the other is touched."""
    entries = yield from otaselect.read_entries(place)
    best = winner(entries)
    if best is not None and all(entry.valid for entry in entries) and entries[1 - best].slot(2) != slot:
        yield from rewrite(place.geometry, place.sectors[best], encode_entry(entries[best]))
    yield from settle(place, slot)


def read_once(sector: Sector) -> Job[OtaEntry]:
    return decode_entry((yield Read(sector.start, ENTRY_SIZE)))


def test_a_recovery_that_does_nothing_bricks_in_one_cut() -> None:
    for settling in (True, False):
        model = Model(settling=settling, recover=do_nothing, settle=do_nothing, select=select_unsettled)
        assert model.fewest_cuts(STARTS["settled on 1"])[0] == 1


def test_to_write_the_right_entry_first_bricks_a_chip_of_esp_idf_in_one_cut() -> None:
    start = STARTS["ESP-IDF's, an update of 0 was given up"]
    assert Model(recover=the_right_one_first).fewest_cuts(start)[0] == 1


@pytest.mark.no_cover
def test_sectors_that_are_read_once_brick_in_three_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Model().fewest_cuts(STARTS["a new chip"])[0] is None
    monkeypatch.setattr(otaselect, "_read_entry", read_once)
    assert Model().fewest_cuts(STARTS["a new chip"])[0] == 3


@pytest.mark.parametrize("count", [2, 3, 5, 16])
@pytest.mark.parametrize("slot", [0, 1])
def test_settling_ends_in_two_writes_from_any_entries(count: int, slot: int) -> None:
    seqs = [*range(20), *range(HIGHEST - 20, NO_SEQUENCE + 1)]
    for first in seqs:
        for second in seqs:
            entries: Entries = (ota_entry(first), ota_entry(second))
            steps = list(steps_from(entries, slot, count))
            assert len(steps) <= 2
            right = [entry.valid and entry.slot(count) == slot for entry in entries]
            assert not any(right[index] for index, _ in steps[:1]), "the right one is never written first"


def steps_from(entries: Entries, slot: int, count: int) -> Iterator[Step]:
    while step := next_step(entries, slot, count):
        index, seq = step
        assert 0 < seq < NO_SEQUENCE
        assert (seq - 1) % count == slot
        yield step
        entries = (ota_entry(seq), entries[1]) if index == 0 else (entries[0], ota_entry(seq))
