"""Several devices behind one connection to a broker."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fake_device import FakeDevice
from mosquitto import Mosquitto
from test_mqtt_device import IMAGE, Peer, activated

from mgota import OtaError, VerifiedImage
from mgota.core.geometry import Slot
from mgota.core.history import Update
from mgota.errors import ConfigError, TransferError
from mgota.gateway import Gateway
from mgota.transports.mqtt import MqttDevice, serve
from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.connection import Message, connected
from mgota.transports.mqtt.sender import push

pytestmark = [pytest.mark.asyncio, pytest.mark.program("mosquitto")]


class Peers:
    """Somebody who speaks with each of a gateway's devices, and sees the gateway's own presence."""

    def __init__(self, own: Peer, of: dict[str, Peer]) -> None:
        self.own = own
        self.of = of

    def said(self, name: str) -> list[str]:
        return [each["status"] for each in self.of[name].presence]


@contextlib.asynccontextmanager
async def peers(url: str, *names: str) -> AsyncIterator[Peers]:
    broker = Broker.from_url(url)
    messages: list[Message] = []
    async with connected(broker, messages.append) as link:
        await link.subscribe(f"{broker.root}/{broker.device}/#")
        of = {name: Peer(broker.member(name), link, messages) for name in names}
        for number, each in enumerate(of.values(), 1):
            each._id = 10_000 * number  # replies to all of them are in one list
        yield Peers(Peer(broker, link, messages), of)


@contextlib.asynccontextmanager
async def gateway_bench(
    mosquitto: Mosquitto, devices: dict[str, FakeDevice | None], **options: Any
) -> AsyncIterator[tuple[Gateway, MqttDevice, Peers]]:
    gateway = Gateway({name: fake.device if fake else None for name, fake in devices.items()})
    url = f"{mosquitto.url}/site/gw"
    async with peers(url, *devices) as other, serve(gateway, url, **options) as served:
        await served.online()
        await other.own.sees("online")
        yield gateway, served, other


async def test_each_is_updated_on_its_topics_over_one_connection(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counted(broker: Broker, *args: Any, **options: Any) -> Any:
        made.append(options["identifier"])
        return connected(broker, *args, **options)

    monkeypatch.setattr("mgota.transports.mqtt.device.connected", counted)
    main, mcu = FakeDevice(), FakeDevice()
    async with gateway_bench(mosquitto, {"main": main, "mcu": mcu}) as (_, _, other):
        await other.of["mcu"].chunk(0, IMAGE[:4096])
        assert (await other.of["main"].ask("ota.status"))["result"]["next"] is None
        assert (await other.of["mcu"].ask("ota.status"))["result"]["next"] == 4096
        await other.of["main"].upload(IMAGE)  # both at once
        await other.of["main"].chunk(len(IMAGE), b"")
        await activated(main)
        assert mcu.untouched()
        for offset in range(4096, len(IMAGE), 4096):
            await other.of["mcu"].chunk(offset, IMAGE[offset : offset + 4096])
        await other.of["mcu"].chunk(len(IMAGE), b"")
        await activated(mcu)
    assert (main.reset.count, mcu.reset.count, len(made)) == (1, 1, 1)


async def test_our_sender_reaches_one_by_its_url(mosquitto: Mosquitto) -> None:
    main, mcu = FakeDevice(), FakeDevice()
    async with gateway_bench(mosquitto, {"main": main, "mcu": mcu}):
        async for _ in push(IMAGE, f"{mosquitto.url}/site/gw/mcu"):
            pass
        await activated(mcu)
        assert main.untouched()


async def test_the_presence_of_each_and_of_the_gateway(mosquitto: Mosquitto) -> None:
    main, mcu = FakeDevice(), FakeDevice()
    async with gateway_bench(mosquitto, {"main": main, "mcu": None}) as (gateway, _, other):
        assert other.own.presence[-1]["devices"] == ["main", "mcu"]
        assert (await other.of["main"].sees("online"))["gateway"] == "site/gw/status"
        assert other.said("mcu") == ["offline"]
        gateway.put("mcu", mcu.device)
        await other.of["mcu"].sees("online")
        gateway.put("mcu", None)
        await other.of["mcu"].sees("offline", 2)
        assert other.said("main") == ["online"]
    # a polite end: each says it, and the gateway last
    async with peers(f"{mosquitto.url}/site/gw", "main", "mcu") as other:
        for each in (other.own, *other.of.values()):
            await each.sees("offline")


async def test_a_connection_that_breaks_is_told_by_the_broker_for_all(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mgota.transports.mqtt.device.backoff", lambda _: 0.05)
    async with gateway_bench(mosquitto, {"main": FakeDevice(), "mcu": FakeDevice()}) as (_, served, other):
        async with connected(served.broker, lambda _: None, identifier=served.broker.identifier):
            await other.own.sees("offline")  # the broker threw the first one out
        await other.own.sees("online", 2)
        for name in ("main", "mcu"):
            await other.of[name].sees("online", 2)
            assert (await other.of[name].ask("ota.status"))["result"]["state"] == "CONFIRMED"


async def test_what_comes_while_a_device_restarts_waits_for_it(mosquitto: Mosquitto) -> None:
    before, after = FakeDevice(), FakeDevice()
    before.on_trial()
    async with gateway_bench(mosquitto, {"mcu": before}) as (gateway, _, other):
        mcu = other.of["mcu"]
        assert (await mcu.ask("ota.status"))["result"]["state"] == "FAILED"
        gateway.put("mcu", None)
        await mcu.sees("offline")
        number = await mcu.post("ota.status")
        await mcu.link.publish("site/gw/nobody/rx", b"{}", qos=1)
        gateway.put("mcu", after.device)
        assert (await mcu.reply(number))["result"]["state"] == "CONFIRMED"


async def test_an_upload_ends_with_its_device_and_leaves_the_next_free(mosquitto: Mosquitto) -> None:
    before, after = FakeDevice(), FakeDevice()
    async with gateway_bench(mosquitto, {"mcu": before}) as (gateway, _, other):
        mcu = other.of["mcu"]
        await mcu.chunk(0, IMAGE[:4096])
        assert before.device.live.held
        gateway.put("mcu", after.device)
        await mcu.sees("online", 2)
        assert not before.device.live.held
        assert before.untouched()
        await mcu.upload(IMAGE)
        await mcu.chunk(len(IMAGE), b"")
        await activated(after)


async def test_a_report_is_of_the_device_named(mosquitto: Mosquitto) -> None:
    update = Update(number=1, began=1, ended=2, outcome="committed", to_version="2")
    async with gateway_bench(mosquitto, {"main": FakeDevice(), "mcu": FakeDevice()}) as (_, served, other):
        await served.report(update, "mcu")
        assert (await other.of["mcu"].sees("online", 2))["last_update"]["to_version"] == "2"
        assert other.said("main") == ["online"]
        for name in ("", "esp"):
            with pytest.raises(ConfigError, match="no device"):
                await served.report(update, name)
    with pytest.raises(TransferError):
        await served.report(update, "mcu")


async def test_the_application_is_told_which_device_was_updated(mosquitto: Mosquitto) -> None:
    ended: list[str] = []

    async def on_finished(name: str, result: VerifiedImage | OtaError) -> None:
        assert isinstance(result, VerifiedImage)
        assert result.slot is Slot.B
        ended.append(name)

    mcu = FakeDevice()
    gateway = Gateway({"main": FakeDevice().device, "mcu": mcu.device}, on_finished=on_finished)
    url = f"{mosquitto.url}/site/gw"
    async with peers(url, "mcu") as other, serve(gateway, url) as served:
        await served.online()
        await other.of["mcu"].upload(IMAGE)
        await other.of["mcu"].chunk(len(IMAGE), b"")
        await activated(mcu)
    assert ended == ["mcu"]

    async def of_one(_: object) -> None:
        pass

    with pytest.raises(ConfigError, match="told of its updates itself"):
        async with serve(gateway, url, on_finished=of_one):
            pass


async def test_the_place_of_a_device_in_a_broker() -> None:
    broker = Broker.from_url("mqtt://host/site/gw", user=("joe", "secret"))
    assert broker.member("mcu").topic("rx") == "site/gw/mcu/rx"
    assert broker.member("mcu").user == ("joe", "secret")
    assert broker.topic("status") == "site/gw/status"
    assert Broker.from_url(f"mqtt://host/{'r' * 500}/gw").topic("rx")
    with pytest.raises(ConfigError, match="longer than"):
        Broker.from_url(f"mqtt://host/{'r' * 500}/gw").member("mcu")
