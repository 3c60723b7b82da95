"""ESP32: how a slot is selected in otadata, so that no power cut boots a half-written image.

The bootloader reads two sectors and knows nothing of cuts. A torn sector may read valid now and blank later; then the
other one decides, and if that is torn as well, any slot may boot: without a valid entry, slot 0. Hence one promise:
*while the other slot may be half-written, a sector that is not torn selects the running slot, and none wins over it.*

    recover   (at every boot) settle; but a new chip's entries, both blank, stay so until its first update
    settle    (before the first erase of an update)
              both select the running slot      nothing to do, no wear
              one does                          write the other: whatever becomes of it, the right one stands
              neither does                      write one with a sequence that wins; then the other
    select    settle; write the other slot into the sector that loses, with a sequence that wins

Rules:
- a write is erase, program, read back: a sector that was written since power came is not torn;
- a sector is read `READS` times, and counts only if each read is the same: what a cut left uncertain shows itself, or
  has made up its mind. With that, no number of cuts boots a half-written image. Should a sector read the same eight
  times and change its mind later all the same, it takes three cuts, each in the few milliseconds of one operation;
- the right sector is never written before the other one. To write it once more first, to be sure of it, would be worse:
  a chip that comes from ESP-IDF may have a half-written slot that the other sector selects;
- the state is UNDEFINED, all ones: a torn program cannot make it INVALID, and no bootloader changes it;
- nothing is kept in mind between two jobs.

`tests/core/test_esp_select_model.py` explores all of it: every cut, every reading, without a limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mgota.core.geometry import Geometry, Sector
from mgota.core.nor import Job, Read, rewrite
from mgota.core.otadata import ENTRY_SIZE, NO_SEQUENCE, OtaEntry, decode_entry, encode_entry, ota_entry, winner
from mgota.errors import ConfigError, FlashError, SelectError, VerifyError

READS = 8
"""How often a sector is read before it is believed."""

MAX_STEPS = 4
"""No two entries are more writes than this away from settled ones."""

Entries = tuple[OtaEntry, OtaEntry]
Step = tuple[int, int]
"""What to write: the index of a sector, and a sequence."""

_BLANK = OtaEntry(NO_SEQUENCE)
_WAVERING = OtaEntry(NO_SEQUENCE, label=bytes(20))
"""What stands for an entry that reads otherwise each time: it is none, and not blank."""


@dataclass(frozen=True, slots=True)
class OtaPlace:
    """Where the selection is kept.

    Args:
        geometry: of the flash memory.
        sectors: the two of otadata.
        count: how many OTA slots there are: a sequence selects one by its remainder.
        default: the slot that boots while no entry counts; None if that is a factory app.

    Raises:
        ConfigError: an entry is not a whole number of program units.
    """

    geometry: Geometry
    sectors: tuple[Sector, Sector]
    count: int
    default: int | None = 0

    def __post_init__(self) -> None:
        if ENTRY_SIZE % self.geometry.program_unit:
            raise ConfigError(f"otadata needs program units that divide {ENTRY_SIZE} bytes")


def selected_slot(entries: Sequence[OtaEntry], count: int) -> int | None:
    """Number of the slot that boots; None if neither entry counts.

    Args:
        entries: of both sectors.
        count: how many OTA slots there are.
    """
    index = winner(entries)
    return None if index is None else entries[index].slot(count)


def read_entries(place: OtaPlace) -> Job[Entries]:
    """Both entries; one that does not read the same each time is none."""
    first = yield from _read_entry(place.sectors[0])
    second = yield from _read_entry(place.sectors[1])
    return first, second


def _read_entry(sector: Sector) -> Job[OtaEntry]:
    data = yield Read(sector.start, ENTRY_SIZE)
    for _ in range(READS - 1):
        if (yield Read(sector.start, ENTRY_SIZE)) != data:
            return _WAVERING
    return decode_entry(data)


def recover(place: OtaPlace, slot: int) -> Job[None]:
    """After a boot: settle, unless nothing was ever selected, and the slot boots because of that.

    Args:
        place: where the selection is kept.
        slot: the one that runs.

    Raises:
        FlashError: otadata could not be written.
    """
    entries = yield from read_entries(place)
    if slot != place.default or entries != (_BLANK, _BLANK):
        yield from settle(place, slot)


def settle(place: OtaPlace, slot: int) -> Job[None]:
    """Make both sectors select this slot. Nothing is written if they do.

    Args:
        place: where the selection is kept.
        slot: the one that runs; from here on the other one may be half-written.

    Raises:
        FlashError: otadata could not be written.
    """
    for _ in range(MAX_STEPS):
        step = next_step((yield from read_entries(place)), slot, place.count)
        if step is None:
            return
        yield from _write(place, *step)
    raise FlashError("otadata does not keep what is written to it")


def next_step(entries: Entries, slot: int, count: int) -> Step | None:
    """What to write next on the way to two entries for a slot; None if there is nothing.

    Args:
        entries: of both sectors.
        slot: the one that runs.
        count: how many slots there are.
    """
    right = [entry.valid and entry.slot(count) == slot for entry in entries]
    if all(right):
        return None
    if not any(right):
        return _first_step(entries, slot, count)
    own = right.index(True)
    # The right entry stands, and goes on to win.
    seq = entries[own].seq
    return 1 - own, _below(seq, slot, count) or _above(seq, slot, count)


def _first_step(entries: Entries, slot: int, count: int) -> Step:
    """Neither entry is for the slot: one that wins or, if there is no higher sequence, in the place of what wins."""
    best = winner(entries)
    if best is None:
        return 0, count + slot + 1  # leaves room for a lower one
    seq = _above(entries[best].seq, slot, count)
    return (1 - best, seq) if seq < NO_SEQUENCE else (best, count + slot + 1)


def _above(seq: int, slot: int, count: int) -> int:
    """The lowest sequence above `seq` that selects the slot; 32 bits may not hold it."""
    return seq + 1 + (slot - seq) % count


def _below(seq: int, slot: int, count: int) -> int | None:
    """The highest sequence below `seq` that selects the slot."""
    found = seq - 1 - (seq - 2 - slot) % count
    return found if found > 0 else None


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
        if running is None or running == slot:
            yield from recover(place, slot)
        elif selected_slot((yield from read_entries(place)), place.count) != slot:
            yield from settle(place, running)
            yield from _turn(place, running, slot)
    except FlashError as exc:
        if running == slot or not (yield from _took_effect(place, running, slot)):
            raise SelectError(f"slot ota_{slot} could not be selected: {exc}") from exc


def _turn(place: OtaPlace, running: int, slot: int) -> Job[None]:
    """From settled entries to another slot: one sector is written, and decides. Both images are whole."""
    entries = yield from read_entries(place)
    best = winner(entries) or 0
    seq = _above(entries[best].seq, slot, place.count)
    if seq >= NO_SEQUENCE:  # after four thousand million selections, or somebody else's: begin anew
        low = running + 1
        yield from _write(place, best, low)
        seq = _above(low, slot, place.count)
    yield from _write(place, 1 - best, seq)


def _took_effect(place: OtaPlace, running: int | None, slot: int) -> Job[bool]:
    """After a selection that failed: take it back; where that fails too, whether it took effect all the same."""
    try:
        if running is not None:
            yield from settle(place, running)
            return False
    except FlashError:
        pass  # what failed first is what is reported
    try:
        return selected_slot((yield from read_entries(place)), place.count) == slot
    except FlashError:
        return False


def _write(place: OtaPlace, index: int, seq: int) -> Job[None]:
    sector = place.sectors[index]
    if not (yield from rewrite(place.geometry, sector, encode_entry(ota_entry(seq)))):
        raise VerifyError(f"otadata could not be written at {sector.start:#x}")
