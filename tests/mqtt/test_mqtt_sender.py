"""The sender over a real broker, against a small device that does as a test pleases."""

import asyncio
import io
import os
import ssl
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest
from mosquitto import Mosquitto
from small_device import MqttDevice, device

from mgota import errors
from mgota.core.rpc import COMMIT, ROLLBACK, STATUS, UPDATE, UPLOAD, Request, presence, read_chunk
from mgota.testing import Fault, Way, fault_proxy
from mgota.transports.mqtt import talk
from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.connection import connected
from mgota.transports.mqtt.sender import CHUNK, Image, Progress, Remote, push

pytestmark = [pytest.mark.asyncio, pytest.mark.program("mosquitto")]

IMAGE = os.urandom(1_000_003)
SMALL = os.urandom(20_000)


@pytest.fixture
def url(mosquitto: Mosquitto) -> str:
    return f"{mosquitto.url}/site/gateway-7"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "ANSWER", 0.3)


async def send(image: Image, url: str, **options: Any) -> list[Progress]:
    with anyio.fail_after(60):
        async with aclosing(push(image, url, **options)) as steps:
            return [step async for step in steps]


def uploads(found: MqttDevice) -> list[Request]:
    return [request for request in found.requests if request.method in {UPLOAD, UPDATE}]


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_an_image_arrives_in_chunks_of_16_kib_and_its_progress_is_told(
    url: str, tmp_path: Path, version: str
) -> None:
    (tmp_path / "fw").write_bytes(IMAGE)
    async with device(url) as found:
        steps = await send(tmp_path / "fw", url, version=version)
        assert found.installed == IMAGE
    size = len(IMAGE)
    assert steps[0] == Progress(0, size)
    assert steps[-1] == Progress(size, size)
    assert [step.sent for step in steps] == sorted({step.sent for step in steps})
    assert len(steps) >= size // talk.STEP
    chunks = [read_chunk(request) for request in uploads(found)]
    assert {len(chunk.data) for chunk in chunks[:-2]} == {CHUNK}
    assert (chunks[-1].offset, chunks[-1].data) == (size, b"")
    assert len({chunk.session for chunk in chunks}) == 1
    assert found.begun == 1
    assert len(chunks) == size // CHUNK + 2, "nothing was sent twice"


@pytest.mark.parametrize("image", [SMALL, io.BytesIO(SMALL)], ids=["bytes", "file"])
async def test_any_image_and_any_window(url: str, image: Image) -> None:
    async with device(url) as found:
        await send(image, url, window=1, chunk=999)
        assert found.installed == SMALL


