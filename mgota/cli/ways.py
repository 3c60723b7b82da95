"""How a virtual device is reached besides its own HTTP port: `--mqtt`.

    mgota serve --slots DIR --mqtt mqtt://broker.example/site/7 --mqtt-user-file user

Each way is loaded when it is asked for, and not before. A command gets them as one argument, `ways`: each is a
`Serving`, and `together` makes one of all of them. `mgota.cli.pulling` adds `--pull`.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from mgota.cli.options import FILE, client_context, is_mqtt, lines_of, read_user
from mgota.cli.virtual_device import Serving
from mgota.device import Device

F = TypeVar("F", bound=Callable[..., Any])

_MQTT = ("mqtt", "mqtt_user_file", "mqtt_cacert", "mqtt_cert", "mqtt_key_file", "mqtt_version")


def ways_options(command: F) -> F:
    """The options of every way; the command gets them as one argument, `ways`."""

    @wraps(command)
    def checked(**arguments: Any) -> Any:
        found = {name: arguments.pop(name) for name in _MQTT}
        ways = [mqtt_way(**found)] if found["mqtt"] else []
        if not ways and any(found[name] for name in _MQTT[1:]):
            raise click.UsageError("--mqtt-version, --mqtt-user-file, --mqtt-cacert and the like belong to --mqtt URL")
        return command(ways=tuple(ways), **arguments)

    for option in (
        click.option(
            "--mqtt-version",
            type=click.Choice(["auto", "3.1.1", "5"]),
            help="Of MQTT.  [default: auto: 5, or 3.1.1 where the broker does not take that]",
        ),
        click.option("--mqtt-key-file", type=FILE, metavar="PEM", help="The key of --mqtt-cert, if elsewhere."),
        click.option("--mqtt-cert", type=FILE, metavar="PEM", help="A certificate to show to the broker."),
        click.option("--mqtt-cacert", type=FILE, metavar="PEM", help="Trust these CAs for mqtts, not the system's."),
        click.option("--mqtt-user-file", type=FILE, metavar="FILE", help="One line, user:password, for the broker."),
        click.option("--mqtt", metavar="URL", help="Be reached through a broker, too: mqtt://HOST:PORT/ROOT/DEVICE."),
    ):
        checked = option(checked)
    return cast(F, checked)


def together(ways: Sequence[Serving]) -> Serving:
    """One way of all of them; they begin in their order and end in the reverse."""

    @asynccontextmanager
    async def serving(device: Device) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            for way in ways:
                await stack.enter_async_context(way(device))
            yield

    return serving


def mqtt_way(
    *,
    mqtt: str,
    mqtt_user_file: Path | None,
    mqtt_cacert: Path | None,
    mqtt_cert: Path | None,
    mqtt_key_file: Path | None,
    mqtt_version: str | None,
) -> Serving:
    """By a broker.

    Raises:
        ConfigError: the URL is none, a file cannot be read or used, or aiomqtt is not installed.
    """
    if not is_mqtt(mqtt):
        raise click.UsageError("--mqtt takes mqtt://HOST:PORT/ROOT/DEVICE, or mqtts: for TLS")
    from mgota.transports.mqtt import Broker, serve  # noqa: PLC0415  who does not use MQTT does not load it
    from mgota.transports.mqtt.connection import check_installed  # noqa: PLC0415  the same

    check_installed()
    user = read_user(lines_of(mqtt_user_file, "user file")[0], mqtt_user_file) if mqtt_user_file else None
    context = client_context(mqtt_cacert, mqtt_cert, mqtt_key_file)
    broker = Broker.from_url(mqtt, user=user, ssl_context=context, version=cast(Any, mqtt_version or "auto"))
    return partial(serve, broker=broker)
