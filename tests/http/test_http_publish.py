"""The update server: files with ranges and entity tags, nothing beside them, and who asked."""

import json
import os
import socket
import tracemalloc
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from raw_client import Client, Reply, request
from test_http_tls import make_pki, server_context

from mgota.errors import ConfigError
from mgota.transports.http import Credentials, Limits
from mgota.transports.http.publish import DEVICES, LIMITS, PIECE, Publisher, open_below, publish
from mgota.transports.http.server import Server, listening

pytestmark = pytest.mark.asyncio

IMAGE = bytes(range(256)) * 2000  # two pieces
MANIFEST = b'{"version": "1.2.3", "url": "fw.bin", "size": 512000}\n'
MONGOOSE = "?arch=esp32&version=1.2.3&id=dev7&interval=60&boot=3"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = tmp_path / "firmware"
    (root / "deep").mkdir(parents=True)
    (root / "manifest.json").write_bytes(MANIFEST)
    (root / "fw.bin").write_bytes(IMAGE)
    (root / "deep/ä b.bin").write_bytes(b"deep")
    (root / "empty.bin").touch()
    (root / ".hidden").write_bytes(b"hidden")
    (tmp_path / "secret").write_bytes(b"secret")
    return root


@asynccontextmanager
async def asking(shelf: Path, **options: Any) -> AsyncGenerator[Client]:
    async with publish(shelf, **options) as server, await Client.open(server.port) as client:
        yield client


async def get(client: Client, target: str, *lines: str, method: str = "GET") -> Reply:
    await client.send(request(method, target, None, *lines))
    return await client.reply(head_only=method == "HEAD")


# --- files ----------------------------------------------------------------------------------------------------------


async def test_files_are_served_on_one_connection(shelf: Path) -> None:
    async with asking(shelf) as client:
        for target, body, kind in (
            ("/manifest.json", MANIFEST, "application/json"),
            ("/fw.bin", IMAGE, "application/octet-stream"),
            ("/fw.bin?x=1", IMAGE, "application/octet-stream"),
            ("/deep/%C3%A4%20b.bin", b"deep", "application/octet-stream"),
            ("/empty.bin", b"", "application/octet-stream"),
        ):
            reply = await get(client, target)
            assert (reply.status, reply.body, reply.get("content-type")) == (200, body, kind)
            assert reply.get("accept-ranges") == "bytes"
            assert reply.get("cache-control") == "no-cache"
            assert reply.get("x-content-type-options") == "nosniff"


async def test_a_head_says_what_a_get_would(shelf: Path) -> None:
    async with asking(shelf) as client:
        head = await get(client, "/fw.bin", method="HEAD")
        whole = await get(client, "/fw.bin")
        assert (head.status, head.get("content-length"), head.get("etag")) == (200, "512000", whole.get("etag"))
        assert (await get(client, "/nothing", method="HEAD")).status == 404


async def test_a_download_goes_on_where_it_broke_off(shelf: Path) -> None:
    async with asking(shelf) as client:
        tag = (await get(client, "/fw.bin", method="HEAD")).get("etag")
        for start in (0, 1, PIECE - 1, PIECE, len(IMAGE) - 1):
            rest = await get(client, "/fw.bin", f"Range: bytes={start}-", f"If-Range: {tag}")
            assert (rest.status, rest.body) == (206, IMAGE[start:])
            assert rest.get("content-range") == f"bytes {start}-{len(IMAGE) - 1}/{len(IMAGE)}"
        (shelf / "new").write_bytes(b"another image")
        (shelf / "new").replace(shelf / "fw.bin")
        again = await get(client, "/fw.bin", "Range: bytes=5-", f"If-Range: {tag}")
        assert (again.status, again.body) == (200, b"another image")
        assert again.get("etag") != tag


