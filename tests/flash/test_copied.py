"""Images that change places by copying, as a backend: a device's life on it, and everything that goes wrong."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from hashlib import sha256
from pathlib import Path

import anyio
import pytest

from mgota import Device, OtaSession, PrivateKey, Slot, State, Verifier, boot_check, commit, rollback
from mgota.core.boot import Verdict
from mgota.core.geometry import Geometry, Region, uniform
from mgota.core.record import BootRecord, Outcome
from mgota.core.swap import HostJournal, JournalPlace, Phase, SwapLayout, SwapState, plan_swap
from mgota.errors import (
    ConfigError,
    FlashError,
    OtaError,
    ProgramError,
    ReadError,
    RollbackRefusedError,
    SelectError,
    StateError,
    TooLargeError,
)
from mgota.flash.copied import CopiedFlash
from mgota.flash.files import DurableFile
from mgota.flash.jobs import carry_out
from mgota.flash.norstate import NorState
from mgota.ports import FlashBackend
from mgota.session import provision
from mgota.testing import ALL_MODES, BadFlash, Flaw, Kind, NorSimulator, Operation, Operations, PowerCut, PowerSupply

pytestmark = pytest.mark.asyncio

A, B = Slot.A, Slot.B
KEY = PrivateKey.generate()
CHIP = plan_swap(uniform(24 * 256, 256, program_unit=16), JournalPlace.CHIP)
HOST = plan_swap(Geometry((Region(0, 1024, 256), Region(1024, 7168, 1024)), 4), JournalPlace.HOST)
LIMIT = 64


def image(version: str, size: int) -> bytes:
    head = b"MG_VERSION:" + version.encode() + b"\0"
    firmware = (head + b"".join(sha256(head + bytes([i])).digest() for i in range(200)))[:size]
    return firmware + KEY.sign(sha256(firmware).digest())


OLD, NEW, NEWER = image("1", 900), image("2", 1500), image("3", 400)


class Board:
    """A chip, and what survives beside it."""

    def __init__(self, layout: SwapLayout, journal: Path) -> None:
        self.layout = layout
        self.operations = Operations()
        self.flash = NorSimulator(layout.geometry, operations=self.operations)
        # The boot record: in a serial flash beside the chip.
        self.beside = NorSimulator(uniform(3 * 4096, 4096, program_unit=256), operations=self.operations)
        self.journal = journal
        self.restart()

    def restart(self) -> None:
        """The gateway's process starts anew."""
        file = None if self.layout.journal else DurableFile(self.journal, LIMIT)
        self.backend = CopiedFlash(self.flash, self.layout, file)
        self.state = NorState(self.beside, self.beside.geometry.sectors)
        self.device = Device(flash=self.backend, state=self.state, verifier=Verifier(keys=[KEY.public]))

    async def boots(self) -> Verdict:
        """Resets until the device goes on."""
        while True:
            self.restart()
            await self.backend.boot()
            verdict = await boot_check(self.device)
            if verdict is not Verdict.RESET:
                return verdict

    async def runs(self, data: bytes) -> bool:
        """Whether this image lies at the base, where the chip starts it, and the record says so."""
        slot = await self.backend.running_slot()
        record = await self.state.load()
        assert record is not None
        told = record.image(slot)
        assert told is not None
        assert told.sha256 == sha256(data[:-64]).hexdigest()
        return self.flash.peek(self.layout.primary.start, len(data)) == data

    async def holds(self, slot: Slot, data: bytes) -> bool:
        return await self.backend.read(slot, 0, len(data)) == data


