"""`mgota status`, `commit`, `rollback`: of a device in the network, or of one on this machine: a directory, or a board.

A commit or rollback over the network is bound to the image that was seen to run, so that it never hits another one.
"""

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import click

from mgota import trial
from mgota.cli.board import config_option, found_config
from mgota.cli.options import FOLDER, as_json, client_options, remote_at
from mgota.core.http import one_line
from mgota.device import Device
from mgota.errors import ConfigError, FlashError, TransferError
from mgota.linux.configured import device_of, load_config
from mgota.linux.environment import device_at
from mgota.outgoing import Remote

_EFFECT = 3.0
"""Seconds to wait for a device to show what it said it would do. It may take longer: it may restart for it."""

_PAUSE = 0.3
"""Seconds until a status that was cut off is asked for again, once."""

_RESTART = 5.0
"""Seconds until a machine that was told to start again is believed to do so."""

Found = dict[str, Any]


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """The argument and options by which all three find their device."""
    place = click.option("--dir", "directory", type=FOLDER, metavar="DIR", help="A device on this machine.")
    return click.argument("url", required=False)(place(config_option(client_options(as_json(command)))))


def _here(url: str | None, directory: Path | None, config: Path | None) -> Callable[[], Device] | None:
    """Makes the device, if it is one of this machine.

    Raises:
        UsageError: it is not said which one, or more than one is.
    """
    path = found_config(config, named=url is not None or directory is not None)
    if sum(place is not None for place in (url, directory, path)) != 1:
        raise click.UsageError("which device? give either its URL, or --dir DIR, or --config FILE")
    if path:
        return lambda: device_of(load_config(path))
    return (lambda: device_at(directory)) if directory else None


async def acting(device: Device, act: Callable[[Device], Awaitable[str]]) -> None:
    """Do something that may end in a reset: what was done is told before it.

    Args:
        device: of this machine.
        act: gets the device without a way to reset, and returns what is to be told.

    Raises:
        OtaError: it was not done, or the machine does not start again.
    """
    bare = replace(device, reset=None)
    click.echo(await act(bare))
    if bare.live.resetting and device.reset:
        with anyio.move_on_after(_RESTART):
            await device.reset.reset()


@click.command()
@_where
def status(*, url: str | None, directory: Path | None, config: Path | None, as_json: bool, **client: Any) -> None:
    """Tell what a device is at: URL, --dir DIR, or this machine by its configuration file.

    URL is http://HOST:PORT, or mqtt://BROKER/ROOT/DEVICE for one behind a broker.
    """
    here = _here(url, directory, config)
    found = anyio.run(_local_status, here) if here else anyio.run(remote_at(url or "", **client).status)
    click.echo(json.dumps(found) if as_json else describe(found))


async def _local_status(here: Callable[[], Device]) -> Found:
    return (await here().status()).as_dict()


def describe(found: Found) -> str:
    """A status for a person.

    Args:
        found: the JSON object of a status, perhaps another program's.
    """
    held, update = found.get("trial"), found.get("update")
    outcome = str(found.get("outcome") or "none yet").replace("_", " ")
    lines = [
        ("state", found.get("state")),
        ("running", f"slot {found.get('active_slot')}, {_image(found.get('image'))}"),
        ("staged", _image(found.get("staged"))),
        ("trial", f"{held['seconds_left']} s left to commit" if held else "none"),
        ("update", f"{update['received']} of {update['size']} bytes" if update else "none"),
        ("last update", f"{outcome}: {found['reason']}" if found.get("reason") else outcome),
    ]
    return "\n".join(f"{name:12} {one_line(str(value))}" for name, value in lines)


def _image(image: Found | None) -> str:
    if not image:
        return "no image"
    return one_line(f"version {image.get('version') or 'unknown'}, {image['size']} bytes, sha256 {image['sha256']}")


