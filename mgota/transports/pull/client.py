"""Requests: one GET at a time, answers as heads and streams. The only module that knows httpx.

Rules:
- redirections are followed by our own rules (`mgota.core.weburl`), never by the library's;
- whatever httpx and the sockets under it raise comes out as a `TransferError`, or as a `ConfigError` where only a
  person can help: a certificate that is not trusted, here or there, a proxy that is none;
- a body is never decoded and never held: who iterates gets what came, and may stop at any byte.
"""

import re
import ssl
import sys
from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self, cast
from urllib.parse import unquote, urlsplit

import anyio

from mgota.core.download import Answer, FinalError, Patience
from mgota.core.http import one_line
from mgota.core.pace import Limits
from mgota.core.weburl import MAX_REDIRECTS, REDIRECTS, Origin, origin, redirected, shown
from mgota.errors import ConfigError, OtaError, StalledError, TransferError


@contextmanager
def _no_command_line() -> Generator[None]:
    """Keep httpx from loading a command of its own, which needs click and rich: None makes an import fail."""
    modules, name = cast(dict[str, Any], sys.modules), "httpx._main"
    absent = name not in modules
    if absent:
        modules[name] = None
    try:
        yield
    finally:
        if absent:
            del modules[name]


with _no_command_line():
    import httpx

MAX_METADATA: Final = 64 * 1024
"""Bytes of the largest manifest that is read."""

AGENT: Final = "mgota"

_REFUSED: Final = re.compile("ALERT.*(CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED|HANDSHAKE_FAILURE)")
"""What OpenSSL calls the alerts of a server that wants a client certificate, or another one (RFC 8446 section 6.2)."""

READ: Final = 256 * 1024
"""Bytes that a connection gives at once, if they are there: what asyncio reads in one go."""


@dataclass(frozen=True, kw_only=True)
class Web:
    """How a device reaches servers. Times are seconds.

    Args:
        ssl_context: whom to trust and what certificate to show; the system's trust if omitted.
        proxy: URL of a proxy; the environment's (`HTTPS_PROXY`, `NO_PROXY` and so on) if omitted.
        allow_http: fetch over `http:` even what is not signed.
        allow_origins: where a redirection may lead besides the origin that was asked, such as `https://cdn.example`.
        headers: further header fields, such as a token. They go to the origin of the metadata only.
        limits: `idle`, `minimum_rate` and `grace` of one try; `total` is not used.
        patience: tries, waits, and bytes in all.
        metadata: for one answer with metadata, from connecting to its last byte.
        deadline: for a whole pull, or None.

    Raises:
        ConfigError: no server could be reached so.
    """

    ssl_context: ssl.SSLContext | None = None
    proxy: str | None = field(default=None, repr=False)
    allow_http: bool = False
    allow_origins: Iterable[str] = ()
    headers: Iterable[tuple[str, str]] = field(default=(), repr=False)
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    metadata: float = 30.0
    deadline: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "allow_origins", frozenset(map(origin, self.allow_origins)))
        object.__setattr__(self, "headers", tuple(self.headers))
        if self.metadata <= 0 or (self.deadline is not None and self.deadline <= 0):
            raise ConfigError("a time to wait must be more than nothing")
        if self.ssl_context is not None and self.ssl_context.protocol is ssl.PROTOCOL_TLS_SERVER:
            raise ConfigError("a client needs an SSLContext made with PROTOCOL_TLS_CLIENT")

    @property
    def origins(self) -> frozenset[Origin]:
        """`allow_origins`, parsed."""
        return cast(frozenset[Origin], self.allow_origins)


class Incoming:
    """A response whose head is there.

    Args:
        response: of httpx.
        url: that was asked in the end: what a relative one in the body is relative to (RFC 3986 section 5.1.3).
    """

    def __init__(self, response: httpx.Response, url: str) -> None:
        self._response = response
        self.url = url
        fields = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in response.headers.raw)
        self.answer = Answer(response.status_code, tuple(fields))

    async def body(self) -> AsyncGenerator[bytes]:
        """What comes, as it comes.

        Raises:
            TransferError: the connection broke before the end.
        """
        with _translated(str(self._response.url)):
            async for data in self._response.aiter_raw():
                yield data


