"""Which protocol is spoken on a link, what a chip prints, and each protocol under gateway-held slots."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.abc import SocketStream
from wired_chips import GatewaySlots

from mgota import Device, OtaSession, boot_check
from mgota.core.boot import Verdict
from mgota.core.geometry import Geometry, uniform
from mgota.core.link_url import parse_link
from mgota.errors import ConfigError, FlashError, LinkError
from mgota.flash.held import HeldFlash
from mgota.flash.links.console import LINES, LONGEST, Console
from mgota.flash.links.esp_rom import EspRom
from mgota.flash.links.gdb_remote import GdbRemote
from mgota.flash.links.link import Comparing, Connect, Link
from mgota.flash.links.mboot import Mboot
from mgota.flash.links.opened import connector, protocol_of
from mgota.flash.links.stm32_rom import Stm32Rom
from mgota.flash.links.wire import StreamWire, Wire, open_tcp
from mgota.flash.targets.table import find_target
from mgota.flash.wired import PlainChip
from mgota.session import provision
from mgota.testing import NorSimulator
from mgota.testing.bench import CellState
from mgota.testing.cuts import firmware
from mgota.testing.esp_rom import SimulatedEspRom
from mgota.testing.gdb_stub import SimulatedGdbStub
from mgota.testing.mboot import SimulatedMboot
from mgota.testing.stm32_rom import SimulatedStm32Rom
from mgota.testing.wire import MemoryWire, SimulatedRom, network_port
from mgota.trial import commit

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(
    ("link", "target", "protocol"),
    [
        ("gdb://h:1", "esp32", "gdb"),
        ("gdb://h:1?proto=gdb&reset=monitor", "rt1060", "gdb"),
        ("serial:///dev/x", "stm32h7_dual_core", "stm32"),
        ("tcp://h:1", "esp32", "esp"),
        ("serial:///dev/x", "rt1020", "mboot"),
        ("serial:///dev/x", "rt1170", "mboot"),
        ("tcp://h:1", "mcxn947", "mboot"),
        ("tcp://h:1", "rw612", "mboot"),
        ("tcp://h:1?proto=stm32", "ch32v307", "stm32"),
        ("tcp://h:1?proto=gdb&reset=init", "stm32f4", "gdb"),
    ],
)
async def test_the_protocol_follows_the_target_unless_the_link_names_one(link: str, target: str, protocol: str) -> None:
    assert protocol_of(parse_link(link), find_target(target)) == protocol


@pytest.mark.parametrize(
    ("link", "target", "said"),
    [
        ("gdb://h:1?proto=esp", "esp32", "speaks with a GDB server"),
        ("tcp://h:1", "ch32v307", "the boot ROM of ch32v307 is not spoken to"),
        ("tcp://h:1?proto=xmodem", "stm32f4", "there is no protocol 'xmodem'; there are gdb, "),
        ("tcp://h:1?reset=x", "stm32f4", "reset by RTS and DTR"),
        ("gdb://h:1", "u2a16", "nobody has verified"),
    ],
)
async def test_what_cannot_be_spoken_is_told_before_a_wire_is_opened(link: str, target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        connector(parse_link(link), find_target(target))


@pytest.mark.parametrize("name", ["stm32f4", "esp32", "gdb", "mcxn947", "rw612"])
async def test_a_link_is_opened_over_a_network(name: str) -> None:
    target = find_target("stm32f4" if name == "gdb" else name)
    assert target.geometry
    flash = NorSimulator(target.geometry)
    flash.poke(0, b"1234")
    rom: SimulatedRom
    if name == "gdb":
        rom = SimulatedGdbStub(flash, running=True)
    elif name in {"mcxn947", "rw612"}:
        rom = SimulatedMboot(flash, target.base, memory=9 if name == "rw612" else 0)
    else:
        rom = SimulatedStm32Rom(flash) if name == "stm32f4" else SimulatedEspRom(flash)
    async with network_port(rom) as port:
        scheme = "gdb" if name == "gdb" else "tcp"
        async with connector(parse_link(f"{scheme}://127.0.0.1:{port}"), target)() as link:
            assert isinstance(link, Link)
            assert isinstance(link, Comparing) is (name in {"gdb", "esp32"})
            await link.enter()
            assert await link.read(0, 4) == b"1234"
            if isinstance(link, Comparing):
                assert await link.holds(0, b"1234")
                assert not await link.holds(0, b"1235")
            await link.reset()


# --- what it prints --------------------------------------------------------------------------------------------------


class Printer:
    """A chip's UART on a TCP port."""

    def __init__(self) -> None:
        self.streams = list[SocketStream]()
        self.connected = anyio.Event()
        self.port = 0

    async def print(self, data: bytes) -> None:
        await self.connected.wait()
        await self.streams[-1].send(data)

    async def connect(self) -> StreamWire:
        return await open_tcp("127.0.0.1", self.port)

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            self.streams.append(stream)
            self.connected.set()
            await anyio.sleep_forever()


@asynccontextmanager
async def printer() -> AsyncGenerator[tuple[Printer, Console]]:
    found = Printer()
    console = Console(found.connect)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        found.port = listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.start_soon(listener.serve, found.serve)
        tasks.start_soon(console.listen)
        yield found, console
        tasks.cancel_scope.cancel()


async def hears(console: Console, text: str) -> None:
    with anyio.fail_after(10):
        while not await console.heard(text):
            await anyio.sleep(0.005)


