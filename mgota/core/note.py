"""The note of a download: how far it is, so that it can go on after a restart. SPEC.md describes its bytes.

Rules:
- a note is a hint and never trusted: what it says is there is read again and compared with its checksum, and what
  decides about an image at the end is its digest or signature;
- it belongs to one download (`identity`) and one revision of the boot record: another update in between voids it;
- bytes that are no note are no note: there is nothing to report.
"""

import json
import re
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final, TypeGuard, cast
from zlib import crc32

MAX_VALIDATOR: Final = 256
"""Characters of a validator that is worth keeping."""

MAX_NOTE: Final = 1024
"""Bytes of the longest note."""

LONGEST_STEP: Final = 1 << 20
SHORTEST_STEP: Final = 1 << 16

_MAGIC = b"mgota-note 1 "
_HEX = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadNote:
    """How far a download is.

    Args:
        identity: which download; see `identity_of`.
        validator: what the rest of it can be asked for with, or None.
        revision: of the boot record while it runs.
        mark: bytes of the image that lie in the staging slot, durable.
        crc: checksum of those bytes, as the backend counts it; None if it is not known.
    """

    identity: str
    validator: str | None
    revision: int
    mark: int
    crc: int | None


def identity_of(url: str, size: int, digest: str | None) -> str:
    """A name for a download: whatever differs in it is another download.

    Args:
        url: where it comes from.
        size: bytes.
        digest: hex SHA-256 of the image, if it was announced.
    """
    return sha256(json.dumps([url, size, digest]).encode()).hexdigest()


def step_between_marks(size: int) -> int:
    """Bytes between two marks: a small part of a small image, and never more than 1 MiB.

    A multiple of 64 KiB, so that no sector size and program unit leaves a rest there.

    Args:
        size: bytes of the image.
    """
    return min(LONGEST_STEP, max(SHORTEST_STEP, size // 16 // SHORTEST_STEP * SHORTEST_STEP))


def encode_note(note: DownloadNote) -> bytes:
    """The bytes of a note: a line with its CRC, and a line of JSON."""
    payload = json.dumps(asdict(note), ensure_ascii=True).encode("ascii") + b"\n"
    return _MAGIC + b"%08x\n" % crc32(payload) + payload


def decode_note(data: bytes | None) -> DownloadNote | None:
    """The note that `encode_note` made `data` of; None for any other bytes."""
    head, _, payload = (data or b"").partition(b"\n")
    if not data or len(data) > MAX_NOTE or head != _MAGIC + b"%08x" % crc32(payload):
        return None
    try:
        found: Any = json.loads(payload)
    except (ValueError, RecursionError):
        return None
    return _note(cast(dict[str, Any], found)) if isinstance(found, dict) else None


def _note(found: dict[str, Any]) -> DownloadNote | None:
    identity, validator = found.get("identity"), found.get("validator")
    revision, mark, crc = found.get("revision"), found.get("mark"), found.get("crc")
    if not (isinstance(identity, str) and _HEX.fullmatch(identity) and _is_count(revision) and _is_count(mark)):
        return None
    if not (validator is None or (isinstance(validator, str) and 0 < len(validator) <= MAX_VALIDATOR)):
        return None
    if not (crc is None or _is_count(crc)):
        return None
    return DownloadNote(identity=identity, validator=validator, revision=revision, mark=mark, crc=crc)


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