class Client:
    """Connections for the length of one pull; an async context manager.

    Args:
        web: how servers are reached.
        home: a URL; further header fields go to its origin only.
    """

    def __init__(self, web: Web, home: str) -> None:
        self._web = web
        self._home = origin(home)
        self._clients: dict[bool, httpx.AsyncClient] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self._stack.aclose()

    async def _client(self, *, secure: bool) -> httpx.AsyncClient:
        """Made when it is needed: the system's trust is some megabytes, and worth nothing over `http:`."""
        if secure not in self._clients:
            web = self._web
            trust = web.ssl_context or (ssl.create_default_context() if secure else False)
            try:
                made = httpx.AsyncClient(
                    verify=trust, proxy=web.proxy, timeout=web.limits.idle, headers={"User-Agent": AGENT}
                )
            except (ValueError, httpx.InvalidURL, ImportError) as exc:  # of a proxy: which, they do not say
                raise ConfigError(f"the proxy cannot be used: {one_line(str(exc))}") from exc
            self._clients[secure] = await self._stack.enter_async_context(made)
        return self._clients[secure]

    @asynccontextmanager
    async def get(self, url: str, fields: Iterable[tuple[str, str]]) -> AsyncGenerator[Incoming]:
        """Ask for something, redirected as often as is allowed.

        Args:
            url: of what.
            fields: further header fields.

        Raises:
            TransferError: there is no answer, or one that leads nowhere.
            ConfigError: it leads where it must not, or to a server that is not trusted.
        """
        for _ in range(MAX_REDIRECTS + 1):
            async with self._asked(url, list(fields)) as incoming:
                if incoming.answer.status not in REDIRECTS:
                    yield incoming
                    return
                url = self._further(url, incoming.answer)
        raise FinalError(f"the server redirects more than {MAX_REDIRECTS} times")

    def _further(self, url: str, answer: Answer) -> str:
        try:
            return redirected(url, answer.value("location"), allowed=self._web.origins)
        except TransferError as exc:
            raise FinalError(str(exc)) from exc

    @asynccontextmanager
    async def _asked(self, url: str, fields: list[tuple[str, str]]) -> AsyncGenerator[Incoming]:
        scheme, *_ = here = origin(url)
        client = await self._client(secure=scheme == "https")
        if here == self._home:
            fields = [*fields, *self._web.headers]
        with _translated(url):
            target, user = _without_user(url)
            request = client.build_request("GET", target, headers=fields)
            response = await client.send(request, stream=True, auth=user)
        _read_more(response)
        try:
            yield Incoming(response, url)
        finally:
            with anyio.CancelScope(shield=True), _quiet():
                await response.aclose()


def _read_more(response: httpx.Response) -> None:
    """Let this connection give `READ` bytes at once.

    httpcore asks for 64 KiB, and anyio cuts what it has into pieces of that: more than half of a download's work.
    """
    stream: Any = response.extensions.get("network_stream")
    if stream is None or hasattr(stream.read, "asks_for"):  # none, or used before
        return
    read = stream.read

    async def more(max_bytes: int, timeout: float | None = None) -> bytes:
        found: bytes = await read(max(max_bytes, READ), timeout)
        return found

    more.asks_for = READ  # type: ignore[attr-defined]
    with suppress(AttributeError):  # a stream whose methods are fixed works as it is
        stream.read = more


def _without_user(url: str) -> tuple[str, tuple[str, str] | None]:
    """A URL without name and password, so that nobody logs them; and these."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    clean = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return clean, (unquote(parts.username), unquote(parts.password or ""))


@contextmanager
def _quiet() -> Generator[None]:
    """Closing what is broken may fail, and nobody needs to know."""
    try:
        yield
    except (httpx.HTTPError, OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return


@contextmanager
def _translated(url: str) -> Generator[None]:
    """What is raised inside, in this library's words."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as exc:
        raise _told(exc, url) from exc


def _told(exc: Exception, url: str) -> OtaError:
    cause = _cause(exc)
    where = shown(url)
    match cause:
        case ssl.SSLCertVerificationError():
            return ConfigError(f"{where}: its certificate is not trusted ({cause.verify_message})")
        case ssl.SSLError() if _REFUSED.search(cause.reason or ""):
            return ConfigError(f"{where}: the server refuses, or misses, a certificate of this client ({cause.reason})")
        case httpx.TimeoutException():
            return StalledError(f"{where}: nothing came for too long")
        case httpx.UnsupportedProtocol() | httpx.InvalidURL() | UnicodeError():
            return ConfigError(f"{where} cannot be asked: {one_line(str(cause))}")
        case _:
            return TransferError(f"{where}: {one_line(str(cause)) or type(cause).__name__}")


def _cause(exc: BaseException) -> BaseException:
    """What lies at the bottom of an exception that others were made of, if it says more."""
    found: BaseException = exc
    seen: BaseException | None = exc
    for _ in range(8):
        seen = seen and (seen.__cause__ or seen.__context__)
        if isinstance(seen, BaseExceptionGroup):  # several addresses were tried
            seen = cast(BaseExceptionGroup[BaseException], seen).exceptions[0]
        if isinstance(seen, ssl.SSLError):
            return seen
        if isinstance(seen, OSError) and seen.errno is not None:
            found = seen
    return found


async def read_some(incoming: Incoming, limit: int) -> bytes:
    """A small body, whole.

    Args:
        incoming: its response.
        limit: most bytes.

    Raises:
        TransferError: it is larger, or broke off.
    """
    data = bytearray()
    async with aclosing(incoming.body()) as body:
        async for some in body:
            data += some
            if len(data) > limit:
                raise FinalError(f"the metadata has more than {limit} bytes")
    return bytes(data)
