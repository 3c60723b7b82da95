"""An update from begin to end, and every way in which it is refused or cut short."""

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, strategies as st
from memory_device import (
    NEW,
    OLD,
    ROOM,
    Board,
    Operation,
    digest,
    firmware,
    send,
    signed,
    update,
    update_and_restart,
    verifying,
)

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.image import Trailer
from mgota.core.keys import PrivateKey
from mgota.core.record import BootRecord, Outcome, SlotImage, State
from mgota.device import BLOCK, Device
from mgota.errors import (
    BadSignatureError,
    EmptyImageError,
    OtaError,
    OverrunError,
    ProgramError,
    RejectedError,
    StateError,
    TooLargeError,
    TrialRunningError,
    TruncatedError,
    UnknownStateError,
    UnsignedError,
    UpdateRunningError,
    VerifyError,
)
from mgota.session import OtaSession, check_size, provision
from mgota.trial import boot_check, commit
from mgota.verified import VerifiedImage

pytestmark = pytest.mark.asyncio

A, B = Slot.A, Slot.B


async def booted(old: bytes = OLD, **options: object) -> Board:
    board = Board(old, **options)  # type: ignore[arg-type]
    assert await boot_check(board.device) is Verdict.RUN
    return board


# --- the way it goes ------------------------------------------------------------------------------------------------


async def test_an_update_is_stored_sealed_recorded_selected_and_reset() -> None:
    board = await booted()
    board.power.log.clear()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        assert board.device.live.update == (0, len(NEW))
        await send(ota, NEW)
        assert (ota.received, ota.size) == (len(NEW), len(NEW))
        image = await ota.seal()
        assert (image.slot, image.size, image.image_size) == (B, len(NEW), len(NEW))
        assert (image.sha256, image.version) == (digest(NEW), "2")
        board.reset.returns = True
        await ota.activate(image)
    assert board.power.log == [
        "store CONFIRMED", "open", "write", "write", "write", "write", "finish", "store TESTING", "select b",
    ]  # fmt: skip
    assert board.content(B) == NEW
    assert board.content(A) == OLD
    assert board.flash.selected is B
    assert board.reset.count == 1
    assert board.record.trial is B
    assert board.record.b == SlotImage(size=len(NEW), image_size=len(NEW), sha256=digest(NEW), version="2")
    assert board.device.live.update is None
    assert not board.lock.held


async def test_nothing_is_selected_before_the_record_is_durable() -> None:
    board = await booted()
    seen: list[tuple[State, Slot | None]] = []
    board.power.before = lambda op: (
        seen.append((board.record.state, board.record.trial)) if "select" in op.what else None
    )
    await update_and_restart(board.device, NEW)
    assert seen == [(State.TESTING, B)]


@given(st.lists(st.integers(0, 700), max_size=12))
async def test_any_chunking_gives_the_same_image(sizes: list[int]) -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        at = 0
        for number, size in enumerate(sizes):
            chunk = NEW[at : at + size]
            await ota.write((bytes, bytearray, memoryview)[number % 3](chunk))
            at += len(chunk)
        await ota.write(NEW[at:])
        await ota.seal()
    assert board.content(B) == NEW


async def test_a_chunk_may_be_any_contiguous_buffer() -> None:
    board = await booted()
    async with OtaSession(board.device, size=16) as ota:
        await ota.write(memoryview(bytearray(12)).cast("I"))
        await ota.write(memoryview(b"").cast("B"))
        assert ota.received == 12
        await ota.write(b"tail")
        await ota.seal()
    assert board.content(B) == bytes(12) + b"tail"


