"""The seed's three coroutines, and a fourth that reads."""

import sys
from typing import Any

import anyio
import pytest

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, State
from mgota.errors import (
    ConfigError,
    FlashError,
    OverrunError,
    ProgramError,
    ReadError,
    SelectError,
    StateError,
    TooLargeError,
    TruncatedError,
)
from mgota.flash.custom import CustomBackend
from mgota.flash.virtual import VirtualWatchdog
from mgota.ports import FlashBackend, FlashWriter

pytestmark = pytest.mark.asyncio


class Chip:
    """A user's chip: two memories and a pointer."""

    def __init__(self) -> None:
        self.staging = bytearray()
        self.log: list[str] = []
        self.answers: dict[str, Any] = {}

    def _do(self, name: str) -> Any:
        self.log.append(name)
        answer = self.answers.get(name)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def begin(self, size: int) -> Any:
        self.staging.clear()
        return self._do("begin")

    async def write(self, chunk: bytes | bytearray | memoryview) -> Any:
        self.staging += chunk
        return self._do("write")

    async def end(self) -> Any:
        return self._do("end")

    async def read(self, offset: int, size: int) -> Any:
        answer = self._do("read")
        return bytes(self.staging[offset : offset + size]) if answer is None else answer

    async def rollback(self) -> Any:
        return self._do("rollback")

    async def running(self) -> Any:
        return self._do("running")

    def backend(self, **options: Any) -> CustomBackend:
        return CustomBackend(self.begin, self.write, self.end, self.read, **options)


class Store:
    def __init__(self, record: BootRecord | None = None) -> None:
        self.record = record

    async def load(self) -> BootRecord | None:
        return self.record

    async def store(self, record: BootRecord) -> None:
        self.record = record


async def stage(backend: CustomBackend, image: bytes = b"new image") -> None:
    writer = await backend.open_writer((await backend.running_slot()).other, len(image))
    await writer.write(image[:4])
    await writer.write(image[4:])
    await writer.finish()


async def test_four_coroutines_are_a_backend() -> None:
    chip = Chip()
    backend = chip.backend()
    assert isinstance(backend, FlashBackend)
    assert (backend.crc, backend.state, backend.watchdog) == ("crc-32", None, None)
    assert await backend.capacity() == sys.maxsize
    assert await backend.running_slot() is Slot.A
    assert await backend.extent(Slot.A) == 0
    await stage(backend)
    assert chip.log == ["begin", "write", "write"]  # nothing irreversible yet
    assert await backend.extent(Slot.B) >= 9
    assert await backend.read(Slot.B, 4, 5) == b"image"
    await backend.select(Slot.B)
    assert chip.log[-1] == "end"
    assert await backend.running_slot() is Slot.A
    await backend.recover()
    assert await backend.running_slot() is Slot.B


async def test_each_option_comes_by_itself() -> None:
    watchdog, store = VirtualWatchdog(), Store()
    chip = Chip()
    assert chip.backend(watchdog=watchdog).watchdog is watchdog
    assert chip.backend(state=store).state is store
    assert chip.backend(crc="crc-32-mpeg").crc == "crc-32-mpeg"
    assert await chip.backend(max_image=64).capacity() == 64
    with pytest.raises(ConfigError, match="max_image"):
        chip.backend(read_running=chip.read)


async def test_rollback_selects_the_previous_image() -> None:
    chip = Chip()
    backend = chip.backend(rollback=chip.rollback)
    await stage(backend)
    await backend.select(Slot.B)
    await backend.recover()
    await backend.select(Slot.A)
    await backend.select(Slot.A)
    assert chip.log[-2:] == ["end", "rollback"]
    await backend.recover()
    assert await backend.running_slot() is Slot.A


async def test_end_can_be_taken_back_before_the_boot() -> None:
    chip = Chip()
    backend = chip.backend(rollback=chip.rollback)
    await stage(backend)
    await backend.select(Slot.B)
    await backend.select(Slot.A)
    await backend.select(Slot.A)
    assert chip.log[-2:] == ["end", "rollback"]


async def test_without_rollback_there_is_no_way_back() -> None:
    chip = Chip()
    backend = chip.backend()
    await stage(backend)
    await backend.select(Slot.B)
    await backend.recover()
    with pytest.raises(SelectError, match="no rollback"):
        await backend.select(Slot.A)
    await backend.select(Slot.B)  # it runs, and is selected: nothing to do


async def test_the_chip_says_which_slot_runs_once_per_boot() -> None:
    chip = Chip()
    chip.answers["running"] = "b"
    backend = chip.backend(running=chip.running)
    assert await backend.running_slot() is Slot.B
    await stage(backend)
    await backend.select(Slot.A)
    await backend.recover()
    assert await backend.running_slot() is Slot.B  # the swap did not take
    await backend.select(Slot.A)
    assert chip.log == ["running", "begin", "write", "write", "end", "running", "end"]
    chip.answers["running"] = Slot.A
    await backend.recover()
    assert await backend.running_slot() is Slot.A


