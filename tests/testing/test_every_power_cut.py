"""The harness passes what survives, and finds what does not: backends with one mistake each are bricked."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
from simple_slots import HALF, SMALL, Slots

from mgota.core.geometry import Area, Geometry, Region, Slot, uniform
from mgota.core.record import BootRecord, State
from mgota.errors import ReadError, SelectError, TooLargeError
from mgota.flash.banked import BankedFlash
from mgota.flash.norstate import NorState
from mgota.flash.targets.stm32h5 import banks
from mgota.ports import FlashBackend, FlashWriter
from mgota.testing import (
    ALL_MODES,
    CutMode,
    Life,
    NorSimulator,
    PowerCut,
    Report,
    Restarted,
    every_power_cut,
)
from mgota.testing.bench import CellState

# Counting lines takes longer than the proof; others cover the lines.
pytestmark = [pytest.mark.asyncio, pytest.mark.no_cover]

CHIP = banks(128 << 10)
OLD, NEW = bytes(range(1, 252)) * 37, bytes(range(251, 0, -1)) * 29  # over several sectors; no whole units
ATOMIC = (CutMode.NOTHING, CutMode.ALL)


def banked(flash: NorSimulator) -> BankedFlash:
    return BankedFlash(flash, flash.register("option bytes", CHIP.factory), CHIP)


class CopiesWithoutJournal(Slots):
    """What was selected is copied over what runs, and the other way round: a swap through memory, as in the field."""

    async def select(self, slot: Slot) -> None:
        if slot is await self.running_slot():
            return
        held = [self.flash.read_now(area.start, HALF) for area in (self.area(Slot.A), self.area(Slot.B))]
        for area, data in zip((self.area(Slot.A), self.area(Slot.B)), reversed(held), strict=True):
            for sector in self.flash.geometry.sectors_in(area):
                await self.flash.erase(sector)
                await self.flash.program(sector.start, data[sector.start - area.start :][: sector.length])
        await self.bit.write(await self.bit.read() ^ 1)

    def area(self, slot: Slot) -> Area:
        base = Slot.B if self.flash.cell("bit").load() == b"\1\0\0\0" else Slot.A
        return Area(0 if slot is base else HALF, HALF)


class SelectsInFlash(Slots):
    """The selection is a byte in flash, programmed in place: op-atomic cuts do it no harm."""

    def __init__(self, flash: NorSimulator) -> None:
        super().__init__(flash)
        self.sector = flash.geometry.sectors[-1]

    def selections(self) -> int:
        data = self.flash.read_now(self.sector.start, self.sector.length)
        return next((at for at in range(0, len(data), 16) if data[at] != 0x55), len(data)) // 16

    async def running_slot(self) -> Slot:
        if self.running is None:
            self.running = list(Slot)[self.selections() % 2]
        return self.running

    async def select(self, slot: Slot) -> None:
        count = self.selections()
        if list(Slot)[count % 2] is not slot:
            await self.flash.program(self.sector.start + 16 * count, b"\x55" * 16)


class ForgetsToErase(Slots):
    async def open_writer(self, slot: Slot, size: int) -> Any:
        writer, flash = await super().open_writer(slot, size), self.flash
        if slot is Slot.A:
            return writer

        class Writer:
            async def write(self, chunk: bytes) -> None:
                await writer.write(chunk)

            async def finish(self) -> None:
                await writer.finish()
                with pytest.raises(Exception, match="not erased"):
                    await flash.program(0, bytes(16))

            async def abort(self) -> None:
                pass

        return Writer()


class ChangesItsMind(Slots):
    """What runs is read anew each time: it changes while the device runs."""

    async def running_slot(self) -> Slot:
        return list(Slot)[await self.bit.read()]


class FallsBack(Slots):
    """Every fourth boot runs the other slot, as if somebody had asked for it."""

    async def recover(self) -> None:
        cell = self.flash.cell("boots")
        boots = (cell.load() or b"") + b"."
        cell.store(boots)
        self.running = list(Slot)[await self.bit.read()]
        if len(boots) % 4 == 0:
            self.running = self.running.other


class NeverComesUp(Slots):
    async def select(self, slot: Slot) -> None:
        pass


class CannotReturn(Slots):
    async def select(self, slot: Slot) -> None:
        if slot is Slot.A and await self.bit.read():
            raise SelectError("no way back")
        await super().select(slot)


class WritesBoth(Slots):
    """The new image's first sector lands in the running slot as well."""

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        other = self.area(slot.other)
        first = next(self.flash.geometry.sectors_in(other))
        data = bytearray(self.flash.peek(first.start, first.length))
        self.flash.poke(first.start, data[:100] + b"\0" + data[101:])
        return await super().open_writer(slot, size)


