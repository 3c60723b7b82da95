"""What an image is: firmware and trailer, digest, version, and who signed it.

    raw     firmware ‖ R‖S (64 bytes)                     the seed's
    mgsg    firmware ‖ R‖S (64 bytes) ‖ "MGSG"            Mongoose 7.22's

Rules:
- the form of the trailer and whether a signature is required are configuration, never guessed from the bytes;
- digest and signature are over the firmware alone;
- what is verified is what was read back from flash, not what came over the network;
- a refusal never says which byte was wrong.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256

from mgota.core.checksum import CRC32, checksum
from mgota.core.inspect import Inspect
from mgota.core.keys import RAW_SIZE, PublicKey
from mgota.core.version import MAX_VERSION
from mgota.errors import BadSignatureError, ConfigError, UnsignedError, VerifyError

_MGSG = b"MGSG"
_TAG = b"MG_VERSION:"
_VERSION = re.compile(rb"MG_VERSION:([!-~]{1,%d})\0" % MAX_VERSION)
_TAG_SPAN = len(_TAG) + MAX_VERSION + 1


class Trailer(StrEnum):
    """How the signature is attached."""

    RAW = "raw"
    MGSG = "mgsg"

    @property
    def size(self) -> int:
        """Bytes of the trailer."""
        return RAW_SIZE + len(self.magic)

    @property
    def magic(self) -> bytes:
        """What the trailer ends in."""
        return _MGSG if self is Trailer.MGSG else b""


class ImageScan:
    """What can be told of an image that is read front to back, once, in blocks of any size.

    Args:
        size: bytes of the image, trailer included.
        trailer: the form of the trailer, or None where none is expected and all of the image is firmware.
        crc: name of the checksum.
        inspect: makes what looks at the firmware besides, or None.
    """

    def __init__(self, size: int, *, trailer: Trailer | None, crc: str = CRC32, inspect: Inspect | None = None) -> None:
        self.size = size
        self.trailer = trailer
        self.firmware_size = max(size - trailer.size, 0) if trailer else size
        self._inspector = inspect(self.firmware_size) if inspect else None
        self.version: str | None = None
        self.trailer_bytes = b""
        self._position = 0
        self._crc = checksum(crc)
        self._sha256 = sha256()
        self._overlap = b""

    @property
    def crc(self) -> int:
        """Checksum of the whole image."""
        return self._crc.value

    @property
    def sha256(self) -> bytes:
        """SHA-256 of the firmware, 32 bytes."""
        return self._sha256.digest()

    @property
    def image_sha256(self) -> bytes:
        """SHA-256 of firmware and trailer, 32 bytes."""
        whole = self._sha256.copy()
        whole.update(self.trailer_bytes)
        return whole.digest()

    def expect_crc(self, received: int | None) -> None:
        """Compare with the checksum of what was received, if there was one.

        Raises:
            VerifyError: what was read is something else.
        """
        if received is not None and received != self.crc:
            raise VerifyError("what is stored is not what was received")

    def expect_this_chip(self) -> None:
        """Ask the inspector, if there is one.

        Raises:
            RejectedError: the firmware is damaged, or for another chip.
        """
        if self._inspector:
            self._inspector.finish()

    def update(self, block: bytes | bytearray | memoryview) -> None:
        """The next bytes of the image."""
        self._crc.update(block)
        view = memoryview(block)
        firmware = view[: max(self.firmware_size - self._position, 0)]
        self._sha256.update(firmware)
        if self._inspector:
            self._inspector.update(firmware)
        if self.version is None:
            self._look_for_version(block, len(firmware))
        self.trailer_bytes += bytes(view[len(firmware) :])
        self._position += len(view)

    def _look_for_version(self, block: bytes | bytearray | memoryview, length: int) -> None:
        # A tag may lie across two blocks: what could be the start of one is kept.
        searchable = block if isinstance(block, bytes | bytearray) else bytes(block)
        edge = self._overlap + searchable[: min(length, _TAG_SPAN)]
        self.version = _tagged_version(edge, len(edge)) or _tagged_version(searchable, length)
        tail = searchable[max(length - _TAG_SPAN, 0) : length]
        self._overlap = (self._overlap + tail)[-_TAG_SPAN:]


def _tagged_version(data: bytes | bytearray, length: int) -> str | None:
    # Most blocks have none, and CPython looks from behind a third faster; the pattern only sees what is found.
    at = data.find(_TAG, 0, length) if data.rfind(_TAG, 0, length) >= 0 else -1
    while at >= 0:
        if found := _VERSION.match(data, at, length):
            return found[1].decode("ascii")
        at = data.find(_TAG, at + 1, length)
    return None


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Which images a device takes.

    Args:
        keys: trusted keys; a signature by any of them will do. To revoke a key, leave it out.
        trailer: the form of the trailer.

    Raises:
        ConfigError: there are no keys.
    """

    keys: Sequence[PublicKey]
    trailer: Trailer = Trailer.RAW

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "trailer", Trailer(self.trailer))
        if not self.keys:
            raise ConfigError("a verifier needs at least one public key")

    def check(self, scan: ImageScan) -> None:
        """Accept the scanned image, or not.

        Raises:
            UnsignedError: it has no trailer of the expected form.
            BadSignatureError: no trusted key made the signature.
        """
        if scan.firmware_size < 1:
            raise UnsignedError("the image is shorter than a signature")
        magic = self.trailer.magic
        if not scan.trailer_bytes.endswith(magic):
            raise UnsignedError("the image has no MGSG trailer; signed in the raw form? try --trailer raw")
        signature = scan.trailer_bytes[:RAW_SIZE]
        if any(key.verify(scan.sha256, signature) for key in self.keys):
            return
        if self.trailer is Trailer.RAW and scan.trailer_bytes.endswith(_MGSG):
            raise BadSignatureError("bad signature; signed by Mongoose 7.22? try --trailer mgsg")
        raise BadSignatureError("bad signature, or none")


def attach(firmware: bytes, signature: bytes, trailer: Trailer) -> bytes:
    """The image: firmware and trailer.

    Args:
        firmware: at least one byte.
        signature: R‖S, 64 bytes.
        trailer: the form to attach it in.

    Raises:
        ConfigError: there is no firmware, or the signature has another length.
    """
    if not firmware:
        raise ConfigError("there is no firmware to sign: the file is empty")
    if len(signature) != RAW_SIZE:
        raise ConfigError(f"a raw signature has {RAW_SIZE} bytes, not {len(signature)}")
    return firmware + signature + trailer.magic


def signed_name(name: str) -> str:
    """The file name of the signed image, as Mongoose's signer makes it: `.signed` before the last extension.

    Args:
        name: the firmware's file name, without directories.
    """
    stem, dot, extension = name.rpartition(".")
    return f"{stem}.signed.{extension}" if dot and stem else f"{name}.signed"
