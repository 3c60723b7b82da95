"""Downgrades, manifests and rotated keys on a whole device: what is refused, and when what is raised."""

from dataclasses import replace
from typing import Any

import pytest
from memory_device import (
    KEY,
    NEW,
    OLD,
    Board,
    PowerCut,
    Restarted,
    digest,
    firmware,
    send,
    signed,
    update,
    update_and_restart,
    verifying,
)

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.image import Verifier
from mgota.core.keys import PrivateKey
from mgota.core.manifest import Manifest
from mgota.core.record import Outcome, State, encode_record
from mgota.core.trust import KeySet, follow, make_rotation
from mgota.device import Device
from mgota.errors import (
    BadSignatureError,
    ConfigError,
    DigestError,
    DowngradeError,
    OtaError,
    RollbackRefusedError,
    UnknownStateError,
    UpdateRunningError,
    WrongHardwareError,
)
from mgota.session import OtaSession, provision
from mgota.trial import boot_check, check_rollback, commit, rollback

pytestmark = pytest.mark.asyncio

A, B = Slot.A, Slot.B
FRESH = PrivateKey.generate()


async def booted(**options: Any) -> Board:
    board = Board(OLD, **options)
    assert await boot_check(board.device) is Verdict.RUN
    return board


def described(image: bytes, version: str = "2", **changes: Any) -> Manifest:
    known = {"version": version, "url": "x", "size": len(image), "sha256": digest(image), "seq": 5, "signed": True}
    return Manifest(**{**known, **changes})


async def pull(device: Device, image: bytes, manifest: Manifest) -> None:
    async with OtaSession(device, size=len(image), manifest=manifest) as ota:
        await send(ota, image)
        await ota.activate(await ota.seal())


async def pulled(board: Board, image: bytes, manifest: Manifest) -> None:
    """Up to the trial."""
    with pytest.raises(Restarted):
        await pull(board.device, image, manifest)
    assert await boot_check(board.boot()) is Verdict.TRIAL


async def pushed(board: Board, image: bytes) -> None:
    await update_and_restart(board.device, image)
    assert await boot_check(board.boot()) is Verdict.TRIAL


async def rolled_back(board: Board) -> None:
    """The trial was cut off: the device goes back by itself."""
    with pytest.raises(Restarted):
        await boot_check(board.boot())
    assert await boot_check(board.boot()) is Verdict.RUN


# --- the floor and a push -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("floor", ["2", "1.9"], ids=["equal", "higher"])
async def test_old_signed_image_at_or_above_the_floor_is_taken(keys: bool, floor: str) -> None:
    board = await booted(floor=floor, verifier=verifying() if keys else None)
    await pushed(board, signed(NEW) if keys else NEW)


