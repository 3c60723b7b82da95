"""The sender against servers that do as they please."""

import asyncio
import io
import os
import socket
import struct
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from mgota import errors
from mgota.transports.http.push import PIECE, Progress, Remote, push

pytestmark = pytest.mark.asyncio

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@asynccontextmanager
async def server(script: Script) -> AsyncGenerator[str]:
    """A server that runs a script with every connection; its URL."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    running = await asyncio.start_server(run, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}"
    finally:
        running.close()
        await running.wait_closed()


def reply(status: int, body: bytes = b"", kind: str = "text/plain") -> bytes:
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


def says(answer: bytes) -> Script:
    """Answer the head at once, and drop what comes after it."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(answer)
        await writer.drain()
        writer.write_eof()
        while await reader.read(1 << 16):
            pass

    return script


async def send(image: Path | bytes | io.BytesIO, url: str, **options: float | str) -> list[Progress]:
    return [step async for step in push(image, url, **options)]  # type: ignore[arg-type]


async def test_it_sends_the_file_in_pieces_with_leave_first(tmp_path: Path) -> None:
    image = os.urandom(3 * PIECE + 7)
    (tmp_path / "fw").write_bytes(image)
    got: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await head_of(reader))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        writer.write(CONTINUE)
        got.append(await reader.readexactly(len(image)))
        writer.write(OK)

    async with server(script) as url:
        steps = await send(tmp_path / "fw", url, token="s3cret")
        assert await send(tmp_path / "fw", url + "/elsewhere/update?x=1") == steps
    head = got[0]
    assert head.startswith(b"POST /api/ota/update HTTP/1.1\r\n")
    assert b"Expect: 100-continue\r\n" in head
    assert b"Authorization: Bearer s3cret\r\n" in head
    assert b"Content-Length: %d\r\n" % len(image) in head
    assert got[2].startswith(b"POST /elsewhere/update?x=1 ")
    assert got[1] == got[3] == image
    assert steps == [Progress(sent, len(image)) for sent in (0, PIECE, 2 * PIECE, 3 * PIECE, len(image))]


async def test_a_stock_mongoose_that_never_gives_leave_gets_the_image(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        assert await reader.readexactly(8) == b"firmware"
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n")

    async with server(script) as url:
        assert (await send(b"firmware", url))[-1] == Progress(8, 8)
        assert (await send(io.BytesIO(b"firmware"), url))[-1] == Progress(8, 8)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.TransferError),
        (401, errors.ConfigError),
        (403, errors.ConfigError),
        (404, errors.ConfigError),
        (408, errors.StalledError),
        (409, errors.BusyError),
        (412, errors.WrongImageError),
        (413, errors.RejectedError),
        (421, errors.ConfigError),
        (422, errors.RejectedError),
        (429, errors.BusyError),
        (500, errors.FlashError),
        (503, errors.BusyError),
        (302, errors.ConfigError),
    ],
)
async def test_a_refusal_before_the_body_is_the_error_of_its_status(status: int, kind: type[errors.OtaError]) -> None:
    async with server(says(reply(status, b"the device's own line\nand more\n"))) as url:
        with pytest.raises(kind) as caught:
            await send(bytes(PIECE), url)
    if status != 302:
        assert str(caught.value) == f"the device's own line (HTTP {status})"


async def test_lines_that_are_no_text_are_not_shown() -> None:
    async with server(says(reply(500, b"<html>proxy</html>", "text/html"))) as url:
        with pytest.raises(errors.FlashError, match=r"^Whatever \(HTTP 500\)$"):
            await send(b"x", url)
    async with server(says(reply(422, b"\x1b[31mred\x07 \xff" + b"x" * 1000))) as url:
        with pytest.raises(errors.RejectedError) as caught:
            await send(b"x", url)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


async def test_an_early_refusal_stops_the_sending() -> None:
    image = bytes(64 * PIECE)
    taken = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await head_of(reader)
        writer.write(CONTINUE)
        taken += len(await reader.readexactly(PIECE))
        writer.write(reply(500, b"flash is worn out\n"))
        await writer.drain()
        await asyncio.sleep(0.2)
        while piece := await reader.read(1 << 16):
            taken += len(piece)

    async with server(script) as url:
        with pytest.raises(errors.FlashError, match="worn out"):
            await send(image, url)
    assert taken < len(image) // 2


async def test_ok_for_half_an_image_is_no_success() -> None:
    async with server(says(OK)) as url:
        with pytest.raises(errors.TransferError, match="no OTA device"):
            await send(bytes(PIECE), url)


async def test_a_connection_that_breaks_off_is_a_transfer_error() -> None:
    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(CONTINUE)
        await reader.readexactly(1000)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    for script in (closes, resets):
        async with server(script) as url:
            with pytest.raises(errors.TransferError):
                await send(bytes(32 * PIECE), url)


