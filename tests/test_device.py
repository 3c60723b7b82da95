"""A device: staged images, activation, first start, what it tells, where it comes from."""

import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
import pytest
from memory_device import (
    NEW,
    OLD,
    Board,
    MemoryWatchdog,
    Restarted,
    digest,
    firmware,
    send,
    signed,
    update,
    update_and_restart,
    verifying,
)

from mgota.core.boot import Arm, Reset, Select, Store, Verdict
from mgota.core.geometry import Slot
from mgota.core.image import Verifier
from mgota.core.keys import PrivateKey
from mgota.core.record import BootRecord, Outcome, SlotImage, State
from mgota.device import GRACE, Device
from mgota.errors import (
    BadSignatureError,
    ConfigError,
    DigestError,
    OtaError,
    SelectError,
    StateError,
    TrialRunningError,
    UnknownStateError,
    UpdateRunningError,
)
from mgota.session import OtaSession
from mgota.trial import boot_check, commit
from mgota.verified import VerifiedImage

pytestmark = pytest.mark.asyncio

A, B = Slot.A, Slot.B


async def booted(old: bytes = OLD, **options: Any) -> Board:
    board = Board(old, **options)
    assert await boot_check(board.device) is Verdict.RUN
    return board


async def staged_board(**options: Any) -> Board:
    board = await booted(**options)
    image = signed(NEW) if "verifier" in options else NEW
    await update(board.device, image, reset=False)
    return board


async def proven_both() -> Board:
    """Slot b runs, committed; slot a holds the image before, proven."""
    board = await booted()
    await update_and_restart(board.device, NEW)
    await boot_check(board.boot())
    assert await commit(board.device)
    return board


# --- staged activation ----------------------------------------------------------------------------------------------


async def test_a_staged_image_changes_nothing_but_the_record() -> None:
    board = await staged_board()
    record = board.record
    assert (record.state, record.staged, record.trial, record.outcome) == (State.CONFIRMED, B, None, None)
    assert record.b == SlotImage(size=len(NEW), image_size=len(NEW), sha256=digest(NEW), version="2")
    assert board.flash.selected is A
    assert board.reset.count == 0
    status = await board.device.status()
    assert status.staged == record.b
    assert status.image == record.a
    assert not board.lock.held


async def test_a_staged_image_is_left_alone_by_a_boot_and_activated_after_it() -> None:
    board = await staged_board(verifier=verifying())
    before = board.record
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.record == before
    image = await board.device.staged()
    assert isinstance(image, VerifiedImage)
    assert (image.slot, image.size, image.image_size) == (B, len(NEW), len(NEW) + 64)
    assert (image.sha256, image.version) == (digest(NEW), "2")
    with pytest.raises(Restarted):
        await board.device.activate(image)
    assert board.record.staged is None
    assert (board.record.state, board.record.trial) == (State.TESTING, B)
    assert await boot_check(board.boot()) is Verdict.TRIAL
    assert board.content(board.flash.running).startswith(NEW)


async def test_nothing_staged_is_none() -> None:
    board = Board()
    assert await board.device.staged() is None
    await boot_check(board.device)
    assert await board.device.staged() is None
    board.state.damage()
    assert await board.device.staged() is None


async def test_a_commit_does_not_touch_a_staged_image() -> None:
    board = await staged_board()
    before = board.snapshot()
    assert not await commit(board.device)
    assert board.snapshot() == before


async def test_a_new_update_drops_the_staged_image() -> None:
    board = await staged_board()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW[:400])
        assert await board.device.staged() is None
    assert board.record.staged is None
    assert board.record.b is None


async def test_check_then_use_flash_that_changed_since_it_was_staged_is_refused() -> None:
    board = await staged_board()
    image = await board.device.staged()
    assert image
    board.flash.cells[B][100] ^= 1
    before = board.snapshot()
    with pytest.raises(DigestError):
        await board.device.staged()
    with pytest.raises(DigestError):
        await board.device.activate(image)
    assert board.snapshot() == before


async def test_check_then_use_flash_that_changed_since_the_seal_is_refused() -> None:
    board = await booted(verifier=verifying())
    async with OtaSession(board.device, size=len(signed(NEW))) as ota:
        await send(ota, signed(NEW))
        image = await ota.seal()
    board.flash.cells[B][100] ^= 1
    with pytest.raises(BadSignatureError):
        await board.device.activate(image)
    assert board.flash.selected is A
    assert board.record.state is State.CONFIRMED