class ReadFails(Slots):
    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        if self.flash.cell("bit").load() == b"\1\0\0\0":
            raise ReadError("gone")
        return await super().read(slot, offset, size)


class Draws(Slots):
    """What it does depends on something that no boot keeps."""

    count = 0

    async def recover(self) -> None:
        Draws.count += 1
        if Draws.count < 6:
            self.flash.cell("noise").store(b"x")


async def prove(build: Callable[[NorSimulator], FlashBackend], geometry: Geometry = SMALL, **options: Any) -> Report:
    return await every_power_cut(build, geometry, **{"old": OLD, "new": NEW, **options})


async def test_a_chip_that_swaps_banks_survives_every_cut_and_every_second_one() -> None:
    report = await every_power_cut(banked, CHIP.geometry, recuts=ALL_MODES)
    report.check()
    print(report)
    assert set(report.operations) == set(Life)
    assert min(report.operations.values()) >= 2
    assert report.operations[Life.UPDATE] > 15
    assert report.modes == ALL_MODES
    assert report.cuts > 250
    assert report.recuts > 100
    assert report.runs == 7 + report.cuts + report.recuts
    assert str(report).endswith(", 0 bricks")
    assert "\n" not in str(report)


async def test_every_operation_is_cut_once_in_every_mode_that_it_knows() -> None:
    report = await prove(Slots)
    report.check()
    flash = await prove(Slots, modes=[CutMode.PREFIX])
    atomic = await prove(Slots, modes=[CutMode.ALL])
    assert atomic.cuts == sum(report.operations.values()) - report.operations[Life.FULL]
    assert 0 < flash.cuts < atomic.cuts
    assert report.cuts == (4 + 2 * 3) * flash.cuts + 2 * atomic.cuts  # two modes after one, two and three reads


class SectorSelects(Slots):
    """What boots stands in one sector, erased and programmed; what is read there is not written once more."""

    async def running_slot(self) -> Slot:
        if self.running is None:
            found = await self.flash.read(2 * HALF, 1)
            self.running = Slot.B if found == b"\0" else Slot.A
        return self.running

    async def select(self, slot: Slot) -> None:
        await self.running_slot()
        await self.flash.erase(self.flash.geometry.sectors[-1])
        if slot is Slot.B:
            await self.flash.program(2 * HALF, bytes(16))


@pytest.mark.parametrize("seed", range(4))
async def test_a_selection_that_is_read_and_not_written_once_more_is_found_whatever_is_drawn(seed: int) -> None:
    assert (await prove(SectorSelects, seed=seed)).bricks


class TailEraser(Slots):
    """Its updates take the last sector of the slot that runs."""

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        writer = await super().open_writer(slot, size)
        await self.flash.erase(self.flash.geometry.sectors[7 if slot is Slot.A else 3])
        return writer


async def test_an_update_that_takes_the_end_of_the_other_slot_is_found() -> None:
    report = await prove(TailEraser)
    assert [brick.life for brick in report.bricks] == [Life.FULL]
    assert str(report.bricks[0]).startswith("full slots, without a cut, seed 0: ")


@pytest.mark.parametrize("modes", [ATOMIC, ALL_MODES])
async def test_a_swap_without_a_journal_is_found_to_brick(modes: tuple[CutMode, ...]) -> None:
    report = await prove(CopiesWithoutJournal, modes=modes)
    print(report)
    assert len(report.bricks) > 20
    assert {brick.life for brick in report.bricks} >= {Life.UPDATE, Life.REGRET}
    with pytest.raises(
        AssertionError, match=r"bricks\nupdate, cut at operation \d+ \(erase of 4096 bytes at 0x"
    ) as caught:
        report.check()
    assert f"and {len(report.bricks) - 10} more" in str(caught.value)


async def test_only_torn_operations_find_a_selection_that_is_torn() -> None:
    (await prove(SelectsInFlash, modes=ATOMIC, recuts=ATOMIC)).check()
    report = await prove(SelectsInFlash)
    print(report)
    assert report.bricks
    assert all(brick.cuts[0].mode not in ATOMIC for brick in report.bricks)


