"""Where a device is reached over MQTT: its broker and its topics. Both ends use it.

    broker = Broker.from_url("mqtts://broker.example/site/123", user=("joe", password))
    async with connected(broker, inbox.take) as link:
        await link.subscribe(broker.topic("rx"))
        await link.publish(broker.topic("tx"), reply, qos=1)

Rules:
- TCP_NODELAY always: Nagle's algorithm and delayed acknowledgements together hold a dialogue to 25 messages a second;
- TLS is 1.2 or newer and checks the broker's name;
- what came in goes to a function at once, for nothing here can wait: who takes it keeps it within bounds;
- a connection ends with all that belongs to it, whatever state it was in, and within a second.

The only module that knows aiomqtt, and it loads it when the first connection is made.
"""

import logging
import random
import re
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, Literal, Self, cast
from urllib.parse import unquote, urlsplit

import anyio

from mgota.core.rpc import MAX_FRAME
from mgota.errors import ConfigError, OtaError, TransferError

if TYPE_CHECKING:
    import aiomqtt

log = logging.getLogger("mgota.mqtt")
_quiet = logging.getLogger("mgota.mqtt.client")
_quiet.setLevel(logging.ERROR)

PORT: Final = 1883
TLS_PORT: Final = 8883
MAX_PACKET: Final = MAX_FRAME + 1024
"""Bytes of the longest message. A broker that speaks MQTT 5 keeps longer ones away; for 3.1.1 that is its
configuration (mosquitto: `message_size_limit`)."""

_MAX_TOPIC: Final = 512
_OUR_FAULT: Final = frozenset({132, 133, 134, 135, 138, 140})
# Protocol version, identifier, password, authorisation, banned, method (MQTT 5, section 3.2.2.2): waiting is no help.

_FAREWELL: Final = 1.0
# Seconds that a polite end may take.
_GLANCE: Final = 0.02

