"""The notify protocol of systemd: datagrams by which a program tells its supervisor how it is.

    READY=1            it started and is of use
    WATCHDOG=1         it lives; the next one has to come within `WATCHDOG_USEC` microseconds
    STATUS=text        a line for a person
    STOPPING=1         it ends
    X_MGOTA=RESET      ours: it asks `mgota run` to be started again, for another slot may have been selected

`NOTIFY_SOCKET` names the socket: a path, or `@name` in the abstract name space (sd_notify(3)). Rules:
- a datagram is at most 4096 bytes, as systemd's own (NOTIFY_BUFFER_MAX); lines that are no `KEY=value` are ignored;
- a feed that cannot be delivered is lost and never an error: whoever waits for it will act;
- a request to reset has to arrive, so it is tried until it does.
"""

import errno
import logging
import os
import re
import socket
from collections.abc import Mapping

import anyio
import anyio.lowlevel

from mgota.errors import ConfigError

log = logging.getLogger("mgota.notify")

NOTIFY_SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"

MAX_DATAGRAM = 4096
"""Bytes of the largest datagram (systemd, src/core/manager.c: NOTIFY_BUFFER_MAX, PIPE_BUF)."""

MAX_PATH = 107
"""Bytes of the longest path of a socket: `sun_path` without its final NUL (unix(7))."""

READY = {"READY": "1"}
FEED = {"WATCHDOG": "1"}
STOPPING = {"STOPPING": "1"}
RESET = {"X_MGOTA": "RESET"}

_KEY = re.compile(r"[A-Z0-9_]{1,64}")
_PATIENCE = 5.0  # seconds that a request waits for room in the supervisor's queue


def encode_notice(fields: Mapping[str, str]) -> bytes:
    """The datagram of these fields.

    Raises:
        ConfigError: a key or a value cannot be sent, or they are too many.
    """
    for key, value in fields.items():
        if not _KEY.fullmatch(key) or "\n" in value:
            raise ConfigError(f"{key!r} is nothing that can be sent to the notify socket")
    data = "\n".join(f"{key}={value}" for key, value in fields.items()).encode("utf-8", "replace")
    if len(data) > MAX_DATAGRAM:
        raise ConfigError(f"a notice of {len(data)} bytes is longer than {MAX_DATAGRAM}")
    return data


def decode_notice(datagram: bytes) -> dict[str, str]:
    """The fields of a datagram, whatever was sent: what is no field is left out, what is too long is no datagram."""
    if len(datagram) > MAX_DATAGRAM:
        return {}
    lines = (line.partition("=") for line in datagram.decode("utf-8", "replace").split("\n"))
    return {key: value for key, equals, value in lines if equals and _KEY.fullmatch(key)}


def asks(notice: Mapping[str, str], fields: Mapping[str, str]) -> bool:
    """Whether a notice holds all of these fields."""
    return fields.items() <= notice.items()


class Notifier:
    """The sender's end.

    Args:
        address: the value of `NOTIFY_SOCKET`.

    Raises:
        ConfigError: no socket can have this address.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(("/", "@")) or len(os.fsencode(address)) > MAX_PATH or "\0" in address:
            raise ConfigError(f"NOTIFY_SOCKET is neither a path nor @name of up to {MAX_PATH} bytes: {address!r}")
        self.address = address

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Notifier | None":
        """The notifier that `NOTIFY_SOCKET` names, or None if nobody listens."""
        address = environ.get(NOTIFY_SOCKET)
        return cls(address) if address else None

    async def ready(self) -> None:
        """Say READY=1: the program started and is of use."""
        await self.request(READY)

    def tell(self, fields: Mapping[str, str]) -> bool:
        """Send without waiting.

        Returns:
            Whether it was delivered.

        Raises:
            ConfigError: the fields cannot be sent.
        """
        try:
            self._send(encode_notice(fields))
        except OSError as exc:
            log.warning("%s hears nothing: %s", self.address, exc.strerror)
            return False
        return True

    async def request(self, fields: Mapping[str, str]) -> None:
        """Send, and wait for room in the listener's queue.

        Raises:
            ConfigError: nobody listens, or the fields cannot be sent.
        """
        data = encode_notice(fields)
        try:
            with anyio.fail_after(_PATIENCE):
                while not self._has_room_for(data):  # noqa: ASYNC110  a full queue raises no event
                    await anyio.sleep(0.02)
        except TimeoutError as exc:
            raise ConfigError(f"{self.address} takes nothing more: its reader does not answer") from exc
        except OSError as exc:
            raise ConfigError(f"nobody listens at {self.address}: {exc.strerror}") from exc
        await anyio.lowlevel.checkpoint()

    def _has_room_for(self, data: bytes) -> bool:
        try:
            self._send(data)
        except OSError as exc:
            if exc.errno not in (errno.EAGAIN, errno.ENOBUFS):
                raise
            return False
        return True

    def _send(self, data: bytes) -> None:
        path = os.fsencode(self.address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(data, b"\0" + path[1:] if path.startswith(b"@") else path)


class NotifyWatchdog:
    """The launcher's or systemd's watchdog over this program; implements `Watchdog`.

    Whoever listens keeps the trial's window itself, so that there is nothing to arm; and its watchdog counts from the
    first feed on, so that a program that never feeds is not watched. Who feeds has started: the first feed says so.

    Args:
        notifier: who listens.
    """

    stoppable = True
    limit: float | None = None

    def __init__(self, notifier: Notifier) -> None:
        self.notifier = notifier
        self._ready = False

    async def arm(self, timeout: float) -> None:
        """Nothing to do: the launcher keeps the window."""

    async def feed(self) -> None:
        """Send WATCHDOG=1, the first time with READY=1."""
        self.notifier.tell(FEED if self._ready else {**READY, **FEED})
        self._ready = True
        await anyio.lowlevel.checkpoint()

    async def disarm(self) -> None:
        """Nothing to do: the launcher looks at the record."""


class NotifyReset:
    """Being started again by the launcher; implements `Resetter`.

    Args:
        notifier: who listens.
        forever: wait to be killed, as a program does that asks for itself. Who asks for another goes on.
    """

    def __init__(self, notifier: Notifier, *, forever: bool = True) -> None:
        self.notifier = notifier
        self.forever = forever

    async def reset(self) -> None:
        """Ask for a reset.

        Raises:
            ConfigError: nobody listens.
        """
        await self.notifier.request(RESET)
        if self.forever:
            await anyio.sleep_forever()
