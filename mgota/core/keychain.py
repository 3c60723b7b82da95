"""What a device remembers of the rotations of keys that it has followed; a part of the boot record.

What it means is `mgota.core.trust`'s. Kept apart, because whoever reads a record need not know what a key is.
"""

import re
from dataclasses import dataclass
from typing import Final

MAX_KEYS: Final = 4
"""Keys of a set that a rotation brings. The record has to fit a sector of flash twice."""

MAX_CHAIN: Final = 16
"""Sets, and keys, that a device remembers having left behind."""

_KEY = re.compile("[A-Za-z0-9+/]{86}==")
_ID = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChain:
    """What was followed.

    Args:
        keys: the set that counts now: X‖Y of each, in base64.
        threshold: how many of them have to sign.
        left: ids of the sets that were replaced, and of the configured set that it began with.
        retired: keyids of the keys that were rotated out.
    """

    keys: tuple[str, ...]
    threshold: int = 1
    left: tuple[str, ...] = ()
    retired: tuple[str, ...] = ()

    @property
    def is_sound(self) -> bool:
        """Whether the members are what they should be."""
        ids = (*self.left, *self.retired)
        return (
            1 <= self.threshold <= len(self.keys) <= MAX_KEYS
            and max(len(self.left), len(self.retired)) <= MAX_CHAIN
            and all(map(_KEY.fullmatch, self.keys))
            and all(map(_ID.fullmatch, ids))
        )
