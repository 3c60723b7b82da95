"""The STM32's boot ROM: our driver and programs of others on the same simulated chip, and a wire that fails."""

import shutil
import subprocess
from functools import partial
from pathlib import Path
from random import Random

import anyio
import pytest

from mgota.core.geometry import Geometry, Sector
from mgota.errors import ConfigError, EraseError, FlashError, LinkError, NoAnswerError, ProgramError, ReadError
from mgota.flash.links.stm32_rom import Stm32Rom
from mgota.flash.links.wire import Wire, open_serial
from mgota.flash.targets.table import find_target
from mgota.ports import Flushable, NorFlash
from mgota.testing import NorSimulator
from mgota.testing.stm32_rom import SimulatedStm32Rom
from mgota.testing.wire import MemoryWire, SimulatedRom, serial_port

pytestmark = pytest.mark.asyncio

F4 = find_target("stm32f4", "STM32F429xI")
assert F4.geometry
GEOMETRY: Geometry = F4.geometry
SECTORS = GEOMETRY.sectors
BLANK = NorSimulator(GEOMETRY)
IMAGE = Random(4).randbytes(40_000)


async def nothing(wire: Wire) -> None:
    """The chip is in its ROM already, and has no lines."""


def board(**options: object) -> SimulatedStm32Rom:
    return SimulatedStm32Rom(BLANK.fork(), **options)  # type: ignore[arg-type]


def driver(wire: Wire, *, lines: bool = False) -> Stm32Rom:
    way = None if lines else nothing
    return Stm32Rom(wire, GEOMETRY, F4.base, enter=way, leave=way)


async def write(chip: Stm32Rom, data: bytes) -> None:
    """As a backend does it: erase what it takes, program, in pieces."""
    for sector in SECTORS:
        if sector.start < len(data):
            await chip.erase(sector)
    data += b"\xff" * (-len(data) % 4)
    for at in range(0, len(data), 1000):
        await chip.program(at, data[at : at + 1000])


async def test_a_chip_is_erased_programmed_and_read() -> None:
    rom = board()
    assert isinstance(rom, SimulatedRom)
    chip = driver(MemoryWire(rom))
    assert isinstance(chip, NorFlash)
    assert isinstance(chip, Flushable)
    assert await chip.enter() == 0x419
    rom.flash.poke(0, b"old" * 10_000)
    await write(chip, IMAGE)
    await chip.flush()
    assert rom.flash.peek(0, len(IMAGE)) == IMAGE
    assert await chip.read(3, 5000) == IMAGE[3:5003]
    assert await chip.read(GEOMETRY.size - 7, 7) == b"\xff" * 7
    assert await chip.read(0, 0) == b""
    assert not rom.flash.operations.broken_rules
    assert await chip.enter() == 0x419  # it listens already


async def test_an_older_rom_has_another_erase() -> None:
    rom = board(extended=False)
    chip = driver(MemoryWire(rom))
    await chip.enter()
    await write(chip, IMAGE[:100])
    assert rom.flash.peek(0, 100) == IMAGE[:100]


async def test_lines_bring_it_into_its_rom_and_out() -> None:
    rom = board(wired=True)
    chip = driver(MemoryWire(rom), lines=True)
    with pytest.raises(ReadError, match="is BOOT0 high"):
        await chip.read(0, 4)
    assert await chip.enter() == 0x419
    assert rom.started_at is None
    await chip.reset()
    assert rom.started_at == 0x08000000
    with pytest.raises(NoAnswerError, match="is BOOT0 high"):
        await driver(MemoryWire(rom)).enter()


async def test_a_protected_chip_says_what_may_be_wrong() -> None:
    chip = driver(MemoryWire(board(protected=True)))
    await chip.enter()
    with pytest.raises(ReadError, match=r"could not be read at 0x10: the boot ROM refused to read"):
        await chip.read(16, 4)
    with pytest.raises(ProgramError, match=r"could not be programmed at 0x20: the boot ROM refused to program"):
        await chip.program(32, b"1234")
    with pytest.raises(EraseError, match="the sector at 0x4000 could not be erased: the boot ROM refused to erase"):
        await chip.erase(SECTORS[1])


async def test_a_program_unit_that_the_rom_cannot_write_is_refused() -> None:
    with pytest.raises(ConfigError):
        Stm32Rom(MemoryWire(board()), Geometry(GEOMETRY.regions, 3), 0)


# --- programs that others wrote --------------------------------------------------------------------------------------


