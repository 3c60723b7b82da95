"""What a chip prints, on a wire of its own: the sign of life by which a gateway knows that an image is well.

    console = Console(partial(open_wire, parse_link("serial:///dev/ttyACM0"), baud=115200))
    tasks.start_soon(console.listen)
    await run_trial(device, checks=[Check("line", partial(console.heard, "ready"))])

Rules:
- it listens all the time, so that what is printed once, at the start, is heard; a wire that breaks is opened again;
- bytes that are no text are no failure.
"""

import logging
from collections import deque
from collections.abc import Awaitable, Callable

import anyio

from mgota.errors import NoAnswerError, OtaError
from mgota.flash.links.wire import SerialWire, StreamWire

log = logging.getLogger("mgota.console")

LINES = 1000
"""How many lines are remembered."""

LONGEST = 4096
"""Bytes after which a line ends, whatever comes."""

QUIET = 60.0
"""Seconds of one wait for something; another one follows."""

PATIENCE = 1.0
"""Seconds before a wire that broke is opened again."""


class Console:
    """A listener.

    Args:
        connect: opens the wire.
    """

    def __init__(self, connect: Callable[[], Awaitable[StreamWire | SerialWire]]) -> None:
        self._connect = connect
        self._lines = deque[str](maxlen=LINES)
        self._rest = b""

    def forget(self) -> None:
        """What was printed so far is of the life before."""
        self._lines.clear()
        self._rest = b""

    async def heard(self, text: str) -> bool:
        """Whether a line with this text was printed; the one that is not at its end counts."""
        await anyio.lowlevel.checkpoint()
        return any(text in line for line in (*self._lines, self._rest.decode("utf-8", "replace")))

    async def listen(self) -> None:
        """For ever."""
        while True:
            try:
                async with await self._connect() as wire:
                    while True:
                        await self._hear(wire)
            except OtaError as exc:
                log.warning("the console: %s", exc)
            await anyio.sleep(PATIENCE)

    async def _hear(self, wire: StreamWire | SerialWire) -> None:
        try:
            data = await wire.receive(QUIET)
        except NoAnswerError:
            return  # it has nothing to say
        *lines, self._rest = (self._rest + data).split(b"\n")  # what is left now: it may have been forgotten meanwhile
        if len(self._rest) > LONGEST:
            lines, self._rest = [*lines, self._rest], b""
        self._lines.extend(line.decode("utf-8", "replace") for line in lines)
