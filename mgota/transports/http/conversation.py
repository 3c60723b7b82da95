"""One connection from its first byte to its last, whatever is served on it; and what a server asks of whoever does."""

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute

from mgota.core.http import Ends
from mgota.core.pace import Limits
from mgota.errors import TransferError
from mgota.transports.http.channel import Channel, PlainChannel
from mgota.transports.http.connection import Connection, Exchange
from mgota.transports.http.tls import TlsChannel

log = logging.getLogger("mgota.http")
audit = logging.getLogger("mgota.audit")

Serve = Callable[[Exchange], Awaitable[bool]]
"""Answers one request; whether another may follow on its connection."""


@dataclass(slots=True, eq=False)
class Life:
    """What a server wants to know of a connection.

    Args:
        acting: the device is doing what was promised: it should not be interrupted without need.
    """

    acting: bool = False


class Endpoint(Protocol):
    """What is behind a server."""

    @property
    def limits(self) -> Limits:
        """What clients are granted."""
        ...

    @property
    def ssl_context(self) -> ssl.SSLContext | None:
        """Makes every connection TLS."""
        ...

    @property
    def resetting(self) -> bool:
        """Whether everything here is about to end anyway."""
        ...

    def may_listen_on(self, address: str | None) -> bool:
        """Whether connections to this address of ours may be served."""
        ...

    async def serve_socket(self, sock: socket.socket, life: Life, received: bytes = b"") -> None:
        """Serve one accepted connection to its end. It is closed then."""
        ...


async def converse_on(
    sock: socket.socket, serve: Callable[[Exchange, Ends], Awaitable[bool]], endpoint: Endpoint, received: bytes = b""
) -> None:
    """Serve an accepted socket to its end.

    Args:
        sock: connected; it is closed at the end.
        serve: answers a request.
        endpoint: whose limits and TLS hold.
        received: what was read from it before.
    """
    channel = PlainChannel(sock, idle=endpoint.limits.idle)
    try:
        ends = socket_ends(sock, secure=endpoint.ssl_context is not None)
    except OSError:  # it was reset before we looked
        await channel.aclose()
        return

    async def answer(exchange: Exchange) -> bool:
        return await serve(exchange, ends)

    await converse(channel, ends, answer, endpoint, received)


async def converse(channel: Channel, ends: Ends, serve: Serve, endpoint: Endpoint, received: bytes = b"") -> None:
    """Shake hands, where TLS is spoken, and let requests be answered until one of both sides has enough.

    Args:
        channel: it is closed at the end.
        ends: who speaks with whom.
        serve: answers a request.
        endpoint: whose limits and TLS hold.
        received: what was read before.
    """
    limits, context = endpoint.limits, endpoint.ssl_context
    deadline = anyio.current_time() + limits.head
    try:
        if context is not None and isinstance(channel, PlainChannel):
            secured = TlsChannel(channel, context)
            with anyio.fail_after(limits.head):
                await _shake_hands(secured, ends)
            channel = secured
        connection = Connection(channel, limits, received)
        while (exchange := await connection.next_exchange(deadline)) and await serve(exchange):
            pass
    except (TransferError, TimeoutError) as exc:
        log.info("connection from %s ended: %s", ends.peer, exc if isinstance(exc, TransferError) else "no TLS in time")
    finally:
        await channel.aclose()


async def _shake_hands(channel: TlsChannel, ends: Ends) -> None:
    try:
        await channel.handshake()
    except TransferError as exc:
        audit.warning("access refused: TLS to %s: %s", ends.peer, exc)
        raise


def socket_ends(sock: socket.socket, *, secure: bool) -> Ends:
    """The addresses of a connected socket.

    Raises:
        OSError: it is not connected any more.
    """
    if sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return Ends("127.0.0.1", "local", secure)  # a Unix socket does not leave the machine
    return Ends(str(sock.getsockname()[0]), str(sock.getpeername()[0]), secure)


def stream_ends(stream: ByteStream) -> Ends:
    """The addresses of a byte stream, as far as it tells."""
    own = stream.extra(SocketAttribute.local_address, None)  # noqa: S610  anyio's, not Django's
    peer = stream.extra(SocketAttribute.remote_address, None)  # noqa: S610
    secure = stream.extra(TLSAttribute.ssl_object, None)  # noqa: S610
    return Ends(
        str(own[0]) if isinstance(own, tuple) else None,
        str(peer[0]) if isinstance(peer, tuple) else "local",
        secure is not None,
    )


def own_names() -> tuple[str, ...]:
    """The names that this machine is known by in its own network: the host's, and that with mDNS's suffix."""
    name = socket.gethostname()
    label = name.partition(".")[0]
    return (name, label, f"{label}.local") if label.replace("-", "").isalnum() and name.isascii() else ()
