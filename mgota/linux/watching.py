"""What a running program may do that ends its run, and which of it happens first.

Each waiter returns the event that it waits for; the first one ends the others. Clocks are `time.monotonic`.
"""

import time
from collections.abc import Awaitable, Callable

import anyio

from mgota.linux.child import Child
from mgota.linux.listener import Listener, Systemd
from mgota.linux.notify import FEED, RESET, asks
from mgota.linux.supervise import Event, Pulse

Waiter = Callable[[], Awaitable[Event]]

_CATCH_UP = 0.1  # seconds for what was sent while this process did not run
_LOOK = 1.0  # seconds, at most, between two looks at whether a program has begun to feed


async def first(*waiters: Waiter) -> Event:
    """What happens first. A reset that was asked for in the same moment comes before anything else: it was a wish."""
    happened: list[Event] = []
    async with anyio.create_task_group() as tg:

        async def race(wait: Waiter) -> None:
            happened.append(await wait())
            tg.cancel_scope.cancel()

        for wait in waiters:
            tg.start_soon(race, wait)
    return Event.RESET if Event.RESET in happened else happened[0]


async def exited(child: Child) -> Event:
    """The program ended by itself."""
    await child.ended()
    return Event.EXITED


async def asked(listener: Listener, pulse: Pulse, systemd: Systemd) -> Event:
    """The program, or somebody in its name, asked for a reset. Until then its signs of life are passed on."""
    while True:
        notice = await listener.receive()
        if asks(notice, FEED):
            pulse.beat(time.monotonic())
        systemd.forward(notice)
        if asks(notice, RESET):
            return Event.RESET


async def hung(pulse: Pulse) -> Event:
    """The program's next sign of life is late."""
    if pulse.timeout is None:
        await anyio.sleep_forever()
    while True:
        left = pulse.left(time.monotonic())
        if left is None:
            await anyio.sleep(min(pulse.timeout or _LOOK, _LOOK) / 2)
        elif left > 0:
            await anyio.sleep(left)
        else:
            # If this very process was stopped for a while, signs of life wait in the socket: hear them first.
            await anyio.sleep(_CATCH_UP)
            if (left := pulse.left(time.monotonic())) is not None and left <= 0:
                return Event.HUNG


async def expired(until: float, committed: Callable[[], Awaitable[bool]]) -> Event:
    """The trial's window ended, and the image was not committed. If it was, wait for ever."""
    await anyio.sleep(max(until - time.monotonic(), 0))
    if await committed():
        await anyio.sleep_forever()
    return Event.WINDOW