@pytest.fixture(params=[CHIP, HOST], ids=["chip", "host"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Board:
    return Board(request.param, tmp_path / "journal")


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 333):
        yield data[start : start + 333]


async def write(backend: CopiedFlash, slot: Slot, data: bytes) -> None:
    writer = await backend.open_writer(slot, len(data))
    async for chunk in chunks(data):
        await writer.write(chunk)
    await writer.finish()


async def update(device: Device, data: bytes, *, reset: bool = True) -> None:
    async with OtaSession(device, size=len(data)) as ota:
        async for chunk in chunks(data):
            await ota.write(chunk)
        await ota.activate(await ota.seal(), reset=reset)


async def provisioned(board: Board) -> None:
    await board.backend.boot()
    await provision(board.device, chunks(OLD), size=len(OLD))
    assert await board.boots() is Verdict.RUN
    assert await board.runs(OLD)


async def two_images(board: Board) -> CopiedFlash:
    """OLD at the base as a, NEW on its way in as b."""
    await write(board.backend, A, OLD)
    await write(board.backend, B, NEW)
    return board.backend


# --- a life ----------------------------------------------------------------------------------------------------------


async def test_a_device_lives_on_it(board: Board) -> None:
    assert isinstance(board.backend, FlashBackend)
    await provisioned(board)
    await update(board.device, NEW)
    assert await board.boots() is Verdict.TRIAL
    assert await board.runs(NEW)
    assert await commit(board.device)
    assert await board.boots() is Verdict.RUN
    assert await board.backend.running_slot() is B

    await update(board.device, NEWER)  # into a, whose image lay unraised
    assert await board.boots() is Verdict.TRIAL
    assert await board.runs(NEWER)
    assert await board.boots() is Verdict.RUN  # nobody committed it
    assert await board.runs(NEW)
    assert await board.backend.running_slot() is B

    await update(board.device, NEWER, reset=False)  # staged
    assert await board.boots() is Verdict.RUN
    waiting = await board.device.staged()
    assert waiting is not None
    await board.device.activate(waiting)
    assert await board.boots() is Verdict.TRIAL
    await commit(board.device)
    await rollback(board.device)  # an operator's
    assert await board.boots() is Verdict.RUN
    assert await board.runs(NEW)
    await rollback(board.device)  # and back
    assert await board.boots() is Verdict.RUN
    assert await board.runs(NEWER)
    record = await board.state.load()
    assert record is not None
    assert (record.state, record.outcome) == (State.CONFIRMED, Outcome.ROLLED_BACK)
    assert not board.operations.broken_rules


async def test_a_device_is_provisioned_over_any_past(board: Board) -> None:
    await provisioned(board)
    await update(board.device, NEW)
    await board.boots()
    await commit(board.device)  # b runs, and a lies unraised
    await provision(board.device, chunks(NEWER), size=len(NEWER), force=True)
    assert await board.boots() is Verdict.RUN
    assert await board.runs(NEWER)
    await update(board.device, OLD)
    assert await board.boots() is Verdict.TRIAL
    assert await board.runs(OLD)
    await board.boots()
    assert await board.runs(NEWER)


async def test_a_life_that_is_cut_off_anywhere_goes_on(board: Board) -> None:
    await provisioned(board)
    await update(board.device, NEWER)
    await board.boots()
    await commit(board.device)
    power = PowerSupply(board.operations, seed=1)
    index = 0
    while True:
        power.cut_at(index, ALL_MODES[index % len(ALL_MODES)])
        try:
            await update(board.device, NEW)
            await board.boots()
            await board.boots()
        except PowerCut:
            power.restore()
        else:
            break
        board.device.live.held = False
        if await board.boots() is Verdict.TRIAL:
            await board.boots()
        assert await board.runs(NEWER)
        index += 3
    power.restore()
    assert index > 40
    assert not board.operations.broken_rules


async def test_a_new_chip_is_blank_and_runs_slot_a(board: Board) -> None:
    backend = board.backend
    assert backend.crc == "crc-32"
    assert await backend.boot() is A
    assert [await backend.extent(slot) for slot in Slot] == [0, 0]
    assert await backend.capacity() == board.layout.max_image
    with pytest.raises(SelectError, match="no image"):
        await backend.select(B)
    await backend.select(A)
    assert await backend.running_slot() is A


async def test_slots_name_images_wherever_they_lie(board: Board) -> None:
    backend = await two_images(board)
    full = board.layout.max_image
    for slot in (B, A, B):
        await backend.select(slot)
        assert await board.holds(A, OLD)
        assert await board.holds(B, NEW)
        assert await backend.read(A, 5, 7) == OLD[5:12]
        assert [await backend.extent(each) for each in Slot] == [full, full]
        assert await backend.boot() is slot
    await write(backend, A, NEWER)
    assert await board.holds(A, NEWER)
    assert await board.holds(B, NEW)
    await backend.select(A)
    assert await board.holds(A, NEWER)
    assert await board.holds(B, NEW)


async def test_the_running_slot_is_latched_until_the_next_boot(board: Board) -> None:
    backend = await two_images(board)
    await backend.select(B)
    await backend.recover()
    assert await backend.running_slot() is A
    await backend.select(B)  # is selected: nothing to do
    assert await backend.boot() is B


async def test_the_last_byte_of_a_slot_makes_it_not_blank(board: Board) -> None:
    board.flash.poke(board.layout.primary.end - 1, b"\0")
    assert [await board.backend.extent(slot) for slot in Slot] == [board.layout.max_image, 0]
    board.flash.poke(board.layout.secondary.end - 1, b"\0")
    assert await board.backend.extent(B) == board.layout.max_image


# --- limits ----------------------------------------------------------------------------------------------------------


async def test_an_image_of_just_the_capacity_fits_and_one_byte_more_changes_nothing(board: Board) -> None:
    backend = board.backend
    await write(backend, A, OLD)
    full = bytes(i % 251 for i in range(await backend.capacity()))
    changes = board.operations.changes
    for slot in Slot:
        with pytest.raises(TooLargeError, match="does not fit"):
            await backend.open_writer(slot, len(full) + 1)
    assert board.operations.changes == changes
    await write(backend, B, full)
    for slot in (B, A, B):
        await backend.select(slot)
        assert await board.holds(B, full)
        assert await board.holds(A, OLD)
    assert not board.operations.broken_rules


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, -1), (0, None), (None, 1)])
async def test_what_lies_outside_of_a_slot_is_not_read(board: Board, offset: int | None, size: int | None) -> None:
    full = board.layout.max_image
    with pytest.raises(ReadError, match="inside slot b"):
        await board.backend.read(B, full if offset is None else offset, full + 1 if size is None else size)
    assert await board.backend.read(B, full, 0) == b""


