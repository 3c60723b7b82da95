"""Pulls: what is decided, what is installed, what is told, and what can put it off."""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from memory_device import KEY, NEW, OLD, Board, Restarted, firmware, signed, verifying
from site_server import IMAGE, METADATA, Request, Site, response

from mgota.core.download import Patience
from mgota.core.geometry import Slot
from mgota.core.keys import PrivateKey
from mgota.core.note import identity_of
from mgota.core.offer import Decision, Policy, Reason
from mgota.core.pace import Limits
from mgota.core.polls import REFUSED, Refusals
from mgota.core.record import Outcome, State
from mgota.device import Device
from mgota.errors import (
    BadSignatureError,
    BusyError,
    ConfigError,
    DigestError,
    ManifestError,
    OtaError,
    RejectedError,
    StalledError,
    TooLargeError,
    TransferError,
    UnsignedError,
)
from mgota.linux.environment import file_device
from mgota.resume import Resume
from mgota.session import OtaSession
from mgota.testing import Fault, fault_proxy
from mgota.transports.pull import Gate, Hooks, Postpone, Pulled, Web, check, poll, pull
from mgota.transports.pull.hooks import LONGEST
from mgota.trial import boot_check, commit

pytestmark = pytest.mark.asyncio

QUICK = Patience(first=0.001, longest=0.002)
WEB = Web(patience=QUICK, allow_http=True)
BRIEF = Web(patience=Patience(tries=2, first=0.001, longest=0.002), allow_http=True)
SIGNED_NEW = signed(NEW)


class Statuses(list[str]):
    """A callback that remembers."""

    def __call__(self, text: str) -> None:
        self.append(text)


def board(**options: Any) -> Board:
    return Board(signed(OLD), **{"verifier": verifying(), **options})


async def first_start(one: Board) -> None:
    await boot_check(one.device)


async def pulled(one: Board, url: str, **options: Any) -> Pulled | None:
    """A pull; None if it ended in a reset, as one that installs does."""
    try:
        return await pull(one.device, f"{url}{METADATA}", **{"web": WEB, **options})
    except Restarted:
        return None


async def test_a_newer_image_is_installed_and_runs_on_trial() -> None:
    site, one, told = Site(), board(), Statuses()
    site.publish(SIGNED_NEW, key=KEY, version="2")
    async with site.served() as url:
        await first_start(one)
        assert await pulled(one, url, current_version="1", on_status=told) is None
    assert told == ["Pulling firmware"]
    assert (one.record.state, one.record.trial, one.flash.selected) == (State.TESTING, Slot.B, Slot.B)
    assert one.content(Slot.B) == SIGNED_NEW
    assert one.record.b
    assert (one.record.b.version, one.record.b.sequence) == ("2", 1)
    await boot_check(one.boot())
    await commit(one.device)
    async with site.served() as url:
        found = await pulled(one, url, on_status=told)  # the version that runs is recorded
    assert found
    assert (found.decision.update, found.decision.reason, found.installed) == (False, Reason.SAME, False)
    assert told[1:] == ["Same version"]
    assert len(site.asked(IMAGE)) == 1


async def test_a_plain_manifest_works_as_it_is() -> None:
    one = Board(OLD)
    site = Site()
    site.publish(NEW, digest=False)
    async with site.served() as url:
        assert await pulled(one, url, current_version="1") is None
    assert one.content(Slot.B) == NEW


async def test_with_keys_a_plain_manifest_needs_leave() -> None:
    site, one, told = Site(), board(), Statuses()
    site.publish(SIGNED_NEW)
    async with site.served() as url:
        with pytest.raises(UnsignedError):
            await pulled(one, url, current_version="1", on_status=told)
        assert told[0] == "OTA fail"
        assert "not signed" in told[1]
        assert await pulled(one, url, current_version="1", allow_plain=True) is None


