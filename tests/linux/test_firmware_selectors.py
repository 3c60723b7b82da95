"""Selectors of EFI, systemd-boot, a Raspberry Pi, and a link: on files that stand for what the firmware reads."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from mgota.core.efi import GUID
from mgota.core.geometry import Slot
from mgota.errors import ConfigError, FlashError, SelectError
from mgota.linux import tryboot
from mgota.linux.efi import GETFLAGS, IMMUTABLE, SETFLAGS, EfiSelector
from mgota.linux.reset import RebootCommand
from mgota.linux.sdboot import SystemdBootSelector
from mgota.linux.symlink import SymlinkSelector
from mgota.linux.tryboot import TrybootSelector, running_partition
from mgota.ports import Resetter, Selector
from mgota.testing import CrashPoint, Order, every_crash

A, B = Slot
Mark = Callable[[object], None]
ORDERS = pytest.mark.parametrize("order", list(Order))


async def promises(selector: Selector, slots: tuple[Slot, ...] = (B, A, B)) -> None:
    """What a selector promises, whatever lies under it."""
    assert isinstance(selector, Selector)
    await selector.recover()
    await selector.select(A, running=A)
    for slot in slots:
        for running in (slot.other, slot):
            for _ in range(2):
                await selector.select(slot, running=running)
                assert await selector.selected_slot() is slot
            assert not await selector.tried(slot)
        for fallback in (True, False):
            await selector.settle(slot, fallback=fallback)
            assert await selector.selected_slot() is slot
        await selector.selftest()
        await selector.recover()
        assert await selector.selected_slot() is slot


# EFI


class Efivars:
    """`ioctl` of a file system whose variables may be marked as immutable."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.marked = set[str]()
        for number in (1, 2, 7):
            (directory / f"Boot{number:04X}-{GUID}").touch()
        self.put("BootOrder", 1, 7)

    def put(self, name: str, *numbers: int) -> None:
        data = b"\x07\0\0\0" + b"".join(number.to_bytes(2, "little") for number in numbers)
        (self.directory / f"{name}-{GUID}").write_bytes(data)

    def get(self, name: str) -> str | None:
        path = self.directory / f"{name}-{GUID}"
        return path.read_bytes().hex() if path.exists() else None

    def __call__(self, fd: int, number: int, argument: bytes) -> bytes:
        name = Path(f"/proc/self/fd/{fd}").readlink().name
        if number == GETFLAGS:
            return (IMMUTABLE if name in self.marked else 0).to_bytes(len(argument), "little")
        assert number == SETFLAGS
        assert argument == bytes(len(argument))
        self.marked.discard(name)
        return argument


@pytest.mark.asyncio
async def test_efi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def write(fd: int, data: bytes) -> int:
        """A write replaces a variable."""
        if str(tmp_path) in str(Path(f"/proc/self/fd/{fd}").readlink()):
            os.ftruncate(fd, 0)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    assert (GETFLAGS, SETFLAGS) == (0x80086601, 0x40086602)
    firmware = Efivars(tmp_path)
    firmware.marked.add(f"BootOrder-{GUID}")
    selector = EfiSelector({A: 1, B: 2}, directory=tmp_path, ioctl=firmware)
    await promises(selector)
    assert firmware.marked == set()
    assert (firmware.get("BootOrder"), firmware.get("BootNext")) == ("0700000002000700", None)
    await selector.select(A, running=B)
    assert (firmware.get("BootOrder"), firmware.get("BootNext")) == ("0700000002000700", "070000000100")


