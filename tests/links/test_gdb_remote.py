"""A chip behind a GDB server: our driver and GDB itself on the same simulated one, QEMU's server, and bad wires."""

import subprocess
from functools import partial
from pathlib import Path
from random import Random

import anyio
import pytest

from mgota.core.geometry import Geometry, Region, Sector, uniform
from mgota.errors import ConfigError, EraseError, FlashError, LinkError, NoAnswerError, ProgramError, ReadError
from mgota.flash.links.gdb_remote import GdbRemote
from mgota.flash.links.wire import Wire, open_tcp
from mgota.flash.targets.table import find_target
from mgota.ports import Flushable, NorFlash
from mgota.testing import NorSimulator
from mgota.testing.gdb_stub import SimulatedGdbStub
from mgota.testing.wire import MemoryWire, SimulatedRom, network_port

pytestmark = pytest.mark.asyncio

F4 = find_target("stm32f4", "STM32F429xI")
assert F4.geometry
GEOMETRY: Geometry = F4.geometry
SECTORS = GEOMETRY.sectors
BLANK = NorSimulator(GEOMETRY)
IMAGE = Random(5).randbytes(40_000)
SMALL = uniform(256, 64, program_unit=4)


def probe(geometry: Geometry = GEOMETRY, **options: object) -> SimulatedGdbStub:
    flash = BLANK.fork() if geometry is GEOMETRY else NorSimulator(geometry)
    return SimulatedGdbStub(flash, **options)  # type: ignore[arg-type]


async def write(chip: GdbRemote, data: bytes) -> None:
    """As a backend does it: erase what it takes, program, in pieces."""
    for sector in chip.geometry.sectors:
        if sector.start < len(data):
            await chip.erase(sector)
    data += b"\xff" * (-len(data) % 4)
    for at in range(0, len(data), 20_000):
        await chip.program(at, data[at : at + 20_000])


@pytest.mark.parametrize(
    "options",
    [{}, {"silent_acks": False}, {"packet": 64}, {"runs": True}, {"crc": False}, {"running": True}, {"plain": True}],
    ids=str,
)
async def test_a_chip_is_erased_programmed_and_read(options: dict[str, object]) -> None:
    stub = probe(GEOMETRY, **options)
    assert isinstance(stub, SimulatedRom)
    stub.flash.poke(0, b"old" * 10_000)
    chip = GdbRemote(MemoryWire(stub), GEOMETRY, F4.base)
    assert isinstance(chip, NorFlash)
    assert isinstance(chip, Flushable)
    await chip.enter()
    assert chip.programs_flash is not options.get("plain", False)
    size = 2_000 if options.get("packet") == 64 else len(IMAGE)
    await write(chip, IMAGE[:size])
    await chip.flush()
    assert stub.flash.peek(0, size) == IMAGE[:size]
    assert await chip.read(3, 1000) == IMAGE[3:1003]
    assert await chip.read(GEOMETRY.size - 7, 7) == b"\xff" * 7
    assert await chip.read(0, 0) == b""
    assert await chip.holds(0, IMAGE[:size])
    assert not await chip.holds(4, IMAGE[:size])
    assert await chip.holds(8, b"")
    await chip.enter()
    assert not stub.flash.operations.broken_rules
    assert not stub.crashes


async def test_a_server_that_only_writes_memory_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    chip = GdbRemote(MemoryWire(probe(plain=True)), GEOMETRY)
    assert await chip.enter() == ()
    assert "only a simulator accepts" in caplog.text


async def test_flash_that_takes_no_notice_of_writes_is_an_error() -> None:
    stub = probe(SMALL, plain=True)
    stub.flash.poke(0, b"old!")
    stub.flash.poke = lambda offset, data: None  # type: ignore[method-assign]
    chip = GdbRemote(MemoryWire(stub), SMALL)
    await chip.enter()
    with pytest.raises(EraseError, match="no flash commands"):
        await chip.erase(SMALL.sectors[0])
    with pytest.raises(ProgramError, match="no flash commands"):
        await chip.program(0, b"new!")


async def test_a_chip_is_reset_and_runs() -> None:
    stub = probe()
    chip = GdbRemote(MemoryWire(stub), GEOMETRY)
    await chip.enter()
    await chip.reset()
    assert (stub.resets, stub.running) == (1, True)
    await chip.enter()
    assert not stub.running
    assert await chip.monitor("reset halt") == "the chip was reset\n"
    with pytest.raises(LinkError, match=r"carry out 'rset': error 0x01 \(what is that\?\)"):
        await chip.monitor("rset")
    await chip.detach()
    assert stub.running
    seen: list[GdbRemote] = []

    async def by_relay(chip: GdbRemote) -> None:
        seen.append(chip)

    chip = GdbRemote(MemoryWire(stub), GEOMETRY, reset=by_relay)
    await chip.reset()
    assert seen == [chip]


