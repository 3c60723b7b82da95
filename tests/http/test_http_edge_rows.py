"""Every row of "HTTP edge" in security.md, and those on passwords, endless data and pages on the LAN, over a socket."""

import asyncio
import logging
import time
from base64 import b64encode

import anyio
import pytest
from fake_device import FakeDevice
from raw_client import Client, Reply, ask, request

from mgota import boot_check
from mgota.core.geometry import Slot
from mgota.errors import ConfigError
from mgota.transports.http import Credentials, Limits, Request, Response, serve

pytestmark = pytest.mark.asyncio

UPDATE = "/api/ota/update"
TOKEN = "Authorization: Bearer T0ken"
QUICK = Limits(head=0.4, keep_alive=0.3, idle=0.4, minimum_rate=0, linger=1, acknowledge=0.5)
AUTH = Credentials(tokens="T0ken", users={"ann": "pass:word"})


def update(*lines: str, body: bytes = b"image") -> bytes:
    return request("POST", UPDATE, body, *lines)


async def accept_all(_: Request) -> Response:
    return Response.line("app")


# "h11 accepts Content-Length together with Transfer-Encoding, and two equal Content-Lengths: refuse both ourselves."


@pytest.mark.parametrize("target", [UPDATE, "/api/ota/status", "/index.html"])
@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Content-Length: 5", "Content-Length: 5"],
        ["Content-Length: 5, 5"],
    ],
)
async def test_content_length_with_transfer_encoding_and_two_content_lengths_are_refused_on_every_route(
    target: str, lines: list[str]
) -> None:
    fake = FakeDevice()
    async with serve(fake.device, app=accept_all) as server, await Client.open(server.port) as client:
        await client.send(request("POST", target, None, *lines) + b"0\r\n\r\n")
        assert (await client.reply()).status == 400
        assert await client.closed()
    assert not fake.flash.opened


async def test_no_length_is_411() -> None:
    async with serve(FakeDevice().device) as server:
        assert (await ask(server.port, request("POST", UPDATE))).status == 411


async def test_zero_length_is_400() -> None:
    async with serve(FakeDevice().device) as server:
        assert (await ask(server.port, update(body=b""))).status == 400


async def test_transfer_encoding_on_an_update_is_411() -> None:
    async with serve(FakeDevice().device) as server:
        chunked = request("POST", UPDATE, None, "Transfer-Encoding: chunked") + b"5\r\nimage\r\n0\r\n\r\n"
        assert (await ask(server.port, chunked)).status == 411


@pytest.mark.parametrize("size", ["101", "9" * 20])
async def test_larger_than_the_slot_is_413_before_a_byte_is_read(size: str) -> None:
    fake = FakeDevice(room=100)
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, None, f"Content-Length: {size}", "Expect: 100-continue"))
        reply = await client.reply()
        assert (reply.status, reply.before) == (413, [])
        assert reply.body == f"image of {size} bytes does not fit: there is room for 100\n".encode()
        assert await client.closed()
    assert not fake.flash.opened
    assert fake.state.record is None


async def test_a_second_update_is_409() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server, await Client.open(server.port) as first:
        await first.send(request("POST", UPDATE, None, "Content-Length: 100") + b"x" * 50)
        while not fake.flash.opened:
            await anyio.sleep(0.01)
        reply = await ask(server.port, update("Expect: 100-continue"))
        assert (reply.status, reply.before) == (409, [])
        await first.send(b"x" * 50)
        assert (await first.reply()).status == 200
    assert fake.staged == b"x" * 100


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),
        (b"\r\n\r\n", 400),
        (b"GET /api/ota/status HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET /api/ota/status HTTP/1.1\r\n\r\n", 400),
        (b"GET /api/ota/status HTTP/1.0\r\n\r\n", 400),
        (b"GET /api/ota/status HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"POST /api/ota/update HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (request("GET", "/nowhere"), 404),
        (request("GET", UPDATE), 405),
        (request("POST", "/api/ota/status", b"body"), 405),
        (update("Origin: null"), 403),
        (update(body=b""), 400),
    ],
)
async def test_close_after_every_error(data: bytes, status: int) -> None:
    async with serve(FakeDevice().device) as server, await Client.open(server.port) as client:
        await client.send(data)
        reply = await client.reply()
        assert reply.status == status
        assert reply.get("connection") == "close"
        assert reply.get("content-type") == "text/plain; charset=utf-8"
        assert reply.body.count(b"\n") == 1
        assert reply.body.endswith(b"\n")
        assert await client.closed()


# "Decide from the headers, then 100 Continue, then read. Order: host and origin, authentication, route, size, lock."