@pytest.mark.parametrize("answer", ["c", None, 1, ["a"], OSError("no bus")])
async def test_an_answer_that_is_no_slot_is_an_error(answer: object) -> None:
    chip = Chip()
    chip.answers["running"] = answer
    with pytest.raises(FlashError, match=r"a or b|which slot runs: no bus"):
        await chip.backend(running=chip.running).recover()


@pytest.mark.parametrize(
    ("record", "call"),
    [
        (None, "rollback"),
        (BootRecord(), "rollback"),
        (BootRecord(state=State.TESTING, trial=Slot.B), "end"),
        (BootRecord(state=State.TESTING, trial=Slot.A), "rollback"),
        (BootRecord(state=State.FAILED, trial=Slot.B), "rollback"),
    ],
)
async def test_after_a_restart_the_record_tells_an_update_from_the_way_back(
    record: BootRecord | None, call: str
) -> None:
    chip = Chip()
    await chip.backend(rollback=chip.rollback, state=Store(record)).select(Slot.B)
    assert chip.log == [call]


async def test_the_running_image_can_be_read_if_there_is_a_coroutine() -> None:
    chip, old = Chip(), Chip()
    old.staging += b"old image"
    backend = chip.backend(read_running=old.read, max_image=9)
    assert await backend.extent(Slot.A) == 9
    assert await backend.read(Slot.A, 0, 9) == b"old image"
    with pytest.raises(ReadError, match="running image"):
        await chip.backend().read(Slot.A, 0, 1)


@pytest.mark.parametrize("data", [b"short", b"much too long", 9, "new image", [1], False])
async def test_a_read_gives_exactly_what_was_asked_for(data: object) -> None:
    chip = Chip()
    chip.answers["read"] = data
    with pytest.raises(ReadError):
        await chip.backend().read(Slot.B, 0, 9)


@pytest.mark.parametrize("failure", [False, OSError("bus error"), ValueError()])
@pytest.mark.parametrize(
    ("call", "error"), [("begin", FlashError), ("write", ProgramError), ("end", SelectError), ("read", ReadError)]
)
async def test_false_and_foreign_exceptions_are_failures(call: str, error: type[FlashError], failure: Any) -> None:
    chip = Chip()
    chip.answers[call] = failure
    backend = chip.backend()

    async def update() -> None:
        await stage(backend)
        await backend.read(Slot.B, 0, 9)
        await backend.select(Slot.B)

    with pytest.raises(error) as caught:
        await update()
    assert caught.value.__cause__ is (failure or None)
    assert "\n" not in str(caught.value)


async def test_a_selection_that_failed_can_be_tried_again() -> None:
    chip = Chip()
    chip.answers["end"] = False
    backend = chip.backend()
    await stage(backend)
    with pytest.raises(SelectError):
        await backend.select(Slot.B)
    await backend.recover()
    assert await backend.running_slot() is Slot.A
    chip.answers["end"] = True
    await backend.select(Slot.B)
    await backend.recover()
    assert await backend.running_slot() is Slot.B


async def test_an_error_of_ours_passes_as_it_is() -> None:
    chip = Chip()
    chip.answers["end"] = StateError("mine")
    backend = chip.backend()
    await stage(backend)
    with pytest.raises(StateError, match="mine"):
        await backend.select(Slot.B)


async def test_only_the_staging_slot_is_written_and_only_what_fits() -> None:
    chip = Chip()
    backend = chip.backend(max_image=8)
    with pytest.raises(TooLargeError):
        await backend.open_writer(Slot.B, 9)
    with pytest.raises(FlashError, match="slot a runs"):
        await backend.open_writer(Slot.A, 8)
    assert chip.log == []


async def test_a_writer_takes_neither_more_nor_less_than_declared() -> None:
    chip = Chip()
    writer = await chip.backend().open_writer(Slot.B, 4)
    assert isinstance(writer, FlashWriter)
    await writer.write(b"")
    await writer.write(b"123")
    with pytest.raises(OverrunError):
        await writer.write(b"45")
    with pytest.raises(TruncatedError):
        await writer.finish()
    await writer.write(b"4")
    await writer.finish()
    assert chip.log == ["begin", "write", "write"]
    assert chip.staging == b"1234"


async def test_after_a_failed_write_nothing_is_taken() -> None:
    chip = Chip()
    chip.answers["write"] = False
    writer = await chip.backend().open_writer(Slot.B, 4)
    with pytest.raises(ProgramError):
        await writer.write(b"12")
    with pytest.raises(FlashError, match="given up"):
        await writer.write(b"34")
    await writer.abort()
    with pytest.raises(FlashError, match="given up"):
        await writer.finish()


async def test_cancellation_lands_between_two_calls() -> None:
    written = list[bytes]()
    chip = Chip()

    async def write(chunk: bytes | bytearray | memoryview) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()
        written.append(bytes(chunk))

    backend = CustomBackend(chip.begin, write, chip.end, chip.read)
    writer = await backend.open_writer(Slot.B, 4)
    with anyio.CancelScope() as scope:
        await writer.write(b"12")
        await writer.write(b"34")
    assert scope.cancelled_caught
    assert written == [b"12"]