async def test_refusals_say_where_and_why() -> None:
    chip = GdbRemote(MemoryWire(probe(SMALL)), SMALL)
    await chip.enter()
    with pytest.raises(
        ReadError, match=r"could not be read at 0x100: the GDB server refused to .*0x8000100: error 0x0e"
    ):
        await chip.read(256, 4)
    with pytest.raises(ReadError, match="could not be read at 0x100"):
        await chip.holds(256, b"1234")
    with pytest.raises(ProgramError, match="whole units"):
        await chip.program(2, b"1234")
    await chip.program(0, b"1234")
    with pytest.raises(ProgramError, match=r"could not be programmed at 0x0: .*error 0x0e"):
        await chip.program(0, b"1234")  # not erased between
    chip._geometry = uniform(256, 32)
    with pytest.raises(EraseError, match=r"the sector at 0x20 could not be erased: .* not whole sectors"):
        await chip.erase(Sector(32, 32))
    await chip._talker.wire.aclose()
    with pytest.raises(ReadError, match="could not be checked at 0x0: the wire"):
        await chip.holds(0, b"1234")


@pytest.mark.parametrize(
    ("geometry", "fits"),
    [
        (uniform(256, 64), True),
        (uniform(256, 128), True),
        (uniform(128, 64), True),
        (uniform(256, 32), False),
        (uniform(512, 64), False),
        (Geometry((Region(32, 64, 64),)), False),
    ],
)
async def test_a_server_with_other_flash_is_refused(geometry: Geometry, fits: bool) -> None:
    chip = GdbRemote(MemoryWire(probe(SMALL)), geometry)
    if fits:
        await chip.enter()
        assert chip.programs_flash
    else:
        with pytest.raises(ConfigError, match="the GDB server"):
            await chip.enter()


async def test_we_program_it_over_tcp() -> None:
    stub = probe()
    async with network_port(stub) as port, await open_tcp("127.0.0.1", port) as wire:
        chip = GdbRemote(wire, GEOMETRY)
        await chip.enter()
        await write(chip, IMAGE)
        assert await chip.read(0, len(IMAGE)) == IMAGE
    assert stub.flash.peek(0, len(IMAGE)) == IMAGE


# --- GDB itself ------------------------------------------------------------------------------------------------------


def s_records(address: int, data: bytes) -> str:
    """A file of Motorola's S-records, which GDB loads."""

    def line(kind: int, body: bytes) -> str:
        body = bytes([len(body) + 1]) + body
        return f"S{kind}{body.hex().upper()}{~sum(body) & 0xFF:02X}\n"

    lines = [line(3, (address + at).to_bytes(4, "big") + data[at : at + 32]) for at in range(0, len(data), 32)]
    return "".join([line(0, b"\0\0fw"), *lines, line(7, (address + 8).to_bytes(4, "big"))])


