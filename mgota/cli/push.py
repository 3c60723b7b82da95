"""`mgota push`: one image to one device, or to many."""

import json
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import anyio
import click

from mgota.cli.ending import run_until_told
from mgota.cli.options import FILE, as_json, client_options, is_mqtt, read_text, remote_at
from mgota.cli.packing import compress_option, outgoing
from mgota.core.unpack import Packing
from mgota.errors import ConfigError, OtaError, TransferError
from mgota.outgoing import Progress, Remote
from mgota.packed import Packed

log = logging.getLogger("mgota.cli")


@click.command()
@click.argument("image", type=FILE)
@click.argument("url", required=False)
@click.option("--devices", type=FILE, metavar="FILE", help="Push to every device in this file; see above.")
@click.option("--jobs", type=click.IntRange(min=1), default=8, show_default=True, help="How many at a time.")
@click.option("--window", type=click.IntRange(1, 32), help="Over MQTT: chunks in flight.  [default: 8]")
@click.option(
    "--chunk",
    type=click.IntRange(1, 65536),
    metavar="BYTES",
    help="Over MQTT: how much a message carries.  [default: 16384; 4096 with --stop-and-wait]",
)
@click.option("--stop-and-wait", is_flag=True, help="Over MQTT: one chunk at a time, as devices of Mongoose want it.")
@compress_option
@client_options
@as_json
def push(
    *,
    image: Path,
    url: str | None,
    devices: Path | None,
    jobs: int,
    as_json: bool,
    window: int | None,
    chunk: int | None,
    stop_and_wait: bool,
    compress: str | None,
    **client: Any,
) -> None:
    """Push IMAGE to the device at URL, or to every device in a file.

    URL is http://HOST:PORT, or the full URL of an update endpoint, or mqtt://BROKER/ROOT/DEVICE. It ends well when the
    device has said that the update survives any cut; the trial comes after that.

    The file of --devices has one URL a line, and if that device has a token of its own, the token behind it. Blank
    lines do not count, nor what stands behind a # at the start of a word:

    \b
        # gateways, north hall
        http://10.0.0.11:8000
        http://10.0.0.12:8000   s3cret-token
        mqtt://broker.lan/hall/gateway-13
    """  # noqa: D301  \b keeps click from joining the lines
    if (url is None) == (devices is None):
        raise click.UsageError("to whom? give either a URL or --devices FILE")
    if window and stop_and_wait:
        raise click.UsageError("--stop-and-wait has no window")
    if not image.is_file():
        raise ConfigError(f"there is no image {image}")
    mqtt: dict[str, Any] = {"stop_and_wait": stop_and_wait, "chunk": chunk, **({"window": window} if window else {})}
    targets = read_devices(devices) if devices else [Target(url or "")]
    if not any(is_mqtt(target.url) for target in targets) and (window or chunk or stop_and_wait):
        raise click.UsageError("--window, --chunk and --stop-and-wait are for mqtt://")
    if compress in set(Packing) and all(is_mqtt(target.url) for target in targets):
        raise click.UsageError("--compress is for http")
    with outgoing(image, compress) as (packed, plain):

        def push_to(target: Target) -> Push:
            remote = _remote_of(target, client, mqtt)
            sent = plain() if is_mqtt(target.url) else packed
            size = sent.size if isinstance(sent, Packed) else None
            return Push(_shown(target.url), partial(remote.push, cast(Any, sent)), size)

        if devices is None:
            _push_one(image.name, push_to(targets[0]), told=as_json)
            return
        results = run_until_told(_push_all, [push_to(target) for target in targets], jobs, as_json)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results]))
    else:
        _draw_table(results)
    if failed := sum(not result.ok for result in results):
        raise TransferError(f"{failed} of {len(results)} devices did not take the image")


@dataclass(frozen=True, slots=True)
class Target:
    """A device to push to.

    Args:
        url: where.
        token: its own, if it has one.
        place: file and line that name it; "" if the command line does.
    """

    url: str
    token: str | None = None
    place: str = ""


def _remote_of(target: Target, client: dict[str, Any], mqtt: dict[str, Any]) -> Remote:
    """The way to a device.

    Raises:
        ConfigError: its URL is none, or an option cannot be; the line is named if it stands in a file.
    """
    # The token of the command line is for those of a file that are reached over HTTP.
    options = {**client, "token_file": None} if target.place and is_mqtt(target.url) else client
    try:
        return remote_at(target.url, token=target.token, **options, **mqtt)
    except ConfigError as exc:
        raise ConfigError(f"{target.place}: {exc}" if target.place else str(exc)) from exc