async def test_a_large_chunk_is_stored_in_blocks() -> None:
    size = 2 * BLOCK + 5
    board = await booted(room=size)
    data = bytes(range(256)) * (size // 256) + b"12345"
    async with OtaSession(board.device, size=size) as ota:
        await ota.write(data)
        image = await ota.seal()
    assert board.power.log.count("write") > 1  # between two of them a cancellation can land
    assert image.sha256 == digest(data)


async def test_the_announcement_comes_between_the_record_and_the_selection() -> None:
    board = await booted()
    board.reset.returns = True
    seen: list[tuple[State, Slot]] = []

    async def announce() -> None:
        seen.append((board.record.state, board.flash.selected))

    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        await ota.activate(await ota.seal(), announce=announce)
    assert seen == [(State.TESTING, A)]
    assert board.flash.selected is B


async def test_an_announcement_that_fails_does_not_fail_the_update(caplog: pytest.LogCaptureFixture) -> None:
    board = await booted()
    board.reset.returns = True

    async def announce() -> None:
        raise ConnectionResetError("the peer is gone")

    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        await ota.activate(await ota.seal(), announce=announce)
    assert board.flash.selected is B
    assert "could not be announced" in caplog.text


@pytest.mark.parametrize("trailer", Trailer)
async def test_a_signed_image_is_verified_from_flash(trailer: Trailer) -> None:
    board = await booted(verifier=verifying(trailer))
    image = signed(NEW, trailer=trailer)
    async with OtaSession(board.device, size=len(image)) as ota:
        await send(ota, image)
        sealed = await ota.seal()
    assert (sealed.size, sealed.image_size) == (len(NEW), len(image))
    assert sealed.sha256 == digest(NEW)


# --- refused at the door: nothing is lost ---------------------------------------------------------------------------


async def refused(board: Board, error: type[OtaError], size: int = len(NEW), *, device: Device | None = None) -> None:
    before, running = board.snapshot(), board.flash.running
    with pytest.raises(error):
        async with OtaSession(device or board.device, size=size):
            raise AssertionError("it began")
    assert board.snapshot() == before
    assert board.flash.running is running


@pytest.mark.parametrize("size", [0, -1])
async def test_an_empty_image_is_refused(size: int) -> None:
    await refused(await booted(), EmptyImageError, size)


@pytest.mark.parametrize("size", [ROOM + 1, 1 << 40])
async def test_an_image_beyond_the_slot_is_refused(size: int) -> None:
    await refused(await booted(), TooLargeError, size)


async def test_an_image_that_just_fits_is_taken() -> None:
    board = await booted()
    data = firmware("2", ROOM)
    await update_and_restart(board.device, data)
    assert board.content(B) == data
    await check_size(board.device, ROOM)


async def test_a_backend_that_finds_out_late_that_there_is_no_room_costs_nothing() -> None:
    """A disk fills up between the two questions: the image in the slot is still the way back."""
    board = await booted()
    await update_and_restart(board.device, NEW)
    board.boot()
    await boot_check(board.device)
    await commit(board.device)
    before = board.record

    def full(op: Operation) -> None:
        if op.what == "open":
            raise TooLargeError(len(NEW), 1)

    board.power.before = full
    with pytest.raises(TooLargeError):
        async with OtaSession(board.device, size=len(NEW)):
            raise AssertionError("it began")
    assert replace(board.record, revision=before.revision) == before
    assert board.record.revision > before.revision
    assert not board.lock.held
    assert not board.device.live.held


async def test_a_second_session_in_this_process_is_refused() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW[:800])
        await refused(board, UpdateRunningError)
        assert board.device.live.update == (800, len(NEW))
        await send(ota, NEW[800:])
        assert (await ota.seal()).sha256 == digest(NEW)
    async with OtaSession(board.device, size=1):
        assert board.lock.held


async def test_a_second_device_on_the_same_hardware_is_refused() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await refused(board, UpdateRunningError, device=board.new_device())
        await send(ota, NEW)
        await ota.seal()
    assert board.content(B) == NEW


async def test_a_session_while_another_process_holds_the_device_is_refused() -> None:
    board = await booted()
    board.lock.taken = True
    await refused(board, UpdateRunningError)
    board.lock.taken = False
    await update_and_restart(board.device, NEW)
    assert board.content(B) == NEW


async def test_a_device_without_a_lock_still_takes_one_update_at_a_time() -> None:
    board = await booted(lock=None)
    async with OtaSession(board.device, size=1):
        await refused(board, UpdateRunningError)
    async with OtaSession(board.device, size=1):
        assert board.device.live.held


async def test_destroying_the_way_back_no_session_before_the_reset() -> None:
    board = await booted()
    board.reset.returns = True
    await update(board.device, NEW)
    await refused(board, TrialRunningError)


async def test_destroying_the_way_back_no_session_during_a_trial() -> None:
    board = await booted()
    await update_and_restart(board.device, NEW)
    board.boot()
    assert await boot_check(board.device) is Verdict.TRIAL
    await refused(board, TrialRunningError)
    assert board.content(A) == OLD


async def test_no_session_on_an_unreadable_record() -> None:
    board = await booted()
    board.state.damage()
    await refused(board, UnknownStateError)


async def test_an_unreadable_record_that_counts_as_none_is_made_anew() -> None:
    board = await booted(on_unknown="confirm")
    board.state.damage()
    await update_and_restart(board.device, NEW)
    assert board.record.a == SlotImage(size=len(OLD), image_size=len(OLD), sha256=digest(OLD), version="1", proven=True)


