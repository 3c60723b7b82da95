"""`mgota serve`: be a virtual device.

Everything that can be wrong with the options is found before the first file is made or changed.
"""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click

from mgota.cli.commands import log_to_stderr
from mgota.cli.listening import bound_listener, credentials_of, server_context, until_terminated, url_of
from mgota.cli.options import (
    FILE,
    floor_option,
    hardware_option,
    read_verifier,
    trust_options,
    window_option,
)
from mgota.cli.place import Place, place_options
from mgota.cli.pulling import polling_options
from mgota.cli.virtual_device import Serving, VirtualDevice, power_on
from mgota.cli.ways import together, ways_options
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
@click.option(
    "--legacy-get",
    is_flag=True,
    help="Let GET commit and roll back, as Mongoose's older dashboards do. Any web page can make a browser send that.",
)
@ways_options
@polling_options
@click.option(
    "--health-line", metavar="TEXT", help="Of a wired chip: commit an image when it prints this on --console."
)
@click.option("--console", metavar="URL", help="Where it prints: serial:///DEVICE?baud=BAUD or tcp://HOST:PORT.")
@click.option("--health-url", metavar="URL", help="Of a wired chip: commit an image when this URL answers.")
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
    legacy_get: bool,
    page: bool,
    ways: tuple[Serving, ...],
    **health: str | None,
) -> None:
    """Be a virtual device: two slots as files, or a chip. Or update a real one, wired to this machine.

    A reset boots it again inside this process; window and rollback are real; killing the process is a power cut.
    The first line on stdout is `listening on http://HOST:PORT`.

    \b
    mgota serve --slots DIR
    mgota serve --target stm32h5 --flash chip.bin --state chip.state --key public.pem
    mgota serve --target stm32f4 --part STM32F405xG --flash chip.bin --state chip.state --check-image
    mgota serve --slots DIR --mqtt mqtt://127.0.0.1:1883/site/7
    mgota serve --target stm32f4 --link gdb://127.0.0.1:3333 --slots DIR --state FILE
    mgota serve --slots DIR --key public.pem --pull https://updates.example/fw.json --interval 3600
    """  # noqa: D301  \b keeps click from joining the lines
    log_to_stderr(logging.INFO)
    verifier = read_verifier(keys, trailer)
    auth = credentials_of(token_file, user_file)
    context = server_context(cert, key_file, client_ca)
    Hosts(allow_host)
    with bound_listener(host, port) as listener:
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
            "legacy_get": legacy_get,
            "page": "/" if page else None,
        }
        serving = together([partial(serve_http, listeners=[listener], **options), *ways])
        make = _watched(
            place, partial(place.device, verifier=verifier, window=window, floor=floor, hardware=hardware), **health
        )
        anyio.run(_run, make, serving, url_of(listener, secure=context is not None))


def _watched(
    place: Place,
    make: Callable[[], VirtualDevice],
    *,
    health_line: str | None,
    console: str | None,
    health_url: str | None,
) -> Callable[[], VirtualDevice]:
    """With the health checks of a wired chip."""
    if place.link is None:
        if health_line or console or health_url:
            raise click.UsageError("--health-line, --console and --health-url belong to --link")
        return make
    from mgota.cli.wired import health_of  # noqa: PLC0415  who has no wired chip does not load it

    health = health_of(health_line, console, health_url, place.link)
    return lambda: health.watching(make())


async def _run(make: Callable[[], VirtualDevice], serving: Serving, url: str) -> None:
    """Until SIGTERM."""
    told = anyio.Event()

    def ready() -> None:
        if not told.is_set():
            print(f"listening on {url}", flush=True)  # noqa: T201
        told.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_terminated, tasks.cancel_scope)
        await power_on(make(), serving, ready)
