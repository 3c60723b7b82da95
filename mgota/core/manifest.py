"""The manifest: which version is there, and where its image lies.

    {"version": "1.2.3", "url": "https://x/fw.bin", "size": 324645}                 plain, as Mongoose reads it

Its signed form is `mgota.core.signed_manifest`. Rules:
- sizes and numbers are integers (Python takes True and 1.0 for 1), and keys that are not known are ignored;
- `sha256` and `size` are the image's, trailer included: the file as it is served.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, cast

from mgota.core.image import ImageScan
from mgota.core.record import SlotImage
from mgota.core.strict_json import MAX_DIGITS, MAX_INTEGER
from mgota.core.version import is_version
from mgota.errors import DigestError, ManifestError, WrongHardwareError

MAX_URL: Final = 2048
MAX_HARDWARE: Final = 64
"""Hardware ids in one manifest."""

FIELDS: Final = ("version", "url", "size", "sha256", "seq", "hw", "expires")
"""The members that are signed, besides the number of the form."""

_HEX: Final = frozenset("0123456789abcdefABCDEF")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a manifest says.

    Args:
        version: of the image; 1 to 64 printable characters without spaces.
        url: of the image; absolute, or relative to the manifest's own.
        size: bytes of the image, trailer included.
        sha256: hex digest of the image, trailer included; None only in a plain manifest.
        seq: the sequence number, which never falls; None only in a plain manifest.
        hw: ids of the hardware that the image is for; empty means any.
        expires: when it ends, in Unix seconds; None is never.
        signed: whether trusted keys signed it.

    Raises:
        ManifestError: a member is not what it should be.
    """

    version: str
    url: str
    size: int
    sha256: str | None = None
    seq: int | None = None
    hw: tuple[str, ...] = ()
    expires: int | None = None
    signed: bool = False

    def __post_init__(self) -> None:
        if not is_version(self.version):
            raise ManifestError("the version of a manifest is 1 to 64 printable characters without spaces")
        if not (0 < len(self.url) <= MAX_URL and all("!" <= char <= "~" for char in self.url)):
            raise ManifestError(f"the url of a manifest is 1 to {MAX_URL} printable ASCII characters without spaces")
        if self.size < 1:
            raise ManifestError("the size of a manifest is at least 1")
        if self.sha256 is not None and not is_digest(self.sha256):
            raise ManifestError("the sha256 of a manifest is 64 hex digits")
        if self.seq is not None and self.seq < 0:
            raise ManifestError("the seq of a manifest is not negative")
        if max(self.size, self.seq or 0, abs(self.expires or 0)) > MAX_INTEGER:
            raise ManifestError(f"a number in a manifest has at most {MAX_DIGITS} digits")
        if len(self.hw) > MAX_HARDWARE or not all(map(is_version, self.hw)):
            raise ManifestError(f"the hw of a manifest is a list of 1 to {MAX_HARDWARE} short texts without spaces")


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 in hex."""
    return len(text) == 64 and not set(text) - _HEX


def read_plain(found: Mapping[str, object]) -> Manifest:
    """The manifest that stands in a JSON object, whoever wrote it.

    Raises:
        ManifestError: there is none.
    """
    version, url, size = _basics(found)
    return Manifest(version=version, url=url, size=size, sha256=_text(found, "sha256", lower=True))


def read_payload(payload: Mapping[str, object]) -> Manifest:
    """The manifest that stands in a signed payload, already verified.

    Raises:
        ManifestError: there is none.
    """
    if type(payload.get("v")) is not int or payload["v"] != 1:
        raise ManifestError("the signed manifest is of a form that this mgota does not know")
    version, url, size = _basics(payload)
    sha256, seq = _text(payload, "sha256", lower=True), _number(payload, "seq")
    if sha256 is None or seq is None:
        raise ManifestError("a signed manifest needs sha256 and seq")
    hw, expires = _hardware(payload.get("hw")), _number(payload, "expires")
    return Manifest(version=version, url=url, size=size, sha256=sha256, seq=seq, hw=hw, expires=expires, signed=True)


def _basics(found: Mapping[str, object]) -> tuple[str, str, int]:
    version, url, size = _text(found, "version"), _text(found, "url"), _number(found, "size")
    if version is None or url is None or size is None:
        raise ManifestError("a manifest needs version, url and size")
    return version, url, size


def _text(found: Mapping[str, object], name: str, *, lower: bool = False) -> str | None:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise ManifestError(f"the {name} of a manifest is a text")
    return value.lower() if value is not None and lower else value


def _number(found: Mapping[str, object], name: str) -> int | None:
    value = found.get(name)
    if value is not None and type(value) is not int:
        raise ManifestError(f"the {name} of a manifest is an integer")
    return value


def _hardware(found: object) -> tuple[str, ...]:
    if found is None:
        return ()
    ids = cast(list[object], found) if isinstance(found, list) else []
    if not ids or not all(isinstance(one, str) for one in ids):
        raise ManifestError("the hw of a manifest is a list of texts, and not empty")
    return cast(tuple[str, ...], tuple(ids))


def identify(scan: ImageScan, manifest: Manifest | None, *, keys: bool) -> SlotImage:
    """What is known of an image, now that all of it was read back.

    Args:
        scan: of the whole image.
        manifest: what announced it; version and sequence of a signed one are the image's.
        keys: whether keys are configured: then the version of a plain manifest, which anybody may have written, counts
            for nothing, and the image has the version that is tagged inside of its signed bytes, or none.

    Raises:
        DigestError: it is not the image that was announced.
    """
    digest, whole = scan.sha256.hex(), scan.image_sha256.hex()
    image = SlotImage(
        size=scan.firmware_size,
        image_size=scan.size,
        sha256=digest,
        version=scan.version,
        image_sha256=None if whole == digest else whole,
    )
    if manifest is None:
        return image
    if manifest.size != scan.size or manifest.sha256 not in (None, whole):
        raise DigestError("what is stored is not the image that the manifest names")
    if manifest.signed:
        return replace(image, version=manifest.version, sequence=manifest.seq)
    return image if keys else replace(image, version=manifest.version)


def check_hardware(manifest: Manifest, hardware: str | None) -> None:
    """Whether the image is for this device.

    Args:
        manifest: one without `hw` is for any.
        hardware: the device's id.

    Raises:
        WrongHardwareError: it is for another, or the device does not know what it is.
    """
    if manifest.hw and hardware not in manifest.hw:
        this = f"is {hardware}" if hardware else "has no hardware id"
        raise WrongHardwareError(f"the image is for {', '.join(manifest.hw)[:200]}; this device {this}")


def encode_plain(manifest: Manifest) -> bytes:
    """A manifest that nobody signed: the form that every Mongoose device reads."""
    return f"{json.dumps(plain_members(manifest), indent=1)}\n".encode("ascii")


def plain_members(manifest: Manifest) -> dict[str, object]:
    """What every client reads."""
    found: dict[str, object] = {"version": manifest.version, "url": manifest.url, "size": manifest.size}
    return found | ({"sha256": manifest.sha256} if manifest.sha256 is not None else {})


def payload_members(manifest: Manifest) -> dict[str, object]:
    """What is signed."""
    found: dict[str, object] = {"v": 1, **plain_members(manifest), "seq": manifest.seq}
    hw: dict[str, object] = {"hw": list(manifest.hw)} if manifest.hw else {}
    return found | hw | ({"expires": manifest.expires} if manifest.expires is not None else {})
