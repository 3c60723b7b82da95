"""`mgota provision`: a device's first image, written as a factory does."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import click
from anyio import to_thread

from mgota.cli.options import FILE, FOLDER, as_json, read_verifier, trust_options
from mgota.cli.place import Place, place_options
from mgota.cli.virtual_device import powered
from mgota.core.image import ImageScan, Verifier
from mgota.errors import BusyError, ConfigError
from mgota.linux.environment import launcher_info
from mgota.session import provision as write_first
from mgota.verified import VerifiedImage

BLOCK = 1 << 20


@click.command()
@click.argument("image", type=FILE)
@click.option("--dir", "directory", type=FOLDER, metavar="DIR", help="The same as --slots.")
@place_options
@trust_options
@click.option("--force", is_flag=True, help="Overwrite an image that is there.")
@as_json
def provision(
    *,
    image: Path,
    place: Place,
    keys: tuple[Path, ...],
    trailer: str,
    force: bool,
    as_json: bool,
) -> None:
    """Write the first IMAGE of a device that does not run: confirmed, and proven without a trial.

    \b
        mgota provision app.signed.pyz --dir /var/lib/app --key public.pem
        mgota provision fw.signed.bin --target stm32h5 --flash chip.bin --state chip.state --key public.pem
    """  # noqa: D301  \b keeps click from joining the lines
    verifier = read_verifier(keys, trailer)
    size = _size(image)
    if place.slots and place.slots.is_dir() and launcher_info(place.slots):
        raise BusyError(f"`mgota run` is at work in {place.slots}: stop it first, or push the image as an update")
    written = anyio.run(_write, place, image, size, verifier, force)
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


async def _write(place: Place, image: Path, size: int, verifier: Verifier | None, force: bool) -> VerifiedImage:
    await _check(place, image, size, verifier)  # a refusal leaves the device as it was
    machine = place.device(verifier=verifier)
    with powered(machine):
        await machine.latch()
        return await write_first(machine.device, _blocks(image), size=size, force=force)


async def _check(place: Place, image: Path, size: int, verifier: Verifier | None) -> None:
    if not size or not (verifier or place.inspect):
        return
    scan = ImageScan(size, trailer=verifier.trailer if verifier else None, inspect=place.inspect)
    async for block in _blocks(image):
        scan.update(block)
    if verifier:
        verifier.check(scan)
    scan.expect_this_chip()


async def _blocks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while block := await to_thread.run_sync(file.read, BLOCK):
            yield block
