"""ESP32: which slot boots, as the bootloader reads it from the partition `otadata`.

Two sectors of 4 KiB, one entry at the start of each: `<I20sII`, sequence, label, state, CRC.

    seq 3 ► slot (3 - 1) mod 2 = 0        seq 4 ► slot (4 - 1) mod 2 = 1: the larger one wins, slot 1 boots

Sources: ESP-IDF components/bootloader_support, esp_flash_partitions.h (the entry and its states),
bootloader_common_loader.c (validity, CRC, winner), bootloader_utility.c (sequence to slot, what boots without entries);
components/app_update/otatool.py (the CRC in Python). Rules:
- the CRC is over the four bytes of the sequence only, so that state and label do not depend on it;
- an entry counts if its sequence is not 0xFFFFFFFF, its state neither INVALID nor ABORTED, and its CRC fits; a state
  that nobody knows counts, as it does for the bootloader;
- of two that count, the larger sequence wins; of equal ones the first.
"""

import struct
from binascii import crc32
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from mgota.core.record import State
from mgota.errors import ConfigError

_ENTRY = struct.Struct("<I20sII")

ENTRY_SIZE = _ENTRY.size
"""Bytes of an entry: 32, two blocks of encrypted flash."""

NO_SEQUENCE = 0xFFFFFFFF
"""The sequence of an erased entry; it never counts."""

BLANK_LABEL = b"\xff" * 20
"""The label that ESP-IDF writes into a new entry: nothing."""


class OtaState(IntEnum):
    """What the bootloader makes of an image (`esp_ota_img_states_t`)."""

    NEW = 0
    """Selected; its first boot will be watched."""
    PENDING_VERIFY = 1
    """Its first boot has begun. At the next boot the bootloader makes it ABORTED, unless it was declared VALID."""
    VALID = 2
    """It works."""
    INVALID = 3
    """It does not: never booted again."""
    ABORTED = 4
    """It never said whether it works: never booted again."""
    UNDEFINED = 0xFFFFFFFF
    """It boots without limits; nobody watches."""


_AS_RECORDED = {
    OtaState.NEW: State.TESTING,
    OtaState.PENDING_VERIFY: State.FAILED,
    OtaState.VALID: State.CONFIRMED,
    OtaState.INVALID: State.FAILED,
    OtaState.ABORTED: State.FAILED,
    OtaState.UNDEFINED: State.CONFIRMED,
}


@dataclass(frozen=True, slots=True)
class OtaEntry:
    """One entry, as it is stored: it need not count.

    Args:
        seq: the sequence, 32 bits.
        label: 20 bytes that the bootloader does not look at.
        state: of the image, 32 bits; an `OtaState`, or something else.
        crc: 32 bits.
    """

    seq: int
    label: bytes = BLANK_LABEL
    state: int = OtaState.UNDEFINED
    crc: int = NO_SEQUENCE

    @property
    def valid(self) -> bool:
        """Whether the bootloader counts it."""
        unusable = self.seq == NO_SEQUENCE or self.state in (OtaState.INVALID, OtaState.ABORTED)
        return not unusable and self.crc == sequence_crc(self.seq)

    @property
    def recorded(self) -> State:
        """The state in the words of a boot record; UNKNOWN for a number that is none."""
        return _AS_RECORDED.get(OtaState(self.state), State.UNKNOWN) if self.state in _STATES else State.UNKNOWN

    def slot(self, count: int) -> int:
        """Number of the OTA slot that it selects, if it counts.

        Args:
            count: how many OTA slots the partition table has.
        """
        return (self.seq - 1) % (1 << 32) % count  # the bootloader's arithmetic has 32 bits: 0 selects the last slot


_STATES = frozenset(OtaState)


def sequence_crc(seq: int) -> int:
    """The CRC of an entry: 1 gives 0x4743989A, 2 gives 0x55F63774.

    Args:
        seq: the sequence, 32 bits.
    """
    return crc32(struct.pack("<I", seq), 0xFFFFFFFF)


def ota_entry(seq: int, *, label: bytes = BLANK_LABEL, state: int = OtaState.UNDEFINED) -> OtaEntry:
    """An entry with the CRC that fits.

    Args:
        seq: the sequence, 32 bits.
        label: at most 20 bytes.
        state: of the image, 32 bits.
    """
    return OtaEntry(seq, label.ljust(len(BLANK_LABEL), b"\0"), state, sequence_crc(seq))


def encode_entry(entry: OtaEntry) -> bytes:
    """The 32 bytes of an entry.

    Raises:
        ConfigError: a field is too large.
    """
    if len(entry.label) != len(BLANK_LABEL):
        raise ConfigError(f"the label of an otadata entry has {len(BLANK_LABEL)} bytes, not {len(entry.label)}")
    try:
        return _ENTRY.pack(entry.seq, entry.label, entry.state, entry.crc)
    except struct.error as exc:
        raise ConfigError(f"an otadata entry has fields of 32 bits: {exc}") from exc


def decode_entry(data: bytes) -> OtaEntry:
    """The entry at the start of a sector.

    Args:
        data: 32 bytes; what they mean is for `OtaEntry.valid` to say.

    Raises:
        ConfigError: there are more or fewer.
    """
    if len(data) != ENTRY_SIZE:
        raise ConfigError(f"an otadata entry has {ENTRY_SIZE} bytes, not {len(data)}")
    return OtaEntry(*_ENTRY.unpack(data))


def winner(entries: Sequence[OtaEntry]) -> int | None:
    """Index of the entry that decides; None if none counts."""
    valid = [index for index, entry in enumerate(entries) if entry.valid]
    return max(valid, key=lambda index: entries[index].seq, default=None)
