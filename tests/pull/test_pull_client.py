"""Requests: redirections, TLS, proxies, and what goes wrong with them."""

import logging
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread
import pytest
from site_server import Request, Site, response

from mgota.core.pace import Limits
from mgota.errors import ConfigError, OtaError, StalledError, TransferError
from mgota.testing import Fault, fault_proxy
from mgota.transports.pull.client import READ, Client, Web, read_some

pytestmark = pytest.mark.asyncio

TEXT = bytes(range(256)) * 20


async def fetch(url: str, web: Web | None = None, *, limit: int = 10**6, home: str | None = None) -> tuple[int, bytes]:
    async with (
        Client(web or Web(), home or url) as client,
        client.get(url, [("Accept-Encoding", "identity")]) as incoming,
    ):
        return incoming.answer.status, await read_some(incoming, limit)


async def test_an_answer_is_a_head_and_what_comes_then() -> None:
    site = Site()
    site.put("/a", TEXT, **{"x-more": "caf\xe9"})
    async with site.served() as url, Client(Web(), url) as client:
        async with client.get(f"{url}/a?b=c", [("X-Own", "1")]) as incoming:
            assert incoming.answer.status == 200
            assert incoming.answer.value("etag") == '"v1"'
            assert incoming.answer.value("x-more") == "caf\xe9"
            assert await read_some(incoming, len(TEXT)) == TEXT
        async with client.get(f"{url}/missing", []) as incoming:
            assert incoming.answer.status == 404
    first = site.requests[0]
    assert (first.path, first.query, first.fields["x-own"]) == ("/a", "b=c", "1")
    assert first.fields["user-agent"] == "mgota"


async def test_a_connection_gives_what_is_there_at_once() -> None:
    """Without it a download takes twice the work: the knob that it turns is httpcore's, and has to be there."""
    site = Site()
    site.put("/a", TEXT * 400)
    async with site.served() as url, Client(Web(), url) as client:
        for _ in range(2):
            async with client.get(f"{url}/a", []) as incoming:
                pieces = [len(piece) async for piece in incoming.body()]
                stream = incoming._response.extensions["network_stream"]
                assert stream.read.asks_for == READ
            assert sum(pieces) == len(TEXT) * 400
            assert max(pieces) <= READ


async def test_a_body_that_is_too_large_is_left() -> None:
    site = Site()
    site.put("/a", TEXT)
    async with site.served() as url:
        assert (await fetch(f"{url}/a", limit=len(TEXT)))[1] == TEXT
        with pytest.raises(TransferError, match="more than"):
            await fetch(f"{url}/a", limit=len(TEXT) - 1)


async def test_redirections_are_followed_to_the_same_origin_five_times() -> None:
    site = Site()
    site.quirk = lambda request, _: (
        response(302, location=f"/{int(request.path[1:]) - 1}") if int(request.path[1:]) else response(200, TEXT)
    )
    async with site.served() as url:
        assert (await fetch(f"{url}/5"))[1] == TEXT
        with pytest.raises(TransferError, match="more than 5"):
            await fetch(f"{url}/6")
    assert [request.path for request in site.requests] == [f"/{n}" for n in (5, 4, 3, 2, 1, 0, 6, 5, 4, 3, 2, 1)]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirections_elsewhere_need_leave(status: int) -> None:
    here, there = Site(), Site()
    there.put("/a", TEXT)
    async with here.served() as first, there.served() as second:
        here.quirk = lambda _request, _number: response(status, location=f"{second}/a")
        with pytest.raises(ConfigError, match="another origin"):
            await fetch(f"{first}/x")
        assert not there.requests
        web = Web(allow_origins=[second], headers=[("Authorization", "Bearer secret")])
        assert (await fetch(f"{first}/x", web))[1] == TEXT
        assert here.requests[-1].fields["authorization"] == "Bearer secret"
        assert "authorization" not in there.requests[-1].fields


async def test_a_redirection_to_nowhere_is_an_error() -> None:
    site = Site()
    async with site.served() as url:
        for answer in (response(302), response(302, location="ftp://a/b")):
            site.quirk = lambda _request, _number, answer=answer: answer  # type: ignore[misc]
            with pytest.raises(TransferError):
                await fetch(f"{url}/x")


