"""The boot record: what a device remembers about its slots across resets, and its bytes.

Rules:
- the record names the slot on trial, so that a bare state is never mistaken for another image's;
- it is stored whole and never changed in place; every store raises the revision;
- `encode_record` and `decode_record` are each other's inverse; any other bytes are a `StateError`;
- keys that this version does not know are ignored, so that an older mgota reads what a newer one wrote;
- what only some devices have is left out where there is none: a record may have to fit into half a sector.

SPEC.md describes the bytes.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, TypeVar, cast
from zlib import crc32

from mgota.core.geometry import Slot
from mgota.core.keychain import KeyChain
from mgota.errors import StateError

E = TypeVar("E", bound=StrEnum)

_BEGINNING = re.compile("[0-9a-f]{16}")

MAGIC = b"mgota-state 1 "
MAX_RECORD = 16384
MAX_TEXT = 500
MAX_EARLIER = 4
"""Firmwares that are remembered as rolled back, besides the last one."""
KNOWN_BY = 16
"""Hex digits of a digest that tell one of those: a record has little room, and chance only keeps a poll away."""


class State(StrEnum):
    """What the record says of the last update. The seed's three, and what a reader sees when there is no telling."""

    CONFIRMED = "CONFIRMED"
    TESTING = "TESTING"
    FAILED = "FAILED"
    UNKNOWN = "UNKNOWN"


