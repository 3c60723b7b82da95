"""An image on its way from a server to flash, over as many connections as it takes.

One buffer of up to 1 MiB is filled from the network and written, then filled again: the write is awaited before the
next read, so a slow flash slows the server and memory stays as it is. What is in the buffer when a connection breaks is
written, too.
What each answer means, how long to wait and when to give up is decided by `mgota.core.download`.
One patience holds from connecting to the last byte of a body: a head that never ends is a stall like any other.
"""

import mmap
import time
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

import anyio

from mgota.core.download import Download, FinalError, Verdict
from mgota.core.note import step_between_marks
from mgota.core.pace import Pace
from mgota.errors import StalledError, TransferError, TruncatedError
from mgota.ports import ReadableBuffer
from mgota.transports.pull.attempts import heed, persevere
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


@dataclass(frozen=True, slots=True)
class _Answered:
    """An answer with a body to take, and its connection."""

    incoming: Incoming
    verdict: Verdict
    pace: Pace
    stack: AsyncExitStack


class Transfer:
    """Moves one image from a server to flash, or what is missing of it; an async context manager.

    Args:
        client: connections.
        url: of the image.
        size: its bytes, as announced.
        web: limits and patience.
    """

    def __init__(self, client: Client, url: str, size: int, web: Web) -> None:
        self._client = client
        self._url = url
        self._size = size
        self._web = web
        self._download: Download | None = None
        self._first: _Answered | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave()

    async def look(self) -> None:
        """Ask for all of the image until the server has it, and keep the answer for `into`.

        Raises:
            TransferError: it could not be had, however often it was tried.
        """
        download = self._new()

        async def attempt() -> None:
            self._first = await self._ask(download)

        while self._first is None:
            await persevere(download.tries, attempt)
        self._download = download

    async def into(self, sink: Sink) -> None:
        """Store the image.

        Args:
            sink: where it goes. It may have a part of the image already, and then its validator.

        Raises:
            TransferError: it could not be had, however often it was tried.
            RejectedError: the server has something else.
            FlashError: it could not be stored.
        """
        if sink.received:
            await self._leave()
        download, self._download = self._download or self._new(sink), None
        image = _Image(sink, download, self._web)

        async def attempt() -> None:
            answered, self._first = self._first, None
            answered = answered or await self._ask(download)
            if answered:
                async with answered.stack:
                    await image.take(answered)

        while sink.received < sink.size:
            await persevere(download.tries, attempt, held=True)

    def _new(self, sink: Sink | None = None) -> Download:
        received, validator = (sink.received, sink.validator) if sink else (0, None)
        web = self._web
        return Download(self._size, received=received, validator=validator, patience=web.patience, limits=web.limits)

    async def _ask(self, download: Download) -> _Answered | None:
        """Ask for what is missing: an answer that brings it, or None to ask again at once, for all of it.

        Raises:
            LaterError: it brings nothing now.
            FinalError: nothing will ever come.
            TransferError: it broke off.
        """
        found = None
        pace = Pace(self._web.limits)
        async with AsyncExitStack() as stack:
            incoming = await self._head(stack, download, pace)
            verdict = download.answered(incoming.answer, time.time())
            if heed(verdict, incoming.url):
                found = _Answered(incoming, verdict, pace, stack.pop_all())
        return found

    async def _head(self, stack: AsyncExitStack, download: Download, pace: Pace) -> Incoming:
        """Connect, and read the head of the answer: within one patience, whatever trickles in."""
        incoming, began, patience = None, time.monotonic(), pace.patience
        try:
            with anyio.move_on_after(patience):
                incoming = await stack.enter_async_context(self._client.get(self._url, download.fields()))
        finally:
            seconds = time.monotonic() - began
            pace.note(seconds, 1 if incoming else 0)  # a head ends the silence, and buys no time
            download.tries.waited(seconds, 0)
        if incoming is None:
            raise StalledError(f"nothing came for {patience:g} s that is an answer")
        return incoming

    async def _leave(self) -> None:
        """Take nothing of what was answered to the first look."""
        answered, self._first, self._download = self._first, None, None
        if answered:
            await answered.stack.aclose()


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

    async def take(self, answered: _Answered) -> None:
        """Take what an answer brings.

        Raises:
            FinalError: nothing will ever come.
            TransferError: it broke off.
        """
        verdict = answered.verdict
        if verdict.begin != self._sink.received:
            await self._sink.restart()
        self._sink.validator = verdict.validator
        try:
            await self._fill(answered, verdict.end)
        finally:
            await self._store()  # a cancellation comes out of it, too: then nothing is stored

    async def _fill(self, answered: _Answered, end: int) -> None:
        pace = answered.pace
        async with aclosing(answered.incoming.body()) as body:
            while self._download.received < end:
                began = time.monotonic()
                data = b""
                with anyio.move_on_after(pace.patience):
                    data = await anext(body, b"")
                seconds = time.monotonic() - began
                pace.note(seconds, len(data))
                self._download.tries.waited(seconds, len(data))
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
            raise FinalError(str(exc)) from exc

    async def _store(self) -> None:
        if self._filled:
            count, self._filled = self._filled, 0
            await self._sink.write(self._buffer[:count])