@pytest.mark.parametrize("keys", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize(
    "image",
    [firmware("2"), firmware("2.1rc1"), firmware("nightly"), b"\x00 no version at all \xff" * 20],
    ids=["lower", "before", "no order", "no tag"],
)
async def test_old_signed_image_below_the_floor_is_refused(keys: bool, image: bytes) -> None:
    board = await booted(floor="2.1", verifier=verifying() if keys else None)
    with pytest.raises(DowngradeError, match="floor"):
        await update(board.device, signed(image) if keys else image)
    assert board.flash.selected is A
    assert (board.record.state, board.record.b) == (State.CONFIRMED, None)
    assert (await board.device.status()).outcome is Outcome.REFUSED


async def test_a_tag_outside_of_what_is_signed_counts_for_nothing() -> None:
    tag = b"MG_VERSION:9\0"
    board = await booted(floor="2", verifier=verifying())
    bare = b"no tag " * 90
    image = signed(bare)
    with pytest.raises(BadSignatureError):
        await update(board.device, image[: len(bare)] + tag + image[len(bare) :])
    with pytest.raises(DowngradeError):
        await update(board.device, image)


async def test_without_a_floor_nothing_is_asked() -> None:
    board = await booted()
    await pushed(board, firmware("0"))
    assert await commit(board.device)
    assert (board.record.floor, board.record.sequence) == (None, None)


async def test_old_signed_image_the_recorded_floor_holds_for_a_program_without_one() -> None:
    board = await booted(floor="1.5")
    await pushed(board, NEW)
    assert board.record.floor is None, "raised at a commit, and not before"
    assert await commit(board.device)
    assert board.record.floor == "1.5"
    board.options.clear()
    assert await boot_check(board.boot()) is Verdict.RUN
    with pytest.raises(DowngradeError, match=r"below the floor 1\.5"):
        await update(board.device, firmware("1.4"))
    await pushed(board, firmware("1.5"))


async def test_an_image_that_fails_its_trial_raises_nothing() -> None:
    board = await booted(floor="1.5")
    await pulled(board, NEW, described(NEW))
    await rolled_back(board)
    assert board.record.outcome is Outcome.ROLLED_BACK
    assert (board.record.floor, board.record.sequence) == (None, None)


@pytest.mark.parametrize("after", [False, True], ids=["before the store", "after it"])
async def test_old_signed_image_a_cut_between_commit_and_floor_does_not_exist(after: bool) -> None:
    board = await booted(floor="1.5")
    await pulled(board, NEW, described(NEW))
    board.power.cut_at(0, after=after)
    with pytest.raises(PowerCut):
        await commit(board.device)
    assert board.power.log[-1] == "store CONFIRMED"
    board.power.restore()
    raised = (board.record.state, board.record.floor, board.record.sequence)
    assert raised == ((State.CONFIRMED, "2", 5) if after else (State.FAILED, None, None))


# --- rollback and the floor -----------------------------------------------------------------------------------------


async def test_an_explicit_rollback_below_the_floor_is_refused_and_changes_nothing() -> None:
    board = await booted(floor="1.5")
    await pushed(board, NEW)
    assert await commit(board.device)
    await boot_check(board.boot())
    before = board.snapshot()
    for action in (rollback, check_rollback):
        with pytest.raises(RollbackRefusedError, match=r"version 1 is below the floor 1\.5"):
            await action(board.device)
    assert board.snapshot() == before


async def test_an_automatic_rollback_and_the_end_of_a_trial_below_the_floor_are_not_refused() -> None:
    board = await booted(floor="1.5")
    await pushed(board, NEW)
    await rolled_back(board)
    assert board.content(board.flash.running) == OLD
    await pushed(board, firmware("3"))
    with pytest.raises(Restarted):
        await rollback(board.device)
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.content(board.flash.running) == OLD


async def test_an_explicit_rollback_to_what_the_floor_allows() -> None:
    board = await booted(floor="1")
    await pushed(board, NEW)
    assert await commit(board.device)
    await boot_check(board.boot())
    with pytest.raises(Restarted):
        await rollback(board.device)
    assert await boot_check(board.boot()) is Verdict.RUN
    assert board.content(board.flash.running) == OLD


# --- manifests ------------------------------------------------------------------------------------------------------


async def test_an_image_is_known_by_its_manifest() -> None:
    image = signed(NEW)
    board = await booted(verifier=verifying())
    await pulled(board, image, described(image, "2.0.1"))
    found = board.record.b
    assert found
    assert (found.version, found.sequence, found.sha256, found.digest) == ("2.0.1", 5, digest(NEW), digest(image))
    assert await commit(board.device)
    assert (board.record.floor, board.record.sequence) == ("2.0.1", 5)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"sha256": digest(b"another")}, DigestError),
        ({"size": len(NEW) + 1}, DigestError),
        ({"sha256": None, "size": len(NEW) - 1}, DigestError),
    ],
)
async def test_mix_and_match_what_is_stored_has_to_be_what_was_announced(
    changes: dict[str, Any], error: type[OtaError]
) -> None:
    board = await booted()
    with pytest.raises(error, match="not the image that the manifest names"):
        await pull(board.device, NEW, described(NEW, **changes))
    assert (board.record.state, board.record.b) == (State.CONFIRMED, None)


async def test_a_digest_is_of_the_image_with_its_trailer() -> None:
    image = signed(NEW)
    board = await booted(verifier=verifying())
    with pytest.raises(DigestError):
        await pull(board.device, image, described(image, sha256=digest(NEW)))


@pytest.mark.parametrize(
    ("hardware", "changes", "error"),
    [
        ("rev-a", {"hw": ("rev-b",)}, WrongHardwareError),
        (None, {"hw": ("rev-b",)}, WrongHardwareError),
        (None, {"seq": 4}, DowngradeError),
        (None, {"version": "1.9"}, DowngradeError),
    ],
    ids=["other id", "missing id", "sequence", "floor"],
)
async def test_wrong_hardware_and_downgrades_are_refused_before_anything_is_erased(
    hardware: str | None, changes: dict[str, Any], error: type[OtaError]
) -> None:
    board = await booted(hardware=hardware)
    await pulled(board, NEW, described(NEW))
    assert await commit(board.device)
    await boot_check(board.boot())
    before, operations = board.snapshot(), board.power.count
    image = firmware("3")
    with pytest.raises(error):
        await pull(board.device, image, described(image, **{"version": "3", **changes}))
    assert (board.snapshot(), board.power.count) == (before, operations)


