"""A device on a real broker: the dialect of Mongoose's tools, sessions, and everything that goes wrong on the way."""

import contextlib
import hashlib
import json
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiomqtt
import anyio
import pytest
from fake_device import FakeDevice
from mosquitto import Mosquitto

from mgota.core.geometry import Slot
from mgota.core.history import MAX_HISTORY, Update, encode_updates
from mgota.core.receive import Patience
from mgota.core.record import State
from mgota.core.rpc import Chunk, encode_request, upload_request
from mgota.errors import ConfigError, TransferError
from mgota.history import History
from mgota.linux.story import FileStory
from mgota.session import OtaSession
from mgota.testing.proxy import Fault, fault_proxy
from mgota.transports.mqtt import serve
from mgota.transports.mqtt.broker import Broker, Version
from mgota.transports.mqtt.connection import Link, Message, connected

pytestmark = [pytest.mark.asyncio, pytest.mark.program("mosquitto")]

IMAGE = bytes(range(256)) * 40  # 10240: two and a half chunks of 4096
SESSION = "0123456789abcdef"


class Peer:
    """Somebody with a broker: sends requests, collects replies and presence."""

    def __init__(self, broker: Broker, link: Link, messages: list[Message]) -> None:
        self.broker = broker
        self.link = link
        self.messages = messages
        self._id = 1000

    async def post(self, method: str, params: object = None, *, qos: int = 1, retain: bool = False) -> int:
        self._id += 1
        frame = {"id": self._id, "method": method} | ({} if params is None else {"params": params})
        await self.raw(json.dumps(frame).encode(), qos=qos, retain=retain)
        return self._id

    async def raw(self, frame: bytes, *, qos: int = 1, retain: bool = False) -> None:
        await self.link.publish(self.broker.topic("rx"), frame, qos=qos, retain=retain)

    def replies(self) -> list[dict[str, Any]]:
        topic = self.broker.topic("tx")
        return [json.loads(message.payload) for message in self.messages if message.topic == topic]

    async def reply(self, number: int, seconds: float = 10) -> dict[str, Any]:
        start = b'{"id":%d,' % number
        with anyio.fail_after(seconds):
            while True:
                for message in reversed(self.messages):
                    if message.payload.startswith(start):
                        found: dict[str, Any] = json.loads(message.payload)
                        return found
                await anyio.sleep(0.002)

    async def ask(self, method: str, params: object = None) -> dict[str, Any]:
        return await self.reply(await self.post(method, params))

    async def chunk(
        self, offset: int, data: bytes, *, total: int = len(IMAGE), session: str | None = None, name: str = "ota.upload"
    ) -> dict[str, Any]:
        params = {"total": total, "offset": offset, "chunk": b64encode(data).decode()}
        return await self.ask(name, params | ({"session": session} if session else {}))

    async def upload(self, image: bytes, *, name: str = "ota.upload", size: int = 4096) -> None:
        """As Mongoose's tutorial does: one at a time, without a session."""
        for offset in range(0, len(image), size):
            answer = await self.chunk(offset, image[offset : offset + size], total=len(image), name=name)
            assert answer["result"] == "ok"

    @property
    def presence(self) -> list[dict[str, Any]]:
        topic = self.broker.topic("status")
        return [json.loads(message.payload)["params"] for message in self.messages if message.topic == topic]

    async def sees(self, status: str, count: int = 1) -> dict[str, Any]:
        with anyio.fail_after(10):
            while [each["status"] for each in self.presence].count(status) < count:
                await anyio.sleep(0.005)
        return self.presence[-1]


@contextlib.asynccontextmanager
async def peer(url: str, **options: Any) -> AsyncIterator[Peer]:
    broker = Broker.from_url(url, **options)
    messages: list[Message] = []
    async with connected(broker, messages.append) as link:
        for direction in ("tx", "status"):
            await link.subscribe(broker.topic(direction))
        yield Peer(broker, link, messages)


@contextlib.asynccontextmanager
async def bench(mosquitto: Mosquitto, fake: FakeDevice, **options: Any) -> AsyncIterator[Peer]:
    """A device and a peer, both online."""
    url = f"{mosquitto.url}/mg/123"
    async with serve(fake.device, url, **options) as served, peer(url) as other:
        await served.online()
        yield other


async def activated(fake: FakeDevice, image: bytes = IMAGE) -> None:
    with anyio.fail_after(10):
        await fake.reset.happened.wait()
    assert fake.staged == image
    assert fake.flash.selected is Slot.B
    assert fake.state.record
    assert fake.state.record.state is State.TESTING


