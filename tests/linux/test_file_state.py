"""The boot record in a file: whole, durable, or refused."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given, strategies as st

from mgota.core.geometry import Slot
from mgota.core.record import MAX_RECORD, BootRecord, State, encode_record
from mgota.errors import StateError
from mgota.linux.state import FileState
from mgota.ports import StateStore

RECORD = BootRecord(revision=7, state=State.FAILED, trial=Slot.B)


class Syncs:
    """Counts fsync, and lets it fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fail_at = 0
        self.real = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        self.count += 1
        if self.count == self.fail_at:
            raise OSError(errno.EIO, "Input/output error")
        self.real(descriptor)


def full(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.asyncio
async def test_what_is_stored_is_loaded_by_whoever_comes_next(tmp_path: Path) -> None:
    state = FileState(tmp_path / "state")
    assert isinstance(state, StateStore)
    assert await state.load() is None
    await state.store(RECORD)
    assert await state.load() == await FileState(tmp_path / "state").load() == RECORD
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.asyncio
async def test_the_first_record_is_made_durable_before_it_is_acted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_bytes(encode_record(RECORD))
    syncs = Syncs(monkeypatch)
    state = FileState(tmp_path / "state")
    await state.load()
    assert syncs.count == 2, "the file and its directory"
    await state.load()
    assert syncs.count == 2


@pytest.mark.asyncio
@pytest.mark.parametrize("fail_at", [1, 2])
async def test_an_fsync_that_failed_is_never_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int
) -> None:
    (tmp_path / "state").write_bytes(encode_record(RECORD))
    syncs = Syncs(monkeypatch)
    syncs.fail_at = fail_at
    state = FileState(tmp_path / "state")
    with pytest.raises(StateError, match="Input/output error"):
        await state.load()
    with pytest.raises(StateError, match="nobody knows"):
        await state.load()
    assert syncs.count == fail_at
    await state.store(RECORD.next())
    assert await state.load() == RECORD.next()


@pytest.mark.asyncio
async def test_a_store_that_failed_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = FileState(tmp_path / "state")
    await state.store(RECORD)
    with monkeypatch.context() as broken:
        broken.setattr(os, "replace", full)
        with pytest.raises(StateError, match="No space left"):
            await state.store(RECORD.next())
    assert await state.load() == RECORD


@pytest.mark.asyncio
async def test_a_store_of_which_nobody_knows_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = FileState(tmp_path / "state")
    await state.store(RECORD)
    syncs = Syncs(monkeypatch)
    syncs.fail_at = 2  # the directory's, after the rename
    with pytest.raises(StateError):
        await state.store(RECORD.next())
    with pytest.raises(StateError, match="nobody knows"):
        await state.load()
    await state.store(RECORD.next().next())
    assert await state.load() == RECORD.next().next()


@pytest.mark.asyncio
async def test_a_doubt_outlives_a_store_that_failed_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = FileState(tmp_path / "state")
    await state.store(RECORD)
    syncs = Syncs(monkeypatch)
    for syncs.fail_at in (2, 3):  # the directory's, after the rename; then the next file's, before it
        with pytest.raises(StateError, match="Input/output error"):
            await state.store(RECORD.next() if syncs.fail_at == 2 else RECORD.next().next())
    with pytest.raises(StateError, match="nobody knows"):
        await state.load()


@pytest.mark.asyncio
async def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "state").symlink_to(tmp_path / "elsewhere" / "record")
    state = FileState(tmp_path / "state")
    assert await state.load() is None
    await state.store(RECORD)
    assert (tmp_path / "state").is_symlink()
    assert await FileState(tmp_path / "elsewhere" / "record").load() == RECORD


@pytest.mark.asyncio
async def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").write_bytes(bytes(MAX_RECORD + 1))
    for name in ("directory", "pipe", "loop", "large"):
        with pytest.raises(StateError):
            await FileState(tmp_path / name).load()
    with pytest.raises(StateError, match="cannot store"):
        await FileState(tmp_path / "missing" / "state").store(RECORD)


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_record_or_a_state_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-state"
    path.write_bytes(data)
    with suppress(StateError):
        assert isinstance(FileState(path)._load(), BootRecord)
