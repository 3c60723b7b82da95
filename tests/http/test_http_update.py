"""What the OTA routes do: updates, commits, rollbacks, status."""

import asyncio
import contextlib
import json
import logging
import time

import anyio
import pytest
from fake_device import FakeDevice, digest
from raw_client import Client, ask, request

from mgota import OtaError, VerifiedImage
from mgota.core.geometry import Slot
from mgota.core.record import Outcome, State
from mgota.errors import SelectError, StateError, TruncatedError
from mgota.transports.http import Limits, Response, serve

pytestmark = pytest.mark.asyncio

UPDATE = "/api/ota/update"
IMAGE = bytes(range(256)) * 40


async def status(port: int) -> dict[str, object]:
    reply = await ask(port, request("GET", "/api/ota/status"))
    assert (reply.status, reply.get("content-type")) == (200, "application/json")
    told = json.loads(reply.body)
    assert isinstance(told, dict)
    return told


@pytest.mark.parametrize("target", [UPDATE, "/api/ota", UPDATE + "?name=fw", "http://localhost" + UPDATE])
async def test_an_update_is_stored_recorded_answered_selected_and_then_the_device_resets(target: str) -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(request("POST", target, IMAGE, host="localhost"))
        reply = await client.reply()
        assert (reply.status, reply.body, reply.get("connection")) == (200, b"ok\n", "close")
        assert reply.get("content-type") == "text/plain; charset=utf-8"
        assert fake.state.record
        assert (fake.state.record.state, fake.state.record.trial) == (State.TESTING, Slot.B)
        assert await client.closed()
        assert not fake.reset.count  # we have not closed yet
        await client.close()
        await fake.reset.happened.wait()
    assert fake.staged == IMAGE
    assert fake.flash.selected is Slot.B


async def test_a_client_that_does_not_close_is_waited_for_only_a_while() -> None:
    fake = FakeDevice()
    async with serve(fake.device, limits=Limits(acknowledge=0.2)) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, IMAGE))
        assert (await client.reply()).status == 200
        await fake.reset.happened.wait()
    assert fake.flash.selected is Slot.B


async def test_a_client_that_is_gone_does_not_stop_the_update() -> None:
    fake = FakeDevice()
    gate = anyio.Event()
    fake.flash.on_write = gate.wait
    async with serve(fake.device) as server:
        client = await Client.open(server.port)
        await client.send(request("POST", UPDATE, IMAGE))
        while not fake.device.live.held:
            await anyio.sleep(0.001)
        client.abort()
        await anyio.sleep(0.05)
        gate.set()
        await fake.reset.happened.wait()
    assert fake.flash.selected is Slot.B


async def test_a_server_that_ends_finishes_what_it_has_promised() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        reply = await ask(server.port, request("POST", UPDATE, IMAGE))
        assert reply.status == 200
    assert fake.reset.count == 1


async def test_a_server_that_ends_aborts_an_update_under_way_at_once() -> None:
    fake = FakeDevice()
    begun = time.monotonic()
    async with serve(fake.device, limits=Limits(closing=50)) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, None, "Content-Length: 100") + b"x")
        while not fake.flash.opened:
            await anyio.sleep(0.001)
    assert time.monotonic() - begun < 25
    assert fake.flash.aborted == 1
    assert not fake.device.live.held
    assert fake.untouched()


