"""ECDSA-P256 keys in the forms that people have them, and signatures as 64 raw bytes.

Rules:
- a signature in a trailer is R‖S, 32 bytes each, big endian, zero padded (FIPS 186-5); DER is converted at the edge and
  never accepted in a trailer;
- a public key is X‖Y, 64 bytes, in PEM (SubjectPublicKeyInfo), raw, or as the C define of `mongoose_config.h`;
- a signature is never an identity: (r, n-s) verifies too. Use the SHA-256 of the firmware;
- a device reads the usual form of a public key without the library's readers of all keys there are, which take nearly
  three mebibytes of its memory. What is not of this form is theirs.
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import TypeVar

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)

from mgota.errors import ConfigError

RAW_SIZE = 64
"""Bytes of a raw signature R‖S, and of a raw public key X‖Y."""

SPKI = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
"""What the SubjectPublicKeyInfo of P-256 is before X‖Y, in DER (RFC 5480, 2; 0x04: an uncompressed point)."""

_HALF = RAW_SIZE // 2
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----", re.ASCII)
_DEFINE = re.compile(rb"#\s*define\s+MG_OTA_PUBLIC_KEY\s*\\?\s*\{([^}]*)\}", re.ASCII)
_T = TypeVar("_T")


class _EcdsaOfDigest(ec.ECDSA):
    """ECDSA of a SHA-256 that is there already.

    The library's own constructor loads all of its backend, to ask whether it makes deterministic signatures; that alone
    takes two mebibytes of a device's memory. Only what is public is replaced here.
    """

    def __init__(self) -> None:  # it has no state
        pass

    @property
    def algorithm(self) -> Prehashed:
        return Prehashed(hashes.SHA256())

    @property
    def deterministic_signing(self) -> bool:
        return False


_PREHASHED = _EcdsaOfDigest()


@dataclass(frozen=True)
class PublicKey:
    """A key that images are verified with. Two keys are equal when they are the same point."""

    raw: bytes
    """X‖Y, 64 bytes."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", _point(self.raw))

    @property
    def _ec(self) -> ec.EllipticCurvePublicKey:
        return self.__dict__["_key"]  # type: ignore[no-any-return]

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Whether this key's owner signed the firmware with this SHA-256.

        Args:
            digest: SHA-256 of the firmware, 32 bytes.
            signature: R‖S. Anything but 64 bytes is no signature.
        """
        if len(signature) != RAW_SIZE:
            return False
        r, s = int.from_bytes(signature[:_HALF], "big"), int.from_bytes(signature[_HALF:], "big")
        try:
            self._ec.verify(encode_dss_signature(r, s), digest, _PREHASHED)
        except InvalidSignature:
            return False
        return True

    def pem(self) -> bytes:
        """The key as SubjectPublicKeyInfo in PEM, as openssl reads it."""
        text = b64encode(SPKI + self.raw)
        return b"\n".join((b"-----BEGIN PUBLIC KEY-----", text[:64], text[64:], b"-----END PUBLIC KEY-----", b""))

    @property
    def keyid(self) -> str:
        """The first 16 hex digits of the SHA-256 of the SubjectPublicKeyInfo."""
        return sha256(SPKI + self.raw).hexdigest()[:16]

    def c_define(self) -> str:
        """The key as the define for `mongoose_config.h`, eight bytes a row."""
        rows = [", ".join(f"0x{byte:02x}" for byte in self.raw[at : at + 8]) for at in range(0, RAW_SIZE, 8)]
        return "#define MG_OTA_PUBLIC_KEY { \\\n" + "".join(f"  {row}, \\\n" for row in rows) + "}\n"


class PrivateKey:
    """A key that images are signed with. It never leaves the build machine."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> "PrivateKey":
        """A new key."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @property
    def public(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return _public(self._key.public_key())

    def pem(self, password: bytes | None = None) -> bytes:
        """The key as PKCS#8 in PEM, encrypted if a password is given."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

        encryption: serialization.KeySerializationEncryption = (
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        )
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    def sign(self, digest: bytes) -> bytes:
        """R‖S over the firmware with this SHA-256.

        Args:
            digest: SHA-256 of the firmware, 32 bytes.
        """
        return _raw_signature(self._key.sign(digest, _PREHASHED))


