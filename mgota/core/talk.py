"""A conversation with a chip, said and not held.

A `Talk` is a generator: it yields `Send` and `Want`; whoever holds the conversation sends back what came for a `Want`,
or throws the `LinkError` that it ended in; at its end the talk returns a result. So protocols stand in the core, and
tests hold them without a wire, a clock or an event loop.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Send:
    """Send these bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Want:
    """Receive exactly so many bytes, or up to one that ends them.

    Args:
        size: bytes, at least one.
        timeout: seconds until they have to be there.
        end: a byte after which no more is wanted; then `size` is the most of them. Empty: `size` bytes, whatever they
            are.
    """

    size: int
    timeout: float
    end: bytes = b""


Talk = Generator[Send | Want, bytes, T]
