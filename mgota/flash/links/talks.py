"""Holds the conversations of the core on a wire."""

import time
from typing import TypeVar

from mgota.core.talk import Send, Talk, Want
from mgota.errors import LinkError
from mgota.flash.links.wire import Wire

T = TypeVar("T")


class Talker:
    """One end of a wire, and what came on it and was not used yet.

    Args:
        wire: to the chip.
    """

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self._pending = bytearray()

    async def hold(self, talk: Talk[T]) -> T:
        """Hold a conversation and return its result.

        Raises:
            LinkError: it ended in it.
        """
        try:
            step = next(talk)
            while True:
                try:
                    result = await self._do(step)
                except LinkError as exc:
                    step = talk.throw(exc)
                else:
                    step = talk.send(result)
        except StopIteration as exc:
            done: T = exc.value
            return done

    async def forget(self, quiet: float = 0.0) -> None:
        """Forget what came."""
        self._pending.clear()
        await self.wire.discard(quiet)

    async def _do(self, step: Send | Want) -> bytes:
        if isinstance(step, Send):
            await self.wire.send(step.data)
            return b""
        deadline = time.monotonic() + step.timeout
        looked = 0
        while not (size := self._ready(step, looked)):
            looked = len(self._pending)
            self._pending += await self.wire.receive(max(deadline - time.monotonic(), 0.001))
        data = bytes(self._pending[:size])
        del self._pending[:size]
        return data

    def _ready(self, step: Want, looked: int) -> int:
        """How many of the bytes that came are what is wanted; 0 if more have to come.

        Args:
            step: what is wanted.
            looked: bytes that are known to end nothing.
        """
        if step.end and (found := self._pending.find(step.end, looked, step.size)) >= 0:
            return found + 1
        return step.size if len(self._pending) >= step.size else 0