async def test_http_needs_keys_or_leave() -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)
    async with site.served() as url:
        for wrong in (None, Web(patience=QUICK)):
            with pytest.raises(ConfigError, match="not encrypted"):
                await pulled(one, url, current_version="1", web=wrong)
            with pytest.raises(ConfigError, match="not encrypted"):
                await check(f"{url}{METADATA}", "1", web=wrong)
        assert not site.requests
        assert await pulled(board(), url, current_version="2", allow_plain=True, web=Web())  # keys will do


async def test_the_image_may_lie_elsewhere_but_not_in_the_open() -> None:
    site = Site()
    site.publish(NEW, url="http://127.0.0.1:9/fw.bin")
    async with site.served() as url:
        with pytest.raises(TransferError):
            await pulled(Board(OLD), url, current_version="1", web=Web(allow_http=True, patience=Patience(tries=1)))
        site.publish(NEW, url="ftp://a/b")
        with pytest.raises(TransferError, match="no URL"):
            await pulled(Board(OLD), url, current_version="1")


async def test_check_decides_and_touches_nothing() -> None:
    site = Site()
    site.publish(SIGNED_NEW, key=KEY, hw=("board-7",))
    async with site.served() as url:
        at = f"{url}{METADATA}"
        assert (await check(at, "1", keys=[KEY.public], hardware="board-7")).update
        assert (await check(at, "2", keys=[KEY.public], hardware="board-7")).reason is Reason.SAME
        assert (await check(at, "3", keys=[KEY.public], hardware="board-7")).reason is Reason.OLDER
        assert (await check(at, "1", keys=[KEY.public], hardware="board-8")).reason is Reason.WRONG_HARDWARE
        different = await check(at, "3", keys=[KEY.public], hardware="board-7", policy=Policy.parse("different"))
        assert (different.update, different.reason) == (True, Reason.DIFFERENT)
        with pytest.raises(BadSignatureError):
            await check(at, "1", keys=[PrivateKey.generate().public])
    assert not site.asked(IMAGE)


async def test_an_offer_that_is_refused_is_an_error_and_one_that_is_needless_is_not() -> None:
    site, one, told = Site(), board(hardware="board-7"), Statuses()
    site.publish(SIGNED_NEW, key=KEY, hw=("board-8",))
    async with site.served() as url:
        with pytest.raises(RejectedError, match="board-8"):
            await pulled(one, url, current_version="1", on_status=told)
        assert told[0] == "OTA fail"
        site.publish(SIGNED_NEW, key=KEY)
        found = await pulled(one, url, current_version="9", on_status=told)
        assert found
        assert found.decision.reason is Reason.OLDER
        assert "older" in told[-1]
        with pytest.raises(ManifestError, match="nobody knows"):
            await pulled(one, url)  # which version runs
    assert not site.asked(IMAGE)
    assert one.state.record is None


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        (b"", ManifestError), (b"[]", ManifestError), (b"{}", ManifestError), (b"\xff", ManifestError),
        (b'{"version": "2", "url": "fw.bin", "size": 0}', ManifestError),
        (b'{"version": "2", "url": "fw.bin", "size": 1, "size": 2}', ManifestError),
        (b" " * 65537, TransferError),
    ],
)  # fmt: skip
async def test_metadata_that_is_none(metadata: bytes, kind: type[OtaError]) -> None:
    site, told = Site(), Statuses()
    site.put(METADATA, metadata)
    async with site.served() as url:
        with pytest.raises(kind):
            await pulled(Board(OLD), url, current_version="1", on_status=told)
    assert len(site.requests) == 1
    assert told[0] == "OTA fail"
    assert len(told) == 2


