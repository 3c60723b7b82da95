"""mgota at both ends, each a process or a connection of its own: what may happen to either in the middle of a push."""

import os
import signal
from contextlib import ExitStack, aclosing
from itertools import pairwise
from pathlib import Path

import anyio
import pytest
from mosquitto import Mosquitto
from terminal import PROGRAM, Serving, Shop

from mgota import errors
from mgota.transports.mqtt.sender import Remote, push

pytestmark = [pytest.mark.asyncio, pytest.mark.program("mosquitto")]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


@pytest.fixture
def url(mosquitto: Mosquitto) -> str:
    return f"{mosquitto.url}/site/7"


async def on_trial(url: str, version: str) -> None:
    """The device runs it, on trial."""
    with anyio.fail_after(30):
        while True:
            status = await Remote(url).status()
            if status["trial"] and status["image"]["version"] == version:
                return
            await anyio.sleep(0.05)


async def test_a_device_killed_and_started_again_in_the_middle(url: str, shop: Shop, tmp_path: Path) -> None:
    """A power cut: the session is gone, and the push begins again by itself."""
    image = shop.image("2.0.0", 3_000_000)
    place = ("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url)
    seen = []
    with ExitStack() as running:
        first = running.enter_context(Serving(*place))
        async with aclosing(push(image, url)) as steps:
            async for step in steps:
                seen.append(step.sent)
                if len(seen) == 4:
                    first.end(signal.SIGKILL)
                    await anyio.to_thread.run_sync(running.enter_context, Serving(*place))
        assert any(then < before for before, then in pairwise(seen)), "it began again, and said so"
        assert seen[-1] == image.stat().st_size
        await on_trial(url, "2.0.0")


async def test_a_device_that_is_stopped_in_the_middle_and_comes_back(url: str, shop: Shop, tmp_path: Path) -> None:
    """It says that it stops; that is no reason to give up."""
    image = shop.image("2.0.0", 3_000_000)
    place = ("--slots", tmp_path / "device", "--mqtt", url)
    count = 0
    with ExitStack() as running:
        first = running.enter_context(Serving(*place))
        async with aclosing(push(image, url)) as steps:
            async for _ in steps:
                count += 1
                if count == 4:
                    await anyio.to_thread.run_sync(first.end, signal.SIGTERM)
                    await anyio.to_thread.run_sync(running.enter_context, Serving(*place))
        await on_trial(url, "2.0.0")


async def test_two_senders_at_once(url: str, shop: Shop, tmp_path: Path) -> None:
    with Serving("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url):
        async with aclosing(push(shop.image("2.0.0", 2_000_000), url)) as first:
            await anext(first)
            assert (await anext(first)).sent > 0
            with pytest.raises(errors.BusyError, match="another upload is under way on the device"):
                async for _ in push(shop.image("3.0.0"), url, timeout=0.1):
                    pass
            with pytest.raises(errors.BusyError, match="it ends within 60 s"):
                async for _ in push(shop.image("3.0.0"), url, stop_and_wait=True):
                    pass
            async for _ in first:
                pass
        await on_trial(url, "2.0.0")
        with pytest.raises(errors.BusyError, match="trial"):
            async for _ in push(shop.image("3.0.0"), url):
                pass


async def test_who_comes_second_waits_until_the_first_has_left(url: str, shop: Shop, tmp_path: Path) -> None:
    waiting, told = anyio.Event(), list[str]()

    async def second() -> None:
        async for step in push(shop.image("3.0.0"), url):
            told.append(step.waiting)
            if step.waiting:
                waiting.set()

    with Serving("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url):
        image = shop.image("2.0.0", 2_000_000)
        async with anyio.create_task_group() as tasks, aclosing(push(image, url)) as first:
            await anext(first)
            assert (await anext(first)).sent > 0
            tasks.start_soon(second)
            with anyio.fail_after(10):
                await waiting.wait()
        assert told[:3] == ["", "another upload is under way", ""]
        await on_trial(url, "3.0.0")


async def test_what_is_not_signed_is_refused_for_good(url: str, shop: Shop, tmp_path: Path) -> None:
    with Serving("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url):
        for single in (False, True):
            with pytest.raises(errors.RejectedError, match="signature"):
                async for _ in push(os.urandom(50_000), url, stop_and_wait=single):
                    pass


async def test_stop_and_wait_against_a_device_of_ours(
    mosquitto: Mosquitto, url: str, shop: Shop, tmp_path: Path
) -> None:
    """And the broker goes away in the middle: it begins again, and nothing is written twice."""
    image = shop.image("2.0.0", 700_000)
    with Serving("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url):
        count = 0
        async with aclosing(push(image, url, stop_and_wait=True)) as steps:
            async for _ in steps:
                count += 1
                if count == 3:
                    await anyio.to_thread.run_sync(mosquitto.restart)
        await on_trial(url, "2.0.0")


async def test_who_stops_a_push_may_begin_another_at_once(url: str, shop: Shop, tmp_path: Path) -> None:
    """However it was stopped: left early, cancelled, or the process interrupted."""
    image = shop.image("2.0.0", 8_000_000)
    with Serving("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url):
        async with aclosing(push(image, url)) as steps:
            await anext(steps)
            await anext(steps)
        with anyio.CancelScope() as scope:
            async for step in push(image, url):
                if step.sent:
                    scope.cancel()
        assert scope.cancelled_caught
        process = await anyio.open_process([*PROGRAM, "push", str(image), url], stderr=None)
        assert process.stdout
        assert b"10 %" in await process.stdout.receive()
        process.send_signal(signal.SIGINT)
        await process.aclose()
        assert process.returncode == 130
        for number in (signal.SIGTERM, signal.SIGHUP):
            process = await anyio.open_process([*PROGRAM, "push", str(image), url], stderr=None)
            assert process.stdout
            assert b"10 %" in await process.stdout.receive()
            process.send_signal(number)
            await process.aclose()
            assert process.returncode == 128 + number
        steps_seen = [step async for step in push(image, url)]
        assert not any(step.waiting for step in steps_seen)
        await on_trial(url, "2.0.0")
