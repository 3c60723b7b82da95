"""An ESP32's whole life, with the power cut at every operation; many cuts in a row; and backends that must fail.

What may happen to the two sectors of otadata is explored without a limit in `tests/core/test_esp_select_model.py`. Here
the bytes are real: a simulated memory, torn in all eight ways, under a real `Device`.
"""

from collections import Counter
from random import Random

import pytest

from mgota.core.boot import begin_steps
from mgota.core.esp_table import APP, DATA, OTA_0, OTADATA, Partition, PartitionTable
from mgota.core.geometry import Slot, uniform
from mgota.core.otadata import ENTRY_SIZE, decode_entry, encode_entry, ota_entry, winner
from mgota.errors import FlashError
from mgota.flash.targets.esp32 import EspFlash
from mgota.testing import ALL_MODES, Life, NorSimulator, PowerCut, PowerSupply, every_power_cut

pytestmark = pytest.mark.asyncio

SLOT = 0x3000
TABLE = PartitionTable(
    (
        Partition(name="otadata", type=DATA, subtype=OTADATA, offset=0x9000, size=0x2000),
        Partition(name="ota_0", type=APP, subtype=OTA_0, offset=0x10000, size=SLOT),
        Partition(name="ota_1", type=APP, subtype=OTA_0 + 1, offset=0x20000, size=SLOT),
    )
)
OLD, NEW = bytes(range(1, 252)) * 21, bytes(range(251, 0, -1)) * 19  # two sectors; no whole units


def geometry(unit: int = 1):
    return uniform(0x20000 + SLOT, 0x1000, program_unit=unit)


def build(flash: NorSimulator) -> EspFlash:
    return EspFlash(flash, TABLE)


class Naive(EspFlash):
    """As ESP-IDF does: one entry, into the sector that loses; what is selected is left alone, and nothing recovered."""

    async def recover(self) -> None:
        pass

    async def select(self, slot: Slot) -> None:
        if slot is await self.running_slot():
            return
        sectors = self._place.sectors
        entries = [decode_entry(await self._flash.read(sector.start, ENTRY_SIZE)) for sector in sectors]
        best, number = winner(entries), list(Slot).index(slot)
        seq = max((entry.seq for entry in entries if entry.valid), default=0)
        sector = sectors[0 if best is None else 1 - best]
        await self._flash.erase(sector)
        await self._flash.program(sector.start, encode_entry(ota_entry(seq + 1 + (number - seq) % 2)))


@pytest.mark.parametrize("unit", [1, 16])
async def test_no_cut_of_a_whole_life_bricks_it(unit: int) -> None:
    report = await every_power_cut(build, geometry(unit), old=OLD, new=NEW)
    print(f"esp32, unit {unit}: {report}")
    report.check()
    assert report.cuts > 300


async def test_no_two_cuts_of_a_whole_life_brick_it() -> None:
    import time
    t = time.time()
    report = await every_power_cut(build, geometry(), old=OLD, new=NEW, recuts=ALL_MODES)
    print(f"esp32: {report}", time.time() - t)
    report.check()


async def test_naive() -> None:
    report = await every_power_cut(Naive, geometry(), old=OLD, new=NEW, recuts=ALL_MODES) if 0 else await every_power_cut(lambda f: Naive(f, TABLE), geometry(), old=OLD, new=NEW, recuts=ALL_MODES)
    print(f"naive: {report}")
    for b in report.bricks[:10]: print(b)
