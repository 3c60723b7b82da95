"""TLS and mutual TLS by a passed SSLContext."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from fake_device import FakeDevice
from raw_client import Client, ask, request

from mgota.errors import ConfigError
from mgota.transports.http import Credentials, Limits, OtaHttp, Request, Response, serve

pytestmark = pytest.mark.asyncio

UPDATE = "/api/ota/update"


@dataclass
class Pki:
    """A certificate authority with a server and a client."""

    ca: Path
    server: Path
    client: Path


def make_pki(directory: Path) -> Pki:
    now = dt.datetime.now(dt.UTC)
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool) -> x509.Certificate:
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(ca_key, hashes.SHA256())
        )

    def pem(path: Path, *parts: x509.Certificate | ec.EllipticCurvePrivateKey) -> Path:
        with path.open("wb") as file:
            for part in parts:
                if isinstance(part, x509.Certificate):
                    file.write(part.public_bytes(serialization.Encoding.PEM))
                else:
                    clear = serialization.NoEncryption()
                    file.write(part.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, clear))
        return path

    def leaf(common_name: str) -> Path:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        return pem(directory / f"{common_name}.pem", key, certificate(name, key, ca=False))

    ca = pem(directory / "ca.pem", certificate(ca_name, ca_key, ca=True))
    return Pki(ca=ca, server=leaf("server"), client=leaf("client"))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("pki"))


def server_context(pki: Pki, *, mutual: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.server)
    if mutual:
        context.load_verify_locations(pki.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(pki: Pki, *, certificate: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki.ca))
    if certificate:
        context.load_cert_chain(pki.client)
    return context


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_an_update_over_tls(pki: Pki, version: ssl.TLSVersion, blocking: bool) -> None:
    fake = FakeDevice(room=1 << 22, blocking=blocking)
    body = bytes(range(256)) * 9000
    context = client_context(pki)
    context.minimum_version = context.maximum_version = version
    async with serve(fake.device, ssl_context=server_context(pki)) as server:
        assert server.url == f"https://127.0.0.1:{server.port}"
        reply = await ask(server.port, request("POST", UPDATE, body, "Expect: 100-continue"), tls=context)
        assert (reply.status, reply.body) == (200, b"ok\n")
        await fake.reset.happened.wait()
    assert fake.staged == body


async def test_keep_alive_and_a_refusal_over_tls(pki: Pki) -> None:
    async with (
        serve(FakeDevice().device, ssl_context=server_context(pki)) as server,
        await Client.open(server.port, tls=client_context(pki)) as client,
    ):
        for _ in range(2):
            await client.send(request("GET", "/api/ota/status"))
            assert (await client.reply()).status == 200
        await client.send(request("POST", "/nowhere", b"x" * 500_000))
        assert (await client.reply()).status == 404
        assert await client.closed()


async def test_the_own_origin_of_a_tls_server_is_https(pki: Pki) -> None:
    async with serve(FakeDevice().device, ssl_context=server_context(pki)) as server:
        own = f"localhost:{server.port}"
        for scheme, status in (("https", 200), ("http", 403)):
            data = request("GET", "/api/ota/status", None, f"Origin: {scheme}://{own}", host=own)
            assert (await ask(server.port, data, tls=client_context(pki))).status == status


async def test_mutual_tls_is_authentication_and_fails_closed(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mgota")
    fake = FakeDevice()
    async with serve(fake.device, host="0.0.0.0", ssl_context=server_context(pki, mutual=True)) as server:
        with pytest.raises((ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)):
            await ask(server.port, request("POST", UPDATE, b"image"), tls=client_context(pki))
        assert not fake.flash.opened
        context = client_context(pki, certificate=True)
        assert (await ask(server.port, request("POST", UPDATE, b"image"), tls=context)).status == 200
    assert "no TLS connection" in caplog.text
    assert any(record.name == "mgota.audit" and "127.0.0.1" in record.message for record in caplog.records)


async def test_mutual_tls_does_not_replace_configured_credentials(pki: Pki) -> None:
    context = client_context(pki, certificate=True)
    secured = server_context(pki, mutual=True)
    async with serve(FakeDevice().device, ssl_context=secured, auth=Credentials(tokens="T")) as server:
        assert (await ask(server.port, request("POST", UPDATE, b"image"), tls=context)).status == 401


async def test_tls_without_authentication_is_still_loopback_only(pki: Pki) -> None:
    with pytest.raises(ConfigError, match="insecure"):
        async with serve(FakeDevice().device, host="0.0.0.0", ssl_context=server_context(pki)):
            pass


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_older_than_tls_1_2_is_refused(pki: Pki) -> None:
    for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.MINIMUM_SUPPORTED):
        context = server_context(pki)
        context.minimum_version = version
        with pytest.raises(ConfigError, match=r"1\.2"):
            OtaHttp(FakeDevice().device, ssl_context=context)
    with pytest.raises(ConfigError, match="PROTOCOL_TLS_SERVER"):
        OtaHttp(FakeDevice().device, ssl_context=ssl.create_default_context())


async def test_a_plain_client_on_a_tls_port_is_let_go(pki: Pki) -> None:
    async with serve(FakeDevice().device, ssl_context=server_context(pki)) as server:
        async with await Client.open(server.port) as client:
            await client.send(request("GET", "/api/ota/status"))
            assert b"HTTP" not in await asyncio.wait_for(client.reader.read(), 20)
        assert (await ask(server.port, request("GET", "/api/ota/status"), tls=client_context(pki))).status == 200


async def test_the_handshake_is_under_the_header_deadline(pki: Pki) -> None:
    async with serve(FakeDevice().device, ssl_context=server_context(pki), limits=Limits(head=0.3)) as server:
        async with await Client.open(server.port) as client:
            await client.send(b"\x16\x03\x01")
            assert await client.closed()
        async with await Client.open(server.port, tls=client_context(pki)) as client:
            assert await client.closed()


@pytest.mark.parametrize("how", ["abort", "close"])
async def test_a_tls_client_that_goes_away_aborts_and_releases(pki: Pki, how: str) -> None:
    fake = FakeDevice()
    async with serve(fake.device, ssl_context=server_context(pki)) as server:
        client = await Client.open(server.port, tls=client_context(pki))
        await client.send(request("POST", UPDATE, None, "Content-Length: 100") + b"x" * 50)
        while not fake.flash.opened:
            await anyio.sleep(0.001)
        if how == "abort":
            client.abort()
        await client.close()
        while not fake.flash.aborted:
            await anyio.sleep(0.001)
    assert not fake.device.live.held
    assert fake.untouched()


async def test_a_large_response_over_tls(pki: Pki) -> None:
    async def app(request: Request) -> Response:
        return Response(body=b"x" * 3_000_000 if request.secure else b"")

    async with serve(FakeDevice().device, ssl_context=server_context(pki), app=app) as server:
        assert len((await ask(server.port, request("GET", "/"), tls=client_context(pki))).body) == 3_000_000
        client = await Client.open(server.port, tls=client_context(pki))
        await client.send(request("GET", "/"))
        client.abort()
        assert (await ask(server.port, request("GET", "/x"), tls=client_context(pki))).status == 200


async def test_too_many_connections_are_just_closed_under_tls(pki: Pki) -> None:
    async with (
        serve(FakeDevice().device, ssl_context=server_context(pki), limits=Limits(per_address=1)) as server,
        await Client.open(server.port, tls=client_context(pki)) as first,
    ):
        await first.send(request("GET", "/api/ota/status"))
        assert (await first.reply()).status == 200
        async with await Client.open(server.port) as second:
            assert await second.closed()


async def test_a_socket_handed_over_becomes_tls(pki: Pki) -> None:
    endpoint = OtaHttp(FakeDevice().device, ssl_context=server_context(pki))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)

        async def accept() -> None:
            await anyio.wait_readable(listener)
            await endpoint.handle(listener.accept()[0])

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(accept)
            async with await Client.open(listener.getsockname()[1], tls=client_context(pki)) as client:
                await client.send(request("GET", "/api/ota/status", None, "Connection: close"))
                assert (await client.reply()).status == 200
                with contextlib.suppress(ssl.SSLError):
                    assert await client.closed()
