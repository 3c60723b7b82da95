"""Who is told of updates that ended: over restarts, and without a word in what becomes of an update."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
import pytest
from fake_device import FakeDevice
from site_server import METADATA, Site, response

from mgota import commit
from mgota.cli import reports
from mgota.cli.board import BrokerWay
from mgota.cli.reports import reporting
from mgota.core.config import Config, read_config
from mgota.core.geometry import Slot
from mgota.core.history import MAX_HISTORY, Update, encode_updates
from mgota.core.record import Outcome, State
from mgota.errors import ConfigError, TransferError
from mgota.history import History
from mgota.linux.story import FileStory

pytestmark = pytest.mark.asyncio

BOARD = """\
[device]
id = "gw-17"
data = "{data}"
[slots]
kind = "block"
a = "PARTLABEL=a"
b = "PARTLABEL=b"
[selector]
kind = "grub"
"""
DONE = Update(number=1, began=1, ended=2, outcome="committed", from_version="1", to_version="2")


class Served:
    """A broker's end of a device."""

    def __init__(self) -> None:
        self.told = list[Update]()
        self.there = True

    async def online(self) -> None:
        if not self.there:
            await anyio.sleep_forever()

    async def report(self, update: Update) -> None:
        self.told.append(update)


class Bench:
    """A board whose updates somebody is told of."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.fake = FakeDevice(history=History(FileStory(data / "history", MAX_HISTORY)))
        self.fake.prove(b"the one before")
        self.broker = BrokerWay(None)
        self.served = Served()
        self.broker._served = self.served
        (data / "history").write_bytes(encode_updates((DONE,)))

    def config(self, text: str) -> Config:
        return read_config(BOARD.format(data=self.data) + text, "mgota.toml")

    async def until(self, text: str, holds: Callable[[], object]) -> None:
        """One life of the board, until this is so."""
        async with reporting(self.config(text), self.broker)(self.fake.device):
            with anyio.fail_after(20):
                while not holds():
                    await anyio.sleep(0.005)

    def reported(self) -> Any:
        path = self.data / "reported"
        return json.loads(path.read_bytes()) if path.exists() else {}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def query(url: str) -> str:
    return f"[pull]\nurl = '{url}{METADATA}'\nallow_http = true\ninterval = 600\n[history]\nquery = true\n"


MQTT = "[mqtt]\nurl = 'mqtt://h/a/b'\n[history]\nmqtt = true\n"


@pytest.mark.parametrize(
    ("outcome", "state", "boot"),
    [
        (Outcome.COMMITTED, State.CONFIRMED, "0"),
        (Outcome.ROLLED_BACK, State.CONFIRMED, "3"),
        (Outcome.STUCK, State.FAILED, "2"),
    ],
)
async def test_the_update_server_is_told_what_runs(bench: Bench, outcome: Outcome, state: State, boot: str) -> None:
    site = Site()
    site.publish(b"an image", "2")
    record = bench.fake.state.record
    assert record
    bench.fake.state.record = record.next(outcome=outcome, state=state, trial=Slot.A if state is State.FAILED else None)
    async with site.served() as url:
        await bench.until(query(url), bench.reported)
        await bench.until(query(url) + "updates = 9\n", lambda: True)  # a restart: it was told
    (asked,) = site.asked(METADATA)
    told = {name: values[0] for name, values in parse_qs(asked.query, keep_blank_values=True).items()}
    assert told == {"arch": "1", "version": "", "id": "gw-17", "interval": "600", "boot": boot}
    assert bench.reported() == {"query": 1}


async def test_what_the_update_server_offers_does_not_matter_but_that_it_answers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site()
    async with site.served() as url:
        await bench.until(query(url), lambda: site.asked(METADATA))
        assert not bench.reported()  # 404
        site.put(METADATA, b"no manifest")
        await bench.until(query(url), bench.reported)
    assert bench.reported() == {"query": 1}


async def test_a_broker_is_waited_for_and_told_once(bench: Bench) -> None:
    bench.served.there = False
    async with reporting(bench.config(MQTT), bench.broker)(bench.fake.device):
        await anyio.wait_all_tasks_blocked()
        assert not bench.served.told
    bench.served.there = True
    await bench.until(MQTT, bench.reported)
    await bench.until(MQTT, lambda: True)
    assert bench.served.told == [DONE]
    assert bench.reported() == {"mqtt": 1}


async def test_without_a_connection_there_is_no_report() -> None:
    with pytest.raises(TransferError):
        await BrokerWay(None).report(DONE)
    async with BrokerWay(None).serving(FakeDevice().device):
        pass


async def test_nobody_who_is_told_holds_up_a_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One does not answer, one answers with an error, one is not there: the image is committed all the same."""
    asked = anyio.Event()

    async def never(*_: object) -> None:
        asked.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(reports, "_post", never)
    bench.fake.on_trial()
    bench.fake.device.live.decided = True
    bench.served.there = False
    site = Site()
    site.quirk = lambda request, number: response(500)
    async with site.served() as url:
        text = query(url) + f"mqtt = true\nwebhook = '{url}/hook'\n[mqtt]\nurl = 'mqtt://h/a/b'\n"
        async with reporting(bench.config(text), bench.broker)(bench.fake.device):
            with anyio.fail_after(10):
                await asked.wait()
                assert await commit(bench.fake.device)
    assert bench.fake.state.record
    assert bench.fake.state.record.state is State.CONFIRMED
    assert not bench.reported()


async def test_an_error_inside_comes_out_as_it_is(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        await bench.until(MQTT, lambda: 1 // 0)


async def test_what_cannot_be_asked_is_found_before_anything_runs(bench: Bench) -> None:
    for text in (
        query("http://h").replace("allow_http = true", ""),
        "[history]\nwebhook = 'https://h/'\ncacert = '/gone'\n",
    ):
        with pytest.raises(ConfigError):
            reporting(bench.config(text), bench.broker)
