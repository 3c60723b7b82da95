"""The connection to a broker: from a URL, with TLS and passwords, and how it ends."""

import contextlib
import gc
import ssl
import sys
from pathlib import Path

import anyio
import pytest
from fake_device import FakeDevice
from mosquitto import Mosquitto, free_ports

from mgota.core.rpc import MAX_FRAME
from mgota.errors import ConfigError, TransferError
from mgota.testing import Fault, Way, fault_proxy
from mgota.transports.mqtt import serve
from mgota.transports.mqtt.broker import MAX_PACKET, Broker, Version, backoff
from mgota.transports.mqtt.connection import Message, Will, connected

pytestmark = [pytest.mark.asyncio, pytest.mark.program("mosquitto")]


class Mailbox:
    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def wait(self, count: int = 1) -> list[Message]:
        with anyio.fail_after(10):
            while len(self.messages) < count:
                await anyio.sleep(0.005)
        return self.messages


@pytest.mark.parametrize("version", ["auto", "3.1.1", "5"])
async def test_what_is_published_is_delivered(mosquitto: Mosquitto, version: Version) -> None:
    broker = Broker.from_url(f"{mosquitto.url}/site/one/7", version=version)
    assert broker.topic("rx") == "site/one/7/rx"
    box = Mailbox()
    async with connected(broker, box.messages.append) as link:
        await link.subscribe(broker.topic("rx"))
        await link.publish(broker.topic("rx"), b"one", qos=1)
        await link.publish(broker.topic("rx"), b"two")
        await link.publish(broker.topic("rx"), b"", qos=1)
        assert await box.wait(3) == [Message("site/one/7/rx", data, retain=False) for data in (b"one", b"two", b"")]


async def test_what_was_retained_says_so(mosquitto: Mosquitto) -> None:
    broker = Broker.from_url(f"{mosquitto.url}/mg/123")
    box = Mailbox()
    async with connected(broker, box.messages.append) as link:
        await link.publish(broker.topic("status"), b"there", qos=1, retain=True)
    async with connected(broker, box.messages.append) as link:
        await link.subscribe(broker.topic("status"))
        assert await box.wait() == [Message("mg/123/status", b"there", retain=True)]


async def test_a_broker_that_goes_is_noticed_and_the_will_is_published(mosquitto: Mosquitto) -> None:
    broker = Broker.from_url(f"{mosquitto.url}/mg/123")
    box = Mailbox()
    async with connected(broker, box.messages.append) as link:
        mosquitto.stop()
        with pytest.raises(TransferError, match="broke"), anyio.fail_after(10):
            await link.closed()
    with pytest.raises(TransferError, match="cannot be reached"):
        async with connected(broker, box.messages.append):
            pass
    mosquitto.start()
    will = Will(broker.topic("status"), b"gone")
    async with connected(broker, box.messages.append) as watcher:
        await watcher.subscribe(broker.topic("status"))
        with contextlib.suppress(TransferError):
            async with (
                connected(broker, box.messages.append, will=will, identifier=broker.identifier) as first,
                # The same device again: the broker ends the first connection.
                connected(broker, box.messages.append, identifier=broker.identifier),
            ):
                with pytest.raises(TransferError), anyio.fail_after(10):
                    await first.closed()
        assert (await box.wait())[0].payload == b"gone"


async def test_who_sends_too_much_at_once_costs_no_memory(mosquitto: Mosquitto) -> None:
    """The broker keeps such a message away from who says, in MQTT 5, what it takes."""
    broker = Broker.from_url(f"{mosquitto.url}/mg/123")
    box = Mailbox()
    async with connected(broker, box.messages.append) as link:
        await link.subscribe(broker.topic("rx"))
        await link.publish(broker.topic("rx"), bytes(MAX_PACKET + 1), qos=1)
        await link.publish(broker.topic("rx"), bytes(MAX_FRAME), qos=1)
        assert [len(message.payload) for message in await box.wait()] == [MAX_FRAME]