async def test_answers_that_may_pass_are_waited_for_and_others_end() -> None:
    site = Site()
    site.publish(NEW)
    busy = {METADATA: [503, 429, 200], IMAGE: [500, 408, 425, 200]}

    def quirk(request: Request, number: int) -> bytes | None:
        status = busy[request.path][min(number, len(busy[request.path]) - 1)]
        return None if status == 200 else response(status)

    site.quirk = quirk
    async with site.served() as url:
        assert await pulled(Board(OLD), url, current_version="1") is None
        assert len(site.requests) == 7
        for path in (METADATA, IMAGE):
            site.requests.clear()
            site.quirk = lambda request, _, path=path: response(404) if request.path == path else None  # type: ignore[misc]
            with pytest.raises(TransferError, match="404"):
                await pulled(Board(OLD), url, current_version="1")
            assert len(site.asked(path)) == 1


async def test_ten_tries_in_a_row_that_bring_nothing_are_enough() -> None:
    site = Site()
    site.publish(NEW)
    async with site.served() as url:
        site.quirk = lambda request, _: response(503) if request.path == IMAGE else None
        with pytest.raises(TransferError, match="10 tries"):
            await pulled(Board(OLD), url, current_version="1")
        assert len(site.asked()) == 10
        site.quirk = lambda _request, _number: response(503)
        site.requests.clear()
        with pytest.raises(TransferError, match="10 tries"):
            await pulled(Board(OLD), url, current_version="1")
        assert len(site.asked(METADATA)) == 10


async def test_a_download_that_is_cut_at_every_hundredth_byte_goes_on_as_long_as_bytes_come() -> None:
    site, one = Site(), Board(OLD)
    site.keep_alive = False
    site.publish(NEW)
    head = len(response(206, b"", connection="close", etag='"v1"', content_range="bytes 1000-1499/1500"))
    async with site.served() as url:
        port = int(url.rpartition(":")[2])
        script = [[], *[[Fault.cut(head + 100)] for _ in range(40)]]
        async with fault_proxy("127.0.0.1", port, script) as proxy:
            assert await pulled(one, f"http://127.0.0.1:{proxy.port}", current_version="1") is None
    assert one.content(Slot.B) == NEW
    asked = site.asked()
    assert all(request.range for request in asked[1:])
    assert all(request.fields["if-range"] == '"v1"' for request in asked[1:])


async def test_a_server_that_always_begins_anew_meets_the_byte_budget() -> None:
    site = Site()
    site.keep_alive = False
    site.publish(NEW, etag=None)
    async with site.served() as url:
        port = int(url.rpartition(":")[2])
        script = [[], *[[Fault.cut(1000)] for _ in range(40)]]
        async with fault_proxy("127.0.0.1", port, script) as proxy:
            with pytest.raises(TransferError, match="given up"):
                await pulled(Board(OLD), f"http://127.0.0.1:{proxy.port}", current_version="1")
    assert len(site.asked()) <= 10


async def test_what_is_served_must_be_what_was_announced() -> None:
    site, one, told = Site(), board(), Statuses()
    site.publish(SIGNED_NEW, key=KEY)
    async with site.served() as url:
        site.put(IMAGE, SIGNED_NEW + b"x")
        with pytest.raises(TransferError, match="announced"):
            await pulled(one, url, current_version="1")
        other = signed(firmware("2", len(NEW)), key=KEY)
        assert len(other) == len(SIGNED_NEW)
        site.put(IMAGE, signed(firmware("7", len(NEW))))
        with pytest.raises(DigestError):
            await pulled(one, url, current_version="1", on_status=told)
        assert told[:2] == ["Pulling firmware", "OTA fail"]
        assert len(told) == 3
    assert one.flash.selected is Slot.A
    assert one.record.state is State.CONFIRMED


async def test_a_bad_signature_is_not_tried_again() -> None:
    site, one, refusals = Site(), board(), Refusals()
    site.publish(signed(NEW, key=PrivateKey.generate()), key=KEY)
    async with site.served() as url:
        with pytest.raises(BadSignatureError):
            await pulled(one, url, current_version="1", refusals=refusals)
        assert len(site.asked()) == 1
        again = await pulled(one, url, current_version="1", refusals=refusals)
        assert again
        assert (again.installed, again.decision.update) == (False, True)
        assert len(site.asked()) == 1
        site.publish(SIGNED_NEW, key=KEY)
        assert await pulled(one, url, current_version="1", refusals=refusals) is None