async def test_check_then_use_another_signed_image_in_the_slot_is_refused() -> None:
    """Its signature is good; but it is not the image that was verified."""
    board = await staged_board(verifier=verifying())
    image = await board.device.staged()
    assert image
    other = signed(firmware("3", len(NEW)))
    board.flash.cells[B][:] = other
    with pytest.raises(DigestError, match="does not hold the recorded image"):
        await board.device.activate(image)
    board.flash.cells[B][:] = other[:500]
    with pytest.raises(DigestError):
        await board.device.activate(image)
    assert board.flash.selected is A


async def test_key_compromise_a_staged_image_of_a_revoked_key_is_refused() -> None:
    board = await staged_board(verifier=verifying())
    board.options["verifier"] = Verifier(keys=[PrivateKey.generate().public])
    with pytest.raises(BadSignatureError):
        await board.boot().staged()


async def test_a_sealed_image_can_be_activated_after_its_session() -> None:
    """While nothing else was written there: the slot is read again."""
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        image = await ota.seal()
    with pytest.raises(Restarted):
        await board.device.activate(image)
    assert await boot_check(board.boot()) is Verdict.TRIAL


async def test_a_sealed_image_can_be_staged_after_its_session() -> None:
    board = await booted()
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW)
        image = await ota.seal()
    await board.device.activate(image, reset=False)
    found = await board.device.staged()
    assert found
    assert found.sha256 == image.sha256
    assert found.sha256[:16] in repr(found)


async def test_an_activation_while_the_device_is_busy_is_refused() -> None:
    board = await staged_board()
    image = await board.device.staged()
    assert image
    board.lock.taken = True
    await unchanged(board, UpdateRunningError, image)
    board.lock.taken = False
    board.state.damage()
    await unchanged(board, UnknownStateError, image)


async def test_an_activation_during_a_trial_is_refused() -> None:
    board = await staged_board()
    image = await board.device.staged()
    assert image
    board.reset.returns = True
    await board.device.activate(image)
    await unchanged(board, TrialRunningError, image)  # before the reset
    await boot_check(board.boot())
    await unchanged(board, TrialRunningError, image)  # during the trial


async def test_the_running_image_cannot_be_activated() -> None:
    board = await staged_board()
    image = await board.device.staged()
    assert image
    with pytest.raises(Restarted):
        await board.device.activate(image)
    await boot_check(board.boot())
    await commit(board.device)
    await unchanged(board, DigestError, image)


async def unchanged(board: Board, error: type[OtaError], image: VerifiedImage) -> None:
    before = board.snapshot()
    with pytest.raises(error):
        await board.device.activate(image)
    assert board.snapshot() == before


async def test_an_activation_announces_when_it_survives_any_cut() -> None:
    board = await staged_board()
    image = await board.device.staged()
    assert image
    seen: list[tuple[State, Slot]] = []

    async def announce() -> None:
        seen.append((board.record.state, board.flash.selected))

    with pytest.raises(Restarted):
        await board.device.activate(image, announce=announce)
    assert seen == [(State.TESTING, A)]


# --- first start ----------------------------------------------------------------------------------------------------


async def test_first_start_on_a_device_in_the_field() -> None:
    board = Board()
    assert await boot_check(board.device) is Verdict.RUN
    assert board.record == BootRecord(
        revision=1,
        a=SlotImage(size=len(OLD), image_size=len(OLD), sha256=digest(OLD), version="1", proven=True),
    )
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.record.revision == 1


async def test_first_start_on_a_device_that_runs_slot_b() -> None:
    board = Board(b"")
    board.flash.cells[B] += OLD
    board.flash.running = board.flash.selected = B
    await boot_check(board.device)
    assert board.record.b
    assert board.record.b.proven
    assert board.record.a is None


async def test_first_start_on_a_blank_device() -> None:
    board = Board(b"")
    assert await boot_check(board.device) is Verdict.RUN
    assert board.record == BootRecord(revision=1)
    assert (await board.device.status()).image is None