@pytest.mark.parametrize("how", [b"\x20\x02\x00\x01", b""])
async def test_a_broker_that_does_not_speak_mqtt_5(mosquitto: Mosquitto, how: bytes) -> None:
    """It says so (MQTT 3.1.1, MQTT-3.1.2-2), or just hangs up; for 3.1.1 it is a real one."""
    asked: list[int] = []

    async def broker(client: anyio.abc.SocketStream) -> None:
        async with client:
            head = await client.receive()
            asked.append(head[head.index(b"MQTT") + 4])
            if asked[-1] == 5:
                await (client.send(how) if how else anyio.lowlevel.checkpoint())
                return
            async with await anyio.connect_tcp("127.0.0.1", mosquitto.port) as real, anyio.create_task_group() as tasks:
                await real.send(head)
                tasks.start_soon(pump, real, client)
                await pump(client, real)
                tasks.cancel_scope.cancel()

    async def pump(source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
            async for data in source:
                await sink.send(data)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, broker)
        url = f"mqtt://127.0.0.1:{port}/mg/123"
        box = Mailbox()
        for _ in range(2):  # the second time it is known
            async with connected(Broker.from_url(url), box.messages.append) as link:
                await link.subscribe("mg/123/rx")
                await link.publish("mg/123/rx", b"hello", qos=1)
                await box.wait()
        assert asked == [5, 4, 4]
        with pytest.raises((ConfigError, TransferError)):
            async with connected(Broker.from_url(url, version="5"), box.messages.append):
                pass
        assert asked == [5, 4, 4, 5]
        tasks.cancel_scope.cancel()


async def test_passwords(tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", users={"joe": "pass:word"}) as mosquitto:
        url = f"{mosquitto.url}/mg/123"
        box = Mailbox()
        for version in ("auto", "3.1.1", "5"):
            async with connected(Broker.from_url(url, user=("joe", "pass:word"), version=version), box.messages.append):
                pass
            for user in (None, ("joe", "wrong"), ("", "x")):
                with pytest.raises(ConfigError) as caught:
                    async with connected(Broker.from_url(url, user=user, version=version), box.messages.append):
                        pass
                assert "wrong" not in str(caught.value)
        async with connected(Broker.from_url(url.replace("//", "//joe:pass%3Aword@")), box.messages.append):
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_tls_and_client_certificates(tmp_path: Path, pki: Path) -> None:
    box = Mailbox()
    with Mosquitto(tmp_path / "m", pki=pki, client_certificates=True) as mosquitto:
        url = f"{mosquitto.tls_url}/mg/123"
        context = ssl.create_default_context(cafile=pki / "ca.pem")
        context.load_cert_chain(pki / "client.pem")
        broker = Broker.from_url(url, ssl_context=context)
        async with connected(broker, box.messages.append) as link:
            await link.subscribe(broker.topic("rx"))
            await link.publish(broker.topic("rx"), b"secret" * 10_000, qos=1)
            assert (await box.wait())[0].payload == b"secret" * 10_000
        with pytest.raises(TransferError, match="want a client's certificate"):
            async with connected(
                Broker.from_url(url, ssl_context=ssl.create_default_context(cafile=pki / "ca.pem")), box.messages.append
            ):
                pass
        with pytest.raises(TransferError, match="certificate"):  # the system does not trust it
            async with connected(Broker.from_url(url), box.messages.append):
                pass
    gc.collect()  # paho leaves the socket of a handshake that failed to the collector, which says so


async def test_connecting_can_be_given_up_and_leaves_nothing_behind() -> None:
    (port,) = free_ports(1)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener:  # takes the connection, and never answers
        broker = Broker.from_url(f"mqtt://127.0.0.1:{port}/mg/123", timeout=0.3)
        with anyio.move_on_after(0.1) as scope:
            async with connected(broker, print):
                pass
        assert scope.cancelled_caught
        with pytest.raises(TransferError, match="timed out"):
            async with connected(broker, print):
                pass
        with anyio.move_on_after(0) as scope:
            async with connected(broker, print):
                pass
    await anyio.sleep(0.1)  # unclosed sockets and tasks are errors here


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mqtt://",
        "mqtt://h",
        "mqtt://h/",
        "mqtt://h/device",
        "mqtt://h/root/",
        "mqtt://h//device",
        "mqtt://h/a//b",
        "mqtt://h/a/+",
        "mqtt://h/%23/b",
        "mqtt://h/$SYS/b",
        "mqtt://h/a%00/b",
        "mqtt://h/a/b?x=1",
        "mqtt://h/a/b#f",
        "mqtt://h:0/a/b",
        "mqtt://h:65536/a/b",
        "mqtt://h:x/a/b",
        "mqtt://[::1/a/b",
        "http://h/a/b",
        "mqtt://:pw@h/a/b" + "c" * 600,
    ],
)
async def test_what_is_no_url_of_a_device(url: str) -> None:
    with pytest.raises(ConfigError):
        Broker.from_url(url)


