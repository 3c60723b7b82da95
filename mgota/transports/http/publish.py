"""An update server: manifests and images of one directory, and what devices told when they asked.

    async with publish(Path("/srv/firmware"), host="0.0.0.0", port=8080) as server:
        ...

    GET /manifest.json     the file, with an entity tag; HEAD, If-None-Match, Range and If-Range, as RFC 9110 has them
    GET /devices           who asked, with which version and boot state: JSON, or a page for a browser

Rules:
- what lies in the directory is for everybody, and nothing else is: links that lead out of it, hidden files and whatever
  is no regular file are not there;
- a file is opened once and sent from there: one that is replaced meanwhile is sent to its end as it was;
- one piece of a file is in memory at a time;
- what devices told is nobody's business: it takes credentials, or a client on this machine.
"""

import logging
import os
import socket
import ssl
import stat
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from mgota.core.access import Access, Credentials, FailureBudget, refusal_for, too_many_failures
from mgota.core.http import Ends, Head, Refusal
from mgota.core.origin import Hosts, foreign_page, is_loopback
from mgota.core.pace import Limits
from mgota.core.shelf import NOTHING_HERE, Portion, parts_of, portion_of, tag_of
from mgota.core.sightings import Sighting, Sightings
from mgota.errors import ConfigError
from mgota.transports.http.connection import Exchange
from mgota.transports.http.conversation import Life, converse_on, own_names
from mgota.transports.http.message import Response
from mgota.transports.http.server import Server, listening
from mgota.transports.http.tls import check_context

log = logging.getLogger("mgota.publish")
audit = logging.getLogger("mgota.audit")

PIECE: Final = 256 * 1024
"""Bytes of a file that are in memory at a time, for each client."""

DEVICES: Final = "/devices"
LIMITS: Final = Limits(connections=512, per_address=64)
"""Many devices may be behind one address."""

_METHODS: Final = ("GET", "HEAD")
_TYPES: Final = {".json": "application/json", ".html": "text/html; charset=utf-8", ".txt": "text/plain; charset=utf-8"}


@dataclass(frozen=True, slots=True)
class _Opened:
    """A file that is open, and what is known of it."""

    descriptor: int
    size: int
    tag: str


