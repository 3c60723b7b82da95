"""`mgota verify` and `mgota info`: what a device would say of an image, and what anybody can see of it."""

import json
from pathlib import Path

import click

from mgota.cli.options import FILE, as_json, read_public_key, trailer_option
from mgota.cli.sign import read_blocks
from mgota.core.image import ImageScan, Trailer, Verifier
from mgota.errors import ConfigError, RejectedError


@click.command()
@click.argument("image", type=FILE)
@click.option("--key", "keys", type=FILE, multiple=True, required=True, metavar="PUBLIC.PEM",
              help="A public key; several may be given, and one of them has to fit.")  # fmt: skip
@trailer_option
@as_json
def verify(*, image: Path, keys: tuple[Path, ...], trailer: str, as_json: bool) -> None:
    """Check the signature of IMAGE, as a device would."""
    verifier = Verifier(keys=[read_public_key(path) for path in keys], trailer=Trailer(trailer))
    (scan,) = _scanned(image, verifier.trailer)
    try:
        verifier.check(scan)
    except RejectedError as exc:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": str(exc)}))
        raise
    found = {"firmware_size": scan.firmware_size, "sha256": scan.sha256.hex(), "version": scan.version}
    if as_json:
        click.echo(json.dumps({"ok": True, **found}))
    else:
        click.echo(f"ok: {_firmware(scan)}")


@click.command()
@click.argument("image", type=FILE)
@as_json
def info(*, image: Path, as_json: bool) -> None:
    """Tell what can be seen of IMAGE without a key. Which trailer it has is not guessed: both readings are shown."""
    whole, raw, mgsg = _scanned(image, None, Trailer.RAW, Trailer.MGSG)
    ends_like_mgsg = mgsg.trailer_bytes.endswith(Trailer.MGSG.magic)
    if as_json:
        found = {"size": whole.size, "version": whole.version, "crc32": f"{whole.crc:08x}"}
        scans = {"none": whole, "raw": raw, "mgsg": mgsg}
        readings = {
            name: {"firmware_size": scan.firmware_size, "sha256": scan.sha256.hex()} for name, scan in scans.items()
        }
        click.echo(json.dumps({**found, "ends_like_mgsg": ends_like_mgsg, "trailer": readings}))
        return
    lines = [
        ("image", f"{whole.size} bytes, crc32 {whole.crc:08x}"),
        ("version", whole.version or "no MG_VERSION tag"),
        ("unsigned", _firmware(whole)),
        ("raw", _firmware(raw)),
        ("mgsg", _firmware(mgsg) if ends_like_mgsg else "it does not end in MGSG"),
    ]
    click.echo("\n".join(f"{name:9} {value}" for name, value in lines))


def _firmware(scan: ImageScan) -> str:
    if not scan.firmware_size:
        return "too short for a signature"
    version = f", version {scan.version}" if scan.version else ""
    return f"firmware of {scan.firmware_size} bytes{version}, sha256 {scan.sha256.hex()}"


def _scanned(path: Path, *trailers: Trailer | None) -> list[ImageScan]:
    """The image, read once for all the readings that are asked for."""
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {str(exc.strerror).lower()}") from exc
    scans = [ImageScan(size, trailer=trailer) for trailer in trailers]
    for block in read_blocks(path):
        for scan in scans:
            scan.update(block)
    return scans
