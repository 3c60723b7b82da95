"""A device that is reached over MQTT: it connects outwards to a broker, and stays.

    async with serve(device, "mqtts://broker.example/site/123", ssl_context=…) as served:
        await served.online()

Rules:
- the connection comes and goes, the upload stays: only silence ends it;
- what a broker remembers is not somebody's word of now: no session is kept there;
- subscribed first, then online: who sees the device there can speak to it. The broker says when it is gone;
- what is said of a device is what is so when it is said: one word after the other, never two at once;
- several devices share the connection, and its last will, which is the gateway's: each says where to find that.

The broker is not trusted: the signature decides what is installed (security.md).
"""

import logging
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from typing import Final

import anyio

from mgota.core.history import Update
from mgota.core.receive import Patience
from mgota.core.rpc import presence
from mgota.device import Device
from mgota.errors import ConfigError, OtaError, TransferError
from mgota.finished import OnFinished
from mgota.gateway import Gateway
from mgota.history import History
from mgota.receiver import Receiver
from mgota.responder import Responder
from mgota.transports.mqtt.broker import Broker, Version, backoff
from mgota.transports.mqtt.connection import Link, Message, Will, check_installed, connected
from mgota.transports.mqtt.inbox import Inbox

log = logging.getLogger("mgota.mqtt")

STEADY: Final = 30.0
"""Seconds after which a connection counts as one that holds: the next wait begins small again."""

BRIEF: Final = 10.0
"""Seconds in which a connection that was complete counts as lost at once."""

SUSPICIOUS: Final = 3
"""Connections lost at once in a row that look as if there were two of this device."""


class Member:
    """A device and its topics.

    Args:
        device: what is updated; None while it is away.
        broker: its topics.
        patience: with senders.
        activate: False stages an image for later.
        on_finished: told how an update ended.
        gateway: the topic of its gateway's own presence; None where the device has a connection of its own.
    """

    def __init__(
        self,
        device: Device | None,
        broker: Broker,
        *,
        patience: Patience | None,
        activate: bool,
        on_finished: OnFinished | None,
        gateway: str | None = None,
    ) -> None:
        self.broker = broker
        self.inbox = Inbox(broker.topic("rx"))
        self._device = device
        self._receiver_of: Callable[[Device], Receiver] = partial(
            Receiver, patience=patience, activate=activate, on_finished=on_finished
        )
        self._gateway = gateway
        self._link: Link | None = None
        self._telling = anyio.Lock()

    async def live(self) -> None:
        """Own the upload under way, and carry out what comes, for ever.

        Not bound to a connection: what was promised is done without one.
        """
        if self._device is None:
            return
        receiver = self._receiver_of(self._device)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receiver.run)
            tasks.start_soon(self._carry_out, Responder(self._device, receiver))

    async def live_in(self, gateway: Gateway, name: str) -> None:
        """`live` with whichever device stands behind a name of a gateway, for ever. What comes meanwhile, waits."""
        while True:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._tell_of_change)
                # Nothing is awaited from here on before somebody is at it: the gateway cannot change it meanwhile.
                self._device = gateway.find(name)
                if self._device is None:
                    await gateway.changed(name, None)
                else:
                    with gateway.using(name):
                        await self.live()
                tasks.cancel_scope.cancel()

    async def _tell_of_change(self) -> None:
        with suppress(TransferError):  # it is told when there is a connection again
            await self.tell()

    async def _carry_out(self, responder: Responder) -> None:
        while True:
            frame = await self.inbox.next()
            try:
                await responder.answer(frame, self._send)
            except Exception:
                log.exception("a request on %s failed", self.broker.topic("rx"))

    async def _send(self, reply: bytes, certain: bool) -> None:
        if self._link is None:
            raise TransferError("there is no connection to the broker")
        if certain:
            await self._link.publish(self.broker.topic("tx"), reply, qos=1)
        else:
            self._link.post(self.broker.topic("tx"), reply)

    async def begin(self, link: Link) -> None:
        """On a new connection: subscribed first, then online.

        Raises:
            TransferError: it broke, or the broker does not let us.
        """
        await link.subscribe(self.broker.topic("rx"))
        self._link = link
        await self.tell()

    def end(self) -> None:
        """The connection is no more, or is about to end."""
        self._link = None

    async def tell(self, update: Update | None = None) -> None:
        """Say whether the device is there, and how its last update ended.

        Args:
            update: the last one; looked up in the device's history if omitted.

        Raises:
            TransferError: the broker does not have it.
        """
        async with self._telling:
            told = await self._presence(update)
            if self._link is not None:
                await self._link.publish(self.broker.topic("status"), told, qos=1, retain=True)
            elif update is not None:
                raise TransferError("there is no connection to the broker")

    async def _presence(self, update: Update | None) -> bytes:
        device = self._device
        if device is None:
            return await self.farewell()
        if update is None and isinstance(device.history, History):
            update = await device.history.last_ended()
        last = asdict(update) if update else None
        return presence(online=True, version=await version_of(device), last_update=last, gateway=self._gateway)

    async def part(self, link: Link) -> None:
        """Say goodbye on a connection that ends: a polite end is no last will.

        Raises:
            TransferError: the broker is gone, or says it by itself.
        """
        async with self._telling:  # or a word of before would be the last one
            await link.publish(self.broker.topic("status"), await self.farewell(), retain=True)

    async def farewell(self) -> bytes:
        """What is said of the device when it cannot be reached any more."""
        return presence(online=False, version=await version_of(self._device), gateway=self._gateway)


