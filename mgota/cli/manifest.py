"""`mgota manifest`: what is served beside an image, and who says so.

    mgota manifest app.signed.bin --url https://x/app.signed.bin       plain, as Mongoose reads it
    mgota manifest sign app.signed.bin --key private.pem --seq 7       signed
    mgota manifest cosign manifest.json --key second.pem               one more signature, by somebody else
    mgota manifest rotate --from old.pem --to new.pem --key …          other keys, for devices in the field
    mgota manifest verify manifest.json --key public.pem               what a device would say

A signature that an HSM makes: `sign --unsigned`, `cosign --pae FILE`, sign that file there, `cosign --signature FILE`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from urllib.parse import quote

import click

from mgota.cli.keys import PRIVATE, read_password
from mgota.cli.options import FILE, as_json, read_bytes, read_public_key
from mgota.cli.sign import read_blocks
from mgota.core.envelope import Envelope, encode_pae, open_envelope
from mgota.core.image import ImageScan, Trailer, Verifier
from mgota.core.keys import PrivateKey, PublicKey, load_private_key, signature_from_any
from mgota.core.manifest import Manifest, encode_plain
from mgota.core.signed_manifest import KIND, ManifestVerifier, encode_envelope, seal_manifest
from mgota.core.strict_json import MAX_INTEGER, parse_object
from mgota.core.trust import ROTATION, KeySet, check_rotation, is_signed, last_keys, make_rotation
from mgota.core.version import order
from mgota.core.weburl import is_reference
from mgota.errors import BadSignatureError, ConfigError, MalformedError, ManifestError, RejectedError
from mgota.flash.files import replace_file


class WriteByDefault(click.Group):
    """`mgota manifest IMAGE` is `mgota manifest write IMAGE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """What is no command is the image of `write`."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["write", *args]
        return super().parse_args(ctx, args)


@click.group(cls=WriteByDefault, epilog="`mgota manifest IMAGE …` is `mgota manifest write IMAGE …`.")
def manifest() -> None:
    """Write, sign and verify what is served beside an image."""


_image = click.argument("image", type=FILE)
_url = click.option("--url", help="Where the image is served. Default: its file name, beside the manifest.")
_version = click.option("--version", "version", metavar="V", help="Default: the MG_VERSION tag inside the image.")
_out = click.option("-o", "--out", type=FILE, metavar="FILE", help="Default: stdout.")
_private = click.option("--key", "keys", type=FILE, multiple=True, metavar="PRIVATE.PEM",
                        help="Who signs; several may be given.")  # fmt: skip
_password = click.option("--password-file", type=FILE, metavar="FILE", help="Of encrypted private keys; one line.")


@manifest.command()
@_image
@_url
@_version
@_out
@as_json
def write(*, image: Path, url: str | None, version: str | None, out: Path | None, as_json: bool) -> None:
    """Write a plain manifest of IMAGE: {"version", "url", "size", "sha256"}."""
    made = _described(image, url, version)
    _deliver(encode_plain(made), out, made, as_json=as_json)


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError as exc:
        raise click.BadParameter("want a date as 2027-06-30 or 2027-06-30T12:00:00+02:00") from exc
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())


@manifest.command()
@_image
@_private
@_password
@_url
@_version
@click.option("--seq", type=click.IntRange(0, MAX_INTEGER), required=True, metavar="N",
              help="Sequence number: higher with every release. Devices refuse a lower one.")  # fmt: skip
@click.option("--hw", multiple=True, metavar="ID", help="Only for this hardware; several may be given.")
@click.option("--expires", callback=_moment, metavar="DATE", help="ISO 8601; UTC unless it says otherwise.")
@click.option("--rotation", "rotations", type=FILE, multiple=True, metavar="FILE",
              help="Of keys, made by `rotate`; all that devices in the field may still have to follow.")  # fmt: skip
@click.option("--unsigned", is_flag=True, help="Sign later, with `cosign`.")
@_out
@as_json
def sign(
    *,
    image: Path,
    keys: tuple[Path, ...],
    password_file: Path | None,
    url: str | None,
    version: str | None,
    seq: int,
    hw: tuple[str, ...],
    expires: int | None,
    rotations: tuple[Path, ...],
    unsigned: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Write a signed manifest of IMAGE, which is what will be served: with its trailer, if it has one.

    \b
    mgota manifest sign app.signed.bin --key private.pem --seq 7 -o manifest.json
    """  # noqa: D301  \b keeps click from joining the lines
    if unsigned and keys:
        raise click.UsageError("either --key or --unsigned")
    signers = [] if unsigned else _private_keys(keys or (Path(PRIVATE),), password_file)
    ways = [_envelope(path, "rotation")[1] for path in rotations]
    if any(_kind(way) != ROTATION for way in ways):
        raise click.UsageError("--rotation takes what `mgota manifest rotate` wrote")
    made = _described(image, url, version, seq=seq, hw=hw, expires=expires)
    envelope = seal_manifest(made, signers)
    _deliver(encode_envelope(made, envelope, ways), out, made, envelope, as_json=as_json)
    _note_signer(image, last_keys(ways) or [key.public for key in signers])
    if expires is not None and expires <= time.time():
        click.echo("note: this manifest has expired already, and devices refuse it", err=True)


@manifest.command()
@click.argument("file", type=FILE)
@_private
@_password
@click.option("--signature", type=FILE, metavar="FILE", help="Of an HSM or KMS: 64 raw bytes or DER.")
@click.option("--public", type=FILE, metavar="PUBLIC.PEM", help="The key that made --signature.")
@click.option("--pae", type=FILE, metavar="FILE", help="Write the bytes that are to be signed, and do nothing else.")
@click.option("-o", "--out", type=FILE, metavar="FILE", help="Default: FILE itself.")
@as_json
def cosign(
    *,
    file: Path,
    keys: tuple[Path, ...],
    password_file: Path | None,
    signature: Path | None,
    public: Path | None,
    pae: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Add a signature to the manifest or rotation in FILE.

    \b
    mgota manifest cosign manifest.json --key second.pem
    mgota manifest cosign manifest.json --pae to-sign.bin
    openssl dgst -sha256 -sign private.pem -out made.sig to-sign.bin
    mgota manifest cosign manifest.json --signature made.sig --public public.pem
    """  # noqa: D301  \b keeps click from joining the lines
    if sum(map(bool, (keys, signature, pae))) != 1 or bool(signature) != bool(public):
        raise click.UsageError("one of: --key PRIVATE.PEM; --signature FILE --public PUBLIC.PEM; --pae FILE")
    found, envelope = _envelope(file, "manifest")
    kind = _kind(envelope)
    if pae:
        replace_file(pae, encode_pae(kind, envelope.payload))
        return
    if signature and public:
        key = read_public_key(public)
        envelope = envelope.with_signatures({key.keyid: signature_from_any(read_bytes(signature, "signature"))})
        if not envelope.signers(kind, [key]):
            raise BadSignatureError(f"{signature} is no signature of {public} over this {file}")
    else:
        envelope = envelope.signed_by(kind, _private_keys(keys, password_file))
    data = f"{json.dumps(found | envelope.as_dict(), indent=1)}\n".encode()
    replace_file(out or file, data)
    _say(str(out or file), {"file": str(out or file), "keyids": _keyids(envelope)}, as_json=as_json)


@manifest.command()
@click.option("--from", "old", type=FILE, multiple=True, required=True, metavar="PUBLIC.PEM",
              help="A key that counts now. All of them, as devices have them configured.")  # fmt: skip
@click.option("--from-threshold", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="How many of them have to sign.")  # fmt: skip
@click.option("--to", "new", type=FILE, multiple=True, required=True, metavar="PUBLIC.PEM",
              help="A key that will count, whether or not it counted before.")  # fmt: skip
@click.option("--threshold", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="How many of those will have to sign.")  # fmt: skip
@_private
@_password
@_out
@as_json
def rotate(
    *,
    old: tuple[Path, ...],
    from_threshold: int,
    new: tuple[Path, ...],
    threshold: int,
    keys: tuple[Path, ...],
    password_file: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Replace the keys that devices trust, for manifests and for images.

    Old and new keys sign it, each as many as their threshold asks for. It goes out with manifests that the new keys
    sign; a device remembers it, and a key that is no longer among the new ones never counts there again.

    \b
    mgota manifest rotate --from old.pem --to new.pem --key old-private.pem --key new-private.pem -o rotation.json
    mgota manifest sign app.signed.bin --key new-private.pem --seq 8 --rotation rotation.json -o manifest.json
    """  # noqa: D301  \b keeps click from joining the lines
    before = KeySet(tuple(map(read_public_key, old)), from_threshold)
    after = KeySet(tuple(map(read_public_key, new)), threshold)
    envelope = make_rotation(before, after, _private_keys(keys, password_file))
    data = f"{json.dumps(envelope.as_dict(), indent=1)}\n".encode("ascii")
    try:
        check_rotation(envelope, before, after)
    except BadSignatureError as exc:
        click.echo(f"no device follows it yet: {exc}; add signatures with `mgota manifest cosign`", err=True)
    if out:
        replace_file(out, data)
        told = {"file": str(out), "from": before.id, "to": after.id, "keyids": _keyids(envelope)}
        _say(str(out), told, as_json=as_json)
    else:
        click.echo(data, nl=False)


@manifest.command()
@click.argument("file", type=FILE)
@click.option("--key", "keys", type=FILE, multiple=True, required=True, metavar="PUBLIC.PEM",
              help="A public key that is trusted; several may be given.")  # fmt: skip
@click.option("--threshold", type=click.IntRange(1), default=1, show_default=True, metavar="N",
              help="How many of them have to sign.")  # fmt: skip
@click.option("--image", type=FILE, metavar="FILE", help="Compare size and digest with this image, too.")
@as_json
def verify(*, file: Path, keys: tuple[Path, ...], threshold: int, image: Path | None, as_json: bool) -> None:
    """Check the manifest in FILE, as a device would that trusts these keys and has seen no rotation."""
    verifier = ManifestVerifier(keys=tuple(map(read_public_key, keys)), threshold=threshold)
    try:
        if _is_rotation(file):
            raise ManifestError(f"{file} is a rotation of keys: it goes out with a manifest, and is followed with it")
        found = verifier.open(read_bytes(file, "manifest")).manifest
        if found.expires is not None and time.time() >= found.expires:
            raise ManifestError(f"the manifest has expired at {_told(found.expires)}")
        if not is_reference(found.url):
            raise ManifestError(f"no device fetches an image from {found.url}: it has to be http, https or relative")
        if image:
            _compare(found, _scan(image))
    except RejectedError as exc:
        if as_json:
            click.echo(json.dumps({"ok": False, "error": str(exc)}))
        raise
    known = f"version {found.version}, sequence {found.seq}, {found.size} bytes at {found.url}"
    hw = f", for {', '.join(found.hw)}" if found.hw else ""
    until = "" if found.expires is None else f", until {_told(found.expires)}"
    _say(f"ok: {known}{hw}{until}", {"ok": True, **_members(found)}, as_json=as_json)


def _is_rotation(file: Path) -> bool:
    with suppress(ConfigError, MalformedError):  # whatever else is wrong is the verifier's to say
        return _kind(_envelope(file, "manifest")[1]) == ROTATION
    return False


def _told(moment: int) -> str:
    try:
        return datetime.fromtimestamp(moment, UTC).isoformat()
    except (ValueError, OverflowError, OSError):  # a year beyond 9999
        return f"{moment} s"


def _compare(found: Manifest, scan: ImageScan) -> None:
    if (found.size, found.sha256) != (scan.size, scan.image_sha256.hex()):
        raise ManifestError("the manifest names another image than this one")


def _described(
    path: Path,
    url: str | None,
    version: str | None,
    *,
    seq: int | None = None,
    hw: tuple[str, ...] = (),
    expires: int | None = None,
) -> Manifest:
    """The manifest of an image."""
    scan = _scan(path)
    if not scan.size:
        raise ConfigError(f"{path} is empty: there is no image to be served")
    version = scan.version if version is None else version
    if version is None:
        raise ConfigError(
            f"{path} has no MG_VERSION tag: give --version, or put one into it before it is signed (README.md)"
        )
    digest = scan.image_sha256.hex()
    try:
        made = Manifest(
            version=version,
            url=quote(path.name) if url is None else url,
            size=scan.size,
            sha256=digest,
            seq=seq,
            hw=hw,
            expires=expires,
        )
    except ManifestError as exc:
        raise ConfigError(str(exc)) from exc
    if not is_reference(made.url):
        raise ConfigError(f"no device fetches an image from {made.url}: give a URL of http or https, or a relative one")
    if scan.version not in (None, version):
        click.echo(f"note: the tag inside {path} says {scan.version}, not {version}", err=True)
    if order(version) is None:
        click.echo(f"note: {version} cannot be compared with other versions: no device finds it newer", err=True)
    return made


def _scan(path: Path, trailer: Trailer | None = None) -> ImageScan:
    try:
        found = path.stat()
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {str(exc.strerror).lower()}") from exc
    if not (S_ISREG(found.st_mode) or S_ISDIR(found.st_mode)):  # of a directory, the reading says so
        raise ConfigError(f"{path} cannot be read: it is no regular file")
    scan = ImageScan(found.st_size, trailer=trailer)
    seen = 0
    for block in read_blocks(path):
        scan.update(block)
        seen += len(block)
    if seen != scan.size:
        raise ConfigError(f"{path} changed while it was read")
    return scan


def _note_signer(path: Path, keys: Sequence[PublicKey]) -> None:
    """An image is signed by itself, and after a rotation by a new key: say so, unless one of these keys did it."""
    if keys and not any(is_signed(Verifier(keys=keys, trailer=form), _scan(path, form)) for form in Trailer):
        click.echo(
            f"note: {path} is not signed by a key that signs this manifest or that its rotation brings: a device that "
            "trusts no other key refuses it; first `mgota sign` the firmware",
            err=True,
        )


def _private_keys(paths: tuple[Path, ...], password_file: Path | None) -> list[PrivateKey]:
    password = read_password(password_file)
    return [load_private_key(read_bytes(path, "private key"), password) for path in paths]


def _envelope(path: Path, what: str) -> tuple[dict[str, object], Envelope]:
    try:
        found = parse_object(read_bytes(path, what))
        return found, open_envelope(found)
    except RejectedError as exc:
        raise ConfigError(f"{path} cannot be signed: {exc}") from exc


def _kind(envelope: Envelope) -> str:
    """As what the payload is signed: a rotation has keys, a manifest has a version."""
    return ROTATION if "from" in parse_object(envelope.payload) else KIND


def _keyids(envelope: Envelope) -> list[str]:
    return [keyid for keyid, _ in envelope.signatures]


def _members(found: Manifest) -> dict[str, object]:
    told = {"version": found.version, "url": found.url, "size": found.size, "sha256": found.sha256, "seq": found.seq}
    return {**told, "hw": list(found.hw), "expires": found.expires}


def _deliver(data: bytes, out: Path | None, made: Manifest, envelope: Envelope | None = None, *, as_json: bool) -> None:
    """To the file, and say so; or to stdout, where the manifest is JSON already."""
    if out is None:
        click.echo(data, nl=False)
        return
    replace_file(out, data)
    signers = {"keyids": _keyids(envelope)} if envelope else {}
    _say(str(out), {"manifest": str(out), **_members(made), **signers}, as_json=as_json)


def _say(line: str, found: Mapping[str, object], *, as_json: bool) -> None:
    click.echo(json.dumps(found) if as_json else line)
