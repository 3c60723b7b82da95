"""The batteries pass everything in the repository that implements a Protocol, and fail whatever breaks one promise."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio.lowlevel
import pytest
from memory_device import MemoryFlash, MemoryState, Power
from simple_slots import HALF, SMALL, Slots

from mgota.core.geometry import Geometry, Region, Sector, Slot, uniform
from mgota.core.record import BootRecord, decode_record, encode_record
from mgota.core.swap import JournalPlace, plan_swap
from mgota.errors import FlashError, ReadError, SelectError, StateError, TooLargeError, TransferError
from mgota.flash.banked import BankedFlash
from mgota.flash.copied import CopiedFlash
from mgota.flash.custom import CustomBackend
from mgota.flash.norstate import NorState
from mgota.flash.targets.stm32h5 import banks, stm32h5
from mgota.flash.writer import NorWriter, reopened
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.ports import FlashWriter, ReadableBuffer
from mgota.testing import (
    NorSimulator,
    Restarted,
    check_flash_backend,
    check_nor_flash,
    check_state_store,
)
from mgota.testing.bench import CellState

pytestmark = pytest.mark.asyncio

HOLES = Geometry((Region(0, 64, 32), Region(64, 128, 64), Region(256, 64, 64)), program_unit=4, erased=b"\x39\xe3")
GEOMETRIES = [
    HOLES,
    uniform(64, 16),
    uniform(64, 16, program_unit=16),
    uniform(4096, 4096, program_unit=256),
    Geometry((Region(512, 64, 8), Region(576, 8, 8)), program_unit=8),
]


# --- NorFlash


@pytest.mark.parametrize("geometry", GEOMETRIES)
async def test_a_simulated_memory_keeps_its_promises(geometry: Geometry, tmp_path: Path) -> None:
    await check_nor_flash(lambda: NorSimulator(geometry))
    await check_nor_flash(lambda: NorSimulator.on_file(tmp_path / "flash", geometry))

    async def used() -> NorSimulator:
        flash = NorSimulator(geometry)
        for sector in geometry.sectors:
            flash.poke(sector.start, bytes(sector.length))
        return flash

    await check_nor_flash(used)


class ErasesToZero(NorSimulator):
    async def erase(self, sector: Sector) -> None:
        await super().erase(sector)
        self._medium.erase(sector)
        self._cover_with_zeros(sector)

    def _cover_with_zeros(self, sector: Sector) -> None:
        self.poke(sector.start, bytes(sector.length))


class ErasesTheNextToo(NorSimulator):
    async def erase(self, sector: Sector) -> None:
        await super().erase(sector)
        for other in self.geometry.sectors:
            if other.start == sector.end:
                await super().erase(other)


class ErasesTheOneBeforeToo(NorSimulator):
    async def erase(self, sector: Sector) -> None:
        await super().erase(sector)
        for other in self.geometry.sectors:
            if other.end == sector.start:
                await super().erase(other)


class ErasesAnything(NorSimulator):
    async def erase(self, sector: Sector) -> None:
        await super().erase(self.geometry.sectors[self.geometry.index_at(sector.start)])


class KeepsTheBuffer(NorSimulator):
    held: tuple[int, ReadableBuffer] | None = None

    async def program(self, offset: int, data: ReadableBuffer) -> None:
        await super().program(offset, data)
        self.held = (offset, data)

    async def read(self, offset: int, size: int) -> bytes:
        if self.held and memoryview(self.held[1]).nbytes:
            self.poke(*self.held)
        return await super().read(offset, size)


class ReadsAligned(NorSimulator):
    async def read(self, offset: int, size: int) -> bytes:
        return await super().read(offset - offset % self.geometry.program_unit, size)


class ReadsMore(NorSimulator):
    async def read(self, offset: int, size: int) -> bytes:
        return await super().read(offset, size) + b"\0"


class ReadsNothingBadly(NorSimulator):
    async def read(self, offset: int, size: int) -> bytes:
        return await super().read(offset, size or 1)


class ReadsBeyond(NorSimulator):
    async def read(self, offset: int, size: int) -> bytes:
        try:
            return await super().read(offset, size)
        except ReadError:
            return self.geometry.blank(size)


class FailsInItsOwnWords(NorSimulator):
    async def read(self, offset: int, size: int) -> bytes:
        try:
            return await super().read(offset, size)
        except ReadError as exc:
            raise IndexError(str(exc)) from exc


class ProgramsTwice(NorSimulator):
    async def program(self, offset: int, data: ReadableBuffer) -> None:
        try:
            await super().program(offset, data)
        except FlashError as exc:
            if "not erased" not in str(exc):
                raise
            self.poke(offset, data)


class RefusesTooLate(NorSimulator):
    async def program(self, offset: int, data: ReadableBuffer) -> None:
        if self.programmed(offset, len(data)) is not None:
            self.poke(offset, data)
        await super().program(offset, data)


class ProgramsParts(NorSimulator):
    async def program(self, offset: int, data: ReadableBuffer) -> None:
        try:
            await super().program(offset, data)
        except FlashError as exc:
            if "whole units" not in str(exc):
                raise


class ProgramsOneSector(NorSimulator):
    async def program(self, offset: int, data: ReadableBuffer) -> None:
        self._check_range(offset, len(data), FlashError)
        end = next(sector.end for sector in self.geometry.sectors if sector.end > offset)
        await super().program(offset, memoryview(data)[: end - offset])


class ProgramsBeyond(NorSimulator):
    async def program(self, offset: int, data: ReadableBuffer) -> None:
        try:
            await super().program(offset, data)
        except FlashError as exc:
            if "not all inside" not in str(exc):
                raise


class MindsNothing(NorSimulator):
    async def program(self, offset: int, data: ReadableBuffer) -> None:
        await super().program(offset, data)
        if not len(data):
            self.poke(offset, bytes(self.geometry.program_unit))


class NoGeometry(NorSimulator):
    geometry = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (ErasesToZero, "an erased sector reads as the erased pattern|programmed before"),
        (ErasesTheNextToo, "an erase ends where its sector ends|an erase begins"),
        (ErasesTheOneBeforeToo, "an erase ends where its sector ends|an erase begins"),
        (ErasesAnything, "only sectors are erased"),
        (KeepsTheBuffer, "what was programmed is read|an erased sector reads"),
        (ReadsAligned, "a read has any offset"),
        (ReadsMore, "an erased sector reads"),
        (ReadsNothingBadly, "a read has any offset"),
        (ReadsBeyond, "what is not all there is not read: a ReadError should come, and nothing did"),
        (FailsInItsOwnWords, r"what is not all there is not read: a ReadError should come, and IndexError"),
        (ProgramsTwice, "programmed once per erase: a ProgramError should come, and nothing did"),
        (RefusesTooLate, "programmed once per erase: it changed something all the same"),
        (ProgramsParts, "only whole units are programmed: a ProgramError should come"),
        (ProgramsOneSector, "a program and a read may span two sectors"),
        (ProgramsBeyond, "what is not there is not programmed"),
        (MindsNothing, "a program of no units changes nothing"),
        (NoGeometry, "the geometry is a Geometry"),
    ],
)
async def test_a_memory_that_breaks_a_promise_fails(broken: type[NorSimulator], promise: str) -> None:
    with pytest.raises((AssertionError, FlashError), match=promise):
        await check_nor_flash(lambda: broken(HOLES))


async def test_what_lacks_a_call_is_no_memory() -> None:
    with pytest.raises(AssertionError, match="has geometry, read, erase and program"):
        await check_nor_flash(object)  # type: ignore[arg-type]


# --- FlashBackend


async def test_a_chip_with_two_banks_keeps_its_promises(tmp_path: Path) -> None:
    chip = banks(128 << 10)
    flash = NorSimulator(chip.geometry)
    await check_flash_backend(lambda: BankedFlash(flash, flash.register("option bytes"), chip))
    await check_flash_backend(lambda: stm32h5(tmp_path / "flash", size=256 << 10).backend)


@pytest.mark.parametrize("place", [JournalPlace.CHIP, JournalPlace.HOST])
async def test_a_chip_that_copies_keeps_its_promises(place: JournalPlace) -> None:
    flash = NorSimulator(uniform(128 << 10, 4096, program_unit=16))
    layout = plan_swap(flash.geometry, place)
    await check_flash_backend(lambda: CopiedFlash(flash, layout, None if layout.journal else flash.cell("journal")))


async def test_slots_as_files_keep_their_promises(tmp_path: Path) -> None:
    await check_flash_backend(lambda: FileSlots(tmp_path / "slots"))


async def test_the_memory_device_keeps_its_promises() -> None:
    flash = MemoryFlash(Power())

    def boot() -> MemoryFlash:
        flash.running = flash.selected
        return flash

    await check_flash_backend(boot)


@pytest.mark.parametrize("limited", [True, False])
async def test_a_backend_of_coroutines_keeps_its_promises(limited: bool) -> None:
    images, boots = [bytearray(b"factory"), bytearray()], [0]

    async def boot() -> CustomBackend:
        await anyio.lowlevel.checkpoint()
        runs = boots[0]

        async def begin(size: int) -> None:
            images[1 - runs].clear()

        async def write(chunk: ReadableBuffer) -> None:
            images[1 - runs].extend(chunk)

        async def end() -> None:
            boots[0] = 1 - runs

        async def back() -> None:
            boots[0] = 1 - runs

        async def read(offset: int, size: int) -> bytes:
            return bytes(images[1 - runs][offset : offset + size])

        async def running() -> str:
            return "ab"[runs]

        limit = 8192 if limited else None
        return CustomBackend(begin, write, end, read, rollback=back, running=running, max_image=limit)

    await check_flash_backend(boot, blank=False)


def slots() -> Callable[[], Slots]:
    flash = NorSimulator(SMALL)
    return lambda: Slots(flash)


async def test_the_simplest_backend_keeps_its_promises() -> None:
    await check_flash_backend(slots())


async def test_a_selection_may_reset_the_chip() -> None:
    class Resets(Slots):
        async def select(self, slot: Slot) -> None:
            await super().select(slot)
            raise Restarted

    flash = NorSimulator(SMALL)
    await check_flash_backend(lambda: Resets(flash))


class StrangeChecksum(Slots):
    crc = "md5"


class Wavers(Slots):
    async def running_slot(self) -> Slot:
        self.running = Slot.A if self.running is None else self.running.other
        return self.running


class RunsTheWrongType(Slots):
    async def running_slot(self) -> Any:
        return (await super().running_slot()).value


class TakesNothing(Slots):
    async def capacity(self) -> int:
        return 0


class NeverBlank(Slots):
    async def extent(self, slot: Slot) -> int:
        return HALF


class AlwaysBlank(Slots):
    async def extent(self, slot: Slot) -> int:
        return 0


class ByWriter(Slots):
    """Its writer is another one."""

    writer: type["Faithful"]

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        return self.writer(await super().open_writer(slot, size), self)


class Faithful:
    def __init__(self, inner: FlashWriter, slots: Slots) -> None:
        self.inner = inner
        self.slots = slots

    async def write(self, chunk: ReadableBuffer) -> None:
        await self.inner.write(chunk)

    async def finish(self) -> None:
        await self.inner.finish()

    async def abort(self) -> None:
        await self.inner.abort()


class Hoards(Faithful):
    def __init__(self, inner: FlashWriter, slots: Slots) -> None:
        super().__init__(inner, slots)
        self.held = list[ReadableBuffer]()

    async def write(self, chunk: ReadableBuffer) -> None:
        self.held.append(chunk)

    async def finish(self) -> None:
        for chunk in self.held:
            await self.inner.write(chunk)
        await self.inner.finish()


class LosesTheRest(Faithful):
    async def finish(self) -> None:
        pass


class SkipsSmallChunks(Faithful):
    async def write(self, chunk: ReadableBuffer) -> None:
        if len(chunk) > 1:
            await self.inner.write(chunk)

    async def finish(self) -> None:
        pass


class AbortRaises(Faithful):
    async def abort(self) -> None:
        raise FlashError("never mind")


class AbortsOnce(Faithful):
    aborted = False

    async def abort(self) -> None:
        if self.aborted:
            raise RuntimeError("twice")
        self.aborted = True


def by(writer: type[Faithful]) -> type[Slots]:
    return type(writer.__name__, (ByWriter,), {"writer": writer})


class StaysLocked(Slots):
    """A writer that was given up blocks the next one."""

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        flash = self.flash
        if flash.cell("locked").load() == b"yes":
            raise FlashError("somebody else writes")
        flash.cell("locked").store(b"yes")

        class Locks(Faithful):
            async def finish(self) -> None:
                flash.cell("locked").store(b"no")
                await super().finish()

        return Locks(await super().open_writer(slot, size), self)


class WritesOnce(Slots):
    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        if await self.extent(slot):
            return Blind(await super().open_writer(slot, size), self)
        return await super().open_writer(slot, size)


class Blind(Faithful):
    async def write(self, chunk: ReadableBuffer) -> None:
        pass

    async def finish(self) -> None:
        pass


class Spills(Slots):
    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        self.flash.poke(self.area(slot.other).start, size.to_bytes(4, "big"))
        return await super().open_writer(slot, size)


class ReadsFromTheStart(Slots):
    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        return await self.flash.read(self.area(slot).start, size)


class ReadsOn(Slots):
    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        return await self.flash.read(self.area(slot).start + offset, size)


class ReadsShort(Slots):
    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        return await super().read(slot, offset, min(size, HALF - offset))


class TakesEverything(Slots):
    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        return NorWriter(self.flash, self.area(slot), min(size, HALF))


class RefusesTooLate2(Slots):
    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        self.flash.erase_now(next(self.flash.geometry.sectors_in(self.area(slot))))
        return await super().open_writer(slot, size)


class RefusesItsCapacity(Slots):
    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        if size == HALF:
            raise TooLargeError(size, HALF - 1)
        return await super().open_writer(slot, size)


class SelectsNothing(Slots):
    async def select(self, slot: Slot) -> None:
        pass


class Toggles(Slots):
    async def select(self, slot: Slot) -> None:
        await self.bit.write(1 - await self.bit.read())


class SelectsAtOnce(Slots):
    async def select(self, slot: Slot) -> None:
        await super().select(slot)
        self.running = slot


class SelectsOnce(Slots):
    """The selection is used up by the boot, as a "try once" flag is."""

    async def running_slot(self) -> Slot:
        if self.running is None:
            self.running = list(Slot)[await self.bit.read()]
            await self.bit.write(0)
        return self.running


class CannotSelect(Slots):
    async def select(self, slot: Slot) -> None:
        raise SelectError("no")


class SpoilsTheOther(Slots):
    async def select(self, slot: Slot) -> None:
        await super().select(slot)
        area = self.area(slot.other)
        self.flash.erase_now(next(self.flash.geometry.sectors_in(area)))


class GoesOn(Slots):
    """Goes on with an image, as it should."""

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        return reopened(self.flash, self.area(slot), size, mark)


class GoesOnTooLate(GoesOn):
    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        return (await super().reopen_writer(slot, size, mark))[0], mark + 1


class GoesOnInTheSector(GoesOn):
    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        return (await super().reopen_writer(slot, size, mark))[0], max(mark - 1, 0)


class GoesOnBlank(GoesOn):
    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        for sector in self.flash.geometry.sectors_in(self.area(slot)):
            self.flash.erase_now(sector)
        return await super().reopen_writer(slot, size, mark)


class CountsTooMuch(Faithful):
    async def sync(self) -> int:
        return 1 << 30


class RecoversOnce(Slots):
    recovered = False

    async def recover(self) -> None:
        if self.recovered:
            raise FlashError("twice")
        self.recovered = True


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (StrangeChecksum, "the checksum has a name that is known"),
        (Wavers, "the running slot stays the same"),
        (RunsTheWrongType, "the running slot is a Slot"),
        (TakesNothing, "the staging slot can take something"),
        (NeverBlank, "a blank slot has no extent"),
        (AlwaysBlank, "an image that was written is inside the extent"),
        (by(Hoards), "what was written is read, however it came"),
        (by(LosesTheRest), "what was written is read, however it came"),
        (by(SkipsSmallChunks), "what was written is read, however it came"),
        (by(AbortRaises), "abort never raises, and FlashError"),
        (by(AbortsOnce), "abort never raises, and RuntimeError"),
        (StaysLocked, "somebody else writes"),
        (WritesOnce, "a slot is written again"),
        (Spills, "writing leaves the running slot alone"),
        (ReadsFromTheStart, "a read has any offset"),
        (ReadsOn, "what is not all in the slot is not read"),
        (ReadsShort, "what is not all in the slot is not read"),
        (TakesEverything, "an image beyond the capacity is refused"),
        (RefusesTooLate2, "an image that is refused for its size changes nothing"),
        (RefusesItsCapacity, "does not fit"),
        (SelectsNothing, "the slot that was selected runs after a boot"),
        (Toggles, "to select the running slot changes nothing"),
        (SelectsAtOnce, "the running slot is fixed at boot"),
        (SelectsOnce, "what was selected stays so over a second boot"),
        (CannotSelect, "a slot with an image is selected, and SelectError"),
        (SpoilsTheOther, "both images are whole after a selection"),
        (GoesOnTooLate, "an image goes on no later"),
        (GoesOnInTheSector, "bytes came"),
        (GoesOnBlank, "what was marked is still there"),
        (by(CountsTooMuch), "a sync counts what is durable"),
        (RecoversOnce, "twice"),
    ],
)
async def test_a_backend_that_breaks_a_promise_fails(broken: Callable[[NorSimulator], Slots], promise: str) -> None:
    flash = NorSimulator(SMALL)
    with pytest.raises((AssertionError, FlashError, TooLargeError, TransferError), match=promise):
        await check_flash_backend(lambda: broken(flash))


async def test_a_backend_that_goes_on_with_an_image_keeps_its_promises() -> None:
    flash = NorSimulator(SMALL)
    await check_flash_backend(lambda: GoesOn(flash))


async def test_a_cancellation_that_spoils_the_memory_is_found() -> None:
    class NotShielded(Faithful):
        async def write(self, chunk: ReadableBuffer) -> None:
            try:
                await anyio.lowlevel.checkpoint()
            except BaseException:
                self.slots.flash.cell("stuck").store(b"yes")
                raise
            await super().write(chunk)

    class Sticks(ByWriter):
        writer = NotShielded

        async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
            if self.flash.cell("stuck").load():
                raise FlashError("stuck")
            return await super().open_writer(slot, size)

    flash = NorSimulator(SMALL)
    with pytest.raises(FlashError, match="stuck"):
        await check_flash_backend(lambda: Sticks(flash))


async def test_what_lacks_a_call_is_no_backend() -> None:
    class Half:
        async def recover(self) -> None:
            pass

    with pytest.raises(AssertionError, match="has all of its calls"):
        await check_flash_backend(Half)  # type: ignore[arg-type]


# --- StateStore


async def test_a_record_in_a_file_keeps_its_promises(tmp_path: Path) -> None:
    path = tmp_path / "state"
    await check_state_store(lambda: FileState(path), damage=lambda: path.write_bytes(b"rubbish"))


async def test_a_record_in_a_cell_keeps_its_promises() -> None:
    flash = NorSimulator(SMALL)
    cell = flash.cell("record")

    async def damage() -> None:
        await anyio.lowlevel.checkpoint()
        cell.store(b"rubbish")

    await check_state_store(lambda: CellState(flash.cell("record")), damage=damage)


@pytest.mark.parametrize("sector", [4096, 16384])
async def test_a_record_on_raw_flash_keeps_its_promises(sector: int) -> None:
    flash = NorSimulator(uniform(3 * sector, sector, program_unit=16))

    def damage() -> None:
        for each in flash.geometry.sectors:
            flash.poke(each.start, bytes(64))

    await check_state_store(lambda: NorState(flash, flash.geometry.sectors), damage=damage)
    assert not flash.operations.broken_rules


async def test_the_memory_state_keeps_its_promises() -> None:
    state = MemoryState(Power())
    await check_state_store(lambda: state, damage=state.damage)


class Held:
    """A store of its own bytes, for those that break a promise; what survives a boot is `data`."""

    def __init__(self, kept: dict[str, bytes]) -> None:
        self.kept = kept

    async def load(self) -> BootRecord | None:
        return decode_record(self.kept["it"]) if "it" in self.kept else None

    async def store(self, record: BootRecord) -> None:
        self.kept["it"] = encode_record(record)


class NeverNone(Held):
    async def load(self) -> BootRecord | None:
        return await super().load() or BootRecord()


class ForgetsTheReason(Held):
    async def store(self, record: BootRecord) -> None:
        await super().store(replace(record, reason=None))


class CutsLongOnes(Held):
    async def store(self, record: BootRecord) -> None:
        await super().store(replace(record, reason=record.reason and record.reason[:400]))


class TakesFiftyRecords(Held):
    async def store(self, record: BootRecord) -> None:
        if record.revision < 50:
            await super().store(record)


class SurvivesNothing(Held):
    def __init__(self, kept: dict[str, bytes]) -> None:
        super().__init__({})


class EncodesTooLate(Held):
    async def store(self, record: BootRecord) -> None:
        self.kept.pop("it", None)
        await super().store(record)


class StoresHalf(Held):
    async def store(self, record: BootRecord) -> None:
        try:
            await super().store(record)
        except StateError:
            await super().store(replace(record, reason=None))
            raise


class FailsStrangely(Held):
    async def store(self, record: BootRecord) -> None:
        try:
            await super().store(record)
        except StateError as exc:
            raise ValueError(str(exc)) from exc


class TakesDamageForNothing(Held):
    async def load(self) -> BootRecord | None:
        try:
            return await super().load()
        except StateError:
            return None


class DecodesStrangely(Held):
    async def load(self) -> BootRecord | None:
        try:
            return await super().load()
        except StateError as exc:
            raise KeyError("it") from exc


class DamageIsForEver(Held):
    async def store(self, record: BootRecord) -> None:
        if self.kept.get("it") != b"rubbish":
            await super().store(record)


@pytest.mark.parametrize(
    ("broken", "promise"),
    [
        (NeverNone, "a store that holds nothing loads None"),
        (ForgetsTheReason, "what was stored is loaded"),
        (CutsLongOnes, "what was stored is loaded"),
        (TakesFiftyRecords, "what was stored is loaded"),
        (SurvivesNothing, "what was stored is loaded after a boot"),
        (EncodesTooLate, "entirely or not at all"),
        (StoresHalf, "entirely or not at all"),
        (FailsStrangely, "is a StateError, and ValueError"),
        (TakesDamageForNothing, "what cannot be read is no record, and not none either"),
        (DecodesStrangely, "a StateError should come, and KeyError"),
        (DamageIsForEver, "damaged"),
    ],
)
async def test_a_store_that_breaks_a_promise_fails(broken: type[Held], promise: str) -> None:
    kept: dict[str, bytes] = {}
    with pytest.raises((AssertionError, StateError), match=promise):
        await check_state_store(lambda: broken(kept), damage=lambda: kept.update(it=b"rubbish"))


async def test_a_store_without_limits_is_a_store() -> None:
    kept = list[BootRecord]()

    class Unlimited:
        async def load(self) -> BootRecord | None:
            return kept[-1] if kept else None

        async def store(self, record: BootRecord) -> None:
            kept.append(record)

    await check_state_store(Unlimited)
