"""What came for a device over MQTT and was not carried out yet.

Rules:
- what waits is bounded, in number and in bytes; what comes beyond is dropped: its sender asks again;
- what a broker remembers is not somebody's word of now: retained commands are ignored.
"""

import logging
from collections import deque
from typing import Final

import anyio

from mgota.core.rpc import MAX_FRAME
from mgota.transports.mqtt.connection import Message

log = logging.getLogger("mgota.mqtt")
audit = logging.getLogger("mgota.audit")

INBOX_MESSAGES: Final = 64
INBOX_BYTES: Final = 1 << 20
"""What may wait to be carried out: more than any sender has under way."""


class Inbox:
    """What came and was not carried out yet, within bounds."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._arrived = anyio.Event()
        self._full = False

    def take(self, message: Message) -> None:
        """Keep what is a command of now, if there is room."""
        if message.topic != self._topic:
            return
        if message.retain:
            audit.warning("a retained command on %s was ignored", message.topic)
            return
        frame = message.payload[: MAX_FRAME + 1]  # one byte too many is as wrong as all of them
        if len(self._frames) >= INBOX_MESSAGES or self._bytes + len(frame) > INBOX_BYTES:
            if not self._full:
                log.warning("more comes on %s than flash can take: messages are dropped", message.topic)
            self._full = True
            return
        self._full = False
        self._frames.append(frame)
        self._bytes += len(frame)
        self._arrived.set()

    async def next(self) -> bytes:
        """The oldest, when there is one."""
        while not self._frames:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame
