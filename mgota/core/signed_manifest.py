"""Manifests that somebody signed, and which of them a device takes.

    {"version": "1.2.3", "url": "https://x/fw.bin", "size": 324645,
     "signed": "<base64 of the payload>", "sigs": [{"keyid": "…", "sig": "…"}], "rotations": […]}

Rules:
- a signed manifest is its decoded payload; what stands beside it is for clients that read no signatures, and must
  say the same;
- with keys a plain manifest is refused, unless that is allowed; without keys nothing is verified, and a manifest is
  what stands at its top.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mgota.core.envelope import Envelope, open_envelope, seal_envelope
from mgota.core.keychain import KeyChain
from mgota.core.keys import PrivateKey, PublicKey
from mgota.core.manifest import FIELDS, Manifest, payload_members, plain_members, read_payload, read_plain
from mgota.core.strict_json import parse_object
from mgota.core.trust import KeySet, effective, follow, read_rotations
from mgota.errors import ConfigError, MalformedError, ManifestError, UnsignedError

KIND: Final = "application/vnd.mgota.manifest+json"
"""The type that a manifest is signed as."""


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
            return Opened(read_plain(found), chain)
        if "signed" not in found:
            raise UnsignedError("the manifest is not signed, and keys are configured")
        envelope, configured = open_envelope(found), KeySet(tuple(self.keys), self.threshold)
        chain = follow(configured, chain, read_rotations(found.get("rotations", [])))
        effective(configured, chain).check(KIND, envelope)
        payload = parse_object(envelope.payload)
        for name in FIELDS:
            if name in found and not _same(found[name], payload.get(name)):
                raise ManifestError(f"the manifest says two things: its {name} is not the signed one")
        return Opened(read_payload(payload), chain)


def _same(outer: object, inner: object) -> bool:
    # Members of a list are compared as they are: those of the payload are texts, which equal nothing else.
    return type(outer) is type(inner) and outer == inner


def seal_manifest(manifest: Manifest, keys: Iterable[PrivateKey]) -> Envelope:
    """The manifest, signed by each of the keys.

    Args:
        manifest: with sha256 and seq.
        keys: who signs it; others can later.

    Raises:
        ConfigError: something is missing that a signed manifest needs.
    """
    if manifest.sha256 is None or manifest.seq is None:
        raise ConfigError("a signed manifest needs sha256 and seq")
    return seal_envelope(KIND, json.dumps(payload_members(manifest)).encode("ascii"), keys)


def encode_signed(manifest: Manifest, keys: Iterable[PrivateKey], rotations: Iterable[Envelope] = ()) -> bytes:
    """The bytes of a manifest that the keys sign, to be served.

    Args:
        manifest: with sha256 and seq.
        keys: who signs it.
        rotations: of keys, for devices that have not followed them yet; see `mgota.core.trust`.

    Raises:
        ConfigError: something is missing that a signed manifest needs.
    """
    return encode_envelope(manifest, seal_manifest(manifest, keys), rotations)


def encode_envelope(manifest: Manifest, envelope: Envelope, rotations: Iterable[Envelope] = ()) -> bytes:
    """The bytes of a signed manifest, to be served.

    Args:
        manifest: for clients that read no signatures.
        envelope: the same, signed.
        rotations: of keys, for devices that have not followed them yet; see `mgota.core.trust`.
    """
    top = plain_members(manifest) | envelope.as_dict()
    if ways := [rotation.as_dict() for rotation in rotations]:
        top["rotations"] = ways
    return f"{json.dumps(top, indent=1)}\n".encode("ascii")
