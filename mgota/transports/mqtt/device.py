"""A device that is reached over MQTT: it connects outwards to a broker, and stays.

    async with serve(device, "mqtts://broker.example/site/123", ssl_context=…) as served:
        await served.online()

Rules:
- the connection comes and goes, the upload stays: only silence ends it;
- what a broker remembers is not somebody's word of now: retained commands are ignored, and no session is kept there;
- what waits to be carried out is bounded, in number and in bytes; what comes beyond is dropped: its sender asks again;
- subscribed first, then online: who sees the device there can speak to it. The broker says when it is gone.

The broker is not trusted: the signature decides what is installed (security.md).
"""

import logging
import ssl
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Final

import anyio

from mgota.core.history import Update
from mgota.core.receive import Patience
from mgota.core.rpc import MAX_FRAME, presence
from mgota.device import Device
from mgota.errors import ConfigError, OtaError, TransferError
from mgota.finished import OnFinished
from mgota.history import History
from mgota.receiver import Receiver
from mgota.responder import Responder
from mgota.transports.mqtt.broker import Broker, Version, backoff
from mgota.transports.mqtt.connection import Link, Message, Will, check_installed, connected

log = logging.getLogger("mgota.mqtt")
audit = logging.getLogger("mgota.audit")

INBOX_MESSAGES: Final = 64
INBOX_BYTES: Final = 1 << 20
"""What may wait to be carried out: more than any sender has under way."""

STEADY: Final = 30.0
"""Seconds after which a connection counts as one that holds: the next wait begins small again."""

BRIEF: Final = 10.0
"""Seconds in which a connection that was complete counts as lost at once."""

SUSPICIOUS: Final = 3
"""Connections lost at once in a row that look as if there were two of this device."""


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


class MqttDevice:
    """A device and its connection. `serve` makes one.

    Args:
        device: what is updated.
        broker: where it is reached.
        patience: with senders.
        activate: False stages an image for later.
        on_finished: told how an update ended.
    """

    def __init__(
        self,
        device: Device,
        broker: Broker,
        *,
        patience: Patience | None,
        activate: bool,
        on_finished: OnFinished | None = None,
    ) -> None:
        self.broker = broker
        self._device = device
        self._receiver = Receiver(device, patience=patience, activate=activate, on_finished=on_finished)
        self._responder = Responder(device, self._receiver)
        self._inbox = Inbox(broker.topic("rx"))
        self._link: Link | None = None
        self._since: float | None = None  # when this connection was complete
        self._brief = 0  # connections in a row that were lost at once
        self._changed = anyio.Event()

    @property
    def connected(self) -> bool:
        """Whether it can be reached now, as far as anybody knows."""
        return self._link is not None

    async def online(self) -> None:
        """Wait until the device is subscribed and has said that it is online."""
        while self._link is None:
            await self._changed.wait()

    async def own_upload(self) -> None:
        """Own the upload under way, for ever."""
        await self._receiver.run()

    async def carry_out(self) -> None:
        """Carry out what comes, for ever. Not bound to a connection: what was promised is done without one."""
        while True:
            frame = await self._inbox.next()
            try:
                await self._responder.answer(frame, self._send)
            except Exception:
                log.exception("a request on %s failed", self.broker.topic("rx"))

    async def _send(self, reply: bytes, certain: bool) -> None:
        if self._link is None:
            raise TransferError("there is no connection to the broker")
        if certain:
            await self._link.publish(self.broker.topic("tx"), reply, qos=1)
        else:
            self._link.post(self.broker.topic("tx"), reply)

    async def stay_connected(self) -> None:
        """Connect, and connect again, for ever."""
        attempt = 0
        while True:
            begun = anyio.current_time()
            try:
                await self._be_connected()
            except (TransferError, ConfigError) as exc:
                attempt = 1 if anyio.current_time() - begun > STEADY else attempt + 1
                wait = backoff(attempt)
                log.warning("%s; the next try is in %.1f s%s", exc, wait, self._suspicion())
                await anyio.sleep(wait)

    def _suspicion(self) -> str:
        """A hint where two devices with one URL seem to throw each other out of the broker, which does not tell."""
        if self._since is not None:
            self._brief = self._brief + 1 if anyio.current_time() - self._since < BRIEF else 0
            self._since = None
        if self._brief < SUSPICIOUS:
            return ""
        return (
            f". {self._brief} connections in a row were lost at once: is there another device at {self.broker}?"
            " Each needs a URL of its own"
        )

    async def _be_connected(self) -> None:
        broker, version = self.broker, await self._version()
        status = broker.topic("status")
        will = Will(status, presence(online=False, version=version))
        async with connected(broker, self._inbox.take, will=will, identifier=broker.identifier) as link:
            await link.subscribe(broker.topic("rx"))
            history = self._device.history
            last = await history.last_ended() if isinstance(history, History) else None
            await self._say_online(link, version, last)
            log.info("online at %s", broker)
            self._now(link)
            self._since = anyio.current_time()
            try:
                await link.closed()
            finally:
                self._now(None)
                with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                    await self._say_goodbye(link, will)

    async def _say_online(self, link: Link, version: str | None, last: Update | None) -> None:
        told = presence(online=True, version=version, last_update=asdict(last) if last else None)
        await link.publish(self.broker.topic("status"), told, qos=1, retain=True)

    async def report(self, update: Update) -> None:
        """Tell in the device's status how an update ended: a sink of `mgota.history.report_updates`.

        Args:
            update: that ended.

        Raises:
            TransferError: the broker does not have it.
        """
        if self._link is None:
            raise TransferError("there is no connection to the broker")
        await self._say_online(self._link, await self._version(), update)

    async def _say_goodbye(self, link: Link, will: Will) -> None:
        """A polite end is no last will, so it is said before."""
        with suppress(TransferError):  # the broker is gone, or says it by itself
            await link.publish(will.topic, will.payload, retain=True)

    async def _version(self) -> str | None:
        try:
            image = (await self._device.status()).image
        except OtaError as exc:
            log.warning("nobody knows which version runs: %s", exc)
            return None
        return image.version if image else None

    def _now(self, link: Link | None) -> None:
        self._link = link
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def serve(
    device: Device,
    broker: Broker | str,
    *,
    user: tuple[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    version: Version = "auto",
    patience: Patience | None = None,
    activate: bool = True,
    on_finished: OnFinished | None = None,
) -> AsyncGenerator[MqttDevice]:
    """Be reached over MQTT while the block runs. A broker that is not there is no error: it is tried again.

    Args:
        device: what is updated.
        broker: where; or its URL, for which the next three are: `mqtt[s]://HOST:PORT/ROOT/DEVICE`.
        user: name and password.
        ssl_context: for `mqtts:`.
        version: of the protocol.
        patience: with senders.
        activate: False stages an image for later.
        on_finished: told how an update ended (`mgota.finished`); the replies are the dialect's, whatever it returns.

    Raises:
        ConfigError: the URL is none, or aiomqtt is not installed.
    """
    check_installed()
    if isinstance(broker, str):
        broker = Broker.from_url(broker, user=user, ssl_context=ssl_context, version=version)
    served = MqttDevice(device, broker, patience=patience, activate=activate, on_finished=on_finished)
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        for work in (served.own_upload, served.carry_out, served.stay_connected):
            tasks.start_soon(work)
        try:
            yield served
        except Exception as exc:  # noqa: BLE001  raised again below: a task group would wrap it
            failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
