"""What a device does with the manifest that it is offered: take the image or not, and why.

    decide(manifest, Standing(current="1.2.0", record=…), policy=NEWER, now=…)  ->  Decision

The rows below are asked in this order; the first that fits decides. Rules:
- what makes the offer worthless (expired, other hardware, an older sequence) comes before what makes it needless;
- a version that cannot be ordered is never installed by a policy that has to order it;
- an image that was rolled back is not installed again, unless that is forced. Signed anew it looks like another one,
  until the seal has its firmware;
- the seal asks once more for what can only be known from flash: floor, digest, signature.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from mgota.core.boot import refuse_update
from mgota.core.floor import below_floor, effective_floor
from mgota.core.manifest import Manifest, check_hardware
from mgota.core.record import BootRecord, SlotImage, State
from mgota.core.version import is_version, order
from mgota.errors import (
    ConfigError,
    DowngradeError,
    ManifestError,
    OtaError,
    TrialRunningError,
    UnknownStateError,
    WrongHardwareError,
)

SANE: Final = 1_795_564_800
"""Unix seconds of 2026-11-25, when this was built. A clock that shows less was never set, and nothing expires by it."""


class Rule(StrEnum):
    """Which versions are wanted."""

    NEWER = "newer"
    DIFFERENT = "different"
    PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class Policy:
    """Which versions a device wants.

    Args:
        rule: newer than what runs (the default), different from it (Mongoose's), or one and no other.
        version: the one; of *pinned* only.

    Raises:
        ConfigError: it is incomplete, or there is too much.
    """

    rule: Rule = Rule.NEWER
    version: str | None = None

    def __post_init__(self) -> None:
        if (self.rule is Rule.PINNED) != (self.version is not None):
            raise ConfigError(
                "the policy `pinned` needs a version, and no other has one: newer, different, pinned=1.2.3"
            )
        if self.version is not None and not is_version(self.version):
            raise ConfigError("the pinned version is 1 to 64 printable characters without spaces")

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """The policy that `newer`, `different` or `pinned=1.2.3` is.

        Raises:
            ConfigError: it is none.
        """
        name, equals, version = text.partition("=")
        try:
            return cls(Rule(name), version if equals else None)
        except ValueError as exc:
            raise ConfigError(f"{text!r} is no policy: newer, different, pinned=1.2.3") from exc

    def __str__(self) -> str:
        return self.rule.value if self.version is None else f"{self.rule.value}={self.version}"


NEWER: Final = Policy()


class Reason(StrEnum):
    """Why an offer is taken or not."""

    NEWER = "newer"
    DIFFERENT = "different"
    PINNED = "pinned"
    SAME = "same"
    OLDER = "older"
    NOT_PINNED = "not_pinned"
    FAILED_BEFORE = "failed_before"
    EXPIRED = "expired"
    WRONG_HARDWARE = "wrong_hardware"
    OLD_SEQUENCE = "old_sequence"
    BELOW_FLOOR = "below_floor"
    NO_ORDER = "no_order"
    TRIAL = "trial"
    UNKNOWN_STATE = "unknown_state"


_ERRORS: Final[dict[Reason, type[OtaError]]] = {
    Reason.EXPIRED: ManifestError,
    Reason.WRONG_HARDWARE: WrongHardwareError,
    Reason.OLD_SEQUENCE: DowngradeError,
    Reason.BELOW_FLOOR: DowngradeError,
    Reason.NO_ORDER: ManifestError,
    Reason.TRIAL: TrialRunningError,
    Reason.UNKNOWN_STATE: UnknownStateError,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with an offer.

    Args:
        update: whether the image is to be installed.
        reason: why, for a program.
        text: why, for a person: one line.
        manifest: what was offered.
    """

    update: bool
    reason: Reason
    text: str
    manifest: Manifest = field(repr=False)

    @property
    def refused(self) -> bool:
        """Whether something is in the way of the offer; otherwise, if there is no update, there is nothing to do."""
        return self.reason in _ERRORS

    def check(self) -> None:
        """Raise what is in the way of the offer, if something is.

        Raises:
            RejectedError: the offer is refused.
            BusyError: another image is on trial, or about to be; or the boot record is unreadable.
        """
        if kind := _ERRORS.get(self.reason):
            raise kind(self.text)

    def as_dict(self) -> dict[str, object]:
        """The decision as JSON (SPEC.md, pull)."""
        found = self.manifest
        offered = {"version": found.version, "url": found.url, "size": found.size, "sha256": found.sha256}
        more = {"seq": found.seq, "hw": list(found.hw), "expires": found.expires, "signed": found.signed}
        return {"update": self.update, "reason": self.reason.value, "text": self.text, "manifest": offered | more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a device stands.

    Args:
        current: the version that runs, None if nobody knows.
        image: what is recorded of the running image, if anything is.
        record: the boot record, if there is one.
        readable: False if there is one that cannot be read.
        floor: the device's; the record may have a higher one.
        hardware: the device's id, None if it has none.
    """

    current: str | None = None
    image: SlotImage | None = None
    record: BootRecord | None = None
    readable: bool = True
    floor: str | None = None
    hardware: str | None = None


def decide(
    manifest: Manifest, standing: Standing, policy: Policy = NEWER, *, now: float | None = None, force: bool = False
) -> Decision:
    """Whether the image is to be installed.

    Args:
        manifest: what is offered, verified.
        standing: where the device stands.
        policy: which versions it wants.
        now: Unix seconds on the device's clock; None if it has none.
        force: install an image that was rolled back before, too.
    """
    record = standing.record or BootRecord()
    reason, text = (
        _worthless(manifest, standing, record, now)
        or _needless(manifest, standing, policy)
        or (None if force else _failed_before(manifest, record))
        or _too_old(manifest, standing, record)
        or _busy(manifest, standing, record)
        or _wanted(manifest, standing, policy)
    )
    return Decision(reason in _WANTED, reason, text, manifest)


_WANTED: Final = {Reason.NEWER, Reason.DIFFERENT, Reason.PINNED}
_Why = tuple[Reason, str]


def _worthless(manifest: Manifest, standing: Standing, record: BootRecord, now: float | None) -> _Why | None:
    if manifest.expires is not None and now is not None and now >= SANE and now >= manifest.expires:
        return Reason.EXPIRED, "the manifest has expired: is an old one being served, or is this clock wrong?"
    try:
        check_hardware(manifest, standing.hardware)
    except WrongHardwareError as exc:
        return Reason.WRONG_HARDWARE, str(exc)
    if manifest.seq is not None and record.sequence is not None and manifest.seq < record.sequence:
        return Reason.OLD_SEQUENCE, f"the manifest's sequence {manifest.seq} is lower than {record.sequence}"
    return None


def _needless(manifest: Manifest, standing: Standing, policy: Policy) -> _Why | None:
    offered, current, image = manifest.version, standing.current, standing.image
    if policy.version is not None and not _is_same(offered, policy.version):
        return Reason.NOT_PINNED, f"version {offered} is offered, and {policy.version} is pinned"
    runs = image is not None and manifest.sha256 is not None and manifest.sha256 == image.digest
    if runs or _is_same(offered, current):
        return Reason.SAME, f"Same version: {offered}"
    if policy.rule is not Rule.NEWER:
        return None
    if current is None:
        return Reason.NO_ORDER, "nobody knows which version runs: is a newer one offered?"
    new, old = order(offered), order(current)
    if new is None or old is None:
        which = offered if new is None else current
        return Reason.NO_ORDER, f"version {which} cannot be ordered: is {offered} newer than {current}?"
    return (Reason.OLDER, f"version {offered} is older than {current}, which runs") if new < old else None


def _failed_before(manifest: Manifest, record: BootRecord) -> _Why | None:
    failed = record.failed_image_sha256 or record.failed_sha256
    by_digest = failed is not None and manifest.sha256 is not None
    same = manifest.sha256 == failed if by_digest else manifest.version == record.failed_version
    return (Reason.FAILED_BEFORE, f"already failed: version {manifest.version} was rolled back") if same else None


def _too_old(manifest: Manifest, standing: Standing, record: BootRecord) -> _Why | None:
    why = below_floor(manifest.version, effective_floor(record.floor, standing.floor))
    return (Reason.BELOW_FLOOR, f"the image is refused: {why}") if why else None


def _busy(manifest: Manifest, standing: Standing, record: BootRecord) -> _Why | None:
    trial = record.image(record.trial) if record.trial else None
    if record.state is State.TESTING and trial and is_offered(trial, manifest):
        return None  # that is what is offered: it only has to start
    try:
        refuse_update(record, readable=standing.readable)
    except TrialRunningError as exc:
        return Reason.TRIAL, str(exc)
    except UnknownStateError as exc:
        return Reason.UNKNOWN_STATE, str(exc)
    return None


def _wanted(manifest: Manifest, standing: Standing, policy: Policy) -> _Why:
    return Reason(policy.rule.value), f"version {manifest.version} replaces {standing.current or 'an unknown one'}"


def check_sealed(manifest: Manifest, image: SlotImage, standing: Standing, policy: Policy) -> None:
    """Decide about a sealed image once more, on a device with keys, where nobody signed what was announced.

    A plain manifest can name any version. Then the one that is signed inside of the image has to be wanted as well; of
    an image without one only this is known: whether it runs already.

    Args:
        manifest: that announced it.
        image: what was read back, with the version of its tag.
        standing: where the device stood when the offer was taken.
        policy: which versions it wants.

    Raises:
        ManifestError: the image is not what the manifest made of it.
    """
    if manifest.signed:
        return
    if standing.image and standing.image.sha256 == image.sha256:
        raise ManifestError(f"what is offered as version {manifest.version} is the firmware that runs")
    if image.version is not None:
        again = decide(replace(manifest, version=image.version), standing, policy, force=True)
        if not again.update:
            raise ManifestError(f"what is offered as version {manifest.version} is another one inside: {again.text}")


def is_offered(image: SlotImage, manifest: Manifest) -> bool:
    """Whether a recorded image is the one that a manifest offers.

    Args:
        image: what is recorded of a slot.
        manifest: without a digest, size and version decide.
    """
    if image.image_size != manifest.size:
        return False
    if manifest.sha256 is not None:
        return image.digest == manifest.sha256
    return _is_same(manifest.version, image.version)


def _is_same(version: str, other: str | None) -> bool:
    if version == other:
        return True
    found, wanted = order(version), order(other)
    return found is not None and found == wanted
