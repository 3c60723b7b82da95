"""What a link to a chip is to those who use it: a flash memory behind a door, which holds the chip while it is open."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from mgota.ports import NorFlash, ReadableBuffer


@runtime_checkable
class Link(NorFlash, Protocol):
    """A chip's flash memory, as a boot ROM or a debug probe gives it."""

    async def enter(self) -> object:
        """Stop the chip's program, so that its flash memory can be had. Once more does no harm.

        Raises:
            LinkError: the chip does not answer, or is something else.
            ConfigError: it is another chip than the one that was meant.
        """
        ...

    async def reset(self) -> None:
        """Let the chip run its program, from its start.

        Raises:
            LinkError: nobody knows whether it does.
        """
        ...


@runtime_checkable
class Comparing(Protocol):
    """A link may offer this besides `read`: the chip sums up what it holds, and nothing is carried over the wire."""

    async def holds(self, offset: int, data: ReadableBuffer) -> bool:
        """Whether the memory holds these bytes from `offset` on.

        Raises:
            ReadError: nobody can tell.
        """
        ...


Connect = Callable[[], AbstractAsyncContextManager[Link]]
"""Opens the wire to a chip, and closes it; between two uses it belongs to others, a console for one."""
