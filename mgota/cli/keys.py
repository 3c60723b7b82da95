"""`mgota keygen`: a pair of keys.

The private key is never readable by anybody else, from the first byte on, and is never overwritten by accident.
"""

import json
import os
from pathlib import Path

import click

from mgota.cli.options import FILE, FOLDER, as_json, lines_of
from mgota.core.keys import PrivateKey
from mgota.errors import ConfigError
from mgota.flash.files import replace_file

PRIVATE, PUBLIC = "private.pem", "public.pem"
_SECRET, _OPEN = 0o600, 0o644


@click.command()
@click.option("--out", type=FOLDER, default=".", metavar="DIR", help="Where the keys go; made if missing.")
@click.option("--password-file", type=FILE, metavar="FILE", help="Encrypt the private key; one line.")
@click.option("--force", is_flag=True, help="Overwrite keys: images signed with the old one are no longer trusted.")
@as_json
def keygen(*, out: Path, password_file: Path | None, force: bool, as_json: bool) -> None:
    """Make a pair of keys: private.pem stays on the build machine, public.pem goes to devices.

    Prints the public key as a C define, for the mongoose_config.h of a Mongoose device.
    """
    password = read_password(password_file)
    private, public = out / PRIVATE, out / PUBLIC
    for path in (private, public):
        if path.exists() and not force:
            raise ConfigError(f"{path} exists; --force overwrites it")
    out.mkdir(parents=True, exist_ok=True)
    key = PrivateKey.generate()
    _write(private, key.pem(password), _SECRET, force=force)
    _write(public, key.public.pem(), _OPEN, force=force)
    if as_json:
        found = {"private": str(private), "public": str(public), "keyid": key.public.keyid}
        click.echo(json.dumps({**found, "raw": key.public.raw.hex(), "define": key.public.c_define()}))
        return
    click.echo(key.public.c_define(), nl=False)
    click.echo(f"{private}: keep it secret, and keep a copy\n{public}: goes to devices", err=True)


def _write(path: Path, data: bytes, mode: int, *, force: bool) -> None:
    if force:
        replace_file(path, data, mode)
        return
    # O_EXCL: whoever made this file since we looked keeps it.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123  pathlib cannot open a descriptor
        file.write(data)


def read_password(path: Path | None) -> bytes | None:
    """The password of a private key.

    Raises:
        ConfigError: the file cannot be read, or is empty.
    """
    return lines_of(path, "password file")[0].encode() if path else None
