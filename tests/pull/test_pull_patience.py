"""How long a server is waited for, over all of its connections; and what a device keeps meanwhile."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from itertools import chain, repeat

import anyio
import anyio.abc
import pytest
from memory_device import NEW, OLD, Board, Restarted, firmware
from site_server import IMAGE, METADATA, Request, Site, response

from mgota.core.download import Patience
from mgota.core.geometry import Slot
from mgota.core.pace import Limits
from mgota.errors import OtaError, TooLargeError, TransferError
from mgota.session import OtaSession
from mgota.testing import Fault, fault_proxy
from mgota.transports.pull import Web, pull
from mgota.trial import boot_check, commit

pytestmark = pytest.mark.asyncio

QUICK = Patience(first=0.001, longest=0.002)
BRIEF = Web(patience=Patience(tries=2, first=0.001, longest=0.002), allow_http=True)


async def install(one: Board, url: str, current: str = "1", web: Web = BRIEF) -> None:
    """A pull that installs, and so ends in a reset."""
    with pytest.raises(Restarted):
        await pull(one.device, f"{url}{METADATA}", current_version=current, web=web)


@asynccontextmanager
async def answering(*pieces: bytes) -> AsyncGenerator[str]:
    """A server that answers with a piece every hundredth of a second, the last one for ever."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
                await stream.receive()
                for piece in chain(pieces, repeat(pieces[-1])):
                    await stream.send(piece)
                    await anyio.sleep(0.01)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("pieces", [(b"HTTP/1.1 103 Early Hints\r\n\r\n",), (b"HTTP/1.1 200 OK\r\nX: ", b"x")])
async def test_a_head_that_never_ends_is_a_stall(pieces: tuple[bytes, ...]) -> None:
    site, one = Site(), Board(OLD)
    web = Web(limits=Limits(idle=0.2), allow_http=True, patience=Patience(tries=2, first=0.001, longest=0.002))
    async with site.served() as url, answering(*pieces) as endless:
        site.publish(NEW, url=f"{endless}/fw.bin")
        with anyio.fail_after(20), pytest.raises(TransferError, match=r"nothing came for 0\.2 s that is an answer"):
            await install(one, url, "1", web)


async def test_a_byte_at_each_connection_is_given_up() -> None:
    site, one = Site(), Board(OLD)
    site.keep_alive = False
    site.publish(NEW)
    web = Web(limits=Limits(minimum_rate=100_000, grace=0.02), allow_http=True, patience=QUICK)
    cut = len(response(206, b"", connection="close", etag='"v1"', content_range="bytes 1000-1499/1500"))
    async with site.served() as url:
        port = int(url.rpartition(":")[2])
        async with fault_proxy("127.0.0.1", port, lambda number: [Fault.cut(cut + 2)] if number else []) as proxy:
            with pytest.raises(TransferError, match="10 tries that brought less than 100000 bytes/s"):
                await install(one, f"http://127.0.0.1:{proxy.port}", "1", web)
    assert 9 <= len(site.asked()) < 100  # one may be written to the manifest's connection, which just closes


@pytest.mark.parametrize(
    "answer",
    [
        response(404),
        response(503, retry_after="0"),
        response(200, NEW + b"x"),
        response(200, NEW, content_encoding="gzip"),
        response(302, location="https://elsewhere.example/fw.bin"),
    ],
)
async def test_the_way_back_is_kept_until_the_server_answers_with_the_image(answer: bytes) -> None:
    site, one = Site(), Board(OLD)
    async with site.served() as url:
        await boot_check(one.device)
        site.publish(NEW)
        await install(one, url)
        await boot_check(one.boot())
        await commit(one.device)
        assert one.record.image(Slot.A)
        before = one.record
        site.publish(firmware("3", 900), version="3")
        site.quirk = lambda request, _: answer if request.path == IMAGE else None
        with pytest.raises(OtaError):
            await install(one, url, "2", BRIEF)
        assert one.record == before
        assert one.content(Slot.A) == OLD


async def test_while_a_server_is_busy_another_update_may_come() -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)
    await boot_check(one.device)
    asked = anyio.Event()

    def quirk(request: Request, _number: int) -> bytes | None:
        if request.path == METADATA:
            return None
        asked.set()
        return response(503, retry_after="300")

    site.quirk = quirk
    async with site.served() as url, anyio.create_task_group() as tasks:
        tasks.start_soon(install, one, url)
        await asked.wait()
        async with OtaSession(one.device, size=10):
            pass
        tasks.cancel_scope.cancel()


async def test_a_server_that_is_busy_in_the_middle_does_not_hold_the_device_for_as_long_as_it_likes() -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)
    answers = [response(200, NEW, etag='"v1"')[:-500], response(503, retry_after="300")]
    site.quirk = lambda request, number: answers[number] if request.path == IMAGE and number < 2 else None
    site.keep_alive = False
    async with site.served() as url:
        with anyio.fail_after(20):
            await install(one, url, "1", Web(patience=QUICK, allow_http=True))
    assert [request.range is not None for request in site.asked()] == [False, True, True]
    assert one.content(Slot.B) == NEW


async def test_what_cannot_be_stored_is_not_asked_for() -> None:
    site, one = Site(), Board(OLD)
    site.publish(bytes(await one.flash.capacity() + 1))
    async with site.served() as url:
        with pytest.raises(TooLargeError):
            await install(one, url)
    assert not site.asked()
