"""The bad network: what it does to connections, and what it leaves alone."""

import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from mgota.errors import ConfigError
from mgota.testing import Effect, Fault, FaultProxy, Way, fault_proxy

pytestmark = pytest.mark.asyncio

TEXT = bytes(range(256)) * 4
GREETING = b"hello, "


class Echo:
    """A server that speaks first, then sends back what it gets; it notes how each connection ended."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.ends: list[str] = []

    async def __call__(self, stream: anyio.abc.SocketStream) -> None:
        got = bytearray()
        self.received.append(b"")
        number = len(self.received) - 1
        async with stream:
            try:
                await stream.send(GREETING)
                async for data in stream:
                    got += data
                    self.received[number] = bytes(got)
                    await stream.send(data)
                self.ends.append("end")
            except anyio.BrokenResourceError:
                self.ends.append("reset")


@asynccontextmanager
async def before_echo(
    script: list[list[Fault]] | Callable[[int], Iterable[Fault]],
) -> AsyncIterator[tuple[FaultProxy, Echo]]:
    echo = Echo()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, echo)
        async with fault_proxy("127.0.0.1", port, script) as proxy:
            yield proxy, echo
        tasks.cancel_scope.cancel()


async def exchange(proxy: FaultProxy, text: bytes = TEXT, *, patience: float = 20.0) -> tuple[bytes, str]:
    """Send all of it, say so, read to the end: what came, and how it ended."""
    got = bytearray()
    async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
        try:
            with anyio.fail_after(patience):
                await stream.send(text)
                await stream.send_eof()
                while True:
                    got += await stream.receive()
        except anyio.EndOfStream:
            return bytes(got), "end"
        except anyio.BrokenResourceError:
            return bytes(got), "reset"
        except TimeoutError:
            return bytes(got), "silence"


async def test_without_a_script_everything_passes() -> None:
    async with before_echo([]) as (proxy, echo):
        for _ in range(3):
            assert await exchange(proxy) == (GREETING + TEXT, "end")
        big = TEXT * 1000
        assert await exchange(proxy, big) == (GREETING + big, "end")
        assert proxy.connections == 4
        assert proxy.passed == {
            Way.UP: 3 * len(TEXT) + len(big),
            Way.DOWN: 4 * len(GREETING) + 3 * len(TEXT) + len(big),
        }
    assert echo.received == [TEXT] * 3 + [big]


@pytest.mark.parametrize("at", [0, 1, 7, 8, 500])
async def test_a_cut_lets_exactly_so_many_bytes_through(at: int) -> None:
    async with before_echo([[Fault.cut(at)]]) as (proxy, _):
        assert await exchange(proxy) == ((GREETING + TEXT)[:at], "end")
        assert await exchange(proxy) == (GREETING + TEXT, "end")  # the script is over


@pytest.mark.parametrize("at", [0, 7, 500])
async def test_a_reset_is_no_orderly_end(at: int) -> None:
    async with before_echo([[Fault.reset(at)]]) as (proxy, echo):
        got, how = await exchange(proxy)
        assert how == "reset"
        assert (GREETING + TEXT)[:at].startswith(got)  # a reset may overtake what was on its way
        with anyio.fail_after(20):
            while not echo.ends:
                await anyio.sleep(0.01)
    assert echo.ends[0] in {"reset", "end"}


@pytest.mark.parametrize("at", [0, 1, 300])
async def test_the_way_up_is_counted_on_its_own(at: int) -> None:
    async with before_echo([[Fault.cut(at, Way.UP)]]) as (proxy, echo):
        got, how = await exchange(proxy)
        assert how == "end"
        assert (GREETING + TEXT[:at]).startswith(got)
        with anyio.fail_after(20):
            while not echo.ends:
                await anyio.sleep(0.01)
    assert echo.received == [TEXT[:at]]


async def test_a_stall_says_nothing_and_ends_with_the_client() -> None:
    async with before_echo([[Fault.stall(100)]]) as (proxy, echo):
        async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
            await stream.send(TEXT)
            got = b""
            while len(got) < 100:
                got += await stream.receive()
            assert got == (GREETING + TEXT)[:100]
            with pytest.raises(TimeoutError), anyio.fail_after(0.2):
                await stream.receive()
        with anyio.fail_after(20):
            while not echo.ends:  # the server hears that the client has gone
                await anyio.sleep(0.01)


@pytest.mark.parametrize("fault", [Fault.delay(10, 0.2), Fault.throttle(10, 5000), Fault.throttle(20, 5000, Way.UP)])
async def test_delay_and_throttle_only_take_time(fault: Fault) -> None:
    async with before_echo([[fault]]) as (proxy, _):
        began = anyio.current_time()
        assert await exchange(proxy) == (GREETING + TEXT, "end")
        assert anyio.current_time() - began > 0.19  # at least: it can only be slower


async def test_what_fails_inside_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with fault_proxy("127.0.0.1", 9):
            raise ZeroDivisionError


async def test_bytes_come_twice() -> None:
    script = [[Fault.duplicate(10, 3), Fault.duplicate(20, 20), Fault.duplicate(5, 1, Way.UP)]]
    sent = TEXT[:5] + TEXT[4:5] + TEXT[5:]
    down = GREETING + sent
    async with before_echo(script) as (proxy, echo):
        assert await exchange(proxy) == (down[:10] + down[7:10] + down[10:20] + down[:20] + down[20:], "end")
    assert echo.received == [sent]


async def test_faults_at_one_byte_come_in_the_order_given() -> None:
    async with before_echo([[Fault.duplicate(7, 7), Fault.cut(7)], [Fault.cut(7), Fault.duplicate(7, 7)]]) as (
        proxy,
        _,
    ):
        assert await exchange(proxy) == (GREETING * 2, "end")
        assert await exchange(proxy) == (GREETING, "end")


async def test_a_script_may_be_a_function_of_the_connection() -> None:
    async with before_echo(lambda number: [Fault.cut(number)] if number < 3 else []) as (proxy, _):
        found = [(await exchange(proxy))[0] for _ in range(4)]
        assert found == [b"", GREETING[:1], GREETING[:2], GREETING + TEXT]
        proxy.script = [[Fault.cut(1)]] * 5
        assert (await exchange(proxy))[0] == GREETING[:1]


@pytest.mark.parametrize(("effect", "word"), [(Effect.CUT, "end"), (Effect.RESET, "reset")])
async def test_all_connections_break_at_once_and_the_server_may_be_down(effect: Effect, word: str) -> None:
    async with before_echo([]) as (proxy, _):
        ends: list[str] = []

        async def hold(task_status: anyio.abc.TaskStatus[None]) -> None:
            async with await anyio.connect_tcp(proxy.host, proxy.port) as stream:
                assert await stream.receive() == GREETING
                task_status.started()
                try:
                    await stream.receive()
                except anyio.EndOfStream:
                    ends.append("end")
                except anyio.BrokenResourceError:
                    ends.append("reset")

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                await tasks.start(hold)
            proxy.break_all(effect)
        assert ends == [word] * 2
        proxy.open = False
        assert await exchange(proxy) == (b"", "reset")
        proxy.open = True
        assert (await exchange(proxy))[1] == "end"


async def test_a_server_that_is_not_there_is_a_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    async with fault_proxy("127.0.0.1", port) as proxy:
        assert await exchange(proxy) == (b"", "reset")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault.cut(-1),
        lambda: Fault.delay(0, -1.0),
        lambda: Fault.throttle(0, 0),
        lambda: Fault.duplicate(3, 4),
        lambda: Fault.duplicate(3, 0),
    ],
)
async def test_a_fault_that_no_connection_can_have_is_refused(make: Callable[[], Fault]) -> None:
    with pytest.raises(ConfigError):
        make()