async def test_wrong_hardware_the_right_id_is_taken() -> None:
    board = await booted(hardware="rev-b")
    await pulled(board, NEW, described(NEW, hw=("rev-a", "rev-b")))


async def test_old_signed_image_what_a_signed_manifest_brought_is_not_undone_by_a_push() -> None:
    board = await booted(verifier=verifying())
    image = signed(NEW)
    await pulled(board, image, described(image))
    assert await commit(board.device)
    await boot_check(board.boot())
    old = signed(firmware("1.9"))
    with pytest.raises(DowngradeError, match="below the floor 2"):
        await update(board.device, old)
    with pytest.raises(DowngradeError):
        await pull(board.device, old, described(old, "1.9", seq=6))
    again = signed(firmware("2"))
    await pulled(board, again, described(again))  # the same sequence once more


async def test_old_signed_image_a_version_that_nobody_signed_does_not_lift_it_over_the_floor() -> None:
    board = await booted(verifier=verifying(), floor="2")
    old = signed(firmware("1.9"))
    with pytest.raises(DowngradeError, match=r"its version 1\.9"):
        await pull(board.device, old, described(old, "3", signed=False))
    new = signed(NEW)
    await pulled(board, new, described(new, "3", signed=False))
    assert board.record.b
    assert (board.record.b.version, board.record.b.sequence) == ("2", None), "its tag is signed, the manifest is not"
    assert await commit(board.device)
    assert (board.record.floor, board.record.sequence) == ("2", None)


async def test_old_signed_image_a_version_that_was_recorded_without_keys_counts_for_nothing_with_them() -> None:
    image = signed(NEW)
    board = await booted()
    async with OtaSession(board.device, size=len(image), manifest=described(image, "9", signed=False)) as ota:
        await send(ota, image)
        await ota.activate(await ota.seal(), reset=False)
    recorded = board.record.b
    assert recorded
    assert recorded.version == "9"
    board.options["verifier"] = verifying()
    board.state.data = encode_record(  # as a program with keys has it
        board.record.next(b=replace(recorded, size=len(NEW), sha256=digest(NEW), image_sha256=digest(image)))
    )
    await boot_check(board.boot())
    waiting = await board.device.staged()
    assert waiting
    assert waiting.version == "2"


async def test_without_keys_the_version_of_the_manifest_counts() -> None:
    image = b"no tag at all " * 50
    board = await booted(floor="2")
    await pulled(board, image, described(image, "2", signed=False))
    board = await booted(floor="2")
    with pytest.raises(DowngradeError):
        await pull(board.device, image, described(image, "1", signed=False))


# --- staged ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [True, False], ids=["signed", "unsigned"])
async def test_a_staged_image_that_became_too_old_is_not_activated(keys: bool) -> None:
    board = await booted(verifier=verifying() if keys else None)
    await update(board.device, signed(NEW) if keys else NEW, reset=False)
    waiting = await board.device.staged()
    assert waiting
    board.options["floor"] = "2.1"
    await boot_check(board.boot())
    with pytest.raises(DowngradeError):
        await board.device.staged()
    with pytest.raises(DowngradeError):
        await board.device.activate(waiting)
    board.options["floor"] = "2.0"
    await boot_check(board.boot())
    assert await board.device.staged()


async def test_what_a_manifest_said_of_a_staged_image_is_not_forgotten() -> None:
    image = signed(NEW)
    board = await booted(verifier=verifying())
    async with OtaSession(board.device, size=len(image), manifest=described(image, "2.5")) as ota:
        await send(ota, image)
        await ota.activate(await ota.seal(), reset=False)
    await boot_check(board.boot())
    waiting = await board.device.staged()
    assert waiting
    assert (waiting.version, waiting.image.sequence) == ("2.5", 5)
    with pytest.raises(Restarted):
        await board.device.activate(waiting)
    assert await boot_check(board.boot()) is Verdict.TRIAL
    assert await commit(board.device)
    assert (board.record.floor, board.record.sequence) == ("2.5", 5)


# --- without a record, with one that cannot be read -----------------------------------------------------------------