Version = Literal["3.1.1", "5"]
Direction = Literal["rx", "tx", "status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """How to reach a device's broker, and which device it is.

    Args:
        host: name or address.
        port: of the broker.
        root: what the topics begin with; may have several levels.
        device: the device's name, one level.
        user: name and password, or None.
        ssl_context: makes it TLS, with client certificates if it has some.
        version: of the protocol: "3.1.1" or "5".
        keepalive: seconds of silence after which either end asks whether the other is still there.
        timeout: seconds that a step of connecting, or an acknowledgement, may take.

    Raises:
        ConfigError: a name can be no topic, or an option contradicts itself.
    """

    host: str
    port: int
    root: str
    device: str
    user: tuple[str, str] | None = field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = None
    version: Version = "3.1.1"
    keepalive: int = 30
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not self.host or not 1 <= self.port <= 65535:
            raise ConfigError("a broker has a host and a port")
        for level in (*self.root.split("/"), self.device):
            if not level or set(level) & set("#+/\0") or level.startswith("$") or not level.isprintable():
                raise ConfigError(
                    f"{level!r} cannot be part of a topic: a broker's URL is mqtt://HOST:PORT/ROOT/DEVICE"
                )
        if len(self.topic("status").encode()) > _MAX_TOPIC:
            raise ConfigError(f"the topic is longer than {_MAX_TOPIC} bytes")
        if self.version not in {"3.1.1", "5"}:
            raise ConfigError(f"MQTT {self.version} is not spoken here: 3.1.1 and 5 are")
        if not 1 <= self.keepalive <= 65535 or self.timeout <= 0:
            raise ConfigError("a broker's times are more than nothing")
        if self.user and not self.user[0]:
            raise ConfigError("a broker's user has a name")

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        user: tuple[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        version: Version = "3.1.1",
        keepalive: int = 30,
        timeout: float = 10.0,
    ) -> Self:
        """A broker from `mqtt://[USER:PASSWORD@]HOST[:PORT]/ROOT/DEVICE`, or `mqtts:` for TLS.

        Args:
            url: where. A command line is no place for a password, since every process can read it.
            user: name and password; comes before what stands in the URL.
            ssl_context: for `mqtts:`; the system's trust if omitted.
            version: of the protocol.
            keepalive: seconds of silence before either end asks.
            timeout: seconds that a step may take.

        Raises:
            ConfigError: the URL is none.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as exc:
            raise ConfigError("this is no URL of a broker: mqtt://HOST:PORT/ROOT/DEVICE") from exc
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.query or parts.fragment:
            raise ConfigError("a broker's URL is mqtt://HOST:PORT/ROOT/DEVICE, or mqtts: for TLS")
        if parts.scheme == "mqtt" and ssl_context is not None:
            raise ConfigError("certificates are for mqtts:, and this URL says mqtt:")
        secure = parts.scheme == "mqtts"
        if secure and ssl_context is None:
            ssl_context = ssl.create_default_context()
        root, _, device = unquote(parts.path.removeprefix("/")).rpartition("/")
        if not root:
            raise ConfigError("a broker's URL names the device: mqtt://HOST:PORT/ROOT/DEVICE")
        if user is None and parts.username:
            user = (unquote(parts.username), unquote(parts.password or ""))
        return cls(
            host=parts.hostname,
            port=(TLS_PORT if secure else PORT) if port is None else port,
            root=root,
            device=device,
            user=user,
            ssl_context=ssl_context,
            version=version,
            keepalive=keepalive,
            timeout=timeout,
        )

    def topic(self, direction: Direction) -> str:
        """A topic of the device: `rx` towards it, `tx` its replies, `status` whether it is there."""
        return f"{self.root}/{self.device}/{direction}"

    @property
    def identifier(self) -> str:
        """The client identifier of the device itself, the same at every start.

        A broker that still believes in the connection before ends it then, and publishes its last will *before* the
        device says that it is online (MQTT 3.1.1, MQTT-3.1.4-2). 23 letters and digits, which every broker takes.
        """
        return "mgota" + sha256(f"{self.root}/{self.device}".encode()).hexdigest()[:18]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "mqtts" if self.ssl_context else "mqtt"
        return f"{scheme}://{host}:{self.port}/{self.root}/{self.device}"


@dataclass(frozen=True, slots=True)
class Message:
    """What a broker delivered.

    Args:
        topic: on which.
        payload: what.
        retain: it was there before we came: a broker's memory, not somebody's word of now.
    """

    topic: str
    payload: bytes
    retain: bool


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker publishes, retained, when this connection breaks.

    Args:
        topic: on which.
        payload: what.
    """

    topic: str
    payload: bytes


class Link:
    """A connection to a broker. Made by `connected`."""

    def __init__(self, client: "aiomqtt.Client") -> None:
        self._client = client
        self._waiting: set[anyio.CancelScope] = set()

    async def subscribe(self, topic: str, *, qos: int = 1) -> None:
        """Ask for what comes on a topic, and wait for the broker's word.

        Raises:
            TransferError: the broker is gone, or does not let us.
        """
        granted = await _translated(self._client.subscribe(topic, qos))
        for code in granted:
            if code >= 0x80 if isinstance(code, int) else code.is_failure:
                raise TransferError(f"the broker does not let us subscribe to {topic}")

    async def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Send something; with QoS 1 the broker has it when this returns.

        Raises:
            TransferError: the broker is gone, or did not acknowledge in time.
        """
        with anyio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                await _translated(self._client.publish(topic, payload, qos, retain))
            finally:
                self._waiting.discard(scope)
        if scope.cancelled_caught:
            raise TransferError("the connection to the broker broke")

    def end(self) -> None:
        """The connection is over: nobody waits for an acknowledgement any more."""
        for scope in self._waiting:
            scope.cancel()

    async def closed(self) -> None:
        """Wait until the connection breaks.

        Raises:
            TransferError: when it has.
        """
        try:
            async for _ in self._client.messages:  # nothing comes this way, see `_Way`; it ends with the connection
                pass
        except _mqtt().MqttError as exc:
            raise TransferError(f"the connection to the broker broke: {_why(exc)}") from exc


Take = Callable[[Message], None]
"""Takes what came in, at once."""


@asynccontextmanager
async def connected(
    broker: Broker, take: Take, *, will: Will | None = None, identifier: str = ""
) -> AsyncGenerator[Link]:
    """Be connected to a broker while the block runs.

    Args:
        broker: where.
        take: called with every message.
        will: what the broker says when the connection breaks.
        identifier: of this client; empty for one that the broker or the library makes up.

    Raises:
        TransferError: the broker cannot be reached, or the connection broke.
        ConfigError: the broker does not let us in.
    """
    client = _client(broker, take, will, identifier)
    link = Link(client)
    try:
        await _connect(client, broker)
        yield link
    finally:
        link.end()
        with anyio.CancelScope(shield=True), anyio.move_on_after(_FAREWELL):
            await _leave(client)
        _drop(client)


async def _connect(client: "aiomqtt.Client", broker: Broker) -> None:
    """Connect. A broker that hangs up meanwhile is noticed: aiomqtt would wait for its time to run out."""
    failure: OtaError | None = None
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, client, scope)
            try:
                await _translated(client.__aenter__(), broker)
            except OtaError as exc:  # raised below: a task group would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
    if scope.cancelled_caught:
        hint = "; does it want a client's certificate?" if broker.ssl_context else ""
        failure = TransferError(f"the broker {broker} hangs up at once{hint}")
    if failure:
        raise failure


