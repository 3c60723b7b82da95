"""An image on its way from a server to flash, over as many connections as it takes.

One buffer of up to 1 MiB is filled from the network and written, then filled again: the write is awaited before the
next read, so a slow flash slows the server and memory stays as it is. What is in the buffer when a connection breaks is
written, too.
What each answer means, how long to wait and when to give up is decided by `mgota.core.download`.
"""

import mmap
import time
from contextlib import aclosing
from typing import Final, Protocol

import anyio

from mgota.core.download import Download, Verdict
from mgota.core.note import step_between_marks
from mgota.core.pace import Pace
from mgota.errors import TransferError, TruncatedError
from mgota.ports import ReadableBuffer
from mgota.transports.pull.attempts import FinalError, heed, persevere
from mgota.transports.pull.client import Client, Incoming, Web

TICK: Final = 1.0
"""Seconds that a part of a buffer is held back while more trickles in."""


class Sink(Protocol):
    """Where an image goes: an `OtaSession`."""

    size: int
    received: int

    @property
    def validator(self) -> str | None:
        """What the rest of the image can be asked for with."""
        ...

    @validator.setter
    def validator(self, value: str | None) -> None: ...

    async def write(self, chunk: ReadableBuffer) -> None:
        """Store the next bytes."""
        ...

    async def restart(self) -> None:
        """Begin the image anew, from its first byte."""
        ...


async def transfer(client: Client, url: str, sink: Sink, web: Web) -> None:
    """Move an image from a server to flash, or what is missing of it.

    Args:
        client: connections.
        url: of the image.
        sink: where it goes. It may have a part of the image already, and then its validator.
        web: limits and patience.

    Raises:
        TransferError: it could not be had, however often it was tried.
        RejectedError: the server has something else.
        FlashError: it could not be stored.
    """
    download = Download(sink.size, received=sink.received, validator=sink.validator, patience=web.patience)
    image = _Image(sink, download, web)

    async def attempt() -> None:
        async with client.get(url, download.fields()) as incoming:
            await image.take(incoming)

    while sink.received < sink.size:
        await persevere(download.tries, attempt)


class _Image:
    """What of an image is in the buffer and in flash."""

    def __init__(self, sink: Sink, download: Download, web: Web) -> None:
        self._sink = sink
        self._download = download
        self._web = web
        # Pages of its own, which go back at once; and what is in it when the power goes is no more than between marks.
        self._buffer = memoryview(mmap.mmap(-1, min(step_between_marks(sink.size), sink.size)))
        self._filled = 0
        self._since = 0.0

    async def take(self, incoming: Incoming) -> None:
        """Take what a response brings, if it brings something.

        Raises:
            LaterError: it brings nothing now.
            FinalError: nothing will ever come.
            TransferError: it broke off.
        """
        verdict = self._download.answered(incoming.answer, time.time())
        if heed(verdict):
            await self._body(incoming, verdict)

    async def _body(self, incoming: Incoming, verdict: Verdict) -> None:
        if verdict.begin != self._sink.received:
            await self._sink.restart()
        self._sink.validator = verdict.validator
        try:
            await self._fill(incoming, verdict.end)
        finally:
            await self._store()  # a cancellation comes out of it, too: then nothing is stored

    async def _fill(self, incoming: Incoming, end: int) -> None:
        pace = Pace(self._web.limits)
        async with aclosing(incoming.body()) as body:
            while self._download.received < end:
                began = time.monotonic()
                data = b""
                with anyio.move_on_after(pace.patience):
                    data = await anext(body, b"")
                pace.note(time.monotonic() - began, len(data))
                pace.check()
                if not data:
                    raise TruncatedError(self._download.received, end)
                await self._add(data, end)

    async def _add(self, data: bytes, end: int) -> None:
        view = memoryview(data)[: end - self._download.received]
        self._spend(len(view))
        while view:
            if not self._filled:
                self._since = time.monotonic()
            taken = min(len(view), len(self._buffer) - self._filled)
            self._buffer[self._filled : self._filled + taken] = view[:taken]
            self._filled += taken
            view = view[taken:]
            if self._filled == len(self._buffer) or time.monotonic() - self._since > TICK:
                await self._store()

    def _spend(self, count: int) -> None:
        try:
            self._download.took(count)
        except TransferError as exc:
            raise FinalError(exc) from exc

    async def _store(self) -> None:
        if self._filled:
            count, self._filled = self._filled, 0
            await self._sink.write(self._buffer[:count])
