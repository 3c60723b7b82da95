"""One request of a client on one connection: where to, and what comes back.

Rules:
- an answer is looked for while the body is on its way: a refusal is read, not run over;
- every wait is bounded, and foreign exceptions end here;
- what is kept of an answer is bounded, and its line is for a person: one line, nothing unprintable.
"""

import json
import os
import socket
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import unquote, urlsplit

import anyio
import h11
from anyio.abc import ByteStream

from mgota.core.http import one_line
from mgota.errors import (
    BusyError,
    ConfigError,
    FlashError,
    OtaError,
    RejectedError,
    StalledError,
    TransferError,
    WrongImageError,
)

PREFIX: Final = "/api/ota"
MAX_ANSWER: Final = 64 * 1024
MAX_LINE: Final = 300

CONNECT: Final = 15.0
"""Most seconds to connect and to agree on keys: a wrong address is seen soon."""

_SLICE: Final = 64 * 1024
# Bytes that have to be taken within the timeout: little enough for the slowest flash.

_LAST_WORDS: Final = 5.0
# Seconds to look for an answer once the connection does not take anything more.


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device is.

    Args:
        secure: https.
        host: without brackets.
        port: a number.
        authority: what stands in the Host field.
        update: the target of an update.
        prefix: what the targets of status, commit and rollback begin with.
    """

    secure: bool
    host: str
    port: int
    authority: str
    update: str
    prefix: str


def parse_url(url: str) -> tuple[Place, tuple[str, str] | None]:
    """Where a URL leads, and the user and password in it. A path that stands in it is that of the update.

    Raises:
        ConfigError: it is no URL of a device.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise ConfigError(f"this is no URL: {exc}") from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError("the URL of a device is http://HOST:PORT or https://HOST:PORT")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError("a URL has neither spaces nor characters beyond ASCII")
    secure = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    place = Place(
        secure=secure,
        host=parts.hostname,
        port=port or (443 if secure else 80),
        authority=host if port is None else f"{host}:{port}",
        update=(path or f"{PREFIX}/update") + (f"?{parts.query}" if parts.query else ""),
        prefix=path.removesuffix("/update") or PREFIX,
    )
    return place, (unquote(parts.username), unquote(parts.password or "")) if parts.username else None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the device said.

    Args:
        status: of HTTP.
        body: its first bytes.
        plain: it is plain text, so that its first line is for a person.
        why: the words beside the status.
    """

    status: int
    body: bytes
    plain: bool
    why: str

    @property
    def line(self) -> str:
        """The device's own line, or the words beside the status."""
        first = self.body.decode("utf-8", "replace").strip().partition("\n")[0] if self.plain else ""
        return one_line(first or self.why)[:MAX_LINE]

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            TransferError: it is none.
        """
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as exc:
            raise TransferError("what answers there is no mgota device: it does not speak JSON") from exc

    def check(self) -> None:
        """Nothing if the device said 200.

        Raises:
            OtaError: the error of the status, with the device's own line.
        """
        if self.status == 200:
            return
        if 300 <= self.status < 400:
            raise ConfigError(f"the device redirects elsewhere (HTTP {self.status}): give that URL instead")
        kind = _KINDS.get(self.status)
        if kind is None:
            kind = FlashError if self.status >= 500 else ConfigError if self.status >= 400 else TransferError
        line = self.line
        raise kind(f"{line} (HTTP {self.status})" if line else f"the device answered HTTP {self.status}")


_KINDS: Final[dict[int, type[OtaError]]] = {
    # Kinds that have arguments of their own are told by their base: what counts is the device's line.
    400: TransferError,
    408: StalledError,
    409: BusyError,
    412: WrongImageError,
    413: RejectedError,
    422: RejectedError,
    429: BusyError,
    503: BusyError,
}


class Client:
    """One request on one connection.

    Args:
        stream: the connection.
        timeout: seconds in which something has to move.
    """

    def __init__(self, stream: ByteStream, timeout: float) -> None:
        self._stream = stream
        self._timeout = timeout
        self._http = h11.Connection(h11.CLIENT)
        self._response: h11.Response | None = None
        self._body = bytearray()
        self._leave = False

    async def begin(self, request: h11.Request) -> None:
        """Send the head of a request."""
        await self._send(self._http.send(request) or b"")

    async def proceeds(self, patience: float) -> bool:
        """Wait for `100 Continue`, and go on without it after `patience` seconds. False if an answer came instead."""
        with anyio.move_on_after(patience):
            while not self._leave and self._response is None:
                await self._read_event()
        return self._response is None

    async def write(self, piece: bytes) -> bool:
        """Send a piece of the body. False if an answer came: then nothing more has to be sent."""
        broken: list[TransferError] = []

        async def listen() -> None:
            try:
                while self._response is None:
                    await self._read_event()
            except TransferError as exc:
                broken.append(exc)
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            try:
                await self._send(self._http.send(h11.Data(data=piece)) or b"")
                tasks.cancel_scope.cancel()
            except TransferError as exc:  # kept for later: a task group would wrap it, and the device may have said why
                broken.append(exc)
                silent = isinstance(exc, StalledError)
                tasks.cancel_scope.deadline = anyio.current_time() + (0 if silent else _LAST_WORDS)
        if broken and self._response is None:
            raise broken[0]
        return self._response is None

    async def end(self, patience: float) -> Answer:
        """Wait for the answer.

        Args:
            patience: seconds.
        """
        if self._http.our_state is h11.SEND_BODY and self._response is None:
            self._http.send(h11.EndOfMessage())  # no bytes: the length was announced
        try:
            with anyio.fail_after(patience):
                while not await self._read_event():
                    pass
        except TimeoutError as exc:
            if self._response is None:
                raise StalledError(f"the device did not answer within {patience:g} s") from exc
        except TransferError:
            if self._response is None:
                raise
        response = self._response
        if response is None:
            raise TransferError("the device closed the connection without an answer")
        kind = dict(response.headers.raw_items()).get(b"Content-Type", b"text/plain")
        return Answer(
            response.status_code, bytes(self._body), kind.lower().startswith(b"text/plain"), _text(response.reason)
        )

    async def _read_event(self) -> bool:
        """Take what is there or comes next. True at the end of the answer. Cancelled anywhere, nothing is lost."""
        try:
            event = self._http.next_event()
        except h11.RemoteProtocolError as exc:
            raise TransferError("what answers there does not speak HTTP") from exc
        if event is h11.NEED_DATA:
            self._http.receive_data(await self._receive())
        elif isinstance(event, h11.InformationalResponse):
            self._leave = self._leave or event.status_code == 100
        elif isinstance(event, h11.Response):
            self._response = event
        elif isinstance(event, h11.Data):
            self._body += event.data
        return (
            isinstance(event, h11.EndOfMessage | h11.ConnectionClosed)
            or event is h11.PAUSED
            or len(self._body) > MAX_ANSWER
        )

    async def _receive(self) -> bytes:
        try:
            return await self._stream.receive()
        except anyio.EndOfStream as exc:
            if self._response is None:
                raise TransferError("the device closed the connection without an answer") from exc
            return b""
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise TransferError("the connection to the device broke off") from exc

    async def _send(self, data: bytes) -> None:
        try:
            for at in range(0, len(data), _SLICE):
                with anyio.fail_after(self._timeout):
                    await self._stream.send(data[at : at + _SLICE])
        except TimeoutError as exc:
            raise StalledError(f"the device took nothing for {self._timeout:g} s") from exc
        except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
            raise TransferError("the connection to the device broke off") from exc


def _text(reason: bytes) -> str:
    return reason.decode("latin-1")


@asynccontextmanager
async def connected(place: Place, context: ssl.SSLContext | None, timeout: float) -> AsyncGenerator[ByteStream]:
    """A connection to a device.

    Args:
        place: where it is.
        context: whom to trust; the system's trust if None.
        timeout: seconds to connect, and to agree on keys.

    Raises:
        TransferError: it cannot be reached, or shows no certificate that is trusted.
    """
    try:
        with anyio.fail_after(min(timeout, CONNECT)):
            stream = await _connect(place, context)
    except TimeoutError as exc:
        raise TransferError(f"{place.authority} does not answer") from exc
    except (OSError, UnicodeError, anyio.EndOfStream, anyio.BrokenResourceError) as exc:
        raise TransferError(f"no connection to {place.authority}: {_why(exc)}") from exc
    async with stream:
        yield stream


async def _connect(place: Place, context: ssl.SSLContext | None) -> ByteStream:
    if not place.secure:
        return await anyio.connect_tcp(place.host, place.port)
    return await anyio.connect_tcp(
        place.host,
        place.port,
        tls=True,
        ssl_context=context or ssl.create_default_context(),
        tls_standard_compatible=False,  # HTTP says itself where an answer ends
    )


def _why(exc: BaseException) -> str:
    """What went wrong, from an exception that may only wrap it."""
    cause = exc.__cause__
    if isinstance(cause, BaseExceptionGroup):  # several addresses were tried
        cause = cast(BaseExceptionGroup[BaseException], cause).exceptions[0]
    if isinstance(cause, OSError):
        exc = cause
    match exc:
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted ({exc.verify_message})"
        case ssl.SSLError():
            return f"TLS failed ({(exc.reason or 'closed').replace('_', ' ').lower()})"
        case socket.gaierror():
            return "there is no such host"
        case OSError(errno=int(number)):
            return os.strerror(number).lower()  # asyncio puts its own words into strerror
        case OSError():
            return str(exc).lower()
        case _:
            return "it closed the connection"