async def test_what_is_out_of_reach_and_what_the_client_has(shelf: Path) -> None:
    async with publish(shelf) as server:
        async with await Client.open(server.port) as client:
            reply = await get(client, "/fw.bin", f"Range: bytes={len(IMAGE)}-")
            assert (reply.status, reply.get("content-range")) == (416, f"bytes */{len(IMAGE)}")
            assert await client.closed()
        async with await Client.open(server.port) as client:
            tag = (await get(client, "/manifest.json")).get("etag")
            for method in ("GET", "HEAD"):
                reply = await get(client, "/manifest.json", f"If-None-Match: {tag}", method=method)
                assert (reply.status, reply.body, reply.get("etag")) == (304, b"", tag)
                assert reply.get("content-length") is None


@pytest.mark.parametrize(
    "target",
    [
        "/", "/nothing", "/deep", "/deep/", "/.hidden", "/../secret", "/deep/../../secret", "/%2e%2e/secret",
        "/..%2fsecret", "/out", "/outdir/secret", "/loop", "/pipe", "/deep/..%5c", "/manifest.json/", "/%00", "/gone",
        "/" + "x" * 300, "*", "/socket",
    ],
)  # fmt: skip
async def test_nothing_else_is_there(shelf: Path, target: str) -> None:
    (shelf / "out").symlink_to(shelf.parent / "secret")
    (shelf / "outdir").symlink_to(shelf.parent)
    (shelf / "loop").symlink_to(shelf / "loop")
    (shelf / "gone").symlink_to(shelf / "never")
    os.mkfifo(shelf / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(shelf / "socket"))  # a whole path may be too long for one
    async with asking(shelf) as client:
        reply = await get(client, target)
        assert reply.status == 404, reply.body
        assert b"secret" not in reply.body


async def test_links_that_stay_inside_are_followed(shelf: Path) -> None:
    (shelf / "latest.bin").symlink_to("fw.bin")
    (shelf / "shallow").symlink_to("deep")
    async with asking(shelf) as client:
        assert (await get(client, "/latest.bin")).body == IMAGE
        assert (await get(client, "/shallow/%C3%A4%20b.bin")).body == b"deep"


