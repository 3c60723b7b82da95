"""The ESP32's boot ROM: our driver and esptool on the same simulated chip, and a wire that fails."""

import hashlib
import os
import shutil
import struct
import subprocess
from pathlib import Path
from random import Random

import anyio
import pytest

from mgota.core import esp_rom
from mgota.core.geometry import Geometry
from mgota.core.slip import Unframer, frames
from mgota.errors import EraseError, FlashError, LinkError, NoAnswerError, ProgramError, ReadError
from mgota.flash.links.esp_rom import EspRom
from mgota.flash.links.wire import Wire, open_serial
from mgota.flash.targets.table import find_target
from mgota.ports import Flushable, NorFlash
from mgota.testing import NorSimulator
from mgota.testing.esp_rom import SimulatedEspRom
from mgota.testing.wire import MemoryWire, SimulatedRom, serial_port

pytestmark = pytest.mark.asyncio

TOOLS = Path(__file__).parents[2] / ".tools" / "bin" / "esptool"
ESPTOOL = str(TOOLS) if TOOLS.exists() else shutil.which("esptool") or ""

FOUND = find_target("esp32").geometry
assert FOUND
GEOMETRY: Geometry = FOUND
SECTORS = GEOMETRY.sectors
BLANK = NorSimulator(GEOMETRY)
IMAGE = b"\xc0\xdb\xe9" + Random(4).randbytes(9_000)


async def nothing(wire: Wire) -> None:
    """The chip is in its ROM already, and has no lines."""


def board(**options: object) -> SimulatedEspRom:
    return SimulatedEspRom(BLANK.fork(), **options)  # type: ignore[arg-type]


def driver(wire: Wire, *, lines: bool = False) -> EspRom:
    way = None if lines else nothing
    return EspRom(wire, GEOMETRY, enter=way, leave=way)


async def write(chip: EspRom, data: bytes) -> None:
    for sector in SECTORS:
        if sector.start >= len(data):
            break
        await chip.erase(sector)
    for at in range(0, len(data), 3001):
        await chip.program(at, data[at : at + 3001])


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


@pytest.mark.parametrize("chip_id", [0, 5, 9])
async def test_a_chip_is_erased_programmed_and_read(chip_id: int) -> None:
    rom = board(chip_id=chip_id)
    wire = MemoryWire(rom)
    chip = driver(wire)
    assert isinstance(rom, SimulatedRom)
    assert isinstance(chip, NorFlash)
    assert isinstance(chip, Flushable)
    assert await chip.enter(baud=921600) == chip_id
    assert rom.baud == wire.baud == 921600
    rom.flash.poke(0, b"old" * 4_000)
    await write(chip, IMAGE)
    await chip.flush()
    assert rom.flash.peek(0, len(IMAGE)) == IMAGE
    assert await chip.read(3, 5000) == IMAGE[3:5003]
    assert await chip.read(GEOMETRY.size - 7, 7) == b"\xff" * 7
    assert await chip.read(0, 0) == b""
    assert await chip.digest(0, len(IMAGE)) == md5(IMAGE)
    assert not rom.flash.operations.broken_rules


async def test_lines_bring_it_into_its_rom_and_out() -> None:
    rom = board(wired=True)
    chip = driver(MemoryWire(rom), lines=True)
    with pytest.raises(ReadError, match="is GPIO0"):
        await chip.read(0, 4)
    assert await chip.enter() == 0
    assert not rom.running
    await chip.reset()
    assert rom.running
    with pytest.raises(NoAnswerError, match="is GPIO0"):
        await driver(MemoryWire(rom)).enter()


async def test_what_the_rom_refuses_is_said() -> None:
    chip = driver(MemoryWire(board()))
    with pytest.raises(ReadError, match="could not be read at 0x10: the boot ROM refused: it failed to act"):
        await chip.read(16, 4)  # nothing is attached yet
    with pytest.raises(EraseError, match="the sector at 0x1000 could not be erased"):
        await chip.erase(SECTORS[1])
    with pytest.raises(ProgramError, match="could not be programmed at 0x20"):
        await chip.program(32, b"1234")
    with pytest.raises(ReadError, match="could not be summed up at 0x20"):
        await chip.digest(32, 4)


def refused(rom: SimulatedEspRom, command: int, data: bytes, checked: int = 0) -> int:
    """The error that the simulated ROM answers, 0 for none."""
    (told,) = frames(Unframer(), rom.feed(esp_rom.request(command, data, checked)))
    assert told[1] == command
    return told[-3] if told[-4] else 0


