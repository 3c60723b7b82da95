"""The OTA routes on one connection, from the head of a request to what the device does.

    decide from the head  ->  begin  ->  100 Continue  ->  body to flash  ->  seal
    ->  record stored  ->  reply 200, close  ->  select, reset

Rules:
- the order of the refusals is `mgota.core.edge`'s, and none of them reads a byte of a body;
- an error leaves the session first, so the device is free again before the client is told;
- what was promised in a reply is done, whether or not the client stays to read it;
- whatever an application's function raises ends its own request and nothing else.
"""

import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import anyio
from anyio.abc import ByteStream

from mgota.core.access import Access, Credentials, FailureBudget, refusal_for, too_many_failures
from mgota.core.edge import Action, Decision, Edge, not_unpacked, too_large
from mgota.core.http import Ends, Refusal, error_refusal
from mgota.core.origin import is_loopback, plain_address
from mgota.core.pace import Limits
from mgota.core.unpack import packings
from mgota.device import Device
from mgota.errors import BusyError, ConfigError, OtaError, TransferError
from mgota.finished import tell_finished
from mgota.gateway import Gateway
from mgota.pieces import Pieces
from mgota.session import OtaSession
from mgota.transports.http.channel import StreamChannel
from mgota.transports.http.connection import Exchange
from mgota.transports.http.conversation import Life, converse, converse_on, own_names, stream_ends
from mgota.transports.http.message import App, Authenticator, Request, Response
from mgota.transports.http.older import TRUE, Older
from mgota.transports.http.packed import UnpackingSink
from mgota.transports.http.tls import check_context
from mgota.transports.http.upload import upload
from mgota.trial import check_commit, check_rollback, commit, rollback
from mgota.verified import VerifiedImage

log = logging.getLogger("mgota.http")
audit = logging.getLogger("mgota.audit")

OnFinished = Callable[[VerifiedImage | OtaError], Awaitable[Response | None]]
"""Told how an update ended; what it returns is sent instead of the default reply."""

_AUDITED: Final = frozenset({401, 403, 421, 429})
_OK: Final = Response.line("ok")
_LOOPBACK_ONLY: Final = Refusal(403, "no authentication is configured: only loopback connections are served")