async def test_a_reset_that_never_returns_does_not_hold_the_server() -> None:
    fake = FakeDevice()
    fake.reset.reset = anyio.sleep_forever  # type: ignore[method-assign]
    begun = time.monotonic()
    async with serve(fake.device, limits=Limits(closing=50)) as server:
        assert (await ask(server.port, request("POST", UPDATE, IMAGE))).status == 200
        while not fake.device.live.resetting:
            await anyio.sleep(0.001)
    assert time.monotonic() - begun < 25


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_cancelled_server_lets_go_of_everything(blocking: bool) -> None:
    fake = FakeDevice(room=1 << 40, blocking=blocking)
    fake.flash.keep = False
    with anyio.CancelScope() as scope:
        async with serve(fake.device) as server, await Client.open(server.port) as client:

            async def flood() -> None:
                while True:
                    await client.send(bytes(1 << 16))

            await client.send(request("POST", UPDATE, None, f"Content-Length: {1 << 40}"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(flood)
                while len(fake.flash.chunks) < 3:
                    await anyio.sleep(0.001)
                scope.cancel()
    assert fake.flash.aborted == 1
    assert not fake.device.live.held


async def test_an_error_inside_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serve(FakeDevice().device):
            raise KeyError("mine")


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("piece", [1, 7, 100, 5000])
async def test_any_chunking_stores_the_same_bytes(piece: int, blocking: bool) -> None:
    fake = FakeDevice(blocking=blocking)
    image = IMAGE[:1000]
    async with serve(fake.device, limits=Limits(buffer=64)) as server, await Client.open(server.port) as client:
        whole = request("POST", UPDATE, image)
        for start in range(0, len(whole), piece):
            await client.send(whole[start : start + piece])
            await anyio.sleep(0)
        assert (await client.reply()).status == 200
    assert fake.staged == image
    assert max(fake.flash.chunks) <= 64


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_truncated_image_is_400_for_a_client_that_only_closed_one_half(blocking: bool) -> None:
    fake = FakeDevice(blocking=blocking)
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, None, "Content-Length: 100") + b"x" * 99)
        client.writer.write_eof()
        reply = await client.reply()
        assert (reply.status, reply.body) == (400, b"only 99 of 100 bytes came\n")
        assert (await status(server.port))["outcome"] == "interrupted"


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_trickle_is_stored_before_the_buffer_is_full(blocking: bool) -> None:
    fake = FakeDevice(blocking=blocking)
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, None, "Content-Length: 5000") + b"x" * 10)
        while not fake.flash.chunks:
            await client.send(b"x")
            await anyio.sleep(0.05)
        update = (await status(server.port))["update"]
        assert isinstance(update, dict)
        assert 10 < update["received"] < 5000
    assert fake.flash.selected is not Slot.B


async def test_what_flash_did_not_keep_is_500() -> None:
    fake = FakeDevice()
    fake.flash.keep = False
    async with serve(fake.device) as server:
        assert (await ask(server.port, request("POST", UPDATE, IMAGE))).status == 500
    assert fake.untouched()
    assert not fake.reset.count


async def test_flash_that_cannot_be_written_is_500_before_100_continue() -> None:
    fake = FakeDevice()
    fake.flash.broken = True
    async with serve(fake.device) as server:
        reply = await ask(server.port, request("POST", UPDATE, IMAGE, "Expect: 100-continue"))
    assert (reply.status, reply.before, reply.body) == (500, [], b"sector 3 does not erase\n")


async def test_a_record_that_cannot_be_stored_is_an_error_and_no_promise() -> None:
    fake = FakeDevice()
    fake.prove()
    store = fake.state.store

    async def fails_at_last(record: object) -> None:
        if getattr(record, "state", None) is State.TESTING:
            raise StateError("the medium is full")
        await store(record)  # type: ignore[arg-type]

    fake.state.store = fails_at_last  # type: ignore[method-assign]
    async with serve(fake.device) as server:
        reply = await ask(server.port, request("POST", UPDATE, IMAGE))
    assert (reply.status, reply.body) == (500, b"the medium is full\n")
    assert fake.untouched()


async def test_an_error_after_the_promise_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeDevice()

    async def stuck(slot: Slot) -> None:
        if slot is Slot.B:
            raise SelectError("the option bytes are locked")

    fake.flash.select = stuck  # type: ignore[method-assign]
    async with serve(fake.device) as server:
        assert (await ask(server.port, request("POST", UPDATE, IMAGE))).status == 200
        while "option bytes are locked" not in caplog.text:
            await anyio.sleep(0.001)
        assert (await status(server.port))["state"] == "TESTING"