async def _watch(client: "aiomqtt.Client", scope: anyio.CancelScope) -> None:
    inner: Any = client._client  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    told, lost = inner.on_disconnect, False

    def on_disconnect(*args: Any) -> None:  # perhaps in the thread that connects
        nonlocal lost
        lost = True
        told(*args)

    inner.on_disconnect = on_disconnect
    while not lost:  # noqa: ASYNC110  from a thread, nothing else is as simple
        await anyio.sleep(_GLANCE)
    scope.cancel()


def _client(broker: Broker, take: Take, will: Will | None, identifier: str) -> "aiomqtt.Client":
    library = _mqtt()
    name, password = broker.user or (None, None)
    client: Any = library.Client(
        broker.host,
        broker.port,
        username=name,
        password=password,
        identifier=identifier or None,
        will=library.Will(will.topic, will.payload, 1, True) if will else None,
        timeout=broker.timeout,
        keepalive=broker.keepalive,
        tls_context=broker.ssl_context,
        socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        queue_type=lambda maxsize=0: _Way(take),  # noqa: ARG005
        logger=_quiet,
        **_spoken(broker.version),
    )
    return cast("aiomqtt.Client", client)


def _spoken(version: Version) -> dict[str, Any]:
    """What the versions of the protocol differ in: nothing of a former connection is to be delivered, either way."""
    aiomqtt = _mqtt()
    if version == "3.1.1":
        return {"protocol": aiomqtt.ProtocolVersion.V311, "clean_session": True}
    from paho.mqtt.packettypes import PacketTypes  # noqa: PLC0415  aiomqtt's own foundation
    from paho.mqtt.properties import Properties  # noqa: PLC0415

    make: Any = Properties  # it has no annotations
    properties = make(PacketTypes.CONNECT)
    properties.MaximumPacketSize = MAX_PACKET
    return {"protocol": aiomqtt.ProtocolVersion.V5, "clean_start": True, "properties": properties}


class _Way:
    """What stands where aiomqtt has its queue of messages: they go on at once, and nothing is ever waiting here.

    A queue would be without bounds, or be another place that drops messages; and each message would cost a task.
    """

    def __init__(self, take: Take) -> None:
        self._take = take

    def put_nowait(self, message: "aiomqtt.Message") -> None:
        payload: Any = message.payload  # whatever its annotation says: what comes from paho is bytes
        self._take(Message(str(message.topic), bytes(payload), message.retain))

    async def get(self) -> None:
        await anyio.sleep_forever()

    def qsize(self) -> int:
        return 0


async def _leave(client: "aiomqtt.Client") -> None:
    try:
        await client.__aexit__(None, None, None)
    except _mqtt().MqttError as exc:
        log.debug("the connection was not ended politely: %s", _why(exc))


def _drop(client: "aiomqtt.Client") -> None:
    """Close what aiomqtt leaves behind when connecting fails half-way or is cancelled: a socket, its watch, a task.

    There is no public way to it: a client that never connected cannot be left either.
    """
    inner = client._client  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    inner.on_socket_open = lambda _client, _userdata, sock: sock.close()  # of a thread that is still connecting
    if inner.socket() is not None:
        inner._sock_close()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


async def _translated(step: Any, broker: Broker | None = None) -> Any:
    """Await a step of aiomqtt's and translate how it fails."""
    aiomqtt = _mqtt()
    try:
        return await step
    except (aiomqtt.MqttError, OSError, ValueError) as exc:
        code = getattr(getattr(exc, "rc", None), "value", None)
        if broker and code in _OUR_FAULT:
            raise ConfigError(f"the broker {broker} does not let us in: {_why(exc)}") from exc
        where = f"the broker {broker} cannot be reached" if broker else "the broker did not take it"
        raise TransferError(f"{where}: {_why(exc)}") from exc


def _why(exc: BaseException) -> str:
    text = re.sub(r"^\[(?:code|Errno|SSL)[^\]]*\] *", "", str(exc)).strip()
    return text[:1].lower() + text[1:] if text else type(exc).__name__


def _mqtt() -> Any:
    import aiomqtt  # noqa: PLC0415  who does not use MQTT does not load it

    return aiomqtt


def backoff(attempt: int, *, least: float = 0.5, most: float = 30.0) -> float:
    """Seconds to wait before trying to connect again, with jitter so that a fleet does not come back all at once.

    Args:
        attempt: how many tries failed in a row, from 1.
        least: of the first wait.
        most: of any wait.
    """
    ceiling = min(most, least * 2.0 ** min(attempt - 1, 16))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  no secret