async def test_a_brick_is_found_again() -> None:
    report = await prove(SelectsInFlash, seed=7)
    for brick in report.bricks[::5]:
        again = await prove(SelectsInFlash, only=brick)
        assert again.bricks == (brick,)
        assert (again.cuts, again.recuts) == (1, 0)
    assert (await prove(SelectsInFlash, seed=7)).bricks == report.bricks
    assert "seed 7" in str(report.bricks[0])


async def test_a_second_cut_is_found_again() -> None:
    report = await prove(SecondCut, modes=[CutMode.NOTHING], recuts=ATOMIC)
    print(report)
    assert report.bricks
    assert {len(brick.cuts) for brick in report.bricks} == {2}
    brick = report.bricks[-1]
    assert "; again at operation" in str(brick)
    again = await prove(SecondCut, only=brick)
    assert again.bricks == (brick,)
    assert (again.cuts, again.recuts) == (1, 1)


class SecondCut(Slots):
    """A note is written before every boot's work and removed after it: twice in a row without its end is fatal."""

    async def recover(self) -> None:
        note = self.flash.cell("note")
        found = note.load() or b""
        if len(found) == 2:
            self.running = Slot.B if await self.bit.read() == 0 else Slot.A
            return
        if self.flash.cell("boot record").load() is None:
            return
        note.store(found + b"!")
        note.store(b"")


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (ForgetsToErase, "a rule of the chip was broken: the unit at 0x0 was programmed before"),
        (ChangesItsMind, "the running slot became b without a boot"),
        (FallsBack, "slot b runs, and a was selected"),
        (NeverComesUp, "slot a runs, and b was selected"),
        (CannotReturn, "the device is stuck"),
        (WritesBoth, "slot a does not hold the image that the record names"),
        (ReadFails, "the backend failed: ReadError: gone"),
        (Draws, "the operation never came"),
    ],
)
async def test_a_mistake_is_told(build: Callable[[NorSimulator], FlashBackend], what: str) -> None:
    Draws.count = 0
    report = await prove(build, modes=[CutMode.NOTHING])
    told = "\n".join(map(str, report.bricks))
    assert what in told, told
    with pytest.raises(AssertionError):
        report.check()


async def test_a_life_that_fails_without_a_cut_is_told_once() -> None:
    report = await prove(NeverComesUp, lives=[Life.COMMIT, Life.REGRET, Life.SECOND_UPDATE])
    assert (report.cuts, len(report.bricks)) == (0, 1)
    brick = report.bricks[0]
    assert brick.cuts == ()
    assert "without a cut" in str(brick)
    assert (await prove(NeverComesUp, only=brick)).bricks == (brick,)


async def test_a_device_that_does_not_leave_the_factory_is_told() -> None:
    class Spoils(Slots):
        async def select(self, slot: Slot) -> None:
            self.flash.poke(0, b"spoilt")

    with pytest.raises(AssertionError, match="factory: slot a does not hold the image"):
        await prove(Spoils)
    with pytest.raises(TooLargeError):
        await prove(Slots, old=bytes(HALF + 1))


class TrustsWhatItReads(Slots):
    """It refreshes a sector at every boot, out of an atomic copy, which is dropped once the sector reads well."""

    async def recover(self) -> None:
        sector = next(self.flash.geometry.sectors_in(self.area(await self.running_slot())))
        cell = self.flash.cell("copy")
        copy = cell.load()
        if not copy:
            copy = self.flash.read_now(sector.start, sector.length)
            cell.store(copy)
        elif self.flash.read_now(sector.start, sector.length) == copy:
            cell.store(b"")
            return
        self.flash.erase_now(sector)
        self.flash.program_now(sector.start, copy)
        cell.store(b"")


async def test_an_image_on_flash_that_may_read_otherwise_is_a_brick() -> None:
    (await prove(TrustsWhatItReads, modes=ATOMIC)).check()
    report = await prove(TrustsWhatItReads)
    print(report)
    assert {brick.cuts[0].mode for brick in report.bricks} <= {
        CutMode.RANDOM_READS,
        CutMode.VALID_THEN_BLANK,
        CutMode.BLANK_THEN_VALID,
    }
    assert any("may read otherwise" in brick.what for brick in report.bricks)


class ForgetsAll(CellState):
    async def load(self) -> BootRecord | None:
        await super().load()
        return None


class ForgetsImages(CellState):
    async def load(self) -> BootRecord | None:
        record = await super().load()
        return record and replace(record, a=None, b=None)


class NamesAnother(CellState):
    async def load(self) -> BootRecord | None:
        record = await super().load()
        return record and replace(record, a=record.a and replace(record.a, sha256="0" * 64))


