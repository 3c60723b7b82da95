"""A server: listening sockets, how many may connect, and an orderly end.

Rules:
- without authentication it listens on loopback only, or where `insecure=True` says that this is meant;
- a client too many is told so and closed; it never waits inside;
- at its end, connections are cut off except where a device is doing what it has promised: those get a little time.
  A cancellation cuts those, too: whatever a device has promised is in its boot record by then.
"""

import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Final

import anyio
from anyio.abc import TaskGroup

from mgota.core.access import Credentials, network
from mgota.core.pace import Limits
from mgota.device import Device
from mgota.errors import ConfigError, TransferError
from mgota.gateway import Gateway
from mgota.receiver import Receiver
from mgota.transports.http.channel import PlainChannel
from mgota.transports.http.connection import Connection
from mgota.transports.http.conversation import Endpoint, Life, socket_ends
from mgota.transports.http.endpoint import OnFinished, OtaHttp
from mgota.transports.http.message import App, Authenticator, Response
from mgota.transports.http.older import PATIENCE

log = logging.getLogger("mgota.http")

_BACKLOG: Final = 128
_BATCH: Final = 64
_BREATH: Final = 0.1
# Seconds to wait when the machine has no room for another connection.

_FULL: Final = Response.line("too many connections", 503, (("Retry-After", "1"),))


class Server:
    """A running server; `serve` makes one.

    Args:
        endpoint: what it does with connections.
        listeners: sockets that listen.
    """

    def __init__(self, endpoint: Endpoint, listeners: Sequence[socket.socket]) -> None:
        self.endpoint = endpoint
        self.listeners = tuple(listeners)
        self._lives: dict[Life, anyio.CancelScope] = {}
        self._clients: Counter[str] = Counter()
        self._turned_away = 0

    @property
    def port(self) -> int:
        """Of the first listening socket; 0 if it is no network socket."""
        return _name(self.listeners[0])[1]

    @property
    def url(self) -> str:
        """Such as `http://127.0.0.1:8080`, of the first listening socket."""
        scheme = "https" if self.endpoint.ssl_context else "http"
        host, port = _name(self.listeners[0])
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    async def accept(self, listener: socket.socket, tasks: TaskGroup) -> None:
        """Accept connections for ever, each into a task of its own."""
        while listener.fileno() >= 0:
            await anyio.wait_readable(listener)
            for _ in range(_BATCH):
                try:
                    sock, _address = listener.accept()
                except (BlockingIOError, InterruptedError):
                    break
                except ConnectionError:  # it was gone before we came
                    continue
                except OSError as exc:
                    log.error("cannot accept: %s", exc.strerror)  # noqa: TRY400  no news in the traceback
                    await anyio.sleep(_BREATH)
                    break
                tasks.start_soon(self._run, sock)

    async def _run(self, sock: socket.socket) -> None:
        """One connection, if there is room for it."""
        try:
            client = network(socket_ends(sock, secure=False).peer)
        except OSError:
            sock.close()
            return
        limits = self.endpoint.limits
        if len(self._lives) >= limits.connections or self._clients[client] >= limits.per_address:
            await self._turn_away(sock, client)
            return
        life = Life()
        self._clients[client] += 1
        try:
            with anyio.CancelScope() as scope:
                self._lives[life] = scope
                await self.endpoint.serve_socket(sock, life)
        except Exception:
            log.exception("a connection from %s failed", client)
        finally:
            sock.close()
            del self._lives[life]
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    async def _turn_away(self, sock: socket.socket, client: str) -> None:
        """503, for as many as there is room for clients; others, and clients that expect TLS, are just closed."""
        log.warning("too many connections; one from %s is turned away", client)
        limits = self.endpoint.limits
        if self.endpoint.ssl_context is not None or self._turned_away >= limits.connections:
            sock.close()
            return
        self._turned_away += 1
        connection = Connection(PlainChannel(sock, idle=limits.idle), limits)
        try:
            with anyio.move_on_after(limits.acknowledge):
                await connection.turn_away(_FULL)
                await connection.part(limits.acknowledge)
        except TransferError:
            pass
        finally:
            self._turned_away -= 1
            sock.close()

    async def end(self) -> None:
        """Cut connections off, those last where the device does what it has promised."""
        for life, scope in self._lives.items():
            if not life.acting:
                scope.cancel()
        with anyio.move_on_after(self.endpoint.limits.closing):
            while self._lives and not self.endpoint.resetting:  # noqa: ASYNC110  nothing tells of a reset
                await anyio.sleep(_BREATH / 10)


