"""The three ways of use: a server of its own, beside an application's handler, and one connection handed over."""

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from fake_device import FakeDevice
from raw_client import Client, Reply, ask, request

from mgota.errors import ConfigError, TransferError
from mgota.transports.http import Credentials, Limits, OtaHttp, Request, Response, serve

pytestmark = pytest.mark.asyncio

UPDATE = "/api/ota/update"


async def app(request: Request) -> Response:
    match request.path:
        case "/echo":
            return Response(body=await request.read(1000), headers=(("X-Method", request.method),))
        case "/count":
            return Response.line(str(sum([len(chunk) async for chunk in request])))
        case "/twice":
            await request.read()
            return Response(body=await request.read())
        case "/who":
            return Response.json(
                [request.target, request.peer, request.secure, request.header("X-A"), len(request.headers)]
            )
        case "/cached":
            return Response(headers=(("Cache-Control", "max-age=5"),))
        case "/empty":
            return Response(204)
        case "/bad-header":
            return Response(headers=(("X\n", "y"),))
        case "/bad-status":
            return Response(99)
        case "/stalled":
            raise TransferError("from behind")
        case _:
            raise KeyError(request.path)


async def test_beside_an_application() -> None:
    fake = FakeDevice()
    async with serve(fake.device, app=app, auth=Credentials(tokens="T")) as server:
        reply = await ask(server.port, request("POST", "/echo", b"hello"))
        assert (reply.status, reply.body, reply.get("x-method"), reply.get("connection")) == (
            200,
            b"hello",
            "POST",
            None,
        )
        assert (await ask(server.port, request("POST", UPDATE, b"image"))).status == 401
        assert (await ask(server.port, request("POST", UPDATE, b"image", "Authorization: Bearer T"))).status == 200
        who = await ask(server.port, request("GET", "/who?q", None, "X-A: b", "Origin: http://elsewhere"))
        assert who.body == b'["/who?q", "127.0.0.1", false, "b", 3]\n'
        assert (await ask(server.port, request("GET", "/who", host="evil.example"))).status == 421
    assert fake.staged == b"image"


