"""A device that lives inside a process: its chip, its reset line and its watchdog.

Reset line and watchdog only signal. A runner waits for `VirtualReset.wait` or `VirtualWatchdog.expired`, cancels the
device's tasks, and boots it again:

    while True:
        reset.clear()
        watchdog.restart()
        async with create_task_group() as tasks:
            tasks.start_soon(run_the_device)
            await first_of(reset.wait, watchdog.expired)
            tasks.cancel_scope.cancel()
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import anyio

from mgota.errors import ConfigError
from mgota.flash.files import FileLock
from mgota.ports import FlashBackend

if TYPE_CHECKING:  # a device in files needs no simulator
    from mgota.flash.simulator import NorSimulator


class VirtualReset:
    """The reset line of a virtual device; implements `Resetter`.

    Because `reset` does not return, whoever calls it must not shield it: the runner cancels it.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why the device resets, once it does."""
        self._event = anyio.Event()

    async def reset(self, reason: str = "software") -> None:
        """Ask the runner for a reset, and never return."""
        self.reason = reason
        self._event.set()
        await anyio.sleep_forever()

    async def wait(self) -> None:
        """Return when a reset was asked for since the last `clear`."""
        await self._event.wait()

    def clear(self) -> None:
        """The device was reset: wait for the next one."""
        self.reason = None
        self._event = anyio.Event()


class VirtualWatchdog:
    """The watchdog of a virtual device; implements `Watchdog`.

    Once it ran out it stays so, as a chip's would have reset the device: a feed that comes late does not help.

    Args:
        limit: seconds of the longest timeout, or None.
        stoppable: whether `disarm` works.
        clock: seconds, monotonic.
    """

    def __init__(
        self, limit: float | None = None, *, stoppable: bool = True, clock: Callable[[], float] = anyio.current_time
    ) -> None:
        self._limit = limit
        self._stoppable = stoppable
        self._clock = clock
        self._timeout = 0.0
        self._deadline: float | None = None
        self._changed = anyio.Event()

    @property
    def stoppable(self) -> bool:
        """Whether `disarm` works."""
        return self._stoppable

    @property
    def limit(self) -> float | None:
        """Seconds of the longest timeout that it can count, or None."""
        return self._limit

    @property
    def deadline(self) -> float | None:
        """When it runs out, by its clock; None if it is not armed."""
        return self._deadline

    async def arm(self, timeout: float) -> None:
        """Run out in `timeout` seconds unless fed. Armed again, the new timeout counts from now.

        Raises:
            ConfigError: no such timeout can be counted.
        """
        if not timeout > 0 or (self._limit is not None and timeout > self._limit):
            raise ConfigError(f"the watchdog cannot count {timeout:g} s; its limit is {self._limit or 'none'}")
        if not self._ran_out():
            self._timeout = timeout
            self._set(self._clock() + timeout)

    async def feed(self) -> None:
        """Begin the timeout anew."""
        if self._deadline is not None and not self._ran_out():
            self._set(self._clock() + self._timeout)

    async def disarm(self) -> None:
        """Stop it, if it is stoppable; otherwise do nothing."""
        if self._stoppable and not self._ran_out():
            self._set(None)

    async def expired(self) -> None:
        """Return when an armed timeout has run out without a feed."""
        while not self._ran_out():
            left = None if self._deadline is None else self._deadline - self._clock()
            changed = self._changed
            with anyio.move_on_after(left):
                await changed.wait()

    def restart(self) -> None:
        """The device was reset: the watchdog is off, whatever its kind."""
        self._set(None)

    def _ran_out(self) -> bool:
        return self._deadline is not None and self._clock() >= self._deadline

    def _set(self, deadline: float | None) -> None:
        self._deadline = deadline
        self._changed.set()
        self._changed = anyio.Event()


class BootingFlash(FlashBackend, Protocol):
    """A backend that notices a reset."""

    async def boot(self) -> object:
        """The chip comes out of reset: what is selected runs from now on.

        Raises:
            FlashError: nobody knows what is selected.
        """
        ...


B_co = TypeVar("B_co", bound=BootingFlash, covariant=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class VirtualTarget(Generic[B_co]):
    """A chip that lives inside a process: what a `Device` is made of, and what a test looks at.

    Args:
        backend: the slots.
        flash: the memory under them.
        watchdog: the chip's own.
        lock: keeps other processes from the chip's files; None if it has none.
    """

    backend: B_co
    flash: "NorSimulator"
    watchdog: VirtualWatchdog
    lock: FileLock | None

    async def boot(self) -> None:
        """The chip comes out of reset: the selected slot runs, the watchdog is off.

        Raises:
            FlashError: the selection cannot be read.
        """
        self.watchdog.restart()
        await self.backend.boot()