def load_public_key(data: bytes) -> PublicKey:
    """A public key from a file's bytes: PEM, 64 raw bytes, or the C define.

    Raises:
        ConfigError: it is none of these, or no point of P-256.
    """
    if len(data) == RAW_SIZE and not data.startswith(b"-----BEGIN"):
        return PublicKey(data)
    if define := _DEFINE.search(data):
        return PublicKey(_define_bytes(define[1]))
    if b"PRIVATE KEY-----" in data:
        raise ConfigError("this is a private key; devices and checks take the public one")
    if (raw := _usual_form(data)) is not None:
        return PublicKey(raw)
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  a compressed point, a foreign kind

    key = _translated(
        lambda: serialization.load_pem_public_key(data), "not a public key: want PEM, 64 raw bytes or the C define"
    )
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("not a P-256 key")
    return _public(key)


def load_private_key(data: bytes, password: bytes | None = None) -> PrivateKey:
    """A private key from PEM, encrypted or not.

    Raises:
        ConfigError: it is no PEM, no P-256 key, or the password does not open it.
    """
    if b"ENCRYPTED" in data and not password:
        raise ConfigError("the private key is encrypted and no password is given")
    if b"ENCRYPTED" not in data:
        password = None  # cryptography refuses a password that is not needed
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    key = _translated(
        lambda: serialization.load_pem_private_key(data, password), "not a private key in PEM, or a wrong password"
    )
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConfigError("not a P-256 key")
    return PrivateKey(key)


def signature_from_any(data: bytes) -> bytes:
    """R‖S from what an HSM, a KMS or openssl gives: 64 raw bytes, or DER.

    Raises:
        ConfigError: it is neither.
    """
    if len(data) == RAW_SIZE:
        return data
    try:
        return _raw_signature(data)
    except (ValueError, OverflowError) as exc:
        raise ConfigError("not an ECDSA-P256 signature: want 64 raw bytes R and S, or DER") from exc


def _raw_signature(der: bytes) -> bytes:
    r, s = decode_dss_signature(der)
    return r.to_bytes(_HALF, "big") + s.to_bytes(_HALF, "big")


def _define_bytes(rows: bytes) -> bytes:
    try:
        found = bytes(int(number, 16) for number in rows.replace(b"\\", b" ").replace(b",", b" ").split())
    except ValueError as exc:
        raise ConfigError("the C define holds something else than bytes") from exc
    if len(found) != RAW_SIZE:
        raise ConfigError(f"the C define holds {len(found)} bytes, not {RAW_SIZE}")
    return found


def _point(raw: bytes) -> ec.EllipticCurvePublicKey:
    if len(raw) != RAW_SIZE:
        raise ConfigError(f"a raw public key has {RAW_SIZE} bytes, not {len(raw)}")
    # 0x04: an uncompressed point (SEC 1, 2.3.3)
    return _translated(
        lambda: ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + raw), "not a point of P-256"
    )


def _public(key: ec.EllipticCurvePublicKey) -> PublicKey:
    numbers = key.public_numbers()
    return PublicKey(numbers.x.to_bytes(_HALF, "big") + numbers.y.to_bytes(_HALF, "big"))


def _usual_form(data: bytes) -> bytes | None:
    """X‖Y of a file that is one public key of P-256 in PEM; None if it is anything else."""
    found = _PEM.search(data)
    if not found or data.count(b"-----BEGIN") != 1:
        return None
    try:
        der = b64decode(b"".join(found[1].split()), validate=True)
    except ValueError:
        return None
    head, raw = der[: len(SPKI)], der[len(SPKI) :]
    return raw if head == SPKI and len(raw) == RAW_SIZE else None


def _translated(load: Callable[[], _T], message: str) -> _T:
    try:
        return load()
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(message) from exc