async def test_decide_from_the_headers_then_100_continue_then_read() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, None, "Content-Length: 5", "Expect: 100-continue"))
        assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
        assert fake.device.live.held
        await client.send(b"image")
        assert (await client.reply()).status == 200
    assert fake.staged == b"image"


async def test_order_host_and_origin_authentication_route_size_lock() -> None:
    fake = FakeDevice(room=10)
    large = "Content-Length: 11"
    async with serve(fake.device, auth=AUTH) as server, fake.device.exclusive():

        async def status(*lines: str, target: str = UPDATE, host: str = "localhost") -> int:
            return (await ask(server.port, request("POST", target, None, *lines, host=host))).status

        assert await status("Origin: null", target="/x", host="evil") == 421
        assert await status("Origin: null", target="/x") == 403
        assert await status("Sec-Fetch-Site: cross-site", target="/x") == 403
        assert await status("Origin: http://localhost", target="/x") == 401
        assert await status("Authorization: Bearer wrong", target="/x") == 401
        assert await status(TOKEN, target="/x") == 404
        assert await status(TOKEN, target="/api/ota/status") == 405
        assert await status(TOKEN, large) == 413
        assert await status(TOKEN, "Content-Length: 10") == 409


async def test_100_continue_is_not_for_http_1_0() -> None:
    fake = FakeDevice()
    data = update("Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    async with serve(fake.device) as server:
        reply = await ask(server.port, data)
    assert (reply.status, reply.before, fake.staged) == (200, [], b"image")


# Limits.


async def test_limits_16_kib_of_head() -> None:
    async with serve(FakeDevice().device) as server:
        fits = request("GET", "/api/ota/status", None, "X: " + "y" * 16_000)
        assert (await ask(server.port, fits)).status == 200
        assert (await ask(server.port, request("GET", "/api/ota/status", None, "X: " + "y" * 17_000))).status == 431
        assert (await ask(server.port, b"x" * 17_000)).status == 431


async def test_limits_100_header_fields() -> None:
    async with serve(FakeDevice().device) as server:
        assert (await ask(server.port, request("GET", "/api/ota/status", None, *["X: y"] * 99))).status == 200
        assert (await ask(server.port, request("GET", "/api/ota/status", None, *["X: y"] * 100))).status == 431


async def test_limits_header_deadline() -> None:
    async with serve(FakeDevice().device, limits=QUICK) as server:
        async with await Client.open(server.port) as client:
            begun = time.monotonic()
            with anyio.move_on_after(5):
                for byte in b"GET /api/ota/status HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100:
                    await client.send(bytes([byte]))
                    await anyio.sleep(0.05)
                    if time.monotonic() - begun > 0.6:
                        break
            assert (await client.reply()).status == 408
        async with await Client.open(server.port) as silent:
            assert await silent.closed()


@pytest.mark.parametrize("blocking", [False, True])
async def test_limits_idle_timeout(blocking: bool) -> None:
    fake = FakeDevice(blocking=blocking)
    async with serve(fake.device, limits=QUICK) as server:
        reply = await ask(server.port, request("POST", UPDATE, None, "Content-Length: 100") + b"x" * 50)
        assert reply.status == 408
        assert reply.body == b"nothing came for 0.4 s\n"
        assert not fake.device.live.held
        assert (await ask(server.port, update())).status == 200
    assert fake.staged == b"image"


@pytest.mark.parametrize("blocking", [False, True])
async def test_limits_minimum_rate_ends_one_byte_a_time(blocking: bool) -> None:
    fake = FakeDevice(blocking=blocking)
    limits = Limits(idle=5, minimum_rate=1000, grace=0.5, linger=1)
    async with serve(fake.device, limits=limits) as server, await Client.open(server.port) as client:
        await client.send(request("POST", UPDATE, None, "Content-Length: 1000"))
        reply_task = asyncio.ensure_future(client.reply())
        while not reply_task.done():
            await client.send(b"x")
            await anyio.sleep(0.05)
        reply = reply_task.result()
    assert reply.status == 408
    assert b"slower than 1000 bytes/s" in reply.body
    assert fake.flash.aborted == 1


async def test_limits_time_in_flash_does_not_count() -> None:
    fake = FakeDevice()

    async def slow() -> None:
        await anyio.sleep(0.3)

    fake.flash.on_write = slow
    limits = Limits(idle=0.25, total=0.25, minimum_rate=10_000, grace=0.25, buffer=100)
    async with serve(fake.device, limits=limits) as server:
        assert (await ask(server.port, update(body=b"x" * 500))).status == 200
    assert fake.staged == b"x" * 500
    assert fake.flash.chunks == [100] * 5


async def test_limits_connections_per_address_and_in_total() -> None:
    for limits in (Limits(per_address=2), Limits(connections=2)):
        async with serve(FakeDevice().device, limits=limits) as server:
            first, second = [await Client.open(server.port) for _ in range(2)]
            for client in (first, second):
                await client.send(request("GET", "/api/ota/status"))
                assert (await client.reply()).status == 200
            reply = await ask(server.port, request("GET", "/api/ota/status"))
            assert reply.status == 503
            await first.close()
            while (await ask(server.port, request("GET", "/api/ota/status"))).status == 503:
                await anyio.sleep(0.01)
            await second.close()


async def test_429_after_10_failures_per_address_refilling_one_a_second(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with serve(FakeDevice().device, auth=AUTH) as server:
        get = request("GET", "/api/ota/status")
        wrong = request("GET", "/api/ota/status", None, "Authorization: Bearer wr0ng")
        right = request("GET", "/api/ota/status", None, TOKEN)
        for _ in range(20):  # without credentials nothing counts
            assert (await ask(server.port, get)).status == 401
        statuses = [(await ask(server.port, wrong)).status for _ in range(12)]
        assert statuses[:10] == [401] * 10
        reply = await ask(server.port, right)
        if reply.status == 200:  # a slow machine took more than a second
            return
        assert statuses[-1] == 429
        assert reply.status == 429
        assert reply.get("retry-after") == "1"
        assert (await ask(server.port, get)).status == 401
        await anyio.sleep(1.1)
        assert (await ask(server.port, right)).status == 200
    audited = [record.getMessage() for record in caplog.records if record.name == "mgota.audit"]
    assert any("429 to 127.0.0.1" in line for line in audited)
    assert not any("wr0ng" in record.getMessage() or "T0ken" in record.getMessage() for record in caplog.records)


async def test_the_flash_write_is_awaited_before_the_next_read() -> None:
    fake = FakeDevice(room=1 << 24)
    gate = anyio.Semaphore(0)
    fake.flash.on_write = gate.acquire
    body = b"x" * (8 << 20)
    limits = Limits(buffer=1 << 16)
    async with serve(fake.device, limits=limits) as server, await Client.open(server.port) as client:
        sending = asyncio.ensure_future(client.send(update(body=body)))
        await anyio.sleep(0.3)
        assert not sending.done()  # TCP holds the client back: flash has taken nothing
        assert fake.device.live.update == (0, len(body))
        for _ in range(len(body) // limits.buffer):
            gate.release()
        await sending
        assert (await client.reply()).status == 200
    assert fake.staged == body


# "No authentication configured -> loopback only, or an explicit insecure=True."


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
async def test_no_authentication_configured_means_loopback_only(host: str) -> None:
    with pytest.raises(ConfigError, match="insecure=True"):
        async with serve(FakeDevice().device, host=host):
            pass


async def test_no_authentication_elsewhere_is_possible_when_said() -> None:
    for auth in (None, AUTH):
        async with serve(FakeDevice().device, host="0.0.0.0", auth=auth, insecure=auth is None) as server:
            assert (await ask(server.port, request("GET", "/api/ota/status", None, TOKEN))).status == 200


# Browsers.


async def test_host_must_be_in_the_allow_list_or_dns_rebinding(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FakeDevice().device, allow_hosts=["gw.example:1"]) as server:

        async def get(host: str) -> Reply:
            return await ask(server.port, request("GET", "/api/ota/status", host=host))

        reply = await get("evil.example:8080")
        assert reply.status == 421
        assert b"--allow-host evil.example" in reply.body
        for name in ("localhost", "127.0.0.1:1", "[::1]:5", "GW.Example.", "gw.example:99"):
            assert (await get(name)).status == 200
    assert "421 to 127.0.0.1" in caplog.text


async def test_hostname_and_hostname_local_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, known in (("gw7", ["gw7", "gw7.local"]), ("gw7.lan", ["gw7.lan", "gw7", "gw7.local"]), ("\u00e9", [])):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)
        async with serve(FakeDevice().device) as server:
            for host in known:
                assert (await ask(server.port, request("GET", "/api/ota/status", host=host))).status == 200


async def test_any_foreign_origin_and_a_cross_site_fetch_are_refused() -> None:
    async with serve(FakeDevice().device) as server:
        own = f"127.0.0.1:{server.port}"
        for line in ("Origin: null", "Origin: http://evil", "Origin: http://127.0.0.1:1", f"Origin: https://{own}"):
            assert (await ask(server.port, request("GET", "/api/ota/status", None, line, host=own))).status == 403
        for site in ("cross-site", "same-site"):
            line = f"Sec-Fetch-Site: {site}"
            assert (await ask(server.port, request("GET", "/api/ota/status", None, line, host=own))).status == 403
        for line in (f"Origin: http://{own}", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Site: none"):
            assert (await ask(server.port, request("GET", "/api/ota/status", None, line, host=own))).status == 200


async def test_a_cross_site_form_post_is_refused() -> None:
    fake = FakeDevice()
    fake.prove(b"other")
    form = ("Content-Type: application/x-www-form-urlencoded",)
    async with serve(fake.device) as server:
        for target in (UPDATE, "/api/ota", "/api/ota/commit", "/api/ota/rollback"):
            for line in (
                "Origin: http://evil.example",
                "Origin: null",
                "Referer: http://evil.example/",
                "Sec-Fetch-Mode: navigate",
            ):
                assert (await ask(server.port, request("POST", target, b"x=1", line, *form))).status == 403
    assert fake.untouched()
    assert not fake.reset.count


async def test_a_page_of_the_device_itself_proves_itself_with_a_header() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        own = f"127.0.0.1:{server.port}"
        lines = (f"Origin: http://{own}", "Sec-Fetch-Site: same-origin", f"Referer: http://{own}/")
        assert (await ask(server.port, request("POST", UPDATE, b"image", *lines, host=own))).status == 403
        assert (await ask(server.port, request("POST", UPDATE, b"image", *lines, "X-MGOTA: 1", host=own))).status == 200


async def test_a_preflight_gets_no_cors_headers() -> None:
    async with serve(FakeDevice().device) as server:
        lines = ("Origin: http://evil.example", "Access-Control-Request-Method: POST")
        reply = await ask(server.port, request("OPTIONS", UPDATE, None, *lines))
        assert reply.status == 403
        assert not [name for name, _ in reply.headers if name.startswith("access-control")]


async def test_no_cookies_nosniff_no_store_on_every_response() -> None:
    async with serve(FakeDevice().device, app=accept_all) as server:
        for data in (
            request("GET", "/api/ota/status"),
            request("GET", "/api/ota/x"),
            request("GET", "/"),
            b"?\r\n\r\n",
        ):
            reply = await ask(server.port, data)
            assert reply.get("x-content-type-options") == "nosniff"
            assert reply.get("cache-control") == "no-store"
            assert reply.get("set-cookie") is None


async def test_401_names_both_schemes_and_head_has_no_body() -> None:
    async with serve(FakeDevice().device, auth=AUTH) as server, await Client.open(server.port) as client:
        await client.send(request("HEAD", "/api/ota/status"))
        reply = await client.reply(head_only=True)
        assert reply.status == 401
        assert [value.split()[0] for value in reply.all("www-authenticate")] == ["Bearer", "Basic"]
        assert await client.closed()


async def test_a_wrong_method_is_405_with_allow() -> None:
    async with serve(FakeDevice().device) as server:
        reply = await ask(server.port, request("PUT", "/api/ota/commit", b""))
        assert (reply.status, reply.get("allow")) == (405, "POST")


# Password guessing, empty secret.


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["Authorization: Bearer "], id="empty"),
        pytest.param(["Authorization: Bearer T0k"], id="prefix"),
        pytest.param(["Authorization: Bearer 0ken"], id="suffix"),
        pytest.param(["Authorization: Bearer T0ken", "Authorization: Bearer T0ken"], id="two headers"),
        pytest.param(["Authorization: Bearer T0k\xe9n"], id="non-ASCII"),
        pytest.param(["Authorization: Basic " + b64encode(b"ann:pass:word\0").decode()], id="NUL"),
        pytest.param(["Authorization: Basic " + b64encode(b"ann:").decode()], id="empty password"),
        pytest.param(["Authorization: Basic " + b64encode(b"ann:pass").decode()], id="password prefix"),
        pytest.param(["Authorization: Basic " + b64encode(b":").decode()], id="nothing, encoded"),
    ],
)
async def test_password_guessing(lines: list[str]) -> None:
    fake = FakeDevice()
    async with serve(fake.device, auth=AUTH) as server:
        assert (await ask(server.port, update(*lines))).status == 401
    assert not fake.flash.opened