@pytest.mark.program("gdb-multiarch")
@pytest.mark.parametrize("runs", [False, True])
async def test_gdb_programs_the_simulated_chip_and_we_read_it(tmp_path: Path, runs: bool) -> None:
    image = IMAGE[:30_002] + b"}$#*" * 10 + bytes(5000)
    stub = probe(runs=runs)
    stub.flash.poke(0, bytes(50_000))
    (tmp_path / "fw.srec").write_text(s_records(F4.base, image))
    async with network_port(stub) as port:
        commands = (
            "set remotetimeout 20",
            f"target remote 127.0.0.1:{port}",
            f"load {tmp_path}/fw.srec",
            f"file {tmp_path}/fw.srec",
            "compare-sections",
            "monitor reset halt",
            f"dump binary memory {tmp_path}/back.bin {F4.base:#x} {F4.base + len(image):#x}",
        )
        told = await anyio.run_process(
            ["gdb-multiarch", "-nx", "-batch", *(word for command in commands for word in ("-ex", command))],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        said = told.stdout.decode()
        async with await open_tcp("127.0.0.1", port) as wire:
            chip = GdbRemote(wire, GEOMETRY)
            await chip.enter()
            assert await chip.holds(0, image)
            assert await chip.read(0, len(image)) == image
    assert "matched" in said, said
    assert "MIS-MATCHED" not in said
    assert "the chip was reset" in said
    assert (tmp_path / "back.bin").read_bytes() == image
    assert not stub.flash.operations.broken_rules
    assert not stub.crashes


# --- a wire that fails -----------------------------------------------------------------------------------------------

SHORT = IMAGE[:20]


async def life(wire: Wire) -> None:
    chip = GdbRemote(wire, SMALL)
    await chip.enter()
    await write(chip, SHORT)
    assert await chip.holds(0, SHORT)


@pytest.mark.parametrize(
    ("options", "step"),
    [({}, 1), ({"silent_acks": False}, 1), ({"plain": True}, 3), ({"running": True}, 3)],
    ids=str,
)
async def test_a_wire_that_is_cut_at_any_byte_leaves_a_chip_that_can_be_programmed(
    options: dict[str, object], step: int
) -> None:
    whole = MemoryWire(probe(SMALL, **options))
    await life(whole)
    assert whole.carried > 2 * len(SHORT)
    for cut in range(0, whole.carried, step):
        stub = probe(SMALL, **options)
        stub.flash.poke(0, b"old")
        with pytest.raises((LinkError, ReadError, EraseError, ProgramError)):
            await life(MemoryWire(stub, cut_after=cut))
        await life(MemoryWire(stub))  # connected again, the server in the midst of whatever it was
        assert stub.flash.peek(0, len(SHORT)) == SHORT
        assert not stub.flash.operations.broken_rules
        assert not stub.crashes


class Garbling:
    """A wire's noise: one byte of what the server says or hears is another one, or gone."""

    def __init__(self, rom: SimulatedGdbStub, *, at: int, which: str, lost: bool) -> None:
        self.rom, self.which, self.left, self.lost = rom, which, at, lost

    def _garble(self, which: str, data: bytes) -> bytes:
        at, self.left = self.left, self.left - (len(data) if which == self.which else 0)
        if which != self.which or not 0 <= at < len(data):
            return data
        return data[:at] + (b"" if self.lost else bytes([data[at] ^ 0x10])) + data[at + 1 :]

    def feed(self, data: bytes) -> bytes:
        return self._garble("answer", self.rom.feed(self._garble("request", data)))

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None: ...


@pytest.mark.parametrize("acks", [True, False])
@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("which", ["answer", "request"])
async def test_a_byte_that_is_garbled_or_lost_is_asked_for_again(which: str, lost: bool, acks: bool) -> None:
    failures, never = 0, 1 << 20
    whole = Garbling(probe(SMALL, silent_acks=not acks), at=never, which=which, lost=lost)
    await life(MemoryWire(whole))
    for at in range(0, never - whole.left, 2):
        stub = probe(SMALL, silent_acks=not acks)
        noise = Garbling(stub, at=at, which=which, lost=lost)
        wire = MemoryWire(noise)
        try:
            await life(wire)
        except FlashError:
            failures += 1
        else:
            assert stub.flash.peek(0, len(SHORT)) == SHORT
        assert not stub.crashes
        assert noise.left < 0  # it was
    print(f"{which}, lost={lost}, acks={acks}: {failures} lives of {(never - whole.left) // 2} ended in an error")
    assert failures == 0


async def test_answers_that_come_late_are_waited_for_or_given_up() -> None:
    with pytest.raises(FlashError):  # every answer is late: nobody can talk like this
        await life(MemoryWire(probe(SMALL), late=6))
    stub = probe(SMALL)
    wire = MemoryWire(stub)
    chip = GdbRemote(wire, SMALL)
    await chip.enter()
    wire._late = 1  # the next answer comes when nobody waits for it any more
    with anyio.fail_after(5):
        await chip.erase(SMALL.sectors[0])
        wire._late = 0
        assert await chip.read(0, 4) == b"\xff" * 4


async def test_a_program_that_was_not_answered_is_looked_at_before_it_is_made_again() -> None:
    for answered in (False, True):
        stub = probe(SMALL)
        chip = GdbRemote(MemoryWire(stub), SMALL)
        await chip.enter()
        deaf = stub.feed
        done = False

        def once(data: bytes, answered: bool = answered, deaf: object = deaf, stub: SimulatedGdbStub = stub) -> bytes:
            nonlocal done
            assert callable(deaf)
            if b"vFlashDone" in data and not done:
                done = True
                if answered:
                    deaf(data)  # carried out, but the answer is lost
                else:
                    stub._waiting.clear()  # the server was started anew
                return b""
            answer: bytes = deaf(data)
            return answer

        stub.feed = once  # type: ignore[method-assign]
        await chip.program(0, b"12345678")
        assert stub.flash.peek(0, 8) == b"12345678"
        assert not stub.flash.operations.broken_rules
        done = False
        stub.flash.poke(16, b"xx")
        with pytest.raises(ProgramError, match="part of it is there"):
            await chip.program(16, b"abcdabcd")


async def test_noise_is_no_server() -> None:
    class Noise(Garbling):
        def feed(self, data: bytes) -> bytes:
            return b"\xa5" * len(data)

    with pytest.raises(LinkError, match="no GDB server"):
        await GdbRemote(MemoryWire(Noise(probe(SMALL), at=0, which="", lost=False)), SMALL).enter()


async def test_silence_is_no_server() -> None:
    class Silence(Garbling):
        def feed(self, data: bytes) -> bytes:
            return b""

    with pytest.raises(NoAnswerError, match="does it run"):
        await GdbRemote(MemoryWire(Silence(probe(SMALL), at=0, which="", lost=False)), SMALL).enter()


async def test_a_cancellation_leaves_the_server_listening() -> None:
    chip = GdbRemote(MemoryWire(probe()), GEOMETRY)
    await chip.enter()
    for steps in range(1, 30):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(chip.read, 0, 70_000))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        assert await chip.read(0, 4) == b"\xff" * 4
    assert SECTORS[0] == Sector(0, 16384)
