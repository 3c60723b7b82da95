"""Uploads in pieces by Mongoose's older routes."""

import json

import anyio
import pytest
from fake_device import FakeDevice
from raw_client import Client, Reply, ask, request

from mgota.core.geometry import Slot
from mgota.core.receive import Patience
from mgota.errors import OtaError
from mgota.receiver import Receiver
from mgota.session import OtaSession
from mgota.transports.http import Credentials, OtaHttp, Response, serve
from mgota.verified import VerifiedImage

pytestmark = pytest.mark.asyncio

IMAGE = bytes(range(256)) * 40


def piece(offset: int, data: bytes, *, total: int = len(IMAGE)) -> bytes:
    return request("POST", f"/api/firmware/upload?offset={offset}&total={total}&name=fw.bin", data)


async def send(port: int, offset: int, data: bytes, **options: int) -> Reply:
    return await ask(port, piece(offset, data, **options))


async def reset(fake: FakeDevice) -> None:
    with anyio.fail_after(10):
        await fake.reset.happened.wait()


async def test_pieces_on_one_connection_and_an_empty_body_that_ends() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        for offset in range(0, len(IMAGE), 4096):
            await client.send(piece(offset, IMAGE[offset : offset + 4096]))
            reply = await client.reply()
            assert (reply.status, reply.body) == (200, b"true\n")
        assert fake.reset.count == 0
        await client.send(piece(len(IMAGE), b""))
        reply = await client.reply()
        assert (reply.status, reply.body) == (200, b"true\n")
        assert await client.closed()
        await client.close()
        await reset(fake)
    assert fake.staged == IMAGE
    assert fake.flash.selected is Slot.B


async def test_an_empty_last_post_that_comes_again_after_the_reset() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        await send(server.port, 0, IMAGE)
        assert (await send(server.port, len(IMAGE), b"")).body == b"true\n"
        await reset(fake)
    fake.flash.running, fake.device.live.resetting = fake.flash.selected, False
    async with serve(fake.device) as server:
        for offset in (len(IMAGE) - 7, len(IMAGE)):
            assert (await send(server.port, offset, IMAGE[offset:])).body == b"true\n"
        assert (await send(server.port, 0, b"", total=7)).status == 500
    assert fake.reset.count == 1


async def test_on_finished_is_told_of_these_too_and_replaces_the_reply() -> None:
    fake = FakeDevice()
    told: list[str] = []

    async def finished(result: VerifiedImage | OtaError) -> Response | None:
        told.append(type(result).__name__)
        return Response.line(told[-1], 201 if len(told) == 1 else 418)

    async with serve(fake.device, on_finished=finished) as server:
        await send(server.port, 0, IMAGE[:9])
        reply = await send(server.port, 9, b"")
        assert (reply.status, reply.body) == (201, b"TruncatedError\n")
        assert (await send(server.port, 0, IMAGE)).body == b"true\n"
        reply = await send(server.port, len(IMAGE), b"")
        assert (reply.status, reply.body) == (418, b"VerifiedImage\n")
        await reset(fake)
    assert told == ["TruncatedError", "VerifiedImage"]


async def test_a_connection_for_each_piece_and_disconnects_do_no_harm() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        for offset in range(0, len(IMAGE), 4096):
            async with await Client.open(server.port) as client:  # in the middle of its body it goes away
                await client.send(piece(offset, IMAGE[offset : offset + 4096])[:-100])
                client.abort()
            assert (await send(server.port, offset, IMAGE[offset : offset + 4096])).status == 200
            assert (await send(server.port, offset, IMAGE[offset : offset + 4096])).status == 200  # once more
        gap = await send(server.port, 4096, b"x" * 5)
        assert (gap.status, gap.body) == (
            500,
            b"what came for offset 4096 differs from what came before: begin again\n",
        )
        assert (await send(server.port, len(IMAGE), b"")).status == 500
        for offset in range(0, len(IMAGE), 5000):
            assert (await send(server.port, offset, IMAGE[offset : offset + 5000])).status == 200
        assert (await send(server.port, len(IMAGE), b"")).body == b"true\n"
        await reset(fake)
    assert fake.staged == IMAGE


async def test_what_is_wrong_is_500_and_one_line() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        for reply in (
            await send(server.port, 4096, b"abc"),
            await send(server.port, 0, b"abc", total=2),
            await send(server.port, 0, b"abc", total=1 << 30),
            await send(server.port, 3, b""),
            await ask(server.port, request("POST", "/api/firmware/upload", b"abc")),
        ):
            assert (reply.status, reply.body.count(b"\n")) == (500, 1)
        async with OtaSession(fake.device, size=4):
            assert b"under way" in (await send(server.port, 0, b"abc")).body
    assert fake.untouched()


async def test_nothing_is_held_when_silence_has_lasted() -> None:
    fake = FakeDevice()
    receiver = Receiver(fake.device, patience=Patience(idle=0.05, silence=None))
    endpoint = OtaHttp(fake.device, pieces=receiver)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.run)
        tasks.start_soon(listener.serve, endpoint.handle)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        assert (await send(port, 0, IMAGE)).status == 200  # complete, and nobody ends it
        with anyio.fail_after(10):
            while fake.device.live.held:
                await anyio.sleep(0.01)
        assert fake.reset.count == 0
        tasks.cancel_scope.cancel()
    assert fake.untouched()


async def test_the_rules_of_the_edge_hold() -> None:
    fake = FakeDevice()
    async with serve(fake.device, auth=Credentials(tokens=["secret"])) as server:
        for target in ("status", "upload?offset=0&total=5", "commit", "rollback"):
            for method in ("GET", "POST"):
                assert (await ask(server.port, request(method, f"/api/firmware/{target}", b"abcde"))).status == 401
        wrong_host = request("GET", "/api/firmware/status", host="evil.example")
        assert (await ask(server.port, wrong_host)).status == 421
        foreign = request("POST", "/api/firmware/upload?offset=0&total=5", b"abcde", "Origin: http://evil.example")
        assert (await ask(server.port, foreign)).status == 403
    assert fake.flash.opened == 0
    async with serve(fake.device, older=None) as server:
        assert (await ask(server.port, request("GET", "/api/firmware/status"))).status == 404


async def test_status_commit_and_rollback() -> None:
    fake = FakeDevice()
    fake.on_trial()
    async with serve(fake.device) as server:
        reply = await ask(server.port, request("GET", "/api/firmware/status"))
        current, previous = json.loads(reply.body)
        assert (current["status"], current["size"], previous["status"]) == (2, len(fake.old), 3)
        assert (await ask(server.port, request("GET", "/api/firmware/commit"))).status == 405
    async with serve(fake.device, legacy_get=True) as server:
        assert (await ask(server.port, request("GET", "/api/firmware/commit"))).body == b"true\n"
        with anyio.fail_after(10):
            while json.loads((await ask(server.port, request("GET", "/api/firmware/status"))).body)[0]["status"] != 3:
                await anyio.sleep(0.01)
        assert (await ask(server.port, request("GET", "/api/firmware/rollback"))).body == b"true\n"
        await reset(fake)
    assert fake.flash.selected is Slot.B


async def test_staged_and_not_activated() -> None:
    fake = FakeDevice()
    async with serve(fake.device, activate=False) as server:
        assert (await send(server.port, 0, IMAGE)).status == 200
        assert (await send(server.port, len(IMAGE), b"")).body == b"true\n"
        staged = await fake.device.staged()
        assert staged
        assert staged.size == len(IMAGE)
    assert fake.reset.count == 0