def read_devices(path: Path) -> list[Target]:
    """URLs, and tokens where a device has its own.

    Raises:
        ConfigError: the file cannot be read, is empty, names a device twice, or has a line that is no URL and token.
    """
    found: dict[str, Target] = {}
    for number, line in enumerate(read_text(path, "file of devices").splitlines(), 1):
        place = f"{path}, line {number}"
        words = line.split()
        comment = next((at for at, word in enumerate(words) if word.startswith("#")), len(words))
        match words[:comment]:
            case []:
                continue
            case [url] | [url, _] if url in found:
                raise ConfigError(f"{place}: this device stands there twice")
            case [url, *token] if len(token) <= 1:
                found[url] = Target(url, token[0] if token else None, place)
            case _:
                raise ConfigError(f"{place}: more than a URL and a token")
    if not found:
        raise ConfigError(f"{path} names no device")
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Push:
    """One image to one device.

    Args:
        url: of the device, without secrets.
        begin: begins it.
        unpacked: bytes of the image, if it is sent packed.
    """

    url: str
    begin: Callable[[], AsyncGenerator[Progress]]
    unpacked: int | None


def _push_one(name: str, push: Push, *, told: bool) -> None:
    began = time.monotonic()
    draw = _silent if told else _draw_bar if sys.stderr.isatty() else _draw_lines
    try:
        size = run_until_told(draw, name, push.begin())
    except OtaError as exc:
        if told:
            click.echo(json.dumps({"url": push.url, "ok": False, "error": str(exc)}))
        raise
    seconds = time.monotonic() - began
    image_size = push.unpacked or size
    if told:
        click.echo(json.dumps({"url": push.url, "ok": True, "size": image_size, "seconds": round(seconds, 3)}))
    else:
        rate = size / max(seconds, 1e-3) / 1e6
        click.echo(f"ok: the device has {image_size} bytes and tries them next ({seconds:.1f} s, {rate:.1f} MB/s)")


def _shown(url: str) -> str:
    """A URL without the secrets that may stand in it."""
    scheme, separator, rest = url.partition("://")
    return scheme + separator + rest.rpartition("@")[2]


async def _silent(_: str, progress: AsyncGenerator[Progress]) -> int:
    size = 0
    async with aclosing(progress):
        async for step in progress:
            size = step.size
    return size


async def _draw_lines(name: str, progress: AsyncGenerator[Progress]) -> int:
    """A line for every tenth: where there is no terminal, and nothing can be drawn over."""
    size = told = 0
    waiting = ""
    async with aclosing(progress):
        async for step in progress:
            size = step.size
            if step.waiting != waiting and (waiting := step.waiting):
                click.echo(f"{name}: waiting: {waiting}")
            if (tenth := step.sent * 10 // size) > told:
                told = tenth
                click.echo(f"{name}: {tenth * 10} %")
    return size


async def _draw_bar(name: str, progress: AsyncGenerator[Progress]) -> int:
    from rich import progress as bars  # noqa: PLC0415  slow to load, and needed only for drawing
    from rich.console import Console  # noqa: PLC0415

    size = 0
    columns = (
        "[progress.description]{task.description}",
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=None)
        async with aclosing(progress):
            async for step in progress:
                size = step.size
                done = f"waiting: {step.waiting}" if step.waiting else "verifying" if step.sent == size else name
                bar.update(task, total=size, completed=step.sent, description=done)
    return size


@dataclass(frozen=True, slots=True)
class Result:
    """How a push to one of many ended.

    Args:
        url: of the device.
        ok: it took the image.
        seconds: that it took.
        error: why it did not.
    """

    url: str
    ok: bool
    seconds: float
    error: str | None = None


async def _push_all(pushes: list[Push], jobs: int, quiet: bool) -> list[Result]:
    """Push to all, some at a time. One that fails stops none of the others."""
    results: dict[str, Result] = {}
    limiter = anyio.CapacityLimiter(jobs)

    async def one(url: str, push: Push) -> None:
        async with limiter:
            began = time.monotonic()
            error: str | None = None
            try:
                await _silent(url, push.begin())
            except OtaError as exc:
                error = str(exc)
            results[url] = Result(url, error is None, round(time.monotonic() - began, 3), error)
        if not quiet and sys.stderr.isatty():
            click.echo(f"[{len(results)}/{len(pushes)}] {url}: {error or 'ok'}", err=True)

    async with anyio.create_task_group() as tasks:
        for push in pushes:
            tasks.start_soon(one, push.url, push)
    return [results[push.url] for push in pushes]


def _draw_table(results: list[Result]) -> None:
    if not sys.stdout.isatty():
        for result in results:
            click.echo(f"{result.url}\t{'ok' if result.ok else 'failed'}\t{result.seconds:.1f}\t{result.error or ''}")
        return
    from rich.console import Console  # noqa: PLC0415  slow to load, and needed only for drawing
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("device", "result", "seconds", "why")
    for result in results:
        mark = Text("ok", "green") if result.ok else Text("failed", "red")
        table.add_row(Text(result.url), mark, f"{result.seconds:.1f}", Text(result.error or ""))
    Console().print(table)
