"""Simulated boot ROMs and debug probes on a wire: in memory, on a socket, on a pseudo terminal.

    wire = MemoryWire(rom)                              a driver's `Wire`, no event loop's time goes by
    async with serial_port(rom) as path: …              a path that a third party's tool opens as a serial port
    async with network_port(rom) as port: …             the same on TCP

Rules:
- a ROM is a function from bytes to bytes with a state: `feed` takes what came and gives what is answered;
- a wire that is cut off after so many bytes, in both directions together, is gone: what came before counts;
- silence takes no time in memory: who waits for an answer that will not come is told so at once.
"""

import os
import pty
import termios
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Protocol, runtime_checkable

import anyio
from anyio.abc import ByteStream

from mgota.errors import LinkError, NoAnswerError

CHUNK = 4096


@runtime_checkable
class SimulatedRom(Protocol):
    """A chip at the other end of a wire."""

    def feed(self, data: bytes) -> bytes:
        """What it answers to these bytes."""
        ...

    def set_lines(self, *, rts: bool | None, dtr: bool | None) -> None:
        """The modem lines change; None leaves a line as it is."""
        ...


class MemoryWire:
    """A wire to a simulated ROM; implements `mgota.flash.links.wire.Wire`.

    Args:
        rom: at its other end.
        cut_after: bytes in both directions together, after which the wire is gone; None is never.
        late: how many waits for an answer are in vain before it comes.
    """

    def __init__(self, rom: SimulatedRom, *, cut_after: int | None = None, late: int = 0) -> None:
        self.rom = rom
        self.carried = 0
        """Bytes that went over it, in both directions."""
        self.baud: int | None = None
        self._cut_after = cut_after
        self._late = late
        self._waits = 0
        self._coming = bytearray()

    def _left(self) -> int:
        return 1 << 62 if self._cut_after is None else self._cut_after - self.carried

    async def send(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            LinkError: the wire was cut off; the ROM got what came before.
        """
        await anyio.lowlevel.checkpoint()
        carried = bytes(data[: max(self._left(), 0)])
        self.carried += len(carried)
        self._coming += self.rom.feed(carried)
        if len(carried) < len(data):
            raise LinkError("the wire was cut off")

    async def receive(self, timeout: float) -> bytes:
        """What the ROM answered.

        Raises:
            NoAnswerError: nothing; at once, whatever the timeout.
            LinkError: the wire was cut off.
        """
        await anyio.lowlevel.checkpoint()
        if self._left() <= 0:
            raise LinkError("the wire was cut off")
        if not self._coming or self._waits < self._late:
            self._waits += 1
            raise NoAnswerError(f"nothing came within {timeout:g} s")
        self._waits = 0
        data = bytes(self._coming[: self._left()])
        self.carried += len(data)
        del self._coming[: len(data)]
        return data

    async def discard(self, quiet: float = 0.0) -> None:
        """Forget what has come."""
        del quiet
        await anyio.lowlevel.checkpoint()
        self._coming.clear()

    async def set_lines(self, *, rts: bool | None = None, dtr: bool | None = None) -> None:
        """Set the ROM's lines."""
        await anyio.lowlevel.checkpoint()
        self.rom.set_lines(rts=rts, dtr=dtr)

    async def set_baud(self, baud: int) -> None:
        """Note the speed."""
        await anyio.lowlevel.checkpoint()
        self.baud = baud

    async def aclose(self) -> None:
        """Close it."""
        await anyio.lowlevel.checkpoint()
        self._cut_after = 0


@asynccontextmanager
async def network_port(rom: SimulatedRom) -> AsyncGenerator[int]:
    """Serve a ROM on a TCP port of the loopback interface, to one client after another.

    Args:
        rom: what answers.
    """
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def converse(stream: ByteStream) -> None:
        with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            async with stream:
                while True:
                    await stream.send(rom.feed(await stream.receive(CHUNK)))

    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, converse)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610  anyio's, not Django's
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def serial_port(rom: SimulatedRom) -> AsyncGenerator[str]:
    """Serve a ROM on a pseudo terminal, whose path any program can open as a serial port.

    It has no modem lines and no parity: a tool has to be told to do without.

    Args:
        rom: what answers.
    """
    master, slave = pty.openpty()
    try:
        _make_raw(slave)
        os.set_blocking(master, False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_pump, rom, master)
            yield os.ttyname(slave)
            tasks.cancel_scope.cancel()
    finally:
        os.close(master)
        os.close(slave)


def _make_raw(descriptor: int) -> None:
    mode = termios.tcgetattr(descriptor)
    mode[0] = mode[1] = mode[3] = 0  # nothing is translated, echoed or made into a signal
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)


async def _pump(rom: SimulatedRom, master: int) -> None:
    while True:
        await anyio.wait_readable(master)
        answer = memoryview(rom.feed(os.read(master, CHUNK)))
        while answer:
            try:
                answer = answer[os.write(master, answer) :]
            except BlockingIOError:
                await anyio.wait_writable(master)