async def test_a_journal_that_is_missing_is_said_at_once() -> None:
    with pytest.raises(ConfigError, match="journal"):
        CopiedFlash(NorSimulator(HOST.geometry), HOST)


# --- half moved ------------------------------------------------------------------------------------------------------


async def half_moved(board: Board) -> BadFlash:
    """A sector at the base is bad for good: the swap can neither go on nor go back."""
    backend = await two_images(board)
    bad = BadFlash(board.flash)
    bad.fail(Kind.PROGRAM, Flaw.IGNORED, sectors=[board.layout.at_base(0)])
    with pytest.raises(FlashError, match="does not keep") as failed:
        await backend.select(B)
    assert not isinstance(failed.value, SelectError)
    return bad


async def test_while_images_stand_half_moved_nothing_is_read_written_or_selected(board: Board) -> None:
    bad = await half_moved(board)
    backend = board.backend
    acts: list[Callable[[], Awaitable[object]]] = [
        lambda: backend.read(A, 0, 1),
        lambda: backend.read(B, 0, 1),
        lambda: backend.extent(A),
        lambda: backend.open_writer(B, 10),
        lambda: backend.select(A),
        lambda: backend.select(B),
    ]
    for act in acts:
        with pytest.raises(FlashError, match="half moved"):
            await act()
    assert await backend.running_slot() is A  # latched
    for again in (backend.recover, backend.boot, backend.running_slot):
        with pytest.raises(FlashError, match="does not keep"):
            await again()
    bad.mend()
    assert await backend.boot() is A
    assert await board.holds(A, OLD)
    await write(backend, B, NEW)
    await backend.select(B)
    assert await backend.boot() is B
    assert await board.holds(B, NEW)


async def test_a_destination_that_refuses_its_data_leaves_the_base_as_it_was(board: Board) -> None:
    backend = await two_images(board)
    bad = BadFlash(board.flash)
    # What ignores an erase keeps what it held: nothing, as long as the images have not changed places.
    bad.fail(Kind.PROGRAM, Flaw.ERROR, sectors=[board.layout.aside(1 if board.layout is CHIP else 0)])
    with pytest.raises(SelectError, match="did not take"):
        await backend.select(B)
    assert await board.holds(A, OLD)
    assert await backend.boot() is A


@pytest.mark.parametrize("given_up", [False, True])
async def test_a_device_survives_a_selection_that_fails(board: Board, given_up: bool) -> None:
    """An image that is still whole is selected again at the next boot; one that is not is given up."""
    await provisioned(board)
    bad = BadFlash(board.flash)

    def spoil(operation: Operation) -> None:
        # The first copy to the base has begun: what came there is overwritten when what ran is put back.
        if operation.kind is Kind.ERASE and operation.offset == board.layout.primary.start:
            board.operations.before = None
            bad.fail(Kind.ERASE, Flaw.ERROR, sectors=[board.layout.aside(1)], times=2)

    if given_up:
        board.operations.before = spoil
    else:
        bad.fail(Kind.PROGRAM, Flaw.IGNORED, sectors=[board.layout.aside(0)], times=2)
    with pytest.raises(SelectError):
        await update(board.device, NEW)
    assert bad.hits == 2
    if given_up:
        assert await board.boots() is Verdict.RUN
        assert await board.runs(OLD)
        await update(board.device, NEW)
    assert await board.boots() is Verdict.TRIAL
    assert await board.runs(NEW)


