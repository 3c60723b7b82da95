"""A web server of a few lines that does what a test tells it, and remembers what it was asked.

    site = Site()
    site.put("/fw.bin", data, etag='"v1"')
    async with site.served() as url: ...

It knows Range and If-Range as RFC 9110 has them, so far as a download needs it. `quirk` can answer instead.
"""

import json
import ssl
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import anyio
import anyio.abc
from anyio.from_thread import start_blocking_portal
from anyio.streams.tls import TLSListener

from mgota.core.keys import PrivateKey
from mgota.core.manifest import Manifest, encode_plain
from mgota.core.signed_manifest import encode_signed

METADATA = "/fw.json"
IMAGE = "/fw.bin"


@dataclass(frozen=True)
class Request:
    """What was asked."""

    path: str
    query: str
    fields: dict[str, str]

    @property
    def range(self) -> str | None:
        return self.fields.get("range")


@dataclass
class File:
    data: bytes
    etag: str | None = None
    more: dict[str, str] = field(default_factory=dict)


def response(status: int, body: bytes = b"", **fields: str) -> bytes:
    """A response as it goes over the wire."""
    named = {"content-length": str(len(body)), **{name.replace("_", "-"): value for name, value in fields.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in named.items() if value != "-")
    return f"HTTP/1.1 {status} X\r\n{head}\r\n".encode("latin-1") + body


Quirk = Callable[[Request, int], bytes | None]
"""May answer a request; its number among those for the same path is given."""


class Site:
    def __init__(self) -> None:
        self.files: dict[str, File] = {}
        self.requests: list[Request] = []
        self.quirk: Quirk = lambda _request, _number: None
        self.keep_alive = True

    def put(self, path: str, data: bytes, *, etag: str | None = '"v1"', **more: str) -> None:
        self.files[path] = File(data, etag, more)

    def publish(
        self,
        image: bytes,
        version: str = "2",
        *,
        key: PrivateKey | None = None,
        url: str = "fw.bin",
        etag: str | None = '"v1"',
        digest: bool = True,
        **members: Any,
    ) -> None:
        """A manifest, signed if there is a key, and its image."""
        found = sha256(image).hexdigest() if digest else None
        manifest = Manifest(**{"version": version, "url": url, "size": len(image), "sha256": found, **members})
        if key:
            members.setdefault("seq", 1)
            manifest = Manifest(**{"version": version, "url": url, "size": len(image), "sha256": found, **members})
        self.put(METADATA, encode_signed(manifest, [key]) if key else encode_plain(manifest))
        self.put(IMAGE, image, etag=etag)

    def asked(self, path: str = IMAGE) -> list[Request]:
        return [request for request in self.requests if request.path == path]

    def json(self, **members: Any) -> None:
        """A manifest of whatever members."""
        self.put(METADATA, json.dumps(members).encode())

    @asynccontextmanager
    async def served(self, context: ssl.SSLContext | None = None) -> AsyncGenerator[str]:
        """Serve on a free port; the base URL."""
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = plain.extra(anyio.abc.SocketAttribute.local_port)
        listener = TLSListener(plain, context, standard_compatible=False) if context else plain
        failure: Exception | None = None
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._client)
            try:
                yield f"{'https' if context else 'http'}://127.0.0.1:{port}"
            except Exception as exc:
                failure = exc  # raised outside of the task group, which would wrap it
            tasks.cancel_scope.cancel()
        if failure:
            raise failure

    @contextmanager
    def in_thread(self, context: ssl.SSLContext | None = None) -> Generator[str]:
        """`served`, beside a test that runs no event loop."""
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self.served(context)) as url:
            yield url

    async def _client(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            try:
                pending = b""
                while True:
                    while b"\r\n\r\n" not in pending:
                        pending += await stream.receive()
                    head, _, pending = pending.partition(b"\r\n\r\n")
                    await stream.send(self._answer(head))
                    if not self.keep_alive:
                        return
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
                return

    def _answer(self, head: bytes) -> bytes:
        line, *lines = head.decode("latin-1").split("\r\n")
        path, _, query = line.split(" ")[1].partition("?")
        pairs = (line.partition(":") for line in lines)
        request = Request(path, query, {name.lower(): value.strip() for name, _, value in pairs})
        number = len(self.asked(path))
        self.requests.append(request)
        own = self.quirk(request, number)
        return own if own is not None else self._file(request)

    def _file(self, request: Request) -> bytes:
        file = self.files.get(request.path)
        if file is None:
            return response(404)
        fields = {**file.more, **({"etag": file.etag} if file.etag else {})}
        if not self.keep_alive:
            fields["connection"] = "close"
        size = len(file.data)
        condition = request.fields.get("if-range")
        if request.range is None or (
            condition is not None and condition not in {file.etag, file.more.get("last-modified")}
        ):
            return response(200, file.data, **fields)
        begin = int(request.range.removeprefix("bytes=").removesuffix("-"))
        if begin >= size:
            return response(416, content_range=f"bytes */{size}")
        return response(206, file.data[begin:], content_range=f"bytes {begin}-{size - 1}/{size}", **fields)