async def test_first_update_after_first_start_has_a_way_back() -> None:
    board = await booted()
    await update_and_restart(board.device, NEW)
    assert await boot_check(board.boot()) is Verdict.TRIAL
    with pytest.raises(Restarted):
        await boot_check(board.boot())
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.content(board.flash.running) == OLD
    assert board.record.outcome is Outcome.ROLLED_BACK


# --- what is whole --------------------------------------------------------------------------------------------------


async def test_an_image_is_whole_by_its_digest_alone() -> None:
    board = await proven_both()
    image = board.record.a
    assert image
    assert await board.device.is_whole(A, image)
    assert not await board.device.is_whole(A, None)
    assert not await board.device.is_whole(B, image)
    assert not await board.device.is_whole(A, replace(image, size=image.size + 1))
    board.flash.cells[A][3] ^= 1
    assert not await board.device.is_whole(A, image)


async def test_flash_that_cannot_be_read_holds_nothing_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    board = await proven_both()

    async def broken(slot: Slot, offset: int, size: int) -> bytes:
        raise SelectError("the bus is gone")

    monkeypatch.setattr(board.flash, "read", broken)
    assert not await board.device.is_whole(A, board.record.a)


# --- steps ----------------------------------------------------------------------------------------------------------


async def test_steps_are_carried_out_in_order_and_end_at_the_first_that_fails() -> None:
    board = await booted()
    record = board.record.next()
    board.reset.returns = True
    await board.device.perform(Store(record), Select(B), Arm(), Reset())
    assert (board.record, board.flash.selected, board.watchdog.armed) == (record, B, [60.0 + GRACE])
    assert board.reset.count == 1

    def broken(op: object) -> None:
        raise SelectError("no")

    board.power.before = broken
    with pytest.raises(SelectError):
        await board.device.perform(Select(A), Reset())
    assert board.reset.count == 1


async def test_a_store_runs_to_its_end_and_the_cancellation_comes_after_it() -> None:
    board = await booted()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await board.device.perform(Store(board.record.next(reason="x")), Reset())
    assert board.record.reason == "x"
    assert board.reset.count == 0


@pytest.mark.parametrize(("limit", "armed"), [(None, 90.0 + GRACE), (100.0, 90.0 + GRACE), (65.52, 65.52)])
async def test_the_watchdog_is_armed_for_what_it_can_count(limit: float | None, armed: float) -> None:
    board = Board(watchdog=MemoryWatchdog(limit=limit), window=90.0)
    await board.device.perform(Arm())
    assert board.watchdog.armed == [armed]
    seconds = (await board.device.status()).seconds_left
    assert seconds is None  # nothing runs on trial, whatever was armed


async def test_a_device_without_watchdog_or_reset_line_leaves_that_to_the_caller() -> None:
    board = Board(watchdog=None, reset=None)
    board.options["watchdog"] = None
    device = board.new_device()
    await device.perform(Arm(), Reset())
    assert device.live.trial_until is not None
    assert device.live.resetting


# --- one at a time --------------------------------------------------------------------------------------------------


async def test_exclusive_waits_as_long_as_it_is_told() -> None:
    board = await booted()
    board.lock.taken = True
    async with anyio.create_task_group() as tg:

        async def release() -> None:
            await anyio.sleep(0.05)
            board.lock.taken = False

        tg.start_soon(release)
        async with board.device.exclusive(wait=60):
            assert board.lock.held
            assert board.device.live.held
    assert not board.lock.held


async def test_exclusive_gives_up_in_the_end() -> None:
    board = await booted()
    board.lock.taken = True
    for wait in (0.0, 0.06):
        with pytest.raises(UpdateRunningError):
            await board.device.exclusive(wait=wait).__aenter__()
    assert not board.device.live.held


# --- status ---------------------------------------------------------------------------------------------------------


async def test_status_of_a_quiet_device() -> None:
    board = await booted()
    assert (await board.device.status()).as_dict() == {
        "state": "CONFIRMED",
        "active_slot": "a",
        "image": {"size": len(OLD), "sha256": digest(OLD), "version": "1"},
        "staged": None,
        "trial": None,
        "update": None,
        "outcome": None,
        "reason": None,
    }


