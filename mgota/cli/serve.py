"""`mgota serve`: be a virtual device.

Everything that can be wrong with the options is found before the first file is made or changed.
"""

import logging
import signal
import socket
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click

from mgota.cli.commands import log_to_stderr
from mgota.cli.options import (
    FILE,
    floor_option,
    hardware_option,
    lines_of,
    read_user,
    read_verifier,
    tls_fault,
    trust_options,
    window_option,
)
from mgota.cli.place import Place, place_options
from mgota.cli.pulling import polling_options
from mgota.cli.virtual_device import Serving, VirtualDevice, power_on
from mgota.cli.ways import together, ways_options
from mgota.core.access import Credentials
from mgota.core.origin import Hosts, is_loopback
from mgota.errors import ConfigError
from mgota.transports.http import serve as serve_http


@click.command()
@place_options
@trust_options
@floor_option
@hardware_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks one.")
@window_option
@click.option("--token-file", type=FILE, metavar="FILE", help="Bearer tokens that open the door, one a line.")
@click.option("--user-file", type=FILE, metavar="FILE", help="Lines user:password that open the door.")
@click.option("--cert", type=FILE, metavar="PEM", help="Serve https with this certificate.")
@click.option("--key-file", type=FILE, metavar="PEM", help="The key of --cert, if it is not in the same file.")
@click.option("--client-ca", type=FILE, metavar="PEM", help="Let in only who shows a certificate of this CA.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Answer to this name, too; may be repeated.")
@click.option("--insecure", is_flag=True, help="Listen beyond loopback without any authentication.")
@ways_options
@polling_options
@click.option("--page/--no-page", default=True, show_default=True, help="Show the updater page at / to browsers.")
def serve(
    *,
    place: Place,
    keys: tuple[Path, ...],
    trailer: str,
    floor: str | None,
    hardware: str | None,
    host: str,
    port: int,
    window: float,
    token_file: Path | None,
    user_file: Path | None,
    cert: Path | None,
    key_file: Path | None,
    client_ca: Path | None,
    allow_host: tuple[str, ...],
    insecure: bool,
    page: bool,
    ways: tuple[Serving, ...],
) -> None:
    """Be a virtual device: two slots as files, or a chip.

    A reset boots it again inside this process; window and rollback are real; killing the process is a power cut.
    The first line on stdout is `listening on http://HOST:PORT`.

    \b
    mgota serve --slots DIR
    mgota serve --target stm32h5 --flash chip.bin --state chip.state --key public.pem
    mgota serve --target stm32f4 --part STM32F405xG --flash chip.bin --state chip.state --check-image
    mgota serve --slots DIR --mqtt mqtt://127.0.0.1:1883/site/7
    mgota serve --slots DIR --key public.pem --pull https://updates.example/fw.json --interval 3600
    """  # noqa: D301  \b keeps click from joining the lines
    log_to_stderr(logging.INFO)
    verifier = read_verifier(keys, trailer)
    auth = _credentials(token_file, user_file)
    context = _server_context(cert, key_file, client_ca)
    Hosts(allow_host)
    with _listening(host, port) as listener:
        address = str(listener.getsockname()[0])
        if not (auth or client_ca or insecure or is_loopback(address)):
            raise ConfigError(
                f"{address} is reached from elsewhere: give --token-file, --user-file or --client-ca, or say --insecure"
            )
        options: dict[str, Any] = {
            "auth": auth,
            "ssl_context": context,
            "insecure": insecure,
            "allow_hosts": allow_host,
            "page": "/" if page else None,
        }
        serving = together([partial(serve_http, listeners=[listener], **options), *ways])
        make = partial(place.device, verifier=verifier, window=window, floor=floor, hardware=hardware)
        anyio.run(_run, make, serving, _url(listener, secure=context is not None))


async def _run(make: Callable[[], VirtualDevice], serving: Serving, url: str) -> None:
    """Until SIGTERM."""
    told = anyio.Event()

    def ready() -> None:
        if not told.is_set():
            print(f"listening on {url}", flush=True)  # noqa: T201
        told.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_terminated, tasks.cancel_scope)
        await power_on(make(), serving, ready)


def _url(listener: socket.socket, *, secure: bool) -> str:
    host, port = listener.getsockname()[:2]
    return f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


async def _terminated(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            scope.cancel()


def _credentials(token_file: Path | None, user_file: Path | None) -> Credentials | None:
    if token_file is None and user_file is None:
        return None
    tokens = lines_of(token_file, "token file") if token_file else []
    users = dict(read_user(line, user_file) for line in lines_of(user_file, "user file")) if user_file else {}
    return Credentials(tokens=tokens, users=users)


def _server_context(cert: Path | None, key_file: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    if cert is None:
        if key_file or client_ca:
            raise click.UsageError("--key-file and --client-ca need --cert")
        return None
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(cert, key_file)
        if client_ca:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as exc:
        raise ConfigError(f"the certificates cannot be used: {tls_fault(exc)}") from exc
    return context


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens before the device boots: its clients wait, here and through every reset."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as exc:
        raise ConfigError(f"{host} is no address to listen on: {exc.strerror}") from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as exc:
        listener.close()
        raise ConfigError(f"cannot listen on {host} port {port}: {str(exc.strerror).lower()}") from exc
    return listener
