"""Where a device is reached over MQTT: its broker and its topics. Both ends use it.

    broker = Broker.from_url("mqtts://broker.example/site/123", user=("joe", password))

Rules:
- TLS is 1.2 or newer and checks the broker's name;
- a password is never shown.
"""

import random
import ssl
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Literal, Self
from urllib.parse import unquote, urlsplit

from mgota.core.rpc import MAX_FRAME
from mgota.errors import ConfigError

PORT: Final = 1883
TLS_PORT: Final = 8883
MAX_PACKET: Final = MAX_FRAME + 1024
"""Bytes of the longest message. A broker that speaks MQTT 5 keeps longer ones away; for 3.1.1 that is its
configuration (mosquitto: `message_size_limit`, or `max_packet_size`)."""

_MAX_TOPIC: Final = 512

Spoken = Literal["3.1.1", "5"]
Version = Literal["auto", "3.1.1", "5"]
"""Of MQTT. "auto" is 5, and 3.1.1 where the broker does not take that."""

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
        version: of the protocol: "3.1.1", "5", or "auto".
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
    version: Version = "auto"
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
        if self.version not in {"auto", "3.1.1", "5"}:
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
        version: Version = "auto",
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
        if "#" in url or "+" in parts.path:
            raise ConfigError("the URL of a broker names one device: it has no wildcards, neither # nor +")
        if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.query:
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

    def member(self, name: str) -> Self:
        """The same broker, and one device of the gateway that stands at this place in it.

        Raises:
            ConfigError: the topic would be too long.
        """
        return replace(self, root=f"{self.root}/{self.device}", device=name)

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


def backoff(attempt: int, *, least: float = 0.5, most: float = 30.0) -> float:
    """Seconds to wait before trying to connect again, with jitter so that a fleet does not come back all at once.

    Args:
        attempt: how many tries failed in a row, from 1.
        least: of the first wait.
        most: of any wait.
    """
    ceiling = min(most, least * 2.0 ** min(attempt - 1, 16))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311  no secret