async def test_what_speaks_no_http_is_a_transfer_error() -> None:
    async with server(says(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")) as url:
        with pytest.raises(errors.TransferError, match="does not speak HTTP"):
            await send(b"x", url)


async def test_what_speaks_no_tls_is_a_transfer_error() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply(400, b"plain HTTP here\n"))
        await reader.read(100)

    async with server(script) as url:
        with pytest.raises(errors.TransferError, match="TLS failed"):
            await send(b"x", url.replace("http:", "https:"))


async def test_a_device_that_takes_nothing_is_a_stall() -> None:
    asleep = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asleep.wait()

    async with server(script) as url:
        with pytest.raises(errors.StalledError):
            await send(bytes(256 * PIECE), url, timeout=0.3)
        with pytest.raises(errors.StalledError, match="did not answer"):
            await Remote(url, timeout=0.3).status()
        with pytest.raises(errors.StalledError, match="did not answer"):  # all of it is in the kernel's buffers
            await send(b"small", url, timeout=0.3)
        asleep.set()


async def test_who_cannot_be_reached_is_named() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(errors.TransferError, match=r"127.0.0.1:.*connection refused") as caught:
            await send(b"x", url)
    assert "secret" not in str(caught.value)
    with pytest.raises(errors.TransferError, match="no such host"):
        await send(b"x", "http://no-such-host.invalid")


@pytest.mark.parametrize(
    "url",
    ["", "host:80", "ftp://host", "http://", "http://host:port", "http://host:99999", "http://h/a b", "http://[::1"],
)
async def test_what_is_no_url_is_a_config_error(url: str) -> None:
    with pytest.raises(errors.ConfigError):
        Remote(url)


@pytest.mark.parametrize("secret", ["a\nb", "a\r\nX-Evil: 1", "nul\0"])
async def test_secrets_that_http_cannot_send_are_refused(secret: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        Remote("http://host", token=secret)
    assert secret not in str(caught.value)


async def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(errors.EmptyImageError):
        await send(b"", "http://127.0.0.1:1")
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        await send(tmp_path / "missing", "http://127.0.0.1:1")

    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return b""

    async with server(says(CONTINUE)) as url:
        with pytest.raises(errors.ConfigError, match="shorter"):
            await send(Shrinking(b"firmware"), url)


async def test_leaving_early_closes_the_connection() -> None:
    ended = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(CONTINUE)
        while await reader.read(1 << 16):
            pass
        ended.set()

    async with server(script) as url:
        async with aclosing(push(bytes(8 * PIECE), url)) as steps:
            async for step in steps:
                if step.sent:
                    break
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_status_that_is_none() -> None:
    for body in (b"", b"[1]", b'{"a": 1}', b"[" * 60000):
        async with server(says(reply(200, body, "application/json"))) as url:
            with pytest.raises(errors.TransferError):
                await Remote(url).status()


async def test_an_endless_answer_is_cut() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head_of(reader)
        writer.write(b"HTTP/1.1 422 No\r\nContent-Type: text/plain\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    async with server(script) as url:
        with pytest.raises(errors.RejectedError):
            await send(b"x", url)


async def test_commit_and_rollback_name_the_image_and_the_url_may_name_the_update() -> None:
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await head_of(reader))
        writer.write(OK)

    async with server(script) as url:
        await Remote(url, user=("joe", "pass:word")).commit(sha256="ab" * 32)
        await Remote(url.replace("//", "//joe:pass%3Aword@") + "/api/ota/update").rollback()
    assert heads[0].startswith(b"POST /api/ota/commit ")
    assert b"X-MGOTA-Image: " + b"ab" * 32 in heads[0]
    assert heads[1].startswith(b"POST /api/ota/rollback ")
    assert b"X-MGOTA-Image" not in heads[1]
    assert heads[0].count(b"Authorization: Basic am9lOnBhc3M6d29yZA==") == 1
    assert heads[1].count(b"Authorization: Basic am9lOnBhc3M6d29yZA==") == 1


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"state": 5},
        {"state": "CONFIRMED", "image": 7},
        {"state": "CONFIRMED", "image": {"sha256": 1, "size": 1}},
        {"state": "FAILED", "trial": "x"},
        {"state": "CONFIRMED", "update": {"received": None}},
    ],
)
async def test_a_status_that_makes_no_sense_is_no_status(found: dict[str, object]) -> None:
    remote = Remote("http://127.0.0.1:1")

    async def get(_: str) -> dict[str, object]:
        return found

    remote.get = get  # type: ignore[assignment,method-assign]
    with pytest.raises(errors.TransferError, match="makes no sense"):
        await remote.status()
