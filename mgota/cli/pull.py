"""`mgota pull`: fetch an update for a device on this machine, if there is one that it wants.

Exit status: 0 installed, 3 nothing to do, 1 failed. Rules:
- 0 says that the record is TESTING and the new image selected: its trial begins at the next `serve` or `run`, or at
  once if `mgota run` is at work there;
- a chip's reset ends the command: whoever starts the device next starts the new image;
- with --dry-run nothing is made or changed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import click

from mgota.cli.options import (
    FILE,
    as_json,
    client_context,
    floor_option,
    hardware_option,
    read_verifier,
    some_seconds,
    trust_options,
)
from mgota.cli.place import Place, place_options
from mgota.cli.pulling import policy_of, pull_options, web_of
from mgota.cli.virtual_device import VirtualDevice, powered
from mgota.core.offer import Decision
from mgota.core.weburl import check_source
from mgota.device import Device
from mgota.errors import OtaError
from mgota.linux.environment import device_at, launcher_info
from mgota.linux.note import FileNote

if TYPE_CHECKING:
    from mgota.transports.pull import Web

NOTHING_TO_DO = 3
"""Exit status."""


def _deadline(ctx: click.Context, param: click.Parameter, value: float | None) -> float | None:
    return None if value is None else some_seconds(ctx, param, value)


@click.command()
@click.argument("url", metavar="METADATA_URL")
@place_options
@trust_options
@floor_option
@hardware_option
@pull_options
@click.option("--current-version", metavar="VERSION", help="What runs now; what is recorded of it if omitted.")
@click.option("--force", is_flag=True, help="Install a version that was rolled back before, too.")
@click.option("--dry-run", is_flag=True, help="Only tell whether there is an update.")
@click.option("--cacert", type=FILE, metavar="PEM", help="Trust these CAs instead of the system's, for https.")
@click.option("--cert", type=FILE, metavar="PEM", help="A certificate to show, for mutual TLS.")
@click.option("--key-file", type=FILE, metavar="PEM", help="The key of --cert, if it is not in the same file.")
@click.option("--deadline", type=float, callback=_deadline, metavar="SECONDS", help="Give up after so long.")
@click.option(
    "--tries",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    metavar="N",
    help="Give up after so many in a row that brought no new byte.",
)
@as_json
def pull(
    *,
    url: str,
    place: Place,
    keys: tuple[Path, ...],
    trailer: str,
    floor: str | None,
    hardware: str | None,
    dry_run: bool,
    cacert: Path | None,
    cert: Path | None,
    key_file: Path | None,
    deadline: float | None,
    tries: int,
    as_json: bool,
    allow_http: bool,
    allow_origin: tuple[str, ...],
    proxy: str | None,
    **wishes: Any,
) -> int:
    """Install the update that METADATA_URL offers, if there is one.

    Exit status: 0 installed, 3 nothing to do, 1 failed.

    \b
    mgota pull https://updates.example/fw.json --slots DIR --key public.pem
    mgota pull http://127.0.0.1:8080/fw.json --target stm32h5 --flash chip.bin --state chip.state --key public.pem
    """  # noqa: D301  \b keeps click from joining the lines
    verifier = read_verifier(keys, trailer)
    context = client_context(cacert, cert, key_file)
    web = web_of(
        context=context, allow_http=allow_http, allow_origin=allow_origin, proxy=proxy, deadline=deadline, tries=tries
    )
    check_source(url, allow_http=allow_http or verifier is not None)  # before a file is made
    device = {"verifier": verifier, "floor": floor, "hardware": hardware}
    if dry_run:
        return _tell(anyio.run(_look, url, place, device, web, wishes), as_json=as_json, installed=None)
    decision, installed = anyio.run(_install, url, place, device, web, wishes)
    return _tell(decision, as_json=as_json, installed=installed)


def _tell(decision: Decision, *, as_json: bool, installed: bool | None) -> int:
    """One line, or JSON. Returns the exit status."""
    done = decision.update and installed is not False
    if as_json:
        click.echo(json.dumps({"installed": done and installed is not None, **decision.as_dict()}))
    decision.check()
    if as_json:
        pass
    elif done and installed:
        click.echo(f"version {decision.manifest.version} is installed: its trial begins at the next start")
    else:
        click.echo(decision.text)
    return 0 if done else NOTHING_TO_DO


async def _look(url: str, place: Place, device: dict[str, Any], web: "Web", wishes: dict[str, Any]) -> Decision:
    """What would be done."""
    from mgota.transports.pull import check  # noqa: PLC0415  httpx

    options, current = _options(wishes)
    there = place.slots or place.flash
    if there is not None and there.exists():
        found = _running(place, device) or place.device(**device).device
        return await check(url, current, device=found, web=web, **options)
    keys = device["verifier"].keys if device["verifier"] else ()
    return await check(url, current, keys=keys, hardware=device["hardware"], web=web, **options)


def _options(wishes: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    policy = policy_of(wishes["policy"])
    options = {
        "policy": policy,
        "allow_plain": wishes["allow_plain_manifest"],
        "threshold": wishes["threshold"],
        "force": wishes["force"],
    }
    return options, wishes["current_version"]


def _running(place: Place, device: dict[str, Any]) -> Device | None:
    """The device beside a launcher that is at work, or None."""
    if place.slots and place.slots.is_dir() and launcher_info(place.slots):
        return device_at(place.slots, **device)
    return None


async def _install(
    url: str, place: Place, device: dict[str, Any], web: "Web", wishes: dict[str, Any]
) -> tuple[Decision, bool]:
    """Pull, up to the reset."""
    from mgota.transports.pull import pull as pull_now  # noqa: PLC0415  httpx

    decisions: list[Decision] = []
    options, current = _options(wishes)
    note = FileNote(place.note) if place.note else None
    name = wishes["mongoose_query"]

    async def pulling(found: Device) -> bool:
        pulled = await pull_now(
            found, url, current_version=current, note=note, web=web, on_decision=decisions.append,
            mongoose_query=name is not None, device_id=name, **options,
        )  # fmt: skip
        return pulled.installed

    running = _running(place, device)
    try:
        installed = await (pulling(running) if running else _until_reset(place.device(**device), pulling))
    except OtaError:
        if decisions and decisions[-1].refused:
            return decisions[-1], False  # told with its reason, then raised
        raise
    return decisions[-1], installed


async def _until_reset(machine: VirtualDevice, pulling: Any) -> bool:
    """Pull for a device that nobody runs. A reset ends it: then it is installed."""
    installed, failure = True, None
    with powered(machine):
        await machine.latch()
        async with anyio.create_task_group() as tasks:

            async def end() -> None:
                await machine.reset.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(end)
            try:
                installed = await pulling(machine.device)
            except OtaError as exc:  # outside of the task group, which would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
    if failure:
        raise failure
    return installed
