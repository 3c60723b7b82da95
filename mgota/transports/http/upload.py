"""The body of an update, from the socket to flash through one fixed buffer.

The buffer is filled, then written, then filled again: the write is awaited before the next read, so a slow flash
slows the sender and memory stays as it is. Never more is read than the image has left.
"""

from typing import Final, Protocol

import anyio
import anyio.lowlevel

from mgota.core.pace import Limits, Pace
from mgota.errors import TruncatedError
from mgota.ports import ReadableBuffer
from mgota.transports.http.channel import Channel

TICK: Final = 1.0
"""Seconds: the longest single wait, and how long a part of a buffer is held back. The kernel may hide what trickles
in behind its low-water mark, so a wait that ends without a wake-up looks all the same."""


class Sink(Protocol):
    """Where an image goes: an `OtaSession`."""

    size: int
    received: int

    async def write(self, chunk: ReadableBuffer) -> None:
        """Store the next bytes."""
        ...


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
        begun = anyio.current_time()
        with anyio.move_on_after(min(pace.patience, TICK)):
            await channel.wait_readable()
        count = channel.recv_now(view)
        pace.note(anyio.current_time() - begun, count or 0)
        pace.check()
        if count is not None:
            return count


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
    pace = Pace(limits)
    buffer = memoryview(bytearray(min(limits.buffer, sink.size)))
    first = first[: sink.size]
    while len(first) > len(buffer):
        await sink.write(first[: len(buffer)])
        first = first[len(buffer) :]
    buffer[: len(first)] = first
    filled = len(first)
    while filled or sink.received < sink.size:
        filled = await _fill(channel, buffer[: sink.size - sink.received], filled, pace, sink)
        await sink.write(buffer[:filled])
        filled = 0
        await anyio.lowlevel.checkpoint()  # a flash that is only memory never waits by itself
    channel.expect(1)


async def _fill(channel: Channel, view: memoryview, filled: int, pace: Pace, sink: Sink) -> int:
    """Fill `view` from `filled` on, or as far as a tick of waiting gets: how much is in it then."""
    waited = pace.waited
    while filled < len(view):
        channel.expect(sink.size - sink.received - filled)
        count = await receive(channel, view[filled:], pace)
        if not count:
            raise TruncatedError(sink.received + filled, sink.size)
        filled += count
        if pace.waited - waited >= TICK:
            break
    return filled
