"""Two banks and SWAP_BANK, on the simulator."""

import os
from pathlib import Path

import anyio
import pytest

from mgota.core.geometry import Slot, uniform
from mgota.errors import ConfigError, FlashError, ReadError, SelectError, TooLargeError, UpdateRunningError
from mgota.flash.banked import Banks
from mgota.flash.simulator import Kind, Operation
from mgota.flash.targets.stm32h5 import IWDG_LIMIT, iwdg_reload, stm32h5
from mgota.flash.virtual import VirtualReset
from mgota.ports import FlashBackend, Watchdog

pytestmark = pytest.mark.asyncio

SMALL = 128 << 10
BANK = SMALL // 2


class PowerCut(BaseException):
    pass


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "flash" if request.param == "file" else None


async def test_a_new_chip_is_blank_and_runs_slot_a(path: Path | None) -> None:
    chip = stm32h5(path)
    backend = chip.backend
    assert isinstance(backend, FlashBackend)
    assert isinstance(chip.watchdog, Watchdog)
    assert await backend.running_slot() is Slot.A
    assert await backend.selected_slot() is Slot.A
    assert await backend.capacity() == 1 << 20
    assert [await backend.extent(slot) for slot in Slot] == [0, 0]
    assert backend.crc == "crc-32"
    assert (chip.flash.geometry.size, chip.flash.geometry.program_unit) == (2 << 20, 16)
    assert {sector.length for sector in chip.flash.geometry.sectors} == {8192}
    if path:
        assert (path.stat().st_size, path.with_name("flash.opt").read_bytes()) == (2 << 20, bytes(4))


async def test_slots_are_physical_banks_whatever_is_selected(path: Path | None) -> None:
    chip = stm32h5(path, size=SMALL)
    backend = chip.backend
    for swap, (slot, start) in ((Slot.B, (Slot.A, 0)), (Slot.A, (Slot.B, BANK))):
        image = b"image " + slot.encode() * 995
        chip.flash.poke(start, b"\0" * BANK)  # an older, longer one
        writer = await backend.open_writer(slot, len(image))
        await writer.write(image)
        await writer.finish()
        await backend.select(swap)
        await chip.boot()
        assert await backend.running_slot() is swap
        assert chip.flash.peek(start, BANK) == image + b"\xff" * (BANK - len(image))
        assert await backend.read(slot, 6, 990) == image[6:996]
        assert await backend.extent(slot) == BANK


async def test_the_last_byte_of_a_bank_makes_it_not_blank(path: Path | None) -> None:
    chip = stm32h5(path, size=3 * 2 * (40 << 10))  # a bank that is no whole number of scans
    chip.flash.poke(chip.flash.geometry.size - 1, b"\0")
    assert [await chip.backend.extent(slot) for slot in Slot] == [0, 120 << 10]


async def test_what_does_not_fit_or_lies_outside_is_refused(path: Path | None) -> None:
    chip = stm32h5(path, size=SMALL)
    with pytest.raises(TooLargeError):
        await chip.backend.open_writer(Slot.B, BANK + 1)
    assert not chip.flash.operations.counts
    for offset, size in ((-1, 1), (0, BANK + 1), (BANK, 1), (0, -1)):
        with pytest.raises(ReadError, match="inside slot a"):
            await chip.backend.read(Slot.A, offset, size)


async def test_the_running_slot_is_latched_at_boot(path: Path | None) -> None:
    chip = stm32h5(path, size=SMALL)
    await chip.backend.select(Slot.B)
    assert (await chip.backend.running_slot(), await chip.backend.selected_slot()) == (Slot.A, Slot.B)
    await chip.backend.recover()
    assert await chip.backend.running_slot() is Slot.A
    await chip.watchdog.arm(60)
    await chip.boot()
    assert await chip.backend.running_slot() is Slot.B
    assert chip.watchdog.deadline is None
    await chip.backend.select(Slot.A)
    assert (await chip.backend.running_slot(), await chip.backend.selected_slot()) == (Slot.B, Slot.A)


async def test_only_the_swap_bit_changes_and_other_processes_see_it(tmp_path: Path) -> None:
    path, options = tmp_path / "flash", tmp_path / "flash.opt"
    chip, other = stm32h5(path, size=SMALL), stm32h5(path, size=SMALL)
    options.write_bytes(b"\xed\xaa\x16\x30")
    await chip.backend.select(Slot.B)
    assert options.read_bytes() == b"\xed\xaa\x16\xb0"
    assert await other.backend.running_slot() is Slot.B
    await chip.backend.select(Slot.A)
    assert options.read_bytes() == b"\xed\xaa\x16\x30"


async def test_a_selected_slot_is_not_selected_again(path: Path | None) -> None:
    chip = stm32h5(path, size=SMALL, reset=VirtualReset())
    await chip.backend.select(Slot.A)  # returns: no option launch, no reset
    assert chip.flash.operations.counts[Kind.OPTION] == 0


