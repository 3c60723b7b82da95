"""What a device does with an offer, row by row."""

import json
from dataclasses import replace
from typing import Any

import pytest

from mgota.core.geometry import Slot
from mgota.core.manifest import Manifest
from mgota.core.offer import (
    NEWER,
    SANE,
    Decision,
    Policy,
    Reason,
    Rule,
    Standing,
    check_sealed,
    decide,
    is_offered,
)
from mgota.core.record import BootRecord, SlotImage, State
from mgota.errors import (
    BusyError,
    ConfigError,
    DowngradeError,
    ManifestError,
    TrialRunningError,
    UnknownStateError,
    WrongHardwareError,
)

DIGEST, OTHER = "ab" * 32, "cd" * 32
OFFER = Manifest(version="1.2", url="x", size=8, sha256=DIGEST, seq=5, signed=True)
PLAIN = Manifest(version="1.2", url="x", size=8)
DIFFERENT = Policy(Rule.DIFFERENT)
PINNED = Policy(Rule.PINNED, "1.2")
LATER = float(SANE + 1000)


def offered(
    current: str | None = "1.1",
    policy: Policy = NEWER,
    manifest: Manifest = OFFER,
    *,
    now: float | None = LATER,
    force: bool = False,
    **standing: Any,
) -> Decision:
    return decide(manifest, Standing(current=current, **standing), policy, now=now, force=force)


@pytest.mark.parametrize(
    ("policy", "current", "reason"),
    [
        (NEWER, "1.1", Reason.NEWER),
        (NEWER, "1.2rc1", Reason.NEWER),
        (NEWER, "1.2", Reason.SAME),
        (NEWER, "v1.2.0", Reason.SAME),
        (NEWER, "1.3", Reason.OLDER),
        (NEWER, "1.10", Reason.OLDER),
        (NEWER, None, Reason.NO_ORDER),
        (NEWER, "nightly", Reason.NO_ORDER),
        (DIFFERENT, "1.1", Reason.DIFFERENT),
        (DIFFERENT, "1.3", Reason.DIFFERENT),
        (DIFFERENT, "1.2.0", Reason.SAME),
        (DIFFERENT, None, Reason.DIFFERENT),
        (DIFFERENT, "nightly", Reason.DIFFERENT),
        (PINNED, "1.1", Reason.PINNED),
        (PINNED, "1.3", Reason.PINNED),
        (PINNED, "1.2", Reason.SAME),
        (PINNED, None, Reason.PINNED),
        (Policy(Rule.PINNED, "1.2.0"), "1.1", Reason.PINNED),
        (Policy(Rule.PINNED, "1.3"), "1.1", Reason.NOT_PINNED),
        (Policy(Rule.PINNED, "1.3"), "1.2", Reason.NOT_PINNED),
    ],
)
def test_policies(policy: Policy, current: str | None, reason: Reason) -> None:
    decision = offered(current, policy)
    assert decision.reason is reason
    assert decision.update == (reason.value in {"newer", "different", "pinned"})
    assert decision.refused == (reason is Reason.NO_ORDER)
    assert decision.text
    assert "\n" not in decision.text


def test_versions_without_order() -> None:
    nightly = replace(OFFER, version="nightly-7")
    assert offered("1.1", manifest=nightly).reason is Reason.NO_ORDER
    assert "nightly-7 cannot be ordered" in offered("1.1", manifest=nightly).text
    assert offered("nightly-7", manifest=nightly).reason is Reason.SAME
    assert offered("nightly-6", DIFFERENT, nightly).update
    assert offered("1.1", Policy(Rule.PINNED, "nightly-7"), nightly).update


def test_the_image_that_runs_is_the_same_whatever_it_is_called() -> None:
    runs = SlotImage(size=1, image_size=8, sha256=OTHER, image_sha256=DIGEST)
    unsigned = SlotImage(size=8, image_size=8, sha256=DIGEST)
    for image in (runs, unsigned):
        for policy in (NEWER, DIFFERENT, PINNED):
            assert offered("1.1", policy, image=image).reason is Reason.SAME
    assert offered("1.1", image=replace(runs, image_sha256=OTHER)).update
    assert offered("1.1", manifest=PLAIN, image=runs).update


