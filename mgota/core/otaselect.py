"""ESP32: how a slot is selected in otadata so that no power cut, nor any number of them, boots a half-written image.

The bootloader reads two sectors and knows nothing of cuts. A torn sector may read valid now and blank later, so that
two torn ones may select any slot, or none: then slot 0 boots. Hence all of this keeps one promise: *at most one sector
is torn, and while the other slot may be half-written, both sectors select the running slot.*

    sector    entry (32, the bootloader's)   seal (32, ours: the bootloader does not look)
    write     erase ─► entry, read back ─► seal, read back
    settle    until both sectors hold a sealed entry for the running slot: the next step is
                neither for it        the one that is invalid; or without a seal; or that loses
                one for it, sealed    the other sector
                one for it, unsealed  that one again: it may be torn, and the other one is not
                both, one unsealed    that one again
    select    settle; write the other slot into the sector that loses, with a sequence that wins

Rules:
- a seal is begun when its entry was read back: an entry with a seal is not torn by a cut in its own program. Without
  the seal it cannot be told from a torn one, and to erase the *other* sector then tears both: that bricks a device in
  four cuts;
- so a sector is only erased when the other one is sealed, or is known not to matter;
- entries of other writers (ESP-IDF, otatool) have no seal, and count as sealed. Ours bear a label made from their
  sequence; a writer that keeps the label changes the sequence;
- the state is UNDEFINED, all ones: a torn program cannot make it INVALID, and no bootloader changes it;
- sequences that come near the end of 32 bits start again, low, one sector after the other;
- what is settled is not written: no wear at boot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from mgota.core.geometry import Geometry, Sector
from mgota.core.nor import Job, Program, Read, rewrite
from mgota.core.otadata import BLANK_LABEL, ENTRY_SIZE, OtaEntry, decode_entry, encode_entry, ota_entry, winner
from mgota.errors import ConfigError, FlashError, SelectError, VerifyError

SEAL = b"sealed".ljust(32, b"\0")
"""What follows our entry once it was read back. Anything in its place that is not blank is a seal."""

LAST_SEQUENCE = 0xFFFF_FF00
"""Sequences above this are brought down again; 0xFFFFFFFF is none."""

MAX_STEPS = 6
"""More than ever lie between any two entries and the settled ones."""


@dataclass(frozen=True, slots=True)
class OtaPlace:
    """Where the selection is kept.

    Args:
        geometry: of the flash memory.
        sectors: the two of otadata.
        count: how many OTA slots there are: a sequence selects one by its remainder.
        last: sequences above this are brought down.

    Raises:
        ConfigError: an entry is not a whole number of program units.
    """

    geometry: Geometry
    sectors: tuple[Sector, Sector]
    count: int
    last: int = LAST_SEQUENCE

    def __post_init__(self) -> None:
        if ENTRY_SIZE % self.geometry.program_unit:
            raise ConfigError(f"otadata needs program units that divide {ENTRY_SIZE} bytes")


@dataclass(frozen=True, slots=True)
class Look:
    """What one sector reads as.

    Args:
        entry: its first 32 bytes.
        sealed: whether what follows is not blank.
    """

    entry: OtaEntry
    sealed: bool

    @property
    def trusted(self) -> bool:
        """Whether the entry was not torn when it was written: it is sealed, or not ours."""
        return self.sealed or not _may_be_ours(self.entry)

    def selects(self, slot: int, count: int) -> bool:
        """Whether it counts, and is for this slot."""
        return self.entry.valid and self.entry.slot(count) == slot


@lru_cache(maxsize=8)
def label_of(seq: int) -> bytes:
    """The label of our entry with this sequence."""
    return sha256(b"mgota" + seq.to_bytes(4, "little")).digest()[: len(BLANK_LABEL)]


def _may_be_ours(entry: OtaEntry) -> bool:
    # A torn program leaves ones where zeros were to come.
    mine, found = (int.from_bytes(label, "little") for label in (label_of(entry.seq), entry.label))
    return mine & found == mine and entry.label != BLANK_LABEL


def selected_slot(looks: Sequence[Look], count: int) -> int | None:
    """Number of the slot that boots; None if neither entry counts."""
    index = winner([look.entry for look in looks])
    return None if index is None else looks[index].entry.slot(count)


def look(place: OtaPlace) -> Job[tuple[Look, Look]]:
    """Read both sectors, each once."""
    first = yield from _look_at(place, place.sectors[0])
    second = yield from _look_at(place, place.sectors[1])
    return first, second


def _look_at(place: OtaPlace, sector: Sector) -> Job[Look]:
    data = yield Read(sector.start, ENTRY_SIZE + len(SEAL))
    return Look(decode_entry(data[:ENTRY_SIZE]), data[ENTRY_SIZE:] != place.geometry.blank(len(SEAL)))


def settle(place: OtaPlace, slot: int) -> Job[None]:
    """Make both sectors select this slot, which runs. Nothing is written if they do.

    Raises:
        FlashError: they could not be written.
    """
    for _ in range(MAX_STEPS):
        looks = yield from look(place)
        step = next_step(looks, slot, place.count, place.last)
        if step is None:
            return
        yield from _write(place, *step)
    raise FlashError("otadata does not keep what is written to it")


def next_step(looks: tuple[Look, Look], slot: int, count: int, last: int = LAST_SEQUENCE) -> tuple[int, int] | None:
    """What to write next on the way to two sealed entries for a slot.

    Args:
        looks: what the two sectors read as.
        slot: the one that runs.
        count: how many slots there are.
        last: sequences above this are brought down.

    Returns the sector's index and the sequence, or None if there is nothing to do.
    """
    right = [look.selects(slot, count) for look in looks]
    if all(right):
        doubtful = [index for index in (0, 1) if not looks[index].trusted]
        high = max(look.entry.seq for look in looks) > last
        if not doubtful and not high:
            return None
        index = doubtful[0] if len(doubtful) == 1 else _loser(looks) if doubtful else 1 - _loser(looks)
    elif any(right):
        own = right.index(True)
        index = 1 - own if looks[own].trusted else own
    else:
        index = min((0, 1), key=lambda index: _weight(looks[index]))
    return index, _sequence(looks, 1 - index, slot, count, last)


def _weight(look: Look) -> tuple[bool, bool, int]:
    """What is to be written first, if neither is right, weighs least."""
    return look.entry.valid, look.trusted, look.entry.seq


def _loser(looks: Sequence[Look]) -> int:
    return 1 - (winner([look.entry for look in looks]) or 0)


def _sequence(looks: Sequence[Look], kept: int, slot: int, count: int, last: int) -> int:
    """One that selects the slot, and wins, unless what it had to win over is too high and written next."""
    top = max((look.entry.seq for look in looks if look.entry.valid), default=0)
    if top > last:
        other = looks[kept].entry
        top = other.seq if other.valid and other.seq <= last else 0
    return top + 1 + (slot - top) % count


def select(place: OtaPlace, running: int | None, slot: int) -> Job[None]:
    """Make a slot the one that boots; nothing to do if it is.

    Args:
        place: where the selection is kept.
        running: the slot that runs, or None if what runs is in none.
        slot: the one to select; its image is whole.

    Raises:
        SelectError: it could not be done; what boots is the same as before.
    """
    try:
        looks = yield from look(place)
        if _selected_already(looks, running, slot, place.count):
            return
        if running is None or running == slot:
            yield from settle(place, slot)
        else:
            yield from settle(place, running)
            yield from _turn_to(place, slot)
    except FlashError as exc:
        if running == slot or not (yield from _stands(place, running, slot)):
            raise SelectError(f"slot ota_{slot} could not be selected: {exc}") from exc


def _selected_already(looks: tuple[Look, Look], running: int | None, slot: int, count: int) -> bool:
    """Whether it was selected since the boot, from the running slot."""
    index = winner([look.entry for look in looks])
    if running is None or running == slot or index is None:
        return False
    new, old = looks[index], looks[1 - index]
    return new.selects(slot, count) and new.trusted and old.selects(running, count) and old.trusted


def _turn_to(place: OtaPlace, slot: int) -> Job[None]:
    """From settled entries for another slot: one sector is written, and decides."""
    looks = yield from look(place)
    index = _loser(looks)
    yield from _write(place, index, _sequence(looks, 1 - index, slot, place.count, place.last))


def _stands(place: OtaPlace, running: int | None, slot: int) -> Job[bool]:
    """After a selection that failed: take it back; if that fails too, whether it took effect all the same."""
    try:
        if running is not None:
            yield from settle(place, running)
            return False
    except FlashError:
        pass
    try:
        return selected_slot((yield from look(place)), place.count) == slot
    except FlashError:
        return False


def _write(place: OtaPlace, index: int, seq: int) -> Job[None]:
    sector, entry = place.sectors[index], encode_entry(ota_entry(seq, label=label_of(seq)))
    blank = place.geometry.blank(len(SEAL))
    if not (yield from rewrite(place.geometry, sector, entry + blank)):
        raise VerifyError(f"otadata could not be written at {sector.start:#x}")
    yield Program(sector.start + ENTRY_SIZE, SEAL)
    if (yield Read(sector.start, ENTRY_SIZE + len(SEAL))) != entry + SEAL:
        raise VerifyError(f"otadata could not be sealed at {sector.start:#x}")