@asynccontextmanager
async def serve(
    device: Device | Gateway,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    listeners: Sequence[socket.socket] = (),
    auth: Credentials | Authenticator | None = None,
    ssl_context: ssl.SSLContext | None = None,
    app: App | None = None,
    insecure: bool = False,
    allow_hosts: Iterable[str] = (),
    legacy_get: bool = False,
    limits: Limits | None = None,
    on_finished: OnFinished | None = None,
    prefix: str = "/api/ota",
    activate: bool = True,
    page: str | None = None,
    older: str | None = "/api/firmware",
) -> AsyncGenerator[Server]:
    """Serve the OTA routes of a device while the block runs.

    Args:
        device: what is updated: one, or several by name.
        host: name or address to listen on.
        port: 0 picks one.
        listeners: bound sockets to listen on instead; they stay the caller's, and open.
        auth: see `OtaHttp`, as the rest.
        ssl_context: makes it https.
        app: handles every path outside of the prefix.
        insecure: listen beyond loopback without authentication.
        allow_hosts: names, besides its own, that the device may be addressed by.
        legacy_get: let GET commit and roll back.
        limits: what clients are granted.
        on_finished: told how an update ended, by the older routes, too (`mgota.finished`).
        prefix: of the paths.
        activate: False stages an image for later.
        page: where the updater page is, such as "/"; None without one. A gateway has none.
        older: where Mongoose's older routes are; None without them. A gateway has none, they name no device.

    Raises:
        ConfigError: an option contradicts itself, the address cannot be listened on, or it is open to the network and
            has no authentication.
    """
    receiver = (
        Receiver(device, patience=PATIENCE, activate=activate, on_finished=on_finished)
        if older is not None and isinstance(device, Device)
        else None
    )
    endpoint = OtaHttp(
        device,
        auth=auth,
        ssl_context=ssl_context,
        app=app,
        insecure=insecure,
        allow_hosts=allow_hosts,
        legacy_get=legacy_get,
        limits=limits,
        on_finished=on_finished,
        prefix=prefix,
        activate=activate,
        page=page,
        pieces=receiver,
        older=older or "",
    )
    async with _beside(receiver), listening(endpoint, host=host, port=port, listeners=listeners) as server:
        yield server


@asynccontextmanager
async def _beside(receiver: Receiver | None) -> AsyncGenerator[None]:
    """Own the upload that comes in pieces while the block runs."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        if receiver:
            tasks.start_soon(receiver.run)
        try:
            yield
        except Exception as exc:  # noqa: BLE001  raised again below: a task group would wrap it
            failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


@asynccontextmanager
async def listening(
    endpoint: Endpoint, *, host: str, port: int, listeners: Sequence[socket.socket] = ()
) -> AsyncGenerator[Server]:
    """Let an endpoint be reached while the block runs.

    Args:
        endpoint: what is served.
        host: name or address to listen on.
        port: 0 picks one.
        listeners: bound sockets to listen on instead; they stay the caller's, and open.

    Raises:
        ConfigError: the address cannot be listened on, or the endpoint may not be reached there.
    """
    failure: Exception | None = None
    with ExitStack() as stack:
        sockets = _taken(endpoint, listeners) if listeners else await _bound(endpoint, host, port, stack)
        server = Server(endpoint, sockets)
        async with anyio.create_task_group() as tasks:
            for listener in sockets:
                tasks.start_soon(server.accept, listener, tasks)
            log.info("listening on %s", server.url)
            try:
                yield server
            except Exception as exc:  # noqa: BLE001  raised again below: a task group would wrap it
                failure = exc
            await server.end()
            tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _name(listener: socket.socket) -> tuple[str, int]:
    """Address and port; those of a Unix socket only stand for it."""
    if listener.family not in {socket.AF_INET, socket.AF_INET6}:
        return "localhost", 0
    address, port, *_ = listener.getsockname()
    return str(address), int(port)


def _check_reach(endpoint: Endpoint, address: str | None) -> None:
    if not endpoint.may_listen_on(address):
        raise ConfigError(
            f"without authentication only loopback is served, not {address}: configure it, or say insecure=True"
        )


def _taken(endpoint: Endpoint, listeners: Sequence[socket.socket]) -> Sequence[socket.socket]:
    """Sockets that the caller has bound."""
    for listener in listeners:
        if listener.family in {socket.AF_INET, socket.AF_INET6}:
            _check_reach(endpoint, str(listener.getsockname()[0]))
    for listener in listeners:
        listener.setblocking(False)
        listener.listen(_BACKLOG)
    return listeners


async def _bound(endpoint: Endpoint, host: str, port: int, stack: ExitStack) -> Sequence[socket.socket]:
    """Sockets of our own on every address of `host`; the stack closes them."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"there is no port {port}")
    try:
        found = await anyio.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigError(f"{host} has no address to listen on: {exc.strerror}") from exc
    for _, _, _, _, address in found:
        _check_reach(endpoint, str(address[0]))
    sockets: list[socket.socket] = []
    trouble: OSError | None = None
    for family, kind, protocol, _, address in found:
        # All addresses get the same port, the first one's if it was to be picked.
        chosen = sockets[0].getsockname()[1] if sockets else port
        try:
            sock = stack.enter_context(socket.socket(family, kind, protocol))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], chosen, *address[2:]))
            sock.setblocking(False)
            sock.listen(_BACKLOG)
        except OSError as exc:
            if exc.errno not in {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}:
                raise ConfigError(f"cannot listen on {host} port {port}: {exc.strerror}") from exc
            trouble = exc  # this machine has no IPv6, say
        else:
            sockets.append(sock)
    if not sockets:
        raise ConfigError(f"cannot listen on {host} port {port}: {trouble}") from trouble
    return sockets
