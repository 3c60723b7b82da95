"""Options that several commands have, and how their files are read.

Rules:
- what is wrong with a file is a `ConfigError` that names the file, and never what stands in it;
- secrets come from files, not from the command line, where every process could read them.
"""

import math
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from mgota.core.image import Trailer, Verifier
from mgota.core.keys import PublicKey, load_public_key
from mgota.core.version import is_version, order
from mgota.errors import ConfigError
from mgota.outgoing import Remote

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, readable=False)  # whether it can be read shows when it is
FOLDER = click.Path(path_type=Path, file_okay=False, readable=False)


def some_seconds(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    """A time: finite, and more than nothing."""
    if not 0 < value < math.inf:
        raise click.BadParameter("this is no time to wait")
    return value


def no_or_some_seconds(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    """A time, or 0 for none."""
    if not 0 <= value < math.inf:
        raise click.BadParameter("this is no time to wait")
    return value


def window_option(command: F) -> F:
    """`--window`."""
    return click.option(
        "--window",
        type=float,
        callback=some_seconds,
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="How long an image on trial has until it must be committed.",
    )(command)


def as_json(command: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(command)


def trailer_option(command: F) -> F:
    """`--trailer`."""
    return click.option(
        "--trailer",
        type=click.Choice([trailer.value for trailer in Trailer]),
        default=Trailer.RAW.value,
        show_default=True,
        help="How the signature is attached: the last 64 bytes, or Mongoose 7.22's with MGSG behind them.",
    )(command)


def trust_options(command: F) -> F:
    """`--key`, several times, and `--trailer`: which images a device takes."""
    key = click.option(
        "--key",
        "keys",
        type=FILE,
        multiple=True,
        metavar="PUBLIC.PEM",
        help="A public key that is trusted; several may be given. Without any, every image is taken.",
    )
    return key(trailer_option(command))


def floor_option(command: F) -> F:
    """`--floor`."""
    return click.option(
        "--floor",
        callback=_floor,
        metavar="VERSION",
        help="Take no version below this one; every image needs a version then. The next commit records it for good.",
    )(command)


def _floor(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and order(value) is None:
        raise click.BadParameter(f"{value} is no version that others could be compared with")
    return value


def hardware_option(command: F) -> F:
    """`--hardware`."""
    return click.option(
        "--hardware", callback=_hardware, metavar="ID", help="What this device is, for manifests that name hardware."
    )(command)


def _hardware(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_version(value):
        raise click.BadParameter("an id is 1 to 64 printable characters without spaces")
    return value


def client_options(command: F) -> F:
    """How a device is talked to."""
    for option in (
        click.option(
            "--timeout",
            type=float,
            callback=some_seconds,
            default=60.0,
            show_default=True,
            metavar="SECONDS",
            help="How long nothing may move.",
        ),
        click.option("--key-file", type=FILE, metavar="PEM", help="The key of --cert, if it is not in the same file."),
        click.option("--cert", type=FILE, metavar="PEM", help="A certificate to show, for mutual TLS."),
        click.option(
            "--cacert", type=FILE, metavar="PEM", help="Trust these CAs instead of the system's, for https and mqtts."
        ),
        click.option("--user-file", type=FILE, metavar="FILE", help="One line, user:password, for device or broker."),
        click.option("--token-file", type=FILE, metavar="FILE", help="One line, a bearer token, for http."),
        click.option(
            "--mqtt-version",
            type=click.Choice(["auto", "3.1.1", "5"]),
            default="auto",
            show_default=True,
            help="For mqtt: auto is 5, or 3.1.1 where the broker does not take that.",
        ),
    ):
        command = option(command)
    return command


def read_text(path: Path, what: str) -> str:
    """A small text file.

    Args:
        path: the file.
        what: a word for it, for the message.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return read_bytes(path, what).decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the {what} {path} cannot be read: it is not UTF-8") from exc


def read_bytes(path: Path, what: str) -> bytes:
    """A small file.

    Args:
        path: the file.
        what: a word for it, for the message.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"the {what} {path} cannot be read: {str(exc.strerror).lower()}") from exc


def lines_of(path: Path, what: str) -> list[str]:
    """The lines of a file of secrets, at least one, without blank ones. `#` is no comment: it may be part of a secret.

    Raises:
        ConfigError: it cannot be read, or there is nothing in it.
    """
    lines = [line.strip() for line in read_text(path, what).splitlines() if line.strip()]
    if not lines:
        raise ConfigError(f"the {what} {path} is empty")
    return lines


def read_user(line: str, path: Path) -> tuple[str, str]:
    """A line `user:password`.

    Raises:
        ConfigError: it is none.
    """
    name, colon, password = line.partition(":")
    if not colon or not name or not password:
        raise ConfigError(f"the user file {path} has a line that is not user:password")
    return name, password


def read_public_key(path: Path) -> PublicKey:
    """A public key.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    data = read_bytes(path, "public key")
    try:
        return load_public_key(data)
    except ConfigError as exc:
        raise ConfigError(f"the public key {path}: {exc}") from exc


def read_verifier(keys: tuple[Path, ...], trailer: str) -> Verifier | None:
    """Which images are taken; None takes every one.

    Raises:
        ConfigError: a key cannot be read, or is none.
    """
    if not keys:
        return None
    return Verifier(keys=[read_public_key(path) for path in keys], trailer=Trailer(trailer))


def is_mqtt(url: str) -> bool:
    """Whether a URL leads to a broker."""
    return url.partition(":")[0].lower() in {"mqtt", "mqtts"}


def remote_at(
    url: str,
    *,
    token_file: Path | None,
    user_file: Path | None,
    cacert: Path | None,
    cert: Path | None,
    key_file: Path | None,
    timeout: float,
    mqtt_version: str,
    token: str | None = None,
    **mqtt: Any,
) -> Remote:
    """A device in the network, from the options of `client_options`.

    Args:
        url: of the device.
        token_file: its first line is a bearer token.
        user_file: its first line is user:password.
        cacert: whom to trust.
        cert: what to show.
        key_file: its key.
        timeout: seconds in which something has to move.
        mqtt_version: of MQTT, if the URL leads to a broker.
        token: a token that was found elsewhere, and comes first.
        mqtt: what else only MQTT knows.

    Raises:
        ConfigError: a file cannot be read or used, or the URL is none.
    """
    user = read_user(lines_of(user_file, "user file")[0], user_file) if user_file else None
    context = client_context(cacert, cert, key_file)
    if is_mqtt(url):
        from mgota.transports.mqtt import sender  # noqa: PLC0415  who uses HTTP does not load it

        if token is not None or token_file is not None:
            raise ConfigError("a token is for http: a broker wants a name and a password, in --user-file")
        context = context if url.lower().startswith("mqtts:") else None  # as for http: what needs none gets none
        version = cast(Any, mqtt_version)
        return sender.Remote(url, user=user, ssl_context=context, timeout=timeout, version=version, **mqtt)
    if url.partition("://")[0].lower() not in {"http", "https"}:
        raise ConfigError("the URL of a device is http://HOST:PORT, https://HOST:PORT or mqtt://BROKER/ROOT/DEVICE")
    if token is None and token_file is not None:
        token = lines_of(token_file, "token file")[0]
    from mgota.transports.http.push import Remote as HttpRemote  # noqa: PLC0415  a device that serves does not push

    return HttpRemote(url, token=token, user=user, ssl_context=context, timeout=timeout)


def client_context(cacert: Path | None, cert: Path | None, key_file: Path | None) -> ssl.SSLContext | None:
    """Whom a client trusts and what it shows; None is the system's trust.

    Raises:
        ConfigError: a file cannot be read, or is not in PEM.
    """
    if cacert is None and cert is None:
        if key_file is not None:
            raise click.UsageError("--key-file needs --cert")
        return None
    try:
        context = ssl.create_default_context(cafile=cacert)
        if cert is not None:
            context.load_cert_chain(cert, key_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"the certificates cannot be used: {tls_fault(exc)}") from exc
    return context


def tls_fault(exc: OSError) -> str:
    """Why certificate files were refused."""
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "not in PEM").replace("_", " ").lower()
    return str(exc.strerror).lower()
