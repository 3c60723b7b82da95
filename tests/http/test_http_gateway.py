"""Several devices behind one HTTP server."""

import json
from typing import Any

import anyio
import pytest
from fake_device import FakeDevice
from raw_client import Client, ask, request

from mgota import OtaError, VerifiedImage
from mgota.core.geometry import Slot
from mgota.core.record import State
from mgota.errors import ConfigError
from mgota.gateway import Gateway
from mgota.transports.http import Credentials, OtaHttp, Response, serve
from mgota.transports.http.push import Remote

pytestmark = pytest.mark.asyncio

IMAGE = bytes(range(256)) * 40


async def told(port: int, path: str) -> dict[str, Any]:
    reply = await ask(port, request("GET", path))
    assert (reply.status, reply.get("content-type")) == (200, "application/json")
    found: dict[str, Any] = json.loads(reply.body)
    return found


async def test_each_is_updated_by_its_name_and_no_other_is_touched() -> None:
    main, mcu = FakeDevice(), FakeDevice()
    async with serve(Gateway({"main": main.device, "mcu": mcu.device})) as server:
        assert (await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))).body == b"ok\n"
        await mcu.reset.happened.wait()
        assert mcu.state.record
        assert (mcu.staged, mcu.flash.selected, mcu.state.record.state) == (IMAGE, Slot.B, State.TESTING)
        assert main.untouched()
        assert main.state.record is None
        assert (await ask(server.port, request("POST", "/api/ota/main", IMAGE[:99]))).status == 200
        await main.reset.happened.wait()
    assert main.staged == IMAGE[:99]
    assert (main.reset.count, mcu.reset.count) == (1, 1)


async def test_two_are_updated_at_once_and_one_twice_is_busy() -> None:
    main, mcu = FakeDevice(), FakeDevice()
    gate = anyio.Event()
    main.flash.on_write = gate.wait
    async with (
        serve(Gateway({"main": main.device, "mcu": mcu.device})) as server,
        await Client.open(server.port) as slow,
    ):
        await slow.send(request("POST", "/api/ota/main/update", IMAGE))
        while not main.device.live.held:
            await anyio.sleep(0.001)
        assert (await ask(server.port, request("POST", "/api/ota/main/update", IMAGE))).status == 409
        assert (await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))).status == 200
        gate.set()
        assert (await slow.reply()).status == 200
        await slow.close()
        await main.reset.happened.wait()
    assert main.staged == mcu.staged == IMAGE


async def test_the_size_that_counts_is_that_of_the_device_named() -> None:
    async with serve(Gateway({"big": FakeDevice().device, "small": FakeDevice(room=100).device})) as server:
        reply = await ask(server.port, request("POST", "/api/ota/small/update", IMAGE))
        assert (reply.status, b"10240" in reply.body) == (413, True)
        assert (await ask(server.port, request("POST", "/api/ota/big/update", IMAGE))).status == 200


async def test_commit_and_rollback_are_of_the_device_named() -> None:
    main, mcu = FakeDevice(), FakeDevice()
    for fake in (main, mcu):
        fake.on_trial()
    async with serve(Gateway({"main": main.device, "mcu": mcu.device})) as server:
        assert (await ask(server.port, request("POST", "/api/ota/main/commit"))).status == 200
        with anyio.fail_after(10):
            while (await told(server.port, "/api/ota/main/status"))["state"] != "CONFIRMED":
                await anyio.sleep(0.002)
        assert (await told(server.port, "/api/ota/mcu/status"))["state"] == "FAILED"
        assert (await ask(server.port, request("POST", "/api/ota/mcu/rollback"))).status == 200
        await mcu.reset.happened.wait()
    assert main.flash.selected is Slot.A
    assert mcu.flash.selected is Slot.B


async def test_the_prefix_lists_all_devices() -> None:
    main = FakeDevice()
    gateway = Gateway({"main": main.device, "mcu": None})
    async with serve(gateway) as server:
        listed = (await told(server.port, "/api/ota"))["devices"]
        assert list(listed) == ["main", "mcu"]
        assert listed["main"]["active_slot"] == "a"
        assert listed["mcu"] == {"error": "the device mcu is not up: try again later"}
        own = await told(server.port, "/api/ota/main/status")
        assert {key: value for key, value in own.items() if key != "packings"} == listed["main"]


@pytest.mark.parametrize(
    "path", ["/api/ota/update", "/api/ota/status", "/api/ota/nobody/update", "/api/firmware/status"]
)
async def test_routes_without_the_name_of_a_device_are_not_there(path: str) -> None:
    fake = FakeDevice()
    async with serve(Gateway({"main": fake.device})) as server:
        assert (await ask(server.port, request("POST", path, IMAGE))).status == 404
        assert (await ask(server.port, request("GET", path))).status == 404
    assert fake.untouched()
    assert not fake.flash.opened


