"""NXP's boot loader: our driver and NXP's own `blhost` on the same simulated chip, and a wire that fails."""

import shutil
import subprocess
from functools import partial
from pathlib import Path
from random import Random

import anyio
import pytest

from mgota.core import mboot
from mgota.core.geometry import Geometry, uniform
from mgota.errors import EraseError, FlashError, LinkError, NoAnswerError, ProgramError, ReadError
from mgota.flash.links import mboot as driver
from mgota.flash.links.mboot import AT_ONCE, External, Mboot, external_of
from mgota.flash.links.wire import Wire, open_serial
from mgota.flash.targets.table import NAMES, find_target
from mgota.ports import Flushable, NorFlash
from mgota.testing import NorSimulator
from mgota.testing.mboot import SimulatedMboot
from mgota.testing.wire import MemoryWire, SimulatedRom, serial_port

pytestmark = pytest.mark.asyncio

MCX = find_target("mcxn947")
RW = find_target("rw612", "RW612-2MB")
assert MCX.geometry
assert RW.geometry
IMAGE = Random(9).randbytes(40_000)
BLANK = NorSimulator(MCX.geometry)


async def nothing(wire: Wire) -> None:
    """The chip is in its loader already, and has no lines."""


def board(**options: object) -> SimulatedMboot:
    return SimulatedMboot(BLANK.fork(), **options)  # type: ignore[arg-type]


def chip_on(
    wire: Wire, geometry: Geometry = BLANK.geometry, base: int = 0, *, external: External | None = None
) -> Mboot:
    return Mboot(wire, geometry, base, external=external, enter=nothing)


async def write(chip: Mboot, data: bytes, at_once: int = 8192) -> None:
    """As a backend does it: erase what it takes, program, in pieces of whole units."""
    for sector in chip.geometry.sectors:
        if sector.start < len(data):
            await chip.erase(sector)
    data += b"\xff" * (-len(data) % chip.geometry.program_unit)
    for at in range(0, len(data), at_once):
        await chip.program(at, data[at : at + at_once])


async def test_a_chip_is_erased_programmed_and_read() -> None:
    rom = board()
    assert isinstance(rom, SimulatedRom)
    chip = chip_on(MemoryWire(rom))
    assert isinstance(chip, NorFlash)
    assert isinstance(chip, Flushable)
    assert await chip.enter() == 0x4B030100
    rom.flash.poke(0, b"old" * 10_000)
    await write(chip, IMAGE, AT_ONCE + 8192)
    await chip.flush()
    assert rom.flash.peek(0, len(IMAGE)) == IMAGE
    assert await chip.read(3, 2 * AT_ONCE + 1) == IMAGE[3 : 2 * AT_ONCE + 4]
    assert await chip.read(chip.geometry.size - 7, 7) == b"\xff" * 7
    assert await chip.read(0, 0) == b""
    assert not rom.flash.operations.broken_rules
    assert await chip.enter() == 0x4B030100  # it listens already
    await chip.reset()
    assert rom.running
    with pytest.raises(NoAnswerError, match="is the chip in ISP mode"):
        await chip.reset()


@pytest.mark.parametrize(("size", "taken"), [(32, 32), (512, 512), (4096, 4096), (4097, 32)])
async def test_packets_are_as_long_as_the_loader_takes_them(size: int, taken: int) -> None:
    """What is no length of a packet is not believed, and every loader takes 32."""
    rom = board(max_packet=size)
    wire = MemoryWire(rom)
    chip = chip_on(wire)
    await chip.enter()
    before = wire.carried
    await chip.program(0, IMAGE[:4096])
    assert wire.carried - before == 4096 + (6 + 2) * 4096 // taken + 64
    assert rom.flash.peek(0, 4096) == IMAGE[:4096]