async def test_a_link_that_changes_between_the_look_and_the_open_leads_nowhere(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.path.realpath

    def swapped(path: str) -> str:
        found = real(path)
        (shelf / "fw.bin").unlink()
        (shelf / "fw.bin").symlink_to(shelf.parent / "secret")
        return found

    root = Path(real(shelf))
    monkeypatch.setattr(os.path, "realpath", swapped)
    assert open_below(root, "/fw.bin") is None


async def test_the_shelf_itself_may_be_reached_by_a_link_and_may_vanish(shelf: Path) -> None:
    link = shelf.parent / "link"
    link.symlink_to(shelf)
    async with asking(link) as client:
        assert (await get(client, "/manifest.json")).body == MANIFEST
        shelf.rename(shelf.parent / "away")
        assert (await get(client, "/manifest.json")).status == 404


async def test_a_file_that_is_replaced_is_sent_to_its_end_as_it_was(shelf: Path) -> None:
    size = 64 << 20
    with (shelf / "big.bin").open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    async with publish(shelf) as server, await Client.open(server.port) as client:
        await client.send(request("GET", "/big.bin"))
        await client.reader.readuntil(b"\r\n\r\n")
        (shelf / "new").write_bytes(b"new")
        (shelf / "new").replace(shelf / "big.bin")
        left, piece = size, b""
        while left:
            piece = await client.reader.readexactly(min(left, 1 << 16))
            left -= len(piece)
        assert piece.endswith(b"end")


async def test_a_file_that_becomes_shorter_ends_the_connection(shelf: Path) -> None:
    size = 64 << 20
    with (shelf / "big.bin").open("wb") as file:
        file.truncate(size)
    async with publish(shelf) as server, await Client.open(server.port) as client:
        await client.send(request("GET", "/big.bin"))
        await client.reader.readuntil(b"\r\n\r\n")
        os.truncate(shelf / "big.bin", 10)
        got = 0
        while piece := await client.reader.read(1 << 20):
            got += len(piece)
        assert got < size


async def test_a_client_that_goes_away_in_the_middle_leaves_no_file_open(shelf: Path) -> None:
    with (shelf / "big.bin").open("wb") as file:
        file.truncate(256 << 20)

    def held() -> int:
        return sum(os.path.realpath(name).endswith("big.bin") for name in Path("/proc/self/fd").iterdir())

    async with publish(shelf) as server:
        for _ in range(5):
            client = await Client.open(server.port)
            await client.send(request("GET", "/big.bin"))
            await client.reader.readexactly(1000)
            assert held() == 1
            client.abort()
            with anyio.fail_after(20):
                while held():
                    await anyio.sleep(0.01)


async def test_a_client_that_takes_nothing_is_cut_off(shelf: Path) -> None:
    with (shelf / "big.bin").open("wb") as file:
        file.truncate(256 << 20)
    limits = Limits(idle=0.2, connections=1, per_address=1)
    async with publish(shelf, limits=limits) as server, await Client.open(server.port) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(request("GET", "/big.bin"))
        with anyio.fail_after(20):
            while await once(server, "/manifest.json") != 200:  # 503 as long as the other one holds the place
                await anyio.sleep(0.05)


async def test_memory_stays_flat_however_large_the_file_and_slow_the_client(shelf: Path) -> None:
    size = 48 << 20
    with (shelf / "big.bin").open("wb") as file:
        file.truncate(size)
    async with publish(shelf) as server, await Client.open(server.port) as client:
        tracemalloc.start()
        try:
            await client.send(request("GET", "/big.bin"))
            await client.reader.readuntil(b"\r\n\r\n")
            got = 0
            while got < size:
                got += len(await client.reader.read(1 << 16))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 * PIECE


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE"])
async def test_other_methods_are_refused(shelf: Path, method: str) -> None:
    async with asking(shelf) as client:
        reply = await get(client, "/fw.bin", "Content-Length: 0", method=method)
        assert (reply.status, reply.get("allow")) == (405, "GET, HEAD")
    assert (shelf / "fw.bin").read_bytes() == IMAGE


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /fw.bin HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"GET /fw.bin HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 120 + b"\r\n", 431),
        (b"GET /fw.bin HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01rubbish\r\n\r\n", 400),
        (b"GET /fw.bin HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
)
async def test_heads_that_are_none(shelf: Path, head: bytes, status: int) -> None:
    async with asking(shelf) as client:
        await client.send(head)
        assert (await client.reply()).status == status
        assert await client.closed()


async def test_a_client_too_many_is_turned_away(shelf: Path) -> None:
    limits = Limits(connections=2, per_address=2)
    async with (
        publish(shelf, limits=limits) as server,
        await Client.open(server.port) as first,
        await Client.open(server.port) as second,
    ):
        assert (await get(first, "/manifest.json")).status == 200
        assert (await get(second, "/manifest.json")).status == 200
        async with await Client.open(server.port) as third:
            assert (await third.reply()).status == 503
        assert (await get(first, "/manifest.json")).status == 200
    assert LIMITS.connections > LIMITS.per_address > 16


async def test_a_directory_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ConfigError, match="no directory"):
            Publisher(path)


# --- devices --------------------------------------------------------------------------------------------------------


async def test_what_devices_told_is_shown_as_json_and_as_a_page(shelf: Path) -> None:
    clock = iter(range(100, 200))
    endpoint = Publisher(shelf, clock=lambda: next(clock))
    async with listening(endpoint, host="127.0.0.1", port=0) as server, await Client.open(server.port) as client:
        empty = await get(client, DEVICES, "Accept: text/html")
        assert b"No device has asked" in empty.body
        for target in ("/manifest.json" + MONGOOSE, "/fw.bin", "/nothing?id=ghost&version=1"):
            await get(client, target)
        async with await Client.open(server.port) as other:
            found = json.loads((await get(other, DEVICES)).body)
            (device,) = found["devices"]
            assert (device["id"], device["version"], device["boot"]) == ("dev7", "1.2.3", "ROLLED BACK")
            assert (device["arch"], device["path"], device["peer"]) == ("esp32", "/manifest.json", "127.0.0.1")
            assert device["seen"] < found["now"]
            page = await get(other, DEVICES, "Accept: text/html,*/*")
            assert page.get("content-type") == "text/html; charset=utf-8"
            assert page.get("vary") == "Accept"
            assert "default-src 'none'" in (page.get("content-security-policy") or "")
            assert (
                b'<th scope="row">dev7</th><td>1.2.3</td><td><strong class="alarm">ROLLED BACK</strong></td>'
                in page.body
            )