@pytest.mark.parametrize("url", ["mqtt://h/root/#", "mqtt://h/root/+", "mqtt://h/+/d", "mqtt://h/#"])
async def test_wildcards_are_named_as_what_is_wrong(url: str) -> None:
    with pytest.raises(ConfigError, match="wildcards"):
        Broker.from_url(url)
    assert Broker.from_url("mqtt://joe:a+b@h/r/d").user == ("joe", "a+b")


async def test_what_a_broker_is() -> None:
    broker = Broker.from_url("mqtts://joe:s3cret@[::1]/r/d")
    assert (broker.host, broker.port, broker.root, broker.device) == ("::1", 8883, "r", "d")
    assert broker.user == ("joe", "s3cret")
    assert "s3cret" not in repr(broker)
    assert str(broker) == "mqtts://[::1]:8883/r/d"
    assert Broker.from_url("mqtt://h/r/d").port == 1883
    assert broker.identifier == Broker.from_url("mqtt://other/r/d").identifier
    assert broker.identifier != Broker.from_url("mqtt://h/r/e").identifier
    assert len(broker.identifier) == 23
    assert broker.identifier.isalnum()
    for options in ({"version": "4"}, {"keepalive": 0}, {"timeout": 0.0}):
        with pytest.raises(ConfigError):
            Broker.from_url("mqtt://h/r/d", **options)
    with pytest.raises(ConfigError, match="mqtts"):
        Broker.from_url("mqtt://h/r/d", ssl_context=ssl.create_default_context())


async def test_waiting_grows_to_a_bound() -> None:
    assert 0.25 <= backoff(1) <= 0.5
    assert 15 <= backoff(1000) <= 30
    assert 1 <= backoff(3) <= 2


# --- without waiting --------------------------------------------------------------------------------------------------


async def test_what_is_posted_arrives_in_order_with_what_is_published(mosquitto: Mosquitto) -> None:
    broker = Broker.from_url(f"{mosquitto.url}/mg/123")
    box = Mailbox()
    async with connected(broker, box.messages.append) as link:
        await link.subscribe(broker.topic("rx"))
        for number in range(0, 300, 3):
            link.post(broker.topic("rx"), b"%d" % number)
            link.post(broker.topic("rx"), b"%d" % (number + 1))
            await link.publish(broker.topic("rx"), b"%d" % (number + 2), qos=number % 2)
        assert [int(message.payload) for message in await box.wait(300)] == list(range(300))


async def test_what_the_kernel_does_not_take_at_once_is_sent_later(mosquitto: Mosquitto) -> None:
    """And the event loop has no watch on a socket that has nothing to write."""
    box = Mailbox()
    async with fault_proxy("127.0.0.1", mosquitto.port, [[Fault.throttle(0, 30e6, Way.UP)]]) as proxy:
        broker = Broker.from_url(f"mqtt://127.0.0.1:{proxy.port}/mg/123")
        async with connected(broker, box.messages.append) as link:
            await link.subscribe(broker.topic("rx"))
            inner = link._client._client
            for number in range(200):
                link.post(broker.topic("rx"), bytes([number]) * 60_000)
            assert inner.want_write()
            assert [message.payload[0] for message in await box.wait(200)] == list(range(200))
            with anyio.fail_after(10):
                while inner._registered_write:
                    await anyio.sleep(0.01)
            link.post(broker.topic("rx"), b"\xff")
            assert not inner._registered_write
            assert (await box.wait(201))[-1].payload == b"\xff"


async def test_a_post_to_a_broker_that_has_gone_is_an_error(mosquitto: Mosquitto) -> None:
    broker = Broker.from_url(f"{mosquitto.url}/mg/123")
    async with connected(broker, print) as link:
        mosquitto.stop()

        async def go_on() -> None:
            for _ in range(1000):
                link.post(broker.topic("rx"), bytes(10_000))
                await anyio.sleep(0)

        for _ in range(2):
            with pytest.raises(TransferError, match="broke"):
                await go_on()


async def test_who_has_no_aiomqtt_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiomqtt", None)
    with pytest.raises(ConfigError, match=r"pip install 'mgota\[mqtt\]'"):
        async with connected(Broker.from_url("mqtt://127.0.0.1/mg/123"), print):
            pass
    with pytest.raises(ConfigError, match=r"pip install 'mgota\[mqtt\]'"):  # and does not try for ever
        async with serve(FakeDevice().device, "mqtt://127.0.0.1/mg/123"):
            pass
