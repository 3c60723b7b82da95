"""The launcher's ends of the notify protocol: where its program talks to it, and where it talks to systemd.

Rules:
- the socket lies in the device's directory with mode 0600: who may write there may ask for a reset;
- a path too long for a socket is reached through /proc/PID/fd, so that the directory may lie anywhere;
- towards systemd the launcher stands for its program: READY=1 once, WATCHDOG=1 whenever the program feeds, and of its
  own while there is no program that could.
"""

import os
import socket
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from math import inf
from pathlib import Path

import anyio
import anyio.lowlevel

from mgota.errors import ConfigError
from mgota.linux.notify import (
    FEED,
    MAX_DATAGRAM,
    MAX_PATH,
    READY,
    STOPPING,
    WATCHDOG_PID,
    WATCHDOG_USEC,
    Notifier,
    decode_notice,
)

SOCKET = "notify"


class Listener:
    """The socket that a program's notices come to. Made by `listen`.

    Args:
        receiver: bound and non-blocking.
        address: what NOTIFY_SOCKET says.
    """

    def __init__(self, receiver: socket.socket, address: str) -> None:
        self._receiver = receiver
        self.address = address

    async def receive(self) -> dict[str, str]:
        """The next notice. One that was taken is returned: a cancellation comes before it, or leaves it where it is."""
        await anyio.lowlevel.checkpoint()  # a program that floods the socket starves nobody
        while (notice := self._take()) is None:
            await anyio.wait_readable(self._receiver)
        return notice

    def pending(self) -> list[dict[str, str]]:
        """Everything that was sent and not received yet."""
        notices: list[dict[str, str]] = []
        # Bounded, because who sends may never stop; a queue is rarely longer than 10 (net.unix.max_dgram_qlen).
        while len(notices) < 1000 and (notice := self._take()) is not None:
            notices.append(notice)
        return notices

    def _take(self) -> dict[str, str] | None:
        # Descriptors that were sent along (BARRIER=1, FDSTORE=1) are closed by the kernel: recv takes none.
        try:
            return decode_notice(self._receiver.recv(MAX_DATAGRAM + 1))
        except BlockingIOError:
            return None


@contextmanager
def listen(directory: Path) -> Generator[Listener]:
    """A listener in this directory, for the length of a `with` block.

    Raises:
        ConfigError: the socket cannot be made.
    """
    path = directory / SOCKET
    anchor = -1
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            address = str(path)
            try:
                if len(os.fsencode(path)) > MAX_PATH:
                    anchor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    address = f"/proc/{os.getpid()}/fd/{anchor}/{SOCKET}"
                receiver.setblocking(False)
                os.fchmod(receiver.fileno(), 0o600)  # before it has a name: nobody else ever gets in
                path.unlink(missing_ok=True)
                receiver.bind(address)
            except OSError as exc:
                raise ConfigError(f"cannot listen at {path}: {exc.strerror or exc}") from exc
            yield Listener(receiver, address)
    finally:
        with suppress(OSError):
            path.unlink()
        if anchor >= 0:
            os.close(anchor)


class Systemd:
    """The service manager that started the launcher, if one did.

    Args:
        notifier: where it listens; None if there is none.
        timeout: seconds between two feeds, at most; None if it waits for none.
    """

    def __init__(self, notifier: Notifier | None, timeout: float | None) -> None:
        self._notifier = notifier
        self.timeout = timeout if notifier else None
        self.feeds_itself = True
        """No program runs that has begun to feed: the launcher's own life is what counts."""
        self._ready = False
        self._heard = -inf

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Systemd":
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say (sd_watchdog_enabled(3)).

        Raises:
            ConfigError: NOTIFY_SOCKET is no address.
        """
        meant = environ.get(WATCHDOG_PID, str(os.getpid())) == str(os.getpid())
        microseconds = environ.get(WATCHDOG_USEC, "")
        timeout = int(microseconds) / 1e6 if meant and microseconds.isdecimal() and int(microseconds) else None
        return cls(Notifier.from_environment(environ), timeout)

    def status(self, line: str) -> None:
        """Tell a person who asks `systemctl status`."""
        self._tell({"STATUS": line})

    def forward(self, notice: Mapping[str, str]) -> None:
        """Pass on what the program says of itself: that it is ready, once, and that it lives."""
        if not self._ready and READY.items() <= notice.items():
            self._ready = True
            self._tell(READY)
        if FEED.items() <= notice.items():
            self.feeds_itself = False
            self._heard = time.monotonic()
            self._tell(FEED)

    def lives(self, patience: float | None) -> bool:
        """Whether the program that has begun to feed still does; while none has, the launcher's own life counts.

        Args:
            patience: seconds between two feeds, at most; None counts none.
        """
        return self.feeds_itself or patience is None or time.monotonic() - self._heard <= patience

    def stopping(self) -> None:
        """The launcher ends."""
        self._tell(STOPPING)

    async def keep_fed(self) -> None:
        """Feed, for ever, while no program does."""
        if self.timeout is None:
            return
        while True:
            if self.feeds_itself:
                self._tell(FEED)
            await anyio.sleep(self.timeout / 3)

    def _tell(self, fields: Mapping[str, str]) -> None:
        if self._notifier:
            self._notifier.tell(fields)