@pytest.mark.parametrize("name", ["ota.update", "ota.upload"])
async def test_the_tutorials_upload_with_an_empty_last_chunk(mosquitto: Mosquitto, name: str) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:
        await tool.upload(IMAGE, name=name)
        assert fake.reset.count == 0
        assert (await tool.chunk(len(IMAGE), b"", name=name)) == {"id": 1004, "result": "ok"}
        await activated(fake)
    assert fake.flash.chunks == [4096, 4096, 2048]


async def test_the_dashboards_upload_ends_with_junk(mosquitto: Mosquitto) -> None:
    """As Mongoose 7.22's dashboard does it: ids are texts, QoS 0, and what it sends behind the last piece is the text
    of a JavaScript value that is not there."""
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:

        async def rpc(number: int, offset: int, data: bytes) -> dict[str, Any]:
            params = {"offset": offset, "total": len(IMAGE), "chunk": b64encode(data).decode()}
            await tool.raw(
                json.dumps({"method": "ota.upload", "id": f"k3x9zq{number}", "params": params}).encode(), qos=0
            )
            with anyio.fail_after(10):
                while not (found := [each for each in tool.replies() if each["id"] == f"k3x9zq{number}"]):
                    await anyio.sleep(0.002)
            return found[0]

        for number in range(3):
            answer = await rpc(number, number * 4096, IMAGE[number * 4096 : number * 4096 + 4096])
            assert answer["result"] == "ok"
        for number in (3, 4):  # it would go on for as long as it is answered ok
            answer = await rpc(number, number * 4096, b"undefined")
            assert answer["error"]["code"] == 1
            assert "complete" in answer["error"]["message"]
        await activated(fake)


async def test_silence_after_a_complete_image_activates_it(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake, patience=Patience(silence=0.2)) as tool:
        await tool.upload(IMAGE)
        await activated(fake)