class LosesTheTrial(CellState):
    async def store(self, record: BootRecord) -> None:
        if record.state is not State.FAILED:
            await super().store(record)


class IsNeverProven(CellState):
    async def store(self, record: BootRecord) -> None:
        await super().store(replace(record, a=record.a and replace(record.a, proven=False)))


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (ForgetsAll, "the boot record is gone"),
        (ForgetsImages, "slot a runs, and the record knows of no image there"),
        (NamesAnother, "an image in slot a that there never was"),
        (IsNeverProven, "slot a runs an image that was never proven"),
        (LosesTheTrial, "the device goes on .trial. with the record in state TESTING"),
    ],
)
async def test_a_state_store_with_a_mistake_is_found(state: type[CellState], what: str) -> None:
    def make(flash: NorSimulator) -> CellState:
        return state(flash.cell("boot record"))

    with pytest.raises(AssertionError, match=what):
        (await prove(Slots, state=make, modes=[CutMode.NOTHING])).check()


async def test_a_boot_record_on_raw_flash_is_proven_with_its_backend() -> None:
    geometry = uniform(2 * HALF + 3 * 4096, 4096, program_unit=16)
    report = await prove(
        Slots,
        geometry,
        state=lambda flash: NorState(flash, flash.geometry.sectors[-3:]),
        lives=[Life.COMMIT],
        recuts=[CutMode.VALID_THEN_BLANK],
    )
    report.check()
    print(report)
    assert report.recuts > 100


class Swallows(Slots):
    """It takes a power cut for a failure, and goes on; and it works in task groups."""

    async def select(self, slot: Slot) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(super().select, slot)

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        try:
            return await super().open_writer(slot, size)
        except PowerCut as exc:
            raise ReadError("no power") from exc

    async def recover(self) -> None:
        try:
            self.flash.cell("booted").store(b"x")
        except BaseException:
            return


async def test_a_power_cut_is_a_cut_however_it_comes_out() -> None:
    report = await prove(Swallows)
    report.check()


class ResetsItself(Slots):
    """The option write resets the chip."""

    async def select(self, slot: Slot) -> None:
        if await self.bit.read() != int(slot is Slot.B):
            await super().select(slot)
            raise Restarted


async def test_a_selection_may_reset_the_chip() -> None:
    (await prove(ResetsItself)).check()


async def test_build_may_be_a_coroutine_function_and_may_do_something() -> None:
    async def build(flash: NorSimulator) -> Slots:
        boots = flash.register("boots")
        await boots.write(await boots.read() + 1)
        return Slots(flash)

    report = await every_power_cut(build, SMALL)
    report.check()
    assert report.operations[Life.UPDATE] > (await every_power_cut(Slots, SMALL)).operations[Life.UPDATE]


async def test_the_first_image_may_come_from_a_factory() -> None:
    class OnlyStaging(Slots):
        async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
            assert slot is not await self.running_slot()
            return await super().open_writer(slot, size)

    async def factory(flash: NorSimulator, image: bytes) -> None:
        await anyio.lowlevel.checkpoint()
        flash.poke(0, image)

    with pytest.raises(AssertionError):
        await prove(OnlyStaging)
    (await prove(OnlyStaging, factory=factory)).check()
    (await prove(OnlyStaging, factory=lambda flash, image: flash.poke(0, image))).check()


async def test_images_fit_whatever_the_sectors() -> None:
    geometry = Geometry((Region(0, 64 << 10, 16 << 10), Region(64 << 10, 64 << 10, 64 << 10)), program_unit=4)

    class Halves(Slots):
        async def capacity(self) -> int:
            return 64 << 10

        def area(self, slot: Slot) -> Area:
            return Area(0 if slot is Slot.A else 64 << 10, 64 << 10)

    (await every_power_cut(Halves, geometry, modes=[CutMode.RANDOM_BITS])).check()


async def test_it_is_quiet_and_leaves_the_log_as_it_was(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("mgota")
    before = log.level
    await prove(Slots, lives=[Life.UPDATE], modes=[CutMode.ALL])
    assert caplog.records == []
    assert log.level == before


async def test_a_cancellation_is_no_cut() -> None:
    class Waits(Slots):
        async def recover(self) -> None:
            if self.flash.operations.changes > 30:
                await anyio.sleep_forever()

    with anyio.move_on_after(0.2) as scope:
        await prove(Waits)
    assert scope.cancelled_caught
