"""`mgota pull`: fetch an update for a device on this machine, if there is one that it wants.

Exit status: 0 installed, 3 nothing to do, 1 failed. Rules:
- 0 says that the record is TESTING and the new image selected: its trial begins at the next `serve` or `run`, or at
  once if `mgota run` is at work there;
- a chip's reset ends the command: whoever starts the device next starts the new image;
- with --dry-run nothing is made or changed, and another process may run the device;
- for an offer that is not wanted no file is made;
- --json prints one object, however it ends; wrong usage is not an end.
"""

import json
from contextlib import nullcontext
from dataclasses import dataclass
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
from mgota.core.version import is_version
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


def _version(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not is_version(value):
        raise click.BadParameter("a version is 1 to 64 printable characters without spaces")
    return value


@click.command()
@click.argument("url", metavar="METADATA_URL")
@place_options
@trust_options
@floor_option
@hardware_option
@pull_options
@click.option(
    "--current-version", callback=_version, metavar="VERSION", help="What runs now; what is recorded of it if omitted."
)
@click.option("--force", is_flag=True, help="Install a version that was rolled back before, too.")
@click.option("--dry-run", is_flag=True, help="Only tell whether there is an update; nothing is made or changed.")
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
    if place.slots and not place.slots.absolute().parent.is_dir():
        raise click.UsageError(f"--slots {place.slots} lies in no directory")
    decisions: list[Decision] = []
    try:
        verifier = read_verifier(keys, trailer)
        context = client_context(cacert, cert, key_file)
        web = web_of(
            context=context,
            allow_http=allow_http,
            allow_origin=allow_origin,
            proxy=proxy,
            deadline=deadline,
            tries=tries,
        )
        check_source(url, allow_http=allow_http or verifier is not None)  # before a file is made
        device = {"verifier": verifier, "floor": floor, "hardware": hardware}
        job = _Job(url=url, place=place, device=device, web=web, wishes=wishes, decisions=decisions)
        installed = anyio.run(job.look if dry_run else job.install)
        decisions[-1].check()
    except (OtaError, OSError) as exc:
        if as_json:
            click.echo(json.dumps(_told(decisions, error=exc)))
        raise
    return _tell(decisions, place, as_json=as_json, installed=installed)


def _told(decisions: list[Decision], *, installed: bool = False, error: Exception | None = None) -> dict[str, object]:
    """How it ended, as JSON (SPEC.md, pull)."""
    found = decisions[-1].as_dict() if decisions else {"update": False, "reason": None, "text": None, "manifest": None}
    return {"installed": installed, **found, "error": str(error) or type(error).__name__ if error else None}


def _tell(decisions: list[Decision], place: Place, *, as_json: bool, installed: bool | None) -> int:
    """One line, or JSON. Returns the exit status."""
    decision = decisions[-1]
    done = decision.update and installed is not False
    if as_json:
        click.echo(json.dumps(_told(decisions, installed=done and installed is not None)))
    elif done and installed:
        begins = "now" if _launched(place) else "at the next start"
        click.echo(f"version {decision.manifest.version} is installed: its trial begins {begins}")
    else:
        click.echo(decision.text)
    return 0 if done else NOTHING_TO_DO


def _launched(place: Place) -> bool:
    """Whether a launcher is at work there."""
    return place.slots is not None and place.slots.is_dir() and launcher_info(place.slots) is not None


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the options ask for."""

    url: str
    place: Place
    device: dict[str, Any]
    web: "Web"
    wishes: dict[str, Any]
    decisions: list[Decision]

    @property
    def _options(self) -> dict[str, Any]:
        wishes = self.wishes
        return {
            "current_version": wishes["current_version"],
            "policy": policy_of(wishes["policy"]),
            "allow_plain": wishes["allow_plain_manifest"],
            "threshold": wishes["threshold"],
            "force": wishes["force"],
            "mongoose_query": wishes["mongoose_query"] is not None,
            "device_id": wishes["mongoose_query"],
            "web": self.web,
        }

    def _running(self) -> Device | None:
        """The device beside a launcher that is at work, or None."""
        return device_at(self.place.slots, **self.device) if self.place.slots and _launched(self.place) else None

    async def look(self) -> None:
        """Decide what would be done."""
        from mgota.transports.pull import check  # noqa: PLC0415  httpx

        if self.place.exists:
            running = self._running()
            with nullcontext(running) if running else self.place.seen(**self.device) as found:
                self.decisions.append(await check(self.url, device=found, **self._options))
            return
        verifier, absent = self.device["verifier"], {name: self.device[name] for name in ("floor", "hardware")}
        keys = verifier.keys if verifier else ()
        self.decisions.append(await check(self.url, keys=keys, **absent, **self._options))

    async def install(self) -> bool:
        """Pull, up to the reset. Returns whether an image is installed."""
        from mgota.transports.pull import pull as pull_now  # noqa: PLC0415  httpx

        if not self.place.exists:  # mistyped, perhaps: nothing is made for an offer that is not wanted
            await self.look()
            if not self.decisions[-1].update:
                return False
        note = FileNote(self.place.note) if self.place.note else None

        async def pulling(found: Device) -> bool:
            pulled = await pull_now(found, self.url, note=note, on_decision=self.decisions.append, **self._options)
            return pulled.installed

        running = self._running()
        return await (pulling(running) if running else _until_reset(self.place.device(**self.device), pulling))


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