async def test_on_finished_replaces_the_reply() -> None:
    fake = FakeDevice()
    told: list[object] = []

    async def finished(result: VerifiedImage | OtaError) -> Response | None:
        told.append(result)
        return Response.json({"sha256": getattr(result, "sha256", None)}, status=202 if len(told) == 1 else 418)

    async with serve(fake.device, on_finished=finished) as server:
        reply = await ask(server.port, request("POST", UPDATE, IMAGE))
        assert (reply.status, json.loads(reply.body)) == (202, {"sha256": digest(IMAGE)})
        await fake.reset.happened.wait()
        assert (await ask(server.port, request("POST", UPDATE, IMAGE))).status == 418
        fake.boot()
        async with await Client.open(server.port) as client:
            await client.send(request("POST", UPDATE, None, "Content-Length: 100"))
            client.writer.write_eof()
            assert (await client.reply()).status == 418
    assert [type(result).__name__ for result in told] == ["VerifiedImage", "TrialRunningError", "TruncatedError"]
    assert isinstance(told[2], TruncatedError)


@pytest.mark.parametrize("how", ["none", "raises", "hangs"])
async def test_on_finished_cannot_stop_an_update(how: str) -> None:
    fake = FakeDevice()

    async def finished(_: VerifiedImage | OtaError) -> Response | None:
        if how == "raises":
            raise ValueError("a bug")
        if how == "hangs":
            await anyio.sleep_forever()
        return None

    async with serve(fake.device, on_finished=finished, limits=Limits(idle=0.2)) as server:
        reply = await ask(server.port, request("POST", UPDATE, IMAGE))
        assert (reply.status, reply.body) == (200, b"ok\n")
        await fake.reset.happened.wait()
    assert fake.flash.selected is Slot.B


async def test_an_image_may_be_staged_only() -> None:
    fake = FakeDevice()
    async with serve(fake.device, activate=False) as server:
        assert (await ask(server.port, request("POST", UPDATE, IMAGE))).status == 200
        told = await status(server.port)
        assert told["state"] == "CONFIRMED"
        assert told["staged"] == {"size": len(IMAGE), "sha256": digest(IMAGE), "version": None}
    assert not fake.reset.count
    assert fake.untouched()


async def test_commit_replies_first_and_acts_when_the_connection_has_closed() -> None:
    fake = FakeDevice()
    fake.on_trial()
    async with serve(fake.device, limits=Limits(acknowledge=30)) as server, await Client.open(server.port) as client:
        await client.send(request("POST", "/api/ota/commit", b""))
        reply = await client.reply()
        assert (reply.status, reply.body, reply.get("connection")) == (200, b"ok\n", "close")
        assert await client.closed()
        await anyio.sleep(0.05)
        before = fake.state.record
        assert before
        assert before.state is State.FAILED
        await client.close()
        while (after := fake.state.record) is before:
            await anyio.sleep(0.001)
        assert after
        assert (after.state, after.outcome) == (State.CONFIRMED, Outcome.COMMITTED)


async def test_commit_with_nothing_on_trial_answers_200_and_changes_nothing() -> None:
    fake = FakeDevice()
    fake.prove()
    before = fake.state.record
    async with serve(fake.device) as server:
        for body in (b"", b"{}", None):
            assert (await ask(server.port, request("POST", "/api/ota/commit", body))).status == 200
    assert fake.state.record is before


async def test_rollback_replies_first_and_then_selects_and_resets() -> None:
    fake = FakeDevice()
    fake.prove(b"the one before")
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(request("POST", "/api/ota/rollback", b"", f"X-MGOTA-Image: {digest(fake.old)}"))
        assert (await client.reply()).status == 200
        assert await client.closed()
        assert fake.untouched()
        await client.close()
        await fake.reset.happened.wait()
    assert fake.flash.selected is Slot.B


async def test_a_refused_rollback_is_409_and_leaves_everything_as_it_was() -> None:
    fake = FakeDevice()
    fake.prove()
    before = fake.state.record
    async with serve(fake.device) as server:
        reply = await ask(server.port, request("POST", "/api/ota/rollback", b""))
        assert (reply.status, reply.body) == (409, b"there is no whole and proven image to go back to\n")
    assert fake.state.record is before
    assert fake.untouched()
    assert not fake.reset.count


async def test_legacy_get() -> None:
    fake = FakeDevice()
    fake.on_trial()
    async with serve(fake.device, legacy_get=True) as server:
        assert (await ask(server.port, request("GET", "/api/ota/commit"))).status == 200
    assert fake.state.record
    assert fake.state.record.state is State.CONFIRMED