async def test_bearer_and_basic_open_the_door() -> None:
    for line in (TOKEN, "Authorization: Basic " + b64encode(b"ann:pass:word").decode()):
        fake = FakeDevice()
        async with serve(fake.device, auth=AUTH) as server:
            assert (await ask(server.port, update(line))).status == 200
        assert fake.staged == b"image"


async def test_a_callback_may_decide() -> None:
    asked: list[tuple[str, str | None]] = []

    async def decide(request: Request) -> bool:
        asked.append((request.path, request.header("X-Key")))
        with pytest.raises(RuntimeError):
            await request.read()
        if request.header("x-key") == "crash":
            raise ValueError("a bug")
        return request.header("x-key") == "k"

    async with serve(FakeDevice().device, auth=decide) as server:

        async def status(*lines: str) -> int:
            return (await ask(server.port, request("GET", "/api/ota/status", None, *lines))).status

        assert await status("X-Key: k") == 200
        assert await status() == 401
        assert await status("X-Key: crash") == 500
        assert [await status("Authorization: x") for _ in range(11)][:10] == [401] * 10
    assert asked[0] == ("/api/ota/status", "k")


# Endless or slow data.


async def test_endless_data_one_byte_more_than_declared() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        assert (await ask(server.port, update() + b"+")).status == 200
    assert fake.staged == b"image"