async def test_status_of_a_life() -> None:
    board = await staged_board(window=30.0)
    told = (await board.device.status()).as_dict()
    assert told["staged"] == {"size": len(NEW), "sha256": digest(NEW), "version": "2"}
    async with OtaSession(board.device, size=len(NEW)) as ota:
        await send(ota, NEW[:400])
        told = (await board.device.status()).as_dict()
        assert (told["update"], told["staged"], told["state"]) == ({"received": 400, "size": 1500}, None, "CONFIRMED")
    await update_and_restart(board.device, NEW)
    told = (await board.device.status()).as_dict()
    assert (told["state"], told["active_slot"], told["trial"], told["outcome"]) == ("TESTING", "a", None, None)
    await boot_check(board.boot())
    told = (await board.device.status()).as_dict()
    assert (told["state"], told["active_slot"]) == ("FAILED", "b")
    assert isinstance(told["trial"], dict)
    assert 0 < told["trial"]["seconds_left"] <= 30
    await commit(board.device)
    told = (await board.device.status()).as_dict()
    assert (told["state"], told["trial"], told["outcome"], told["reason"]) == ("CONFIRMED", None, "committed", None)


async def test_confirmed_without_a_trial_is_shown_only_when_the_next_update_may_begin() -> None:
    """A watchdog that cannot be stopped resets the device after the commit: until then there is a trial."""
    board = await booted(watchdog=MemoryWatchdog(stoppable=False))
    await update_and_restart(board.device, NEW)
    await boot_check(board.boot())
    board.reset.returns = True
    await commit(board.device)
    told = (await board.device.status()).as_dict()
    assert told["state"] == "CONFIRMED"
    assert told["trial"] is not None
    await boot_check(board.boot())
    assert (await board.device.status()).as_dict()["trial"] is None
    await update(board.device, NEW)


async def test_status_of_an_unreadable_record() -> None:
    board = await booted()
    board.state.damage()
    told = (await board.device.status()).as_dict()
    assert (told["state"], told["active_slot"], told["image"], told["outcome"]) == ("UNKNOWN", "a", None, None)
    board.options["on_unknown"] = "confirm"
    assert (await board.boot().status()).state is State.CONFIRMED


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"window": 0.0}, {"window": -1.0}, {"tries": 0}])
async def test_a_trial_needs_time_and_a_try(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Board(**options)


async def test_from_environment_asks_the_factory_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board()
    asked: list[tuple[Mapping[str, str], dict[str, Any]]] = []

    def factory(environ: Mapping[str, str], **options: Any) -> Device:
        asked.append((environ, options))
        return board.device

    module = types.ModuleType("my_board")
    monkeypatch.setattr(module, "make", factory, raising=False)
    monkeypatch.setitem(sys.modules, "my_board", module)
    environ = {"MGOTA_DEVICE": "my_board:make"}
    assert Device.from_environment(environ, tries=2) is board.device
    assert asked == [(environ, {"tries": 2})]


@pytest.mark.parametrize("name", ["", ":", "os", "os:", "no_such_module_of_mgota:f", "os:no_such_name", "os path:x"])
async def test_from_environment_with_a_wrong_factory_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="names no factory"):
        Device.from_environment({"MGOTA_DEVICE": name})


async def test_an_unreadable_record_is_told_apart_from_none(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    assert await board.device.load() == (None, True)
    board.state.damage()
    assert await board.device.load() == (None, False)
    assert "unreadable" in caplog.text
    with pytest.raises(StateError):
        await board.state.load()


class BlockingFlash:
    """Only what `scan` needs of a backend that reads in a thread."""

    crc = "crc-32"

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.blocks = 0

    def read_blocking(self, slot: Slot, offset: int, size: int) -> bytes:
        self.blocks += 1
        return self.data[offset : offset + size]


async def test_a_backend_that_blocks_is_read_in_a_thread() -> None:
    data = bytes(range(256)) * (3 << 13)
    board = Board()
    board.options["flash"] = flash = BlockingFlash(data)
    scan = await board.new_device().scan(A, len(data), trailer=None)
    assert scan.sha256.hex() == digest(data)
    assert flash.blocks > 1


async def test_a_large_image_is_hashed_without_holding_the_loop() -> None:
    data = bytes(range(256)) * (3 << 13)
    board = Board(data, room=len(data))
    scan = await board.device.scan(A, len(data), trailer=None)
    assert scan.sha256.hex() == digest(data)
    assert board.flash.reads > 1
