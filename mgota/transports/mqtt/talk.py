"""One push over connections to a broker: the clock, the file and the topics around a decision of the core.

Rules:
- what breaks a connection is raised and begins another one; what ends the push is kept until the connection is left;
- what came in is taken at once, a bounded number of frames, and read when the push is at it;
- nothing but a publish is ever awaited between a reply and what it leads to.
"""

import logging
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from mgota.core.rpc import (
    STATUS,
    Abort,
    Chunk as Piece,
    Reply,
    Request,
    abort_request,
    decode_reply,
    encode_request,
    encode_upload,
)
from mgota.core.rpc_sender import Ask, Message, Phase, read_online
from mgota.core.rpc_single import SinglePush
from mgota.core.rpc_window import SIGNATURES, WindowPush
from mgota.errors import MalformedError, OtaError, TransferError
from mgota.outgoing import Progress, Source
from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.connection import Link, Message as Delivery

log = logging.getLogger("mgota.mqtt")

STEP: Final = 256 * 1024
"""Bytes between two steps of the progress."""

ANSWER: Final = 15.0
"""Most seconds until a device answers of which nobody said that it is there."""

FAREWELL: Final = 2.0
"""Most seconds until the broker has the word that a push is given up."""

_FRAMES: Final = 4096
# Replies that may wait to be read: those to all senders come here.


class Inbox:
    """What came in, and what is known of the device's presence.

    Args:
        broker: whose topics it listens to.
    """

    def __init__(self, broker: Broker) -> None:
        self.online: bool | None = None
        """What the device said last; None if nobody heard of it."""
        self.broken: TransferError | None = None
        self._broker = broker
        self._tx, self._status = broker.topic("tx"), broker.topic("status")
        self._frames: deque[bytes] = deque(maxlen=_FRAMES)
        self._came = False
        self._event = anyio.Event()

    async def subscribe(self, link: Link) -> None:
        """Begin to listen on a new connection.

        Raises:
            TransferError: the broker is gone, or does not let us.
        """
        self._frames.clear()
        self.broken, self._came = None, False
        await link.subscribe(self._status)
        await link.subscribe(self._tx)

    def put(self, delivery: Delivery) -> None:
        """Take what the broker delivered."""
        if delivery.topic == self._tx and not delivery.retain:
            self._frames.append(delivery.payload)
        elif delivery.topic == self._status and (online := read_online(delivery.payload)) is not None:
            self.online = online
            self._came = self._came or (online and not delivery.retain)
        self._event.set()

    def broke(self, why: TransferError) -> None:
        """The connection did."""
        self.broken = why
        self._event.set()

    def replies(self) -> list[Reply]:
        """Those that came since the last time."""
        found: list[Reply] = []
        while self._frames:
            try:
                found.append(decode_reply(self._frames.popleft()))
            except MalformedError as exc:
                log.debug("not a reply: %s", exc)
        return found

    def came_online(self) -> bool:
        """Whether the device said since the last time that it is there now."""
        came, self._came = self._came, False
        return came

    async def wait(self, deadline: float) -> bool:
        """Until something came in. False if nothing did.

        Args:
            deadline: on the event loop's clock.

        Raises:
            TransferError: the connection broke.
        """
        if not self._frames and not self._came and self.broken is None:
            self._event = anyio.Event()
            with anyio.move_on_at(deadline) as scope:
                await self._event.wait()
            if scope.cancelled_caught:
                return False
        if self.broken is not None:
            raise self.broken
        return True

    def patience(self, began: float, timeout: float) -> float:
        """Until when a first answer is waited for.

        Args:
            began: when it was asked for.
            timeout: seconds that a device may take that is known to be there.
        """
        return began + (timeout if self.online else min(timeout, ANSWER))

    def silence(self, timeout: float) -> TransferError:
        """What it means that no answer came."""
        where = f"{self._broker.root}/{self._broker.device}"
        if self.online is None:
            return TransferError(f"nobody answers on {where}, and no device ever said there that it is online")
        if not self.online:
            return TransferError(f"the device {where} is offline")
        return TransferError(f"the device {where} is online but did not answer within {timeout:g} s")


@asynccontextmanager
async def watched(link: Link, inbox: Inbox) -> AsyncGenerator[None]:
    """While the block runs, the inbox is told when the connection breaks."""
    failed: OtaError | None = None

    async def watch() -> None:
        try:
            await link.closed()
        except TransferError as exc:
            inbox.broke(exc)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        try:
            yield
        except OtaError as exc:  # kept for later: a task group would wrap it
            failed = exc
        tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


