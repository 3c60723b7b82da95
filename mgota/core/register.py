"""What four bytes can say of a boot record: for a register that survives a reset, and whoever reads it there.

    raw       the state as Mongoose numbers it: 0 CONFIRMED, 1 TESTING, 2 FAILED, 3 rolled back
    encoded   bits 31-24   0x4D, "M"
              bits 23-22   state: 0 CONFIRMED, 1 TESTING, 2 FAILED
              bits 21-20   slot on trial: 0 none, 1 a, 2 b
              bits 19-18   how often it was selected, 3 for more
              bits 17-16   tries that are left, 3 for more
              bits 15-8    revision of the record, its lowest eight bits
              bits 7-0     CRC-32 of the three bytes before, in this order, its lowest eight bits

Sizes and digests do not fit into four bytes, so that the record itself lies elsewhere: the register is a mirror of it.
"""

from enum import StrEnum
from zlib import crc32

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State

MAGIC = 0x4D

_STATES = {State.CONFIRMED: 0, State.TESTING: 1, State.FAILED: 2}
_SLOTS = {None: 0, Slot.A: 1, Slot.B: 2}
_ROLLED_BACK = 3


class Form(StrEnum):
    """How a record is put into four bytes."""

    RAW = "raw"
    ENCODED = "encoded"


def encode_word(record: BootRecord, form: Form) -> int:
    """The 32 bits that stand for a record."""
    state = _STATES[record.state]
    if form is Form.RAW:
        return _ROLLED_BACK if not state and record.outcome is Outcome.ROLLED_BACK else state
    said = state << 6 | _SLOTS[record.trial] << 4 | min(record.swaps, 3) << 2 | min(record.tries, 3)
    head = bytes([MAGIC, said, record.revision & 0xFF])
    return int.from_bytes(head + bytes([crc32(head) & 0xFF]))
