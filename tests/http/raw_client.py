"""A client that sends exactly the bytes it is given."""

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Any, Self


@dataclass
class Reply:
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    before: list[int]
    """Statuses of informational responses that came first."""

    def get(self, name: str) -> str | None:
        return next((value for field, value in self.headers if field == name.lower()), None)

    def all(self, name: str) -> list[str]:
        return [value for field, value in self.headers if field == name.lower()]


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> "Client":
        name = "localhost" if tls else None
        return cls(*await asyncio.open_connection(host, port, ssl=tls, server_hostname=name))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self, *, head_only: bool = False) -> Reply:
        """The next final response; its body by Content-Length, or up to the end."""
        before: list[int] = []
        while True:
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
            lines = head.decode("latin-1").split("\r\n")[:-2]
            status = int(lines[0].split(" ")[1])
            if status >= 200:
                break
            before.append(status)
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:])]
        reply = Reply(status, headers, b"", before)
        length = int(reply.get("content-length") or 0)
        if not head_only and status not in {204, 304}:
            reply.body = await asyncio.wait_for(self.reader.readexactly(length), 20)
        return reply

    async def closed(self) -> bool:
        """Whether the server ends the connection, without another byte."""
        with contextlib.suppress(ConnectionError):
            return await asyncio.wait_for(self.reader.read(1), 20) == b""
        return True

    def abort(self) -> None:
        """Go away with a reset."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await self.writer.wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def request(method: str, target: str, body: bytes | None = None, *lines: str, host: str = "127.0.0.1") -> bytes:
    """A request as bytes; Content-Length goes with a body that is not None."""
    head = [f"{method} {target} HTTP/1.1", f"Host: {host}", *lines]
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + (body or b"")


async def ask(port: int, data: bytes, **options: Any) -> Reply:
    """Send `data` on a connection of its own, read one response and close."""
    async with await Client.open(port, **options) as client:
        with contextlib.suppress(ConnectionError):
            await client.send(data)
        return await client.reply(head_only=data.startswith(b"HEAD "))
