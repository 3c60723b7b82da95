"""A board's watchdog that is fed for life: what hangs after its commit is reset as well.

    begin ──► on guard: fed while there is life ──► trial (arm) ──► commit (disarm): on guard again ──► end: stopped

Rules:
- a trial is fed by its own rule and by nothing else: the watchdog bites just after its window, however alive all is;
- it never stops between two images, so that not even one that cannot be stopped (nowayout) makes a commit reset;
- a reset that was asked for may take `RESET_TIME`; then the watchdog starves: it is what ends a shutdown that hangs;
- who ends in order stops it, if it can be stopped, but not on trial. Who is killed does not, and the board resets;
- a driver that refuses is told of and asked again; it does not end the program that keeps the board up to date.
"""

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from mgota.errors import ConfigError
from mgota.linux.watchdog import HardwareWatchdog

log = logging.getLogger("mgota.watchdog")

RESET_TIME = 90.0
"""Seconds from the wish to reset until it is given up: what systemd waits for a service that does not end."""

Asked = Callable[[], bool]


class LifelongWatchdog:
    """A watchdog that stands guard outside of trials; implements `Watchdog`.

    Args:
        inner: the board's own.
        timeout: seconds without a sign of life after which the board is reset, outside of trials; as long as the
            inner one can count, if that is less.
    """

    stoppable = True
    """`disarm` ends a trial, always: there is nothing that a reset would have to do."""

    def __init__(self, inner: HardwareWatchdog, timeout: float) -> None:
        self.inner = inner
        self.timeout = timeout
        self._on_trial = False

    @property
    def limit(self) -> float | None:
        """Seconds of the longest timeout of the inner one."""
        return self.inner.limit

    @property
    def last_reset(self) -> str | None:
        """Why the device was reset, if the inner one knows."""
        return self.inner.last_reset

    async def arm(self, timeout: float) -> None:
        """A trial begins, or goes on: reset in `timeout` seconds unless whoever runs it arms or feeds again."""
        self._on_trial = True
        await self.inner.arm(timeout)

    async def feed(self) -> None:
        """Begin the timeout anew."""
        await self.inner.feed()

    async def disarm(self) -> None:
        """The trial is over: be on guard again."""
        self._on_trial = False
        await self._stand()

    async def stand_guard(self, *, alive: Asked = lambda: True, resetting: Asked = lambda: False) -> None:
        """Arm it, and feed for ever; outside of trials, and while there is life.

        Args:
            alive: asked before each feed. That this event loop answers is life, too.
            resetting: whether a reset was asked for.
        """
        asked: float | None = None
        begun = False
        while True:
            now = time.monotonic()
            asked = (asked or now) if resetting() else None
            if not self._on_trial and alive() and (asked is None or now - asked < RESET_TIME):
                begun = await self._try(self.inner.feed if begun else self._stand)
            await anyio.sleep(self._timeout / 3)

    async def leave(self) -> None:
        """The program ends in order: stop it, but not on trial."""
        if not self._on_trial:
            with anyio.CancelScope(shield=True):
                await self._try(self.inner.disarm)

    @property
    def _timeout(self) -> float:
        return self.timeout if self.limit is None else min(self.timeout, self.limit)

    async def _stand(self) -> None:
        await self.inner.arm(self._timeout)

    async def _try(self, what: Callable[[], Awaitable[None]]) -> bool:
        try:
            await what()
        except ConfigError as exc:
            log.critical("%s", exc)
            return False
        return True


@asynccontextmanager
async def left_in_order(watchdog: LifelongWatchdog | None) -> AsyncGenerator[None]:
    """Stop it at the end of the block, which may be a cancellation. After an exception it stays armed, and bites."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        if watchdog:
            await watchdog.leave()
        raise
    if watchdog:
        await watchdog.leave()
