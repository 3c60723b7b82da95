"""Who is told of updates that ended, as `[history]` says it: a webhook, the update server, the broker.

Rules:
- who does not listen is told again, over restarts too (`mgota.history`), and no update waits for it;
- the update server is told as it is asked: by Mongoose's query, of which it learns what runs now. What it offers is
  not looked at.
"""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from mgota.cli.board import BrokerWay, name_of, path_of, pull_options
from mgota.cli.options import client_context
from mgota.core.config import Config
from mgota.core.history import Update
from mgota.core.record import Outcome, State
from mgota.core.weburl import with_query
from mgota.device import Device
from mgota.errors import ConfigError, RejectedError, TransferError
from mgota.history import History, Sink, report_updates
from mgota.linux.configured import kept_at
from mgota.linux.story import FileStory

REPORTED: Final = "reported"
_PATIENCE: Final = 20.0
# Seconds that somebody has to take a report.

_BOOT: Final = {State.CONFIRMED: 0, State.TESTING: 1, State.FAILED: 2}
_ROLLED_BACK: Final = 3


def reporting(config: Config, broker: BrokerWay | None = None) -> Callable[[Device], AbstractAsyncContextManager[None]]:
    """Whoever is to be told of updates that ended, is, while the device runs.

    Args:
        config: says who.
        broker: how the device is reached by one.

    Raises:
        ConfigError: a file cannot be read or used, or a URL may not be asked.
    """
    sinks_of = _sinks(config, broker)

    @asynccontextmanager
    async def told(device: Device) -> AsyncGenerator[None]:
        history = device.history if isinstance(device.history, History) else None
        path = Path(config.history.path).with_name(REPORTED) if config.history.path else kept_at(config, REPORTED)
        sinks = sinks_of(device)
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


def _sinks(config: Config, broker: BrokerWay | None) -> Callable[[Device], list[Sink]]:
    """The sinks of a device. The broker is the last one: it may have to be waited for."""
    history, name, always = config.history, name_of(config), list[Sink]()
    if history.webhook:
        context = client_context(path_of(history.cacert), None, None)
        always.append(Sink("webhook", partial(_post, history.webhook, context, name)))
    if history.query:
        check_query(config)

    def of(device: Device) -> list[Sink]:
        sinks = [*always]
        if history.query:
            sinks.append(Sink("query", partial(_ask, config, device)))
        if history.mqtt and broker:
            sinks.append(Sink("mqtt", broker.report))
        return sinks

    return of


def check_query(config: Config) -> None:
    """Whether the update server can be asked.

    Raises:
        ConfigError: the URL may not be asked, or a file cannot be read or used.
    """
    if config.pull is None:
        raise ConfigError("history.query: this needs a section [pull]")
    pull_options(config, config.pull)


async def _post(url: str, context: ssl.SSLContext | None, device: str, update: Update) -> None:
    body = json.dumps({"device": device, **asdict(update)}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310  http(s): checked
    await to_thread.run_sync(fetched, request, context, _PATIENCE, abandon_on_cancel=True)


def fetched(request: urllib.request.Request | str, context: ssl.SSLContext | None, timeout: float) -> None:
    """Ask, and throw the answer away. Blocks.

    Args:
        request: of http or https.
        context: whom to trust; the system's trust if None.
        timeout: seconds of silence.

    Raises:
        TransferError: there is no answer, or its status is that of an error.
    """
    try:
        with urllib.request.urlopen(request, timeout=timeout, context=context):  # noqa: S310  http(s): checked
            pass
    except urllib.error.HTTPError as exc:
        with exc:
            raise TransferError(f"it answered HTTP {exc.code}") from exc
    except (OSError, HTTPException) as exc:
        why = str(getattr(exc, "reason", exc)) or type(exc).__name__
        raise TransferError(f"it did not answer: {why}") from exc


async def _ask(config: Config, device: Device, _: Update) -> None:
    """Tell the update server what runs now: an older update than the last one has nothing to add to that."""
    from mgota.transports.pull import check  # noqa: PLC0415  who does not pull does not load it

    if config.pull is None:  # pragma: no cover  `check_query` was asked
        return
    web, options = pull_options(config, config.pull)
    status = await device.status()
    told = {
        "arch": "1",  # MG_ARCH_UNIX
        "version": (status.image.version if status.image else None) or "",
        "id": name_of(config),
        "interval": f"{config.pull.interval:.0f}",
        "boot": str(_BOOT.get(status.state, 0)),
    }
    if status.state is State.CONFIRMED and status.outcome is Outcome.ROLLED_BACK:
        told["boot"] = str(_ROLLED_BACK)
    with suppress(RejectedError):  # it was asked, and so told; what it offers is the poll's business
        await check(with_query(config.pull.url, told), device=device, web=web, **options)
