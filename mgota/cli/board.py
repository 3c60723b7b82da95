"""What a configuration file means for commands: how a device is reached.

The ways are built here for `mgota run` and for `mgota doctor`, so that the one finds what the other would stumble on.
"""

import platform
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from mgota.cli.listening import credentials_of, server_context
from mgota.cli.options import FILE, client_context
from mgota.cli.virtual_device import Serving
from mgota.cli.ways import mqtt_way
from mgota.core.config import Config
from mgota.core.history import Update
from mgota.core.origin import Hosts, is_loopback
from mgota.core.sections import HttpSection, MqttSection, PullSection
from mgota.device import Device
from mgota.errors import ConfigError, TransferError
from mgota.linux.configured import CONFIG, kept_at, keys_of

F = TypeVar("F", bound=Callable[..., Any])

NOTE = "download"


def config_option(command: F) -> F:
    """`--config`."""
    told = f"What the device is made of; {CONFIG} if it is there and nothing else is named."
    return click.option("--config", "config", type=FILE, metavar="FILE", help=told)(command)


def found_config(config: Path | None, *, named: bool = False) -> Path | None:
    """The configuration file that a command is about.

    Args:
        config: of `--config`.
        named: whether the device is named otherwise; then it is the one of `--config` or none.
    """
    return config or (Path(CONFIG) if not named and Path(CONFIG).is_file() else None)


def path_of(text: str | None) -> Path | None:
    """A path, if there is one."""
    return Path(text) if text else None


def http_options(http: HttpSection) -> dict[str, Any]:
    """How the HTTP server is, but for its socket.

    Raises:
        ConfigError: a file cannot be read or used, or it would be open to the network.
    """
    auth = credentials_of(path_of(http.token_file), path_of(http.user_file))
    context = server_context(path_of(http.cert), path_of(http.key_file), path_of(http.client_ca))
    Hosts(http.allow_hosts)
    if not (auth or http.client_ca or http.insecure or is_loopback(http.host)):
        raise ConfigError(
            f"http.host: {http.host} is reached from elsewhere: say token_file, user_file or client_ca, or insecure"
        )
    page = "/" if http.page else None
    return {
        "auth": auth,
        "ssl_context": context,
        "insecure": http.insecure,
        "allow_hosts": http.allow_hosts,
        "page": page,
    }


def http_serving(http: HttpSection, listener: socket.socket) -> Serving:
    """By its own server.

    Raises:
        ConfigError: as `http_options`.
    """
    from mgota.transports.http import serve  # noqa: PLC0415  who is not reached so does not load it

    return partial(serve, listeners=[listener], **http_options(http))


def mqtt_serving(mqtt: MqttSection) -> Serving:
    """By a broker.

    Raises:
        ConfigError: the URL is none, or a file cannot be read or used.
    """
    return mqtt_way(
        mqtt=mqtt.url,
        mqtt_user_file=path_of(mqtt.user_file),
        mqtt_cacert=path_of(mqtt.cacert),
        mqtt_cert=path_of(mqtt.cert),
        mqtt_key_file=path_of(mqtt.key_file),
        mqtt_version=mqtt.version,
    )


class BrokerWay:
    """By a broker, and whether that is so now.

    Args:
        mqtt: the section.
    """

    def __init__(self, mqtt: MqttSection | None) -> None:
        self._mqtt = mqtt
        self._served: Any = None  # an `MqttDevice`, which is loaded when it is needed

    @asynccontextmanager
    async def serving(self, device: Device) -> AsyncGenerator[None]:
        """Be reached while the block runs; without the section, nothing."""
        if self._mqtt is None:
            yield
            return
        async with mqtt_serving(self._mqtt)(device) as served:
            self._served = served
            try:
                yield
            finally:
                self._served = None

    async def connected(self) -> bool:
        """Whether the broker is connected, as far as anybody knows."""
        return self._served is not None and self._served.connected

    async def report(self, update: Update) -> None:
        """Tell how an update ended.

        Raises:
            TransferError: the broker does not have it.
        """
        if self._served is None:
            raise TransferError("there is no connection to the broker")
        await self._served.online()
        await self._served.report(update)


def pull_options(config: Config, pull: PullSection) -> tuple[Any, dict[str, Any]]:
    """How the update server is reached, and what else it takes to ask it and to judge its answer: for `check`, `pull`.

    Raises:
        ConfigError: the URL may not be asked, or a file cannot be read or used.
    """
    from mgota.cli.pulling import policy_of, web_of  # noqa: PLC0415  who does not pull does not load it
    from mgota.core.weburl import check_source  # noqa: PLC0415

    keys = keys_of(config.keys.manifests or config.keys.images)
    check_source(pull.url, allow_http=pull.allow_http or bool(keys))
    web = web_of(
        context=client_context(path_of(pull.cacert), path_of(pull.cert), path_of(pull.key_file)),
        allow_http=pull.allow_http,
        allow_origin=pull.allow_origins,
        proxy=pull.proxy,
    )
    options: dict[str, Any] = {
        "policy": policy_of(pull.policy),
        "keys": keys or None,
        "threshold": config.keys.threshold,
        "allow_plain": config.keys.allow_plain_manifest,
    }
    return web, options


def pull_serving(config: Config, pull: PullSection) -> Serving:
    """By asking an update server.

    Raises:
        ConfigError: as `pull_options`.
    """
    from mgota.cli.pulling import polling  # noqa: PLC0415  who does not pull does not load it

    web, options = pull_options(config, pull)
    options |= {
        "jitter": pull.jitter,
        "mongoose_query": pull.mongoose_query,
        "device_id": name_of(config) if pull.mongoose_query else None,
    }
    return polling(pull.url, kept_at(config, NOTE), pull.interval, web, **options)


def name_of(config: Config) -> str:
    """What the device is called in reports."""
    return config.device.id or platform.node() or "device"
