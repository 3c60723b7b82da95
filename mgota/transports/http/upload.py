"""The body of an update, from the socket to flash through one fixed buffer.

The buffer is filled, then written, then filled again: the write is awaited before the next read, so a slow flash
slows the sender and memory stays as it is. Never more is read than the image has left.

Where reading is a matter of a socket and writing one of a blocking medium, both happen in one thread for as long as
bytes keep coming (`_Upload.pump`): a change of threads for each of them costs more than the checksum. As soon as the
client lets it wait, the thread ends and the event loop waits. Everything else is done by `_Upload.step` alone.
"""

import mmap
import time
from typing import Final, Protocol

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from mgota.core.pace import Limits, Pace
from mgota.errors import TruncatedError
from mgota.ports import ReadableBuffer
from mgota.transports.http.channel import TICK, Channel, receive

LINGER: Final = 0.02
"""Seconds that the pump waits for more before its thread ends. A cancellation takes as long, and one write."""


class Sink(Protocol):
    """Where an image goes: an `OtaSession`."""

    size: int
    received: int

    @property
    def blocking(self) -> bool:
        """Whether `write_blocking` may be called, in a thread."""
        ...

    async def write(self, chunk: ReadableBuffer) -> None:
        """Store the next bytes."""
        ...

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        """`write`, for a caller that is in a thread already."""
        ...


async def upload(channel: Channel, first: bytes, sink: Sink, limits: Limits) -> None:
    """Move the rest of an image from a channel to flash.

    Args:
        channel: where it comes from.
        first: its beginning, as far as it came together with the head; what is beyond the image is ignored.
        sink: where it goes.
        limits: `buffer`, and the patience.

    Raises:
        TruncatedError: the client went away before the end.
        StalledError: it went silent, or crawls.
        FlashError: the bytes could not be stored.
    """
    body = _Upload(channel, sink, limits)
    await body.begin(first[: sink.size])
    while not body.complete:
        await body.step()
        if body.threaded and not body.complete:
            await anyio.to_thread.run_sync(body.pump)
        else:
            await anyio.lowlevel.checkpoint()  # a flash that is only memory never waits by itself
    channel.expect(1)


class _Upload:
    """A buffer on its way from a channel to flash, over and over."""

    def __init__(self, channel: Channel, sink: Sink, limits: Limits) -> None:
        self._channel = channel
        self._sink = sink
        self._pace = Pace(limits)
        # Pages of its own: copying to a buffer just behind a page's start costs several times as much (4K aliasing),
        # and they go back to the system at once.
        self._buffer = memoryview(mmap.mmap(-1, min(limits.buffer, sink.size)))
        self._filled = 0
        self.threaded = sink.blocking and channel.fileno() is not None

    @property
    def complete(self) -> bool:
        """Whether the whole image is stored."""
        return self._sink.received >= self._sink.size

    @property
    def _room(self) -> memoryview:
        """What of the buffer can still be filled."""
        return self._buffer[self._filled : self._sink.size - self._sink.received]

    @property
    def _left(self) -> int:
        """Bytes that are still to come."""
        return self._sink.size - self._sink.received - self._filled

    async def begin(self, first: bytes) -> None:
        """Take what came together with the head."""
        while len(first) > len(self._buffer):
            await self._sink.write(first[: len(self._buffer)])
            first = first[len(self._buffer) :]
        self._buffer[: len(first)] = first
        self._filled = len(first)
        if first and not self._room:
            await self._store()  # it was all that there is, or a whole buffer

    async def step(self) -> None:
        """Wait for bytes and take them. Without a thread: until the buffer is full or a tick went by, and store it."""
        waited = self._pace.waited
        while room := self._room:
            self._channel.expect(self._left)
            self._took(await receive(self._channel, room, self._pace))
            if self.threaded or self._pace.waited - waited >= TICK:
                break
        if not self.threaded:
            await self._store()

    async def _store(self) -> None:
        await self._sink.write(self._buffer[: self._filled])
        self._filled = 0

    def _took(self, count: int) -> None:
        if not count:
            raise TruncatedError(self._sink.received + self._filled, self._sink.size)
        self._filled += count

    def pump(self) -> None:
        """Take and store for as long as bytes keep coming. Blocks; runs in a thread of its own."""
        while not self.complete:
            anyio.from_thread.check_cancelled()
            more = self._fill()
            if self._filled:
                self._sink.write_blocking(self._buffer[: self._filled])
                self._filled = 0
            if not more:
                return

    def _fill(self) -> bool:
        """Fill the buffer; False if the client let us wait."""
        while room := self._room:
            self._channel.expect(self._left)
            count = self._channel.recv_now(room)
            if count is None:
                begun = time.monotonic()
                ready = self._channel.wait_blocking(LINGER)
                self._pace.note(time.monotonic() - begun, 0)
                self._pace.check()
                if not ready:
                    return False
            else:
                self._pace.note(0.0, count)
                self._took(count)
        return True