async def test_an_image_that_was_rolled_back_is_not_installed_again_unless_forced() -> None:
    site, one = Site(), board()
    site.publish(SIGNED_NEW, key=KEY)
    async with site.served() as url:
        await first_start(one)
        assert await pulled(one, url, current_version="1") is None
        await boot_check(one.boot())  # on trial
        with pytest.raises(Restarted):
            await boot_check(one.boot())  # it was not committed
        await boot_check(one.boot())
        assert one.record.outcome is Outcome.ROLLED_BACK
        found = await pulled(one, url, current_version="1")
        assert found
        assert found.decision.reason is Reason.FAILED_BEFORE
        assert await pulled(one, url, current_version="1", force=True) is None


async def test_one_wrong_byte_on_the_way_is_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    site, one, refusals = Site(), board(), Refusals()
    site.publish(SIGNED_NEW, key=KEY)
    broken = SIGNED_NEW[:-1] + bytes([SIGNED_NEW[-1] ^ 1])
    site.quirk = lambda request, number: response(200, broken) if request.path == IMAGE and not number else None
    async with site.served() as url:
        with pytest.raises(RejectedError):
            await pulled(one, url, current_version="1", refusals=refusals)
        assert await pulled(one, url, current_version="1", refusals=refusals)  # not yet
        real = anyio.current_time
        monkeypatch.setattr("mgota.transports.pull.pulling.anyio.current_time", lambda: real() + REFUSED)
        assert await pulled(one, url, current_version="1", refusals=refusals) is None


async def test_no_room_is_no_refusal_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    site, one, refusals = Site(), board(), Refusals()
    site.publish(SIGNED_NEW, key=KEY)
    async with site.served() as url:
        with monkeypatch.context() as patch:

            async def full(*_: Any) -> Any:
                await anyio.sleep(0)
                raise TooLargeError(len(SIGNED_NEW), 100)

            patch.setattr(type(one.flash), "open_writer", full)
            with pytest.raises(TooLargeError):
                await pulled(one, url, current_version="1", refusals=refusals)
        assert await pulled(one, url, current_version="1", refusals=refusals) is None


@pytest.mark.parametrize("offered", ["2", "3", "1"])
async def test_an_activation_that_was_cut_off_is_finished_by_the_next_pull(offered: str) -> None:
    site, one = Site(), board()
    site.publish(SIGNED_NEW, key=KEY)
    seen: list[Decision] = []
    async with site.served() as url:
        await first_start(one)
        real = one.flash.select

        async def dies(slot: Slot) -> None:
            if slot is Slot.B:
                raise Restarted
            await real(slot)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(one.flash, "select", dies)
            assert await pulled(one, url, current_version="1") is None
        assert (one.record.state, one.flash.selected) == (State.TESTING, Slot.A)
        if offered != "2":
            site.publish(signed(firmware(offered)), version=offered, key=KEY)
        assert await pulled(one, url, current_version="1", on_decision=seen.append) is None  # the reset
        assert (one.record.state, one.flash.selected) == (State.TESTING, Slot.B)
        assert [decision.reason for decision in seen] == [
            {"2": Reason.NEWER, "3": Reason.TRIAL, "1": Reason.SAME}[offered]
        ]
        assert len(site.asked()) == 1


async def test_who_is_not_reset_by_finishing_is_told_that_it_is_installed() -> None:
    site, one = Site(), board()
    site.publish(SIGNED_NEW, key=KEY)
    async with site.served() as url:
        await first_start(one)
        device = replace(one.device, reset=None)  # whoever runs it resets it later
        found = await pull(device, f"{url}{METADATA}", current_version="1", web=WEB)
        assert found.installed
        again = await pull(device, f"{url}{METADATA}", current_version="1", web=WEB)
        assert (again.installed, again.decision.update) == (True, True)
        assert len(site.asked()) == 1