async def test_the_option_launch_resets_and_does_not_return(path: Path | None) -> None:
    reset, returned = VirtualReset(), False
    chip = stm32h5(path, size=SMALL, reset=reset)

    async def device() -> None:
        nonlocal returned
        await chip.backend.select(Slot.B)
        returned = True

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(device)
            await reset.wait()
            tasks.cancel_scope.cancel()
    assert not returned
    await chip.boot()
    assert await chip.backend.running_slot() is Slot.B


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_cut_at_the_option_write_leaves_one_slot_or_the_other(path: Path | None, moment: str) -> None:
    chip = stm32h5(path, size=SMALL)

    def cut(operation: Operation) -> None:
        assert operation.kind is Kind.OPTION
        raise PowerCut

    setattr(chip.flash.operations, moment, cut)
    with pytest.raises(PowerCut):
        await chip.backend.select(Slot.B)
    await chip.boot()
    assert await chip.backend.running_slot() is (Slot.B if moment == "after" else Slot.A)


@pytest.mark.parametrize("content", [b"", b"\0" * 3, b"\0" * 5, None])
async def test_option_bytes_that_are_none_are_a_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path, options = tmp_path / "flash", tmp_path / "flash.opt"
    chip = stm32h5(path, size=SMALL)
    await chip.backend.boot()
    if content is None:
        options.unlink()
        options.mkdir()
    else:
        options.write_bytes(content)
    with pytest.raises(SelectError, match=r"option bytes in .*flash\.opt"):
        await chip.backend.select(Slot.B)
    again = stm32h5(path, size=SMALL)
    with pytest.raises(FlashError, match=r"option bytes in .*flash\.opt") as caught:
        await again.backend.running_slot()
    assert "\n" not in str(caught.value)


async def test_missing_option_bytes_are_a_new_chips(tmp_path: Path) -> None:
    stm32h5(tmp_path / "flash", size=SMALL)
    (tmp_path / "flash.opt").unlink()
    assert await stm32h5(tmp_path / "flash", size=SMALL).backend.running_slot() is Slot.A


async def test_a_new_array_does_not_inherit_old_option_bytes(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    await stm32h5(path, size=SMALL).backend.select(Slot.B)
    path.unlink()
    assert await stm32h5(path, size=SMALL).backend.running_slot() is Slot.A


@pytest.mark.parametrize("failing", [1, 2])
async def test_a_selection_that_failed_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    chip = stm32h5(tmp_path / "flash", size=SMALL)
    fsync, calls = os.fsync, list[int]()

    def fail_once(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == failing:  # 1: the new file's, 2: the directory's after the rename
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", fail_once)
    with pytest.raises(SelectError, match="Input/output error"):
        await chip.backend.select(Slot.B)
    await chip.boot()
    assert await chip.backend.running_slot() is Slot.A


async def test_a_selection_that_cannot_be_taken_back_is_still_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = stm32h5(tmp_path / "flash", size=SMALL)

    def fail(path: Path, data: bytes) -> None:
        path.write_bytes(b"")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("mgota.flash.banked.replace_file", fail)
    with pytest.raises(SelectError, match="slot b could not be selected"):
        await chip.backend.select(Slot.B)


@pytest.mark.parametrize("size", [64 << 10, 4 << 20, (128 << 10) + 8192, 0])
async def test_there_is_no_such_chip(size: int) -> None:
    with pytest.raises(ConfigError, match="128 to 2048 KiB"):
        stm32h5(size=size)


async def test_a_file_of_another_chip_is_refused(tmp_path: Path) -> None:
    stm32h5(tmp_path / "flash", size=SMALL)
    with pytest.raises(ConfigError, match="131072 bytes, the memory 2097152"):
        stm32h5(tmp_path / "flash")
    with pytest.raises(ConfigError, match="cannot be made"):
        stm32h5(tmp_path / "no" / "flash")


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    locks = [stm32h5(tmp_path / "flash", size=SMALL).lock for _ in range(2)]
    assert locks[0]
    assert locks[1]
    with locks[0].hold(), pytest.raises(UpdateRunningError), locks[1].hold():
        pass
    assert stm32h5(size=SMALL).lock is None


async def test_banks_are_halves() -> None:
    with pytest.raises(ConfigError):
        Banks(geometry=uniform(3 * 8192, 8192), bit=31).area(Slot.A)


async def test_the_independent_watchdog_counts_twelve_bits() -> None:
    assert iwdg_reload(60_000) == 3750  # the seed's window
    assert iwdg_reload(65_520) == 4095
    assert iwdg_reload(16) == iwdg_reload(1) == 1
    assert iwdg_reload(17) == 2  # never shorter than asked for
    for ms in (65_521, 120_000, 0, -1):
        with pytest.raises(ConfigError, match="65520 ms"):
            iwdg_reload(ms)
    watchdog = stm32h5(size=SMALL).watchdog
    assert watchdog.limit == IWDG_LIMIT == 65.52
    assert not watchdog.stoppable
    with pytest.raises(ConfigError):
        await watchdog.arm(66)
