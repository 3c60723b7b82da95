"""A bad network: a TCP proxy before any server, which breaks connections at the bytes that a script names.

    script = [[Fault.cut(1000)], [Fault.reset(0, Way.UP)], []]
    async with fault_proxy("127.0.0.1", 8000, script) as proxy:
        ...                                 # connect to proxy.port instead of 8000

The first connection ends after 1000 bytes of what the server said, the second is reset before a byte of the client gets
through, the third and all that follow are left alone. A script may also be a function of the connection's number.

| fault | what happens when `at` bytes have gone this way |
|---|---|
| `cut` | both ends see the connection end (FIN), in both ways |
| `reset` | both ends see it reset (RST) |
| `stall` | nothing more goes this way; the connection stays |
| `delay` | nothing goes this way for some seconds |
| `throttle` | from here on no more than so many bytes a second |
| `duplicate` | the last so many bytes before `at` are sent once more |

Rules:
- bytes are counted per connection and way, from 0, as they are passed on; exactly `at` of them get through first;
- faults of one way come in the order of their offsets; at one offset in the order given;
- what the script does not name passes unchanged, and no faster than the other end takes it;
- it knows nothing of what it carries: TLS, HTTP and MQTT are bytes.
"""

import errno
import socket
import struct
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import Final, Self

import anyio
from anyio.abc import TaskGroup

from mgota.errors import ConfigError

_BLOCK: Final = 64 * 1024
_TICKS: Final = 50.0
# How many pieces a second a throttled way is passed in, at most.


class Way(StrEnum):
    """A direction through the proxy."""

    UP = "up"
    """From the client to the server."""
    DOWN = "down"
    """From the server to the client."""


class Effect(StrEnum):
    """What a fault does."""

    CUT = "cut"
    RESET = "reset"
    STALL = "stall"
    DELAY = "delay"
    THROTTLE = "throttle"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that goes wrong at a byte of a connection. The functions below make one of each kind.

    Args:
        effect: what goes wrong.
        at: bytes that pass this way before.
        way: which direction is counted, and held up.
        amount: seconds of a delay, bytes a second of a throttle, bytes of a duplicate.

    Raises:
        ConfigError: an offset before the first byte, an amount that means nothing, or more to duplicate than came.
    """

    effect: Effect
    at: int
    way: Way = Way.DOWN
    amount: float = 0.0

    def __post_init__(self) -> None:
        if self.at < 0 or self.amount < 0 or (self.effect is Effect.THROTTLE and not self.amount):
            raise ConfigError(f"no connection can have this fault: {self}")
        if self.effect is Effect.DUPLICATE and not 0 < self.amount <= self.at:
            raise ConfigError(f"only bytes that have passed can be sent once more: {self}")

    @classmethod
    def cut(cls, at: int, way: Way = Way.DOWN) -> Self:
        """The connection ends, as if the peer had closed it."""
        return cls(Effect.CUT, at, way)

    @classmethod
    def reset(cls, at: int, way: Way = Way.DOWN) -> Self:
        """The connection is reset."""
        return cls(Effect.RESET, at, way)

    @classmethod
    def stall(cls, at: int, way: Way = Way.DOWN) -> Self:
        """Nothing more comes through, and nobody says so."""
        return cls(Effect.STALL, at, way)

    @classmethod
    def delay(cls, at: int, seconds: float, way: Way = Way.DOWN) -> Self:
        """Nothing comes through for `seconds`."""
        return cls(Effect.DELAY, at, way, seconds)

    @classmethod
    def throttle(cls, at: int, rate: float, way: Way = Way.DOWN) -> Self:
        """`rate` bytes a second come through."""
        return cls(Effect.THROTTLE, at, way, rate)

    @classmethod
    def duplicate(cls, at: int, count: int, way: Way = Way.DOWN) -> Self:
        """The `count` bytes before `at` come twice."""
        return cls(Effect.DUPLICATE, at, way, count)


Script = Sequence[Iterable[Fault]] | Callable[[int], Iterable[Fault]]
"""The faults of each connection: a list in the order of connections, or a function of a connection's number."""


class FaultProxy:
    """A running proxy; `fault_proxy` makes one.

    Args:
        host: of the server.
        port: of the server.
        script: what goes wrong. It may be replaced at any time, and counts for the connections that come then.
        listener: where clients connect.
    """

    def __init__(self, host: str, port: int, script: Script, listener: socket.socket) -> None:
        self.host, self.port = listener.getsockname()[:2]
        self.script = script
        self.connections = 0
        """How many connections came so far."""
        self.open = True
        """Whether new connections are let through; otherwise each is reset at once, as by a server that is down."""
        self.passed = dict.fromkeys(Way, 0)
        """Bytes that went each way in all connections so far."""
        self._server = (host, port)
        self._listener = listener
        self._links: dict[int, _Link] = {}

    def break_all(self, effect: Effect = Effect.RESET) -> None:
        """Cut or reset every connection that stands now."""
        for link in list(self._links.values()):
            link.end(effect)

    async def accept(self, tasks: TaskGroup) -> None:
        """Accept connections for ever, each into a task of its own."""
        while True:
            await anyio.wait_readable(self._listener)
            with suppress(BlockingIOError, ConnectionError):
                client, _ = self._listener.accept()
                number, self.connections = self.connections, self.connections + 1
                tasks.start_soon(self._run, client, number)

    async def _run(self, client: socket.socket, number: int) -> None:
        client.setblocking(False)
        script = self.script
        faults = script(number) if callable(script) else script[number] if number < len(script) else ()
        with client:
            server = await self._connected() if self.open else None
            if server is None:
                _abort(client)
                return
            with server:
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                link = self._links[number] = _Link(client, server, list(faults), self.passed)
                try:
                    await link.run()
                finally:
                    del self._links[number]

    async def _connected(self) -> socket.socket | None:
        """A connection to the server, or None if it does not take any."""
        for family, kind, protocol, _, address in await anyio.getaddrinfo(*self._server, type=socket.SOCK_STREAM):
            server = socket.socket(family, kind, protocol)
            server.setblocking(False)
            try:
                if server.connect_ex(address) == errno.EINPROGRESS:
                    await anyio.wait_writable(server)
                server.getpeername()  # only what is connected has one
            except OSError:
                server.close()
            except BaseException:
                server.close()
                raise
            else:
                return server
        return None


