"""A connection to a broker, for both ends.

    async with connected(broker, inbox.take) as link:
        await link.subscribe(broker.topic("rx"))
        await link.publish(broker.topic("tx"), reply, qos=1)

Rules:
- TCP_NODELAY always: Nagle's algorithm and delayed acknowledgements together hold a dialogue to 25 messages a second;
- what came in goes to a function at once, for nothing here can wait: who takes it keeps it within bounds;
- a connection ends with all that belongs to it, whatever state it was in, and within a second.

The only module that knows aiomqtt, and it loads it when the first connection is made.
"""

import logging
import re
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import anyio

from mgota.errors import ConfigError, OtaError, TransferError
from mgota.transports.mqtt.broker import MAX_PACKET, Broker, Spoken

if TYPE_CHECKING:
    import aiomqtt

log = logging.getLogger("mgota.mqtt")
_quiet = logging.getLogger("mgota.mqtt.client")
_quiet.setLevel(logging.ERROR)

_OUR_FAULT: Final = frozenset({132, 133, 134, 135, 138, 140})
# Protocol version, identifier, password, authorisation, banned, method (MQTT 5, section 3.2.2.2): waiting is no help.

_TOO_NEW: Final = 132

_older: Final = set[tuple[str, int]]()
# Brokers that were seen to take 3.1.1 where they did not take 5.

_FAREWELL: Final = 1.0
# Seconds that a polite end may take.
_GLANCE: Final = 0.02


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

    def post(self, topic: str, payload: bytes) -> None:
        """Send something at QoS 0, now and without waiting. How much is under way is the caller's to bound.

        aiomqtt's way costs a task and four turns of the event loop for each message: half of the work of a push.

        Raises:
            TransferError: the broker is gone.
        """
        inner: Any = self._client._client  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        register = inner.on_socket_register_write
        inner.on_socket_register_write = _no_watch
        try:
            gone = inner.publish(topic, payload).rc or inner.loop_write()
        finally:
            inner.on_socket_register_write = register
        if gone or inner.socket() is None:
            raise TransferError("the connection to the broker broke")
        if inner.want_write():  # the kernel has no room: the event loop is told when there is some
            register(inner, None, inner.socket())

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
            raise TransferError("the connection to the broker broke") from exc  # aiomqtt does not know why


def _no_watch(*_: Any) -> None:
    """What is written at once needs no watch on the socket."""


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
    versions = _versions(broker)
    for version in versions:
        client = _client(broker, version, take, will, identifier)
        link = Link(client)
        try:
            if await _connect(client, broker, last=version == versions[-1]):
                if version != versions[0]:
                    _older.add((broker.host, broker.port))
                yield link
                return
        finally:
            link.end()
            with anyio.CancelScope(shield=True), anyio.move_on_after(_FAREWELL):
                await _leave(client)
            _drop(client)
        log.info("the broker %s does not take MQTT 5: trying 3.1.1", broker)


def _versions(broker: Broker) -> tuple[Spoken, ...]:
    if broker.version != "auto":
        return (broker.version,)
    return ("3.1.1",) if (broker.host, broker.port) in _older else ("5", "3.1.1")


async def _connect(client: "aiomqtt.Client", broker: Broker, *, last: bool) -> bool:
    """Connect. A broker that hangs up meanwhile is noticed: aiomqtt would wait for its time to run out.

    Returns:
        False if another version of the protocol may help; never if this is the last one.
    """
    failure: OtaError | None = None
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_watch, client, scope)
            try:
                await _translated(client.__aenter__(), broker)
            except OtaError as exc:  # raised below: a task group would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
    if not last and (scope.cancelled_caught or _code(failure) == _TOO_NEW):
        return False
    if scope.cancelled_caught:
        hint = "; does it want a client's certificate?" if broker.ssl_context else ""
        failure = TransferError(f"the broker {broker} hangs up at once{hint}")
    if failure:
        raise failure
    return True


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


def _client(broker: Broker, version: Spoken, take: Take, will: Will | None, identifier: str) -> "aiomqtt.Client":
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
        **_spoken(version),
    )
    _watch_what_is_open(client)
    return cast("aiomqtt.Client", client)


def _watch_what_is_open(client: Any) -> None:
    """Look at a socket again when its watch begins: aiomqtt's begins a turn later, and on whatever has its number."""
    inner, loop = client._client, client._loop  # noqa: SLF001

    def begin(sock: Any) -> None:
        if inner.socket() is sock and sock.fileno() >= 0:
            loop.add_writer(sock.fileno(), write)

    def write() -> None:
        try:
            inner.loop_write()
        except Exception as exc:  # noqa: BLE001  as aiomqtt: whatever it is, the connection broke
            if not client._disconnected.done():  # noqa: SLF001
                client._disconnected.set_exception(exc)  # noqa: SLF001

    def asked_for(_client: Any, _userdata: Any, sock: Any) -> None:
        loop.call_soon_threadsafe(begin, sock)

    inner.on_socket_register_write = asked_for


def _spoken(version: Spoken) -> dict[str, Any]:
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
    lost = client._disconnected  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if lost.done() and not lost.cancelled():
        lost.exception()  # or asyncio says that nobody looked at it
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
        if broker and _code(exc) in _OUR_FAULT:
            raise ConfigError(f"the broker {broker} does not let us in: {_why(exc)}") from exc
        where = f"the broker {broker} cannot be reached" if broker else "the broker did not take it"
        raise TransferError(f"{where}: {_why(exc)}") from exc


def _code(exc: BaseException | None) -> int | None:
    """The reason that a broker gave (MQTT 5, section 2.4), if this or what caused it has one."""
    found = getattr(getattr(exc, "rc", None), "value", None)
    return _code(exc.__cause__) if exc is not None and found is None else found


def _why(exc: BaseException) -> str:
    text = re.sub(r"^\[(?:code|Errno|SSL)[^\]]*\] *", "", str(exc)).strip()
    return text[:1].lower() + text[1:] if text else type(exc).__name__


def check_installed() -> None:
    """Whether MQTT can be spoken here at all.

    Raises:
        ConfigError: aiomqtt is missing.
    """
    _mqtt()


def _mqtt() -> Any:
    try:
        import aiomqtt  # noqa: PLC0415  who does not use MQTT does not load it
    except ModuleNotFoundError as exc:
        raise ConfigError("MQTT needs aiomqtt: pip install 'mgota[mqtt]'") from exc
    return aiomqtt
