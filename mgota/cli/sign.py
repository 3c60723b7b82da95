"""`mgota sign`: firmware in, image out.

The firmware is read twice and never held: once to hash it, once to copy it. What is copied is hashed again, so that a
file that changes meanwhile is not signed.
"""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import click
from click.core import ParameterSource

from mgota.cli.keys import PRIVATE, read_password
from mgota.cli.options import FILE, as_json, read_bytes, trailer_option
from mgota.core.image import Trailer, signed_name
from mgota.core.keys import load_private_key, signature_from_any
from mgota.errors import ConfigError
from mgota.flash.files import replace_file

BLOCK = 1 << 20


@click.command()
@click.argument("firmware", type=FILE)
@click.option("--key", type=FILE, default=PRIVATE, show_default=True, metavar="PEM", help="The private key.")
@click.option("--password-file", type=FILE, metavar="FILE", help="Of an encrypted private key; one line.")
@click.option("--signature", type=FILE, metavar="FILE", help="Attach this one, of an HSM or KMS: 64 raw bytes or DER.")
@trailer_option
@click.option("--out", type=FILE, metavar="FILE", help="Default: .signed before the last extension.")
@as_json
@click.pass_context
def sign(
    ctx: click.Context,
    /,
    *,
    firmware: Path,
    key: Path,
    password_file: Path | None,
    signature: Path | None,
    trailer: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Attach a signature to FIRMWARE: app.bin becomes app.signed.bin.

    The signature is ECDSA P-256 over the SHA-256 of the firmware. To have it made elsewhere:

    \b
        openssl dgst -sha256 -sign private.pem -out app.sig app.bin
        mgota sign app.bin --signature app.sig
    """  # noqa: D301  \b keeps click from joining the lines
    if signature and ctx.get_parameter_source("key") is not ParameterSource.DEFAULT:
        raise click.UsageError("either --key or --signature")
    form, target = Trailer(trailer), out or firmware.with_name(signed_name(firmware.name))
    size, digest = _hashed(firmware)
    if signature:
        made = signature_from_any(read_bytes(signature, "signature"))
    else:
        made = load_private_key(read_bytes(key, "private key"), read_password(password_file)).sign(digest)
    replace_file(target, _image(firmware, digest, made + form.magic))
    if as_json:
        found = {"image": str(target), "size": size + form.size, "firmware_size": size}
        click.echo(json.dumps({**found, "sha256": digest.hex(), "trailer": form.value}))
    else:
        click.echo(str(target))


def _hashed(path: Path) -> tuple[int, bytes]:
    size, digest = 0, sha256()
    for block in read_blocks(path):
        size += len(block)
        digest.update(block)
    if not size:
        raise ConfigError(f"{path} is empty: there is no firmware to sign")
    return size, digest.digest()


def _image(path: Path, expected: bytes, trailer: bytes) -> Iterator[bytes]:
    digest = sha256()
    for block in read_blocks(path):
        digest.update(block)
        yield block
    if digest.digest() != expected:
        raise ConfigError(f"{path} changed while it was signed")
    yield trailer


def read_blocks(path: Path) -> Iterator[bytes]:
    """A file, front to back.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {str(exc.strerror).lower()}") from exc
