"""What `[health]` asks before an image is made permanent, and what `mgota doctor` says of it."""

import ssl
from pathlib import Path
from typing import Any

import pytest
from fake_device import FakeDevice
from pki import make_pki
from site_server import METADATA, Site, response

from mgota.cli.board import BrokerWay
from mgota.cli.board_health import checks_of, look_at_health
from mgota.cli.checkup import Findings, Level
from mgota.core.config import Config, read_config
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, State
from mgota.errors import ConfigError

pytestmark = pytest.mark.asyncio

BOARD = """\
[device]
data = "/data"
[slots]
kind = "block"
a = "PARTLABEL=a"
b = "PARTLABEL=b"
[selector]
kind = "grub"
"""


def config(text: str) -> Config:
    return read_config(BOARD + text, "mgota.toml")


async def answers(text: str, fake: FakeDevice | None = None, broker: Any = None) -> dict[str, str | None]:
    found = config(text)
    checks = checks_of(found, (fake or FakeDevice()).device, broker or BrokerWay(found.mqtt))
    return {check.name: await check.answer() for check in checks}


async def test_without_the_section_nothing_is_asked() -> None:
    assert await answers("") == {}


async def test_a_command() -> None:
    assert await answers("[health]\ncommand = ['true']") == {"command": None}
    assert await answers("[health]\ncommand = ['false']") == {"command": "it answered no"}
    (why,) = (await answers("[health]\ncommand = ['/no/such/program']")).values()
    assert why
    assert "No such file" in why


@pytest.mark.parametrize(
    ("status", "why"), [(200, None), (204, None), (399, "HTTP 399"), (404, "HTTP 404"), (503, "HTTP 503")]
)
async def test_a_url_that_answers(status: int, why: str | None) -> None:
    site = Site()
    site.quirk = lambda request, number: response(status)
    async with site.served() as url:
        told = await answers(f"[health]\nurl = '{url}/health'")
    assert told == {"url": f"it answered {why}" if why else None}
    assert site.requests[0].path == "/health"


async def test_a_url_that_does_not_answer(unused_port: int) -> None:
    told = await answers(f"[health]\nurl = 'http://127.0.0.1:{unused_port}/'")
    assert told == {"url": "it did not answer: [Errno 111] Connection refused"}
    site = Site()
    site.quirk = lambda request, number: b"no http\r\n\r\n"
    async with site.served() as url:
        assert "did not answer" in str(await answers(f"[health]\nurl = '{url}/'"))


async def test_a_url_with_a_certificate_of_its_own(tmp_path: Path) -> None:
    pki = make_pki(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "server.pem")
    site = Site()
    site.put("/", b"well")
    async with site.served(context) as url:
        text = f"[health]\nurl = '{url}/'\n"
        assert "certificate" in str((await answers(text))["url"])
        assert await answers(f"{text}cacert = '{pki}/ca.pem'\n") == {"url": None}
    with pytest.raises(ConfigError, match="certificates cannot be used"):
        await answers(f"{text}cacert = '{tmp_path}/gone.pem'\n")


async def test_the_broker_is_connected() -> None:
    text = "[mqtt]\nurl = 'mqtt://127.0.0.1:9/a/b'\n[health]\nmqtt = true\n"
    assert await answers(text) == {"mqtt": "it answered no"}
    broker = BrokerWay(None)
    for connected in (False, True):
        broker._served = type("Served", (), {"connected": connected})()
        assert await answers(text, broker=broker) == {"mqtt": None if connected else "it answered no"}


def running(version: str) -> FakeDevice:
    fake = FakeDevice()
    fake.prove(b"the one before")
    assert fake.state.record
    image = fake.state.record.image(Slot.A)
    assert image
    record: BootRecord = fake.state.record
    fake.state.record = record.next_with(Slot.A, type(image)(**{**_fields(image), "version": version})).next(
        state=State.FAILED, trial=Slot.A
    )
    return fake


def _fields(image: Any) -> dict[str, Any]:
    return {name: getattr(image, name) for name in image.__slots__}


@pytest.mark.parametrize(("version", "why"), [("2", None), ("3", "older than 3"), ("1", "offers something else")])
async def test_the_update_server_offers_what_runs(version: str, why: str | None) -> None:
    site = Site()
    site.publish(b"an image", "2")
    async with site.served() as url:
        text = f"[pull]\nurl = '{url}{METADATA}'\nallow_http = true\n[health]\nsame_version = true\n"
        (told,) = (await answers(text, running(version))).values()
    assert (why in told if why and told else told is why) is True


async def test_an_update_server_that_is_away_or_may_not_be_asked(unused_port: int) -> None:
    url = f"http://127.0.0.1:{unused_port}/fw.json"
    text = f"[pull]\nurl = '{url}'\n[health]\nsame_version = true\ntimeout = 0.3\n"
    with pytest.raises(ConfigError, match="is not encrypted"):
        await answers(text)
    told = await answers(text.replace("[health]", "allow_http = true\n[health]"))
    assert told["same_version"]


async def test_doctor_asks_what_changes_nothing() -> None:
    site, found = Site(), Findings()
    site.put("/well", b"yes")
    async with site.served() as url:
        for path in ("well", "ill"):
            text = f"[mqtt]\nurl = 'mqtt://h/a/b'\n[health]\nmqtt = true\ncommand = ['false']\nurl = '{url}/{path}'\n"
            await look_at_health(config(text), found)
    told = [(one.level, one.where) for one in found]
    assert told == [
        (Level.WELL, "health.url"),
        (Level.WELL, "health.mqtt"),
        (Level.NOTE, "health.url"),
        (Level.WELL, "health.mqtt"),
    ]
    assert "HTTP 404" in found[2].text
    await look_at_health(config(""), found)
    assert len(found) == 4
    missing = "[health]\nurl = 'https://h/'\ncacert = '/gone'\n"
    await look_at_health(config(missing), found)
    assert (found[-1].level, found[-1].where) == (Level.WRONG, "health.cacert")
    pull = "[pull]\nurl = 'https://h/fw.json'\n[health]\nsame_version = true\n"
    await look_at_health(config(pull), found)  # its slots are not on this machine
    assert (found[-1].level, found[-1].where) == (Level.WRONG, "health.same_version")
