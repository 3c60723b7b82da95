"""A connection as this server wants it: take what is there now, wait when nothing is, send all of it.

`recv_now` never waits, so the caller decides how long a wait may take and counts its seconds. Rules:
- a connection that was reset reads as one that ended; only sending to it is an error;
- nothing is read ahead of what the caller asks for: what flash cannot take yet stays with the kernel, and TCP slows
  the sender. (anyio's SocketStream reads on by itself, which is why bodies do not pass through it.)
"""

import select
import socket
import time
from contextlib import suppress
from typing import Final, Protocol

import anyio
from anyio.abc import ByteStream

from mgota.core.pace import Pace
from mgota.errors import TransferError

LOW_WATER: Final = 512 * 1024
"""Bytes that are worth a wake-up inside a large body."""

TICK: Final = 1.0
"""Seconds: the longest single wait, and how long a part of a buffer is held back. The kernel may hide what trickles
in behind its low-water mark, so a wait that ends without a wake-up looks all the same."""

_BLOCK: Final = 64 * 1024
_GONE: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Channel(Protocol):
    """Bytes to and from one client."""

    def recv_now(self, view: memoryview) -> int | None:
        """Take what is there into the front of `view`: so many bytes, 0 at the end, None if nothing is there yet."""
        ...

    async def wait_readable(self) -> None:
        """Wait until `recv_now` has something to say."""
        ...

    def expect(self, size: int) -> None:
        """So many more bytes are to come: waking up for a few of them is not worth it. A hint."""
        ...

    def fileno(self) -> int | None:
        """The socket's number, if there is one and `wait_blocking` may be called."""
        ...

    def wait_blocking(self, timeout: float) -> bool:
        """`wait_readable` for a thread: whether there was something within `timeout` seconds."""
        ...

    async def send(self, data: bytes) -> None:
        """Send all of `data`.

        Raises:
            TransferError: the client is gone, or does not take it.
        """
        ...

    async def finish(self) -> None:
        """Say that nothing more will be sent. What comes from now on is only good for being thrown away."""
        ...

    async def aclose(self) -> None:
        """Close it. Never raises."""
        ...


class PlainChannel:
    """A socket, read and written directly.

    Args:
        sock: connected; it becomes non-blocking and belongs to the channel.
        idle: seconds that the client may refuse to take more of a response.
    """

    def __init__(self, sock: socket.socket, *, idle: float) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._idle = idle
        self._low_water = 1

    def recv_now(self, view: memoryview) -> int | None:
        """See `Channel`."""
        try:
            return self._sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return 0

    async def wait_readable(self) -> None:
        """See `Channel`."""
        await anyio.wait_readable(self._sock)

    def expect(self, size: int) -> None:
        """See `Channel`. Linux then wakes us for the end of the stream and for errors all the same (socket(7))."""
        low_water = max(1, min(size, LOW_WATER))
        if low_water == self._low_water:
            return
        self._low_water = low_water
        with suppress(OSError):  # it is only a hint
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water)

    def fileno(self) -> int | None:
        """See `Channel`."""
        return self._sock.fileno()

    def wait_blocking(self, timeout: float) -> bool:
        """See `Channel`. A socket that was closed meanwhile is ready: to end."""
        poll = select.poll()
        with suppress(OSError, ValueError):
            poll.register(self._sock, select.POLLIN)
            return bool(poll.poll(timeout * 1000))
        return True

    async def send(self, data: bytes) -> None:
        """See `Channel`."""
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self._sock.send(view) :]
                except BlockingIOError:
                    with anyio.fail_after(self._idle):
                        await anyio.wait_writable(self._sock)
        except OSError as exc:  # TimeoutError is one
            raise TransferError("the client is gone") from exc

    async def finish(self) -> None:
        """See `Channel`."""
        self.expect(1)
        with suppress(OSError):  # it is gone already
            self._sock.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        """See `Channel`."""
        self._sock.close()


class StreamChannel:
    """A byte stream of anyio, for whoever has no socket to hand over.

    Args:
        stream: it belongs to the channel.
        idle: seconds that the client may refuse to take more of a response.
    """

    def __init__(self, stream: ByteStream, *, idle: float) -> None:
        self._stream = stream
        self._idle = idle
        self._stash = memoryview(b"")
        self._ended = False

    def recv_now(self, view: memoryview) -> int | None:
        """See `Channel`."""
        count = min(len(view), len(self._stash))
        if not count:
            return 0 if self._ended else None
        view[:count] = self._stash[:count]
        self._stash = self._stash[count:]
        return count

    async def wait_readable(self) -> None:
        """See `Channel`."""
        if self._stash or self._ended:
            return
        try:
            self._stash = memoryview(await self._stream.receive(_BLOCK))
        except (anyio.EndOfStream, *_GONE):
            self._ended = True

    def expect(self, size: int) -> None:
        """See `Channel`."""

    def fileno(self) -> int | None:
        """See `Channel`. There may be no socket, and what there is belongs to the stream."""
        return None

    def wait_blocking(self, timeout: float) -> bool:
        """Not offered: there is no `fileno`."""
        raise RuntimeError(f"a byte stream cannot be waited for in a thread, not even {timeout:g} s")

    async def send(self, data: bytes) -> None:
        """See `Channel`."""
        try:
            with anyio.fail_after(self._idle):
                await self._stream.send(data)
        except _GONE as exc:
            raise TransferError("the client is gone") from exc

    async def finish(self) -> None:
        """See `Channel`."""
        with suppress(*_GONE, NotImplementedError):  # anyio's TLS stream cannot close one half
            await self._stream.send_eof()

    async def aclose(self) -> None:
        """See `Channel`."""
        with anyio.move_on_after(1, shield=True), suppress(*_GONE):
            await self._stream.aclose()


async def receive(channel: Channel, view: memoryview, pace: Pace) -> int:
    """At least one byte into `view`, or 0 at the end.

    Args:
        channel: where from.
        view: not empty.
        pace: the patience with this body.

    Raises:
        StalledError: the patience ran out.
    """
    count = channel.recv_now(view)
    if count is not None:
        pace.note(0.0, count)
        return count
    while True:
        begun = time.monotonic()
        with anyio.move_on_after(min(pace.patience, TICK)):
            await channel.wait_readable()
        count = channel.recv_now(view)
        pace.note(time.monotonic() - begun, count or 0)
        pace.check()
        if count is not None:
            return count
