"""What only the seal can tell: a firmware that failed and comes in another image, a version that nobody signed."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from memory_device import (
    KEY,
    NEW,
    OLD,
    Board,
    Restarted,
    digest,
    firmware,
    signed,
    update,
    update_and_restart,
    verifying,
)
from site_server import METADATA, Site

from mgota.core.download import Patience
from mgota.core.geometry import Slot
from mgota.core.keys import RAW_SIZE
from mgota.core.offer import Decision, Policy, Reason, Rule
from mgota.core.polls import Refusals
from mgota.core.record import Outcome, State
from mgota.errors import FailedBeforeError, ManifestError
from mgota.session import OtaSession
from mgota.transports.pull import Hooks, Pulled, Web, check, pull
from mgota.trial import boot_check, commit

pytestmark = pytest.mark.asyncio

WEB = Web(patience=Patience(first=0.001, longest=0.002), allow_http=True)
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
FIRST = signed(NEW)


def mirrored(image: bytes) -> bytes:
    """The same firmware under a signature that verifies as well: (r, n - s)."""
    s = int.from_bytes(image[-32:], "big")
    return image[:-32] + (ORDER - s).to_bytes(32, "big")


def anew(image: bytes) -> bytes:
    """Signed once more: ECDSA draws another number."""
    return signed(image[:-RAW_SIZE])


async def pulled(one: Board, url: str, **options: Any) -> Pulled | None:
    """A pull; None if it ended in a reset, as one that installs does."""
    try:
        return await pull(one.device, f"{url}{METADATA}", **{"web": WEB, "current_version": "1", **options})
    except Restarted:
        return None


@asynccontextmanager
async def failed(site: Site) -> AsyncGenerator[tuple[Board, str]]:
    """A device that has rolled `FIRST` back, and the server that it came from."""
    one = Board(signed(OLD), verifier=verifying())
    site.publish(FIRST, key=KEY)
    async with site.served() as url:
        await boot_check(one.device)
        assert await pulled(one, url) is None
        await boot_check(one.boot())  # on trial
        with pytest.raises(Restarted):
            await boot_check(one.boot())  # it was not committed
        await boot_check(one.boot())
        assert one.record.failed_sha256 == digest(NEW)
        site.requests.clear()
        yield one, url


@pytest.mark.parametrize("other", [mirrored, anew])
@pytest.mark.parametrize("plain", [False, True], ids=["signed manifest", "plain manifest"])
async def test_a_firmware_that_failed_is_not_installed_in_another_image_unless_forced(
    other: Callable[[bytes], bytes], plain: bool
) -> None:
    site, again = Site(), other(FIRST)
    assert again != FIRST
    told: list[str] = []
    decisions: list[Decision] = []
    async with failed(site) as (one, url):
        site.publish(again, "3", key=None if plain else KEY)
        options = {"allow_plain": plain, "policy": Policy(Rule.DIFFERENT)}
        found = await pulled(one, url, on_status=told.append, on_decision=decisions.append, **options)
        assert found
        assert (found.installed, found.decision.update, found.decision.reason) == (False, False, Reason.FAILED_BEFORE)
        assert "already failed" in found.decision.text
        assert told == ["Pulling firmware", found.decision.text]
        assert [decision.reason for decision in decisions] == [Reason.DIFFERENT, Reason.FAILED_BEFORE]
        assert (one.record.state, one.flash.selected, one.record.b) == (State.CONFIRMED, Slot.A, None)
        assert (one.record.outcome, one.record.failed_sha256) == (Outcome.ROLLED_BACK, digest(NEW))
        assert one.record.failed_image_sha256 == digest(again)
        assert len(site.asked()) == 1
        for _ in range(2):  # by now the new image is known, also after a restart: it is not downloaded again
            found = await pulled(one, url, **options)
            assert found
            assert found.decision.reason is Reason.FAILED_BEFORE
            await boot_check(one.boot())
        assert len(site.asked()) == 1
        assert await pulled(one, url, force=True, **options) is None
        assert one.record.state is State.TESTING


async def test_two_firmwares_that_failed_are_not_tried_in_turn() -> None:
    """Servers that disagree, or a publisher who goes back to what failed before."""
    site, second = Site(), firmware("3", 1100)
    async with failed(site) as (one, url):
        site.publish(signed(second), "3", key=KEY)
        assert await pulled(one, url) is None
        await boot_check(one.boot())  # on trial
        with pytest.raises(Restarted):
            await boot_check(one.boot())
        await boot_check(one.boot())
        assert one.record.failed_sha256 == digest(second)
        for downloads, image, version in [(1, FIRST, "2"), (1, FIRST, "2"), (2, signed(second), "3")]:
            site.publish(image, version, key=KEY)
            found = await pulled(one, url)
            assert found
            assert (found.installed, found.decision.reason) == (False, Reason.FAILED_BEFORE)
            assert (one.record.state, one.flash.selected) == (State.CONFIRMED, Slot.A)
            assert len(site.asked()) == 1 + downloads  # and the one that was tried


async def test_without_a_digest_the_version_is_what_is_known_by_then() -> None:
    site = Site()
    async with failed(site) as (one, url):
        site.publish(anew(FIRST), "2.0.0.post1", digest=False)
        found = await pulled(one, url, allow_plain=True)
        assert found
        assert found.decision.reason is Reason.FAILED_BEFORE
        assert (await check(f"{url}{METADATA}", "1", device=one.device, allow_plain=True)).reason is (
            Reason.FAILED_BEFORE
        )
        assert len(site.asked()) == 1


async def test_a_failed_firmware_that_somebody_staged_is_not_activated_unless_forced() -> None:
    site, again = Site(), anew(FIRST)
    async with failed(site) as (one, url):
        await update(one.device, again, reset=False)
        site.publish(again, "3", key=KEY)
        found = await pulled(one, url)
        assert found
        assert found.decision.reason is Reason.FAILED_BEFORE
        assert (one.record.state, one.record.staged) == (State.CONFIRMED, Slot.B)
        assert await pulled(one, url, force=True) is None
        assert one.record.state is State.TESTING
        assert not site.asked()


async def test_a_failed_firmware_is_not_staged_for_a_hook_either() -> None:
    site = Site()

    async def never(_: Decision) -> bool:
        raise AssertionError("there is nothing to ask for")

    async with failed(site) as (one, url):
        site.publish(anew(FIRST), key=KEY)
        found = await pulled(one, url, hooks=Hooks(may_activate=never))
        assert found
        assert (found.decision.reason, one.record.staged) == (Reason.FAILED_BEFORE, None)


async def test_another_firmware_of_the_same_version_is_another_try() -> None:
    site = Site()
    async with failed(site) as (one, url):
        site.publish(signed(firmware("2", 1600)), key=KEY)
        assert await pulled(one, url) is None


async def test_a_person_may_push_what_failed() -> None:
    async with failed(Site()) as (one, _):
        await update_and_restart(one.device, anew(FIRST))
        await boot_check(one.boot())
        assert await commit(one.device)


async def test_a_session_without_a_manifest_can_refuse_what_failed() -> None:
    again = anew(FIRST)
    async with failed(Site()) as (one, _):
        session = OtaSession(one.device, size=len(again), refuse_failed=True)

        async def send_and_seal() -> None:
            async with session:
                await session.write(again)
                await session.seal()

        with pytest.raises(FailedBeforeError):
            await send_and_seal()
        record = one.record
        assert (record.failed_image_sha256, record.failed_version) == (digest(again), "2")


@pytest.mark.parametrize(
    ("tag", "promised", "policy", "words"),
    [
        ("1", "2", "newer", "Same version"),
        ("0.9", "2", "newer", "older"),
        ("0.9", "2", "pinned=2", "pinned"),
        ("1", "2", "different", "Same version"),
    ],
)
async def test_old_signed_image_under_a_plain_manifest_is_not_what_it_says(
    tag: str, promised: str, policy: str, words: str
) -> None:
    site, one, refusals = Site(), Board(signed(OLD), verifier=verifying()), Refusals()
    image = signed(firmware(tag, 1200))
    site.publish(image, promised)
    options = {"allow_plain": True, "policy": Policy.parse(policy), "refusals": refusals}
    async with site.served() as url:
        await boot_check(one.device)
        with pytest.raises(ManifestError, match=words):
            await pulled(one, url, **options)
        assert (one.record.state, one.flash.selected, one.record.b) == (State.CONFIRMED, Slot.A, None)
        assert (await one.device.status()).outcome is Outcome.REFUSED
        assert await pulled(one, url, **options)  # it waits
        assert len(site.asked()) == 1


async def test_a_version_inside_that_is_wanted_too_is_the_one_that_counts() -> None:
    site, one = Site(), Board(signed(OLD), verifier=verifying())
    site.publish(FIRST, "2.0.1")
    async with site.served() as url:
        await boot_check(one.device)
        assert await pulled(one, url, allow_plain=True) is None
    assert one.record.b
    assert one.record.b.version == "2"


async def test_without_a_tag_the_firmware_that_runs_is_not_installed_for_ever() -> None:
    bare = b"no tag at all " * 60
    site, one = Site(), Board(signed(OLD), verifier=verifying())
    site.publish(signed(bare), digest=False)
    options = {"allow_plain": True, "policy": Policy(Rule.DIFFERENT)}
    async with site.served() as url:
        await boot_check(one.device)
        assert await pulled(one, url, **options) is None
        await boot_check(one.boot())
        assert await commit(one.device)
        with pytest.raises(ManifestError, match="the firmware that runs"):
            await pulled(one, url, **{**options, "current_version": None})
        assert one.record.state is State.CONFIRMED


async def test_what_is_selected_and_waits_for_the_next_start_is_installed_and_one_that_is_not_offered_in_the_way() -> (
    None
):
    site, one = Site(), Board(signed(OLD), verifier=verifying())
    site.publish(FIRST, key=KEY)
    async with site.served() as url:
        await boot_check(one.device)
        assert await pulled(one, url) is None
        one.boot()  # as a command that was killed is followed by another one: nobody has made the boot decision
        for current in ("1", None):
            found = await pulled(one, url, current_version=current)
            assert found
            assert (found.installed, found.decision.reason) == (True, Reason.NEWER)
        assert len(site.asked()) == 1
        assert one.record.state is State.TESTING
        await boot_check(one.boot())
        found = await pulled(one, url, current_version=None)
        assert found
        assert (found.installed, found.decision.reason) == (False, Reason.SAME)