# --- more and fewer bytes than declared -----------------------------------------------------------------------------


async def test_more_bytes_than_declared_are_refused_and_none_is_taken() -> None:
    board = await booted()
    with pytest.raises(OverrunError):  # noqa: PT012
        async with OtaSession(board.device, size=len(NEW)) as ota:
            await send(ota, NEW)
            await ota.write(b"!")
    assert board.content(B) == NEW
    await aborted(board, "more than the declared 1500 bytes came")


async def test_an_overrun_leaves_what_came_before_usable() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW[:-1])
        with pytest.raises(OverrunError):
            await ota.write(b"!!")
        await ota.write(NEW[-1:])
        assert (await ota.seal()).sha256 == digest(NEW)


@pytest.mark.parametrize("received", [0, 1, len(NEW) - 1])
async def test_fewer_bytes_than_declared_cannot_be_sealed(received: int) -> None:
    board = await booted()
    with pytest.raises(TruncatedError) as told:  # noqa: PT012
        async with OtaSession(board.device, size=len(NEW)) as ota:
            await send(ota, NEW[:received])
            await ota.seal()
    assert (told.value.received, told.value.size) == (received, len(NEW))
    await aborted(board, f"only {received} of {len(NEW)} bytes came")


async def aborted(board: Board, reason: str) -> None:
    """The session gave up: the slot counts as empty, the rest is as before, and the next update works."""
    status = await board.device.status()
    assert (status.outcome, status.reason) == (Outcome.INTERRUPTED, reason)
    assert status.received is None
    assert board.record.outcome is Outcome.INTERRUPTED
    assert (board.record.state, board.record.b) == (State.CONFIRMED, None)
    assert board.record.a is not None
    assert board.content(A) == OLD
    assert board.flash.selected is A
    assert not board.lock.held
    assert not board.device.live.held
    await update_and_restart(board.device, NEW)
    assert (board.content(B), board.flash.selected) == (NEW, B)


# --- given up -------------------------------------------------------------------------------------------------------


async def test_leaving_without_an_end_is_interrupted() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW[:700])
    await aborted(board, "it was given up")


async def test_leaving_sealed_but_not_activated_is_interrupted() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        await ota.seal()
    await aborted(board, "it was given up")


@pytest.mark.parametrize(
    ("error", "reason"), [(ConnectionError("reset by peer"), "reset by peer"), (ValueError(), "ValueError")]
)
async def test_leaving_with_an_exception_is_interrupted(error: Exception, reason: str) -> None:
    board = await booted()
    with pytest.raises(type(error)):  # noqa: PT012
        async with OtaSession(board.device, size=len(NEW)) as ota:
            await send(ota, NEW[:700])
            raise error
    await aborted(board, reason)


async def test_flash_that_fails_is_interrupted() -> None:
    board = await booted()

    def worn(op: Operation) -> None:
        if op.what == "write":
            raise ProgramError("the unit at 0x40 is worn")

    board.power.before = worn
    with pytest.raises(ProgramError):
        await update(board.device, NEW)
    board.power.before = None
    await aborted(board, "the unit at 0x40 is worn")


async def test_while_an_update_runs_the_record_already_says_interrupted_and_the_status_nothing() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW[:400])
        status = await board.device.status()
        assert (status.received, status.size) == (400, len(NEW))
        assert (status.outcome, status.reason) == (None, None)
        assert board.record.outcome is Outcome.INTERRUPTED
    board.boot()
    status = await board.device.status()
    assert (status.outcome, status.reason) == (Outcome.INTERRUPTED, "the update did not finish")


async def test_a_record_that_cannot_be_read_while_giving_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    board = await booted()
    with pytest.raises(ConnectionError):  # noqa: PT012
        async with OtaSession(board.device, size=len(NEW)):
            board.state.damage()
            raise ConnectionError
    assert not board.lock.held
    assert board.device.live.ended is None
    assert (await board.device.status()).state is State.UNKNOWN