async def test_images_that_are_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(errors.EmptyImageError):
        await send(b"", url)
    with pytest.raises(errors.ConfigError, match="cannot be read"):
        await send(tmp_path / "missing", url)

    class Shrinking(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            return super().read(10)

    async with device(url):
        with pytest.raises(errors.ConfigError, match="shorter"):
            await send(Shrinking(SMALL), url)


@pytest.mark.parametrize("options", [{"window": 0}, {"chunk": 0}, {"chunk": 1 << 20}])
async def test_options_that_make_no_sense_are_told_at_once(options: dict[str, int]) -> None:
    with pytest.raises(errors.ConfigError):
        Remote("mqtt://nobody/a/b", **options)  # type: ignore[arg-type]
    with pytest.raises(errors.ConfigError):
        Remote("http://nobody/a/b")


async def test_a_broker_that_restarts_in_the_middle(mosquitto: Mosquitto, url: str) -> None:
    async with device(url) as found:
        seen = []
        async with aclosing(push(IMAGE, url)) as steps:
            async for step in steps:
                seen.append(step.sent)
                if len(seen) == 2:
                    await anyio.to_thread.run_sync(mosquitto.restart)
        assert found.installed == IMAGE
        assert (found.begun, found.connections) == (1, 2)
        assert [r.method for r in found.requests].count(STATUS) >= 2
        assert seen == sorted(seen)


async def test_a_device_that_reconnects_in_the_middle_goes_on_from_where_it_was(url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        if len(found.requests) == 20:
            await found.announce()
        return len(found.requests) not in range(15, 20)

    async with device(url, hook=hook) as found:
        await send(IMAGE, url)
        assert found.installed == IMAGE
        assert found.begun == 1


async def test_a_device_that_restarts_in_the_middle_gets_it_from_0(url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        if len(found.requests) == 20:
            found.restart()
            await found.announce()
        return len(found.requests) != 20

    async with device(url, hook=hook) as found:
        seen = [step.sent for step in await send(IMAGE, url)]
        assert found.installed == IMAGE
        assert found.begun == 2
        assert seen[-1] == len(IMAGE)


@pytest.mark.parametrize("lost", [7, 64])
async def test_what_is_lost_is_sent_again(url: str, lost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle a gap tells at once; the last answer is missed only by silence."""
    monkeypatch.setattr("mgota.core.rpc_window.RETRY", 0.1)

    async def hook(found: MqttDevice, _: Request) -> bool:
        return len(found.requests) != lost

    async with device(url, hook=hook) as found:
        await send(IMAGE, url)
        assert found.installed == IMAGE
        assert (found.begun, sum(found.written)) == (1, len(IMAGE))


async def test_a_device_that_restarted_with_the_image_took_it(url: str) -> None:
    """The answer to the end is lost in the reset that it leads to."""

    async def hook(found: MqttDevice, request: Request) -> bool:
        if request.params.get("offset") == len(SMALL):
            found.answer_frame(request)
            found.restart()
            await found.announce()
            return False
        return True

    async with device(url, hook=hook) as found:
        await send(SMALL, url)
        assert found.installed == SMALL
        assert found.begun == 1


async def test_a_device_that_restarted_and_does_not_run_it_is_no_success(url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        if request.params.get("offset") == len(SMALL):
            found.restart()
            found.outcome = "rolled_back"
            await found.announce()
            return False
        return True

    async with device(url, hook=hook):
        with pytest.raises(errors.TransferError, match="does not run the image: rolled_back"):
            await send(SMALL, url)


async def test_of_two_senders_one_is_told_that_the_device_is_busy(url: str) -> None:
    async with device(url) as found:
        async with aclosing(push(IMAGE, url)) as first:
            await anext(first)
            assert (await anext(first)).sent > 0
            with pytest.raises(errors.BusyError, match="another update"):
                await send(SMALL, url)
            async for _ in first:
                pass
        assert found.installed == IMAGE


async def test_a_refusal_is_the_devices_own_line(url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        if request.params.get("offset") == 0:
            await found.refuse(request, "no trusted key made this signature")
            return False
        return True

    async with device(url, hook=hook):
        with pytest.raises(errors.RejectedError, match=r"^no trusted key made this signature$"):
            await send(SMALL, url)


async def test_who_stops_early_leaves_no_task_and_no_connection(mosquitto: Mosquitto, url: str) -> None:
    async with device(url):
        async with aclosing(push(IMAGE, url)) as steps:
            await anext(steps)
        with anyio.move_on_after(0.05) as scope:
            await send(IMAGE * 20, url)
        assert scope.cancelled_caught
    await anyio.sleep(0.05)
    assert mosquitto.log.count("New client connected") == mosquitto.log.count("disconnected")


# --- who is there -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
async def test_a_topic_that_nobody_listens_to(url: str) -> None:
    for options in ({}, {"stop_and_wait": True}):
        with pytest.raises(errors.TransferError, match="nobody answers on site/gateway-7, and no device ever"):
            await send(SMALL, url, **options)
    with pytest.raises(errors.TransferError, match="nobody answers"):
        await Remote(url).status()


@pytest.mark.usefixtures("impatient")
async def test_a_device_that_is_offline(url: str) -> None:
    broker = Broker.from_url(url)
    async with connected(broker, lambda _: None) as link:
        await link.publish(broker.topic("status"), presence(online=False, version="1"), qos=1, retain=True)
    with pytest.raises(errors.TransferError, match="the device site/gateway-7 is offline"):
        await send(SMALL, url)
    with pytest.raises(errors.TransferError, match="is offline"):
        await Remote(url).commit()


@pytest.mark.parametrize("single", [False, True])
async def test_a_device_that_comes_meanwhile(url: str, single: bool) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: send(SMALL, url, stop_and_wait=single))
        await anyio.sleep(0.1)
        async with device(url) as found:
            with anyio.fail_after(10):
                while found.installed is None:
                    await anyio.sleep(0.01)
            assert found.installed == SMALL
            await anyio.sleep(0.05)


async def test_a_device_that_says_it_is_there_and_is_silent(url: str) -> None:
    async def hook(*_: object) -> bool:
        return False

    async with device(url, hook=hook):
        with pytest.raises(errors.TransferError, match=r"is online but did not answer within 0\.3 s"):
            await send(SMALL, url, timeout=0.3)


async def test_a_device_that_falls_silent_in_the_middle(url: str) -> None:
    async def hook(found: MqttDevice, _: Request) -> bool:
        return len(found.requests) < 10

    async with device(url, hook=hook):
        with pytest.raises(errors.StalledError, match=r"took nothing for 0\.3 s"):
            await send(IMAGE, url, timeout=0.3)


async def test_a_broker_that_is_not_there_or_does_not_come_back(mosquitto: Mosquitto, url: str) -> None:
    async with device(url), aclosing(push(IMAGE, url, timeout=0.5)) as steps:
        await anext(steps)
        await anext(steps)
        await anyio.to_thread.run_sync(mosquitto.stop)
        with pytest.raises(errors.StalledError, match=r"broker was away for 0\.5 s"):
            async for _ in steps:
                pass
    with pytest.raises(errors.TransferError, match="cannot be reached"):
        await send(SMALL, url)
    with pytest.raises(errors.TransferError, match="cannot be reached"):
        await Remote(url).status()


async def test_passwords(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", users={"joe": "s3cret"}) as mosquitto:
        url = f"{mosquitto.url}/site/7"
        async with device(url.replace("//", "//joe:s3cret@")) as found:
            with pytest.raises(errors.ConfigError, match="does not let us in") as caught:
                await send(SMALL, url, user=("joe", "wr0ng"))
            assert "wr0ng" not in str(caught.value)
            await send(SMALL, url, user=("joe", "s3cret"))
            assert found.installed == SMALL


async def test_tls_with_a_certificate(tmp_path: Path, pki: Path) -> None:
    with Mosquitto(tmp_path / "m", pki=pki, client_certificates=True) as mosquitto:
        async with device(f"{mosquitto.url}/site/7") as found:
            context = ssl.create_default_context(cafile=pki / "ca.pem")
            with pytest.raises(errors.TransferError):
                await send(SMALL, f"{mosquitto.tls_url}/site/7", ssl_context=context)
            context.load_cert_chain(pki / "client.pem")
            await send(IMAGE, f"{mosquitto.tls_url}/site/7", ssl_context=context)
            assert found.installed == IMAGE


@pytest.mark.parametrize("effect", [Fault.cut, Fault.reset])
async def test_connections_that_break_again_and_again(mosquitto: Mosquitto, url: str, effect: Any) -> None:
    """Each one carries some of the image before it breaks."""
    script = [[effect(at, Way.UP)] for at in (60_000, 130_000, 1, 200_000, 400_000)]
    async with (
        device(url) as found,
        fault_proxy("127.0.0.1", mosquitto.port, script) as proxy,
    ):
        await send(IMAGE, f"mqtt://127.0.0.1:{proxy.port}/site/gateway-7")
        assert found.installed == IMAGE
        assert found.begun == 1


# --- questions --------------------------------------------------------------------------------------------------------


async def test_status_commit_and_rollback(url: str) -> None:
    async with device(url) as found:
        remote = Remote(url)
        await send(SMALL, url)
        status = await remote.status()
        assert status["image"]["size"] == len(SMALL)
        assert not set(status) & {"session", "next", "total"}
        await remote.commit(sha256="ab" * 32)
        await remote.rollback(sha256="cd" * 32)
        await remote.commit()
        await remote.rollback()
    assert [(r.method, r.params) for r in found.requests[-4:]] == [
        (COMMIT, {"image": "ab" * 32}),
        (ROLLBACK, {"image": "cd" * 32}),
        (COMMIT, {}),
        (ROLLBACK, {}),
    ]


async def test_a_commit_is_sent_once(url: str) -> None:
    """A device that comes back might have done it already."""

    async def hook(found: MqttDevice, request: Request) -> bool:
        again = request.method == STATUS and len(found.requests) > 1
        if not again:
            await found.announce()
        return again

    async with device(url, hook=hook) as found:
        assert "image" in await Remote(url).status()
        assert [r.method for r in found.requests] == [STATUS, STATUS]
        with pytest.raises(errors.TransferError, match="did not answer"):
            await Remote(url, timeout=0.3).rollback()
        assert [r.method for r in found.requests] == [STATUS, STATUS, ROLLBACK]


@pytest.mark.parametrize("result", ["ok", {"state": 5}, None])
async def test_a_status_that_makes_no_sense(url: str, result: object) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        await found.say(b"garbage")
        await found.say(b'{"id": 0, "result": "ok"}')
        await found.reply(request, result)
        return False

    async with device(url, hook=hook):
        with pytest.raises(errors.TransferError, match="no mgota device"):
            await Remote(url).status()


# --- devices of Mongoose ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [(UPLOAD,), (UPDATE,)])
async def test_one_chunk_at_a_time_under_either_name(url: str, methods: tuple[str, ...]) -> None:
    async with device(url, methods=methods, says=False) as found:
        steps = await send(SMALL, url, stop_and_wait=True)
        assert found.installed == SMALL
    chunks = [read_chunk(request) for request in uploads(found) if request.method in methods]
    assert [len(chunk.data) for chunk in chunks] == [4096, 4096, 4096, 4096, 3616, 0]
    assert {chunk.session for chunk in chunks} == {None}
    assert steps[-1] == Progress(len(SMALL), len(SMALL))


async def test_without_stop_and_wait_such_a_device_is_told_apart(url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        await found.refuse(request, "no such method", code=-32601)
        return False

    async with device(url, hook=hook):
        with pytest.raises(errors.ConfigError, match="stop-and-wait"):
            await send(SMALL, url)


async def test_a_broker_that_restarts_under_stop_and_wait(mosquitto: Mosquitto, url: str) -> None:
    async with device(url) as found:
        async with aclosing(push(IMAGE, url, stop_and_wait=True)) as steps:
            await anext(steps)
            await anext(steps)
            await anyio.to_thread.run_sync(mosquitto.restart)
            async for _ in steps:
                pass
        assert found.installed == IMAGE
        assert found.begun == 2


async def test_an_answer_to_the_end_that_may_be_lost_is_no_success(mosquitto: Mosquitto, url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        if request.params.get("offset") == len(SMALL):
            await anyio.to_thread.run_sync(mosquitto.restart)
        return True

    async with device(url, hook=hook):
        with pytest.raises(errors.TransferError, match="see which version the device runs"):
            await send(SMALL, url, stop_and_wait=True)


async def test_a_watch_that_was_asked_for_before_the_socket_closed_is_none(url: str) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    async with connected(Broker.from_url(url), lambda _: None) as link:
        inner: Any = link._client._client
        inner.on_socket_register_write(inner, None, inner.socket())
        inner._sock_close()
        await anyio.sleep(0.05)
    assert not complaints