async def test_what_a_device_says_is_text_on_the_page(shelf: Path) -> None:
    async with asking(shelf) as client:
        await get(client, "/manifest.json?id=%3Cscript%3Ealert(1)%3C/script%3E&version=%22%3E&boot=%26")
        page = (await get(client, DEVICES, "Accept: text/html")).body
        assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert b"<script" not in page


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), 401),
        (("Authorization: Bearer wrong",), 401),
        (("Authorization: Bearer T",), 200),
        (("Authorization: Bearer T", "Origin: http://evil"), 403),
        (("Authorization: Bearer T", "Sec-Fetch-Site: cross-site"), 403),
    ],
)
async def test_devices_take_a_token_and_files_take_none(shelf: Path, lines: tuple[str, ...], status: int) -> None:
    async with asking(shelf, auth=Credentials(tokens="T")) as client:
        assert (await get(client, "/manifest.json", *lines)).status == 200
        assert (await get(client, DEVICES, *lines)).status == status


async def test_tokens_cannot_be_guessed_for_long(shelf: Path) -> None:
    async with publish(shelf, auth=Credentials(tokens="T")) as server:
        statuses = [await once(server, DEVICES, f"Authorization: Bearer {number}") for number in range(12)]
        assert statuses == [401] * 10 + [429] * 2
        assert await once(server, "/manifest.json") == 200


async def once(server: Server, target: str, *lines: str, host: str = "127.0.0.1") -> int:
    async with await Client.open(server.port) as client:
        await client.send(request("GET", target, None, *lines, host=host))
        return (await client.reply()).status


async def test_a_page_that_rebinds_a_name_sees_no_devices(shelf: Path) -> None:
    async with publish(shelf, allow_hosts=["updates.example"]) as server:
        assert await once(server, DEVICES, host="evil.example") == 421
        assert await once(server, DEVICES, host="updates.example") == 200
        assert await once(server, "/manifest.json", host="any.example") == 200


async def test_without_a_token_devices_are_shown_on_the_machine_itself(
    shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgota.transports.http.publish.is_loopback", lambda host: False)
    async with publish(shelf) as server:
        assert await once(server, DEVICES) == 403
        assert await once(server, "/manifest.json") == 200


async def test_it_may_be_reached_from_elsewhere_and_over_https(shelf: Path, tmp_path: Path) -> None:
    pki = make_pki(tmp_path)
    async with publish(shelf, host="0.0.0.0", ssl_context=server_context(pki)) as server:
        assert server.url.startswith("https://0.0.0.0:")


# --- curl -----------------------------------------------------------------------------------------------------------


async def curl(*arguments: object) -> bytes:
    command = ["curl", "-q", "--noproxy", "*", "-sS", "--fail", "--max-time", "60", *map(str, arguments)]
    return (await anyio.run_process(command)).stdout


@pytest.mark.program("curl")
async def test_curl_resumes_a_download(shelf: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    async with publish(shelf) as server:
        for length in (1, 1000, PIECE, len(IMAGE) - 1):
            part.write_bytes(IMAGE[:length])
            await curl("-C", "-", "-o", part, f"{server.url}/fw.bin")
            assert part.read_bytes() == IMAGE


@pytest.mark.program("curl")
async def test_curl_takes_ranges_and_heads(shelf: Path) -> None:
    async with publish(shelf) as server:
        url = f"{server.url}/fw.bin"
        for wanted, expected in (("0-0", IMAGE[:1]), ("5-9", IMAGE[5:10]), ("-7", IMAGE[-7:]), ("1-2,4-5", IMAGE)):
            assert await curl("-r", wanted, url) == expected
        assert b"Content-Length: 512000" in await curl("-I", url)
        assert await curl("--http1.0", url) == IMAGE
        tag = next(line for line in (await curl("-I", url)).decode().splitlines() if line.startswith("ETag"))[6:]
        assert await curl("-H", f"If-None-Match: {tag}", "-o", "/dev/null", "-w", "%{http_code}", url) == b"304"