@pytest.mark.asyncio
async def test_efi_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firmware = Efivars(tmp_path)
    selector = EfiSelector({A: 1, B: 2}, directory=tmp_path, ioctl=firmware)
    for replaced, why in ((lambda fd, data: len(data), "does not keep"), (lambda fd, data: 1, "in part")):
        firmware.put("BootNext", 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", replaced)
            with pytest.raises(SelectError, match=f"cannot select slot b: .*{why}"):
                await selector.select(B, running=A)
        (tmp_path / f"BootNext-{GUID}").unlink(missing_ok=True)
    firmware.put("BootNext", 1, 2)
    with pytest.raises(FlashError, match="names no boot entry"):
        await selector.selected_slot()
    firmware.put("BootNext", 2)
    (tmp_path / f"Boot0002-{GUID}").unlink()
    with pytest.raises(FlashError, match="no boot entry Boot0002 for slot b"):
        await selector.selftest()
    (tmp_path / f"BootOrder-{GUID}").unlink()
    (tmp_path / f"BootOrder-{GUID}").mkdir()
    with pytest.raises(FlashError, match="BootOrder cannot be read"):
        await selector.selected_slot()
    with pytest.raises(SelectError, match="cannot be read"):
        await selector.select(A, running=A)


# systemd-boot

TEMPLATES = {slot: f"title slot {slot}\nlinux /{slot}/vmlinuz\noptions mgota.slot={slot}\n" for slot in Slot}


@pytest.mark.asyncio
async def test_systemd_boot(tmp_path: Path) -> None:
    selector = SystemdBootSelector(TEMPLATES, directory=tmp_path)
    assert await selector.selected_slot() is None
    with pytest.raises(FlashError, match="has no entry"):
        await selector.selftest()
    await promises(selector)
    assert [path.name for path in tmp_path.iterdir()] == ["mgota-b.conf"]
    text = (tmp_path / "mgota-b.conf").read_text()
    assert "linux /b/vmlinuz\n" in text
    assert "sort-key mgota\nversion " in text
    await selector.select(A, running=B)
    (tmp_path / "mgota-a+3.conf").rename(tmp_path / "mgota-a+0-3.conf")  # as the boot loader does
    assert await selector.tried(A)
    assert await selector.selected_slot() is B


@ORDERS
def test_systemd_boot_survives_every_crash(tmp_path: Path, order: Order) -> None:
    chosen = [(A, A), (B, A), (B, B), (A, B)]

    async def selects(directory: Path, mark: Mark) -> None:
        for slot, running in chosen[1:]:
            await SystemdBootSelector(TEMPLATES, directory=directory).select(slot, running=running)
            mark(slot)

    async def checks(directory: Path, point: CrashPoint) -> None:
        selector = SystemdBootSelector(TEMPLATES, directory=directory)
        assert await selector.selected_slot() in {slot for slot, _ in chosen[len(point.marks) :][:2]}
        before = await selector.selected_slot()
        await selector.recover()
        assert await selector.selected_slot() is before
        await promises(selector, (B,))

    def prepare(directory: Path) -> None:
        anyio.run(lambda: SystemdBootSelector(TEMPLATES, directory=directory).select(A, running=A))

    report = every_crash(
        lambda directory, mark: anyio.run(selects, directory, mark),
        lambda directory, point: anyio.run(checks, directory, point),
        tmp_path,
        prepare=prepare,
        order=order,
        limit=24,
    )
    assert report.checked > 10


@pytest.mark.asyncio
async def test_systemd_boot_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ({**TEMPLATES, A: "title nothing\n"}, TEMPLATES):
        with pytest.raises(ConfigError):
            SystemdBootSelector(wrong, directory=tmp_path, attempts=0 if wrong is TEMPLATES else 3)
    selector = SystemdBootSelector(TEMPLATES, directory=tmp_path)
    await selector.select(A, running=A)
    (tmp_path / ".mgota-b.conf.123.tmp").touch()
    await selector.recover()
    assert [path.name for path in tmp_path.iterdir()] == ["mgota-a.conf"]
    monkeypatch.setattr("mgota.linux.sdboot.replace_file", lambda *_: None)
    with pytest.raises(SelectError, match="does not keep its entries"):
        await selector.select(B, running=A)
    monkeypatch.undo()
    for directory in (tmp_path / "none", tmp_path / "mgota-a.conf"):
        with pytest.raises(SelectError, match="cannot"):
            await SystemdBootSelector(TEMPLATES, directory=directory).select(A, running=A)
        with pytest.raises(FlashError, match="cannot be written"):
            await SystemdBootSelector(TEMPLATES, directory=directory).selftest()
    monkeypatch.setattr("mgota.linux.sdboot.replace_file", lambda path, _: path.write_bytes(b"something else"))
    with pytest.raises(FlashError, match="does not keep what is written"):
        await selector.selftest()
    assert [path.name for path in tmp_path.iterdir()] == ["mgota-a.conf"]


# Raspberry Pi

AUTOBOOT = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"


@pytest.mark.asyncio
async def test_tryboot(tmp_path: Path) -> None:
    path = tmp_path / "autoboot.txt"
    path.write_text(AUTOBOOT)
    selector = TrybootSelector({A: 2, B: 3}, path=path)
    await selector.select(B, running=A)
    assert path.read_text() == AUTOBOOT, "a trial changes nothing"
    assert (await selector.selected_slot(), selector.reboot_argument) == (B, "0 tryboot")
    assert await TrybootSelector({A: 2, B: 3}, path=path).selected_slot() is A, "a cut forgets it"
    await selector.select(A, running=B)
    assert (await selector.selected_slot(), selector.reboot_argument) == (A, None), "back, without a commit"
    await selector.select(B, running=B)
    assert path.read_text() == AUTOBOOT.replace("2", "x").replace("3", "2").replace("x", "3")
    assert selector.reboot_argument is None
    await promises(selector)
    path.write_text(AUTOBOOT.replace("3", "9"))
    with pytest.raises(FlashError, match="names partitions 2 and 9"):
        await selector.selftest()
    await selector.select(B, running=A)
    assert path.read_text() == AUTOBOOT
    path.write_text(AUTOBOOT.replace("2", "8").replace("3", "12"))
    await selector.select(A, running=A)
    assert path.read_text() == AUTOBOOT, "of another length: replaced"


@ORDERS
def test_tryboot_survives_every_crash(tmp_path: Path, order: Order) -> None:
    def action(directory: Path, mark: Mark) -> None:
        for slot in (B, A):
            anyio.run(lambda slot=slot: TrybootSelector({A: 2, B: 3}, path=directory / "x").select(slot, running=slot))  # type: ignore[misc]
            mark(slot)

    def check(directory: Path, point: CrashPoint) -> None:
        found = anyio.run(TrybootSelector({A: 2, B: 3}, path=directory / "x").selected_slot)
        assert found in (A, B, A)[len(point.marks) :][:2]

    prepare: Callable[[Path], object] = lambda directory: (directory / "x").write_text(AUTOBOOT)
    report = every_crash(action, check, tmp_path, prepare=prepare, order=order)
    assert report.checked >= 5


@pytest.mark.asyncio
async def test_tryboot_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "autoboot.txt"
    selector = TrybootSelector({A: 2, B: 3}, path=path)
    with pytest.raises(SelectError, match="cannot be read: No such file"):
        await selector.select(B, running=A)
    path.write_text(AUTOBOOT)
    monkeypatch.setattr(tryboot, "write_in_place", lambda *_: None)
    with pytest.raises(SelectError, match="does not keep"):
        await selector.select(B, running=B)

    def fails(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(tryboot, "write_in_place", fails)
    with pytest.raises(SelectError, match="cannot be written: Input"):
        await selector.select(B, running=B)


def test_the_partition_that_the_firmware_booted(tmp_path: Path) -> None:
    (tmp_path / "partition").write_bytes(b"\0\0\0\x03")
    assert running_partition(tmp_path) == 3
    for wrong in (tmp_path / "none", tmp_path):
        (tmp_path / "partition").write_bytes(b"\0")
        with pytest.raises(ConfigError, match="does not say"):
            running_partition(wrong)


# a link


@pytest.mark.asyncio
async def test_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selector = SymlinkSelector(tmp_path / "current", {A: "/dev/one", B: "/dev/two"})
    assert await selector.selected_slot() is A
    await promises(selector)
    assert str((tmp_path / "current").readlink()) == "/dev/two"
    (tmp_path / ".current.tmp").symlink_to("/dev/one")
    await selector.recover()
    assert [path.name for path in tmp_path.iterdir()] == ["current"]
    with monkeypatch.context() as patch:
        patch.setattr("mgota.linux.symlink.sync_directory", _fails)
        for call in (selector.select(A, running=B), selector.recover()):
            with pytest.raises(FlashError, match="Input/output"):
                await call
    await selector.select(A, running=A)
    await SymlinkSelector(tmp_path / "current").select(A, running=A)
    assert str((tmp_path / "current").readlink()) == "a"
    with pytest.raises(FlashError, match="neither"):
        await selector.selftest()
    (tmp_path / "current").unlink()
    (tmp_path / "current").touch()
    with pytest.raises(FlashError, match="no symbolic link"):
        await selector.selected_slot()


def _fails(*_: Any) -> None:
    raise OSError(5, "Input/output error")


@ORDERS
def test_a_link_survives_every_crash(tmp_path: Path, order: Order) -> None:
    def action(directory: Path, mark: Mark) -> None:
        for slot in (B, A):
            anyio.run(lambda slot=slot: SymlinkSelector(directory / "x").select(slot, running=slot))  # type: ignore[misc]
            mark(slot)

    def check(directory: Path, point: CrashPoint) -> None:
        selector = SymlinkSelector(directory / "x")
        assert anyio.run(selector.selected_slot) in (A, B, A)[len(point.marks) :][:2]
        anyio.run(promises, selector)

    assert every_crash(action, check, tmp_path, order=order).checked > 5


# the machine starts again


@pytest.mark.asyncio
async def test_a_reboot_is_told_what_it_has_to_be(tmp_path: Path) -> None:
    script = tmp_path / "reboot"
    script.write_text(f'#!/bin/sh\necho "$1|$2|$#" >>{tmp_path}/calls\n[ "$1" != no ] || {{ echo why >&2; exit 1; }}\n')
    script.chmod(0o755)
    for argument in ("0 tryboot", None):
        resetter = RebootCommand([str(script), "-x"], argument=lambda argument=argument: argument)  # type: ignore[misc]
        assert isinstance(resetter, Resetter)
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as tg:
                tg.start_soon(resetter.reset)
                while not (tmp_path / "calls").exists():
                    await anyio.sleep(0.01)
                tg.cancel_scope.cancel()
        assert not scope.cancelled_caught
        calls = (tmp_path / "calls").read_text()
        assert calls == ("-x|0 tryboot|2\n" if argument else "-x||1\n")
        (tmp_path / "calls").unlink()
    with pytest.raises(ConfigError, match="no failed: why"):
        await RebootCommand([str(script), "no"]).reset()
    with pytest.raises(ConfigError, match="cannot be started"):
        await RebootCommand([str(tmp_path / "none")]).reset()
