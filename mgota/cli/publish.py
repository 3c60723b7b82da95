"""`mgota publish`: an update server for one directory."""

import logging
import socket
from functools import partial
from pathlib import Path

import anyio
import click

from mgota.cli.commands import log_to_stderr
from mgota.cli.listening import bound_listener, credentials_of, server_context, until_terminated, url_of
from mgota.cli.options import FILE, FOLDER
from mgota.core.pace import Limits
from mgota.transports.http.publish import DEVICES, LIMITS, Publisher
from mgota.transports.http.server import listening


@click.command()
@click.argument("directory", type=FOLDER, metavar="DIR")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks one.")
@click.option("--token-file", type=FILE, metavar="FILE", help="Bearer tokens that show the devices, one a line.")
@click.option("--user-file", type=FILE, metavar="FILE", help="Lines user:password that show the devices.")
@click.option("--cert", type=FILE, metavar="PEM", help="Serve https with this certificate.")
@click.option("--key-file", type=FILE, metavar="PEM", help="The key of --cert, if it is not in the same file.")
@click.option("--client-ca", type=FILE, metavar="PEM", help="Let in only who shows a certificate of this CA.")
@click.option("--allow-host", multiple=True, metavar="NAME", help="Show the devices under this name, too.")
@click.option("--connections", type=click.IntRange(1), default=LIMITS.connections, show_default=True,
              metavar="N", help="At a time; an eighth of them from one address.")  # fmt: skip
def publish(
    *,
    directory: Path,
    host: str,
    port: int,
    token_file: Path | None,
    user_file: Path | None,
    cert: Path | None,
    key_file: Path | None,
    client_ca: Path | None,
    allow_host: tuple[str, ...],
    connections: int,
) -> None:
    """Serve the manifests and images in DIR: with ranges, so that downloads go on, and entity tags.

    Whoever reaches it may read everything in DIR; only who asked, under /devices, is for clients on this machine, or
    with a token. The first line on stdout is `listening on http://HOST:PORT`.

    \b
    mgota manifest sign app.signed.bin --key private.pem --seq 7 -o firmware/manifest.json
    mgota publish firmware --host 0.0.0.0
    mgota pull http://SERVER:8080/manifest.json --slots DIR --key public.pem --current-version 1.0
    """  # noqa: D301  \b keeps click from joining the lines
    log_to_stderr(logging.INFO)
    endpoint = Publisher(
        directory,
        auth=credentials_of(token_file, user_file),
        ssl_context=server_context(cert, key_file, client_ca),
        allow_hosts=allow_host,
        limits=Limits(connections=connections, per_address=max(1, connections // 8)),
    )
    with bound_listener(host, port) as listener:
        anyio.run(partial(_run, endpoint, listener))


async def _run(endpoint: Publisher, listener: socket.socket) -> None:
    """Until SIGTERM."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until_terminated, tasks.cancel_scope)
        async with listening(endpoint, host="", port=0, listeners=[listener]):
            url = url_of(listener, secure=endpoint.ssl_context is not None)
            print(f"listening on {url}", flush=True)  # noqa: T201
            logging.getLogger("mgota.publish").info("%s is published; who asked: %s%s", endpoint.root, url, DEVICES)
            await anyio.sleep_forever()
