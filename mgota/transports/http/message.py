"""What an application behind this server sees: a request, and the response that it returns."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from mgota.core.http import Ends, Head
from mgota.errors import TooLargeError

BodySource = Callable[[], AsyncGenerator[bytes]]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer.

    Args:
        status: a final status, 200 to 599.
        body: all of it.
        content_type: of the body.
        headers: further header fields. `Content-Length` and `Connection` are the server's.
    """

    status: int = 200
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise ValueError(f"{self.status} is not a final HTTP status")

    @classmethod
    def line(cls, text: str, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Self:
        """One line of plain text."""
        return cls(status, f"{text}\n".encode(), headers=headers)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Self:
        """A JSON document."""
        return cls(status, f"{json.dumps(value)}\n".encode(), "application/json")


class Request:
    """A request, its body still on the way. Async iteration gives the body as it comes.

    Args:
        head: request line and header fields.
        ends: who speaks with whom.
        source: where the body comes from; None where it must not be read.
    """

    def __init__(self, head: Head, ends: Ends, source: BodySource | None = None) -> None:
        self._head = head
        self._ends = ends
        self._source = source

    @property
    def method(self) -> str:
        """Such as GET."""
        return self._head.method

    @property
    def target(self) -> str:
        """Path and query as sent."""
        return self._head.target

    @property
    def path(self) -> str:
        """The path as sent, without the query."""
        return self._head.path

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """Names in lower case, and values, in the order sent."""
        return self._head.fields

    def header(self, name: str) -> str | None:
        """The first value of a header field, or None."""
        return self._head.value(name.lower())

    @property
    def peer(self) -> str:
        """The client's address."""
        return self._ends.peer

    @property
    def secure(self) -> bool:
        """Whether the connection is TLS."""
        return self._ends.secure

    async def __aiter__(self) -> AsyncGenerator[bytes]:
        """The body as it comes.

        Raises:
            TransferError: it ended early, was malformed, or stalled.
        """
        if self._source is None:
            raise RuntimeError("the body of this request is not the reader's")
        source, self._source = self._source, None
        async for chunk in source():
            yield chunk

    async def read(self, limit: int = 64 * 1024) -> bytes:
        """The whole body.

        Args:
            limit: most bytes to take.

        Raises:
            TooLargeError: there are more.
            TransferError: it ended early, was malformed, or stalled.
        """
        length = int(self.header("content-length") or 0)
        if length > limit:
            raise TooLargeError(length, limit)
        body = bytearray()
        async for chunk in self:
            body += chunk
            if len(body) > limit:
                raise TooLargeError(len(body), limit)
        return bytes(body)


App = Callable[[Request], Awaitable[Response]]
"""An application's own handler."""

Authenticator = Callable[[Request], Awaitable[bool]]
"""Decides from a request's head who may. A refused request that carries Authorization counts as a failure."""