async def test_what_somebody_else_staged_meanwhile_is_not_what_the_hook_agreed_to() -> None:
    site, one, answers = Site(), board(), [False, True, True]
    site.publish(SIGNED_NEW, key=KEY)
    other = signed(firmware("9"))

    async def may(_: Any) -> bool:
        answer = answers.pop(0)
        if len(answers) == 1:
            async with OtaSession(one.device, size=len(other)) as session:
                await session.write(other)
                await session.activate(await session.seal(), reset=False)
        return answer

    async with site.served() as url:
        await first_start(one)
        assert await pulled(one, url, current_version="1", hooks=Hooks(may_activate=may))
        assert await pulled(one, url, current_version="1", hooks=Hooks(may_activate=may)) is None
    assert one.content(Slot.B) == SIGNED_NEW  # what it was asked about, not the other
    assert answers == []


async def test_an_update_waits_for_the_trial_to_end() -> None:
    site, one = Site(), board()
    site.publish(SIGNED_NEW, key=KEY)
    async with site.served() as url:
        await first_start(one)
        assert await pulled(one, url, current_version="1") is None
        await boot_check(one.boot())
        found = await pulled(one, url)
        assert found
        assert found.decision.reason is Reason.SAME  # it is the one on trial
        site.publish(signed(firmware("3")), version="3", key=KEY)
        with pytest.raises(BusyError):
            await pulled(one, url)


@pytest.mark.parametrize("gate", list(Gate))
@pytest.mark.parametrize("how", ["false", "raise"])
async def test_hooks_put_it_off(gate: Gate, how: str) -> None:
    site, one, asked = Site(), board(), list[str]()
    site.publish(SIGNED_NEW, key=KEY)
    patience = {"left": 2}

    def hook(name: Gate) -> Callable[[Any], Awaitable[bool]]:
        async def ask(decision: Any) -> bool:
            assert decision.manifest.version == "2"
            asked.append(name.value)
            await anyio.sleep(0)
            if name is gate and patience["left"]:
                patience["left"] -= 1
                if how == "raise":
                    raise Postpone(7.0)
                return False
            return True

        return ask

    hooks = Hooks(may_download=hook(Gate.DOWNLOAD), may_install=hook(Gate.INSTALL), may_activate=hook(Gate.ACTIVATE))
    async with site.served() as url:
        await first_start(one)
        for _ in range(2):
            found = await pulled(one, url, current_version="1", hooks=hooks)
            assert found
            assert (found.postponed, found.installed, found.staged) == (gate, False, gate is Gate.ACTIVATE)
            assert found.after == (7.0 if how == "raise" else None)
            assert one.record.state is State.CONFIRMED
            one.boot()  # what is staged stays so over a restart
        assert await pulled(one, url, current_version="1", hooks=hooks) is None
    assert one.record.state is State.TESTING
    assert len(site.asked()) == 1  # it was downloaded once
    order = [name.value for name in Gate]
    assert asked == (order + ["activate"] * 2 if gate is Gate.ACTIVATE else order[: order.index(gate) + 1] * 2 + order)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, -0.001, LONGEST * 1.001, 10**400])
async def test_nobody_postpones_for_ever(seconds: float) -> None:
    with pytest.raises(ConfigError, match="postponed"):
        Postpone(seconds)


@pytest.mark.parametrize("seconds", [None, 0, 0.5, LONGEST])
async def test_a_time_to_wait_is_some_seconds_or_none(seconds: float | None) -> None:
    assert Postpone(seconds).seconds == seconds


