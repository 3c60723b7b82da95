"""Proves whole lives of a device, from begin to commit or rollback, the state's stores included: runs, counted.

A *place* is one of the sector maps, a sixteenth of the real size, with the boot record beside it; `RECORD`, a memory
that holds images, journal and boot record; or `ESP32`, two slots and otadata. `test_proof_swap` has the swap itself at
full size.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import anyio
from sector_maps import BY_NAME
from tally import Brick, Tally

from mgota.core.esp_table import APP, DATA, OTA_0, OTADATA, Partition, PartitionTable
from mgota.core.geometry import Geometry, uniform
from mgota.core.swap import JournalPlace, SwapLayout, plan_swap
from mgota.flash.copied import CopiedFlash
from mgota.flash.norstate import NorState
from mgota.flash.targets.esp32 import EspFlash
from mgota.ports import FlashBackend, StateStore
from mgota.testing import ALL_MODES, CutMode, Life, NorSimulator, Report, every_power_cut
from mgota.testing.report import Brick as LifeBrick, Cut

NAME = "life"
"""Under which `tools/proof.py` finds a brick of this proof again."""

SCALE = 16
RECORD = "raw record"
ESP32 = "esp32"
WAVERING = (CutMode.VALID_THEN_BLANK, CutMode.BLANK_THEN_VALID)

TWICE = {ESP32: (CutMode.ALL, CutMode.RANDOM_BITS, *WAVERING), "STM32F4 1 MiB": (CutMode.RANDOM_BITS, WAVERING[0])}
"""Where two cuts are made, and modes of the first one: the second one is a wavering one."""

SECTOR = 4 << 10
SLOT = 0x3000
TABLE = PartitionTable(
    (
        Partition(name="otadata", type=DATA, subtype=OTADATA, offset=0x9000, size=0x2000),
        Partition(name="ota_0", type=APP, subtype=OTA_0, offset=0x10000, size=SLOT),
        Partition(name="ota_1", type=APP, subtype=OTA_0 + 1, offset=0x20000, size=SLOT),
    )
)
OLD, NEW = bytes(range(1, 252)) * 21, bytes(range(251, 0, -1)) * 15  # two sectors, and one; no whole units


@dataclass(frozen=True)
class Place:
    """A memory and what is built on it.

    Args:
        geometry: of the memory.
        build: makes the backend, at every boot.
        state: makes the state store; None keeps the record beside the memory.
        images: the old one and the new one; None takes what fits.
    """

    geometry: Geometry
    build: Callable[[NorSimulator], FlashBackend]
    state: Callable[[NorSimulator], StateStore] | None = None
    images: tuple[bytes | None, bytes | None] = field(default=(None, None))


def copied(layout: SwapLayout) -> Callable[[NorSimulator], CopiedFlash]:
    def build(flash: NorSimulator) -> CopiedFlash:
        return CopiedFlash(flash, layout, None if layout.journal else flash.cell("journal"))

    return build


def esp32(backend: Callable[[NorSimulator, PartitionTable], FlashBackend] = EspFlash, unit: int = 1) -> Place:
    geometry = uniform(0x20000 + SLOT, 0x1000, program_unit=unit)
    return Place(geometry, lambda flash: backend(flash, TABLE), images=(OLD, NEW))


def raw_record() -> Place:
    """Journal and boot record both in sectors of the chip: 64 KiB of images and journal, and three sectors more."""
    layout = plan_swap(uniform(64 << 10, SECTOR, program_unit=16), JournalPlace.CHIP)
    geometry = uniform((64 << 10) + 3 * SECTOR, SECTOR, program_unit=16)

    def state(flash: NorSimulator) -> NorState:
        return NorState(flash, geometry.sectors[-3:], slots=(layout.primary, layout.secondary))

    return Place(geometry, copied(layout), state)


def place_called(name: str) -> Place:
    match name:
        case "esp32":
            return esp32()
        case "raw record":
            return raw_record()
        case _:
            layout = BY_NAME[name].layout(SCALE)
            return Place(layout.geometry, copied(layout))


def live(
    place: Place,
    *,
    modes: Iterable[CutMode] = ALL_MODES,
    recuts: Iterable[CutMode] = (),
    lives: Iterable[Life] = tuple(Life),
    seed: int = 0,
    only: LifeBrick | None = None,
) -> Report:
    """`every_power_cut` at this place."""
    old, new = place.images

    async def proof() -> Report:
        return await every_power_cut(
            place.build,
            place.geometry,
            modes=modes,
            recuts=recuts,
            lives=lives,
            seed=seed,
            old=old,
            new=new,
            state=place.state,
            only=only,
        )

    return anyio.run(proof)


def counted(name: str, report: Report) -> Tally:
    """A report as a line of the table."""
    each = (report.cuts + report.recuts) // max(len(report.modes), 1)
    found = [
        Brick(
            NAME,
            json.dumps(
                {
                    "place": name,
                    "life": brick.life,
                    "cuts": [[cut.index, cut.mode, cut.reads] for cut in brick.cuts],
                    "seed": brick.seed,
                }
            ),
            brick.what,
        )
        for brick in report.bricks
    ]
    return Tally(
        runs=report.runs,
        cuts=report.cuts + 2 * report.recuts,
        modes=Counter(dict.fromkeys(report.modes, each)),
        bricks=found,
    )


def replay(recipe: str) -> Tally:
    """A run that ended badly, once more.

    Args:
        recipe: of the brick.
    """
    told = json.loads(recipe)
    cuts = tuple(Cut(index, CutMode(mode), reads=reads) for index, mode, reads in told["cuts"])
    brick = LifeBrick(Life(told["life"]), cuts, told["seed"], "")
    return counted(told["place"], live(place_called(told["place"]), only=brick))
