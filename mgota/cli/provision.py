"""`mgota provision`: a device's first image, written as a factory does."""

import json
import os
from collections.abc import AsyncIterator, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar, cast

import anyio
import click
from anyio import to_thread

from mgota.cli.options import FILE, FOLDER, as_json, floor_option, read_verifier, trust_options
from mgota.cli.place import Place, place_options
from mgota.cli.virtual_device import powered
from mgota.core.floor import check_floor, effective_floor
from mgota.core.image import ImageScan, Verifier
from mgota.core.record import BootRecord
from mgota.core.trust import check_image
from mgota.errors import BusyError, ConfigError, EmptyImageError
from mgota.linux.configured import load_config
from mgota.linux.environment import launcher_info
from mgota.session import provision as write_first
from mgota.verified import VerifiedImage

F = TypeVar("F", bound=Callable[..., Any])

BLOCK = 1 << 20


def by_file(command: F) -> F:
    """`--config`: slots, keys and floor of an application in two slots, as its own file says them."""

    @wraps(command)
    def checked(**arguments: Any) -> Any:
        path = arguments.pop("config")
        if path:
            if any(arguments[name] for name in _FILE_SAYS):
                raise click.UsageError(
                    "--config says where the slots are, which keys are trusted and what the floor is"
                )
            config = load_config(path)
            if not config.slots.directory:
                raise ConfigError(
                    f"{path} is of a board: write its first image with the tools that partition it. The first start "
                    "counts what runs as proven"
                )
            keys = tuple(map(Path, config.keys.images))
            found = {"directory": Path(config.slots.directory), "keys": keys, "floor": config.device.floor}
            arguments |= found | {"trailer": config.keys.trailer}
        return command(**arguments)

    told = "The file of an application in two slots: its directory, keys and floor."
    return click.option("--config", type=FILE, metavar="FILE", help=told)(cast(F, checked))


_FILE_SAYS = ("directory", "slots", "target", "part", "flash", "state", "backend", "link", "keys", "floor")


@click.command()
@click.argument("image", type=FILE)
@by_file
@click.option("--dir", "directory", type=FOLDER, metavar="DIR", help="The same as --slots.")
@place_options
@trust_options
@floor_option
@click.option("--force", is_flag=True, help="Overwrite an image that is there.")
@as_json
def provision(
    *,
    image: Path,
    place: Place,
    keys: tuple[Path, ...],
    trailer: str,
    floor: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the first IMAGE of a device that does not run: confirmed, and proven without a trial.

    \b
        mgota provision app.signed.pyz --dir /var/lib/app --key public.pem
        mgota provision app.signed.pyz --config mgota.toml
        mgota provision fw.signed.bin --target stm32h5 --flash chip.bin --state chip.state --key public.pem
    """  # noqa: D301  \b keeps click from joining the lines
    verifier = read_verifier(keys, trailer)
    size = _size(image)
    if place.slots and place.slots.is_dir() and launcher_info(place.slots):
        raise BusyError(f"`mgota run` is at work in {place.slots}: stop it first, or push the image as an update")
    written = anyio.run(partial(_write, place, image, size, verifier=verifier, floor=floor, force=force))
    if as_json:
        found = {"slot": written.slot.value, "size": written.size, "image_size": written.image_size}
        click.echo(json.dumps({**found, "sha256": written.sha256, "version": written.version}))
    else:
        click.echo(f"slot {written.slot}: firmware of {written.size} bytes, sha256 {written.sha256}")
    if verifier is None:
        click.echo(
            "no --key was given: the signature, if there is one, was not checked and counts as firmware", err=True
        )


def _size(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return file.seek(0, os.SEEK_END)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {str(exc.strerror).lower()}") from exc


async def _write(
    place: Place, image: Path, size: int, *, verifier: Verifier | None, floor: str | None, force: bool
) -> VerifiedImage:
    # A refusal leaves the device as it was.
    scan = await _scanned(place, image, size, verifier)
    _check(scan, verifier, floor, None)
    machine = place.device(verifier=verifier, floor=floor)
    with powered(machine):
        await machine.latch()
        _check(scan, verifier, floor, (await machine.device.load())[0])
        return await write_first(machine.device, _blocks(image), size=size, force=force)


async def _scanned(place: Place, image: Path, size: int, verifier: Verifier | None) -> ImageScan:
    scan = ImageScan(size, trailer=verifier.trailer if verifier else None, inspect=place.inspect)
    async for block in _blocks(image):
        scan.update(block)
    return scan


def _check(scan: ImageScan, verifier: Verifier | None, floor: str | None, record: BootRecord | None) -> None:
    """What the seal will ask, before anything is erased."""
    if not scan.size:
        raise EmptyImageError("an image has at least one byte")
    if verifier:
        check_image(verifier, record.chain if record else None, scan)
    scan.expect_this_chip()
    check_floor(scan.version, effective_floor(record.floor if record else None, floor))


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while block := await to_thread.run_sync(file.read, BLOCK):
            yield block