async def test_with_an_unreadable_record_the_floor_of_the_device_holds() -> None:
    board = await booted(floor="2.1", on_unknown="confirm")
    board.state.damage()
    with pytest.raises(DowngradeError):
        await update(board.device, NEW)


async def test_an_operators_commit_of_an_unreadable_record_raises_nothing() -> None:
    board = await booted(floor="2.1")
    board.state.damage()
    assert await commit(board.device)
    assert board.record.floor is None


async def test_a_first_image_is_not_below_the_floor_either() -> None:
    async def body(data: bytes) -> Any:
        yield data

    board = Board(b"", floor="2")
    with pytest.raises(DowngradeError):
        await provision(board.device, body(OLD), size=len(OLD))
    await provision(board.device, body(NEW), size=len(NEW))
    assert board.record.floor is None


@pytest.mark.parametrize("options", [{"floor": "nightly"}, {"floor": ""}, {"hardware": ""}, {"hardware": "a b"}])
async def test_a_floor_or_an_id_that_nothing_could_fit_is_a_wrong_configuration(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Board(**options)


# --- rotated keys ---------------------------------------------------------------------------------------------------

CHAIN = follow(
    KeySet((KEY.public,)),
    None,
    [make_rotation(KeySet((KEY.public,)), KeySet((FRESH.public,)), [KEY, FRESH])],
)


async def test_key_compromise_after_a_rotation_the_old_key_signs_no_image_any_more() -> None:
    board = await booted(verifier=verifying())
    await board.device.remember(CHAIN)
    assert board.record.chain == CHAIN
    for _ in range(2):
        with pytest.raises(BadSignatureError, match="rotated out"):
            await update(board.device, signed(NEW))
        await boot_check(board.boot())
    with pytest.raises(BadSignatureError, match="bad signature, or none"):
        await update(board.device, signed(NEW, key=PrivateKey.generate()))
    await pushed(board, signed(NEW, key=FRESH))
    assert await commit(board.device)
    assert board.record.chain == CHAIN


async def test_key_compromise_a_staged_image_of_a_rotated_key_is_not_activated() -> None:
    board = await booted(verifier=verifying())
    await update(board.device, signed(NEW), reset=False)
    await board.device.remember(CHAIN)
    with pytest.raises(BadSignatureError):
        await board.device.staged()


async def test_key_compromise_a_program_with_newer_keys_of_its_own_uses_those() -> None:
    other = PrivateKey.generate()
    board = await booted(verifier=verifying())
    await board.device.remember(CHAIN)
    board.options["verifier"] = Verifier(keys=[other.public])
    await boot_check(board.boot())
    with pytest.raises(BadSignatureError):
        await update(board.device, signed(NEW, key=FRESH))
    await pushed(board, signed(NEW, key=other))


async def test_a_rotation_is_remembered_during_a_trial_and_the_way_back_stays() -> None:
    board = await booted(verifier=verifying())
    await pushed(board, signed(NEW))
    await board.device.remember(CHAIN)
    await rolled_back(board)
    assert board.content(board.flash.running) == OLD
    assert board.record.chain == CHAIN


async def test_what_is_remembered_already_is_not_stored_again() -> None:
    board = await booted(verifier=verifying())
    await board.device.remember(None)
    assert board.record.chain is None
    await board.device.remember(CHAIN)
    stores = board.state.stores
    await board.device.remember(CHAIN)
    await board.device.remember(None)
    assert (board.state.stores, board.record.chain) == (stores, CHAIN)


async def test_a_device_without_a_record_remembers_after_its_first_start() -> None:
    board = Board(OLD)
    await board.device.remember(CHAIN)
    assert board.record.a
    assert board.record.a.proven
    assert board.record.chain == CHAIN


async def test_nothing_is_remembered_in_a_record_that_cannot_be_read_or_is_held() -> None:
    board = await booted()
    async with board.device.exclusive():
        with pytest.raises(UpdateRunningError):
            await board.device.remember(CHAIN)
    board.state.damage()
    with pytest.raises(UnknownStateError):
        await board.device.remember(CHAIN)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_cut_while_a_rotation_is_remembered(after: bool) -> None:
    board = await booted()
    before = board.record
    board.power.cut_at(0, after=after)
    with pytest.raises(PowerCut):
        await board.device.remember(CHAIN)
    board.power.restore()
    expected = replace(before, revision=before.revision + 1, chain=CHAIN) if after else before
    assert board.record == expected