class OtaHttp:
    """The OTA routes of a device, or of several, for connections that somebody else accepted.

    Args:
        device: what is updated; a `Gateway` has the routes of each device below its name, and is itself told how
            updates ended.
        auth: credentials, or a callback that decides; None lets anybody in who reaches it.
        ssl_context: makes every socket TLS; at least 1.2. With `verify_mode` CERT_REQUIRED, clients must show a
            certificate, which counts as authentication.
        app: handles every path outside of the prefix.
        insecure: allow connections from elsewhere without authentication.
        allow_hosts: names, besides its own, that the device may be addressed by.
        legacy_get: let GET commit and roll back.
        limits: what clients are granted.
        on_finished: told how an update ended (`mgota.finished`); those in pieces are its `Receiver`'s to tell.
        prefix: of the paths.
        activate: False stages an image: the application puts it on trial later (`Device.staged`).
        page: where the updater page is, such as "/"; None without one. Who reaches the device may read it; to do
            anything with it takes the credentials.
        pieces: a `Receiver` that runs, for Mongoose's older routes; None without them.
        older: where they are.

    Raises:
        ConfigError: an option contradicts itself.
    """

    def __init__(
        self,
        device: Device | Gateway,
        *,
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
        pieces: Pieces | None = None,
        older: str = "/api/firmware",
    ) -> None:
        if ssl_context is not None:
            check_context(ssl_context)
        if isinstance(device, Gateway) and (on_finished or pieces):
            raise ConfigError(
                "a gateway is told of its updates itself (Gateway(on_finished=…)), and takes none in pieces"
            )
        self.device = device
        self.limits = limits or Limits()
        self.ssl_context = ssl_context
        self._auth = auth
        self._app = app
        self._insecure = insecure
        self._on_finished = on_finished
        self._activate = activate
        self._budget = FailureBudget()
        names = (*allow_hosts, *own_names())
        self._edge = Edge(
            prefix=prefix,
            legacy_get=legacy_get,
            has_app=app is not None,
            allow_hosts=names,
            page=page,
            older=older if pieces else None,
            devices=device.names if isinstance(device, Gateway) else None,
        )
        self._older = Older(device, pieces) if pieces and isinstance(device, Device) else None
        self._prefix = prefix
        self._page: Response | None = None

    @property
    def resetting(self) -> bool:
        """Whether the device is about to reset; of several, all of them."""
        return self.device.resetting if isinstance(self.device, Gateway) else self.device.live.resetting

    def _device(self, decision: Decision) -> Device:
        """The device that a request is for.

        Raises:
            BusyError: it is away.
        """
        return self.device.device(decision.device) if isinstance(self.device, Gateway) else self.device

    def may_listen_on(self, address: str | None) -> bool:
        """Whether connections to this address of ours may be served: without authentication, only loopback.

        Args:
            address: an IP address; None is unknown.
        """
        mutual = self.ssl_context is not None and self.ssl_context.verify_mode is ssl.CERT_REQUIRED
        if self._insecure or mutual or self._auth is not None:
            return True
        return address is not None and is_loopback(str(plain_address(address)))

    async def handle(self, connection: socket.socket | ByteStream, *, received: bytes = b"") -> None:
        """Serve one accepted connection to its end. It is closed then.

        Args:
            connection: a socket, or a byte stream (which has its TLS already, if any).
            received: what was read from it before.
        """
        if isinstance(connection, socket.socket):
            await self.serve_socket(connection, Life(), received)
        else:
            stream = StreamChannel(connection, idle=self.limits.idle)
            ends = stream_ends(connection)
            await converse(stream, ends, lambda exchange: self._serve(exchange, ends, Life()), self, received)

    async def serve_socket(self, sock: socket.socket, life: Life, received: bytes = b"") -> None:
        """`handle` for a server that wants to know what a connection is at."""
        await converse_on(sock, lambda exchange, ends: self._serve(exchange, ends, life), self, received)

    async def _serve(self, exchange: Exchange, ends: Ends, life: Life) -> bool:
        """Answer one request: whether another may follow on this connection."""
        try:
            decision = await self._decide(exchange, ends)
            if isinstance(decision, Refusal):
                return await self._refuse(exchange, ends, decision)
            match decision.action:
                case Action.STATUS | Action.DEVICES:
                    return await self._reply(exchange, ends, await self._status(decision))
                case Action.PAGE:
                    return await self._reply(exchange, ends, self._page_of_device())
                case Action.APP:
                    return await self._run_app(exchange, ends)
                case Action.PIECE | Action.SLOTS:
                    return await self._serve_older(exchange, ends, decision, life)
                case Action.UPDATE | Action.COMMIT | Action.ROLLBACK:
                    return await self._change(exchange, ends, decision, life)
        except OtaError as exc:
            return await self._fail(exchange, ends, exc)
        except Exception as exc:
            log.exception("a request from %s failed", ends.peer)
            return await self._fail(exchange, ends, exc)

    async def _status(self, decision: Decision) -> Response:
        if isinstance(self.device, Gateway) and decision.action is Action.DEVICES:
            return Response.json({"devices": await self.device.status()})
        return Response.json({**(await self._device(decision).status()).as_dict(), "packings": packings()})

    def _page_of_device(self) -> Response:
        """The updater page, put together when somebody asks for it: most devices never show theirs."""
        from mgota.transports.http.page import page_of_device  # noqa: PLC0415  the same

        self._page = self._page or page_of_device(self._prefix)
        return self._page

    async def _fail(self, exchange: Exchange, ends: Ends, exc: Exception) -> bool:
        if exchange.answered:
            log.error("after the reply to %s: %s", ends.peer, exc)
            return False
        return await self._refuse(exchange, ends, error_refusal(exc))

    async def _decide(self, exchange: Exchange, ends: Ends) -> Decision | Refusal:
        """The order of `mgota.core.edge`."""
        head = exchange.head
        if exchange.fault is not None:
            return exchange.fault
        refusal = self._edge.admit(head, ends)
        if refusal is None and self._edge.guards(head):
            refusal = await self._authenticate(exchange, ends)
        elif refusal is None and self._edge.is_page(head) and not self.may_listen_on(ends.own):
            refusal = _LOOPBACK_ONLY
        decision = refusal or self._edge.route(head)
        if isinstance(decision, Decision) and decision.action is Action.UPDATE:
            unfit = not_unpacked(decision) or too_large(decision, await self._device(decision).flash.capacity())
            return unfit or decision
        return decision

    async def _authenticate(self, exchange: Exchange, ends: Ends) -> Refusal | None:
        if not self.may_listen_on(ends.own):
            return _LOOPBACK_ONLY
        if self._auth is None:
            return None
        head = exchange.head
        presents = head.value("authorization") is not None
        wait = self._budget.wait(ends.peer, anyio.current_time())
        if presents and wait > 0:
            return too_many_failures(wait)
        if isinstance(self._auth, Credentials):
            access = self._auth.check(head)
        elif await self._auth(Request(head, ends)):
            access = Access.GRANTED
        else:
            access = Access.WRONG if presents else Access.MISSING
        if access is Access.WRONG:
            self._budget.fail(ends.peer, anyio.current_time())
        return refusal_for(access, scripted=head.values("x-mgota") == ["1"])

    async def _run_app(self, exchange: Exchange, ends: Ends) -> bool:
        if self._app is None:  # pragma: no cover  the edge has no such route then
            raise RuntimeError("there is no application")
        response = await self._app(Request(exchange.head, ends, exchange.body))
        return await self._reply(exchange, ends, response)

    async def _change(self, exchange: Exchange, ends: Ends, decision: Decision, life: Life) -> bool:
        """Change a device. One of several resets while the gateway runs on: it does not return here, but ends this."""
        change = self._update if decision.action is Action.UPDATE else self._act
        if not isinstance(self.device, Gateway):
            return await change(exchange, ends, decision, life)
        with self.device.using(decision.device):
            return await change(exchange, ends, decision, life)
        if not exchange.answered:
            raise BusyError(f"the device {decision.device} restarts: try again later")
        return False

    async def _update(self, exchange: Exchange, ends: Ends, decision: Decision, life: Life) -> bool:
        """Stream an image to flash and put it on trial."""
        connection = exchange.connection

        async def announce() -> None:
            # The record is stored: from here on nothing that happens to the client may stop the update.
            await self._promise(exchange, ends, await self._finished(decision, image) or _OK)

        try:
            async with OtaSession(self._device(decision), size=decision.size) as ota:
                await exchange.proceed()
                sink = UnpackingSink(ota, decision.packing, decision.length) if decision.packing else ota
                await upload(connection.channel, bytes(connection.pending), sink, self.limits)
                if isinstance(sink, UnpackingSink):
                    sink.finish()
                image = await ota.seal()
                life.acting = True
                await ota.activate(image, reset=self._activate, announce=announce)
            if not self._activate:
                await announce()
        except OtaError as exc:
            life.acting = False
            response = None if exchange.answered else await self._finished(decision, exc)
            if response is None:
                raise
            await self._reply(exchange, ends, response, close=True)
            await connection.part(self.limits.linger)
        return False

    async def _serve_older(self, exchange: Exchange, ends: Ends, decision: Decision, life: Life) -> bool:
        if self._older is None:  # pragma: no cover  the edge has no such route then
            raise RuntimeError("there are no older routes")
        if decision.action is Action.SLOTS:
            return await self._reply(exchange, ends, await self._older.slots())
        keep = False

        async def tell(response: Response, last: bool) -> None:
            nonlocal keep
            life.acting = last
            if last:
                await self._promise(exchange, ends, response)
            else:
                keep = await self._reply(exchange, ends, response)

        await self._older.take(decision, exchange.body(), tell)
        return keep

    async def _finished(self, decision: Decision, result: VerifiedImage | OtaError) -> Response | None:
        """What the application answers to the end of an update, if it does."""
        device = self.device
        told = device.finished_of(decision.device) if isinstance(device, Gateway) else self._on_finished
        said = await tell_finished(told, result, self.limits.idle)
        return said if isinstance(said, Response) else None

    async def _act(self, exchange: Exchange, ends: Ends, decision: Decision, life: Life) -> bool:
        """Commit or roll back: check, reply, and do it when the connection has closed."""
        device, image = self._device(decision), decision.image
        if decision.action is Action.ROLLBACK:
            await check_rollback(device, sha256=image)
        else:
            await check_commit(device, sha256=image)
        life.acting = True
        await self._promise(exchange, ends, TRUE if decision.older else _OK)
        if decision.action is Action.ROLLBACK:
            await rollback(device, sha256=image)
        else:
            await commit(device, sha256=image)
        return False

    async def _promise(self, exchange: Exchange, ends: Ends, response: Response) -> None:
        """Reply and close before the device acts; bounded in time, and a client that is gone is no obstacle."""
        with anyio.move_on_after(2 * self.limits.acknowledge + 1):
            try:
                await self._reply(exchange, ends, response, close=True)
            except TransferError as exc:
                log.info("%s did not wait for the reply: %s", ends.peer, exc)
            await exchange.connection.part(self.limits.acknowledge)

    async def _reply(self, exchange: Exchange, ends: Ends, response: Response, *, close: bool = False) -> bool:
        head = exchange.head
        log.info("%s %s from %s: %d", head.method or "-", head.path or "-", ends.peer, response.status)
        keep = await exchange.respond(response, close=close)
        if not keep and not close:
            await exchange.connection.part(self.limits.linger)
        return keep

    async def _refuse(self, exchange: Exchange, ends: Ends, refusal: Refusal) -> bool:
        """Answer with a refusal, and close so that the client can read it."""
        head = exchange.head
        if refusal.status in _AUDITED:
            what = (refusal.status, ends.peer, head.method, head.path, refusal.reason)
            audit.warning("access refused: %d to %s for %s %s: %s", *what)
        await self._reply(exchange, ends, Response.line(refusal.reason, refusal.status, refusal.headers))
        return False
