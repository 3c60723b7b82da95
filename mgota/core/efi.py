"""UEFI's boot variables: their bytes, and what they have to say so that a slot boots.

    BootOrder   numbers of boot entries, 16 bits each, little-endian: the first that loads is started
    BootNext    one number: started once, at the next boot, and deleted by the firmware before

| | BootNext | BootOrder |
|---|---|---|
| the other slot selected | its entry; none, if it stands first already | as it is |
| the running slot selected | none | its entry first, the other slot's not at all |
| after a good boot | as it is | the other slot's entry second, if it holds a proven image |

A trial is started once, whatever becomes of it: the firmware itself goes back. What it does not leave is a sign that it
tried.

Source: UEFI Specification 2.10, section 3.3; the kernel's Documentation/filesystems/efivarfs.rst.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mgota.core.geometry import Slot
from mgota.errors import FlashError

GUID = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
"""EFI_GLOBAL_VARIABLE."""

ATTRIBUTES = 7
"""Non-volatile, for boot services and at run time."""

MAX_NUMBERS = 512


@dataclass(frozen=True, slots=True)
class BootNumbers:
    """What the firmware looks at.

    Args:
        order: BootOrder.
        following: BootNext, or None.
    """

    order: tuple[int, ...] = ()
    following: int | None = None


def encode_numbers(numbers: tuple[int, ...]) -> bytes:
    """A variable as efivarfs takes it: attributes, then the numbers."""
    return struct.pack(f"<I{len(numbers)}H", ATTRIBUTES, *numbers)


def decode_numbers(data: bytes) -> tuple[int, ...]:
    """The numbers of a variable as efivarfs gives it.

    Raises:
        FlashError: it is no list of them.
    """
    count, rest = divmod(len(data) - 4, 2)
    if rest or not 0 <= count <= MAX_NUMBERS:
        raise FlashError(f"a boot variable of {len(data)} bytes is no list of boot entries")
    return struct.unpack(f"<{count}H", data[4:])


def selected(found: BootNumbers, entries: Mapping[Slot, int]) -> Slot | None:
    """The slot that boots next; None if it is another entry."""
    number = found.order[:1] if found.following is None else (found.following,)
    return next((slot for slot, entry in entries.items() if (entry,) == number), None)


def select(found: BootNumbers, entries: Mapping[Slot, int], slot: Slot, *, running: Slot) -> BootNumbers:
    """The numbers with which `slot` boots next; the first table says how."""
    if slot is not running:
        first = found.order[:1] == (entries[slot],)
        return replace(found, following=None if first else entries[slot])
    rest = tuple(number for number in found.order if number not in entries.values())
    return BootNumbers((entries[slot], *rest))


def settle(found: BootNumbers, entries: Mapping[Slot, int], running: Slot, *, fallback: bool) -> BootNumbers:
    """The numbers after a good boot. If something else stands first, nothing is changed."""
    if found.order[:1] != (entries[running],):
        return found
    rest = tuple(number for number in found.order if number not in entries.values())
    back = (entries[running.other],) if fallback else ()
    return replace(found, order=(entries[running], *back, *rest))