class Outcome(StrEnum):
    """How the last update ended."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    INTERRUPTED = "interrupted"
    STUCK = "stuck"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotImage:
    """What is known of the image in a slot.

    Args:
        size: bytes of the firmware, without its trailer.
        image_size: bytes of firmware and trailer.
        sha256: hex digest of the firmware.
        version: the manifest's, or the one tagged inside the firmware.
        proven: it was committed, or provisioned in the factory.
        image_sha256: hex digest of firmware and trailer; None if there is no trailer.
        sequence: of the signed manifest that brought it, or None.
    """

    size: int
    image_size: int
    sha256: str
    version: str | None = None
    proven: bool = False
    image_sha256: str | None = None
    sequence: int | None = None

    @property
    def digest(self) -> str:
        """Hex digest of the image as it was sent: firmware and trailer."""
        return self.image_sha256 or self.sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class BootRecord:
    """Everything that decides what boots.

    Args:
        revision: counts every store.
        state: CONFIRMED, TESTING or FAILED.
        trial: the slot that state TESTING or FAILED speaks of.
        swaps: how often the trial slot has been selected.
        tries: trials that are left before the image counts as bad.
        select_failures: how often the selection on the way back reported failure.
        staged: the slot with an image that waits to be activated.
        a: the image in slot a, if one is known.
        b: the image in slot b, if one is known.
        outcome: how the last update ended.
        reason: why, in a few words.
        failed_sha256: hex digest of the last firmware that was rolled back.
        floor: the lowest version that may be installed.
        failed_image_sha256: hex digest of that firmware with its trailer; None if it had none.
        failed_version: its version, if it is known.
        failed_earlier: the first digits of the digests of those that were rolled back before it, newest first, or None.
        sequence: the lowest sequence of a signed manifest that may be installed.
        chain: the rotations of keys that were followed.
    """

    revision: int = 0
    state: State = State.CONFIRMED
    trial: Slot | None = None
    swaps: int = 0
    tries: int = 0
    select_failures: int = 0
    staged: Slot | None = None
    a: SlotImage | None = None
    b: SlotImage | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    failed_sha256: str | None = None
    floor: str | None = None
    failed_image_sha256: str | None = None
    failed_version: str | None = None
    failed_earlier: tuple[str, ...] | None = None
    sequence: int | None = None
    chain: KeyChain | None = None

    def image(self, slot: Slot) -> SlotImage | None:
        """What is known of the image in `slot`."""
        return self.a if slot is Slot.A else self.b

    def rolled_back(self, firmware: str) -> bool:
        """Whether this firmware was rolled back, lately or as one of a few before, whoever signed it, however often.

        Args:
            firmware: its hex digest, without trailer.
        """
        return firmware == self.failed_sha256 or firmware[:KNOWN_BY] in (self.failed_earlier or ())

    def next(self, **changes: Any) -> "BootRecord":
        """The record that follows this one."""
        return replace(self, revision=self.revision + 1, **changes)

    def next_with(self, slot: Slot, image: SlotImage | None, **changes: Any) -> "BootRecord":
        """The record that follows this one, with another image in `slot`."""
        return self.next(**{slot.value: image}, **changes)


def trial_of(record: BootRecord, size: int) -> Slot | None:
    """The slot whose image of `size` bytes, trailer included, goes on trial or is on it; None if there is none."""
    if record.trial is None or record.state not in {State.TESTING, State.FAILED}:
        return None
    image = record.image(record.trial)
    return record.trial if image and image.image_size == size else None


def encode_record(record: BootRecord) -> bytes:
    """The bytes of a record: a line with its CRC, and a line of JSON that an operator can read.

    Raises:
        StateError: the record contradicts itself, or is too long: it could be stored, and never read again.
    """
    body = json.dumps(_plain(record), ensure_ascii=True)
    payload = body.encode("ascii") + b"\n"
    data = MAGIC + b"%08x\n" % crc32(payload) + payload
    decode_record(data)
    return data


_SPARSE = frozenset({"image_sha256", "sequence", "failed_image_sha256", "failed_version", "failed_earlier", "chain"})
"""Left out when they are None."""


def _plain(value: object) -> object:
    if not isinstance(value, BootRecord | SlotImage | KeyChain):
        return value
    found = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return {name: member for name, member in found.items() if member is not None or name not in _SPARSE}


def decode_record(data: bytes) -> BootRecord:
    """The record that `encode_record` made `data` of.

    Raises:
        StateError: these bytes are no record, or not all of one.
    """
    head, newline, payload = data.partition(b"\n")
    if len(data) > MAX_RECORD or not newline or head != MAGIC + b"%08x" % crc32(payload):
        raise StateError("the boot record is damaged")
    try:
        found: object = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise StateError("the boot record is damaged") from exc
    if not isinstance(found, dict):
        raise StateError("the boot record is damaged")
    record = _record(cast(dict[str, object], found))
    if (record.state is State.CONFIRMED) != (record.trial is None):
        raise StateError("the boot record contradicts itself: a trial without a slot, or a slot without a trial")
    return record


def _record(found: Mapping[str, object]) -> BootRecord:
    state = _member(State, found.get("state"))
    if state is None or state is State.UNKNOWN:
        raise StateError("the boot record has no state")
    return BootRecord(
        revision=_count(found, "revision"),
        state=state,
        trial=_member(Slot, found.get("trial")),
        swaps=_count(found, "swaps"),
        tries=_count(found, "tries"),
        select_failures=_count(found, "select_failures"),
        staged=_member(Slot, found.get("staged")),
        a=_slot_image(found.get("a")),
        b=_slot_image(found.get("b")),
        outcome=_member(Outcome, found.get("outcome")),
        reason=_text(found, "reason"),
        failed_sha256=_digest(found, "failed_sha256"),
        floor=_text(found, "floor"),
        failed_image_sha256=_digest(found, "failed_image_sha256"),
        failed_version=_text(found, "failed_version"),
        failed_earlier=_earlier(found.get("failed_earlier")),
        sequence=_count_or_none(found, "sequence"),
        chain=_chain(found.get("chain")),
    )


def _slot_image(found: object) -> SlotImage | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise StateError("the boot record has a wrong image")
    image = cast(dict[str, object], found)
    sha256 = _digest(image, "sha256")
    if sha256 is None:
        raise StateError("the boot record has an image without a digest")
    return SlotImage(
        size=_count(image, "size"),
        image_size=_count(image, "image_size"),
        sha256=sha256,
        version=_text(image, "version"),
        proven=image.get("proven") is True,
        image_sha256=_digest(image, "image_sha256"),
        sequence=_count_or_none(image, "sequence"),
    )


def _chain(found: object) -> KeyChain | None:
    if found is None:
        return None
    members = cast(dict[str, object], found) if isinstance(found, dict) else {}
    keys, left, retired = (_texts(members.get(name)) for name in ("keys", "left", "retired"))
    chain = KeyChain(keys=keys, threshold=_count(members, "threshold"), left=left, retired=retired)
    if not chain.is_sound:
        raise StateError("the boot record has a wrong chain of keys")
    return chain


def _earlier(found: object) -> tuple[str, ...] | None:
    if found is None:
        return None
    members = cast(list[object], found) if isinstance(found, list) else []
    known = tuple(member for member in members if isinstance(member, str) and _BEGINNING.fullmatch(member))
    if len(known) != len(members) or not 1 <= len(known) <= MAX_EARLIER:
        raise StateError("the boot record has wrong digests of what failed earlier")
    return known


def _texts(found: object) -> tuple[str, ...]:
    members = cast(list[object], found) if isinstance(found, list) else [None]
    if not all(isinstance(member, str) for member in members):
        raise StateError("the boot record has a wrong chain of keys")
    return cast(tuple[str, ...], tuple(members))


def _member(kind: type[E], value: object) -> E | None:
    if value is None:
        return None
    try:
        return kind(cast(str, value))
    except ValueError as exc:
        raise StateError(f"the boot record has a wrong {kind.__name__.lower()}") from exc


def _count(found: Mapping[str, object], key: str) -> int:
    value = found.get(key, 0)
    if type(value) is not int or value < 0:
        raise StateError(f"the boot record has a wrong {key}")
    return value


def _count_or_none(found: Mapping[str, object], key: str) -> int | None:
    return None if found.get(key) is None else _count(found, key)


def _text(found: Mapping[str, object], key: str) -> str | None:
    value = found.get(key)
    if value is not None and not isinstance(value, str):
        raise StateError(f"the boot record has a wrong {key}")
    return value


def _digest(found: Mapping[str, object], key: str) -> str | None:
    value = _text(found, key)
    if value is not None and not re.fullmatch("[0-9a-f]{64}", value):
        raise StateError(f"the boot record has a wrong {key}")
    return value
