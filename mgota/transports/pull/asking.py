"""Asking for a manifest, and how long a pull may take."""

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from mgota.core.download import Tries, judge_metadata
from mgota.core.record import BootRecord, Outcome, State
from mgota.core.weburl import with_query
from mgota.errors import StalledError
from mgota.transports.pull.attempts import heed, persevere
from mgota.transports.pull.client import MAX_METADATA, Client, Web, read_some

UNIX: Final = 1
"""`MG_ARCH_UNIX`, for the update servers of Mongoose."""

_BOOT: Final = {State.CONFIRMED: 0, State.TESTING: 1, State.FAILED: 2}
_ROLLED_BACK: Final = 3


@dataclass(frozen=True, slots=True)
class Query:
    """What Mongoose 7.22 tells an update server of a device.

    Args:
        device_id: its name.
        interval: seconds between two polls; 0 if there is only this one.
    """

    device_id: str | None
    interval: float = 0.0

    def on(self, url: str, record: BootRecord, current: str | None) -> str:
        """The URL with the query behind it.

        Args:
            url: of the manifest.
            record: of the device.
            current: the version that runs, if it is known.
        """
        told = {"arch": str(UNIX), "version": current or "", "id": self.device_id or ""}
        return with_query(url, {**told, "interval": f"{self.interval:.0f}", "boot": _boot(record)})


def _boot(record: BootRecord) -> str:
    """The state as Mongoose 7.22 counts it: 3 is CONFIRMED after a roll back."""
    rolled_back = record.state is State.CONFIRMED and record.outcome is Outcome.ROLLED_BACK
    return str(_ROLLED_BACK if rolled_back else _BOOT[record.state])


def deadline_of(web: Web) -> float | None:
    """When a pull that begins now has to be complete, on anyio's clock; None if nobody says.

    Args:
        web: its `deadline`.
    """
    return None if web.deadline is None else anyio.current_time() + web.deadline


@asynccontextmanager
async def within(web: Web, until: float | None) -> AsyncGenerator[None]:
    """No longer than the deadline.

    Args:
        web: the limits of a pull.
        until: of `deadline_of`.

    Raises:
        StalledError: it has passed.
    """
    left = None if until is None else max(until - anyio.current_time(), 0.0)
    with anyio.move_on_after(left) as scope:
        yield
    if scope.cancelled_caught:
        raise StalledError(f"not complete after {web.deadline:g} s")


async def metadata(client: Client, url: str, web: Web) -> tuple[bytes, str]:
    """The bytes of a manifest, and the URL that they came from in the end.

    Args:
        client: connections.
        url: of the manifest, with its query.
        web: limits and patience.

    Raises:
        TransferError: it could not be had, however often it was tried.
    """

    async def attempt() -> tuple[bytes, str]:
        found, base = b"", url
        with anyio.move_on_after(web.metadata) as scope:
            async with client.get(url, [("Accept-Encoding", "identity"), ("Cache-Control", "no-cache")]) as incoming:
                heed(judge_metadata(incoming.answer, limit=MAX_METADATA, now=time.time()), incoming.url)
                found, base = await read_some(incoming, MAX_METADATA), incoming.url
        if scope.cancelled_caught:
            raise StalledError(f"the manifest was not there after {web.metadata:g} s")
        return found, base

    return await persevere(Tries(web.patience), attempt)
