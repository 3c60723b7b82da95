"""Trying again: what may pass is waited for, what will not ends at once."""

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from mgota.core.download import Course, FinalError, Tries, Verdict
from mgota.core.weburl import shown
from mgota.errors import OtaError, TransferError

log = logging.getLogger("mgota.pull")

T = TypeVar("T")


class LaterError(Exception):
    """The server wants to be asked again.

    Args:
        error: why.
        after: seconds that it asks to wait, or None.
    """

    def __init__(self, error: OtaError, after: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.after = after


def heed(verdict: Verdict, url: str) -> bool:
    """Whether to take what follows; False to ask again at once, for all of it.

    Args:
        verdict: what the answer means.
        url: that was asked, for the message.

    Raises:
        LaterError: neither; try again later.
        FinalError: never.
    """
    error = TransferError(f"{shown(url)}: {verdict.error or 'no reason'}")
    match verdict.course:
        case Course.TAKE:
            return True
        case Course.AGAIN:
            log.info("%s: all of it is asked for", error)
            return False
        case Course.RETRY:
            raise LaterError(error, verdict.after)
        case Course.GIVE_UP:  # pragma: no branch  there is no other
            raise FinalError(str(error))


async def persevere(tries: Tries, attempt: Callable[[], Awaitable[T]], *, held: bool = False) -> T:
    """Try until it works.

    Args:
        tries: counts, and says how long to wait.
        attempt: one try.
        held: whether a device is kept from every other update until then.

    Raises:
        TransferError: it was tried often enough; or a `FinalError`, what no further try would change.
    """
    while True:
        after = None
        try:
            return await attempt()
        except FinalError:
            raise
        except LaterError as exc:
            error, after = exc.error, exc.after
        except TransferError as exc:
            error = exc
        seconds = tries.failed(error, random.random(), after, held=held)  # noqa: S311  to spread devices, not to hide
        log.info("%s; again in %.1f s", error, seconds)
        await anyio.sleep(seconds)
