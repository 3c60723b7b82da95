"""Every selection, cut off anywhere, any number of times, with torn sectors that read differently each time.

The real jobs of `mgota.core.otaselect` run on two abstract sectors. What a cut leaves is worse than any flash memory:
a sector on which an erase or a program was cut off *may* read as the entry that was there or was to come, or as
garbage, and its seal as there or not, each by itself, and each anew at every read, until an erase ends. From every
state all that may happen happens, without a limit to the number of cuts; there are few states, so this ends.

A *brick*: the bootloader may start a slot that is half-written.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import pytest

from mgota.core import otaselect
from mgota.core.geometry import Sector, uniform
from mgota.core.nor import Erase, Job, Program, Read, rewrite
from mgota.core.otadata import ENTRY_SIZE, OtaState, decode_entry, encode_entry, ota_entry, winner
from mgota.core.otaselect import SEAL, Look, OtaPlace, label_of, look, select, selected_slot, settle

LAST = 9
"""Sequences above this are brought down: so there are few states, and the end of the range is among them."""

FACTORY = -1
GARBAGE, BLANK, UNSEALED = b"\x5a" * ENTRY_SIZE, b"\xff" * ENTRY_SIZE, b"\xff" * len(SEAL)
PLACE = OtaPlace(uniform(2 * 4096, 4096), (Sector(0, 4096), Sector(4096, 4096)), 2, last=LAST)


@dataclass(frozen=True, slots=True)
class Cell:
    """A sector.

    Args:
        entry: what may be read there; None where nothing was programmed.
        seal: whether a seal may be read.
        torn_entry: the entry may read as garbage as well.
        torn_seal: the seal may read as blank as well.
    """

    entry: bytes | None = None
    seal: bool = False
    torn_entry: bool = False
    torn_seal: bool = False

    def readings(self) -> list[bytes]:
        entries = [self.entry or BLANK] + ([GARBAGE] if self.torn_entry else [])
        seals = ([SEAL] if self.seal else []) + ([UNSEALED] if self.torn_seal or not self.seal else [])
        return [entry + seal for entry in entries for seal in seals]

    def half_erased(self) -> "Cell":
        return replace(self, torn_entry=self.entry is not None, torn_seal=self.seal)


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


@dataclass(frozen=True, slots=True)
class Doing:
    """What a device does while it has power. Nothing is kept in memory that a next step would need.

    Args:
        what: "recover", "run", "begin" (an update) or "select".
        running: the slot that runs.
        slot: what is selected.
    """

    what: str
    running: int
    slot: int = 0


State = tuple[World, Doing | None]  # None: no power
Settle = Callable[[OtaPlace, int], Job[None]]
Select = Callable[[OtaPlace, int | None, int], Job[None]]


class Model:
    """A device with two slots.

    Args:
        fallback: an update may be one that the bootloader does not start.
        default: what boots while no entry counts: slot 0, or FACTORY.
        settled: makes the entries settled; `mgota.core.otaselect.settle` or something worse.
        selected: selects a slot; `mgota.core.otaselect.select` or something worse.
    """

    def __init__(
        self, *, fallback: bool = False, default: int = 0, settled: Settle = settle, selected: Select = select
    ) -> None:
        self.fallback = fallback
        self.default = default
        self.settle = settled
        self.select = selected
        self.worlds = set[World]()

    def explore(self, *starts: World, limit: int = 100_000) -> list[str]:
        """All states that can be reached; returns the shortest way to a brick, or nothing."""
        came: dict[State, tuple[State | None, str]] = {(start, None): (None, "start") for start in starts}
        queue = deque(came)
        while queue:
            state = queue.popleft()
            self.worlds.add(state[0])
            for event, after in self.events(*state):
                if after is None:
                    return [*self.way(came, state), event]
                if after not in came:
                    came[after] = (state, event)
                    queue.append(after)
                    assert len(came) < limit
        return []

    def way(self, came: dict[State, tuple[State | None, str]], state: State) -> list[str]:
        found = list[str]()
        at: State | None = state
        while at is not None:
            at, event = came[at]
            found.append(event)
        return found[::-1]

    def events(self, world: World, doing: Doing | None) -> Iterator[tuple[str, State | None]]:
        if doing is None:
            for running in set(self.boots(world)):
                brick = running == world.half_written
                yield f"slot {running} boots", None if brick else (world, Doing("recover", running))
            return
        yield "the power goes", (world, None)
        running, other = doing.running, 1 - doing.running
        match doing.what:
            case "recover" if running != FACTORY:
                job = partial(self.settle, PLACE, running)
                yield from self.steps(world, doing, job, (as_it_is, Doing("run", running)))
            case "recover":
                for slot in {0, 1} - {world.half_written, world.rejected}:
                    yield f"select {slot}", (world, Doing("select", FACTORY, slot))
            case "run":
                yield "begin an update", (world, Doing("begin", running))
                if other not in (world.half_written, world.rejected):
                    yield f"select {other}", (world, Doing("select", running, other))
            case "begin":
                job = partial(self.select, PLACE, running, running)
                half = partial(replace, half_written=other, rejected=None)
                whole = partial(replace, half_written=None, rejected=None)
                yield from self.steps(world, doing, job, (half, Doing("run", running)))
                yield from self.steps(world, doing, job, (whole, Doing("select", running, other)))
                if self.fallback:
                    bad = partial(replace, half_written=None, rejected=other)
                    yield from self.steps(world, doing, job, (bad, Doing("select", running, other)))
            case _:
                job = partial(self.select, PLACE, None if running == FACTORY else running, doing.slot)
                then = None if running == FACTORY else Doing("run", running)  # told to reset, it need not at once
                yield from self.steps(world, doing, job, (as_it_is, then))

    def boots(self, world: World) -> Iterator[int]:
        for first in world.cells[0].readings():
            for second in world.cells[1].readings():
                looks = [Look(decode_entry(data[:ENTRY_SIZE]), sealed=False) for data in (first, second)]
                slot = selected_slot(looks, 2)
                slot = self.default if slot is None else slot
                yield 1 - slot if slot == world.rejected else slot

    def steps(
        self, world: World, doing: Doing, job: Callable[[], Job[None]], done: "tuple[Then, Doing | None]"
    ) -> Iterator[tuple[str, State]]:
        """A job up to the end of its first write, with every reading and every cut.

        A job that goes on after a write is begun again: it keeps nothing in mind.
        """
        then, doing_then = done
        for event, after, end in all_ways(world, job):
            match end:
                case End.CUT:
                    yield event, (after, None)
                case End.WROTE:
                    yield event, (after, doing)
                case End.DONE:
                    yield event, (then(after), doing_then)


Then = Callable[[World], World]


def as_it_is(world: World) -> World:
    return world


class End(Enum):
    CUT = "the power went"
    WROTE = "it goes on after a write"
    DONE = "done"


def all_ways(world: World, job: Callable[[], Job[None]]) -> Iterator[tuple[str, World, End]]:
    """A way through a job is a list of choices; each that was not made on one way begins another."""
    ways: list[list[int]] = [[]]
    while ways:
        way = ways.pop()
        choices: list[tuple[int, int]] = []
        yield follow(world, job(), way, choices)
        made = [choice for choice, _ in choices]
        for step in range(len(way), len(choices)):
            ways += [[*made[:step], other] for other in range(1, choices[step][1])]


def follow(world: World, job: Job[None], way: list[int], choices: list[tuple[int, int]]) -> tuple[str, World, End]:
    def choose(possible: int) -> int:
        choices.append((way[len(choices)] if len(choices) < len(way) else 0, possible))
        return choices[-1][0]

    programmed = verified = False
    what = ""
    try:
        action = next(job)
        while True:
            if verified and not isinstance(action, Program):
                return what, world, End.WROTE
            match action:
                case Read(offset, size):
                    readings = world.cells[offset // 4096].readings()
                    answer = readings[choose(len(readings))][:size]
                    verified = programmed
                case Erase() | Program():
                    index, after, torn, name = effect(world, action)
                    what = f"{what}, {name} of sector {index}".lstrip(", ")
                    if cut := choose(3):
                        return f"{what}: cut", world if cut == 1 else world.with_cell(index, torn), End.CUT
                    world, answer = world.with_cell(index, after), b""
                    programmed, verified = isinstance(action, Program), False
                case _:
                    raise AssertionError(action)
            action = job.send(answer)
    except StopIteration:
        return what or "nothing to do", world, End.DONE


def effect(world: World, action: Erase | Program) -> tuple[int, Cell, Cell, str]:
    """Which sector an operation is about, what it leaves if it ends, and what if it is cut off."""
    if isinstance(action, Erase):
        index = action.sector.start // 4096
        return index, Cell(), world.cells[index].half_erased(), "erase"
    index, at = divmod(action.offset, 4096)
    cell = world.cells[index]
    if at:
        assert bytes(action.data) == SEAL
        assert not cell.seal
        return index, replace(cell, seal=True), replace(cell, seal=True, torn_seal=True), "seal"
    assert cell == Cell()
    entry = replace(cell, entry=bytes(action.data))
    return index, entry, replace(entry, torn_entry=True), "entry"


def ours(slot: int, seq: int) -> Cell:
    assert (seq - 1) % 2 == slot
    return Cell(encode_entry(ota_entry(seq, label=label_of(seq))), seal=True)


def foreign(slot: int, seq: int, state: OtaState = OtaState.UNDEFINED) -> Cell:
    assert (seq - 1) % 2 == slot
    return Cell(encode_entry(ota_entry(seq, state=state)))


STARTS = {
    "new": World((Cell(), Cell())),
    "settled on 0": World((ours(0, 1), ours(0, 3)), half_written=1),
    "settled on 1": World((ours(1, 4), ours(1, 2)), half_written=0),
    "ESP-IDF's, on 1": World((foreign(0, 1), foreign(1, 2, OtaState.VALID)), half_written=0),
    "ESP-IDF's, first": World((foreign(0, 1, OtaState.VALID), Cell())),
    "high": World((foreign(0, 0xFFFFFFFD), foreign(1, 0xFFFFFFFE))),
}


@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize("default", [0, FACTORY])
@pytest.mark.parametrize("start", list(STARTS))
def test_no_number_of_cuts_boots_a_half_written_slot(start: str, default: int, fallback: bool) -> None:
    model = Model(fallback=fallback, default=default)
    brick = model.explore(STARTS[start])
    print(f"\n{start}, default {default}, fallback {fallback}: {len(model.worlds)} worlds")
    assert not brick, "\n".join(brick)