async def test_a_staged_image_that_rotted_is_fetched_anew_and_another_offer_replaces_it() -> None:
    site, one, answers = Site(), board(), [False, True, True]  # asked before it is read, and of the new one
    site.publish(SIGNED_NEW, key=KEY)

    async def may(_: Any) -> bool:
        return answers.pop(0)

    async with site.served() as url:
        await first_start(one)
        assert await pulled(one, url, current_version="1", hooks=Hooks(may_activate=may))
        one.flash.cells[Slot.B][7] ^= 1
        assert await pulled(one, url, current_version="1", hooks=Hooks(may_activate=may)) is None
        assert len(site.asked()) == 2
        two, answers = board(), [False, True]
        await first_start(two)
        assert await pulled(two, url, current_version="1", hooks=Hooks(may_activate=may))
        newer = signed(firmware("3", 1500))
        site.publish(newer, version="3", key=KEY)
        assert await pulled(two, url, current_version="1", hooks=Hooks(may_activate=may)) is None
        assert two.content(Slot.B) == newer


async def test_a_callback_cannot_fail_the_update(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.publish(NEW)
    seen: list[str] = []

    async def waits(text: str) -> None:
        await anyio.sleep(0)
        seen.append(text)

    def breaks(text: str) -> None:
        raise ZeroDivisionError(text)

    async with site.served() as url:
        assert await pulled(Board(OLD), url, current_version="1", on_status=waits) is None
        assert seen == ["Pulling firmware"]
        assert await pulled(Board(OLD), url, current_version="1", on_status=breaks) is None
    assert "the status could not be told" in caplog.text


async def test_the_query_of_mongoose() -> None:
    site, one = Site(), board()
    site.publish(SIGNED_NEW, key=KEY)
    async with site.served() as url:
        await first_start(one)
        options = {"mongoose_query": True, "device_id": "gw 7", "interval": 60.0}
        assert await pulled(one, url, current_version="1.0", **options) is None
        assert site.asked(METADATA)[-1].query == "arch=1&version=1.0&id=gw+7&interval=60&boot=0"
        await boot_check(one.boot())
        await pulled(one, url, **options)
        assert site.asked(METADATA)[-1].query.endswith("boot=2")
        with pytest.raises(Restarted):
            await boot_check(one.boot())
        await boot_check(one.boot())
        await pulled(one, url, **options)
        assert site.asked(METADATA)[-1].query == "arch=1&version=1&id=gw+7&interval=60&boot=3"
        await pull(one.device, f"{url}{METADATA}?x=1", web=WEB, mongoose_query=True)
        assert site.asked(METADATA)[-1].query.startswith("x=1&arch=1&version=1&id=&")


@pytest.mark.parametrize(
    ("at", "web", "words"),
    [
        (100, Web(metadata=0.1, allow_http=True, patience=Patience(tries=1)), "the manifest was not there"),
        (100, Web(deadline=0.1, allow_http=True), "not complete after 0.1 s"),
        (700, Web(deadline=0.2, allow_http=True), "not complete after 0.2 s"),
        (700, Web(limits=Limits(idle=0.1), allow_http=True, patience=QUICK), "nothing came"),
    ],
)
async def test_limits_of_time(at: int, web: Web, words: str) -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)

    def script(number: int) -> list[Fault]:
        return [Fault.stall(at if number == 0 else 0)]

    async with site.served() as url, fault_proxy("127.0.0.1", int(url.rpartition(":")[2]), script) as proxy:
        with pytest.raises(TransferError, match=words) as failed:
            await pulled(one, f"http://127.0.0.1:{proxy.port}", current_version="1", web=web)
    assert isinstance(failed.value.__cause__ or failed.value, StalledError)
    assert one.flash.selected is Slot.A


