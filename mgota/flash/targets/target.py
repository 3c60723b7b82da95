"""What is known of a chip whose images are updated: one entry of the table of targets.

Rules:
- a target is data: where behaviour differs there is a module beside this one;
- offsets count from the first byte of the raw array, which lies at `base`;
- what follows from other numbers is computed, not written down: the largest image, whether it can be rolled back;
- a chip too small for two slots has an entry that says so: its largest image has 0 bytes.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from mgota.core.checksum import CRC32
from mgota.core.geometry import Geometry
from mgota.core.swap import JournalPlace, plan_swap
from mgota.errors import ConfigError

ESP32_SLOT = 0x1E0000
"""Bytes of a slot in the partition table that a new ESP32 gets: ota_0 at 0x10000, ota_1 at 0x1F0000."""


class Swap(StrEnum):
    """How two images change places."""

    BANK = "bank"
    """An option bit exchanges the addresses of two equal banks; nothing moves."""
    COPY = "copy"
    """Sector by sector, with a journal."""
    OTADATA = "otadata"
    """A record in the chip's own format names the partition that boots; nothing moves."""
    DOUBLE_MAP = "double_map"
    """The chip maps one of two areas to the address that boots; mgota knows of it and does not drive it."""
    CUSTOM = "custom"
    """The user's backend knows."""


class Recovery(StrEnum):
    """What finishes a swap that power cut off."""

    HARDWARE = "hardware"
    """Nothing has to: one atomic write decides what boots."""
    HOST = "host"
    """A gateway that holds the chip in reset, or a boot region that implements SPEC.md. A bare chip is not safe."""


_ATOMIC = {Swap.BANK, Swap.OTADATA}  # of a double map nobody has proven it


@dataclass(frozen=True, kw_only=True)
class Target:
    """A part variant: a chip with this flash memory in this mode.

    Args:
        name: of the family of targets, as `--target` takes it.
        part: of the variant, as `--part` takes it. ST's `x` stands for the letter of the package.
        default: whether the family's name alone means this part.
        base: absolute address of the raw array's first byte.
        geometry: of the raw array, or None where mgota does not know it.
        swap: how two images change places.
        journal: where a copying swap notes its steps.
        unit: bytes of a program unit, where there is no geometry to say so.
        aliases: further names of the part.
        mirrors: further absolute addresses of the raw array's first byte, which images may be linked for.
        vectors: offsets in the image at which a Cortex-M vector table may lie; None if there is none to look at.
        watchdog_limit: seconds of the longest timeout of the chip's own watchdog, or None if it is not described here.
        watchdog_stoppable: whether that one can be stopped; None if it is not described here.
        crc: the checksum of the read-back.
        sources: where the numbers come from.
    """

    name: str
    part: str
    default: bool = False
    base: int = 0
    geometry: Geometry | None = None
    swap: Swap
    journal: JournalPlace = JournalPlace.NONE
    unit: int = 1
    aliases: tuple[str, ...] = ()
    mirrors: tuple[int, ...] = ()
    vectors: tuple[int, ...] | None = None
    watchdog_limit: float | None = None
    watchdog_stoppable: bool | None = None
    crc: str = CRC32
    sources: tuple[str, ...]

    @property
    def recovery(self) -> Recovery:
        """What finishes a swap that power cut off."""
        return Recovery.HARDWARE if self.swap in _ATOMIC else Recovery.HOST

    @property
    def program_unit(self) -> int:
        """Bytes of the smallest programmable piece."""
        return self.geometry.program_unit if self.geometry else self.unit

    @property
    def erased(self) -> bytes:
        """The erased pattern, as its bytes lie in flash."""
        return self.geometry.erased if self.geometry else b"\xff"

    @property
    def links(self) -> tuple[int, ...]:
        """Absolute addresses that the first byte of an image may be linked for: `base`, then the mirrors."""
        return (self.base, *self.mirrors)

    @cached_property
    def max_image(self) -> int:
        """Bytes of the largest image, trailer included: 0 if two do not fit, or if nobody knows where they would lie.

        On an ESP32 it is that of the partition table that mgota makes; another table has its own.
        """
        if self.geometry is None:
            return 0
        match self.swap:
            case Swap.BANK:
                return self.geometry.size // 2
            case Swap.OTADATA:
                return ESP32_SLOT
            case _:
                try:
                    return plan_swap(self.geometry, self.journal).max_image
                except ConfigError:  # too small
                    return 0

    @property
    def rollback(self) -> bool:
        """Whether the previous image can be brought back: wherever two lie. What a custom backend can is not told."""
        return self.max_image > 0
