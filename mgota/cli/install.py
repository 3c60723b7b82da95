"""`mgota install`: an update from a file, for the device that this machine is."""

import json
from pathlib import Path

import anyio
import click
from anyio import to_thread

from mgota.cli.board import config_option, found_config
from mgota.cli.control import acting
from mgota.cli.options import FILE, as_json
from mgota.core.unpack import packing_of
from mgota.device import Device
from mgota.linux.configured import device_of, load_config
from mgota.packed import pieces, size_of
from mgota.session import OtaSession
from mgota.verified import VerifiedImage


@click.command()
@click.argument("image", type=FILE)
@config_option
@as_json
def install(*, image: Path, config: Path | None, as_json: bool) -> None:
    """Install IMAGE on this machine, and start it on trial; .gz and .zst are unpacked on the way.

    \b
        mgota install rootfs.signed.img.zst
    """  # noqa: D301  \b keeps click from joining the lines
    path = found_config(config)
    if path is None:
        raise click.UsageError("which device? give --config FILE")
    anyio.run(_install, image, path, as_json)


async def _install(image: Path, config: Path, as_json: bool) -> None:
    device = await to_thread.run_sync(device_of, load_config(config))
    size = await to_thread.run_sync(size_of, image, packing_of(image.name))

    async def act(bare: Device) -> str:
        written = await _write(bare, image, size)
        found = {"slot": written.slot.value, "sha256": written.sha256, "version": written.version}
        line = f"version {written.version or 'unknown'} is in slot {written.slot}: its trial begins at the next start"
        return json.dumps(found) if as_json else line

    await acting(device, act)


async def _write(device: Device, image: Path, size: int) -> VerifiedImage:
    async with OtaSession(device, size=size) as ota:
        unpacked = pieces(image, packing_of(image.name), size)
        while (piece := await to_thread.run_sync(next, unpacked, None)) is not None:
            await ota.write(piece)
        written = await ota.seal()
        await ota.activate(written)
        return written