async def test_a_device_that_is_away_is_busy_until_it_is_there() -> None:
    gateway = Gateway({"main": FakeDevice().device, "mcu": None})
    async with serve(gateway) as server:
        for method, verb in (("POST", "update"), ("POST", "commit"), ("POST", "rollback"), ("GET", "status")):
            body = IMAGE if verb == "update" else b""
            reply = await ask(server.port, request(method, f"/api/ota/mcu/{verb}", body))
            assert (reply.status, b"mcu is not up" in reply.body) == (409, True), verb
        mcu = FakeDevice()
        gateway.put("mcu", mcu.device)
        assert (await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))).status == 200
        await mcu.reset.happened.wait()


async def test_credentials_come_before_any_name_and_are_counted_once_for_all() -> None:
    gateway = Gateway({"main": FakeDevice().device, "mcu": FakeDevice().device})
    async with serve(gateway, auth=Credentials(tokens="secret")) as server:
        for path in ("/api/ota", "/api/ota/main/status", "/api/ota/nobody/status"):
            assert (await ask(server.port, request("GET", path))).status == 401
        statuses = [
            (await ask(server.port, request("GET", f"/api/ota/{name}/status", None, "Authorization: Bearer x"))).status
            for name in ("main", "mcu") * 8
        ]
        assert 429 in statuses
    async with serve(gateway, auth=Credentials(tokens="secret")) as server:
        assert (await ask(server.port, request("GET", "/api/ota", None, "Authorization: Bearer secret"))).status == 200


async def test_the_application_is_told_which_device_was_updated() -> None:
    ended: list[tuple[str, object]] = []

    async def on_finished(name: str, result: VerifiedImage | OtaError) -> Response:
        ended.append((name, result))
        return Response.line(f"{name} has it")

    gateway = Gateway({"main": FakeDevice().device, "mcu": FakeDevice(room=10240).device}, on_finished=on_finished)
    async with serve(gateway) as server:
        reply = await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))
        assert reply.body == b"mcu has it\n"
    ((name, result),) = ended
    assert name == "mcu"
    assert isinstance(result, VerifiedImage)


async def test_staged_only_where_that_was_asked_for() -> None:
    mcu = FakeDevice()
    async with serve(Gateway({"mcu": mcu.device}), activate=False) as server:
        assert (await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))).status == 200
    assert mcu.state.record
    assert mcu.state.record.staged is Slot.B
    assert mcu.reset.count == 0


async def test_what_is_for_one_device_is_refused_for_several() -> None:
    async def on_finished(_: object) -> None:
        pass

    with pytest.raises(ConfigError, match="told of its updates itself"):
        OtaHttp(Gateway({"main": None}), on_finished=on_finished)
    with pytest.raises(ConfigError, match="for one device"):
        OtaHttp(Gateway({"main": None}), page="/")


async def test_our_sender_reaches_one_by_the_url_of_its_routes() -> None:
    main, mcu = FakeDevice(), FakeDevice()
    async with serve(Gateway({"main": main.device, "mcu": mcu.device})) as server:
        remote = Remote(f"{server.url}/api/ota/mcu")
        assert (await remote.status())["state"] == "CONFIRMED"
        async for _ in remote.push(IMAGE):
            pass
        await mcu.reset.happened.wait()
    assert mcu.staged == IMAGE
    assert main.untouched()


async def test_a_reset_that_does_not_return_ends_with_its_device_and_not_with_the_gateway() -> None:
    """As a chip that is wired to it: its runner sees the reset, and boots the next `Device`."""
    mcu, after = FakeDevice(), FakeDevice()
    reset = anyio.Event()

    async def never_returns() -> None:
        reset.set()
        await anyio.sleep_forever()

    mcu.reset.reset = never_returns  # type: ignore[method-assign]
    gateway = Gateway({"mcu": mcu.device})
    async with serve(gateway) as server:
        assert (await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))).status == 200
        await reset.wait()
        assert mcu.device.live.held
        await gateway.away("mcu")
        assert not mcu.device.live.held
        gateway.put("mcu", after.device)
        assert (await ask(server.port, request("POST", "/api/ota/mcu/update", IMAGE))).status == 200
        await after.reset.happened.wait()
    assert mcu.flash.selected is Slot.B


async def test_an_update_under_way_is_told_that_its_device_restarts() -> None:
    mcu = FakeDevice()
    gateway = Gateway({"mcu": mcu.device})
    async with serve(gateway) as server, await Client.open(server.port) as client:
        await client.send(request("POST", "/api/ota/mcu/update", None, "Content-Length: 100") + b"x")
        while not mcu.flash.opened:
            await anyio.sleep(0.001)
        await gateway.away("mcu")
        reply = await client.reply()
        assert (reply.status, b"mcu restarts" in reply.body) == (409, True)
    assert (mcu.flash.aborted, mcu.device.live.held) == (1, False)
    assert mcu.untouched()