async def test_on_finished_is_told_and_the_replies_are_the_dialects(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    told: list[object] = []

    async def finished(result: object) -> object:
        told.append(result)
        return "something else"

    async with bench(mosquitto, fake, on_finished=finished) as tool:
        await tool.chunk(0, IMAGE[:10], total=99)
        assert (await tool.chunk(10, b"", total=99))["error"]["message"] == "only 10 of 99 bytes came"
        await tool.upload(IMAGE)
        assert (await tool.chunk(len(IMAGE), b""))["result"] == "ok"
        await activated(fake)
    assert [type(each).__name__ for each in told] == ["TruncatedError", "VerifiedImage"]


async def test_a_session_has_its_own_replies(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:
        assert (await tool.chunk(0, IMAGE[:5000], session=SESSION))["result"] == {"session": SESSION, "next": 5000}
        gap = await tool.chunk(9000, IMAGE[9000:], session=SESSION)
        assert gap["error"] == {
            "code": 1,
            "message": "expected offset 5000, got 9000",
            "data": {"session": SESSION, "next": 5000, "kind": "transfer"},
        }
        told = (await tool.ask("ota.status", {"session": SESSION}))["result"]
        assert (told["session"], told["next"], told["total"]) == (SESSION, 5000, len(IMAGE))
        assert told["update"] == {"received": 5000, "size": len(IMAGE)}
        other = (await tool.ask("ota.status", {"session": "x" * 16}))["result"]
        assert (other["session"], other["next"], other["total"]) == (None, None, None)
        assert (await tool.ask("ota.status"))["result"]["session"] == SESSION
        assert (await tool.chunk(0, b"x" * 10))["error"]["code"] == 2
        sealed = await tool.chunk(5000, IMAGE[5000:], session=SESSION)
        assert sealed["result"] == {"session": SESSION, "next": len(IMAGE), "sealed": True}
        end = await tool.chunk(len(IMAGE), b"", session=SESSION)
        assert end["result"] == {"session": SESSION, "next": len(IMAGE), "sealed": True, "activated": True}
        await activated(fake)


async def test_duplicates_gaps_and_a_foreign_client_do_no_harm(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:
        for offset in (0, 0, 4096, 4096, 4096):
            assert (await tool.chunk(offset, IMAGE[offset : offset + 4096]))["result"] == "ok"
        assert "expected offset 8192" in (await tool.chunk(9999, IMAGE[9999:]))["error"]["message"]
        assert (await tool.chunk(8192, IMAGE[8192:], total=999999))["error"]["code"] == 1  # another one's upload
        assert (await tool.chunk(0, b"x" * 16, session=SESSION))["error"]["code"] == 2
        for frame in (b"", b"garbage", b"[" * 60_000, b"{}", json.dumps({"id": 1, "method": "nope"}).encode()):
            await tool.raw(frame)
        assert (await tool.chunk(8192, IMAGE[8192:]))["result"] == "ok"
        assert (await tool.chunk(10240, b""))["result"] == "ok"
        await activated(fake)
        codes = [reply["error"]["code"] for reply in tool.replies() if "error" in reply]
        assert codes == [1, 1, 2, -32700, -32700, -32700, -32600, -32601]
    assert fake.flash.chunks == [4096, 4096, 2048]


async def test_a_differing_repeat_ends_the_upload_and_the_next_one_works(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:
        await tool.chunk(0, IMAGE[:4096])
        await tool.chunk(4096, IMAGE[4096:8192])
        assert "differs" in (await tool.chunk(4096, b"x" * 4096))["error"]["message"]
        assert "differs" in (await tool.chunk(8192, IMAGE[8192:]))["error"]["message"]
        assert "differs" in (await tool.chunk(10240, b""))["error"]["message"]
        await tool.upload(IMAGE)
        await tool.chunk(10240, b"")
        await activated(fake)


async def test_retained_commands_are_ignored(mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeDevice()
    fake.prove(b"the proven one before")
    async with peer(f"{mosquitto.url}/mg/123") as attacker:
        await attacker.post("ota.rollback", retain=True)
    async with bench(mosquitto, fake) as tool:
        assert (await tool.ask("ota.status"))["result"]["state"] == "CONFIRMED"
        assert fake.reset.count == 0
    assert "retained" in caplog.text
    assert fake.untouched()


async def test_commit_and_rollback_are_answered_first(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    fake.on_trial()
    async with bench(mosquitto, fake) as tool:
        wrong = await tool.ask("ota.commit", {"image": "0" * 64})
        assert wrong["error"] == {"code": 1, "message": "another image runs than the one that was meant"}
        assert (await tool.ask("ota.commit", {"image": hashlib.sha256(fake.old).hexdigest()}))["result"] == "ok"
        with anyio.fail_after(5):
            while (await tool.ask("ota.status"))["result"]["outcome"] != "committed":
                await anyio.sleep(0.01)
        assert (await tool.ask("ota.commit"))["result"] == "ok"  # again: nothing to do
        assert (await tool.ask("ota.rollback", {"image": "nonsense"}))["error"]["code"] == -32602
        assert (await tool.ask("ota.rollback"))["result"] == "ok"
        with anyio.fail_after(5):
            await fake.reset.happened.wait()
        assert fake.flash.selected is Slot.B


async def test_what_cannot_be_rolled_back_says_why(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    fake.prove()
    async with bench(mosquitto, fake) as tool:
        answer = await tool.ask("ota.rollback")
        assert (answer["error"]["code"], "proven" in answer["error"]["message"]) == (1, True)
        assert fake.reset.count == 0


async def test_notifications_are_carried_out_and_not_answered(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:
        for offset in (0, 4096, 8192, 10240):
            request = upload_request(None, Chunk(len(IMAGE), offset, IMAGE[offset : offset + 4096]))
            await tool.raw(encode_request(request))
        await tool.raw(b'{"method":"nope"}')
        await tool.raw(b'{"id":1,"result":"ok"}')  # somebody's reply that went astray
        await activated(fake)
        await tool.ask("ota.status")
        assert len(tool.replies()) == 1


@pytest.mark.parametrize("version", ["3.1.1", "5"])
async def test_presence_online_and_the_last_will(mosquitto: Mosquitto, version: Version) -> None:
    fake = FakeDevice()
    fake.prove()
    url = f"{mosquitto.url}/mg/123"
    async with peer(url) as watcher:
        async with serve(fake.device, url, version=version) as served:
            await served.online()
            assert await watcher.sees("online") == {"status": "online", "firmware_version": ""}
        assert await watcher.sees("offline") == {"status": "offline", "firmware_version": ""}
    async with peer(url) as late:
        await late.sees("offline")
        assert all(message.retain for message in late.messages)
        # A line that breaks: the broker says it.
        async with fault_proxy("127.0.0.1", mosquitto.port, []) as proxy:
            away = f"mqtt://127.0.0.1:{proxy.port}/mg/123"
            async with serve(fake.device, away, version=version) as served:
                await served.online()
                await late.sees("online")
                proxy.break_all()
                await late.sees("offline", 2)
                await late.sees("online", 2)  # and it comes back by itself


async def test_a_broker_restart_in_the_middle(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    url = f"{mosquitto.url}/mg/123"
    async with serve(fake.device, url) as served:
        async with peer(url) as tool:
            await served.online()
            await tool.chunk(0, IMAGE[:4096], session=SESSION)
            await tool.chunk(4096, IMAGE[4096:8192], session=SESSION)
        mosquitto.restart()
        async with peer(url) as tool:
            assert (await tool.sees("online"))["status"] == "online"
            told = (await tool.ask("ota.status", {"session": SESSION}))["result"]
            assert (told["session"], told["next"]) == (SESSION, 8192)
            await tool.chunk(4096, IMAGE[4096:8192], session=SESSION)  # in flight when it broke
            await tool.chunk(8192, IMAGE[8192:], session=SESSION)
            await tool.chunk(10240, b"", session=SESSION)
            await activated(fake)
    assert fake.flash.chunks == [4096, 4096, 2048]


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_two_devices_with_one_url_are_named_as_the_trouble(
    mosquitto: Mosquitto, version: Version, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgota.transports.mqtt.device.backoff", lambda _: 0.01)
    url = f"{mosquitto.url}/mg/123"
    async with serve(FakeDevice().device, url, version=version), serve(FakeDevice().device, url, version=version):
        with anyio.fail_after(10):
            while f"is there another device at {url}?" not in caplog.text:
                await anyio.sleep(0.01)


async def test_a_broker_that_comes_and_goes_is_no_second_device(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgota.transports.mqtt.device.backoff", lambda _: 0.01)
    async with serve(FakeDevice().device, f"{mosquitto.url}/mg/123") as served:
        for count in (1, 2):
            await served.online()
            await anyio.to_thread.run_sync(mosquitto.restart)
            with anyio.fail_after(10):
                while caplog.text.count("the broker broke") < count:
                    await anyio.sleep(0.005)
        await served.online()
    assert "another device" not in caplog.text


async def test_a_broker_that_is_down_at_the_start_is_no_error(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    mosquitto.stop()
    fake = FakeDevice()
    async with serve(fake.device, f"{mosquitto.url}/mg/123") as served:
        with anyio.fail_after(5):
            while "the next try is in" not in caplog.text:
                await anyio.sleep(0.01)
        assert not served.connected
        mosquitto.start()
        with anyio.fail_after(10):
            await served.online()
        assert served.connected


async def test_a_hundred_sessions_in_a_row(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake, activate=False) as tool:
        for number in range(100):
            image = number.to_bytes(4, "big") * 300
            session = f"session-number-{number:04}" if number % 4 > 1 else None
            for offset in range(0, len(image), 500):
                data = image[offset : offset + 500]
                if number % 3 == 0 and offset == 500:  # a gap
                    await tool.chunk(offset + 100, data, total=len(image), session=session)
                assert "result" in await tool.chunk(offset, data, total=len(image), session=session)
                if number % 7 == 6:  # a duplicate
                    assert "result" in await tool.chunk(offset, data, total=len(image), session=session)
            if number % 20 == 4:
                continue  # without a session: its sender went away, and the next one begins anew
            assert "result" in await tool.chunk(len(image), b"", total=len(image), session=session)
            assert fake.staged == image
            assert "result" in await tool.chunk(len(image), b"", total=len(image), session=session)
    assert fake.untouched()
    assert fake.flash.opened == 100


async def test_a_session_whose_sender_went_away_frees_the_device(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake, patience=Patience(idle=0.3)) as tool:
        assert "result" in await tool.chunk(0, IMAGE, session=SESSION)  # sealed, and never ended
        assert (await tool.chunk(0, IMAGE))["error"]["code"] == 2
        with anyio.fail_after(20):
            while "error" in await tool.chunk(0, IMAGE):
                await anyio.sleep(0.05)
        assert (await tool.ask("ota.status"))["result"]["update"] is not None


async def test_one_update_at_a_time_whatever_way_it_comes(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with bench(mosquitto, fake) as tool:
        async with OtaSession(fake.device, size=4):
            answer = await tool.chunk(0, IMAGE[:4096])
            assert (answer["error"]["code"], "under way" in answer["error"]["message"]) == (2, True)
        await tool.upload(IMAGE)
        assert (await tool.ask("ota.rollback"))["error"]["code"] == 2


async def test_an_acknowledgement_comes_after_the_flash_write(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    gate = anyio.Event()
    fake.flash.on_write = gate.wait
    async with bench(mosquitto, fake) as tool:
        number = await tool.post("ota.upload", {"total": 3, "offset": 0, "chunk": "YWJj"})
        await anyio.sleep(0.1)
        assert tool.replies() == []
        gate.set()
        assert (await tool.reply(number))["result"] == "ok"


async def test_what_waits_is_bounded(mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeDevice(room=6_000_000)
    gate = anyio.Event()
    fake.flash.on_write = gate.wait
    async with bench(mosquitto, fake) as tool:
        for number in range(100):
            await tool.raw(encode_request(upload_request(number, Chunk(6_000_000, number * 60_000, bytes(60_000)))))
        await tool.raw(b" " * 10_000_000)  # as one message
        gate.set()
        await tool.reply(0)
        await tool.ask("ota.status")
        assert 5 < len(tool.replies()) < 20
    assert caplog.text.count("dropped") == 1


async def test_an_upload_through_a_bad_line(mosquitto: Mosquitto) -> None:
    """Its connection is cut again and again; the sender asks for the status and goes on."""
    fake = FakeDevice(room=1 << 18)
    image = bytes(byte * 31 % 256 for byte in range(200_000))
    cuts = [[Fault.cut(at)] for at in (30_000, 60_000, 90_000)]
    async with fault_proxy("127.0.0.1", mosquitto.port, cuts) as proxy:
        away, near = f"mqtt://127.0.0.1:{proxy.port}/mg/123", f"{mosquitto.url}/mg/123"
        async with serve(fake.device, away), peer(near) as tool:
            offset = 0
            while offset < len(image):
                await tool.sees("online")
                chunk = b64encode(image[offset : offset + 8192]).decode()
                params = {"total": len(image), "offset": offset, "chunk": chunk, "session": SESSION}
                number = await tool.post("ota.upload", params)
                with contextlib.suppress(TimeoutError):
                    offset = (await tool.reply(number, 1))["result"]["next"]
            assert (await tool.chunk(offset, b"", total=len(image), session=SESSION))["result"]["activated"]
            await activated(fake, image)


async def test_plain_replies_go_out_at_qos_1_and_those_to_a_session_at_0(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    seen: list[int] = []
    async with (
        bench(mosquitto, fake, activate=False) as tool,
        aiomqtt.Client("127.0.0.1", mosquitto.port) as raw,
    ):
        await raw.subscribe("mg/123/tx", qos=1)
        await tool.chunk(0, b"abc", total=3)
        await tool.chunk(3, b"", total=3)
        await tool.chunk(0, b"abc", total=3, session=SESSION)
        await tool.chunk(3, b"", total=3, session=SESSION)
        await tool.ask("ota.status")
        with anyio.fail_after(10):
            async for message in raw.messages:
                seen.append(message.qos)
                if len(seen) == 5:
                    break
    assert seen == [1, 1, 0, 1, 1]  # the fourth said "activated": who resets next cannot be asked again


async def test_a_line_that_goes_silent_is_noticed(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()
    async with fault_proxy("127.0.0.1", mosquitto.port, [[Fault.stall(14)]]) as proxy:  # behind the last of PUBACK
        broker = Broker.from_url(f"mqtt://127.0.0.1:{proxy.port}/mg/123", keepalive=1)
        async with serve(fake.device, broker) as served, peer(f"{mosquitto.url}/mg/123") as tool:
            with anyio.fail_after(30):
                await served.online()
                while proxy.connections < 2:
                    await anyio.sleep(0.05)
                await served.online()
            assert (await tool.ask("ota.status"))["result"]["state"] == "CONFIRMED"


async def test_a_reply_that_is_lost_is_asked_for_again(mosquitto: Mosquitto) -> None:
    """The line breaks between the flash write and the reply: the piece comes again, and is written once."""
    fake = FakeDevice()
    gate, writing = anyio.Event(), anyio.Event()

    async def slow() -> None:
        writing.set()
        await gate.wait()

    fake.flash.on_write = slow
    async with fault_proxy("127.0.0.1", mosquitto.port) as proxy:
        away, near = f"mqtt://127.0.0.1:{proxy.port}/mg/123", f"{mosquitto.url}/mg/123"
        async with serve(fake.device, away) as served, peer(near) as tool:
            await served.online()
            lost = await tool.post("ota.upload", {"total": 3, "offset": 0, "chunk": "YWJj", "session": SESSION})
            await writing.wait()
            proxy.break_all()
            await tool.sees("offline")
            gate.set()
            await tool.sees("online", 2)
            again = await tool.chunk(0, b"abc", total=3, session=SESSION)
            assert again["result"] == {"session": SESSION, "next": 3, "sealed": True}
            assert not [reply for reply in tool.replies() if reply["id"] == lost]
            assert (await tool.chunk(3, b"", total=3, session=SESSION))["result"]["activated"]
            await activated(fake, b"abc")
    assert fake.flash.chunks == [3]


async def test_credentials_and_tls(tmp_path: Path, pki: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.create_default_context(cafile=pki / "ca.pem")
    context.load_cert_chain(pki / "client.pem")
    with Mosquitto(tmp_path / "m", pki=pki, client_certificates=True, users={"joe": "secret-word"}) as mosquitto:
        for version in ("3.1.1", "5"):
            fake = FakeDevice()
            user = ("joe", "secret-word")
            async with (
                serve(
                    fake.device, f"{mosquitto.tls_url}/mg/123", user=user, ssl_context=context, version=version
                ) as served,
                peer(f"{mosquitto.url}/mg/123", user=user) as tool,
            ):
                await served.online()
                await tool.upload(IMAGE)
                await tool.chunk(10240, b"")
                await activated(fake)
        fake = FakeDevice()
        async with serve(fake.device, f"{mosquitto.url}/mg/123", user=("joe", "wrong-word")) as served:
            with anyio.fail_after(5):
                while "the next try" not in caplog.text:
                    await anyio.sleep(0.01)
            assert not served.connected
    assert "secret-word" not in caplog.text
    assert "wrong-word" not in caplog.text


async def test_leaving_gives_up_what_is_under_way_and_errors_come_out_unwrapped(mosquitto: Mosquitto) -> None:
    fake = FakeDevice()

    async def breaks() -> None:
        async with bench(mosquitto, fake) as tool:
            await tool.chunk(0, IMAGE[:4096])
            assert fake.device.live.held
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await breaks()
    assert not fake.device.live.held
    assert fake.flash.aborted == 1
    with pytest.raises(ConfigError):
        await serve(fake.device, "http://x/y/z").__aenter__()


async def test_a_sender_that_gives_up_frees_the_device_at_once(mosquitto: Mosquitto) -> None:
    async with bench(mosquitto, FakeDevice()) as tool:
        assert "result" in await tool.chunk(0, IMAGE[:5000], session=SESSION)
        assert "error" in await tool.ask("ota.abort", {"session": "x" * 16})
        assert (await tool.ask("ota.status"))["result"]["next"] == 5000
        assert (await tool.ask("ota.abort", {}))["error"]["code"] == -32602
        assert (await tool.ask("ota.abort", {"session": SESSION}))["result"] == {"session": SESSION, "next": 0}
        assert (await tool.ask("ota.status"))["result"]["next"] is None
        assert (await tool.chunk(0, IMAGE[:4096]))["result"] == "ok"


async def test_the_status_has_the_last_update_that_ended(mosquitto: Mosquitto, tmp_path: Path) -> None:
    old, new = (Update(number=n, began=1, ended=2, outcome="committed", to_version=str(n)) for n in (1, 2))
    story = FileStory(tmp_path / "history", MAX_HISTORY)
    await story.store(encode_updates((old, Update(number=3, began=3))))
    fake = FakeDevice(history=History(story))
    url = f"{mosquitto.url}/mg/123"
    async with serve(fake.device, url) as served, peer(url) as other:
        await served.online()
        assert (await other.sees("online"))["last_update"] == asdict(old)
        await served.report(new)
        assert (await other.sees("online", 2))["last_update"] == asdict(new)
        served._link = None
        with pytest.raises(TransferError):
            await served.report(new)
    async with serve(fake.device, url) as served, peer(url) as other:  # after a restart, from the history
        await served.online()
        with anyio.fail_after(10):
            while (await other.sees("online")).get("last_update") != asdict(old):
                await anyio.sleep(0.005)


async def test_a_history_that_cannot_be_read_is_no_reason_to_stay_away(mosquitto: Mosquitto, tmp_path: Path) -> None:
    fake = FakeDevice(history=History(FileStory(tmp_path, MAX_HISTORY)))  # a directory
    async with bench(mosquitto, fake) as tool:
        assert "last_update" not in await tool.sees("online")