@asynccontextmanager
async def fault_proxy(
    host: str, port: int, script: Script = (), *, listen: str = "127.0.0.1"
) -> AsyncGenerator[FaultProxy]:
    """A proxy before a server, for as long as the block lasts.

    Args:
        host: of the server; connected to anew for each client.
        port: of the server.
        script: what goes wrong.
        listen: the address that clients connect to; the port is a free one.
    """
    with socket.create_server((listen, 0)) as listener:
        listener.setblocking(False)
        proxy = FaultProxy(host, port, script, listener)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(proxy.accept, tasks)
            try:
                yield proxy
            except Exception as exc:  # noqa: BLE001  raised outside of the task group, which would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
        if failure:
            raise failure


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, client: socket.socket, server: socket.socket, faults: list[Fault], total: dict[Way, int]
    ) -> None:
        self._passed = dict.fromkeys(Way, 0)
        self._total = total
        self._ends = {Way.UP: (client, server), Way.DOWN: (server, client)}
        self._faults = {
            way: sorted((fault for fault in faults if fault.way is way), key=lambda fault: fault.at) for way in Way
        }
        self._rates = dict.fromkeys(Way, inf)
        self._recent = dict.fromkeys(Way, b"")
        self._memory = {
            way: max((int(f.amount) for f in self._faults[way] if f.effect is Effect.DUPLICATE), default=0)
            for way in Way
        }
        self._scope = anyio.CancelScope()
        self._ended = {way: anyio.Event() for way in Way}
        self._broken: Effect | None = None

    def end(self, effect: Effect) -> None:
        """Break the connection."""
        self._broken = effect
        self._scope.cancel()

    async def run(self) -> None:
        """Until both ends have ended it, or the script has."""
        with self._scope, suppress(OSError):
            async with anyio.create_task_group() as tasks:
                for way in Way:
                    tasks.start_soon(self._pump, way)
        if self._broken is Effect.CUT:
            await self._part()
        elif self._broken is not None:
            for end, _ in self._ends.values():
                _abort(end)

    async def _part(self) -> None:
        """FIN to both, and patience with what they still say: closing on unread bytes would be a reset."""
        async with anyio.create_task_group() as tasks:
            for source, _ in self._ends.values():
                with suppress(OSError):
                    source.shutdown(socket.SHUT_WR)
                tasks.start_soon(_drain, source)

    async def _pump(self, way: Way) -> None:
        source, target = self._ends[way]
        try:
            while True:
                await self._fault(way)
                data = await self._some(way, source)
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                await self._pass_on(way, target, data)
        except OSError:  # one end is gone: the other shall know
            self.end(Effect.RESET)
        finally:
            self._ended[way].set()

    async def _some(self, way: Way, source: socket.socket) -> bytes:
        """The next bytes, up to the next fault; none at the end."""
        faults, rate = self._faults[way], self._rates[way]
        most = min(_BLOCK, faults[0].at - self._passed[way]) if faults else _BLOCK
        while True:
            await anyio.wait_readable(source)
            with suppress(BlockingIOError):
                return source.recv(int(max(1, min(most, rate / _TICKS))))

    async def _pass_on(self, way: Way, target: socket.socket, data: bytes) -> None:
        began = time.monotonic()
        await _send_all(target, data)
        self._passed[way] += len(data)
        self._total[way] += len(data)
        if self._memory[way]:
            self._recent[way] = (self._recent[way] + data)[-self._memory[way] :]
        if self._rates[way] < inf:
            await anyio.sleep(max(0.0, len(data) / self._rates[way] - (time.monotonic() - began)))

    async def _fault(self, way: Way) -> None:
        """What goes wrong at this byte."""
        faults = self._faults[way]
        while faults and faults[0].at <= self._passed[way]:
            fault = faults.pop(0)
            match fault.effect:
                case Effect.CUT | Effect.RESET:
                    self.end(fault.effect)
                    await anyio.sleep_forever()
                case Effect.STALL:
                    await self._ended[Way.UP if way is Way.DOWN else Way.DOWN].wait()
                    self.end(Effect.CUT)
                    await anyio.sleep_forever()
                case Effect.DELAY:
                    await anyio.sleep(fault.amount)
                case Effect.THROTTLE:
                    self._rates[way] = fault.amount
                case Effect.DUPLICATE:  # pragma: no branch  there is no other
                    await _send_all(self._ends[way][1], self._recent[way][-int(fault.amount) :])


async def _send_all(target: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[target.send(view) :]
        except BlockingIOError:
            await anyio.wait_writable(target)


async def _drain(source: socket.socket) -> None:
    with suppress(OSError):
        while True:
            await anyio.wait_readable(source)
            with suppress(BlockingIOError):
                if not source.recv(_BLOCK):
                    return


def _abort(end: socket.socket) -> None:
    """Close with RST: socket(7), SO_LINGER with a time of 0."""
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