async def test_lines_bring_it_into_its_loader_and_a_command_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "RESET_TIME", 0)
    rom = board(wired=True)
    chip = Mboot(MemoryWire(rom), BLANK.geometry)
    with pytest.raises(ReadError, match="is the chip in ISP mode"):
        await chip.read(0, 4)
    await chip.enter()
    assert not rom.running
    await chip.reset()
    assert rom.running
    assert rom.resets == 2
    with pytest.raises(NoAnswerError, match="is the chip in ISP mode"):
        await chip_on(MemoryWire(rom)).enter()
    left = Mboot(MemoryWire(rom), BLANK.geometry, leave=partial(driver.by_lines, boot=False))
    await left.enter()
    await left.reset()
    assert rom.running
    assert rom.resets == 4


async def test_a_memory_outside_of_the_chip_is_configured_first() -> None:
    assert RW.geometry
    rom = SimulatedMboot(NorSimulator(RW.geometry), RW.base, memory=9)
    plain = chip_on(MemoryWire(rom), RW.geometry, RW.base)
    await plain.enter()
    with pytest.raises(ReadError, match="the memory is not configured"):
        await plain.read(0, 4)
    chip = chip_on(MemoryWire(rom), RW.geometry, RW.base, external=External(options=(0xC1000007, 0x11), instance=2))
    await chip.enter()
    assert (rom.instance, rom.options) == (2, (0xC1000007, 0x11))
    await write(chip, IMAGE[:5000])
    assert rom.flash.peek(0, 5000) == IMAGE[:5000]
    wrong = chip_on(MemoryWire(rom), RW.geometry, RW.base, external=External(memory=1, options=()))
    await wrong.enter()
    with pytest.raises(EraseError, match=r"the sector at 0x1000 could not be erased: .*no such memory"):
        await wrong.erase(RW.geometry.sectors[1])
    wrong = chip_on(MemoryWire(rom), RW.geometry, RW.base, external=External(options=(7,)))
    with pytest.raises(LinkError, match="refused to configure the memory: no such memory"):
        await wrong.enter()


async def test_each_target_has_its_memory() -> None:
    outside = {name for name in NAMES if external_of(name)}
    assert outside == {"rt1020", "rt1050", "rt1060", "rt1064", "rt1170", "rw612"}
    for part, option in (("RT1050-64MB", 0xC0233007), ("RT1050-QSPI-8MB", 0xC0000007)):
        found = external_of("rt1050", part)
        assert found
        assert found.options == (option,)


async def test_a_chip_that_refuses_is_asked_once() -> None:
    rom = board(secured=True)
    wire = MemoryWire(rom)
    chip = chip_on(wire)
    await chip.enter()
    before = wire.carried
    with pytest.raises(ReadError, match=r"could not be read at 0x10: .*the chip is secured \(status 10001\)"):
        await chip.read(16, 4)
    assert wire.carried - before < 60
    with pytest.raises(ProgramError, match=r"could not be programmed at 0x20: .*refused to program: the chip is sec"):
        await chip.program(32, bytes(16))
    with pytest.raises(EraseError, match="the sector at 0x2000 could not be erased"):
        await chip.erase(chip.geometry.sectors[1])


async def test_what_is_not_erased_is_not_programmed() -> None:
    rom = board()
    chip = chip_on(MemoryWire(rom))
    await chip.enter()
    await chip.program(0, IMAGE[:16])
    with pytest.raises(ProgramError, match="the memory could not be written"):
        await chip.program(0, IMAGE[16:64])
    assert await chip.read(0, 16) == IMAGE[:16]


# --- programs that others wrote --------------------------------------------------------------------------------------


KEPT = """
import sys
from serial import serialposix
serialposix.Serial.reset_output_buffer = lambda self: None
from spsdk.apps.blhost import safe_main
sys.exit(safe_main())
"""
# blhost flushes what it has sent before it sends more: on a UART that is out by then, on a pseudo terminal it is lost.


