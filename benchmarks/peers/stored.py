"""The work that every peer does with an image, so that only the way from the socket to here differs between them.

A file is overwritten where it is, with a running CRC-32; it is made durable, forgotten by the kernel and read back;
CRC-32 is compared and the ECDSA-P256 signature, the last 64 bytes, is verified over the SHA-256 of the rest.
All of it blocks: what a peer does about that is its own affair.
"""

import argparse
import os
from hashlib import sha256
from pathlib import Path
from zlib import crc32

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

BLOCK = 1 << 20
"""Bytes that are handled at once."""

_SIGNATURE = 64  # R and S of P-256, 32 bytes each, big endian


class StoredImage:
    """An image on its way into a file.

    Args:
        path: the file; one that exists keeps its space.
        size: bytes of the image, signature included.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.posix_fallocate(self._fd, 0, size)
        self._size = size
        self._crc = 0
        self.received = 0

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Store the next bytes."""
        self._crc = crc32(block, self._crc)
        view = memoryview(block)
        while view:
            done = os.pwrite(self._fd, view, self.received)
            self.received += done
            view = view[done:]

    def good(self, key: ec.EllipticCurvePublicKey) -> bool:
        """Make the image durable, and tell whether what is stored is what came, and signed with the key."""
        os.ftruncate(self._fd, self._size)
        os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
        crc, digest, trailer = self._read_back()
        return crc == self._crc and _signed(key, digest, trailer)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _read_back(self) -> tuple[int, bytes, bytes]:
        block = bytearray(BLOCK)
        crc, digest, trailer = 0, sha256(), b""
        for at in range(0, self._size, BLOCK):
            view = memoryview(block)[: os.preadv(self._fd, [block], at)]
            crc = crc32(view, crc)
            firmware = view[: max(self._size - _SIGNATURE - at, 0)]
            digest.update(firmware)
            trailer += view[len(firmware) :]
        return crc, digest.digest(), trailer


def _signed(key: ec.EllipticCurvePublicKey, digest: bytes, signature: bytes) -> bool:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    except InvalidSignature:
        return False
    return True


def command_line() -> tuple[Path, ec.EllipticCurvePublicKey]:
    """The options of a peer: the file that it overwrites, and the key that it trusts."""
    options = argparse.ArgumentParser()
    options.add_argument("--slots", type=Path, required=True, help="directory of the file that is overwritten")
    options.add_argument("--key", type=Path, required=True, help="public key, PEM")
    given = options.parse_args()
    key = serialization.load_pem_public_key(given.key.read_bytes())
    if not isinstance(key, ec.EllipticCurvePublicKey):
        options.error("not an EC key")
    given.slots.mkdir(parents=True, exist_ok=True)
    return given.slots / "image", key
