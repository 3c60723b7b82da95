"""Wires: what comes and goes over TCP, a serial port and memory, and how each of them ends."""

import os
import pty
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from mgota.core.link_url import parse_link
from mgota.errors import ConfigError, LinkError, NoAnswerError
from mgota.flash.links.wire import SerialWire, StreamWire, Wire, open_serial, open_tcp, open_wire
from mgota.testing.wire import MemoryWire, SimulatedRom, network_port, serial_port

pytestmark = pytest.mark.asyncio


class Echo:
    """Answers with what came, in capitals; silent to "hush", talkative for ever to "noise"."""

    def __init__(self) -> None:
        self.lines: list[tuple[bool | None, bool | None]] = []
        self.fed = b""

    def feed(self, data: bytes) -> bytes:
        self.fed += data
        return b"" if b"hush" in data else data.upper()

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None:
        self.lines.append((rts, dtr))


@asynccontextmanager
async def over(kind: str) -> AsyncGenerator[Wire]:
    rom = Echo()
    if kind == "memory":
        yield MemoryWire(rom)
    elif kind == "tcp":
        async with network_port(rom) as port, await open_wire(parse_link(f"tcp://127.0.0.1:{port}"), baud=1) as wire:
            yield wire
    else:
        async with (
            serial_port(rom) as path,
            await open_wire(parse_link(f"serial://{path}?baud=57600"), baud=9600) as wire,
        ):
            yield wire


async def receive(wire: Wire, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await wire.receive(5)
    return data


@pytest.mark.parametrize("kind", ["memory", "tcp", "serial"])
async def test_bytes_come_and_go(kind: str) -> None:
    every = bytes(range(256)) * 20
    async with over(kind) as wire:
        await wire.send(every)
        assert await receive(wire, len(every)) == every.upper()
        await wire.send(b"hush")
        with pytest.raises(NoAnswerError):
            await wire.receive(0.02)
        await wire.send(b"old")
        await anyio.sleep(0.02)
        await wire.discard(0.02)
        await wire.send(b"new")
        assert await receive(wire, 3) == b"NEW"
        await wire.set_baud(115200)


@pytest.mark.parametrize("kind", ["memory", "tcp", "serial"])
async def test_a_wait_can_be_cancelled(kind: str) -> None:
    async with over(kind) as wire:
        with anyio.move_on_after(0.02) as scope:
            while True:
                with pytest.raises(NoAnswerError):
                    await wire.receive(3600)
        assert scope.cancelled_caught
        await wire.send(b"on")
        assert await receive(wire, 2) == b"ON"


async def test_a_wire_that_ends_is_an_error() -> None:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, lambda stream: stream.aclose())
        wire = await open_tcp("127.0.0.1", port)
        assert isinstance(wire, StreamWire)
        with pytest.raises(LinkError, match=f"127.0.0.1:{port} broke") as failed:
            await wire.receive(5)
        assert not isinstance(failed.value, NoAnswerError)
        await wire.aclose()
        with pytest.raises(LinkError, match="broke"):
            await wire.send(b"x")
        tasks.cancel_scope.cancel()
    with pytest.raises(LinkError, match="cannot be reached"):
        await open_tcp("127.0.0.1", port)


async def test_a_serial_port_that_goes_away_is_an_error() -> None:
    master, slave = pty.openpty()
    wire = await open_serial(os.ttyname(slave), 115200)
    os.close(slave)
    os.close(master)
    with pytest.raises(LinkError, match="serial port"):  # noqa: PT012  when, is the kernel's business
        for _ in range(10):
            await wire.send(b"x")
            await wire.receive(1)
    await wire.aclose()


async def test_a_port_that_is_none_is_an_error() -> None:
    with pytest.raises(LinkError, match="cannot be opened"):
        await open_serial("/dev/no-such-port", 115200)
    with pytest.raises(LinkError, match="cannot be opened"):
        await open_serial("/dev/null", 115200)


class Port:
    """serialx's port, as far as it is used, on a machine that has one."""

    def __init__(self) -> None:
        self.pins: list[dict[str, bool]] = []
        self.broken = False

    async def set_modem_pins(self, **pins: bool) -> None:
        if self.broken:
            raise OSError(5, "Input/output error")
        self.pins.append(pins)

    async def reconfigure_port(self, *, baudrate: int) -> None:
        raise ValueError(f"no {baudrate}")

    def abort(self) -> None:
        raise OSError(5, "Input/output error")


async def test_lines_of_a_serial_port() -> None:
    port = Port()
    wire = SerialWire(port, "/dev/x")
    await wire.set_lines(rts=True, dtr=False)
    await wire.set_lines(dtr=True)
    assert port.pins == [{"rts": True, "dtr": False}, {"dtr": True}]
    port.broken = True
    with pytest.raises(LinkError, match="the lines of the serial port /dev/x cannot be set"):
        await wire.set_lines(rts=True)
    with pytest.raises(LinkError, match="no speed of 7 baud"):
        await wire.set_baud(7)
    await wire.aclose()