# --- refused at seal ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (NEW, BadSignatureError),
        (signed(NEW, key=PrivateKey.generate()), BadSignatureError),
        (signed(NEW)[:200] + b"?" + signed(NEW)[201:], BadSignatureError),
        (signed(NEW, trailer=Trailer.MGSG), BadSignatureError),
        (b"short", UnsignedError),
    ],
    ids=["unsigned", "another key", "a changed byte", "another trailer", "no room for a signature"],
)
async def test_a_refusal_is_told_by_this_process_and_the_record_says_what_it_said(
    image: bytes, error: type[OtaError], caplog: pytest.LogCaptureFixture
) -> None:
    board = await booted(verifier=verifying())
    # What it said: the update before was committed.
    await update_and_restart(board.device, signed(firmware("1.5")))
    board.boot()
    await boot_check(board.device)
    await commit(board.device)
    with pytest.raises(error) as refusal:
        await update(board.device, image)
    status = await board.device.status()
    assert (status.outcome, status.reason) == (Outcome.REFUSED, str(refusal.value))
    assert (board.record.outcome, board.record.reason) == (Outcome.COMMITTED, None)
    assert (board.record.state, board.record.a) == (State.CONFIRMED, None)
    assert board.flash.selected is B
    assert not board.lock.held
    assert [r.name for r in caplog.records if "image refused" in r.message] == ["mgota.audit"]
    # A restart forgets the refusal; the next update makes it history.
    assert (await board.new_device().status()).outcome is Outcome.COMMITTED
    await update_and_restart(board.device, signed(NEW))
    assert (await board.device.status()).outcome is None


async def test_a_refusal_whose_record_cannot_be_stored_still_ends(caplog: pytest.LogCaptureFixture) -> None:
    board = await booted(verifier=verifying())

    def worn(op: Operation) -> None:
        if "store" in op.what:
            raise StateError("the record's sector is worn")

    with pytest.raises(BadSignatureError):  # noqa: PT012
        async with OtaSession(board.device, size=len(NEW)) as ota:
            await send(ota, NEW)
            board.power.before = worn
            await ota.seal()
    assert "the record's sector is worn" in caplog.text
    assert not board.lock.held
    assert board.record.outcome is Outcome.INTERRUPTED


async def test_flash_that_stores_something_else_is_noticed() -> None:
    board = await booted()

    def flips(op: Operation) -> None:
        if op.what == "finish":
            board.flash.cells[B][7] ^= 1

    board.power.after = flips
    with pytest.raises(VerifyError):
        await update(board.device, NEW)
    assert (await board.device.status()).outcome is Outcome.INTERRUPTED
    assert board.flash.selected is A


async def test_stale_tail_a_short_image_after_a_long_one_is_itself() -> None:
    board = await booted()
    board.flash.cells[B] += b"\xee" * ROOM
    await update_and_restart(board.device, NEW)
    assert board.content(B) == NEW
    board.boot()
    assert await boot_check(board.device) is Verdict.TRIAL
    assert await board.device.is_whole(B, board.record.b)


# --- what only the library may do -----------------------------------------------------------------------------------


async def test_a_verified_image_cannot_be_made_by_hand() -> None:
    image = SlotImage(size=1, image_size=1, sha256="0" * 64)
    for sealed in (None, object(), True):
        with pytest.raises(TypeError, match="only seal"):
            VerifiedImage(B, image, sealed=sealed)


async def test_a_session_activates_only_what_it_sealed() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        first = await ota.seal()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        with pytest.raises(TypeError):
            await ota.activate(first)
    assert board.flash.selected is A


async def test_a_session_is_used_in_order() -> None:
    board = await booted()
    ota = OtaSession(board.device, size=4)
    with pytest.raises(RuntimeError, match="not open"):
        await ota.write(b"1234")
    async with ota:
        await ota.write(b"1234")
        await ota.seal()
        with pytest.raises(RuntimeError, match="seal once"):
            await ota.seal()
        with pytest.raises(RuntimeError, match="write before seal"):
            await ota.write(b"")
    assert board.content(B) == b"1234"


# --- cancellation ---------------------------------------------------------------------------------------------------


def cancel_at(board: Board, scope: anyio.CancelScope, index: int, *, after: bool) -> None:
    """Cancel a scope at the operation with this number, counted from now."""
    index += board.power.count

    def cancel(op: Operation) -> None:
        if op.index == index:
            scope.cancel()

    if after:
        board.power.after = cancel
    else:
        board.power.before = cancel


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_cancelled_at_any_operation_the_running_slot_is_untouched_and_the_next_update_works(after: bool) -> None:
    for index in range(9):
        board = await booted()
        with anyio.CancelScope() as scope:
            cancel_at(board, scope, index, after=after)
            await update_and_restart(board.device, NEW)
        board.power.restore()
        assert board.content(A) == OLD
        assert not board.lock.held
        assert not board.device.live.held
        assert board.device.live.update is None
        activated = board.record.state is State.TESTING
        assert activated == (index >= 7)
        if activated:  # the record was durable: the update survives the cancellation as it would a power cut
            board.reset.returns = True
            while await boot_check(board.boot()) is Verdict.RESET:
                pass
            assert board.record.state is State.FAILED
            assert board.content(board.flash.running) == NEW
            continue
        assert board.flash.selected is A
        assert board.record.outcome in (None, Outcome.INTERRUPTED)
        await update_and_restart(board.device, NEW)
        assert board.content(B) == NEW