async def test_a_device_whose_way_back_cannot_be_read_runs_what_it_has(board: Board) -> None:
    """Nothing moved: that is a selection that failed, not a device that must not start."""
    await provisioned(board)
    await update(board.device, NEW)
    assert await board.boots() is Verdict.TRIAL
    behind = board.layout.aside(board.layout.count - 1)  # behind the old image, so that it is found whole
    BadFlash(board.flash).fail(Kind.READ, Flaw.ERROR, sectors=[behind])
    assert await board.boots() is Verdict.RUN
    assert await board.runs(NEW)
    record = await board.state.load()
    assert record is not None
    assert record.outcome is Outcome.STUCK


# --- one at a time, and to the end -----------------------------------------------------------------------------------


async def test_a_cancellation_does_not_stop_a_selection_halfway(board: Board) -> None:
    backend = await two_images(board)
    await backend.running_slot()
    with anyio.CancelScope() as scope:

        def cancel(operation: Operation) -> None:
            if operation.index is not None:
                board.operations.before = None
                scope.cancel()

        board.operations.before = cancel
        await backend.select(B)
    assert scope.cancelled_caught
    assert await board.holds(A, OLD)
    assert await board.holds(B, NEW)
    assert board.flash.peek(board.layout.primary.start, len(NEW)) == NEW
    assert await backend.boot() is B


async def test_a_cancellation_before_anything_began_changes_nothing(board: Board) -> None:
    backend = await two_images(board)
    changes = board.operations.changes
    with anyio.CancelScope() as scope:
        scope.cancel()
        await backend.select(A)
    assert scope.cancelled_caught
    assert board.operations.changes == changes


async def test_who_reads_while_the_images_move_waits_and_gets_the_right_one(board: Board) -> None:
    backend = await two_images(board)
    board.restart()
    backend = board.backend
    seen: list[bytes] = []

    async def look() -> None:
        for _ in range(4):
            seen.append(await backend.read(A, 0, len(OLD)))
            assert await backend.extent(B)
            assert await backend.running_slot() is A

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(look)
        tg.start_soon(backend.select, B)
        tg.start_soon(look)
    assert seen == [OLD] * 16
    assert await backend.boot() is B
    assert await board.holds(B, NEW)
    assert not board.operations.broken_rules


async def test_a_journal_is_mounted_once_by_however_many_ask_first(board: Board) -> None:
    await two_images(board)
    board.restart()
    changes = board.operations.changes
    async with anyio.create_task_group() as tg:
        for _ in range(5):
            tg.start_soon(board.backend.running_slot)
            tg.start_soon(board.backend.recover)
    assert board.operations.changes == changes + (3 if board.layout.journal else 0)


# --- the journal's file ----------------------------------------------------------------------------------------------