async def test_the_simulated_rom_is_as_strict_as_the_chip() -> None:
    rom = board()
    words = struct.Struct("<4I").pack
    good, check = words(4, 0, 0, 0) + b"1234", esp_rom.check(b"1234")
    assert refused(rom, esp_rom.FLASH_BEGIN, words(0, 2, 4, 0)) == 6  # not attached
    assert refused(rom, esp_rom.SPI_ATTACH, bytes(8)) == 0
    assert refused(rom, esp_rom.FLASH_DATA, good, check) == 6  # not begun
    assert refused(rom, esp_rom.FLASH_BEGIN, words(4096, 1, 4, GEOMETRY.size)) == 6
    assert refused(rom, esp_rom.FLASH_BEGIN, words(0, 1, 4, 0)[:-1]) == 5
    assert refused(rom, esp_rom.FLASH_BEGIN, words(0, 1, 4, 0)) == 0
    assert refused(rom, esp_rom.FLASH_DATA, good, check ^ 1) == 7
    assert refused(rom, esp_rom.FLASH_DATA, words(5, 0, 0, 0) + b"1234", check) == 6
    assert refused(rom, esp_rom.FLASH_DATA, words(4, 1, 0, 0) + b"1234", check) == 6
    assert refused(rom, esp_rom.FLASH_DATA, good, check) == 0
    assert refused(rom, esp_rom.FLASH_DATA, good, check) == 6  # a second time
    assert refused(rom, esp_rom.FLASH_BEGIN, words(0, 1, 4, 0)) == 0
    assert refused(rom, esp_rom.FLASH_DATA, good, check) == 8  # not erased
    assert refused(rom, esp_rom.READ_FLASH_SLOW, words(0, 65, 0, 0)[:8]) == 10
    assert refused(rom, esp_rom.SPI_FLASH_MD5, words(GEOMETRY.size - 1, 2, 0, 0)) == 9
    assert refused(rom, esp_rom.SYNC, b"") == refused(rom, 0x77, b"") == 5
    assert refused(rom, esp_rom.FLASH_END, words(0, 0, 0, 0)[:4]) == 0
    assert rom.running


# --- esptool ---------------------------------------------------------------------------------------------------------


async def esptool(path: str, *command: object) -> str:
    base = [ESPTOOL, "--chip", "esp32", "--port", path, "--before", "no-reset", "--after", "no-reset", "--no-stub"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"}
    with anyio.fail_after(60):
        done = await anyio.run_process(
            [*base, *map(str, command)], check=False, stderr=subprocess.STDOUT, env=environment
        )
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output
    return output


@pytest.mark.program("env" if ESPTOOL else "esptool")  # it may stand in .tools
async def test_esptool_programs_the_simulated_chip_and_we_read_it(tmp_path: Path) -> None:
    image = IMAGE[3:]  # one that begins as an image does would be changed by esptool
    (tmp_path / "fw.bin").write_bytes(image)
    rom = board()
    rom.flash.poke(0, bytes(20_000))
    async with serial_port(rom) as path:
        told = await esptool(path, "write-flash", "0x1000", tmp_path / "fw.bin")
        assert "Hash of data verified" in told
        assert "igest matched" in await esptool(path, "verify-flash", "0x1000", tmp_path / "fw.bin")
        await esptool(path, "read-flash", "0x1000", len(image), tmp_path / "back.bin")
        async with await open_serial(path, 115200) as wire:
            chip = driver(wire)
            await chip.enter()
            assert await chip.digest(0x1000, len(image)) == md5(image)
            assert await chip.read(0x1000, 500) == image[:500]
            await chip.erase(SECTORS[0])
            await chip.program(0, image[:1500])
    assert rom.flash.peek(0, 1500) == image[:1500]
    assert rom.flash.peek(0x1000, len(image)) == image
    assert (tmp_path / "back.bin").read_bytes() == image
    assert not rom.flash.operations.broken_rules


# --- a wire that fails -----------------------------------------------------------------------------------------------

SHORT = IMAGE[:46]


async def life(wire: Wire) -> None:
    chip = driver(wire)
    await chip.enter()
    await write(chip, SHORT)
    assert await chip.digest(0, len(SHORT)) == md5(SHORT)


async def test_a_wire_that_is_cut_at_any_byte_leaves_a_chip_that_can_be_programmed() -> None:
    whole = MemoryWire(board())
    await life(whole)
    assert whole.carried > 2 * len(SHORT)
    for cut in range(whole.carried):
        rom = board()
        rom.flash.poke(0, b"old")
        with pytest.raises(FlashError):
            await life(MemoryWire(rom, cut_after=cut))
        await life(MemoryWire(rom))  # plugged in again, the chip not reset
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules


class Garbling:
    """A wire's noise: one byte of what the ROM says is another one."""

    def __init__(self, rom: SimulatedEspRom, at: int) -> None:
        self.rom, self.at = rom, at

    def feed(self, data: bytes) -> bytes:
        said = self.rom.feed(data)
        at, self.at = self.at, self.at - len(said)
        return said[:at] + bytes([said[at] ^ 0x10]) + said[at + 1 :] if 0 <= at < len(said) else said

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None: ...


async def test_an_answer_that_is_garbled_is_asked_for_again() -> None:
    for at in range(0, 500, 3):
        rom = board()
        await life(MemoryWire(Garbling(rom, at)))
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules


@pytest.mark.parametrize("late", [1, 2])
async def test_answers_that_come_late_are_no_answers_to_what_is_asked_then(late: int) -> None:
    rom = board()
    with pytest.raises(FlashError):
        await life(MemoryWire(rom, late=100))
    wire = MemoryWire(rom, late=late)
    try:
        await life(wire)
    except FlashError:  # every answer is late: nobody can talk like this
        await life(MemoryWire(rom))
    assert rom.flash.peek(0, len(SHORT)) == SHORT


async def test_noise_is_no_rom() -> None:
    class Noise(Garbling):
        def feed(self, data: bytes) -> bytes:
            return b"\xc0\x01\x02\xc0" * len(data)

    with pytest.raises(LinkError, match="no boot ROM of an ESP32"):
        await driver(MemoryWire(Noise(board(), 0))).enter()
    assert esp_rom.check(b"") == 0xEF