async def test_endless_data_that_never_ends_is_cut_off_at_the_declared_size() -> None:
    fake = FakeDevice()
    limits = Limits(acknowledge=0.3, drain=1 << 16)
    async with serve(fake.device, limits=limits) as server, await Client.open(server.port) as client:

        async def flood() -> None:
            while True:
                await client.send(b"y" * 1000)

        flooding = asyncio.ensure_future(flood())
        await client.send(update())
        assert (await client.reply()).status == 200
        await fake.reset.happened.wait()
        with pytest.raises(ConnectionError):
            await flooding
    assert fake.staged == b"image"


async def test_a_refusal_reaches_a_client_that_still_sends() -> None:
    fake = FakeDevice(room=1 << 23)
    async with serve(fake.device, auth=AUTH) as server, await Client.open(server.port) as client:
        await client.send(update(body=b"x" * (4 << 20)))  # all of it, before reading a word
        assert (await client.reply()).status == 401


async def test_the_lock_is_free_before_the_client_has_read_the_refusal() -> None:
    fake = FakeDevice()
    async with (
        serve(fake.device, limits=Limits(idle=0.3, linger=30)) as server,
        await Client.open(server.port) as client,
    ):
        await client.send(request("POST", UPDATE, None, "Content-Length: 100"))
        assert (await client.reply()).status == 408
        assert (await ask(server.port, update())).status == 200