async def blhost(path: str, commands: Path, *lines: str) -> str:
    """NXP's own, several commands in one process: it takes a second to start."""
    commands.write_text("\n".join(lines) + "\n")
    python = Path(shutil.which("blhost") or "").resolve().with_name("python")
    command = [str(python), "-c", KEPT, "-p", f"{path},115200", "batch", str(commands)]
    done = await anyio.run_process(command, check=False, stderr=subprocess.STDOUT)
    output = done.stdout.decode(errors="replace")
    assert done.returncode == 0, output
    return output


@pytest.mark.program("blhost")
async def test_blhost_programs_the_simulated_chip_and_we_read_it(tmp_path: Path) -> None:
    """A memory of the chip's own: MCXN947."""
    image, back = tmp_path / "fw.bin", tmp_path / "back.bin"
    image.write_bytes(IMAGE)
    rom = board()
    rom.flash.poke(0, bytes(50_000))
    async with serial_port(rom) as path:
        await blhost(
            path,
            tmp_path / "commands",
            "get-property 1",
            "flash-erase-region 0 0xa000",
            f"write-memory 0 {image}",
            f"read-memory 0 {len(IMAGE)} {back}",
        )
        async with await open_serial(path, 115200) as wire:
            chip = chip_on(wire)
            await chip.enter()
            assert await chip.read(0, len(IMAGE)) == IMAGE
    assert rom.flash.peek(0, len(IMAGE)) == IMAGE == back.read_bytes()
    assert not rom.flash.operations.broken_rules


@pytest.mark.program("blhost")
async def test_blhost_reads_a_memory_outside_of_the_chip_that_we_programmed(tmp_path: Path) -> None:
    """RW612, over a serial port both times; what its commands of configuration look like is blhost's word."""
    assert RW.geometry
    data, back = IMAGE[:5120], tmp_path / "back.bin"
    rom = SimulatedMboot(NorSimulator(RW.geometry), RW.base, memory=9)
    async with serial_port(rom) as path:
        async with await open_serial(path, 115200) as wire:
            chip = chip_on(wire, RW.geometry, RW.base, external=external_of("rw612"))
            await chip.enter()
            await write(chip, data)
        rom._configured = False
        await blhost(
            path,
            tmp_path / "commands",
            "fill-memory 0x20008000 4 0xC0000007 word",
            "configure-memory 9 0x20008000",
            f"read-memory 0x08000000 {len(data)} {back} 9",
            "flash-erase-region 0x08001000 0x1000 9",
            "reset",
        )
    assert back.read_bytes() == data
    assert rom.flash.peek(0, 8192) == data[:4096] + b"\xff" * 4096
    assert rom.running


# --- a wire that fails -----------------------------------------------------------------------------------------------

SMALL = uniform(512, 128, program_unit=16)
SHORT = IMAGE[:80]


def small() -> SimulatedMboot:
    rom = SimulatedMboot(NorSimulator(SMALL), max_packet=32)
    rom.flash.poke(0, b"old")
    return rom


async def life(wire: Wire) -> None:
    chip = chip_on(wire, SMALL)
    await chip.enter()
    await write(chip, SHORT)
    assert await chip.read(0, len(SHORT)) == SHORT


async def test_a_wire_that_is_cut_at_any_byte_leaves_a_chip_that_can_be_programmed() -> None:
    whole = MemoryWire(small())
    await life(whole)
    assert whole.carried > 4 * len(SHORT)
    for cut in range(whole.carried):
        rom = small()
        with pytest.raises((LinkError, FlashError)):
            await life(MemoryWire(rom, cut_after=cut))
        await life(MemoryWire(rom))  # plugged in again, the chip not reset: its loader may be in the midst of a command
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules


