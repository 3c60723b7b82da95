"""The task that owns an update in pieces: what it survives, and in which order it does things."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import pytest
from fake_device import FakeDevice
from memory_device import OLD, Board, PowerCut, Restarted

from mgota.core.geometry import Slot
from mgota.core.receive import Answer, Patience, Phase
from mgota.core.record import State
from mgota.core.rpc import Abort, Chunk
from mgota.errors import FlashError, OtaError, ProgramError, SelectError, StateError, TransferError, TrialRunningError
from mgota.finished import OnFinished
from mgota.ports import ReadableBuffer
from mgota.receiver import Receiver
from mgota.trial import boot_check
from mgota.verified import VerifiedImage

pytestmark = pytest.mark.asyncio

IMAGE = bytes(range(256)) * 4
SESSION = "0123456789abcdef"


class Sender:
    def __init__(self, receiver: Receiver, session: str | None = None) -> None:
        self.receiver = receiver
        self.session = session
        self.answers: list[Answer] = []

    async def tell(self, answer: Answer) -> None:
        self.answers.append(answer)

    async def send(self, offset: int, data: bytes, total: int = len(IMAGE)) -> Answer:
        await self.receiver.take(Chunk(total, offset, data, self.session), self.tell)
        return self.answers[-1]

    async def whole(self) -> Answer:
        assert (await self.send(0, IMAGE)).sealed
        return await self.send(len(IMAGE), b"")


@asynccontextmanager
async def running(
    fake: FakeDevice,
    *,
    patience: Patience | None = None,
    activate: bool = True,
    session: str | None = None,
    on_finished: OnFinished | None = None,
) -> AsyncIterator[Sender]:
    receiver = Receiver(fake.device, patience=patience, activate=activate, on_finished=on_finished)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.run)
        yield Sender(receiver, session)
        tasks.cancel_scope.cancel()


async def test_it_resets_when_the_sender_was_told() -> None:
    fake, told = FakeDevice(), anyio.Event()
    async with running(fake) as sender, anyio.create_task_group() as tasks:
        await sender.send(0, IMAGE)

        async def slowly(answer: Answer) -> None:
            assert answer.activated
            assert fake.state.record
            assert fake.state.record.state is State.TESTING  # it survives any cut, before anybody is told
            assert fake.flash.selected is Slot.A
            await told.wait()

        tasks.start_soon(sender.receiver.take, Chunk(len(IMAGE), len(IMAGE), b""), slowly)
        await anyio.wait_all_tasks_blocked()
        # Meanwhile it answers as before; nobody begins another one.
        assert (await sender.send(len(IMAGE), b"")).activated
        assert isinstance((await sender.send(len(IMAGE), b"junk")).error, TransferError)
        assert isinstance((await sender.send(0, IMAGE)).error, TrialRunningError)
        assert fake.reset.count == 0
        told.set()
        await fake.reset.happened.wait()
        assert fake.flash.selected is Slot.B
    assert fake.staged == IMAGE


async def test_after_the_reset_a_late_end_is_answered_as_it_was_before() -> None:
    fake = FakeDevice()
    async with running(fake) as sender:
        end = await sender.whole()
        await fake.reset.happened.wait()
    fake.flash.running = fake.flash.selected
    for state in (State.TESTING, State.FAILED):
        assert fake.state.record
        fake.state.record = fake.state.record.next(state=state)
        async with running(fake) as sender:
            assert await sender.send(len(IMAGE), b"") == end
            assert await sender.send(len(IMAGE) - 5, IMAGE[-5:]) == end
            assert (await sender.send(len(IMAGE) - 5, b"other")).error
            assert (await sender.send(len(IMAGE) + 1, b"", len(IMAGE) + 1)).error
    fake.boot()
    async with running(fake) as sender:
        assert (await sender.send(len(IMAGE), b"")).error
    assert fake.reset.count == 1


class Ends:
    """What an application was told, and whether the device was free by then."""

    def __init__(self, fake: FakeDevice) -> None:
        self.fake = fake
        self.told: list[str] = []
        self.held: list[bool] = []

    async def __call__(self, result: VerifiedImage | OtaError) -> object:
        self.told.append(type(result).__name__)
        self.held.append(self.fake.device.live.held)
        return len(self.told)


@pytest.mark.parametrize("activate", [True, False])
async def test_an_application_is_told_of_the_image_before_its_sender_is(activate: bool) -> None:
    fake = FakeDevice()
    ends = Ends(fake)
    async with running(fake, activate=activate, on_finished=ends) as sender:
        assert (await sender.send(0, IMAGE)).instead is None
        assert ends.told == []
        assert (await sender.send(len(IMAGE), b"")).instead == 1
        assert ends.told == ["VerifiedImage"]
        assert (await sender.send(len(IMAGE), b"")).instead is None  # once more: nothing ended
        if activate:
            await fake.reset.happened.wait()
    assert ends.told == ["VerifiedImage"]


async def test_an_application_is_told_why_an_update_came_to_nothing() -> None:
    fake = FakeDevice()
    ends = Ends(fake)
    async with running(fake, patience=Patience(idle=0.05), on_finished=ends, session=SESSION) as sender:
        assert (await sender.send(0, b"abc", 1 << 30)).instead == 1
        sender.session = "a-second-session"
        await sender.send(0, b"abc", 10)
        assert (await sender.send(5, b"abc", 10)).instead is None  # a gap ends nothing
        assert (await sender.send(0, b"abd", 10)).instead == 2
        sender.session = "another-session-x"
        await sender.send(0, b"abc", 10)
        await sender.receiver.take(Abort(sender.session), sender.tell)
        await sender.send(0, b"abc", 10)
        with anyio.fail_after(5):
            while len(ends.told) < 4:
                await anyio.sleep(0.005)
        sender.session = None
        await sender.send(0, b"abc", 10)
        assert (await sender.send(0, b"other", 11)).instead is None  # one was given up; the answer is to the next
        assert (await sender.send(0, b"", 11)).instead == 6  # it says that this is all
    names = "TooLargeError TransferError TransferError StalledError TransferError TruncatedError"
    assert ends.told == names.split()
    assert not any(ends.held)


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_an_application_cannot_stop_an_update(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.receiver.FINISH", 0.02)
    fake = FakeDevice()

    async def finished(_: VerifiedImage | OtaError) -> None:
        if how == "raises":
            raise ValueError("a bug")
        await anyio.sleep_forever()

    async with running(fake, on_finished=finished) as sender:
        assert (await sender.whole()).activated
        await fake.reset.happened.wait()
    assert fake.flash.selected is Slot.B


@pytest.mark.parametrize("fault", [TransferError("the broker is gone"), RuntimeError("a bug")])
async def test_it_resets_all_the_same_when_the_sender_cannot_be_told(fault: Exception) -> None:
    fake = FakeDevice()
    async with running(fake) as sender:
        await sender.send(0, IMAGE)

        async def fails(_: Answer) -> None:
            raise fault

        with pytest.raises(type(fault)):
            await sender.receiver.take(Chunk(len(IMAGE), len(IMAGE), b""), fails)
        await fake.reset.happened.wait()


async def test_it_resets_all_the_same_when_telling_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.receiver.TELL", 0.01)
    fake = FakeDevice()
    async with running(fake) as sender, anyio.create_task_group() as tasks:
        await sender.send(0, IMAGE)

        async def never(_: Answer) -> None:
            await anyio.sleep_forever()

        tasks.start_soon(sender.receiver.take, Chunk(len(IMAGE), len(IMAGE), b""), never)
        await fake.reset.happened.wait()
        tasks.cancel_scope.cancel()


async def test_who_is_cancelled_while_flash_works_does_not_disturb_the_update() -> None:
    fake, gate = FakeDevice(), anyio.Event()
    fake.flash.on_write = gate.wait
    async with running(fake) as sender, anyio.create_task_group() as tasks:
        for _ in range(2):  # one is being written, the other waits for its turn
            tasks.start_soon(sender.send, 0, IMAGE[:100])
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert sender.answers == []


async def test_a_piece_that_was_cancelled_in_flash_is_there_when_it_comes_again() -> None:
    fake, gate = FakeDevice(), anyio.Event()
    fake.flash.on_write = gate.wait
    async with running(fake, session=SESSION) as sender:
        with anyio.move_on_after(0.01):
            await sender.send(0, IMAGE[:100])
        gate.set()
        assert await sender.send(0, IMAGE[:100]) == Answer(next=100)
        assert fake.flash.chunks == [100]


async def test_who_runs_it_stops_and_everybody_hears_of_it() -> None:
    fake, gate = FakeDevice(), anyio.Event()
    fake.flash.on_write = gate.wait
    receiver = Receiver(fake.device)
    sender = Sender(receiver)
    async with anyio.create_task_group() as senders, anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.run)
        senders.start_soon(sender.send, 0, IMAGE)
        senders.start_soon(sender.send, 0, IMAGE)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert ["stopping" in str(answer.error) for answer in sender.answers] == [True, True]
    with pytest.raises(TransferError, match="stopping"):
        await sender.send(0, IMAGE)
    assert not fake.device.live.held
    assert fake.flash.aborted == 1


async def test_an_error_leaves_the_update_before_the_sender_is_told() -> None:
    fake = FakeDevice()

    async def fails() -> None:
        raise ProgramError("sector 7")

    fake.flash.on_write = fails
    async with running(fake) as sender:

        async def tell(answer: Answer) -> None:
            assert isinstance(answer.error, ProgramError)
            assert not fake.device.live.held

        await sender.receiver.take(Chunk(len(IMAGE), 0, IMAGE), tell)
        fake.flash.on_write = None
        assert (await sender.whole()).activated


async def test_a_fault_of_a_backend_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeDevice()

    async def fails() -> None:
        raise ZeroDivisionError("with a secret in it")

    fake.flash.on_write = fails
    async with running(fake) as sender:
        answer = await sender.send(0, IMAGE)
        assert isinstance(answer.error, FlashError)
        assert str(answer.error) == "internal error"
        assert not fake.device.live.held
        fake.flash.on_write = None
        assert (await sender.whole()).activated
    assert "ZeroDivisionError" in caplog.text


async def test_a_record_that_cannot_be_stored_is_the_answer_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDevice()
    async with running(fake) as sender:
        await sender.send(0, IMAGE)

        async def store(_: object) -> None:
            raise StateError("no")

        monkeypatch.setattr(fake.state, "store", store)
        answer = await sender.send(len(IMAGE), b"")
        assert (type(answer.error), answer.activated) == (StateError, False)
        assert not fake.device.live.held
    assert fake.untouched()


async def test_a_slot_that_cannot_be_selected_is_logged_after_the_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeDevice()

    async def select(slot: Slot) -> None:
        if slot is Slot.B:
            raise SelectError("the option bytes are locked")

    monkeypatch.setattr(fake.flash, "select", select)
    async with running(fake) as sender:
        with caplog.at_level(logging.ERROR):
            assert (await sender.whole()).activated
            while "locked" not in caplog.text:
                await anyio.sleep(0.001)
        assert fake.reset.count == 0
        assert not fake.device.live.held
        assert sender.receiver.rules.phase is Phase.ACTIVATED


async def test_silence_activates_and_idleness_gives_up() -> None:
    fake = FakeDevice()
    async with running(fake, patience=Patience(idle=60, silence=0.01)) as sender:
        await sender.send(0, IMAGE)
        await fake.reset.happened.wait()
        assert fake.flash.selected is Slot.B
    fake = FakeDevice()
    async with running(fake, patience=Patience(idle=0.01)) as sender:
        await sender.send(0, IMAGE[:100])
        while fake.device.live.held:
            await anyio.sleep(0.001)
    assert fake.untouched()


async def test_staged_for_later() -> None:
    fake = FakeDevice()
    async with running(fake, activate=False) as sender:
        assert (await sender.whole()).activated
        staged = await fake.device.staged()
        assert staged
        assert staged.size == len(IMAGE)
        assert (await sender.whole()).activated  # and once more
    assert (fake.reset.count, fake.flash.opened) == (0, 2)


async def test_a_writer_that_holds_back_a_tail() -> None:
    """An equal duplicate of bytes that are not in flash yet is known all the same."""

    class Held:
        """Stores whole units of 512 bytes only."""

        def __init__(self, fake: FakeDevice) -> None:
            self.fake = fake
            self.tail = b""

        async def write(self, chunk: ReadableBuffer) -> None:
            data = self.tail + bytes(chunk)
            whole = len(data) // 512 * 512
            self.fake.flash.slots[Slot.B] += data[:whole]
            self.tail = data[whole:]

        async def finish(self) -> None:
            self.fake.flash.slots[Slot.B] += self.tail

        async def abort(self) -> None:
            pass

    fake = FakeDevice(room=1 << 20)

    async def open_writer(slot: Slot, size: int) -> Held:
        fake.flash.slots[slot] = bytearray()
        return Held(fake)

    fake.flash.open_writer = open_writer  # type: ignore[method-assign]
    image = bytes(byte * 7 % 256 for byte in range(200_100))
    async with running(fake, session=SESSION) as sender:
        for offset in range(0, len(image), 700):
            for again in {offset, max(0, offset - 700), max(0, offset - 70_000)}:
                data = image[again : again + 700]
                assert (await sender.send(again, data, len(image))).error is None
        assert (await sender.send(len(image), b"", len(image))).activated
        await fake.reset.happened.wait()
    assert fake.staged == image


async def test_a_power_cut_at_every_operation_leaves_the_old_image_or_the_new_one() -> None:
    """The board counts operations of flash and record, and stops at each."""
    new = bytes(range(200)) * 6
    came: list[bool] = []
    for index in range(100):
        board = Board()
        board.power.cut_at(index)
        with pytest.raises(BaseExceptionGroup) as caught:  # the power, or the reset at the end
            await _update(board, new)
        cut = caught.group_contains(PowerCut)
        for _ in range(3):
            with suppress(Restarted):
                await boot_check(board.boot())
                break
        running = board.content(board.flash.running)
        assert running in {OLD, new}
        came.append(running == new)
        if not cut:
            break
    assert not cut
    assert came == sorted(came), "once it is new, it is new after every later cut"
    assert came[0] is False
    assert came[-1] is True
    assert len(came) > 8


async def _update(board: Board, image: bytes) -> None:
    receiver = Receiver(board.device)
    sender = Sender(receiver)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.run)
        for offset in range(0, len(image), 400):
            await sender.send(offset, image[offset : offset + 400], len(image))
        await sender.send(len(image), b"", len(image))
        await anyio.sleep_forever()
