"""Whole lives of a device whose images change places by copying, the power cut at every operation in every mode.

From begin to commit or rollback, the state's stores included: on the chip (`NorState`) or beside it. Sectors are a
sixteenth of the real ones; `test_proof_swap` has the swap itself at full size.
"""

from collections.abc import Callable
from functools import partial

import anyio
import pytest
from sector_maps import BY_NAME

from mgota.core.geometry import uniform
from mgota.core.swap import JournalPlace, SwapLayout, plan_swap
from mgota.flash.copied import CopiedFlash
from mgota.flash.norstate import NorState
from mgota.testing import ALL_MODES, CutMode, NorSimulator, Report, every_power_cut

pytestmark = pytest.mark.no_cover  # counting lines takes longer than the proof

SECTOR = 4 << 10
BUDGET = {"STM32F4 1 MiB": 800, "STM32F4 2 MiB": 900, "STM32F7 2 MiB": 800, "uniform": 1200, "CH32V307": 1200}
"""Maps, and the least runs that must come of each: a proof must not become empty unnoticed."""


def copied(layout: SwapLayout) -> Callable[[NorSimulator], CopiedFlash]:
    def build(flash: NorSimulator) -> CopiedFlash:
        return CopiedFlash(flash, layout, None if layout.journal else flash.cell("journal"))

    return build


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BUDGET)
def test_a_cut_at_any_operation_of_a_life_loses_nothing(name: str) -> None:
    layout = BY_NAME[name].layout(16)
    report: Report = anyio.run(every_power_cut, copied(layout), layout.geometry)
    print(f"whole lives on {name}: {report}")
    report.check()
    assert report.runs > BUDGET[name]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_boot_record_on_raw_flash_survives_as_well() -> None:
    """Journal and boot record both in sectors of the chip: 64 KiB of images and journal, and three sectors more."""
    layout = plan_swap(uniform(64 << 10, SECTOR, program_unit=16), JournalPlace.CHIP)
    geometry = uniform((64 << 10) + 3 * SECTOR, SECTOR, program_unit=16)

    def state(flash: NorSimulator) -> NorState:
        return NorState(flash, geometry.sectors[-3:], slots=(layout.primary, layout.secondary))

    report = anyio.run(partial(every_power_cut, copied(layout), geometry, state=state))
    print(f"whole lives with the boot record on raw flash: {report}")
    report.check()
    assert report.runs > 1500


def test_modes_are_all_eight() -> None:
    assert set(ALL_MODES) == set(CutMode)
    assert len(ALL_MODES) == 8