@click.command()
@_where
def commit(*, url: str | None, directory: Path | None, config: Path | None, as_json: bool, **client: Any) -> None:
    """Make the image on trial permanent, on URL, in --dir DIR or on this machine. Nothing happens if none is.

    URL is http://HOST:PORT, or mqtt://BROKER/ROOT/DEVICE for one behind a broker.
    """
    here = _here(url, directory, config)
    if here:
        committed = anyio.run(_local_commit, here)
        _tell(as_json, "committed" if committed else "nothing is on trial: nothing to commit", committed=committed)
        return
    remote = remote_at(url or "", **client)
    before, after = anyio.run(_act, remote, remote.commit, _is_committed)
    if before and _is_settled(before):
        _tell(as_json, "nothing is on trial: nothing to commit", committed=False, status=after)
    elif after:
        _tell(as_json, "committed", committed=True, status=after)
    else:
        _tell(as_json, "accepted; the device does not show it yet", committed=None, status=None)


def _is_settled(now: Found) -> bool:
    return now.get("state") == "CONFIRMED" and now.get("trial") is None


def _is_committed(_: Found, now: Found) -> bool:
    return _is_settled(now)


def _is_rolled_back(before: Found, now: Found) -> bool:
    return _is_settled(now) and now.get("active_slot") != before.get("active_slot")


@click.command()
@_where
def rollback(*, url: str | None, directory: Path | None, config: Path | None, as_json: bool, **client: Any) -> None:
    """Return to the previous image, on URL, in --dir DIR or on this machine: if it is whole and was committed.

    URL is http://HOST:PORT, or mqtt://BROKER/ROOT/DEVICE for one behind a broker.
    """
    here = _here(url, directory, config)
    if here:
        anyio.run(_local_rollback, here, as_json)
        return
    remote = remote_at(url or "", **client)
    before, after = anyio.run(_act, remote, remote.rollback, _is_rolled_back)
    if after and before:
        _tell(as_json, "rolled back", rolled_back=True, status=after)
    else:
        _tell(as_json, "accepted; the device does not show it yet", rolled_back=None, status=None)


async def _local_commit(here: Callable[[], Device]) -> bool:
    return await trial.commit(here())


async def _local_rollback(here: Callable[[], Device], as_json: bool) -> None:
    async def act(device: Device) -> str:
        await trial.rollback(device)
        return json.dumps({"rolled_back": True}) if as_json else "the previous image is selected"

    await acting(here(), act)


def _tell(as_json: bool, line: str, **facts: Any) -> None:
    click.echo(json.dumps(facts) if as_json else line)


async def _act(
    remote: Remote, act: Callable[..., Awaitable[None]], done: Callable[[Found, Found], bool]
) -> tuple[Found | None, Found | None]:
    """Ask for a commit or rollback, and look whether it happens.

    Returns:
        The status before, if the device tells one, and that which shows the effect; None if it restarts meanwhile.

    Raises:
        OtaError: the device refused, or does not do what it said.
    """
    before = await _before(remote)
    image = before.get("image") if before else None
    await act(sha256=image["sha256"] if image else None)
    if before is None:
        return None, None
    seen: Found | None = None
    with anyio.move_on_after(_EFFECT):
        while seen is None or not done(before, seen):
            seen = await _look(remote)
            await anyio.sleep(0.05)
    if seen and not done(before, seen):
        raise FlashError("the device said ok and did not do it: see its log")
    return before, seen


async def _before(remote: Remote) -> Found | None:
    """The status of the device, once it is not about to reset: what is asked of it then would go to the old image."""
    asked = anyio.current_time()
    try:
        found = await remote.status()
    except ConfigError:  # a Mongoose device has no such route; if it is the password, the next request says so
        return None
    except TransferError:
        if anyio.current_time() - asked > _EFFECT:
            raise  # it was waited for
        await anyio.sleep(_PAUSE)  # perhaps the reset after an update just cut us off
        found = await remote.status()
    with anyio.move_on_after(_EFFECT):
        while found.get("state") == "TESTING":
            await anyio.sleep(0.05)
            found = await _look(remote) or found
    return found


async def _look(remote: Remote) -> Found | None:
    """The status, or None while the device restarts."""
    try:
        return await remote.status()
    except TransferError:
        return None