@pytest.mark.parametrize(
    ("manifest", "record", "failed"),
    [
        (OFFER, BootRecord(failed_sha256=OTHER, failed_image_sha256=DIGEST, failed_version="1.2"), True),
        (OFFER, BootRecord(failed_sha256=DIGEST), True),
        (OFFER, BootRecord(failed_sha256=DIGEST, failed_image_sha256=OTHER), False),
        (OFFER, BootRecord(failed_sha256=OTHER, failed_version="1.2"), False),  # built anew under the same version
        (PLAIN, BootRecord(failed_sha256=OTHER, failed_version="1.2"), True),
        (PLAIN, BootRecord(failed_sha256=OTHER, failed_version="1.1"), False),
        (PLAIN, BootRecord(failed_sha256=OTHER), False),
        (OFFER, BootRecord(), False),
        (PLAIN, BootRecord(), False),
    ],
)
def test_an_image_that_was_rolled_back_is_not_installed_again_unless_forced(
    manifest: Manifest, record: BootRecord, failed: bool
) -> None:
    for policy in (NEWER, DIFFERENT, PINNED):
        decision = offered("1.1", policy, manifest, record=record)
        assert decision.update == (not failed)
        assert not decision.refused
        assert (decision.reason is Reason.FAILED_BEFORE) == failed
        assert offered("1.1", policy, manifest, record=record, force=True).update
    assert offered("1.2", record=record, force=True).reason is Reason.SAME


SEALED = SlotImage(size=8, image_size=8, sha256=DIGEST, version="1.2")


@pytest.mark.parametrize(
    ("changes", "policy", "words"),
    [
        ({}, NEWER, None),
        ({"version": "1.3"}, NEWER, None),
        ({"version": None}, NEWER, None),
        ({"version": None}, PINNED, None),
        ({"version": "1.1"}, NEWER, "Same version"),
        ({"version": "1.0"}, NEWER, "older"),
        ({"version": "1.0"}, DIFFERENT, None),
        ({"version": "1.1"}, DIFFERENT, "Same version"),
        ({"version": "nightly"}, NEWER, "cannot be ordered"),
        ({"version": "1.3"}, PINNED, "is pinned"),
    ],
)
def test_what_a_plain_manifest_says_has_to_be_wanted_by_the_version_inside_too(
    changes: dict[str, Any], policy: Policy, words: str | None
) -> None:
    image = replace(SEALED, **changes)
    runs = SlotImage(size=8, image_size=8, sha256=OTHER, version="1.1")
    for standing in (Standing(current="1.1", image=runs), Standing(current="1.1")):
        check_sealed(OFFER, image, standing, policy)  # that one is signed
        if words is None:
            check_sealed(PLAIN, image, standing, policy)
        else:
            with pytest.raises(ManifestError, match=words):
                check_sealed(PLAIN, image, standing, policy)


def test_the_firmware_that_runs_is_not_another_version_because_a_plain_manifest_says_so() -> None:
    standing = Standing(image=replace(SEALED, version=None))
    check_sealed(OFFER, SEALED, standing, DIFFERENT)
    with pytest.raises(ManifestError, match="the firmware that runs"):
        check_sealed(PLAIN, SEALED, standing, DIFFERENT)


def test_a_recorded_image_is_what_is_offered_by_digest_or_else_by_version() -> None:
    assert is_offered(SEALED, replace(PLAIN, version="1.2.0"))
    assert not is_offered(SEALED, replace(PLAIN, version="1.2.1"))
    assert not is_offered(SEALED, replace(PLAIN, size=9))
    assert not is_offered(replace(SEALED, version=None), PLAIN)
    assert is_offered(replace(SEALED, version=None), OFFER)
    assert not is_offered(replace(SEALED, sha256=OTHER), OFFER)


def test_expiry_with_a_clock_that_is_sane() -> None:
    expires = replace(OFFER, expires=SANE + 500)
    assert offered(manifest=expires, now=SANE + 499.9).update
    for current in ("1.1", "1.2"):  # who withholds updates serves what runs
        late = offered(current, manifest=expires, now=SANE + 500)
        assert late.reason is Reason.EXPIRED
        with pytest.raises(ManifestError, match="expired"):
            late.check()


def test_expiry_with_a_clock_that_was_never_set() -> None:
    expires = replace(OFFER, expires=100)
    for now in (0.0, 101.0, SANE - 1.0, None):
        assert offered(manifest=expires, now=now).update
    assert offered(manifest=expires, now=float(SANE)).reason is Reason.EXPIRED


@pytest.mark.parametrize(
    ("hw", "hardware", "taken"),
    [
        ((), None, True),
        ((), "rev-b", True),
        (("rev-b", "rev-c"), "rev-c", True),
        (("rev-b",), "rev-a", False),
        (("rev-b",), "rev-B", False),
        (("rev-b",), None, False),
    ],
)
def test_hardware(hw: tuple[str, ...], hardware: str | None, taken: bool) -> None:
    decision = offered(manifest=replace(OFFER, hw=hw), hardware=hardware)
    assert decision.update == taken
    if not taken:
        assert decision.reason is Reason.WRONG_HARDWARE
        with pytest.raises(WrongHardwareError, match="rev-b"):
            decision.check()