class Spoiled:
    """A wire's noise: a byte of what the loader says or hears is another one, lost, or comes with others before it."""

    def __init__(self, rom: SimulatedMboot, which: str, at: int, how: str) -> None:
        self.rom = rom
        self.at = {which: at}
        self.how = how

    def _spoil(self, which: str, data: bytes) -> bytes:
        at = self.at.get(which, -1)
        if at < 0:
            return data
        self.at[which] = at - len(data)
        if at >= len(data):
            return data
        new = {"garbled": bytes([data[at] ^ 0x10]), "lost": b"", "noise": b"\x5a\0\xa1" + data[at : at + 1]}[self.how]
        return data[:at] + new + data[at + 1 :]

    def feed(self, data: bytes) -> bytes:
        return self._spoil("answer", self.rom.feed(self._spoil("request", data)))

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None: ...


@pytest.mark.parametrize("how", ["garbled", "lost", "noise"])
@pytest.mark.parametrize("which", ["answer", "request"])
async def test_a_byte_that_is_spoiled_costs_another_try_and_no_more(which: str, how: str) -> None:
    """What is read is what is there, or an error: packets have a check."""
    failures = 0
    for at in range(0, 400, 2):
        rom = small()
        try:
            await life(MemoryWire(Spoiled(rom, which, at, how)))
        except FlashError:
            failures += 1
            continue
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules
    print(f"{which} {how}: {failures} lives of 200 ended in an error")
    assert not failures


async def test_answers_that_come_late_are_an_error_and_nothing_worse() -> None:
    rom = small()
    for late in (1, 2, 3):
        with pytest.raises(LinkError):  # every answer is late: nobody can talk like this
            await life(MemoryWire(rom, late=late))
        await life(MemoryWire(rom))


class Once:
    """The first answer to a wait comes late, behind the silence that was heard in its place."""

    def __init__(self, rom: SimulatedMboot, at: int) -> None:
        self.rom, self.left, self.held = rom, at, b""

    def feed(self, data: bytes) -> bytes:
        self.left -= 1
        answer, self.held = self.held + self.rom.feed(data), b""
        if not self.left:
            answer, self.held = b"", answer
        return answer

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None: ...


async def test_an_answer_that_comes_behind_a_silence_is_no_answer_to_what_was_asked_next() -> None:
    for at in range(1, 60):
        rom = small()
        await life(MemoryWire(Once(rom, at)))
        assert rom.flash.peek(0, len(SHORT)) == SHORT
        assert not rom.flash.operations.broken_rules


async def test_a_loader_that_says_no_to_every_packet_is_given_up() -> None:
    class Nay(Spoiled):
        def feed(self, data: bytes) -> bytes:
            found = self.rom.feed(data)
            return found if data == mboot.sync(mboot.PING) else mboot.sync(mboot.NAK)

    with pytest.raises(LinkError, match="received a packet damaged, again and again"):
        await chip_on(MemoryWire(Nay(small(), "", 0, ""))).enter()


async def test_noise_is_no_loader() -> None:
    class Noise(Spoiled):
        def feed(self, data: bytes) -> bytes:
            return b"\xa5" * mboot.MAX_PACKET

    with pytest.raises(LinkError, match="nothing but noise"):
        await chip_on(MemoryWire(Noise(small(), "", 0, ""))).enter()


async def test_a_write_that_broke_off_in_a_unit_is_an_error_and_not_made_again() -> None:
    """A unit with ECC is programmed once."""
    rom = small()

    class Torn(Spoiled):
        def feed(self, data: bytes) -> bytes:
            if self.at and data[:2] == bytes([mboot.START, mboot.DATA]):
                self.at = {}
                self.rom.flash.poke(16, b"\0torn")
                return b""
            return self.rom.feed(data)

    chip = chip_on(MemoryWire(Torn(rom, "torn", 0, "")), SMALL)
    await chip.enter()
    await chip.erase(SMALL.sectors[0])
    with pytest.raises(ProgramError, match="in the midst of a unit"):
        await chip.program(0, SHORT)
    await life(MemoryWire(rom))


async def test_a_cancellation_leaves_the_loader_listening() -> None:
    rom = board()
    chip = chip_on(MemoryWire(rom))
    await chip.enter()
    for steps in range(1, 30):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(chip.read, 0, 700))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert await chip.read(0, 4) == b"\xff" * 4
