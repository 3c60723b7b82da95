"""What an HTTP request is: its head, the faults of its framing, and the status of every error.

Rules:
- framing is judged on the raw bytes of the head, before a parser merges or normalises anything: two readers of
  one request must never disagree about where it ends (request smuggling), so every doubt is a refusal;
- a refusal is a value: a status, one line for a person, and header fields;
- after every refusal the connection is closed.

Numbers are those of RFC 9110 (semantics) and RFC 9112 (HTTP/1.1).
"""

import re
from dataclasses import dataclass
from typing import Final

from mgota.errors import (
    BusyError,
    EmptyImageError,
    FlashError,
    OtaError,
    RejectedError,
    RollbackRefusedError,
    StalledError,
    TooLargeError,
    TransferError,
    WrongImageError,
)

MAX_HEAD_BYTES: Final = 16 * 1024
"""Bytes of request line and header fields together."""

MAX_FIELDS: Final = 100
"""Header fields of one request."""

_HEAD_END = re.compile(rb"\n\r?\n")
# h11's rule, so that both find the same end: a bare LF ends a line too (RFC 9112 section 2.2 allows it).

_LENGTH = re.compile(rb"[0-9]{1,1000}")
# Plain digits only: no sign, no list, no underscore; and not so many that they are work to read.

_OWS = b" \t"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not carried out.

    Args:
        status: the HTTP status.
        reason: one line for a person, without a line end.
        headers: further header fields of the response.
    """

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Ends:
    """The two ends of a connection.

    Args:
        own: the accepted socket's own IP address, or None if it has none (a Unix socket, a stream).
        peer: the client's address, for limits and the audit log.
        secure: whether the connection is TLS; it decides what the server's own origin is.
    """

    own: str | None
    peer: str
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """A request line and its header fields.

    Args:
        method: as sent; methods are case-sensitive.
        target: as sent, query included.
        fields: names in lower case, values as Latin-1 text, in the order sent.
    """

    method: str
    target: str
    fields: tuple[tuple[str, str], ...] = ()

    def values(self, name: str) -> list[str]:
        """Every value of the field `name` (lower case), in the order sent."""
        return [value for field, value in self.fields if field == name]

    def value(self, name: str) -> str | None:
        """The first value of the field `name` (lower case), or None."""
        return next((value for field, value in self.fields if field == name), None)

    @property
    def authority(self) -> str | None:
        """`host[:port]` inside a target in absolute form (`http://host/path`), or None."""
        scheme, separator, rest = self.target.partition("://")
        if not separator or scheme.lower() not in {"http", "https"}:
            return None
        return re.split("[/?]", rest, maxsplit=1)[0]

    @property
    def path(self) -> str:
        """The path, undecoded and without the query: only the exact spelling of a route reaches it."""
        target = self.target
        if self.authority is not None:
            rest = target.partition("://")[2]
            target = rest[len(self.authority) :] or "/"
        return target.partition("?")[0]


def head_end(data: bytes | bytearray, start: int = 0) -> int | None:
    """Where a request's head ends: the offset of the first byte behind its empty line, or None if it is not there yet.

    Args:
        data: what was received so far.
        start: bytes that were searched before.
    """
    match = _HEAD_END.search(data, max(0, start - 2))
    return match.end() if match else None


def head_fault(
    head: bytes | bytearray, *, max_bytes: int = MAX_HEAD_BYTES, max_fields: int = MAX_FIELDS
) -> Refusal | None:
    """What is wrong with the framing that the raw bytes of a head announce.

    Refused are a head that is too large, a folded line, a Content-Length that is no plain number or comes twice
    (even if equal), and a Content-Length beside a Transfer-Encoding.

    Args:
        head: from the request line up to and including the empty line.
        max_bytes: most bytes of a head.
        max_fields: most header fields.
    """
    if len(head) > max_bytes:
        return Refusal(431, f"the request head is larger than {max_bytes} bytes")
    lines = [line.removesuffix(b"\r") for line in bytes(head).split(b"\n")][1:-2]
    if len(lines) > max_fields:
        return Refusal(431, f"more than {max_fields} header fields")
    if any(line[:1] in {b" ", b"\t"} for line in lines):
        return Refusal(400, "folded header lines are not accepted")
    fields = [
        (name.strip(_OWS).lower(), value.strip(_OWS)) for name, _, value in (line.partition(b":") for line in lines)
    ]
    lengths = [value for name, value in fields if name == b"content-length"]
    if len(lengths) > 1:
        return Refusal(400, "more than one Content-Length")
    if lengths and any(name == b"transfer-encoding" for name, _ in fields):
        return Refusal(400, "Content-Length together with Transfer-Encoding")
    if lengths and not _LENGTH.fullmatch(lengths[0]):
        return Refusal(400, "Content-Length is not a number")
    return None


_STATUS: Final[tuple[tuple[type[OtaError], int], ...]] = (
    # The first row that fits counts, so the exceptions stand before their base.
    (TooLargeError, 413),
    (EmptyImageError, 400),
    (RollbackRefusedError, 409),
    (WrongImageError, 412),
    (RejectedError, 422),
    (StalledError, 408),
    (TransferError, 400),
    (FlashError, 500),
    (BusyError, 409),
)


def error_refusal(error: BaseException) -> Refusal:
    """The response to an error: its second level decides the status.

    What mgota did not raise itself is a fault of the program: 500, and nothing of it is told.
    """
    if not isinstance(error, OtaError):
        return Refusal(500, "internal error")
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    return Refusal(status, one_line(str(error)) or type(error).__name__)


def one_line(text: str) -> str:
    """`text` without line ends and control characters, so that it can be logged and sent as one line."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
