"""The flash memories that the swap is proven on, in their real size and scaled down."""

from collections.abc import Callable
from dataclasses import dataclass

from mgota.core.geometry import Geometry, Region, uniform
from mgota.core.swap import JournalPlace, SwapLayout, plan_swap

K = 1 << 10

FEWEST = 12
"""Sectors of a scaled map: a journal of three, and slots of four logical sectors, of which images take three."""

WCH = bytes.fromhex("39e339e3")
"""What a CH32V307's erased flash memory reads as: `../shared/design/targets.md`, after its manual's 0xE339E339."""


@dataclass(frozen=True)
class SectorMap:
    """A flash memory to prove the swap on.

    Args:
        name: as the reports call it.
        make: the geometry of the memory in a scale: what is large is divided by it, so that many runs take less time.
        journal: where the swap's journal lies.
    """

    name: str
    make: Callable[[int], Geometry]
    journal: JournalPlace

    def layout(self, scale: int = 1) -> SwapLayout:
        return plan_swap(self.make(scale), self.journal)


def listed(*runs: tuple[int, int]) -> Callable[[int], Geometry]:
    """Sectors as the STM32F manuals list them: how many, and KiB of each. A scale divides the sectors."""

    def make(scale: int) -> Geometry:
        found, start = [], 0
        for number, size in runs:
            sector = size * K // scale
            found.append(Region(start, number * sector, sector))
            start += number * sector
        return Geometry(tuple(found), 4)

    return make


def alike(size: int, sector: int, unit: int, erased: bytes = b"\xff") -> Callable[[int], Geometry]:
    """Equal sectors. A scale divides their number, down to `FEWEST`, and sectors of more than 4 KiB down to that."""

    def make(scale: int) -> Geometry:
        smaller = max(sector // scale, min(sector, 4 * K))
        number = size // sector if scale == 1 else max(size // sector // scale, FEWEST)
        return uniform(number * smaller, smaller, program_unit=unit, erased=erased)

    return make


F4 = ((4, 16), (1, 64), (7, 128))
F7 = ((4, 32), (1, 128), (7, 256))

MAPS = (
    SectorMap("uniform", alike(64 * K, 4 * K, 16), JournalPlace.CHIP),
    SectorMap("STM32F4 1 MiB", listed(*F4), JournalPlace.HOST),
    SectorMap("STM32F4 2 MiB", listed(*F4, *F4), JournalPlace.HOST),
    SectorMap("STM32F7 2 MiB", listed(*F7), JournalPlace.HOST),
    SectorMap("RP2040", alike(2 * K * K, 4 * K, 256), JournalPlace.CHIP),
    SectorMap("RT1050", alike(64 * K * K, 256 * K, 512), JournalPlace.CHIP),
    SectorMap("CH32V307", alike(480 * K, 4 * K, 4, WCH), JournalPlace.CHIP),
)
BY_NAME = {each.name: each for each in MAPS}