async def test_status_of_an_unreadable_record() -> None:
    fake = FakeDevice()
    fake.state.broken = True
    async with serve(fake.device) as server:
        assert (await status(server.port))["state"] == "UNKNOWN"
        assert (await ask(server.port, request("POST", UPDATE, IMAGE))).status == 409
        bound = request("POST", "/api/ota/commit", b"", "X-MGOTA-Image: " + "0" * 64)
        assert (await ask(server.port, bound)).status == 412


async def test_status_is_answered_during_an_upload() -> None:
    fake = FakeDevice(room=1 << 26)
    body = b"x" * (16 << 20)

    async def as_flash_does() -> None:
        await anyio.to_thread.run_sync(time.sleep, 0.02)

    fake.flash.on_write = as_flash_does
    waits: list[float] = []
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        sending = asyncio.ensure_future(client.send(request("POST", UPDATE, body)))
        while not fake.flash.chunks:
            await anyio.sleep(0.001)
        while fake.device.live.update and len(waits) < 5:
            begun = time.monotonic()
            told = await status(server.port)
            waits.append(time.monotonic() - begun)
            assert told["update"] is None or told["update"]["size"] == len(body)  # type: ignore[index]
        await sending
        assert (await client.reply()).status == 200
    assert sorted(waits)[len(waits) // 2] < 0.1


async def test_keep_alive_for_polling_and_pipelining() -> None:
    fake = FakeDevice()
    get = request("GET", "/api/ota/status")
    async with serve(fake.device, limits=Limits(keep_alive=0.3)) as server, await Client.open(server.port) as client:
        for _ in range(3):
            await client.send(get)
            reply = await client.reply()
            assert (reply.status, reply.get("connection")) == (200, None)
        await client.send(request("HEAD", "/api/ota/status") + get + get)
        head = await client.reply(head_only=True)
        assert int(head.get("content-length") or 0) > 50
        assert (await client.reply()).body == (await client.reply()).body
        assert await client.closed()  # after a while of silence


@pytest.mark.parametrize("line", ["Connection: close", "Upgrade: h2c"])
async def test_keep_alive_ends_where_the_client_says_so(line: str) -> None:
    async with serve(FakeDevice().device) as server, await Client.open(server.port) as client:
        await client.send(request("GET", "/api/ota/status", None, line))
        assert (await client.reply()).get("connection") == "close"
        assert await client.closed()


async def test_http_1_0() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(b"GET /api/ota/status HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert (await client.reply()).status == 200
        assert await client.closed()


async def test_a_body_that_nobody_reads_ends_the_connection() -> None:
    async with serve(FakeDevice().device) as server, await Client.open(server.port) as client:
        await client.send(request("GET", "/api/ota/status", b"x" * 10) + request("GET", "/api/ota/status"))
        assert (await client.reply()).get("connection") == "close"
        assert await client.closed()


async def test_a_client_that_takes_no_response_is_let_go() -> None:
    big = Response(body=b"x" * (64 << 20))

    async def app(_: object) -> Response:
        return big

    limits = Limits(idle=0.2)
    async with serve(FakeDevice().device, app=app, limits=limits) as server, await Client.open(server.port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request("GET", "/"))
        while not server._clients:
            await anyio.sleep(0.01)
        while server._clients:
            await anyio.sleep(0.01)
        client.abort()


async def test_logging_is_one_line_an_event(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mgota")
    async with serve(FakeDevice().device) as server:
        await ask(server.port, request("GET", "/api/ota/status?token=s3cret"))
    lines = [record.getMessage() for record in caplog.records if record.name == "mgota.http"]
    assert "GET /api/ota/status from 127.0.0.1: 200" in lines
    assert not any("s3cret" in line or "\n" in line for line in lines)


async def test_garbage_never_hurts_the_server() -> None:
    pieces = [
        b"\0" * 100,
        b"GET",
        b"\r\n" * 50,
        b"\xff" * 20000,
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    async with serve(FakeDevice().device, limits=Limits(head=0.3, linger=0.3)) as server:
        for piece in pieces:
            async with await Client.open(server.port) as client:
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await client.send(piece)
                    client.writer.write_eof()
                    assert (await client.reply()).status >= 400
        assert (await status(server.port))["state"] == "CONFIRMED"
