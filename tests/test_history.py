"""A device's history as it is kept, and those who are told of it."""

import json
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from memory_device import Board, firmware, update
from test_trial import committed, on_trial

from mgota import ConfigError, Device, boot_check, commit, rollback
from mgota.core.history import MAX_HISTORY, Update, encode_updates
from mgota.errors import BadSignatureError, StateError
from mgota.history import History, Sink, report_updates
from mgota.linux.story import FileStory
from mgota.ports import RecordObserver

pytestmark = pytest.mark.asyncio

OLD, NEW = firmware("1"), firmware("2", 1500)


class Memory:
    """A note in memory, which may be broken."""

    def __init__(self, data: bytes | None = None) -> None:
        self.data = data
        self.broken = False
        self.stores = 0

    async def load(self) -> bytes | None:
        if self.broken:
            raise StateError("worn out")
        return self.data

    async def store(self, data: bytes) -> None:
        if self.broken:
            raise StateError("worn out")
        self.data = data
        self.stores += 1


class Slow(Memory):
    async def load(self) -> bytes | None:
        await anyio.sleep_forever()
        return None


def with_history(board: Board, note: Memory) -> History:
    history = History(note, clock=lambda: 7.0)
    board.options["history"] = history
    board.boot()
    return history


async def test_a_life_is_written_down() -> None:
    board = await committed()
    history = with_history(board, Memory())
    assert isinstance(history, RecordObserver)
    await update(board.new_device(), OLD)
    await boot_check(board.boot())
    await boot_check(board.boot())  # nobody committed
    await boot_check(board.boot())
    told = [(one.outcome, one.reason, one.ended) for one in await history.updates()]
    assert told == [("rolled_back", "it was not committed", 7.0)]
    await update(board.new_device(), OLD)
    await boot_check(board.boot())
    assert await commit(board.device)
    await rollback(board.device)
    assert [one.outcome for one in await history.updates()] == ["rolled_back", "committed", "rolled_back"]


async def test_a_refused_image_is_written_down_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    board = await committed()
    history = with_history(board, Memory())

    async def refuse(*_: object, **__: object) -> None:
        raise BadSignatureError("bad signature")

    device = board.new_device()
    monkeypatch.setattr(type(device), "read_back", refuse)
    with pytest.raises(BadSignatureError):
        await update(device, NEW)
    (one,) = await history.updates()
    assert (one.outcome, one.reason) == ("refused", "bad signature")


@pytest.mark.parametrize("note", [Memory(), Slow()])
async def test_a_history_that_fails_changes_nothing(note: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.history.PATIENCE", 0.01)
    board = await on_trial()
    with_history(board, note)
    note.broken = True
    board.device.live.decided = True
    assert await commit(board.device)
    assert await rollback(board.device) is None  # type: ignore[func-returns-value]


async def test_a_history_in_a_file_has_one_line_for_each_update(tmp_path: Path) -> None:
    board = await committed()
    board.options["history"] = History(FileStory(tmp_path / "history", MAX_HISTORY))
    board.boot()
    await update(board.new_device(), OLD)
    await boot_check(board.boot())
    await commit(board.device)
    (line,) = (tmp_path / "history").read_text().splitlines()
    assert json.loads(line)["outcome"] == "committed"


# --- reports ---------------------------------------------------------------------------------------------------------


def ended(*numbers: int) -> bytes:
    return encode_updates(tuple(Update(number=number, began=1, ended=2, outcome="committed") for number in numbers))


async def reporting(note: Memory, progress: Memory, sinks: list[Sink], until: Callable[[], bool]) -> None:
    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await report_updates(History(note), progress, sinks, interval=0.001, timeout=0.05)

        tasks.start_soon(run)
        with anyio.fail_after(10):
            while not until():
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


async def test_each_sink_is_told_of_each_update_that_ended_once() -> None:
    note, progress = Memory(ended(1, 2) + encode_updates((Update(number=3, began=1),))), Memory()
    told: dict[str, list[int]] = {"a": [], "b": []}
    fails = 2

    async def a(one: Update) -> None:
        told["a"].append(one.number)

    async def b(one: Update) -> None:
        nonlocal fails
        if fails:
            fails -= 1
            raise OSError("no route")
        told["b"].append(one.number)

    sinks = [Sink("a", a), Sink("b", b)]
    await reporting(note, progress, sinks, lambda: len(told["b"]) == 2)
    assert told == {"a": [1, 2], "b": [1, 2]}
    note.data = ended(1, 2, 3)
    await reporting(note, progress, sinks, lambda: len(told["b"]) == 3)  # after a restart
    assert told == {"a": [1, 2, 3], "b": [1, 2, 3]}


async def test_a_sink_that_hangs_keeps_no_other_from_being_told() -> None:
    told: list[int] = []

    async def hangs(_: Update) -> None:
        await anyio.sleep_forever()

    async def takes(one: Update) -> None:
        told.append(one.number)

    await reporting(Memory(ended(1)), Memory(), [Sink("hangs", hangs), Sink("takes", takes)], lambda: told == [1])


@pytest.mark.parametrize("damage", [b"nonsense", b"[]", b'{"a": true}', None])
async def test_a_progress_that_is_lost_begins_anew(damage: bytes | None) -> None:
    told: list[int] = []

    async def takes(one: Update) -> None:
        told.append(one.number)

    progress = Memory(damage)
    progress.broken = damage is None
    await reporting(Memory(ended(4)), progress, [Sink("a", takes)], lambda: bool(told))
    assert told[0] == 4


async def test_two_sinks_of_one_name_make_no_sense() -> None:
    async def takes(_: Update) -> None: ...

    with pytest.raises(ConfigError):
        await report_updates(History(Memory()), Memory(), [Sink("a", takes), Sink("a", takes)])


async def test_news_of_this_process_are_told_at_once() -> None:
    board = await on_trial()
    history = with_history(board, Memory())
    board.device.live.decided = True
    told = anyio.Event()

    async def takes(_: Update) -> None:
        told.set()

    async with anyio.create_task_group() as tasks:

        async def run() -> None:
            await report_updates(history, Memory(), [Sink("a", takes)], interval=3600)

        tasks.start_soon(run)
        await anyio.sleep(0.01)
        await rollback(await _committed(board))
        with anyio.fail_after(5):
            await told.wait()
        tasks.cancel_scope.cancel()


async def _committed(board: Board) -> Device:
    await commit(board.device)
    return board.device
