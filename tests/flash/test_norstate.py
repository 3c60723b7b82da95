"""The boot record on raw flash."""

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import pytest

from mgota import Device, OtaSession, Slot, State, boot_check, commit
from mgota.core.boot import Verdict
from mgota.core.geometry import Area, Sector, uniform
from mgota.core.keychain import KeyChain
from mgota.core.record import BootRecord, SlotImage, encode_record
from mgota.core.recordlog import Kind as LogKind, encode_entry
from mgota.core.swap import JournalPlace, SwapState, plan_swap
from mgota.errors import ConfigError, StateError, UnknownStateError
from mgota.flash.copied import CopiedFlash
from mgota.flash.norstate import NorState
from mgota.ports import StateStore
from mgota.session import provision
from mgota.testing import ALL_MODES, BadFlash, CutMode, Flaw, Kind, NorSimulator, Operation, PowerCut, PowerSupply

pytestmark = pytest.mark.asyncio

GEOMETRY = uniform(3 * 4096, 4096, program_unit=256)
SECTORS = GEOMETRY.sectors
RECORD = BootRecord(revision=1, a=SlotImage(size=9, image_size=9, sha256="ab" * 32, proven=True))


def memory() -> NorSimulator:
    return NorSimulator(GEOMETRY)


def state(flash: NorSimulator) -> NorState:
    """As a process that has just started sees it."""
    return NorState(flash, SECTORS)


def record(revision: int) -> BootRecord:
    return replace(RECORD, revision=revision)


async def test_a_blank_memory_has_no_record_and_stays_blank() -> None:
    flash = memory()
    store = state(flash)
    assert isinstance(store, StateStore)
    assert await store.load() is None
    assert await store.load() is None
    assert flash.operations.changes == 0


async def test_a_record_with_floor_and_rotated_keys_fits_sectors_of_4_kib() -> None:
    image = SlotImage(
        size=1 << 20,
        image_size=(1 << 20) + 64,
        sha256="ab" * 32,
        version="1.2.3",
        proven=True,
        image_sha256="cd" * 32,
        sequence=7,
    )
    keys = KeyChain(keys=("A" * 86 + "==",) * 2, threshold=2, left=("0" * 16,) * 3, retired=("0" * 16,) * 3)
    full = BootRecord(
        revision=1,
        a=image,
        b=image,
        reason="it hung" * 5,
        failed_sha256="ab" * 32,
        failed_image_sha256="cd" * 32,
        failed_version="1.2.2",
        failed_earlier=("ef" * 8,) * 4,
        floor="1.2.3",
        sequence=7,
        chain=keys,
    )
    flash = memory()
    await state(flash).store(full)
    assert await state(flash).load() == full


async def test_the_newest_record_is_found_again_whoever_asks() -> None:
    flash = memory()
    store = state(flash)
    for revision in range(1, 60):
        await store.store(record(revision))
        assert await store.load() == record(revision)
        if revision % 7 == 0:
            store = state(flash)
            if revision % 2:
                assert await store.load() == record(revision)
    assert await state(flash).load() == record(59)
    assert not flash.operations.broken_rules


async def test_later_loads_answer_from_memory() -> None:
    flash = memory()
    await state(flash).store(RECORD)
    store = state(flash)
    await store.load()
    counts = flash.operations.counts.copy()
    assert await store.load() == RECORD
    assert flash.operations.counts == counts


async def test_sectors_in_a_slot_are_refused() -> None:
    flash = NorSimulator(uniform(16 * 4096, 4096))
    sectors = flash.geometry.sectors
    slots = (Area(0, 5 * 4096), Area(8 * 4096, 5 * 4096))
    NorState(flash, sectors[5:8], slots=slots)
    NorState(flash, sectors[13:], slots=slots)
    for wrong in (sectors[4:7], sectors[6:9], sectors[:3], (*sectors[13:15], sectors[9])):
        with pytest.raises(ConfigError, match="in a slot"):
            NorState(flash, wrong, slots=slots)
    for wrong in (sectors[:2], (sectors[0], sectors[0], sectors[1]), (*sectors[:2], Sector(1, 4096))):
        with pytest.raises(ConfigError, match="three sectors"):
            NorState(flash, wrong)


