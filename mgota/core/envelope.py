"""Signed JSON: the exact bytes that were signed, and who signed them.

    {"signed": "<base64 of the payload>", "sigs": [{"keyid": "<16 hex>", "sig": "<base64 of R‖S>"}]}

Rules:
- signed is DSSE's pre-authentication encoding of a type and the payload, so that what was signed as one kind of message
  is never taken for another (github.com/secure-systems-lab/dsse, protocol.md);
- the payload is bytes: nothing is written anew before it is verified, so there is no canonical JSON;
- only configured keys count, each once, whatever `keyid` says; a signature of a key that is not known is not looked at.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from mgota.core.keys import RAW_SIZE, PrivateKey, PublicKey
from mgota.core.strict_json import decode_base64, encode_base64
from mgota.errors import ManifestError

MAX_SIGNATURES = 16
"""Signatures of one message."""


def encode_pae(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed.

    Args:
        kind: the payload's type.
        payload: its bytes.
    """
    name = kind.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Envelope:
    """A payload and its signatures, not verified.

    Args:
        payload: the bytes that were signed.
        signatures: keyid and R‖S, as they came.
    """

    payload: bytes
    signatures: tuple[tuple[str, str], ...]

    def signers(self, kind: str, keys: Iterable[PublicKey]) -> frozenset[PublicKey]:
        """Which of the keys signed the payload as a message of this kind.

        Args:
            kind: the payload's type.
            keys: those that are asked for.

        Raises:
            MalformedError: a signature that claims to be of one of them is not base64, or of another length.
        """
        digest = sha256(encode_pae(kind, self.payload)).digest()
        return frozenset(
            key
            for key in keys
            for keyid, text in self.signatures
            if keyid == key.keyid and key.verify(digest, _raw(text))
        )

    def signed_by(self, kind: str, keys: Iterable[PrivateKey]) -> "Envelope":
        """The envelope with further signatures; one of a key that has signed is replaced.

        Args:
            kind: the payload's type.
            keys: who signs.
        """
        digest = sha256(encode_pae(kind, self.payload)).digest()
        return self.with_signatures({key.public.keyid: key.sign(digest) for key in keys})

    def with_signatures(self, signatures: Mapping[str, bytes]) -> "Envelope":
        """The same, with signatures that were made elsewhere.

        Args:
            signatures: R‖S by keyid.
        """
        made = {keyid: encode_base64(signature) for keyid, signature in signatures.items()}
        return Envelope(self.payload, tuple((dict(self.signatures) | made).items()))

    def as_dict(self) -> dict[str, object]:
        """The envelope's members in JSON."""
        signatures = [{"keyid": keyid, "sig": text} for keyid, text in self.signatures]
        return {"signed": encode_base64(self.payload), "sigs": signatures}


def _raw(text: str) -> bytes:
    signature = decode_base64(text)
    if len(signature) != RAW_SIZE:
        raise ManifestError(f"a signature has {RAW_SIZE} bytes, not {len(signature)}")
    return signature


def seal_envelope(kind: str, payload: bytes, keys: Iterable[PrivateKey]) -> Envelope:
    """The payload, signed by each of the keys.

    Args:
        kind: the payload's type.
        payload: its bytes.
        keys: who signs; one that comes twice signs once.
    """
    return Envelope(payload, ()).signed_by(kind, keys)


def open_envelope(found: Mapping[str, object]) -> Envelope:
    """The envelope in a JSON object; other members are not looked at. Nothing is verified.

    Raises:
        MalformedError: there is none, or it is malformed.
    """
    signed, sigs = found.get("signed"), found.get("sigs")
    if not isinstance(signed, str) or not isinstance(sigs, list):
        raise ManifestError("a signed message needs the text `signed` and the list `sigs`")
    entries = cast(list[object], sigs)
    if len(entries) > MAX_SIGNATURES:
        raise ManifestError(f"more than {MAX_SIGNATURES} signatures")
    return Envelope(decode_base64(signed), tuple(map(_signature, entries)))


def _signature(entry: object) -> tuple[str, str]:
    members = cast(dict[str, object], entry) if isinstance(entry, dict) else {}
    keyid, sig = members.get("keyid"), members.get("sig")
    if not isinstance(keyid, str) or not isinstance(sig, str):
        raise ManifestError("a signature needs the texts `keyid` and `sig`")
    return keyid, sig