async def test_name_and_password_of_a_url_go_to_its_server_and_into_no_log(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.put("/a", TEXT)
    caplog.set_level(logging.DEBUG)
    async with site.served() as url:
        place = url.removeprefix("http://")
        await fetch(f"http://joe:p%40ss@{place}/a")
        with pytest.raises(TransferError) as failed:
            await fetch("http://joe:p%40ss@127.0.0.1:9/a?token=secret")
    assert site.requests[0].fields["authorization"] == "Basic am9lOnBAc3M="
    for text in (caplog.text, str(failed.value)):
        assert "joe" not in text
        assert "p%40ss" not in text
        assert "p@ss" not in text
    assert "secret" not in str(failed.value)


async def test_https_needs_a_certificate_that_is_trusted(pki: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki / "server.pem")
    site = Site()
    site.put("/a", TEXT)
    trust = ssl.create_default_context(cafile=pki / "ca.pem")
    async with site.served(server) as url:
        assert (await fetch(f"{url}/a", Web(ssl_context=trust)))[1] == TEXT
        with pytest.raises(ConfigError, match="its certificate is not trusted"):
            await fetch(f"{url}/a")
        site.quirk = lambda _request, _number: response(301, location=f"{url.replace('https', 'http')}/a")
        with pytest.raises(ConfigError, match="from https to http"):
            await fetch(f"{url}/a", Web(ssl_context=trust, allow_origins=[url.replace("https", "http")]))


async def test_a_client_may_have_to_show_a_certificate(pki: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki / "server.pem")
    server.load_verify_locations(pki / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    trust = ssl.create_default_context(cafile=pki / "ca.pem")
    site = Site()
    site.put("/a", TEXT)
    async with site.served(server) as url:
        with pytest.raises(TransferError):
            await fetch(f"{url}/a", Web(ssl_context=trust))
        trust.load_cert_chain(pki / "client.pem")
        assert (await fetch(f"{url}/a", Web(ssl_context=trust)))[1] == TEXT


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_missing_certificate_of_the_client_is_a_fault_of_the_configuration(
    pki: Path, version: ssl.TLSVersion
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.maximum_version = version
    server.load_cert_chain(pki / "server.pem")
    server.load_verify_locations(pki / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    trust = ssl.create_default_context(cafile=pki / "ca.pem")

    def serve(listener: socket.socket) -> None:
        """A handshake that fails with an alert, which anyio's listener would not send."""
        conn, _ = listener.accept()
        with server.wrap_socket(conn, server_side=True, do_handshake_on_connect=False) as tls:
            with suppress(ssl.SSLError):
                tls.do_handshake()
            with suppress(OSError):
                while os.read(tls.fileno(), 4096):  # what is left unread would become a reset
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, serve, listener)
            with pytest.raises(ConfigError, match="certificate of this client"):
                await fetch(f"https://127.0.0.1:{listener.getsockname()[1]}/a", Web(ssl_context=trust))


async def test_http_and_https_in_one_pull(pki: Path) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pki / "server.pem")
    plain, secure = Site(), Site()
    secure.put("/a", TEXT)
    async with plain.served() as first, secure.served(server) as second:
        plain.quirk = lambda _request, _number: response(302, location=f"{second}/a")
        web = Web(ssl_context=ssl.create_default_context(cafile=pki / "ca.pem"), allow_origins=[second])
        assert (await fetch(first, web))[1] == TEXT


@asynccontextmanager
async def http_proxy(seen: list[str]) -> AsyncGenerator[str]:
    """A proxy of the simplest kind: it notes the first line, and answers by itself."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            seen.append(head.decode())
            await stream.send(response(200, TEXT, connection="close"))

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        tasks.cancel_scope.cancel()


async def test_a_proxy_is_asked_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    async with http_proxy(seen) as proxy:
        assert (await fetch("http://updates.invalid/a", Web(proxy=proxy)))[1] == TEXT
        monkeypatch.setenv("HTTP_PROXY", proxy)
        assert (await fetch("http://other.invalid/b"))[1] == TEXT
        with pytest.raises(ConfigError, match="proxy"):
            await fetch("http://updates.invalid/a", Web(proxy="gopher://x"))
    assert [text.split()[1] for text in seen] == ["http://updates.invalid/a", "http://other.invalid/b"]


async def test_what_is_not_there_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(TransferError, match=f"http://127.0.0.1:{port}/a: "):
        await fetch(f"http://127.0.0.1:{port}/a")
    with pytest.raises(TransferError):
        await fetch("http://no-such-host.invalid/a")


async def test_silence_is_a_stall() -> None:
    site = Site()
    site.put("/a", TEXT)
    async with site.served() as url, fault_proxy("127.0.0.1", int(url.rpartition(":")[2]), [[Fault.stall(0)]]) as proxy:
        with pytest.raises(StalledError):
            await fetch(f"http://127.0.0.1:{proxy.port}/a", Web(limits=Limits(idle=0.05)))


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * 100, b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc", b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * 200_000 + b"\r\n\r\n",
    ],
)  # fmt: skip
async def test_what_is_no_http_is_an_error_of_the_transfer(answer: bytes) -> None:
    site = Site()
    site.keep_alive = False
    site.quirk = lambda _request, _number: answer
    async with site.served() as url:
        with pytest.raises(TransferError):
            await fetch(f"{url}/a")


async def test_what_can_never_be_asked_is_a_fault_of_the_configuration() -> None:
    for wrong in ({"metadata": 0.0}, {"deadline": 0.0}, {"allow_origins": ["nonsense"]}):
        with pytest.raises(ConfigError):
            Web(**wrong)
    with pytest.raises(ConfigError):
        Web(ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    with pytest.raises(OtaError):
        await fetch("http://a..b/")


async def test_a_cancellation_closes_the_connection() -> None:
    site = Site()
    site.put("/a", TEXT)
    async with (
        site.served() as url,
        fault_proxy("127.0.0.1", int(url.rpartition(":")[2]), [[Fault.stall(300)]]) as proxy,
    ):
        with anyio.move_on_after(0.2) as scope:
            await fetch(f"http://127.0.0.1:{proxy.port}/a")
        assert scope.cancelled_caught


async def test_nothing_of_a_terminal_is_loaded() -> None:
    code = (
        "import sys, mgota.transports.pull.client as c;"
        "assert 'httpx' in sys.modules and 'httpx._main' not in sys.modules;"
        "assert not {'click', 'rich', 'pygments'} & set(sys.modules), sys.modules.keys();"
        "import httpx; httpx.main"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert Request("/", "", {}).range is None