async def test_a_server_that_crawls_is_left_and_asked_for_the_rest() -> None:
    site, one = Site(), Board(OLD)
    site.keep_alive = False
    site.publish(NEW)
    web = Web(limits=Limits(minimum_rate=100_000, grace=0.05), allow_http=True, patience=QUICK)
    async with site.served() as url:
        port = int(url.rpartition(":")[2])
        async with fault_proxy("127.0.0.1", port, [[], [Fault.throttle(700, 1000)]]) as proxy:
            assert await pulled(one, f"http://127.0.0.1:{proxy.port}", current_version="1", web=web) is None
    assert len(site.asked()) == 2
    assert site.asked()[1].range
    assert one.content(Slot.B) == NEW


async def test_polls_go_on_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    site, one, told = Site(), board(), Statuses()
    caplog.set_level(logging.WARNING)
    answers: list[bool | Exception] = [Postpone(1.0), ZeroDivisionError(), True]

    async def may(_: Any) -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    site.publish(SIGNED_NEW, key=KEY)
    site.quirk = lambda request, number: response(404) if request.path == METADATA and not number else None
    slept: list[float] = []
    real = anyio.sleep

    async def no_sleep(seconds: float) -> None:
        slept.append(seconds)
        await real(0)

    async with site.served() as url:
        await first_start(one)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("mgota.transports.pull.polling.anyio.sleep", no_sleep)
            with pytest.raises(Restarted):
                await poll(
                    one.device, f"{url}{METADATA}", interval=100, jitter=0.5, current_version="1",
                    web=WEB, hooks=Hooks(may_download=may), on_status=told,
                )  # fmt: skip
    assert one.record.state is State.TESTING
    assert told == ["OTA fail", f"{url}{METADATA}: the server answered 404", "Pulling firmware"]
    assert len(slept) == 4
    assert 0 <= slept[0] <= 50
    assert 30 <= slept[1] <= 60
    assert slept[2] == 1
    assert 30 <= slept[3] <= 60
    assert "ZeroDivisionError" in caplog.text


async def test_polls_that_cannot_be_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="interval"):
        await poll(board().device, "https://a/b", interval=0.5)
    with pytest.raises(ConfigError, match="not encrypted"):
        await poll(Board(OLD).device, "http://a/b", interval=5)
    with pytest.raises(ConfigError, match="not encrypted"):
        await poll(board().device, "http://a/b", interval=5, keys=())
    with pytest.raises(ConfigError, match="2 of 1 keys"):
        await poll(board().device, "https://a/b", interval=5, threshold=2)


async def test_a_cancelled_pull_leaves_the_device_free() -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)
    async with site.served() as url:
        port = int(url.rpartition(":")[2])
        async with fault_proxy("127.0.0.1", port, [[Fault.stall(700)]]) as proxy:
            with anyio.move_on_after(0.2) as scope:
                await pulled(one, f"http://127.0.0.1:{proxy.port}", current_version="1")
            assert scope.cancelled_caught
        async with OtaSession(one.device, size=10):
            pass
        assert await pulled(one, url, current_version="1") is None


class MemoryNote:
    """A note in memory."""

    def __init__(self) -> None:
        self.data: bytes | None = None

    async def load(self) -> bytes | None:
        return self.data

    async def store(self, data: bytes) -> None:
        self.data = data


LARGE = firmware("2", 200_000)


def slots(tmp_path: Path, **options: Any) -> Device:
    return file_device(tmp_path / "d", **{"verifier": verifying(), **options})


@pytest.mark.parametrize("keys", [True, False])
async def test_a_download_goes_on_in_another_life(tmp_path: Path, keys: bool) -> None:
    site, note = Site(), MemoryNote()
    site.keep_alive = False
    image = signed(LARGE) if keys else LARGE
    options: dict[str, Any] = {} if keys else {"verifier": None}
    async with site.served() as url:
        site.publish(image, url=f"{url}{IMAGE}", key=KEY if keys else None)
        site.quirk = lambda request, number: (
            response(200, image, etag='"v1"')[:150_000] if request.path == IMAGE and number == 0
            else response(404) if request.path == IMAGE and number == 1 else None
        )  # fmt: skip
        with pytest.raises(TransferError):
            await pull(slots(tmp_path, **options), f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)
        found = await pull(slots(tmp_path, **options), f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)
    assert found.installed
    asked = site.asked()
    assert asked[2].range is not None
    assert 130_000 < int(asked[2].range[6:-1]) <= 150_000
    assert (tmp_path / "d" / "b").read_bytes() == image