async def test_a_damaged_journal_file_is_an_error_and_nothing_moves(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    board = Board(HOST, path)
    await two_images(board)
    await board.backend.select(B)
    content, kept = board.flash.peek(0, HOST.geometry.size), path.read_bytes()
    for wrong in (b"", b"x", kept[:-1], kept[:20] + b"\0" + kept[21:], bytes(100)):
        path.write_bytes(wrong)
        board.restart()
        for act in (board.backend.running_slot, board.backend.recover, board.backend.boot):
            with pytest.raises(StateError, match=r"damaged|empty"):
                await act()
        with pytest.raises(StateError):
            await board.backend.open_writer(B, 1)
    assert board.flash.peek(0, HOST.geometry.size) == content
    path.write_bytes(kept)
    board.restart()
    assert await board.backend.running_slot() is B


async def test_a_journal_file_that_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    board = Board(HOST, tmp_path / "missing" / "journal")
    with pytest.raises(StateError, match="cannot be used: No such file"):
        await board.backend.open_writer(B, 10)
    board = Board(HOST, tmp_path)
    with pytest.raises(StateError, match="cannot be used: Is a directory"):
        await board.backend.running_slot()


async def test_a_journal_of_another_chip_is_an_error(tmp_path: Path) -> None:
    board = Board(HOST, tmp_path / "journal")
    await two_images(board)
    file = DurableFile(tmp_path / "journal", LIMIT)
    other = SwapState(phase=Phase.FORWARD, count=HOST.count + 1)
    board.restart()
    await board.backend._note(other)
    assert file.load()
    board.restart()
    with pytest.raises(StateError, match="another memory"):
        await board.backend.running_slot()


class Cached(NorSimulator):
    """A memory with something under it that could lose what was programmed."""

    fails = False

    def __init__(self) -> None:
        super().__init__(HOST.geometry)
        self.lost = 0
        """How many operations a power cut would undo now."""
        self.operations.before = self._began

    def _began(self, operation: Operation) -> None:
        if operation.kind is Kind.OPTION:
            assert not self.lost, "the journal is ahead of the memory"
        elif operation.index is not None:
            self.lost += 1

    async def flush(self) -> None:
        if self.fails:
            raise ProgramError("flash could not be made durable: no space")
        self.lost = 0


async def test_the_journal_is_never_ahead_of_the_memory() -> None:
    flash = Cached()
    backend = CopiedFlash(flash, HOST, flash.cell("journal"))
    await write(backend, A, OLD)
    await write(backend, B, NEW)
    await backend.select(B)
    assert not flash.lost
    assert await backend.read(B, 0, len(NEW)) == NEW


async def test_a_memory_that_does_not_become_durable_is_an_error_and_the_swap_goes_on_later() -> None:
    flash = Cached()
    backend = CopiedFlash(flash, HOST, flash.cell("journal"))
    await write(backend, A, OLD)
    await write(backend, B, NEW)
    await backend.running_slot()

    def fail(operation: Operation) -> None:
        flash._began(operation)
        flash.fails = flash.fails or operation.kind is Kind.ERASE

    flash.operations.before = fail
    with pytest.raises(FlashError, match="durable"):
        await backend.select(B)
    flash.operations.before, flash.fails = flash._began, False
    assert await backend.boot() is B
    assert await backend.read(A, 0, len(OLD)) == OLD


async def test_a_job_that_keeps_something_needs_a_place_for_it() -> None:
    with pytest.raises(ConfigError, match="file for its journal"):
        await carry_out(HostJournal().mount(), NorSimulator(HOST.geometry))


# --- what a record may rely on ---------------------------------------------------------------------------------------


async def test_an_image_that_was_given_up_is_not_taken_for_one(board: Board) -> None:
    """A swap back to a proven image fails for good: nobody boots what was left of it."""
    await provisioned(board)
    await update(board.device, NEW)
    await board.boots()
    await commit(board.device)
    BadFlash(board.flash).fail(Kind.PROGRAM, Flaw.ERROR, sectors=[board.layout.aside(1)])
    with pytest.raises(SelectError):
        await rollback(board.device)
    assert await board.boots() is Verdict.RUN
    assert await board.runs(NEW)
    with pytest.raises((RollbackRefusedError, SelectError)):  # what is left of it is whole, or known not to be
        await rollback(board.device)
    with pytest.raises(OtaError):
        await update(board.device, NEWER)  # the sector is bad: an update says so
    assert await board.boots() is Verdict.RUN
    assert await board.runs(NEW)


class Remembers:
    """A state store that holds something, or nothing, or what cannot be read."""

    def __init__(self, record: BootRecord | StateError | None) -> None:
        self.record = record

    async def load(self) -> BootRecord | None:
        if isinstance(self.record, StateError):
            raise self.record
        return self.record

    async def store(self, record: BootRecord) -> None:
        self.record = record


@pytest.mark.parametrize("layout", [CHIP, HOST], ids=["chip", "host"])
async def test_a_journal_that_is_lost_is_no_new_one(layout: SwapLayout) -> None:
    """Where there is a boot record, there was a journal: without it nobody knows which image lies where."""
    for record, lost in ((None, False), (BootRecord(), True), (StateError("damaged"), True)):
        flash = NorSimulator(layout.geometry)
        for sector in layout.journal:
            flash.poke(sector.start, b"\0" * 8)  # of whatever was there before
        cell = None if layout.journal else flash.cell("journal")
        backend = CopiedFlash(flash, layout, cell, state=Remembers(record))
        before = flash.operations.changes
        if lost:
            for call in (backend.recover, backend.running_slot, partial(backend.open_writer, Slot.B, 10)):
                with pytest.raises(StateError):
                    await call()
            assert flash.operations.changes == before
        else:
            assert await backend.running_slot() is Slot.A
            again = CopiedFlash(flash, layout, cell, state=Remembers(BootRecord()))
            assert await again.running_slot() is Slot.A  # it was begun
