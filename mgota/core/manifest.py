"""The manifest: which version is there, where its image lies, and who says so.

    {"version": "1.2.3", "url": "https://x/fw.bin", "size": 324645}                 plain, as Mongoose reads it
    {…, "signed": "<base64>", "sigs": [{"keyid": "…", "sig": "…"}]}                 signed; `mgota.core.envelope`

Rules:
- a signed manifest is its decoded payload; what stands beside it is for clients that read no signatures, and must
  say the same;
- with keys a plain manifest is refused, unless that is allowed; without keys nothing is verified, and a manifest is
  what stands at its top;
- sizes and numbers are integers (Python takes True and 1.0 for 1), and keys that are not known are ignored;
- `sha256` and `size` are the image's, trailer included: the file as it is served.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from mgota.core.envelope import Envelope, open_envelope, seal_envelope
from mgota.core.keys import PrivateKey, PublicKey
from mgota.core.strict_json import parse_object
from mgota.core.trust import KeyChain, KeySet, effective, follow, read_rotations
from mgota.core.version import is_version
from mgota.errors import ConfigError, MalformedError, ManifestError, UnsignedError

KIND: Final = "application/vnd.mgota.manifest+json"
"""The type that a manifest is signed as."""

MAX_URL: Final = 2048
MAX_HARDWARE: Final = 64
"""Hardware ids in one manifest."""

_FIELDS: Final = ("version", "url", "size", "sha256", "seq", "hw", "expires")
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
        if len(self.hw) > MAX_HARDWARE or not all(map(is_version, self.hw)):
            raise ManifestError(f"the hw of a manifest is a list of 1 to {MAX_HARDWARE} short texts without spaces")


def is_digest(text: str) -> bool:
    """Whether this is a SHA-256 in hex."""
    return len(text) == 64 and not set(text) - _HEX


@dataclass(frozen=True, slots=True)
class Opened:
    """A manifest, and what the device is to remember from it on.

    Args:
        manifest: what it says.
        chain: the keys that count now; differs from what was given if the manifest brought rotations.
    """

    manifest: Manifest
    chain: KeyChain | None


@dataclass(frozen=True, kw_only=True)
class ManifestVerifier:
    """Which manifests a device takes.

    Args:
        keys: trusted keys; without any, nothing is verified.
        threshold: how many of them have to sign. A single stolen key is worth nothing with two.
        allow_plain: take manifests without a signature all the same. Whoever can change what is served can then name
            any version and any image; the image's own signature is still asked for.

    Raises:
        ConfigError: the threshold cannot be reached.
    """

    keys: Sequence[PublicKey] = ()
    threshold: int = 1
    allow_plain: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        if self.keys:
            KeySet(tuple(self.keys), self.threshold)
        elif self.threshold != 1:
            raise ConfigError("a threshold needs keys")

    def open(self, data: bytes, chain: KeyChain | None = None) -> Opened:
        """Read a manifest and verify it. Expiry, hardware and sequence are `mgota.core.offer`'s.

        Args:
            data: as it was served.
            chain: what the device remembers of rotations (`BootRecord.chain`).

        Raises:
            ManifestError: it is malformed, or says two things.
            UnsignedError: it is not signed, and has to be.
            BadSignatureError: too few trusted keys signed it.
        """
        try:
            return self._open(data, chain)
        except ManifestError:
            raise
        except MalformedError as exc:
            raise ManifestError(f"the manifest is malformed: {exc}") from exc

    def _open(self, data: bytes, chain: KeyChain | None) -> Opened:
        found = parse_object(data)
        if not self.keys or (self.allow_plain and "signed" not in found):
            return Opened(_plain(found), chain)
        if "signed" not in found:
            raise UnsignedError("the manifest is not signed, and keys are configured")
        envelope, configured = open_envelope(found), KeySet(tuple(self.keys), self.threshold)
        chain = follow(configured, chain, read_rotations(found.get("rotations", [])))
        effective(configured, chain).check(KIND, envelope)
        payload = parse_object(envelope.payload)
        for name in _FIELDS:
            if name in found and not _same(found[name], payload.get(name)):
                raise ManifestError(f"the manifest says two things: its {name} is not the signed one")
        return Opened(_signed(payload), chain)


def _same(outer: object, inner: object) -> bool:
    # Members of a list are compared as they are: those of the payload are texts, which equal nothing else.
    return type(outer) is type(inner) and outer == inner


def _plain(found: Mapping[str, object]) -> Manifest:
    version, url, size = _basics(found)
    return Manifest(version=version, url=url, size=size, sha256=_text(found, "sha256", lower=True))


def _signed(payload: Mapping[str, object]) -> Manifest:
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


def encode_plain(manifest: Manifest) -> bytes:
    """A manifest that nobody signed: the form that every Mongoose device reads."""
    return f"{json.dumps(_top(manifest), indent=1)}\n".encode("ascii")


def encode_signed(manifest: Manifest, keys: Iterable[PrivateKey], rotations: Iterable[Envelope] = ()) -> bytes:
    """A manifest that the keys sign.

    Args:
        manifest: with sha256 and seq.
        keys: who signs it.
        rotations: of keys, for devices that have not followed them yet; see `mgota.core.trust`.

    Raises:
        ConfigError: something is missing that a signed manifest needs.
    """
    if manifest.sha256 is None or manifest.seq is None:
        raise ConfigError("a signed manifest needs sha256 and seq")
    payload: dict[str, Any] = {"v": 1, **_top(manifest), "seq": manifest.seq}
    if manifest.hw:
        payload["hw"] = list(manifest.hw)
    if manifest.expires is not None:
        payload["expires"] = manifest.expires
    envelope = seal_envelope(KIND, json.dumps(payload).encode("ascii"), keys)
    if not envelope.signatures:
        raise ConfigError("a signed manifest needs a key")
    top = _top(manifest) | envelope.as_dict()
    if ways := [rotation.as_dict() for rotation in rotations]:
        top["rotations"] = ways
    return f"{json.dumps(top, indent=1)}\n".encode("ascii")


def _top(manifest: Manifest) -> dict[str, object]:
    top: dict[str, object] = {"version": manifest.version, "url": manifest.url, "size": manifest.size}
    return top | ({"sha256": manifest.sha256} if manifest.sha256 is not None else {})