class SlowPort(Port):
    """One whose bytes take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[str] = []

    async def write(self, data: bytes) -> None:
        self.done.append(f"write {len(data)}")

    async def flush(self) -> None:
        self.done.append("flush")

    async def read(self, size: int) -> bytes:
        await anyio.sleep(0.05)
        return b"x"

    async def reconfigure_port(self, *, baudrate: int) -> None:
        self.done.append(f"baud {baudrate}")


async def test_what_is_sent_is_out_before_speed_or_lines_change_and_before_an_answer_is_late() -> None:
    port = SlowPort()
    wire = SerialWire(port, "/dev/x", 1200)
    await wire.send(bytes(30))  # 0.3 s on the line
    assert await wire.receive(0.001) == b"x"
    await wire.set_baud(1_000_000)
    await wire.send(bytes(30))
    await wire.set_lines(rts=True)
    await wire.set_lines(rts=False)
    assert port.done == ["write 30", "flush", "baud 1000000", "write 30", "flush"]
    await wire.send(bytes(30))
    with pytest.raises(NoAnswerError, match=r"within 0\.001 s"):
        await wire.receive(0.001)


async def test_a_terminal_has_no_lines_and_nobody_minds() -> None:
    async with serial_port(Echo()) as path, await open_serial(path, 115200, parity="even") as wire:
        await wire.set_lines(rts=True, dtr=True)
        await wire.send(b"a")
        assert await wire.receive(5) == b"A"


async def test_lines_reach_the_rom() -> None:
    rom = Echo()
    assert isinstance(rom, SimulatedRom)
    wire = MemoryWire(rom)
    await wire.set_lines(rts=True)
    await wire.set_lines(dtr=False)
    assert rom.lines == [(True, None), (None, False)]


@pytest.mark.parametrize("cut", range(9))
async def test_a_cut_wire_carries_what_came_before(cut: int) -> None:
    rom = Echo()
    wire, got = MemoryWire(rom, cut_after=cut), b""
    with pytest.raises(LinkError, match="cut off"):  # noqa: PT012  somewhere in here
        await wire.send(b"abcd")
        got += await wire.receive(1)
        await wire.send(b"e")
    assert (rom.fed, got) == (b"abcd"[: min(cut, 4)], b"ABCD"[: max(cut - 4, 0)])
    with pytest.raises(LinkError, match="cut off"):
        await wire.receive(1)


async def test_a_late_answer_comes_after_some_waits() -> None:
    wire = MemoryWire(Echo(), late=2)
    await wire.send(b"a")
    for _ in range(2):
        with pytest.raises(NoAnswerError):
            await wire.receive(1)
    assert await wire.receive(1) == b"A"


class Noise(Echo):
    def feed(self, data: bytes) -> bytes:
        return data * 2


async def test_a_link_that_is_never_quiet_is_an_error() -> None:
    class Loud(StreamWire):
        async def receive(self, timeout: float) -> bytes:
            return b"x"

    async with network_port(Echo()) as port, await anyio.connect_tcp("127.0.0.1", port) as stream:
        with pytest.raises(LinkError, match="never quiet"):
            await Loud(stream, "it").discard(0.001)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("http://x", "begins with gdb://"),
        ("", "begins with"),
        ("serial://ttyUSB0", "names a port's path"),
        ("serial:///", "names a port's path"),
        ("serial:///dev/x?baud=0", "baud is a number"),
        ("serial:///dev/x?baud=10000001", "baud is a number"),
        ("serial:///dev/x?baud=fast", "baud is a number"),
        ("serial:///dev/x?bits=8", "the options baud, proto and reset"),
        ("serial:///dev/x?baud", "is no link"),
        ("serial:///dev/x#y", "nothing else"),
        ("gdb://host", "names host and port"),
        ("gdb://:3333", "names host and port"),
        ("gdb://host:99999", "is no link"),
        ("gdb://host:3333/path", "names host and port"),
        ("gdb://user@host:3333", "nothing else"),
        ("tcp://host:1?baud=9600", "a network has no baud"),
        ("gdb://[::1", "is no link"),
    ],
)
async def test_what_is_no_link_is_told(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]*$") as failed:
        parse_link(text)
    assert said in str(failed.value)


async def test_links_are_read() -> None:
    link = parse_link("serial:///dev/serial/by-id/usb%20port?baud=10000000&proto=esp")
    assert (link.path, link.baud, link.proto) == ("/dev/serial/by-id/usb port", 10_000_000, "esp")
    link = parse_link("gdb://127.0.0.1:3333")
    assert (link.scheme, link.host, link.port, link.baud) == ("gdb", "127.0.0.1", 3333, None)
    assert link.reset is None
    assert parse_link("gdb://[::1]:1/").host == "::1"
    assert parse_link("gdb://h:1?reset=system_reset").reset == "system_reset"