async def test_cancelled_at_any_turn_of_the_event_loop() -> None:
    """Not only between operations: wherever it awaits."""
    turns = 0
    while not await cancelled_after(turns):
        turns += 1
    assert turns > 10


async def cancelled_after(turns: int) -> bool:
    """Whether the update was quicker."""
    board = await booted()
    board.reset.returns = True
    async with anyio.create_task_group() as tg:

        async def cancel() -> None:
            for _ in range(turns):
                await checkpoint()
            tg.cancel_scope.cancel()

        tg.start_soon(cancel)
        await update(board.device, NEW)
        tg.cancel_scope.cancel()
    assert board.content(A) == OLD
    assert not board.lock.held
    assert not board.device.live.held
    finished = board.flash.selected is B
    if not finished and board.record.state is State.CONFIRMED:
        await update(board.device, NEW)
    assert board.content(B) == NEW
    return finished


# --- first start ----------------------------------------------------------------------------------------------------


async def test_first_update_without_a_record_counts_what_runs_as_proven() -> None:
    board = Board()
    await update_and_restart(board.device, NEW)
    assert board.record.a == SlotImage(size=len(OLD), image_size=len(OLD), sha256=digest(OLD), version="1", proven=True)
    assert board.record.trial is B


async def test_first_update_of_a_blank_device() -> None:
    board = Board(b"")
    status = await board.device.status()
    assert (status.state, status.active_slot, status.image) == (State.CONFIRMED, A, None)
    await update_and_restart(board.device, NEW)
    assert board.record.a is None
    assert board.record.trial is B


# --- provisioning ---------------------------------------------------------------------------------------------------


async def body(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 400):
        yield data[start : start + 400]


async def test_a_provisioned_device_is_confirmed_and_proven() -> None:
    board = Board(b"", verifier=verifying())
    whole = signed(OLD)
    image = await provision(board.device, body(whole), size=len(whole))
    assert (image.slot, image.sha256) == (A, digest(OLD))
    assert board.record.state is State.CONFIRMED
    assert board.record.a == SlotImage(
        size=len(OLD),
        image_size=len(OLD) + 64,
        sha256=digest(OLD),
        version="1",
        proven=True,
        image_sha256=digest(whole),
    )
    assert await boot_check(board.boot()) is Verdict.RUN
    assert not board.lock.held


async def test_a_device_with_an_image_is_provisioned_only_by_force() -> None:
    board = await booted()
    before = board.snapshot()
    with pytest.raises(RejectedError, match="force"):
        await provision(board.device, body(NEW), size=len(NEW))
    assert board.snapshot() == before
    await provision(board.device, body(NEW), size=len(NEW), force=True)
    assert board.content(A) == NEW
    assert board.record.a == replace(cast(SlotImage, board.record.a), sha256=digest(NEW), size=len(NEW), proven=True)


@pytest.mark.parametrize(
    ("size", "error"),
    [(0, EmptyImageError), (ROOM + 1, TooLargeError), (len(NEW) + 1, TruncatedError), (len(NEW) - 1, OverrunError)],
)
async def test_a_provisioning_that_fails_leaves_no_image(size: int, error: type[OtaError]) -> None:
    board = Board(b"")
    with pytest.raises(error):
        await provision(board.device, body(NEW), size=size)
    assert board.state.record is None or board.record == replace(BootRecord(), revision=board.record.revision)
    assert not board.lock.held
    await provision(board.device, body(NEW), size=len(NEW))
    assert board.content(A) == NEW


async def test_a_provisioning_that_does_not_verify_leaves_no_image() -> None:
    board = Board(b"", verifier=verifying())
    with pytest.raises(BadSignatureError):
        await provision(board.device, body(NEW), size=len(NEW))
    assert board.record.a is None
    assert board.record.state is State.CONFIRMED


async def test_an_update_is_logged_one_line_an_event(caplog: pytest.LogCaptureFixture) -> None:
    board = await booted()
    caplog.set_level(logging.INFO, "mgota")
    await update_and_restart(board.device, NEW)
    lines = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert lines == ["update begins", "sealed", "slot b goes on trial", "reset"]
    assert all(record.name.startswith("mgota.") for record in caplog.records)