async def test_without_anything_to_decide_at_the_end_nothing_is_resumed(tmp_path: Path) -> None:
    site, note = Site(), MemoryNote()
    site.keep_alive = False
    async with site.served() as url:
        site.publish(LARGE, url=f"{url}{IMAGE}", digest=False)
        site.quirk = lambda request, number: response(404) if request.path == IMAGE and number == 1 else (
            response(200, LARGE, etag='"v1"')[:150_000] if request.path == IMAGE and number == 0 else None
        )  # fmt: skip
        device = slots(tmp_path, verifier=None)
        with pytest.raises(TransferError):
            await pull(device, f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)
        assert note.data is None
        assert (await pull(device, f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)).installed
    assert site.asked()[2].range is None


async def test_what_was_joined_wrongly_is_fetched_once_more_from_its_first_byte(tmp_path: Path) -> None:
    """The server kept its validator and changed its image: only the end tells."""
    site, note = Site(), MemoryNote()
    site.keep_alive = False
    new, other = signed(LARGE), signed(firmware("1.5", 200_000))
    async with site.served() as url:
        site.publish(new, url=f"{url}{IMAGE}", key=KEY)
        site.quirk = lambda request, number: (
            response(200, other, etag='"v1"')[:150_000] if request.path == IMAGE and number == 0
            else response(404) if request.path == IMAGE and number == 1 else None
        )  # fmt: skip
        with pytest.raises(TransferError):
            await pull(slots(tmp_path), f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)
        assert (await pull(slots(tmp_path), f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)).installed
        assert [request.range is None for request in site.asked()] == [True, False, False, True]
    assert (tmp_path / "d" / "b").read_bytes() == new


async def test_a_whole_download_that_was_not_activated_is_not_asked_for_again(tmp_path: Path) -> None:
    site, note = Site(), MemoryNote()
    image = signed(LARGE)
    async with site.served() as url:
        site.publish(image, url=f"{url}{IMAGE}", key=KEY)
        resume = Resume(note=note, identity=identity_of(f"{url}{IMAGE}", len(image), sha256(image).hexdigest()))
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with OtaSession(slots(tmp_path), size=len(image), resume=resume) as session:
                await session.write(image)
                raise ZeroDivisionError
        assert (await pull(slots(tmp_path), f"{url}{METADATA}", current_version="1", note=note, web=BRIEF)).installed
    assert site.asked() == []


async def test_any_bytes_of_a_server_end_in_an_image_or_an_error() -> None:
    site, draw = Site(), Random(11)
    site.keep_alive = False
    site.publish(SIGNED_NEW, key=KEY)
    good = {path: response(200, site.files[path].data, etag='"v1"', connection="close") for path in (METADATA, IMAGE)}

    def noise(request: Request, _number: int) -> bytes:
        data = bytearray(good[request.path])
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(data)) if draw.random() < 0.5 else draw.randrange(90)
            data[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        return bytes(data) if draw.random() < 0.9 else draw.randbytes(draw.randrange(200))

    site.quirk = noise
    installed = 0
    async with site.served() as url:
        for _ in range(150):
            one = board()
            try:
                await pull(one.device, f"{url}{METADATA}", current_version="1", web=BRIEF)
            except OtaError:
                assert one.flash.selected is Slot.A
            except Restarted:
                installed += 1
                assert one.content(Slot.B) == SIGNED_NEW
    assert 0 < installed < 150