async def test_a_record_that_does_not_fit_is_refused_and_the_last_one_stays() -> None:
    flash = NorSimulator(uniform(3 * 1024, 1024))
    store = NorState(flash, flash.geometry.sectors)
    short = BootRecord(revision=1)
    await store.store(short)
    changes = flash.operations.changes
    long = BootRecord(revision=2, reason="x" * (1024 // 2 - 16 - len(encode_record(short)) + 5))
    with pytest.raises(StateError, match="does not fit its sectors: 496"):
        await store.store(long)
    assert flash.operations.changes == changes
    assert await store.load() == short
    fits = replace(long, reason="x" * (496 - len(encode_record(replace(short, revision=2))) + 2))
    assert len(encode_record(fits)) == 496
    await store.store(fits)
    assert await NorState(flash, flash.geometry.sectors).load() == fits


@pytest.mark.parametrize(
    "content",
    [
        (b"\0" * 64, b"\0" * 64, b"\0"),
        tuple(encode_entry(9, LogKind.SWAP, SwapState().encode()) for _ in range(3)),
        (encode_entry(9, LogKind.STATE, b"no record"),),
        (encode_entry(9, LogKind.STATE, b""),),
    ],
    ids=["no log", "a journal", "no record", "nothing"],
)
async def test_what_cannot_be_read_is_an_error_until_an_operator_stores_over_it(content: tuple[bytes, ...]) -> None:
    flash = memory()
    for sector, data in zip(SECTORS, content, strict=False):
        flash.poke(sector.start, data)
    store = state(flash)
    for _ in range(2):
        with pytest.raises(StateError, match="damaged"):
            await store.load()
    await store.store(RECORD)
    assert await store.load() == RECORD
    assert await state(flash).load() == RECORD
    flash = memory()
    for sector, data in zip(SECTORS, content, strict=False):
        flash.poke(sector.start, data)
    await state(flash).store(RECORD)  # without a look
    assert await state(flash).load() == RECORD


@pytest.mark.parametrize("kind", [Kind.READ, Kind.ERASE, Kind.PROGRAM])
async def test_a_memory_that_fails_is_a_state_error_and_loses_nothing(kind: Kind) -> None:
    flash = memory()
    await state(flash).store(RECORD)
    bad = BadFlash(flash)
    bad.fail(kind, Flaw.ERROR)
    with pytest.raises(StateError, match="cannot be read"):
        await state(flash).load()
    with pytest.raises(StateError, match="cannot be stored"):
        await state(flash).store(record(2))
    bad.mend()
    assert await state(flash).load() == RECORD


@pytest.mark.parametrize("flaw", Flaw)
async def test_after_a_store_that_failed_the_next_load_looks_again(flaw: Flaw) -> None:
    flash = memory()
    store = state(flash)
    await store.store(RECORD)
    bad = BadFlash(flash)
    bad.fail(Kind.PROGRAM, flaw)
    with pytest.raises(StateError, match="cannot be stored"):
        await store.store(record(2))
    with pytest.raises(StateError, match="cannot be read"):
        await store.load()
    bad.mend()
    assert await store.load() == RECORD
    await store.store(record(3))
    assert await state(flash).load() == record(3)


async def test_a_bad_unit_costs_nothing_but_its_place() -> None:
    flash = memory()
    store = state(flash)
    await store.store(RECORD)
    BadFlash(flash).fail(Kind.PROGRAM, Flaw.IGNORED, times=1)
    await store.store(record(2))
    assert await state(flash).load() == record(2)


async def test_a_load_beside_a_store_waits_and_undoes_nothing() -> None:
    """Somebody asks for the status while a commit is stored."""
    flash = memory()
    await state(flash).store(RECORD)
    for revision in range(2, 6):
        store = state(flash)
        if revision % 2:
            await store.load()
        found: list[BootRecord | None] = []

        async def look(store: NorState = store, found: list[BootRecord | None] = found) -> None:
            found.append(await store.load())

        async with anyio.create_task_group() as tg:
            tg.start_soon(look)
            tg.start_soon(store.store, record(revision))
            for _ in range(3):
                tg.start_soon(look)
        assert found == [record(revision - 1), *[record(revision)] * 3]
        assert await state(flash).load() == record(revision)
    assert not flash.operations.broken_rules


async def test_a_cancellation_lands_behind_a_store() -> None:
    flash = memory()
    store = state(flash)
    with anyio.CancelScope() as scope:

        def cancel(operation: Operation) -> None:
            if operation.index is not None:
                flash.operations.before = None
                scope.cancel()

        flash.operations.before = cancel
        await store.store(RECORD)
    assert scope.cancelled_caught
    assert await store.load() == RECORD


@pytest.mark.parametrize("mode", ALL_MODES)
async def test_a_cut_leaves_the_record_or_the_one_before_for_good(mode: CutMode) -> None:
    # Seven records fill a sector, so that some of these stores begin the next one.
    for stored in (1, 6, 7):
        index = 0
        while True:
            flash = memory()
            store = state(flash)
            for revision in range(1, stored + 1):
                await store.store(record(revision))
            power = PowerSupply(flash, seed=index)
            power.cut_at(index, mode)
            try:
                await store.store(record(stored + 1))
            except PowerCut:
                power.restore()
            else:
                break
            found = await state(flash).load()
            assert found in (record(stored), record(stored + 1))
            assert await state(flash).load() == found
            index += 1


async def test_a_device_keeps_its_record_on_the_chip_itself() -> None:
    """Images, journal and record in one memory: the record's sectors lie between the slots and the journal."""
    chip = uniform(24 * 4096, 4096, program_unit=256)
    slots = plan_swap(uniform(21 * 4096, 4096, program_unit=256), JournalPlace.CHIP)
    layout = replace(slots, geometry=chip)
    flash = NorSimulator(chip)

    def started() -> Device:
        store = NorState(flash, chip.sectors[21:], slots=(layout.primary, layout.secondary))
        return Device(flash=CopiedFlash(flash, layout), state=store)

    old, new = b"old " * 3000, b"new " * 5000

    async def body() -> AsyncIterator[bytes]:
        yield old

    await provision(started(), body(), size=len(old))
    device = started()
    assert await boot_check(device) is Verdict.RUN
    async with OtaSession(device, size=len(new)) as ota:
        await ota.write(new)
        await ota.activate(await ota.seal())
    device = started()
    assert await boot_check(device) is Verdict.TRIAL
    assert await device.flash.running_slot() is Slot.B
    assert await commit(device)
    device = started()
    assert await boot_check(device) is Verdict.RUN
    found = await device.state.load()
    assert found is not None
    assert (found.state, found.b and found.b.proven) == (State.CONFIRMED, True)
    assert not flash.operations.broken_rules

    for sector in chip.sectors[21:]:  # whatever happened to it
        flash.erase_now(sector)
        flash.poke(sector.start, b"garbage")
    device = started()
    assert await boot_check(device) is Verdict.RUN
    with pytest.raises(UnknownStateError):
        async with OtaSession(device, size=len(new)):
            pass
    assert await commit(device)  # an operator's word
    assert await boot_check(started()) is Verdict.RUN
