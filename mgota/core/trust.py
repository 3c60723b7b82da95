"""Which keys count: the configured ones, and what rotations that this device has seen made of them.

A rotation replaces one set of keys by another. It is signed by the old set *and* by the new one, each by its
threshold, and names the set that it replaces, so that a device can follow several of them from wherever it stands.
Rules:
- a rotation that was followed is remembered in the boot record (`KeyChain`): whoever has a key that was rotated out
  cannot lead the device back, not even by an older program that has that key built in;
- a key that was rotated out never counts again, wherever it is named;
- configured keys that the chain has never seen are somebody's newer decision, and count instead of it: that is how a
  key is revoked by configuration.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, cast

from mgota.core.envelope import Envelope, open_envelope, seal_envelope
from mgota.core.image import ImageScan, Verifier
from mgota.core.keychain import MAX_CHAIN, MAX_KEYS, KeyChain
from mgota.core.keys import PrivateKey, PublicKey
from mgota.core.strict_json import decode_base64, encode_base64, parse_object
from mgota.errors import BadSignatureError, ConfigError, ManifestError, RejectedError

ROTATION: Final = "application/vnd.mgota.keys+json"
"""The type that a rotation is signed as."""


@dataclass(frozen=True)
class KeySet:
    """Keys, and how many of them have to sign. Order does not matter, and a key that comes twice counts once.

    Args:
        keys: at least one.
        threshold: at least one, and no more than there are keys.

    Raises:
        ConfigError: nobody could ever satisfy it.
    """

    keys: tuple[PublicKey, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(sorted(set(self.keys), key=lambda key: key.raw)))
        if not self.keys:
            raise ConfigError("a set of keys needs at least one key")
        if not 1 <= self.threshold <= len(self.keys):
            raise ConfigError(f"{self.threshold} of {len(self.keys)} keys cannot be asked for")

    @property
    def id(self) -> str:
        """Names the set: the first 16 hex digits of the SHA-256 of its keys X‖Y, sorted. The threshold is no part."""
        return sha256(b"".join(key.raw for key in self.keys)).hexdigest()[:16]

    def check(self, kind: str, envelope: Envelope) -> None:
        """Whether enough of the keys signed.

        Raises:
            BadSignatureError: fewer did.
            MalformedError: a signature is none.
        """
        count = len(envelope.signers(kind, self.keys))
        if count < self.threshold:
            wanted = f"{self.threshold} trusted keys" if self.threshold > 1 else "a trusted key"
            raise BadSignatureError(f"not signed by {wanted}" + (f", only by {count}" if count else ""))


def effective(configured: KeySet, chain: KeyChain | None) -> KeySet:
    """The keys that count.

    Args:
        configured: what the configuration names.
        chain: what the device remembers, if it has followed a rotation.
    """
    if chain is None:
        return configured
    if configured.id not in chain.left:
        kept = tuple(key for key in configured.keys if key.keyid not in chain.retired)
        if len(kept) >= configured.threshold:
            return KeySet(kept, configured.threshold)
    return KeySet(tuple(PublicKey(decode_base64(key)) for key in chain.keys), chain.threshold)


def trusted(verifier: Verifier, chain: KeyChain | None) -> Verifier:
    """The verifier of images, with the keys that count.

    Args:
        verifier: as it is configured.
        chain: what the device remembers.
    """
    return Verifier(keys=effective(KeySet(tuple(verifier.keys)), chain).keys, trailer=verifier.trailer)


def check_image(verifier: Verifier, chain: KeyChain | None, scan: ImageScan) -> None:
    """Accept a scanned image by the keys that count, or not.

    Args:
        verifier: as it is configured.
        chain: what the device remembers.
        scan: of all of the image.

    Raises:
        UnsignedError: it has no trailer of the expected form.
        BadSignatureError: no key that counts made the signature.
    """
    try:
        trusted(verifier, chain).check(scan)
    except BadSignatureError as exc:
        if chain is not None and is_signed(verifier, scan):
            raise BadSignatureError(
                "signed by a key that was rotated out: sign the image with one that counts"
            ) from exc
        raise


def is_signed(verifier: Verifier, scan: ImageScan) -> bool:
    """Whether one of these keys signed the image."""
    try:
        verifier.check(scan)
    except RejectedError:
        return False
    return True


def follow(configured: KeySet, chain: KeyChain | None, rotations: Iterable[Envelope]) -> KeyChain | None:
    """Go along the rotations as far as they lead.

    Args:
        configured: what the configuration names.
        chain: what the device remembers.
        rotations: in any order; those that do not begin at the keys that count are passed over.

    Returns:
        What to remember now; `chain` if nothing led on.

    Raises:
        BadSignatureError: one that begins here is not signed by old and new keys.
        ManifestError: one is malformed, or the device has followed too many.
    """
    ways = [(envelope, *_read(envelope)) for envelope in rotations]
    while True:
        here = effective(configured, chain)
        retired = set(chain.retired if chain else ())
        onward = (
            (envelope, new)
            for envelope, old, new in ways
            if old == here.id != new.id and not retired & {key.keyid for key in new.keys}
        )
        envelope, new = next(onward, (None, None))
        if envelope is None or new is None:
            return chain
        check_rotation(envelope, here, new)
        chain = _step(configured, chain, here, new)


def _step(configured: KeySet, chain: KeyChain | None, here: KeySet, new: KeySet) -> KeyChain:
    left, retired = (chain.left, chain.retired) if chain else ((), ())
    left = tuple(dict.fromkeys((*left, configured.id, here.id)))
    retired = (*retired, *(key.keyid for key in here.keys if key not in new.keys))
    if max(len(left), len(retired)) > MAX_CHAIN:
        raise ManifestError("this device has followed too many rotations: configure the new keys")
    keys = tuple(encode_base64(key.raw) for key in new.keys)
    return KeyChain(keys=keys, threshold=new.threshold, left=left, retired=retired)


def check_rotation(envelope: Envelope, old: KeySet, new: KeySet) -> None:
    """Whether enough of both sets signed.

    Args:
        envelope: the rotation.
        old: the set that counts now.
        new: the set that will.

    Raises:
        BadSignatureError: fewer did.
        MalformedError: a signature is none.
    """
    for which, keys in (("old", old), ("new", new)):
        try:
            keys.check(ROTATION, envelope)
        except BadSignatureError as exc:
            raise BadSignatureError(f"the rotation of keys by its {which} keys: {exc}") from exc


def make_rotation(old: KeySet, new: KeySet, signers: Sequence[PrivateKey]) -> Envelope:
    """A rotation from one set to another.

    Args:
        old: the set that counts now.
        new: the set that will.
        signers: some of both; who is missing can sign later.

    Raises:
        ConfigError: it would change nothing, or brings too many keys.
    """
    if old.id == new.id:
        raise ConfigError("old and new keys are the same")
    if len(new.keys) > MAX_KEYS:
        raise ConfigError(f"a rotation brings at most {MAX_KEYS} keys")
    keys = [encode_base64(key.raw) for key in new.keys]
    payload = {"v": 1, "from": old.id, "keys": keys, "threshold": new.threshold}
    return seal_envelope(ROTATION, json.dumps(payload).encode("ascii"), signers)


def last_keys(rotations: Iterable[Envelope]) -> tuple[PublicKey, ...]:
    """The keys that the rotations lead to, whoever signed them.

    Raises:
        ManifestError: one is malformed.
    """
    ways = [_read(envelope) for envelope in rotations]
    left = {old for old, _ in ways}
    return tuple(dict.fromkeys(key for _, new in ways if new.id not in left for key in new.keys))


def read_rotations(found: object) -> tuple[Envelope, ...]:
    """The envelopes in a list of JSON objects. Nothing is verified.

    Raises:
        MalformedError: it is no list, or holds something else.
    """
    if not isinstance(found, list):
        raise ManifestError("`rotations` is no list")
    entries = cast(list[object], found)
    if not all(isinstance(entry, dict) for entry in entries):
        raise ManifestError("`rotations` holds something else than objects")
    return tuple(open_envelope(cast(dict[str, object], entry)) for entry in entries)


def _read(envelope: Envelope) -> tuple[str, KeySet]:
    """The id of the set that a rotation replaces, and the set that it brings."""
    payload = parse_object(envelope.payload)
    old, keys, threshold = payload.get("from"), payload.get("keys"), payload.get("threshold")
    version = payload.get("v")
    if type(version) is not int or version != 1 or not isinstance(old, str) or type(threshold) is not int:
        raise ManifestError("a rotation is malformed")
    entries = cast(list[object], keys) if isinstance(keys, list) else []
    if len(entries) > MAX_KEYS:
        raise ManifestError(f"a rotation brings more than {MAX_KEYS} keys")
    try:
        return old, KeySet(tuple(PublicKey(decode_base64(str(key))) for key in entries), threshold)
    except ConfigError as exc:
        raise ManifestError(f"a rotation is malformed: {exc}") from exc
