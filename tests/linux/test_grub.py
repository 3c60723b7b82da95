"""GRUB's environment where it lies: with grub-editenv, and with a crash at every write."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mgota.core.bootvars import GrubOrder
from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError
from mgota.linux import grub
from mgota.linux.grub import GrubEnvironment, GrubSelector
from mgota.ports import Selector
from mgota.testing import CrashPoint, Order, every_crash

A, B = Slot
tools = pytest.mark.program("grub-editenv")


def edit(path: Path, *words: str) -> str:
    return subprocess.run(["grub-editenv", path, *words], capture_output=True, text=True, check=True).stdout


def listed(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in edit(path, "list").splitlines())


def make(path: Path) -> GrubEnvironment:
    edit(path, "create")
    edit(path, "set", "ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=1", "B_TRY=0", "saved_entry=0")
    return GrubEnvironment(path)


@tools
def test_the_tool_of_grub_and_we_understand_each_other(tmp_path: Path) -> None:
    environment = make(tmp_path / "grubenv")
    for turn in range(6):
        edit(tmp_path / "grubenv", "set", f"tool={turn}", "odd=a\\b #c")
        assert environment.variables() == listed(tmp_path / "grubenv")
        assert environment.change(lambda _, turn=turn: {"we": f"x\\{turn}", "odd": None if turn % 2 else "#"})  # type: ignore[misc]
        assert environment.variables() == listed(tmp_path / "grubenv")
    assert environment.change(lambda _: {"long": "x" * 700}), "over sectors"
    assert environment.variables() == listed(tmp_path / "grubenv")
    assert not environment.change(lambda _: {})
    edit(tmp_path / "grubenv", "unset", "we")
    assert environment.variables() == listed(tmp_path / "grubenv")


@tools
@pytest.mark.parametrize("order", list(Order))
def test_a_change_survives_every_crash(tmp_path: Path, order: Order) -> None:
    changes = [{"ORDER": "A B"}, {"ORDER": "B A"}, {"ORDER": "A  "}, {"long": "x" * 600}]

    def action(directory: Path, mark: Callable[[object], None]) -> None:
        for change in changes[1:]:
            GrubEnvironment(directory / "grubenv").change(lambda _, change=change: change)  # type: ignore[misc]
            mark(change)

    def check(directory: Path, point: CrashPoint) -> None:
        found = GrubEnvironment(directory / "grubenv").variables()
        assert any(change.items() <= found.items() for change in changes[len(point.marks) :][:2])
        assert found["saved_entry"] == "0"

    report = every_crash(
        action, check, tmp_path, prepare=lambda directory: make(directory / "grubenv"), order=order, limit=64
    )
    assert report.checked > 6


@tools
@pytest.mark.asyncio
async def test_the_selector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selector = GrubSelector(make(tmp_path / "grubenv"), GrubOrder())
    assert isinstance(selector, Selector)
    await selector.recover()
    await selector.selftest()
    await selector.select(B, running=A)
    assert await selector.selected_slot() is B
    assert not await selector.tried(B)
    edit(tmp_path / "grubenv", "set", "B_TRY=1")  # as the boot script does
    assert await selector.tried(B)
    await selector.settle(B, fallback=True)
    assert listed(tmp_path / "grubenv")["B_TRY"] == "0"
    with monkeypatch.context() as patch:
        patch.setattr(grub, "write_in_place", lambda *_: None)
        with pytest.raises(SelectError, match="does not keep"):
            await selector.select(A, running=B)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: 1)
        with pytest.raises(SelectError, match="only a part"):
            await selector.select(A, running=B)
    (tmp_path / "grubenv").write_bytes(b"junk")
    with pytest.raises(FlashError, match="no environment block"):
        await selector.selected_slot()
    (tmp_path / "grubenv").unlink()
    with pytest.raises(FlashError, match="No such file"):
        await selector.selftest()
