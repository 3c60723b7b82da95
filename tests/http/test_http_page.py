"""The updater page over a socket: who gets it, with which header fields, and what it changes for everything else."""

import re
from base64 import b64encode
from hashlib import sha256
from typing import Any

import pytest
from fake_device import FakeDevice
from raw_client import Client, Reply, ask, request

from mgota.errors import ConfigError
from mgota.transports.http import Credentials, OtaHttp, Request, Response, serve
from mgota.transports.http.page import page_of_device

pytestmark = pytest.mark.asyncio

AUTH = Credentials(tokens="T0ken")


async def get(path: str, *lines: str, method: str = "GET", **options: Any) -> Reply:
    async with serve(FakeDevice().device, **options) as server:
        return await ask(server.port, request(method, path, None, *lines))


async def test_the_page_is_one_document_that_loads_nothing_and_may_be_framed_by_nobody() -> None:
    reply = await get("/", page="/")
    assert (reply.status, reply.get("content-type")) == (200, "text/html; charset=utf-8")
    policy = reply.get("content-security-policy") or ""
    scripts = re.findall(rb"<script>(.*?)</script>", reply.body, re.DOTALL)
    assert len(scripts) == 4
    for script in scripts:
        assert f"'sha256-{b64encode(sha256(script).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert not re.findall(rb"<(?:script|img|iframe)[^>]* src=", reply.body)
    for name, value in (
        ("x-content-type-options", "nosniff"),
        ("cache-control", "no-store"),
        ("x-frame-options", "DENY"),
        ("cross-origin-resource-policy", "same-origin"),
        ("referrer-policy", "same-origin"),
    ):
        assert reply.get(name) == value
    assert not reply.get("set-cookie")


async def test_it_knows_where_the_routes_are() -> None:
    reply = await get("/", page="/", prefix="/x/ota")
    assert b'<meta name="mgota-api" content="/x/ota">' in reply.body


async def test_there_is_none_unless_it_was_asked_for() -> None:
    assert (await get("/")).status == 404
    assert (await get("/other", page="/")).status == 404


async def test_head_has_the_length_and_no_body() -> None:
    async with serve(FakeDevice().device, page="/") as server, await Client.open(server.port) as client:
        await client.send(request("HEAD", "/"))
        reply = await client.reply(head_only=True)
        assert (reply.status, reply.get("content-length")) == (200, str(len(page_of_device("/api/ota").body)))
        await client.send(request("GET", "/api/ota/status"))  # and the connection lives on
        assert (await client.reply()).status == 200


async def test_other_methods_are_405() -> None:
    reply = await get("/", method="PUT", page="/")
    assert (reply.status, reply.get("allow")) == (405, "GET, HEAD")


async def test_it_asks_for_the_credentials_so_it_is_there_before_them() -> None:
    assert (await get("/", page="/", auth=AUTH)).status == 200
    assert (await get("/api/ota/status", page="/", auth=AUTH)).status == 401
    assert (await get("/", "Authorization: Bearer wrong", page="/", auth=AUTH)).status == 200


async def test_a_script_is_refused_without_the_word_that_opens_a_browsers_own_dialog() -> None:
    reply = await get("/api/ota/status", "X-MGOTA: 1", page="/", auth=AUTH)
    assert reply.status == 401
    assert reply.all("www-authenticate") == ['Bearer realm="mgota"']


async def test_beside_an_application_it_takes_one_path() -> None:
    async def app(asked: Request) -> Response:
        return Response.line(f"app {asked.path}")

    async with serve(FakeDevice().device, page="/update", app=app) as server:
        assert b"<title>Firmware update" in (await ask(server.port, request("GET", "/update"))).body
        for path in ("/", "/update/", "/updates"):
            assert (await ask(server.port, request("GET", path))).body == f"app {path}\n".encode()


async def test_a_link_may_lead_to_it_and_no_page_may_embed_it() -> None:
    link = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Referer: http://wiki.example/")
    assert (await get("/", *link, "Sec-Fetch-Dest: document", page="/")).status == 200
    assert (await get("/", *link, "Sec-Fetch-Dest: iframe", page="/")).status == 403
    assert (await get("/", "Origin: http://evil.example", page="/")).status == 403
    async with serve(FakeDevice().device, page="/") as server:
        assert (await ask(server.port, request("GET", "/", host="evil.example"))).status == 421


async def test_from_elsewhere_without_authentication_it_is_refused_like_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serve(FakeDevice().device, page="/") as server, serve(FakeDevice().device, page="/", auth=AUTH) as door:
        monkeypatch.setattr("mgota.transports.http.endpoint.is_loopback", lambda _: False)
        assert (await ask(server.port, request("GET", "/"))).status == 403
        assert (await ask(door.port, request("GET", "/"))).status == 200


async def test_a_page_among_the_routes_is_refused() -> None:
    with pytest.raises(ConfigError, match="another path"):
        OtaHttp(FakeDevice().device, page="/api/ota/page")