class Publisher:
    """What is behind an update server: an `Endpoint`.

    Args:
        directory: what is published.
        auth: who may see the devices; None lets clients on this machine.
        ssl_context: makes it https.
        allow_hosts: names, besides addresses, under which the devices may be seen.
        limits: what clients are granted.
        clock: Unix seconds.

    Raises:
        ConfigError: there is no such directory, or an option contradicts itself.
    """

    resetting = False

    def __init__(
        self,
        directory: Path,
        *,
        auth: Credentials | None = None,
        ssl_context: ssl.SSLContext | None = None,
        allow_hosts: Iterable[str] = (),
        limits: Limits = LIMITS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if ssl_context is not None:
            check_context(ssl_context)
        self.root = Path(os.path.realpath(directory))
        if not self.root.is_dir():
            raise ConfigError(f"{directory} is no directory")
        self.limits = limits
        self.ssl_context = ssl_context
        self.sightings = Sightings()
        self._auth = auth
        self._hosts = Hosts((*allow_hosts, *own_names()))
        self._budget = FailureBudget()
        self._clock = clock

    def may_listen_on(self, address: str | None) -> bool:  # noqa: ARG002  an Endpoint's
        """Anywhere: what is published is for everybody."""
        return True

    async def serve_socket(self, sock: socket.socket, life: Life, received: bytes = b"") -> None:  # noqa: ARG002  the same
        """Serve one accepted connection to its end."""
        await converse_on(sock, self._serve, self, received)

    async def _serve(self, exchange: Exchange, ends: Ends) -> bool:
        head = exchange.head
        refusal = exchange.fault
        if refusal is None and head.method not in _METHODS:
            refusal = Refusal(405, f"use {' or '.join(_METHODS)}", (("Allow", ", ".join(_METHODS)),))
        if refusal is None and head.path == DEVICES:
            refusal = self._may_see(head, ends)
            if refusal is None:
                return await self._reply(exchange, ends, self._devices(head))
        if refusal is None:
            return await self._file(exchange, ends)
        return await self._refuse(exchange, ends, refusal)

    async def _reply(self, exchange: Exchange, ends: Ends, response: Response) -> bool:
        self._tell(exchange, ends, response.status)
        keep = await exchange.respond(response)
        if not keep:
            await exchange.connection.part(self.limits.linger)
        return keep

    async def _refuse(self, exchange: Exchange, ends: Ends, refusal: Refusal) -> bool:
        if refusal.status in {401, 403, 421, 429}:
            audit.warning("access refused: %d to %s: %s", refusal.status, ends.peer, refusal.reason)
        return await self._reply(exchange, ends, Response.line(refusal.reason, refusal.status, refusal.headers))

    def _tell(self, exchange: Exchange, ends: Ends, status: int) -> None:
        head = exchange.head
        log.info("%s %s from %s: %d", head.method or "-", head.path or "-", ends.peer, status)

    # --- files

    async def _file(self, exchange: Exchange, ends: Ends) -> bool:
        head = exchange.head
        opened = await to_thread.run_sync(open_below, self.root, head.path)
        if opened is None:
            return await self._refuse(exchange, ends, NOTHING_HERE)
        try:
            portion = portion_of(head, opened.size, opened.tag)
            if isinstance(portion, Refusal):
                return await self._refuse(exchange, ends, portion)
            self.sightings.note(head.target, peer=ends.peer, now=self._clock())
            self._tell(exchange, ends, portion.status)
            kind = _TYPES.get(Path(head.path).suffix, "application/octet-stream")
            response = Response(portion.status, content_type=kind, headers=portion.headers)
            async with aclosing(_pieces(opened.descriptor, portion)) as pieces:
                keep = await exchange.respond_in_pieces(response, portion.size, pieces)
        finally:
            os.close(opened.descriptor)
        if not keep:
            await exchange.connection.part(self.limits.linger)
        return keep

    # --- devices

    def _may_see(self, head: Head, ends: Ends) -> Refusal | None:
        refusal = self._hosts.check(head, ends) or foreign_page(head, secure=ends.secure)
        if refusal:
            return refusal
        if self._auth is None:
            local = ends.peer == "local" or is_loopback(ends.peer)
            return None if local else Refusal(403, "the devices are shown on the machine itself, or to who has a token")
        now, presents = anyio.current_time(), head.value("authorization") is not None
        wait = self._budget.wait(ends.peer, now)
        if presents and wait > 0:
            return too_many_failures(wait)
        access = self._auth.check(head)
        if access is Access.WRONG:
            self._budget.fail(ends.peer, now)
        return refusal_for(access)

    def _devices(self, head: Head) -> Response:
        found, now = self.sightings.latest(), self._clock()
        if "text/html" not in (head.value("accept") or ""):
            devices = [device.as_dict() for device in found]
            response = Response.json({"now": now, "devices": devices})
            return Response(200, response.body, response.content_type, (("Vary", "Accept"),))
        headers = (
            ("Vary", "Accept"),
            ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        )
        return Response(200, _page(found, now).encode(), "text/html; charset=utf-8", headers)


def open_below(root: Path, path: str) -> _Opened | None:
    """Open a regular file below `root`; None if the path leads to none. Blocks.

    Links are followed as long as they stay below: the real path is found first, and then walked from the root without
    following any, so that a link which is changed meanwhile leads nowhere.

    Args:
        root: a real path.
        path: of a request, as sent.
    """
    names = parts_of(path)
    if names is None:
        return None
    real = Path(os.path.realpath(root.joinpath(*names)))
    if not real.is_relative_to(root) or real == root:
        return None
    try:
        descriptor = _walked(root, real.relative_to(root).parts)
    except OSError as exc:
        if not isinstance(exc, FileNotFoundError | NotADirectoryError):
            log.warning("%s cannot be published: %s", real, exc.strerror)
        return None
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        os.close(descriptor)
        return None
    return _Opened(descriptor, facts.st_size, tag_of(facts.st_ino, facts.st_size, facts.st_mtime_ns))


def _walked(root: Path, names: Sequence[str]) -> int:
    """Open what the names lead to from the root on, none of them a link."""
    *directories, name = names
    here = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for directory in directories:
            there = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = there
        # Without O_NONBLOCK a pipe would be waited for.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
    finally:
        os.close(here)


async def _pieces(descriptor: int, portion: Portion) -> AsyncGenerator[bytes]:
    """A part of an open file. One that became shorter ends early, which the connection notices."""
    at, end = portion.start, portion.start + portion.size
    while at < end:
        piece = await to_thread.run_sync(os.pread, descriptor, min(PIECE, end - at), at)
        if not piece:
            return
        yield piece
        at += len(piece)


_HEAD: Final = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Devices</title>
<style>
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem }
div { overflow-x: auto }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #8888 }
.alarm { font-weight: bold }
</style>
<h1>Devices</h1>
"""

_COLUMNS: Final = ("Device", "Version", "Boot state", "Architecture", "Asked for", "Address", "Last seen", "Times")


def _page(devices: Sequence[Sighting], now: float) -> str:
    if not devices:
        return f"{_HEAD}<p>No device has asked yet since this server started.</p>\n"
    heads = "".join(f'<th scope="col">{column}</th>' for column in _COLUMNS)
    rows = "\n".join(_row(device, now) for device in devices)
    caption = (
        f"<caption>{len(devices)} since this server started; what they say of themselves is not verified</caption>"
    )
    return f"{_HEAD}<div><table>{caption}\n<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n"


def _row(device: Sighting, now: float) -> str:
    boot = escape(device.boot)
    alarm = f'<strong class="alarm">{boot}</strong>' if device.boot == "ROLLED BACK" else boot
    cells = [escape(device.version), alarm, escape(device.arch), escape(device.path), escape(device.peer)]
    seen = f"{max(now - device.seen, 0):.0f} s ago"
    rest = "".join(f"<td>{cell}</td>" for cell in (*cells, seen, str(device.count)))
    return f'<tr><th scope="row">{escape(device.id)}</th>{rest}</tr>'


def publish(
    directory: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listeners: Sequence[socket.socket] = (),
    auth: Credentials | None = None,
    ssl_context: ssl.SSLContext | None = None,
    allow_hosts: Iterable[str] = (),
    limits: Limits = LIMITS,
) -> AbstractAsyncContextManager[Server]:
    """Publish a directory while the block runs.

    Args:
        directory: manifests and images.
        host: name or address to listen on.
        port: 0 picks one.
        listeners: bound sockets to listen on instead; they stay the caller's, and open.
        auth: who may see the devices; None lets clients on this machine.
        ssl_context: makes it https.
        allow_hosts: names, besides addresses, under which the devices may be seen.
        limits: what clients are granted.

    Raises:
        ConfigError: there is no such directory, or the address cannot be listened on.
    """
    endpoint = Publisher(directory, auth=auth, ssl_context=ssl_context, allow_hosts=allow_hosts, limits=limits)
    return listening(endpoint, host=host, port=port, listeners=listeners)
