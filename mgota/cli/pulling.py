"""What `mgota pull` and `mgota serve --pull` have in common: where updates come from, and which are wanted.

httpx and what else pulling takes are loaded when something is pulled, not before: who does not pull stays small.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import click

from mgota.cli.options import FILE, client_context
from mgota.device import Device
from mgota.errors import ConfigError

if TYPE_CHECKING:
    import ssl

    from mgota.core.offer import Policy
    from mgota.transports.pull import Web

F = TypeVar("F", bound=Callable[..., Any])

NEWER = "newer"
INTERVAL = 3600.0
"""Seconds between two polls, unless something else is said."""

_WISHES = ("policy", "allow_plain_manifest", "threshold", "allow_http", "allow_origin", "proxy", "mongoose_query")
_OWN = ("interval", "pull_cacert", "pull_cert", "pull_key_file")


def pull_options(command: F) -> F:
    """Which updates are wanted, and from whom."""
    for option in (
        click.option("--mongoose-query", metavar="ID", help="Tell the server what runs here, as Mongoose 7.22 does."),
        click.option("--proxy", metavar="URL", help="The proxy to ask; otherwise the environment's HTTPS_PROXY."),
        click.option("--allow-origin", multiple=True, metavar="URL", help="Redirections may lead there; repeatable."),
        click.option("--allow-http", is_flag=True, help="Fetch over http: what no --key verifies."),
        click.option(
            "--threshold",
            type=click.IntRange(1),
            default=1,
            show_default=True,
            metavar="N",
            help="How many of the keys have to sign a manifest.",
        ),
        click.option("--allow-plain-manifest", is_flag=True, help="Take manifests that nobody signed, with --key too."),
        click.option(
            "--policy",
            callback=_policy,
            default=NEWER,
            show_default=True,
            metavar="newer|different|pinned=VERSION",
            help="Which versions are wanted.",
        ),
    ):
        command = option(command)
    return command


def polling_options(command: F) -> F:
    """`--pull` and what belongs to it: one more of the `ways` that a command gets, which has `place` and `keys` too."""

    @wraps(command)
    def checked(**arguments: Any) -> Any:
        url = arguments.pop("pull")
        given = {name: arguments.pop(name) for name in (*_WISHES, *_OWN)}
        ways = arguments.pop("ways", ())
        if url is not None:
            if given["threshold"] > max(len(arguments["keys"]), 1):
                raise click.UsageError(f"--threshold {given['threshold']} needs as many --key")
            ways = (*ways, _way(url, arguments["place"].note, signed=bool(arguments["keys"]), **given))
        elif any(value not in {None, False, (), 1, NEWER} for value in given.values()):
            raise click.UsageError("--interval, --policy and what else is about pulling belong to --pull METADATA_URL")
        return command(ways=ways, **arguments)

    found = pull_options(cast(F, checked))
    for option in (
        click.option("--pull-key-file", type=FILE, metavar="PEM", help="The key of --pull-cert, if elsewhere."),
        click.option("--pull-cert", type=FILE, metavar="PEM", help="A certificate to show to the update server."),
        click.option("--pull-cacert", type=FILE, metavar="PEM", help="Trust these CAs for it, not the system's."),
        click.option(
            "--interval", type=float, callback=_interval, metavar="SECONDS", help="Between two looks; 3600 if omitted."
        ),
        click.option("--pull", metavar="METADATA_URL", help="Look for updates by itself, too."),
    ):
        found = option(found)
    return found


def _interval(_ctx: click.Context, _param: click.Parameter, value: float | None) -> float | None:
    if value is not None:
        from mgota.core.polls import check_interval  # noqa: PLC0415

        try:
            check_interval(value, 0.0)
        except ConfigError as exc:
            raise click.BadParameter(str(exc)) from exc
    return value


def _way(
    url: str,
    note: Path | None,
    *,
    signed: bool,
    interval: float | None,
    pull_cacert: Path | None,
    pull_cert: Path | None,
    pull_key_file: Path | None,
    allow_http: bool,
    allow_origin: tuple[str, ...],
    proxy: str | None,
    policy: str,
    allow_plain_manifest: bool,
    threshold: int,
    mongoose_query: str | None,
) -> Callable[[Device], AbstractAsyncContextManager[None]]:
    from mgota.core.weburl import check_source  # noqa: PLC0415

    check_source(url, allow_http=allow_http or signed)
    context = client_context(pull_cacert, pull_cert, pull_key_file)
    web = web_of(context=context, allow_http=allow_http, allow_origin=allow_origin, proxy=proxy)
    options = {
        "policy": policy_of(policy),
        "allow_plain": allow_plain_manifest,
        "threshold": threshold,
        "mongoose_query": mongoose_query is not None,
        "device_id": mongoose_query,
    }
    return polling(url, note, interval or INTERVAL, web, **options)


def _policy(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    try:
        if value != NEWER:
            policy_of(value)
    except ConfigError as exc:
        raise click.BadParameter(str(exc)) from exc
    return value


def policy_of(text: str) -> "Policy":
    """Which versions are wanted, of what `--policy` says.

    Raises:
        ConfigError: it is no policy.
    """
    from mgota.core.offer import Policy  # noqa: PLC0415

    return Policy.parse(text)


def web_of(
    *,
    context: "ssl.SSLContext | None",
    allow_http: bool,
    allow_origin: tuple[str, ...],
    proxy: str | None,
    deadline: float | None = None,
    tries: int = 10,
) -> "Web":
    """How servers are reached.

    Raises:
        ConfigError: httpx is not installed, or an option cannot be.
    """
    from mgota.core.download import Patience  # noqa: PLC0415

    try:
        from mgota.transports.pull import Web  # noqa: PLC0415  who does not pull does not load it
    except ModuleNotFoundError as exc:
        if exc.name != "httpx":
            raise
        raise ConfigError("pulling needs httpx: pip install 'mgota[pull]'") from exc
    return Web(
        ssl_context=context,
        proxy=proxy,
        allow_http=allow_http,
        allow_origins=allow_origin,
        deadline=deadline,
        patience=Patience(tries=tries),
    )


def polling(
    url: str, note: Path | None, interval: float, web: "Web", **options: Any
) -> Callable[[Device], AbstractAsyncContextManager[None]]:
    """A device that looks for updates by itself while it runs.

    Args:
        url: of the manifest.
        note: where progress is marked.
        interval: seconds between two polls.
        web: how servers are reached.
        options: further arguments of `poll`.
    """
    from mgota.linux.note import FileNote  # noqa: PLC0415
    from mgota.transports.pull import poll  # noqa: PLC0415

    kept = FileNote(note) if note else None

    @asynccontextmanager
    async def serving(device: Device) -> AsyncGenerator[None]:
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(poll, device, url, interval=interval, note=kept, web=web, **options))
            try:
                yield
            except Exception as exc:  # noqa: BLE001  raised outside of the task group, which would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
        if failure:
            raise failure

    return serving