async def test_an_applications_bodies() -> None:
    chunked = request("POST", "/echo", None, "Transfer-Encoding: chunked")
    async with serve(FakeDevice().device, app=app, limits=Limits(idle=0.3)) as server:
        reply = await ask(server.port, chunked + b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n")
        assert reply.body == b"hello world"
        assert (await ask(server.port, request("POST", "/count", b"x" * 100_000))).body == b"100000\n"
        assert (await ask(server.port, request("GET", "/count"))).body == b"0\n"
        assert (await ask(server.port, request("POST", "/echo", b"x" * 1001))).status == 413
        assert (await ask(server.port, chunked + b"3ea\r\n" + b"x" * 1002 + b"\r\n0\r\n\r\n")).status == 413
        assert (await ask(server.port, chunked + b"xyz\r\n")).status == 400
        assert (await ask(server.port, request("POST", "/echo", None, "Content-Length: 5") + b"x")).status == 408
        reply = await ask(server.port, request("POST", "/echo", b"hello", "Expect: 100-continue"))
        assert reply.status == 200
        async with await Client.open(server.port) as client:
            await client.send(request("POST", "/echo", None, "Content-Length: 5", "Expect: 100-continue"))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 \r\n\r\n"
            await client.send(b"hello")
            assert (await client.reply()).body == b"hello"
            await client.send(chunked + b"2\r\nhi\r\n0\r\n\r\n" + request("GET", "/who"))
            assert (await client.reply()).body == b"hi"
            assert (await client.reply()).status == 200
            await client.send(request("POST", "/echo", None, "Content-Length: 5") + b"x")
            client.writer.write_eof()
            assert (await client.reply()).status == 400


async def test_an_applications_bugs_end_their_request_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with serve(FakeDevice().device, app=app) as server:
        for path in ("/unknown", "/bad-header", "/bad-status", "/twice"):
            reply = await ask(server.port, request("POST", path, b"x"))
            assert (reply.status, reply.body, reply.get("connection")) == (500, b"internal error\n", "close")
        assert (await ask(server.port, request("GET", "/stalled"))).status == 400
        reply = await ask(server.port, request("GET", "/cached"))
        assert reply.all("cache-control") == ["max-age=5"]
        reply = await ask(server.port, request("GET", "/empty"))
        assert (reply.status, reply.get("content-length"), reply.get("connection")) == (204, None, None)
        assert (await ask(server.port, request("CONNECT", "localhost:80"))).status == 501
    assert "KeyError" in caplog.text


async def test_another_prefix() -> None:
    fake = FakeDevice()
    async with serve(fake.device, prefix="/fw") as server:
        assert (await ask(server.port, request("POST", UPDATE, b"image"))).status == 404
        assert (await ask(server.port, request("POST", "/fw/update", b"image"))).status == 200


async def test_listeners_of_the_caller_stay_open() -> None:
    fake = FakeDevice()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(2):  # a virtual device that is reset
            async with serve(fake.device, listeners=[listener]) as server:
                assert server.port == listener.getsockname()[1]
                assert server.url == f"http://127.0.0.1:{server.port}"
                assert (await ask(server.port, request("GET", "/api/ota/status"))).status == 200
        assert listener.fileno() > 0
    with socket.create_server(("0.0.0.0", 0)) as everywhere, pytest.raises(ConfigError, match="insecure"):
        async with serve(fake.device, listeners=[everywhere]):
            pass


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        async with serve(FakeDevice().device, listeners=[listener]) as server:
            assert (server.port, server.url) == (0, "http://localhost:0")
            client = Client(*await asyncio.open_unix_connection(path))
            async with client:
                await client.send(request("POST", UPDATE, b"image", host="localhost"))
                assert (await client.reply()).status == 200


async def test_localhost_and_ipv6() -> None:
    for host in ("localhost", "::1"):
        if host == "::1" and not socket.has_ipv6:
            pytest.skip("no IPv6 here")
        try:
            async with serve(FakeDevice().device, host=host) as server:
                own = server.url.removeprefix("http://")
                address = server.listeners[0].getsockname()[0]
                reply = await ask(server.port, request("GET", "/api/ota/status", host=own), host=address)
                assert reply.status == 200
        except ConfigError:
            if host != "::1":
                raise


async def test_addresses_that_cannot_be_listened_on() -> None:
    device = FakeDevice().device
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen"):
        async with serve(device, port=taken.getsockname()[1]):
            pass
    with pytest.raises(ConfigError, match="cannot listen"):
        async with serve(device, host="192.0.2.1", insecure=True):
            pass
    with pytest.raises(ConfigError, match="no address"):
        async with serve(device, host="no such host"):
            pass


@contextlib.asynccontextmanager
async def handed_over(endpoint: OtaHttp, *, received: bytes = b"") -> AsyncGenerator[Client]:
    """A client whose connection the application accepted and handed over."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = await Client.open(listener.getsockname()[1])
        accepted, _ = listener.accept()
    async with anyio.create_task_group() as tasks:

        async def handle() -> None:
            await endpoint.handle(accepted, received=received)

        tasks.start_soon(handle)
        async with client:
            yield client


async def test_one_connection_handed_over() -> None:
    fake = FakeDevice()
    async with handed_over(OtaHttp(fake.device)) as client:
        await client.send(request("GET", "/api/ota/status") + request("POST", UPDATE, b"image"))
        assert (await client.reply()).status == 200
        assert (await client.reply()).status == 200
        assert await client.closed()
    assert fake.staged == b"image"
    assert fake.reset.count == 1


async def test_one_connection_handed_over_after_the_head_was_read() -> None:
    fake = FakeDevice()
    whole = request("POST", UPDATE, b"x" * 100)
    async with handed_over(OtaHttp(fake.device, limits=Limits(buffer=7)), received=whole[:-50]) as client:
        await client.send(whole[-50:])
        assert (await client.reply()).status == 200
    assert fake.staged == b"x" * 100


async def test_a_connection_from_elsewhere_is_not_served_without_authentication(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeDevice()
    monkeypatch.setattr("mgota.transports.http.endpoint.is_loopback", lambda _: False)
    async with handed_over(OtaHttp(fake.device)) as client:
        await client.send(request("POST", UPDATE, b"image"))
        assert (await client.reply()).status == 403
    assert not fake.flash.opened


async def test_a_connection_that_was_reset_before_it_was_handed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    sock = socket.socket()
    await OtaHttp(FakeDevice().device).handle(sock)
    assert sock.fileno() == -1


async def stream_pair() -> tuple[anyio.abc.ByteStream, anyio.abc.ByteStream]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    client = await anyio.connect_tcp("127.0.0.1", listener.extra(anyio.abc.SocketAttribute.local_port))
    accepted: list[anyio.abc.ByteStream] = []
    got = anyio.Event()

    async def keep(stream: anyio.abc.ByteStream) -> None:
        accepted.append(stream)
        got.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, keep)
        await got.wait()
        tasks.cancel_scope.cancel()
    await listener.aclose()
    return client, accepted[0]


async def over_stream(endpoint: OtaHttp, data: bytes) -> Reply:
    client, server = await stream_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(endpoint.handle, server)
        await client.send(data)
        whole = bytearray()
        with contextlib.suppress(anyio.EndOfStream):
            while True:
                whole += await client.receive()
        await client.aclose()
    head, _, body = bytes(whole).partition(b"\r\n\r\n")
    return Reply(int(head.split()[1]), [], body, [])


async def test_a_byte_stream_handed_over() -> None:
    fake = FakeDevice(room=1 << 20)
    body = bytes(range(256)) * 1000
    assert (await over_stream(OtaHttp(fake.device), request("POST", UPDATE, body))).status == 200
    assert fake.staged == body
    assert (await over_stream(OtaHttp(fake.device), b"\r\n")).status == 400


async def test_a_byte_stream_whose_client_goes_away() -> None:
    fake = FakeDevice()
    client, server = await stream_pair()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(OtaHttp(fake.device).handle, server)
        await client.send(request("POST", UPDATE, None, "Content-Length: 10") + b"x")
        await client.aclose()
    assert fake.flash.aborted == 1


async def test_a_byte_stream_of_unknown_ends_needs_authentication() -> None:
    class Anonymous(anyio.abc.ByteStream):
        def __init__(self) -> None:
            self.sent = bytearray()
            self.data: list[bytes] = [
                request("GET", "/api/ota/status", None, "Authorization: Bearer T", host="localhost")
            ]

        async def receive(self, max_bytes: int = 65536) -> bytes:
            if not self.data:
                raise anyio.EndOfStream
            return self.data.pop()

        async def send(self, item: bytes) -> None:
            self.sent += item

        async def send_eof(self) -> None:
            raise NotImplementedError

        async def aclose(self) -> None:
            pass

    token = Credentials(tokens="T")
    for auth, insecure, status in ((None, False, b"403"), (token, False, b"200"), (None, True, b"200")):
        stream = Anonymous()
        await OtaHttp(FakeDevice().device, auth=auth, insecure=insecure).handle(stream)
        assert stream.sent.split()[1] == status


class Troubled(socket.socket):
    """A listening socket that has seen it all."""

    def __init__(self) -> None:
        super().__init__()
        self.troubles = [
            ConnectionAbortedError(errno.ECONNABORTED, "gone before we came"),
            OSError(errno.EMFILE, "too many open files"),
        ]

    def accept(self) -> tuple[socket.socket, Any]:
        if self.troubles:
            raise self.troubles.pop(0)
        return super().accept()


async def test_accepting_goes_on_after_trouble(caplog: pytest.LogCaptureFixture) -> None:
    with Troubled() as listener:
        listener.bind(("127.0.0.1", 0))
        async with serve(FakeDevice().device, listeners=[listener]) as server:
            assert (await ask(server.port, request("GET", "/api/ota/status"))).status == 200
    assert "cannot accept: too many open files" in caplog.text


async def test_a_client_that_is_gone_before_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset right after the handshake: the peer's address cannot be asked for any more."""
    async with serve(FakeDevice().device) as server:
        for _ in range(20):
            (await Client.open(server.port)).abort()
        assert (await ask(server.port, request("GET", "/api/ota/status"))).status == 200


async def test_a_bug_of_the_server_ends_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(FakeDevice().device) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.endpoint, "serve_socket", None)
            async with await Client.open(server.port) as client:
                assert await client.closed()
        assert (await ask(server.port, request("GET", "/api/ota/status"))).status == 200
    assert "a connection from 127.0.0.1 failed" in caplog.text
