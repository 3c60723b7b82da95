"""Every power cut of a gateway-held update, of both ends together and of each alone: what runs afterwards is one whole
image that was proven, or the new one on its trial.

Both ends: gateway and chip are one simulated memory, cut at every operation in eight ways. Two of them, an operation
that ended and one that did not begin, are what a cut of the gateway alone leaves of the chip. What runs is read from
the chip, and nowhere else.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import pytest
from wired_chips import Chip, GatewaySlots, Summing

from mgota import Device, OtaSession, Slot, boot_check
from mgota.core.boot import Verdict
from mgota.core.geometry import Geometry, Region
from mgota.core.held import HeldNote
from mgota.core.record import State
from mgota.errors import FlashError, LinkError
from mgota.flash.held import HeldFlash
from mgota.flash.wired import PlainChip
from mgota.session import provision
from mgota.testing import ALL_MODES, CutMode, Life, NorSimulator, PowerSupply, every_power_cut
from mgota.testing.bench import CellState, Restarted
from mgota.testing.cuts import firmware
from mgota.trial import commit, rollback

pytestmark = pytest.mark.asyncio

CHIP = Geometry((Region(0, 128, 64), Region(128, 128, 128)), program_unit=8)
BOTH = Geometry((*CHIP.regions, Region(256, 512, 256)), program_unit=8)
PROGRAMMING = (Life.COMMIT, Life.NO_COMMIT)
"""The lives in which the chip is programmed, forth and back; the others are these, and what the gateway does alone."""


class WhatRuns(HeldFlash):
    """The running image is read from the chip."""

    def __init__(self, flash: NorSimulator, chip: Chip) -> None:
        super().__init__(GatewaySlots(flash, 256, 256), PlainChip(chip.connect, CHIP), flash.cell("held"))
        self._wired = chip
        self._booted = False

    async def recover(self) -> None:
        await super().recover()
        assert self._wired.runs
        self._booted = True

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        if self._booted and slot is await self.running_slot():
            return await self._wired.flash.read(offset, size)
        return await super().read(slot, offset, size)


@pytest.mark.parametrize("kind", [Chip, Summing])
async def test_gateway_and_chip_lose_power_together_at_every_operation(kind: type[Chip]) -> None:
    few = [CutMode.NOTHING, CutMode.PREFIX]
    modes, lives = (ALL_MODES, PROGRAMMING) if kind is Summing else (few, tuple(Life))
    report = await every_power_cut(lambda flash: WhatRuns(flash, kind(flash, CHIP)), BOTH, modes=modes, lives=lives)
    report.check()
    assert report.runs > 140


class Believing(WhatRuns):
    """Forgets that programming was begun."""

    async def _store(self, note: HeldNote) -> None:
        await super()._store(replace(note, doubt=False))


async def test_a_chip_that_was_cut_off_is_not_believed() -> None:
    modes = [CutMode.VALID_THEN_BLANK]
    report = await every_power_cut(
        lambda flash: Believing(flash, Summing(flash, CHIP)), BOTH, modes=modes, lives=[Life.COMMIT]
    )
    assert report.bricks, "what a cut tore read right at first, and was left as it was: the proof has to see that"


OLD, NEW = firmware("1", 200), firmware("2", 150)


class Line:
    async def reset(self) -> None:
        raise Restarted


class Gateway:
    """A gateway and a chip with a power supply of its own, which runs the old image."""

    def __init__(self, kind: type[Chip] = Summing) -> None:
        self.disk = NorSimulator(Geometry((Region(256, 512, 256),), program_unit=8))
        self.chip = kind(NorSimulator(CHIP), CHIP)
        self.chip.power = PowerSupply(self.chip.flash, seed=7)

    def start(self) -> Device:
        flash = HeldFlash(GatewaySlots(self.disk, 256, 256), PlainChip(self.chip.connect, CHIP), self.disk.cell("held"))
        return Device(flash=flash, state=CellState(self.disk.cell("state")), reset=Line())

    async def boot(self) -> tuple[Device, Verdict]:
        for _ in range(6):
            device = self.start()
            try:
                return device, await boot_check(device)
            except Restarted:
                pass
        raise AssertionError("it does not settle")

    async def until_it_boots(self) -> tuple[Device, Verdict]:
        """The next start, where the chip was away: its power is back."""
        try:
            return await self.boot()
        except FlashError:
            assert not self.chip.runs
            self.chip.away_for = 0
            return await self.boot()

    async def update(self, image: bytes) -> None:
        device, _ = await self.boot()
        with suppress(Restarted):
            async with OtaSession(device, size=len(image)) as ota:
                await ota.write(image)
                await ota.activate(await ota.seal())
            raise AssertionError("it did not reset")

    def runs(self, image: bytes) -> bool:
        return self.chip.runs and self.chip.flash.peek(0, len(image)) == image and not self.chip.flash.unstable


async def made(kind: type[Chip] = Summing) -> Gateway:
    gateway = Gateway(kind)
    await provision(gateway.start(), one(OLD), size=len(OLD))
    await gateway.boot()
    assert gateway.runs(OLD)
    return gateway


async def one(image: bytes) -> AsyncIterator[bytes]:
    yield image


async def came_up(gateway: Gateway) -> None:
    device, verdict = await gateway.until_it_boots()
    assert verdict is Verdict.TRIAL
    assert gateway.runs(NEW)
    assert await commit(device)


async def went_back(gateway: Gateway) -> None:
    device, verdict = await gateway.until_it_boots()
    assert verdict is Verdict.RUN
    assert gateway.runs(OLD)
    record, _ = await device.load()
    assert record
    assert record.state is State.CONFIRMED


async def on_the_way(*, back: bool) -> tuple[Gateway, PowerSupply]:
    """Just before the chip is programmed: with the new image, or with the old one again."""
    gateway = await made()
    await gateway.update(NEW)
    if back:
        await came_up(gateway)
        with pytest.raises(Restarted):
            await rollback(gateway.start())
    assert gateway.chip.power
    return gateway, gateway.chip.power


@pytest.mark.parametrize("back", [False, True], ids=["update", "rollback"])
@pytest.mark.parametrize("away", [0, 1, 100], ids=["comes back", "in a while", "until the next start"])
async def test_the_chip_alone_loses_power_while_it_is_programmed(away: int, back: bool) -> None:
    gateway, power = await on_the_way(back=back)
    before = power.operations.changes
    await (went_back if back else came_up)(gateway)
    count = power.operations.changes - before
    assert count > 4
    for index in range(count):
        for mode in ALL_MODES if away == 0 else (CutMode.NOTHING, CutMode.VALID_THEN_BLANK):
            gateway, power = await on_the_way(back=back)
            gateway.chip.away_for = away
            power.cut_at(index, mode)
            await (went_back if back else came_up)(gateway)
            assert power.last, "it was not cut"


async def test_a_chip_that_stays_away_is_no_verdict_on_its_image() -> None:
    gateway, power = await on_the_way(back=False)
    power.cut_at(1, CutMode.PREFIX)
    gateway.chip.away_for = 1000
    for _ in range(4):
        with pytest.raises(LinkError, match="no power"):
            await gateway.boot()
    gateway.chip.away_for = 0
    await came_up(gateway)