class Talk:
    """A push, over as many connections as it takes.

    Args:
        broker: where the device is.
        push: what decides.
        source: the image.
        timeout: seconds in which something has to move.
    """

    def __init__(self, broker: Broker, push: WindowPush | SinglePush, source: Source, timeout: float) -> None:
        self.inbox = Inbox(broker)
        self.begun = False
        """Whether the broker could be reached at all."""
        self._push, self._source, self._timeout = push, source, timeout
        self._rx = broker.topic("rx")
        self._windowed = isinstance(push, WindowPush)
        self._failed: OtaError | None = None
        self._began = 0.0

    @property
    def over(self) -> bool:
        """Whether the push has ended, well or not."""
        return self._push.done or self._failed is not None

    @property
    def progress(self) -> Progress:
        """How far the device is."""
        return Progress(self._push.acked, self._source.size, self._push.waiting)

    def check(self) -> None:
        """Nothing if it ended well.

        Raises:
            OtaError: why it did not.
        """
        if self._failed is not None:
            raise self._failed

    async def begin(self, link: Link) -> None:
        """On a new connection.

        Raises:
            TransferError: it broke.
        """
        await self.inbox.subscribe(link)
        now = anyio.current_time()
        if not self.begun:
            self.begun, self._began = True, now
        try:
            self._push.connected(now)
        except OtaError as exc:
            self._failed = exc

    async def advance(self, link: Link) -> bool:
        """A step further. False when the push is over.

        Raises:
            TransferError: the connection broke.
            ConfigError: the image cannot be read.
        """
        push, size = self._push, self._source.size
        start, waiting = push.acked, push.waiting
        mark = start + STEP if start == size else min(start + STEP, size)
        async with watched(link, self.inbox):
            while not self.over and start <= push.acked < mark and push.waiting == waiting:
                await self._send(link)
                await self._hear()
        return not self.over

    async def leave(self, link: Link) -> None:
        """The connection is left. A push that has not ended well is given up: the device need not wait for it.

        At QoS 1: a socket that is closed while answers wait in it is reset, and what the broker has not read is lost.
        """
        push, broken = self._push, self.inbox.broken
        if isinstance(push, WindowPush) and push.heard and not push.done and broken is None:
            frame = encode_request(abort_request(push.new_id(), Abort(push.session)))
            with anyio.CancelScope(shield=True), anyio.move_on_after(FAREWELL), suppress(TransferError):
                await link.publish(self._rx, frame, qos=1)

    async def pause(self, seconds: float) -> None:
        """Between two connections: no longer than patience lasts."""
        if self.over:
            return
        self._push.disconnected()
        now = anyio.current_time()
        await anyio.sleep(max(0.0, min(seconds, self._push.deadline - now)))
        self._tick()

    async def _send(self, link: Link) -> None:
        """All that may be sent now."""
        now = anyio.current_time()
        while (message := self._push.next_message(now)) is not None:
            frame = await self._frame(message)
            if self._windowed:  # resent by ourselves, and bounded by the window
                link.post(self._rx, frame)
            else:
                await link.publish(self._rx, frame, qos=1)

    async def _frame(self, message: Message) -> bytes:
        push = self._push
        session = push.session if isinstance(push, WindowPush) else None
        if isinstance(message, Ask):
            return encode_request(Request(message.id, STATUS, {"session": session}))
        data = await self._source.read_at(message.offset, message.size) if message.size else b""
        return encode_upload(message.id, Piece(push.total, message.offset, data, session), push.method)

    async def _hear(self) -> None:
        """Wait for what comes next, and take it."""
        push, inbox = self._push, self.inbox
        deadline = push.deadline
        if not push.heard:
            deadline = min(deadline, inbox.patience(self._began, self._timeout))
        await inbox.wait(deadline)
        now = anyio.current_time()
        try:
            for reply in inbox.replies():
                push.take(reply, now)
            if inbox.came_online():
                push.online(now)
        except OtaError as exc:
            self._failed = exc
            return
        if isinstance(push, WindowPush) and push.phase is Phase.DOUBT:
            await self._settle(push)
        elif not push.heard and now >= inbox.patience(self._began, self._timeout):
            self._failed = inbox.silence(self._timeout)
        else:
            self._tick()

    async def _settle(self, push: WindowPush) -> None:
        digests = await self._source.digests(SIGNATURES)
        try:
            push.settle(digests, anyio.current_time())
        except OtaError as exc:
            self._failed = exc

    def _tick(self) -> None:
        try:
            self._push.tick(anyio.current_time())
        except OtaError as exc:
            self._failed = exc
