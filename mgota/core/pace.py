"""How long a server waits for a client.

Only seconds spent waiting for the client count, and the bytes that they brought; the time that flash takes is the
device's own. Three bounds, each for its own kind of trouble:
- *idle*: the client went silent;
- *minimum rate*: the client sends, but so slowly that it never ends. A bucket of seconds: waiting empties it, each
  received byte adds 1/rate, and it holds no more than it began with, so a fast start buys no slow end;
- *total*, optional: the patience for one body. It is never the only bound, or a large image on a slow line could
  not be sent at all.
"""

from dataclasses import dataclass
from math import inf

from mgota.core.http import MAX_FIELDS, MAX_HEAD_BYTES
from mgota.errors import ConfigError, StalledError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server grants its clients. Times are seconds.

    Args:
        head: from the first wait for a request, TLS handshake included, to the end of its head.
        keep_alive: between two requests on one connection.
        idle: longest silence inside a body, longest wait for a client to take a response, and for `on_finished`.
        minimum_rate: bytes a second below which a body counts as stalled; 0 turns the rule off.
        grace: seconds of waiting that the minimum rate forgives.
        total: most seconds of waiting for one body, or None.
        linger: after a refusal, how long a client that still sends may take to read it.
        acknowledge: how long a client may take to read the reply and close before the device acts on what it promised.
        closing: how long the end of a server waits for what was promised in a reply.
        drain: bytes of a refused body that are read and dropped.
        buffer: bytes of the largest single write to flash.
        connections: connections in all.
        per_address: connections of one address (IPv6: of one /64).
        head_bytes: bytes of a request head.
        fields: header fields of a request.

    Raises:
        ConfigError: a limit that nothing could keep.
    """

    head: float = 10.0
    keep_alive: float = 30.0
    idle: float = 30.0
    minimum_rate: float = 1024.0
    grace: float = 30.0
    total: float | None = None
    linger: float = 5.0
    acknowledge: float = 2.0
    closing: float = 2.0
    drain: int = 64 * 1024 * 1024
    buffer: int = 512 * 1024
    connections: int = 64
    per_address: int = 16
    head_bytes: int = MAX_HEAD_BYTES
    fields: int = MAX_FIELDS

    def __post_init__(self) -> None:
        positive = (self.head, self.keep_alive, self.idle, self.grace, self.buffer, self.connections, self.per_address)
        if min(positive) <= 0 or (self.total is not None and self.total <= 0):
            raise ConfigError("a limit must be more than nothing")
        if min(self.minimum_rate, self.linger, self.acknowledge, self.closing, self.drain) < 0:
            raise ConfigError("a limit must not be negative")


class Pace:
    """The patience with one body.

    Args:
        limits: `idle`, `minimum_rate`, `grace` and `total` of them.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._silent = 0.0
        self._waited = 0.0
        self._credit = limits.grace

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the client so far."""
        return self._waited

    @property
    def patience(self) -> float:
        """Seconds that may be waited on from here if nothing comes; 0 if it has run out."""
        limits = self._limits
        total = inf if limits.total is None else limits.total - self._waited
        credit = self._credit if limits.minimum_rate else inf
        return max(0.0, min(limits.idle - self._silent, credit, total))

    def note(self, seconds: float, received: int) -> None:
        """`seconds` were spent waiting, and brought `received` bytes."""
        limits = self._limits
        self._waited += seconds
        self._silent = 0.0 if received else self._silent + seconds
        if limits.minimum_rate:
            self._credit = min(limits.grace, self._credit - seconds + received / limits.minimum_rate)

    def check(self) -> None:
        """Say that the patience has run out, if it has.

        Raises:
            StalledError: the client was silent for too long, sends too slowly, or took too long in all.
        """
        limits = self._limits
        if self._silent >= limits.idle:
            raise StalledError(f"nothing came for {limits.idle:g} s")
        if limits.total is not None and self._waited >= limits.total:
            raise StalledError(f"not complete after {limits.total:g} s of waiting")
        if limits.minimum_rate and self._credit <= 0:
            raise StalledError(f"slower than {limits.minimum_rate:g} bytes/s")
