"""What a configuration file means for commands: how a device is reached, and who is told of its updates.

The ways are built here for `mgota run` and for `mgota doctor`, so that the one finds what the other would stumble on.
"""

import json
import platform
import socket
import urllib.request
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import click
from anyio import to_thread

from mgota.cli.listening import credentials_of, server_context
from mgota.cli.options import FILE, client_context
from mgota.cli.virtual_device import Serving
from mgota.cli.ways import mqtt_way
from mgota.core.config import Config
from mgota.core.history import Update
from mgota.core.origin import Hosts, is_loopback
from mgota.core.sections import HttpSection, MqttSection, PullSection
from mgota.device import Device
from mgota.errors import ConfigError
from mgota.health import Check
from mgota.history import History, Sink, report_updates
from mgota.linux.configured import CONFIG, kept_at, keys_of
from mgota.linux.story import FileStory

F = TypeVar("F", bound=Callable[..., Any])

NOTE = "download"
REPORTED = "reported"
_PATIENCE = 20.0  # seconds that somebody has to take a report


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


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def http_options(http: HttpSection) -> dict[str, Any]:
    """How the HTTP server is, but for its socket.

    Raises:
        ConfigError: a file cannot be read or used, or it would be open to the network.
    """
    auth = credentials_of(_path(http.token_file), _path(http.user_file))
    context = server_context(_path(http.cert), _path(http.key_file), _path(http.client_ca))
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
        mqtt_user_file=_path(mqtt.user_file),
        mqtt_cacert=_path(mqtt.cacert),
        mqtt_cert=_path(mqtt.cert),
        mqtt_key_file=_path(mqtt.key_file),
        mqtt_version=mqtt.version,
    )


def pull_serving(config: Config, pull: PullSection) -> Serving:
    """By asking an update server.

    Raises:
        ConfigError: the URL may not be asked, or a file cannot be read or used.
    """
    from mgota.cli.pulling import policy_of, polling, web_of  # noqa: PLC0415  who does not pull does not load it
    from mgota.core.weburl import check_source  # noqa: PLC0415

    keys = keys_of(config.keys.manifests or config.keys.images)
    check_source(pull.url, allow_http=pull.allow_http or bool(keys))
    web = web_of(
        context=client_context(_path(pull.cacert), _path(pull.cert), _path(pull.key_file)),
        allow_http=pull.allow_http,
        allow_origin=pull.allow_origins,
        proxy=pull.proxy,
    )
    options: dict[str, Any] = {
        "jitter": pull.jitter,
        "policy": policy_of(pull.policy),
        "keys": keys or None,
        "threshold": config.keys.threshold,
        "allow_plain": config.keys.allow_plain_manifest,
        "mongoose_query": pull.mongoose_query,
        "device_id": name_of(config) if pull.mongoose_query else None,
    }
    return polling(pull.url, kept_at(config, NOTE), pull.interval, web, **options)


def name_of(config: Config) -> str:
    """What the device is called in reports."""
    return config.device.id or platform.node() or "device"


def reporting(config: Config) -> Callable[[Device], AbstractAsyncContextManager[None]]:
    """Whoever is to be told of updates that ended, is, while the device runs."""
    sinks = [Sink("webhook", partial(_post, config.history.webhook, name_of(config)))] if config.history.webhook else []

    @asynccontextmanager
    async def told(device: Device) -> AsyncGenerator[None]:
        history = device.history if isinstance(device.history, History) else None
        path = Path(config.history.path).with_name(REPORTED) if config.history.path else kept_at(config, REPORTED)
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            if history and path and sinks:
                tasks.start_soon(report_updates, history, FileStory(path), sinks)
            try:
                yield
            except Exception as exc:  # noqa: BLE001  raised outside of the task group, which would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
        if failure:
            raise failure

    return told


async def _post(url: str, device: str, update: Update) -> None:
    body = json.dumps({"device": device, **asdict(update)}).encode()
    await to_thread.run_sync(_post_blocking, url, body, abandon_on_cancel=True)


def _post_blocking(url: str, body: bytes) -> None:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  http(s): checked
    with urllib.request.urlopen(request, timeout=_PATIENCE):  # noqa: S310  raises for every status that is an error
        pass


def checks_of(config: Config) -> list[Check]:
    """What has to be so before an image is made permanent."""
    health = config.health
    return [Check("command", partial(_succeeds, health.command), timeout=health.timeout)] if health else []


async def _succeeds(command: tuple[str, ...]) -> bool:
    return (await anyio.run_process(command, check=False, stdin=None)).returncode == 0