async def test_a_line_is_heard_until_it_is_forgotten() -> None:
    async with printer() as (chip, console):
        await chip.print(b"\xff\xfe boot\r\nversion 2")
        await hears(console, "version 2")  # without an end of line
        assert await console.heard("boot")
        assert not await console.heard("boot version")
        await chip.print(b".1 rea")
        await chip.print(b"dy\n")
        await hears(console, "version 2.1 ready")
        console.forget()
        assert not await console.heard("boot")
        assert not await console.heard("ready")
        await chip.print(b"half a li")
        await hears(console, "half a li")
        console.forget()
        await chip.print(b"ne\n")
        await hears(console, "ne")
        assert not await console.heard("half")
        await chip.print(b"x" * (LONGEST + 1))
        await hears(console, "x" * 100)
        await chip.print(b"line\n" * LINES + b"end")
        await hears(console, "end")
        assert not await console.heard("x")


async def test_a_console_that_breaks_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.flash.links.console.PATIENCE", 0.01)
    monkeypatch.setattr("mgota.flash.links.console.QUIET", 0.01)
    async with printer() as (chip, console):
        await chip.print(b"one\n")
        await hears(console, "one")
        chip.connected = anyio.Event()
        await chip.streams[0].aclose()
        await chip.print(b"two\n")
        await hears(console, "two")


# --- each protocol, cut all over --------------------------------------------------------------------------------

SMALL: Geometry = uniform(512, 128, program_unit=4)
SERIAL_FLASH: Geometry = uniform(512, 128)
STRIDES = {"gdb": 29, "stm32": 11, "esp": 29, "mboot": 29}
"""Bytes between two cuts; the tests of each link cut at every one."""

OLD, NEW = firmware("1", 200), firmware("2", 150)


async def none(wire: Wire) -> None:
    """The ROM listens already, or the program is let run."""


def _gdb(wire: Wire) -> Link:
    return GdbRemote(wire, SMALL)


def _stm32(wire: Wire) -> Link:
    async def by_lines(wire: Wire, *, boot: bool) -> None:
        """What `stm32_rom.by_lines` does, at once: one that broke off in a long command is only found by a reset."""
        await wire.set_lines(dtr=True, rts=not boot)
        await wire.set_lines(dtr=False)

    return Stm32Rom(wire, SMALL, enter=partial(by_lines, boot=True), leave=partial(by_lines, boot=False))


def _esp(wire: Wire) -> Link:
    return EspRom(wire, SERIAL_FLASH, enter=none, leave=none)


def _mboot(wire: Wire) -> Link:
    async def by_lines(wire: Wire) -> None:
        """What `mboot.by_lines` does, at once."""
        await wire.set_lines(dtr=True, rts=True)
        await wire.set_lines(dtr=False)
        await wire.set_lines(rts=False)

    return Mboot(wire, SMALL, enter=by_lines)


PROTOCOLS: dict[str, tuple[Callable[[NorSimulator], SimulatedRom], Callable[[Wire], Link]]] = {
    "gdb": (SimulatedGdbStub, _gdb),
    "stm32": (partial(SimulatedStm32Rom, wired=True), _stm32),
    "esp": (SimulatedEspRom, _esp),
    "mboot": (partial(SimulatedMboot, wired=True), _mboot),
}


class Board:
    """A gateway and a chip, and the wire between them, which may be cut."""

    def __init__(self, protocol: str) -> None:
        make, self._link = PROTOCOLS[protocol]
        self.geometry = SERIAL_FLASH if protocol == "esp" else SMALL
        self.rom = make(NorSimulator(self.geometry))
        self.disk = NorSimulator(uniform(1024, 256, program_unit=4))
        self._slots = GatewaySlots(self.disk, 0, 512)
        self.wire = MemoryWire(self.rom)

    def connect(self) -> Connect:
        @asynccontextmanager
        async def connect() -> AsyncGenerator[Link]:
            yield self._link(self.wire)

        return connect

    def life(self) -> Device:
        flash = HeldFlash(self._slots, PlainChip(self.connect(), self.geometry), self.disk.cell("held"))
        return Device(flash=flash, state=CellState(self.disk.cell("state")))


async def one(image: bytes) -> AsyncIterator[bytes]:
    yield image


async def updated(protocol: str) -> Board:
    board = Board(protocol)
    await provision(board.life(), one(OLD), size=len(OLD))
    device = board.life()
    assert await boot_check(device) is Verdict.RUN
    async with OtaSession(device, size=len(NEW)) as ota:
        await ota.write(NEW)
        await ota.activate(await ota.seal())
    board.wire = MemoryWire(board.rom)
    return board


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_wire_that_is_cut_anywhere_is_no_brick(protocol: str) -> None:
    board = await updated(protocol)
    assert await boot_check(board.life()) is Verdict.TRIAL
    carried = board.wire.carried
    assert carried > 400
    for cut in range(0, carried, STRIDES[protocol]):
        board = await updated(protocol)
        board.wire = MemoryWire(board.rom, cut_after=cut)
        with pytest.raises((LinkError, FlashError)):
            await boot_check(board.life())
        board.wire = MemoryWire(board.rom)  # the next start of the gateway
        device = board.life()
        assert await boot_check(device) is Verdict.TRIAL
        assert board.rom.flash.peek(0, len(NEW)) == NEW  # type: ignore[attr-defined]
        assert await commit(device)
        assert not board.rom.flash.operations.broken_rules  # type: ignore[attr-defined]