async def run(*command: object) -> str:
    done = await anyio.run_process([str(part) for part in command], check=False, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output
    return output


@pytest.mark.program("stm32flash")
async def test_stm32flash_programs_the_simulated_chip_and_we_read_it(tmp_path: Path) -> None:
    (tmp_path / "fw.bin").write_bytes(IMAGE)
    rom = board()
    rom.flash.poke(0, bytes(50_000))
    async with serial_port(rom) as path:
        told = await run("stm32flash", "-m", "8n1", "-b", "115200", "-w", tmp_path / "fw.bin", "-v", path)
        assert "0x0419" in told
        await run("stm32flash", "-m", "8n1", "-r", tmp_path / "back.bin", "-S", "0x08000000:40000", path)
        async with await open_serial(path, 115200) as wire:
            assert await driver(wire).read(0, len(IMAGE)) == IMAGE
    assert rom.flash.peek(0, len(IMAGE)) == IMAGE
    assert (tmp_path / "back.bin").read_bytes() == IMAGE
    assert not rom.flash.operations.broken_rules


NO_LINES = """
import sys
from serial import serialposix
serialposix.Serial._update_rts_state = serialposix.Serial._update_dtr_state = lambda self: None
from stm32loader.main import main
main(*sys.argv[1:])
"""
# A pseudo terminal has no modem lines, and stm32loader cannot be told to leave them alone.


@pytest.mark.program("stm32loader")
async def test_stm32loader_programs_the_simulated_chip_and_we_read_it(tmp_path: Path) -> None:
    (tmp_path / "fw.bin").write_bytes(IMAGE[:6000])
    rom = board()
    async with serial_port(rom) as path:
        python = Path(shutil.which("stm32loader") or "").with_name("python")
        await run(python, "-c", NO_LINES, "-p", path, "-P", "none", "-f", "F4", "-e", "-w", "-v", tmp_path / "fw.bin")
        async with await open_serial(path, 115200) as wire:
            assert await driver(wire).read(0, 6000) == IMAGE[:6000]
    assert not rom.flash.operations.broken_rules


async def test_we_program_the_simulated_chip_over_a_serial_port() -> None:
    rom = board()
    async with serial_port(rom) as path, await open_serial(path, 115200, parity="even") as wire:
        chip = driver(wire)
        await chip.enter()
        await write(chip, IMAGE[:5001])
        assert await chip.read(0, 5001) == IMAGE[:5001]


# --- a wire that fails -----------------------------------------------------------------------------------------------

SHORT = IMAGE[:60]


async def life(wire: Wire) -> None:
    chip = driver(wire)
    await chip.enter()
    await write(chip, SHORT)
    assert await chip.read(0, len(SHORT)) == SHORT


async def test_a_wire_that_is_cut_at_any_byte_leaves_a_chip_that_can_be_programmed() -> None:
    whole = MemoryWire(board())
    await life(whole)
    assert whole.carried > 2 * len(SHORT)
    for cut in range(whole.carried):
        rom = board()
        rom.flash.poke(0, b"old")
        with pytest.raises((LinkError, ReadError, EraseError, ProgramError)):
            await life(MemoryWire(rom, cut_after=cut))
        wire = MemoryWire(rom)  # plugged in again, the chip not reset: its ROM may be in the midst of a command
        try:
            await driver(wire).enter()
        except NoAnswerError:  # it waits for the numbers of sectors
            await driver(wire).enter(bursts=128)
        await life(wire)
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules


class Garbling:
    """A wire's noise: one byte of what the ROM says or hears is another one."""

    def __init__(self, rom: SimulatedStm32Rom, *, answer: int | None = None, request: int | None = None) -> None:
        self.rom = rom
        self.left = {"answer": answer, "request": request}

    def _garble(self, which: str, data: bytes) -> bytes:
        left = self.left[which]
        if left is None:
            return data
        self.left[which] = left - len(data) if left >= len(data) else None
        return data if left >= len(data) else data[:left] + bytes([data[left] ^ 0x10]) + data[left + 1 :]

    def feed(self, data: bytes) -> bytes:
        return self._garble("answer", self.rom.feed(self._garble("request", data)))

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None: ...


@pytest.mark.parametrize("which", ["answer", "request"])
async def test_a_byte_that_is_garbled_is_asked_for_again(which: str) -> None:
    """But for the data of a read, which has no check: who needs to be sure compares."""
    failures = 0
    for at in range(0, 240, 2):
        rom = board()
        try:
            await life(MemoryWire(Garbling(rom, **{which: at})))
        except AssertionError:
            assert which == "answer"
        except FlashError:
            failures += 1
            continue
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules
    print(f"{which}: {failures} lives of 120 ended in an error")
    assert failures <= 12  # a garbled count may have it wait for more than is tried


@pytest.mark.parametrize("late", [1, 2])
async def test_answers_that_come_late_are_waited_for(late: int) -> None:
    rom = board()
    chip = driver(MemoryWire(rom, late=late))
    with pytest.raises(LinkError):  # every answer is late: nobody can talk like this
        await life(chip._talker.wire)
    await life(MemoryWire(rom))


async def test_noise_is_no_rom() -> None:
    class Noise(Garbling):
        def feed(self, data: bytes) -> bytes:
            return b"\xa5" * len(data)

    with pytest.raises(LinkError, match="no boot ROM of an STM32"):
        await driver(MemoryWire(Noise(board()))).enter()


async def test_a_cancellation_leaves_the_rom_listening() -> None:
    rom = board()
    chip = driver(MemoryWire(rom))
    await chip.enter()
    for steps in range(1, 30):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(chip.read, 0, 700))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert await chip.read(0, 4) == b"\xff" * 4
    assert SECTORS[0] == Sector(0, 16384)
