"""Keeps the history of a device, and tells others of updates that ended.

    device = Device(…, history=History(FileStory("/var/lib/app/history", MAX_HISTORY)))
    await report_updates(history, FileStory("/var/lib/app/reported"), [Sink("webhook", post)])     for ever

Rules:
- nothing here can stop or change an update: whatever fails is logged, and that is all;
- a report is sent until somebody took it, over restarts as well: how far each sink is stands in a note of its own. An
  update that has left the history unreported was one too many.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import anyio

from mgota.core.history import MAX_HISTORY, MAX_UPDATES, Update, advance, decode_updates, encode_updates
from mgota.core.record import BootRecord
from mgota.errors import ConfigError, OtaError
from mgota.ports import Note

log = logging.getLogger("mgota.history")

PATIENCE: Final = 5.0
"""Seconds that the history may take to be written."""


class History:
    """The last updates, in a note of JSON lines; see `mgota.core.history`.

    Args:
        note: where it is kept.
        most: updates that are kept.
        limit: bytes that they may take.
        clock: Unix seconds.
    """

    def __init__(
        self,
        note: Note,
        *,
        most: int = MAX_UPDATES,
        limit: int = MAX_HISTORY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._note = note
        self._most = most
        self._limit = limit
        self._clock = clock
        self._changed = anyio.Event()

    async def updates(self) -> tuple[Update, ...]:
        """What is known, oldest first.

        Raises:
            StateError: it cannot be read.
        """
        return decode_updates(await self._note.load() or b"")

    async def last_ended(self) -> Update | None:
        """The last update that ended, or None if none did, or nobody knows. Never raises, and does not take long."""
        try:
            with anyio.fail_after(PATIENCE):
                return next((one for one in reversed(await self.updates()) if one.ended is not None), None)
        except (OtaError, TimeoutError) as exc:
            log.warning("the history could not be read: %s", str(exc) or "it took too long")
            return None

    async def stored(self, record: BootRecord, reason: str | None = None) -> None:
        """A device stored this record. Never raises, and does not take long.

        Args:
            record: what was stored.
            reason: why an image was refused, if it was stored for that.
        """
        try:
            with anyio.fail_after(PATIENCE):
                before = await self.updates()
                after = advance(before, record, self._clock(), reason)
                if after != before:
                    await self._note.store(encode_updates(after, most=self._most, limit=self._limit))
                    self._changed.set()
                    self._changed = anyio.Event()
        except (OtaError, TimeoutError) as exc:
            log.warning("the history could not be written: %s", str(exc) or "it took too long")

    async def changed(self, within: float) -> None:
        """Wait until something was written here, or for so long: another process may have."""
        with anyio.move_on_after(within):
            await self._changed.wait()


@dataclass(frozen=True, slots=True)
class Sink:
    """Somebody who is told of updates that ended.

    Args:
        name: a word for it; its progress is kept under it.
        send: tells it; an error means that it was not told, and is tried again.
    """

    name: str
    send: Callable[[Update], Awaitable[None]]


async def report_updates(
    history: History, progress: Note, sinks: Sequence[Sink], *, interval: float = 60.0, timeout: float = 30.0
) -> None:
    """Tell each sink of each update that ended, in order, once. Runs for ever.

    Args:
        history: of the device.
        progress: how far each sink is.
        sinks: whom to tell.
        interval: seconds until one that failed is tried again, and until updates of other processes are noticed.
        timeout: seconds that a sink has to take one.

    Raises:
        ConfigError: two sinks have one name.
    """
    if len({sink.name for sink in sinks}) < len(sinks):
        raise ConfigError("two sinks of reports have one name")
    while True:
        done = await _load(progress)
        for sink in sinks:
            await _report(history, progress, sink, done, timeout)
        await history.changed(interval)


async def _report(history: History, progress: Note, sink: Sink, done: dict[str, int], timeout: float) -> None:
    try:
        for update in await history.updates():
            if update.ended is None or update.number <= done.get(sink.name, 0):
                continue
            with anyio.fail_after(timeout):
                await sink.send(update)
            done[sink.name] = update.number
            await progress.store(json.dumps(done).encode())
    except Exception as exc:  # noqa: BLE001  whatever somebody's function raises
        log.warning("%s was not told of an update: %s", sink.name, str(exc) or type(exc).__name__)


async def _load(progress: Note) -> dict[str, int]:
    try:
        found: Any = json.loads(await progress.load() or b"{}")
    except (OtaError, ValueError, RecursionError) as exc:
        log.warning("the progress of reports cannot be read: %s", exc)
        return {}
    known = cast(dict[str, Any], found) if isinstance(found, dict) else {}
    return {name: number for name, number in known.items() if type(number) is int}