def test_a_sequence_that_is_lower_equal_higher_or_none() -> None:
    assert offered(record=BootRecord(sequence=4)).update
    assert offered(record=BootRecord(sequence=5)).update
    assert offered(manifest=PLAIN, record=BootRecord(sequence=6)).update
    old = offered(record=BootRecord(sequence=6))
    assert old.reason is Reason.OLD_SEQUENCE
    with pytest.raises(DowngradeError, match="5 is lower than 6"):
        old.check()
    assert offered("1.2", record=BootRecord(sequence=6)).refused  # replayed, though there is nothing to do


@pytest.mark.parametrize(
    ("recorded", "configured", "taken"),
    [(None, None, True), ("1.2", None, True), (None, "1.2", True), ("1.3", None, False), ("1.0", "1.3", False)],
)
def test_the_floor(recorded: str | None, configured: str | None, taken: bool) -> None:
    decision = offered("1.1", record=BootRecord(floor=recorded), floor=configured)
    assert decision.update == taken
    if not taken:
        with pytest.raises(DowngradeError, match=r"below the floor 1\.3"):
            decision.check()
    assert offered("1.2", floor="1.3").reason is Reason.SAME  # nothing to do is no refusal
    assert offered("1.1", DIFFERENT, floor="1.3", force=True).reason is Reason.BELOW_FLOOR


def test_another_image_on_trial_is_in_the_way_and_the_offered_one_about_to_be_is_not() -> None:
    pending = SlotImage(size=8, image_size=8, sha256=DIGEST, version="1.2")
    about = BootRecord(state=State.TESTING, trial=Slot.B, swaps=1, b=pending)
    assert offered("1.1", record=about).update
    for record in (
        replace(about, b=replace(pending, sha256="0" * 64)),
        replace(about, b=replace(pending, image_size=9)),
        replace(about, trial=None),
        replace(about, state=State.FAILED),
    ):
        decision = offered("1.1", record=record)
        assert decision.reason is Reason.TRIAL
        with pytest.raises(TrialRunningError):
            decision.check()
        assert offered("1.2", record=record).reason is Reason.SAME
    assert offered("1.1", manifest=replace(OFFER, sha256=None), record=about).update
    assert offered("1.1", manifest=replace(OFFER, sha256=None, version="1.3"), record=about).reason is Reason.TRIAL


def test_with_an_unreadable_record_nothing_is_taken_and_what_is_needless_stays_so() -> None:
    for policy in (NEWER, DIFFERENT, PINNED):
        decision = decide(OFFER, Standing(current="1.1", readable=False), policy)
        assert (decision.update, decision.reason) == (False, Reason.UNKNOWN_STATE)
        with pytest.raises(UnknownStateError):
            decision.check()
        assert decide(OFFER, Standing(current="1.2", readable=False), policy).reason is Reason.SAME


def test_a_decision_that_refuses_nothing_raises_nothing() -> None:
    for current in ("1.1", "1.2", "1.3"):
        offered(current).check()


def test_every_refusal_has_an_error() -> None:
    for reason in Reason:
        decision = Decision(False, reason, "because", OFFER)
        if decision.refused:
            with pytest.raises((ManifestError, DowngradeError, WrongHardwareError, BusyError), match="because"):
                decision.check()


def test_a_decision_as_json() -> None:
    found = json.loads(
        json.dumps(offered(manifest=replace(OFFER, hw=("rev-b",), expires=9), hardware="rev-b").as_dict())
    )
    manifest = found.pop("manifest")
    assert found == {"update": False, "reason": "expired", "text": found["text"]}
    assert manifest == {
        "version": "1.2", "url": "x", "size": 8, "sha256": DIGEST, "seq": 5, "hw": ["rev-b"], "expires": 9,
        "signed": True,
    }  # fmt: skip


@pytest.mark.parametrize("text", ["newer", "different", "pinned=1.2.3", "pinned=a=b"])
def test_a_policy_there_and_back(text: str) -> None:
    assert str(Policy.parse(text)) == text


@pytest.mark.parametrize("text", ["", "pinned", "pinned=", "newer=1", "latest", "pinned=1 2", "Newer"])
def test_what_is_no_policy(text: str) -> None:
    with pytest.raises(ConfigError):
        Policy.parse(text)
