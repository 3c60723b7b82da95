"""Who takes an image that comes in pieces, as its transports see it: the `Receiver`, as a Protocol.

It stands by itself so that the modules which only hand pieces over know nothing of sessions and devices.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from mgota.core.receive import Answer, Receiving
from mgota.core.rpc import Abort, Chunk

Tell = Callable[[Answer], Awaitable[None]]
"""Tells the sender; returns when it has been told."""


class Pieces(Protocol):
    """Takes pieces of an image: a `Receiver`."""

    rules: Receiving
    """How far it is."""

    async def take(self, chunk: Chunk | Abort, tell: Tell) -> None:
        """Take a piece and tell its sender.

        Args:
            chunk: the piece, or that its sender gives up.
            tell: awaited with the answer; whatever it raises comes out of here.

        Raises:
            TransferError: nobody takes pieces any more.
        """
        ...