async def version_of(device: Device | None) -> str | None:
    """Of the firmware that runs on a device, if anybody knows it."""
    if device is None:
        return None
    try:
        image = (await device.status()).image
    except OtaError as exc:
        log.warning("nobody knows which version runs: %s", exc)
        return None
    return image.version if image else None


class MqttDevice:
    """A device, or several, and their connection. `serve` makes one.

    Args:
        device: what is updated.
        broker: where it is reached; of a gateway, its own place: those of its devices are below it.
        patience: with senders.
        activate: False stages an image for later.
        on_finished: told how an update ended.

    Raises:
        ConfigError: a gateway's name is too long for a topic, or it shall be told of its updates twice.
    """

    def __init__(
        self,
        device: Device | Gateway,
        broker: Broker,
        *,
        patience: Patience | None,
        activate: bool,
        on_finished: OnFinished | None = None,
    ) -> None:
        self.broker = broker
        self._gateway = device if isinstance(device, Gateway) else None
        make = partial(Member, patience=patience, activate=activate)
        if isinstance(device, Gateway):
            if on_finished:
                raise ConfigError("a gateway is told of its updates itself: Gateway(on_finished=…)")
            self._members = {
                name: make(
                    device.find(name),
                    broker.member(name),
                    on_finished=device.finished_of(name),
                    gateway=broker.topic("status"),
                )
                for name in device.names
            }
        else:
            self._members = {"": make(device, broker, on_finished=on_finished)}
        self._inboxes = {member.broker.topic("rx"): member.inbox for member in self._members.values()}
        self._link: Link | None = None
        self._since: float | None = None  # when this connection was complete
        self._brief = 0  # connections in a row that were lost at once
        self._changed = anyio.Event()

    @property
    def connected(self) -> bool:
        """Whether it can be reached now, as far as anybody knows."""
        return self._link is not None

    async def online(self) -> None:
        """Wait until the device is subscribed and has said that it is online; of several, each that is there."""
        while self._link is None:
            await self._changed.wait()

    async def live(self) -> None:
        """Own the uploads under way, and carry out what comes, for ever."""
        async with anyio.create_task_group() as tasks:
            for name, member in self._members.items():
                if self._gateway:
                    tasks.start_soon(member.live_in, self._gateway, name)
                else:
                    tasks.start_soon(member.live)

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
        broker, will = self.broker, await self._will()
        async with connected(broker, self._take, will=will, identifier=broker.identifier) as link:
            try:
                for member in self._members.values():
                    await member.begin(link)
                if self._gateway:
                    told = presence(online=True, version=None, devices=self._gateway.names)
                    await link.publish(will.topic, told, qos=1, retain=True)
                log.info("online at %s", broker)
                self._now(link)
                self._since = anyio.current_time()
                await link.closed()
            finally:
                self._now(None)
                for member in self._members.values():
                    member.end()
                with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                    await self._say_goodbye(link, will)

    async def _will(self) -> Will:
        """A connection has one: a device's own, or the gateway's, which stands for all of its devices."""
        told = presence(online=False, version=None) if self._gateway else await self._members[""].farewell()
        return Will(self.broker.topic("status"), told)

    def _take(self, message: Message) -> None:
        inbox = self._inboxes.get(message.topic)
        if inbox:
            inbox.take(message)

    async def report(self, update: Update, name: str = "") -> None:
        """Tell in a device's status how an update ended: a sink of `mgota.history.report_updates`.

        Args:
            update: that ended.
            name: of the device, where there are several.

        Raises:
            TransferError: the broker does not have it.
            ConfigError: there is no such device.
        """
        if name not in self._members:
            raise ConfigError(f"there is no device {name!r} here")
        if self._link is None:
            raise TransferError("there is no connection to the broker")
        await self._members[name].tell(update)

    async def _say_goodbye(self, link: Link, will: Will) -> None:
        """A polite end is no last will, so it is said before."""
        with suppress(TransferError):  # the broker is gone, or says it by itself
            for member in self._members.values():
                await member.part(link)
            if self._gateway:
                await link.publish(will.topic, will.payload, retain=True)

    def _now(self, link: Link | None) -> None:
        self._link = link
        self._changed.set()
        self._changed = anyio.Event()


@asynccontextmanager
async def serve(
    device: Device | Gateway,
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
        device: what is updated: one, or several by name, whose topics are then below the gateway's own place.
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
        for work in (served.live, served.stay_connected):
            tasks.start_soon(work)
        try:
            yield served
        except Exception as exc:  # noqa: BLE001  raised again below: a task group would wrap it
            failure = exc
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