# "The owner's disconnect aborts and releases: test at every byte offset of a small image."


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("how", ["close", "abort"])
async def test_the_owners_disconnect_aborts_and_releases_at_every_byte_offset(how: str, blocking: bool) -> None:
    fake = FakeDevice(blocking=blocking)
    image = bytes(range(64))
    whole = update(body=image)
    async with serve(fake.device, limits=Limits(linger=0.5)) as server:
        for offset in range(len(whole)):
            client = await Client.open(server.port)
            await client.send(whole[:offset])
            if how == "abort":
                client.abort()
            else:
                await client.close()
            if offset >= len(whole) - len(image):
                while fake.flash.opened != fake.flash.aborted or fake.device.live.held or not fake.flash.opened:
                    await anyio.sleep(0.001)
            assert fake.untouched()
        assert (await ask(server.port, update(body=image))).status == 200
        await fake.reset.happened.wait()
    assert fake.staged == image
    assert fake.flash.selected is Slot.B
    assert fake.flash.opened >= len(image)


async def test_destroying_the_way_back_is_refused_during_a_trial() -> None:
    fake = FakeDevice()
    fake.on_trial()
    async with serve(fake.device) as server:
        assert (await ask(server.port, update())).status == 409
    assert fake.staged == b"the proven one before"
    assert not fake.flash.opened


async def test_a_replayed_commit_or_rollback_is_bound_to_the_running_image() -> None:
    fake = FakeDevice()
    async with serve(fake.device) as server:
        await ask(server.port, update())
        await fake.reset.happened.wait()
        fake.boot()
        assert await boot_check(fake.device) == "run"
        sha = (await fake.device.status()).image
        assert sha
        for target in ("/api/ota/commit", "/api/ota/rollback"):
            old = request("POST", target, b"", "X-MGOTA-Image: " + "0" * 64)
            assert (await ask(server.port, old)).status == 412
        same = request("POST", "/api/ota/commit", b"", f"X-MGOTA-Image: {sha.sha256}")
        for _ in range(2):  # and it is idempotent
            assert (await ask(server.port, same)).status == 200
