"""Two images in one flash memory change places, and a power cut at any operation loses neither.

A memory without exchangeable banks holds the image that runs in its first half, the *primary* area P. The other image
lies in the *secondary* area S, which is one logical sector longer: on its way in it is stored one sector up.

    before     P │ old 0 │ old 1 │ old 2 │           S │       │ new 0 │ new 1 │ new 2 │      raised
    forward    P[i]→S[i], S[i+1]→P[i], i ascending
               P │ new 0 │ new 1 │ new 2 │           S │ old 0 │ old 1 │ old 2 │ new 2 │
    after      P │ new 0 │ new 1 │ new 2 │           S │ old 0 │ old 1 │ old 2 │       │      not raised
    reverse    P[i]→S[i+1], S[i]→P[i], i descending, and all is as before

Rules:
- a *logical sector* is as large as the largest physical one, which makes irregular maps uniform;
- a step erases its destination, programs it, reads it back, and is noted in the journal before the next one begins. A
  step writes only its destination, and the next step's destination is this one's source: nothing is erased that is
  still needed, and a step may be done twice;
- only sectors that either image occupies move;
- at the end the whole primary area is compared with what was to come, by CRC-32, and only then the swap is over;
- what a forward swap leaves behind of the image that moved to the base is erased: the slot of the other one may be
  known as longer than what moved, its end blank;
- a destination that does not take its data turns the swap around: what had run is put back in its place;
- the journal names the image at the base, so that a request that was finished is not run again.

SPEC.md describes journal and steps bit by bit.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from itertools import pairwise
from typing import Protocol
from zlib import crc32

from mgota.core.geometry import Area, Geometry, Sector, Slot
from mgota.core.nor import Erase, Job, Keep, Kept, Read, rewrite
from mgota.core.recordlog import SECTORS, Kind, RecordLog, decode_entry, encode_entry
from mgota.errors import ConfigError, FlashError, SelectError, StateError

ATTEMPTS = 2
"""How often a destination may refuse its data before the swap turns around."""

LARGEST = 0x7FFF
"""Logical sectors of the largest slot: the journal counts two steps for each of them in sixteen bits."""


class JournalPlace(StrEnum):
    """Where the journal of a swap lies."""

    CHIP = "chip"
    """In the last three sectors of the memory."""
    HOST = "host"
    """In a file of the gateway that drives the swap: three sectors of 128 KiB would leave no room for images."""
    NONE = "none"
    """Nowhere: one atomic write decides what boots."""


@dataclass(frozen=True, kw_only=True)
class SwapLayout:
    """Where images and journal lie.

    Args:
        geometry: of the memory.
        sector: bytes of a logical sector.
        count: logical sectors of a slot.
        primary: `count` logical sectors, where the image lies that runs.
        secondary: `count` + 1 of them.
        journal: three physical sectors, or none if the journal is elsewhere.
    """

    geometry: Geometry
    sector: int
    count: int
    primary: Area
    secondary: Area
    journal: tuple[Sector, ...]

    @property
    def max_image(self) -> int:
        """Bytes of the largest image, trailer included."""
        return self.count * self.sector

    def at_base(self, index: int) -> Area:
        """P[index]."""
        return Area(self.primary.start + index * self.sector, self.sector)

    def aside(self, index: int) -> Area:
        """S[index]."""
        return Area(self.secondary.start + index * self.sector, self.sector)


def plan_swap(geometry: Geometry, journal: JournalPlace) -> SwapLayout:
    """The layout with the largest slots.

    Raises:
        ConfigError: the memory is too small for two slots.
    """
    kept = geometry.sectors[-SECTORS:] if journal is JournalPlace.CHIP else ()
    end = kept[0].start if kept else geometry.size
    size = max(region.sector for region in geometry.regions)
    units = list(_logical_sectors(geometry, size, end))
    for count in range(min((len(units) - 1) // 2, LARGEST), 0, -1):
        primary, secondary = units[:count], units[-count - 1 :]
        if _contiguous(primary) and _contiguous(secondary):
            return SwapLayout(
                geometry=geometry,
                sector=size,
                count=count,
                primary=Area(primary[0].start, count * size),
                secondary=Area(secondary[0].start, (count + 1) * size),
                journal=kept,
            )
    raise ConfigError(
        f"{geometry.size >> 10} KiB of flash memory in sectors of {size >> 10} are too small for two slots"
    )


def _logical_sectors(geometry: Geometry, size: int, end: int) -> Iterator[Area]:
    start = position = geometry.sectors[0].start
    for sector in geometry.sectors:
        if sector.start != position:  # behind a hole
            start = sector.start
        position = sector.end
        if position - start == size and position <= end:
            yield Area(start, size)
        if position - start >= size:
            start = position


def _contiguous(units: list[Area]) -> bool:
    return all(one.end == other.start for one, other in pairwise(units))


class Phase(IntEnum):
    """What a memory is at."""

    IDLE = 0
    FORWARD = 1
    REVERSE = 2
    UNDO_FORWARD = 3
    UNDO_REVERSE = 4


_ENTRY = struct.Struct("<BBBxHHII")


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapState:
    """What the journal says.

    Args:
        phase: what the memory is at.
        base: the slot whose image lies at the base; while a swap goes on, the one that lay there before.
        raised: whether the other image lies one logical sector up in the secondary area; while a swap goes on, whether
            it lay there before.
        count: logical sectors that move, or moved last; 0 if that is still to be looked up.
        step: steps that are done; when undoing, logical sectors that are still to be put back.
        tag: counts the swaps.
        crc: CRC-32 of what will lie at the base, `count` logical sectors of it.
    """

    phase: Phase = Phase.IDLE
    base: Slot = Slot.A
    raised: bool = True
    count: int = 0
    step: int = 0
    tag: int = 0
    crc: int = 0

    def encode(self) -> bytes:
        """Sixteen bytes for the journal."""
        base = list(Slot).index(self.base)
        return _ENTRY.pack(self.phase, base, self.raised, self.count, self.step, self.tag, self.crc)

    @classmethod
    def decode(cls, data: bytes) -> "SwapState":
        """What `encode` made.

        Raises:
            StateError: these bytes are nothing of the kind.
        """
        try:
            phase, base, raised, count, step, tag, crc = _ENTRY.unpack(data)
            return cls(
                phase=Phase(phase),
                base=list(Slot)[int(base)],
                raised=bool(raised),
                count=count,
                step=step,
                tag=tag,
                crc=crc,
            )
        except (struct.error, ValueError, IndexError) as exc:
            raise StateError("the journal of the swap is damaged") from exc


class Journal(Protocol):
    """Where the state of a swap survives power cuts."""

    def mount(self) -> Job[SwapState | None]:
        """The state, made durable once more before anybody acts on it; None if there is none, as of a new memory.

        Raises:
            FlashError: it could not be read, or is damaged.
        """
        ...

    def note(self, state: SwapState) -> Job[None]:
        """Replace the state. When this ends, it is durable.

        Raises:
            FlashError: nobody knows whether it is.
        """
        ...


class ChipJournal:
    """A journal in the memory's own last sectors.

    Args:
        log: where.
    """

    def __init__(self, log: RecordLog) -> None:
        self._log = log

    def mount(self) -> Job[SwapState | None]:
        """The state; None also if these sectors hold something else, as of a chip that had other firmware."""
        try:
            value = yield from self._log.mount()
        except StateError:
            return None
        return None if value is None else SwapState.decode(value)

    def note(self, state: SwapState) -> Job[None]:
        """Append the state."""
        return self._log.append(state.encode())


class HostJournal:
    """A journal beside the memory, where a write is atomic."""

    def mount(self) -> Job[SwapState | None]:
        """The state; None if nothing was kept."""
        kept = yield Kept()
        if not kept:
            return None
        entry = decode_entry(kept, Kind.SWAP)
        return SwapState.decode(entry[1] if entry else b"")

    def note(self, state: SwapState) -> Job[None]:
        """Keep the state."""
        yield Keep(encode_entry(state.tag, Kind.SWAP, state.encode()))


def begin_journal(journal: Journal) -> Job[SwapState]:
    """Note what is true of a new memory: it runs slot a.

    From then on a journal that is missing is a lost one.
    """
    state = SwapState()
    yield from journal.note(state)
    return state


def select(layout: SwapLayout, journal: Journal, state: SwapState, slot: Slot) -> Job[SwapState]:
    """Bring the image of `slot` to the base; nothing to do if it lies there.

    Args:
        layout: of the memory.
        journal: mounted.
        state: what it says; idle.
        slot: whose image is to lie at the base.

    Raises:
        SelectError: the other image lies there, whole, as before.
        StateError: the journal is of another memory.
        FlashError: the swap is to be finished by `recover`.
    """
    _check_fits(layout, state)
    if state.base is slot:
        return state
    try:
        begun = yield from _begin(layout, state)
    except FlashError as exc:  # nothing was touched
        raise SelectError(f"slot {slot} could not be selected: {exc}") from exc
    yield from journal.note(begun)
    state = yield from recover(layout, journal, begun)
    if state.base is not slot:
        raise SelectError(f"slot {slot} could not be selected: the flash memory did not take its image")
    return state


def recover(layout: SwapLayout, journal: Journal, state: SwapState) -> Job[SwapState]:
    """Finish a swap that was begun, wherever it stopped.

    Raises:
        StateError: the journal is of another memory.
        FlashError: it is to be tried again: a sector at the base does not take its data, or nothing answers.
    """
    _check_fits(layout, state)
    if state.phase in _STEPS:
        state = yield from _swap(layout, journal, state)
    if state.phase in _UNDO:
        state = yield from _undo(layout, journal, state)
    return state


def _check_fits(layout: SwapLayout, state: SwapState) -> None:
    if state.count > layout.count or state.step > state.count * (1 if state.phase in _UNDO else 2):
        raise StateError("the journal of the swap is that of another memory: it speaks of sectors that are not there")


def _begin(layout: SwapLayout, state: SwapState) -> Job[SwapState]:
    """Look how far the two images reach, and what is to lie at the base.

    After a reverse swap one stale sector lies before the image that went aside, and after one whose last sector could
    not be erased one behind it: then the journal knows how far they reach.
    """
    blank = layout.geometry.blank(layout.sector)
    coming = layout.aside(int(state.raised)).start
    count, crc = state.count, 0
    checksums: list[int] = []
    for index in range(layout.count):
        arriving = yield Read(coming + index * layout.sector, layout.sector)
        leaving = yield Read(layout.at_base(index).start, layout.sector)
        crc = crc32(arriving, crc)
        checksums.append(crc)
        if leaving != blank or (not state.count and arriving != blank):
            count = max(count, index + 1)
    if not count:
        raise SelectError("there is no image in the flash memory")
    phase = Phase.FORWARD if state.raised else Phase.REVERSE
    return replace(state, phase=phase, count=count, step=0, tag=state.tag + 1 & 0xFFFFFFFF, crc=checksums[count - 1])


def _forward(layout: SwapLayout, _: SwapState, step: int) -> tuple[Area, Area]:
    index, second = divmod(step, 2)
    at_base = layout.at_base(index)
    return (layout.aside(index + 1), at_base) if second else (at_base, layout.aside(index))


def _reverse(layout: SwapLayout, state: SwapState, step: int) -> tuple[Area, Area]:
    done, second = divmod(step, 2)
    index = state.count - 1 - done
    at_base = layout.at_base(index)
    return (layout.aside(index), at_base) if second else (at_base, layout.aside(index + 1))


_STEPS = {Phase.FORWARD: _forward, Phase.REVERSE: _reverse}
"""Source and destination of each step."""


def _swap(layout: SwapLayout, journal: Journal, state: SwapState) -> Job[SwapState]:
    plan = _STEPS[state.phase]
    while state.step < 2 * state.count:
        source, destination = plan(layout, state, state.step)
        if not (yield from _copy(layout, source, destination)):
            return (yield from _turn_around(layout, journal, state))
        state = replace(state, step=state.step + 1)
        yield from journal.note(state)
    if (yield from _checksum(layout, state.count)) != state.crc:
        return (yield from _turn_around(layout, journal, state))
    raised = state.phase is Phase.REVERSE
    if not raised:
        yield from _clear(layout, layout.aside(state.count))
    done = SwapState(base=state.base.other, raised=raised, count=state.count, tag=state.tag)
    yield from journal.note(done)
    return done


def _copy(layout: SwapLayout, source: Area, destination: Area) -> Job[bool]:
    """Whether the destination took the data; if not, the source still stands."""
    for _ in range(ATTEMPTS):
        try:
            data = yield Read(source.start, source.length)
            if (yield from rewrite(layout.geometry, destination, data)):
                return True
        except FlashError:
            continue
    return False


def _clear(layout: SwapLayout, area: Area) -> Job[None]:
    """Erase what nobody needs any more; a sector that refuses is no reason to stop."""
    for sector in layout.geometry.sectors_in(area):
        try:
            yield Erase(sector)
        except FlashError:
            continue


def _checksum(layout: SwapLayout, count: int) -> Job[int | None]:
    """CRC-32 of what lies at the base; None if it cannot be read."""
    for _ in range(ATTEMPTS):
        try:
            crc = 0
            for index in range(count):
                crc = crc32((yield Read(layout.at_base(index).start, layout.sector)), crc)
            return crc
        except FlashError:
            continue
    return None


_UNDO = {Phase.UNDO_FORWARD, Phase.UNDO_REVERSE}


def _turn_around(layout: SwapLayout, journal: Journal, state: SwapState) -> Job[SwapState]:
    """What was moved aside goes back to the base; what was to come is given up.

    A memory that nobody answers for, a probe that was pulled out, has refused nothing: then this raises, and the swap
    goes on later.
    """
    yield from _find_answer(layout)
    phase = Phase.UNDO_FORWARD if state.phase is Phase.FORWARD else Phase.UNDO_REVERSE
    state = replace(state, phase=phase, step=(state.step + 1) // 2)
    yield from journal.note(state)
    return state


def _find_answer(layout: SwapLayout) -> Job[None]:
    """Whether the memory can be read at all: one sector of it may be unreadable, both ends of it are not."""
    unit = layout.geometry.program_unit
    try:
        yield Read(layout.primary.start, unit)
    except FlashError:
        yield Read(layout.secondary.end - unit, unit)


def _undo(layout: SwapLayout, journal: Journal, state: SwapState) -> Job[SwapState]:
    while state.step:
        if state.phase is Phase.UNDO_FORWARD:
            index = state.step - 1
            saved = layout.aside(index)
        else:
            index = state.count - state.step
            saved = layout.aside(index + 1)
        if not (yield from _copy(layout, saved, layout.at_base(index))):
            raise FlashError(f"the flash memory at {layout.at_base(index).start:#x} does not keep what is programmed")
        state = replace(state, step=state.step - 1)
        yield from journal.note(state)
    done = SwapState(base=state.base, raised=state.raised, tag=state.tag)
    yield from journal.note(done)
    return done
