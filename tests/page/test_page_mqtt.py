"""The updater page in Chromium, opened from a disk: devices behind a real mosquitto, over WebSockets."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import MQTT, Tab, held, npm, status, until
from mosquitto import Mosquitto
from paho.mqtt import publish
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import expect
from terminal import Serving, Shop, run

pytestmark = [pytest.mark.program("chromium"), pytest.mark.program("mosquitto")]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as `mgota page` writes it, somewhere on a disk."""
    npm(MQTT)
    path = tmp_path_factory.mktemp("page") / "updater.html"
    done = run("page", path)
    assert done.code == 0, done.err
    return path.as_uri()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "mosquitto") as broker:
        yield broker


class Site:
    """Devices below the topic `site`."""

    def __init__(self, shop: Shop, broker: Mosquitto, directory: Path) -> None:
        self.shop = shop
        self.broker = broker
        self.directory = directory

    @contextmanager
    def device(self, name: str, *options: object, version: str = "1.0.0") -> Iterator[Serving]:
        place = ["--slots", self.directory / name, "--key", self.shop.public]
        if not (self.directory / name).exists():
            done = run("provision", self.shop.image(version), *place)
            assert done.code == 0, done.err
        with Serving(*place, "--mqtt", f"{self.broker.url}/site/{name}", *options) as device:
            yield device


@pytest.fixture
def site(shop: Shop, broker: Mosquitto, tmp_path: Path) -> Site:
    return Site(shop, broker, tmp_path)


def connect(tab: Tab, page_file: str, broker: Mosquitto) -> None:
    tab.page.goto(page_file)
    tab.page.get_by_label("Address").fill(f"ws://127.0.0.1:{broker.ws_port}")
    tab.page.get_by_label("Root topic").fill("site")
    tab.press("Connect")
    tab.shows("devices")


def row(tab: Tab, name: str) -> str:
    return tab.page.locator(f"#device-list li[data-name={name}]").inner_text()


def presents(tab: Tab, name: str, *texts: str) -> None:
    for text in texts:
        expect(tab.page.locator(f"#device-list li[data-name={name}]")).to_contain_text(text)


def say(broker: Mosquitto, topic: str, payload: str) -> None:
    """A retained message of somebody."""
    publish.single(topic, payload, qos=1, retain=True, hostname="127.0.0.1", port=broker.port)


def test_devices_are_listed_and_one_is_updated(tab: Tab, page_file: str, site: Site, shop: Shop) -> None:
    tab.page.goto(page_file)
    tab.shows("broker")
    tab.everybody_can_use_it("mqtt-connect")
    with site.device("gw1") as device, site.device("gw2", version="1.4.2") as other:
        connect(tab, page_file, site.broker)
        assert tab.focus() == "devices-title"
        presents(tab, "gw1", "1.0.0", "Online")
        presents(tab, "gw2", "1.4.2", "Online")
        tab.press("gw1")
        tab.shows("state", "Ready")
        assert (tab.text("version"), tab.text("slot")) == ("1.0.0", "a")
        tab.everybody_can_use_it("mqtt-list")
        tab.watch()
        tab.install(shop.image("2.0.0", 6_000_000))
        tab.reaches(20)
        with held(device):
            tab.shows("progress-text", " of 5.7 MiB")
            tab.shows("state", "Being updated")
            tab.everybody_can_use_it("mqtt-progress")
        tab.shows("trial", "2.0.0 is on trial", "left to keep it")
        values = [float(value) for value in tab.seen("progress") if value is not None]
        assert values == sorted(values)
        assert len({value for value in values if 0 < value < 100}) >= 10
        assert "50 percent" in tab.seen("news")
        tab.everybody_can_use_it("mqtt-trial")
        tab.press("Keep this version…")
        tab.confirm("Keep it")
        tab.shows("good", "2.0.0 is kept")
        now = status(device)
        assert (now["image"]["version"], now["outcome"], now["trial"]) == ("2.0.0", "committed", None)
        presents(tab, "gw1", "2.0.0", "Online")
        tab.press("Return to the previous version…")
        tab.confirm("Roll back")
        tab.shows("good", "Rolled back. 1.0.0 runs.")
        other.end(signal.SIGKILL)
        presents(tab, "gw2", "Offline")
        tab.press("gw2")
        tab.shows("state", "Away")
        tab.shows("gone", "The device is offline.")
        tab.hides("facts", "update-form", "back")
        tab.everybody_can_use_it("mqtt-offline")
        tab.press("Disconnect")
        tab.shows("broker")
        tab.hides("devices", "device")


def test_a_refused_image_and_a_trial_that_is_ended(tab: Tab, page_file: str, site: Site, shop: Shop) -> None:
    unsigned = shop.directory / "unsigned.bin"
    unsigned.write_bytes(shop.image("2.0.0").read_bytes()[:-64])
    with site.device("gw1") as device:
        connect(tab, page_file, site.broker)
        tab.press("gw1")
        tab.install(unsigned)
        tab.shows("alert", "The device refused the image.", "It keeps running what it ran.")
        tab.everybody_can_use_it("mqtt-refused")
        tab.install(shop.image("3.0.0"))
        tab.shows("trial", "3.0.0 is on trial")
        tab.hides("alert")
        tab.press("Roll back…")
        tab.confirm("Roll back")
        tab.shows("good", "Rolled back. 1.0.0 runs.")
        now = status(device)
        assert (now["state"], now["active_slot"]) == ("CONFIRMED", "a")


@pytest.mark.parametrize("trouble", ["broker", "device"])
def test_an_update_goes_on_after_an_interruption(
    tab: Tab, page_file: str, site: Site, shop: Shop, trouble: str
) -> None:
    image = shop.image("2.0.0", 6_000_000)
    with site.device("gw1") as device:
        connect(tab, page_file, site.broker)
        tab.press("gw1")
        tab.watch()
        tab.install(image)
        tab.reaches(20)
        if trouble == "broker":
            site.broker.stop()
        else:
            device.end(signal.SIGKILL)
        told = "connection to the broker is lost" if trouble == "broker" else "The device is offline"
        tab.shows("progress-text", told, "goes on when it is back")
        reached = tab.reaches(20)
        tab.everybody_can_use_it(f"mqtt-away-{trouble}")
        if trouble == "broker":
            site.broker.start()
            tab.shows("trial", "2.0.0 is on trial", seconds=30)
            values = [float(value) for value in tab.seen("progress") if value is not None]
            assert min(values[values.index(reached) :]) == reached  # it went on, and did not begin again
            return
        with site.device("gw1"):  # what it had is gone with its power
            tab.shows("trial", "2.0.0 is on trial", seconds=30)


def test_a_cancelled_update_leaves_the_device_free_for_another(
    tab: Tab, page_file: str, site: Site, shop: Shop
) -> None:
    with site.device("gw1") as device:
        connect(tab, page_file, site.broker)
        tab.press("gw1")
        tab.install(shop.image("2.0.0", 6_000_000))
        tab.reaches(5)
        with held(device):
            tab.press("Cancel")
            tab.shows("alert", "Cancelled.")
        tab.shows("state", "Ready")
        tab.install(shop.image("3.0.0"))
        tab.shows("trial", "3.0.0 is on trial")


def test_a_cancel_while_the_broker_is_away_reaches_the_device_when_it_is_back(
    tab: Tab, page_file: str, site: Site, shop: Shop
) -> None:
    with site.device("gw1") as device:
        connect(tab, page_file, site.broker)
        tab.press("gw1")
        tab.install(shop.image("2.0.0", 6_000_000))
        tab.reaches(5)
        site.broker.stop()
        tab.shows("progress-text", "connection to the broker is lost")
        tab.press("Cancel")
        tab.shows("alert", "Cancelled.")
        assert status(device)["update"]
        site.broker.start()
        until(device, lambda now: now["update"] is None)
        tab.shows("state", "Ready", seconds=30)


@pytest.mark.parametrize("how", ["reload", "close"])
def test_who_leaves_the_page_in_the_middle_leaves_the_device_free(
    tab: Tab, page_file: str, site: Site, shop: Shop, how: str
) -> None:
    tab.page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
    with site.device("gw1") as device:
        connect(tab, page_file, site.broker)
        tab.press("gw1")
        tab.install(shop.image("2.0.0", 6_000_000))
        tab.reaches(5)
        if how == "reload":
            tab.page.reload()
        else:
            with tab.page.expect_event("close"):
                tab.page.close(run_before_unload=True)
        until(device, lambda now: now["update"] is None)
        assert "gave it up" in status(device)["reason"]


@contextmanager
def dying(device: Serving, broker: Mosquitto, name: str) -> Iterator[None]:
    """The power goes as soon as the device has said that it goes to try an image."""

    def heard(_client: Client, _userdata: object, message: MQTTMessage) -> None:
        if b'"activated"' in message.payload:
            device.process.kill()
            died.set()

    died = threading.Event()
    client = Client(CallbackAPIVersion.VERSION2)
    client.on_message = heard
    client.connect("127.0.0.1", broker.port)
    client.subscribe(f"site/{name}/tx")
    client.loop_start()
    yield
    assert died.wait(30)
    device.end(signal.SIGKILL)
    client.disconnect()
    client.loop_stop()


def test_a_device_that_dies_while_it_restarts_does_not_lock_the_page(
    tab: Tab, page_file: str, site: Site, shop: Shop
) -> None:
    tab.page.clock.install()
    with site.device("gw2", version="1.4.2") as other:
        with site.device("gw1") as device:
            connect(tab, page_file, site.broker)
            tab.press("gw1")
            tab.shows("state", "Ready")
            with dying(device, site.broker, "gw1"):
                tab.install(shop.image("2.0.0"))
            tab.shows("sending-title", "The device restarts")
            tab.shows("progress-text", "Waiting for the device to come back.")
            tab.press("gw2")  # another one is free meanwhile
            tab.shows("state", "Ready")
            tab.hides("sending", "alert")
            tab.install(shop.image("3.0.0"))
            tab.shows("trial", "3.0.0 is on trial")
            assert status(other)["trial"]
        with site.device("gw1") as device:  # the trial of what was cut off
            tab.press("gw1")
            tab.shows("trial", "2.0.0 is on trial")
            tab.press("Keep this version…")
            tab.confirm("Keep it")
            tab.shows("good", "2.0.0 is kept")
            with dying(device, site.broker, "gw1"):
                tab.install(shop.image("4.0.0"))
            tab.shows("progress-text", "Waiting for the device to come back.")
            tab.page.clock.fast_forward(61_000)
            tab.shows("alert", "The device has not come back in 1 min. Has it power and network?")
            tab.hides("sending")
            tab.shows("state", "Away")
            expect(tab.page.get_by_role("button", name="Install")).to_be_disabled()
            expect(tab.page.get_by_role("button", name="Disconnect")).to_be_enabled()
            tab.everybody_can_use_it("mqtt-never-back")
        with site.device("gw1"):
            tab.shows("trial", "4.0.0 is on trial", seconds=30)
            tab.press("Disconnect")
            tab.hides("devices", "device")


def test_what_is_kept_is_what_the_dialog_named(tab: Tab, page_file: str, site: Site, shop: Shop) -> None:
    with site.device("gw1") as device:
        connect(tab, page_file, site.broker)
        tab.press("gw1")
        tab.install(shop.image("2.0.0"))
        tab.shows("trial", "2.0.0 is on trial")
        tab.press("Keep this version…")
        tab.shows("confirm", "Keep 2.0.0?", "It does not go back by itself any more.")
        assert tab.focus() == "confirm-no"
        tab.confirm("Cancel")
        assert status(device)["trial"]
        tab.press("Keep this version…")
        tab.shows("confirm", "Keep 2.0.0?")
        assert run("rollback", f"{site.broker.url}/site/gw1").code == 0  # somebody else, while the person thinks
        until(device, lambda now: now["active_slot"] == "a")
        tab.confirm("Keep it")
        tab.shows("alert", "Another image runs than the one that was meant")
        now = status(device)
        assert (now["image"]["version"], now["trial"]) == ("1.0.0", None)


def test_what_cannot_work_is_said_at_its_field(tab: Tab, page_file: str, tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "guarded", users={"ann": "S3same"}) as broker:
        tab.page.goto(f"{page_file}#broker=mqtt://127.0.0.1:{broker.port}&root=site/")
        assert tab.page.get_by_label("Root topic").input_value() == "site/"
        address = tab.page.get_by_label("Address")
        for url, root, told, field in (
            ("", "site", "begins with wss://", "url"),
            (f"mqtt://127.0.0.1:{broker.port}", "site", "over WebSockets only", "url"),
            (f"ws://ann:S3same@127.0.0.1:{broker.ws_port}", "site", "fields of their own", "url"),
            (f"ws://127.0.0.1:{broker.ws_port}", "site/+", "without + and #", "root"),
            ("ws://127.0.0.1:9", "site", "No broker answers", "url"),
            (f"ws://127.0.0.1:{broker.ws_port}", "site", "does not accept this user", "user"),
        ):
            address.fill(url or "x")
            tab.page.get_by_label("Root topic").fill(root)
            tab.press("Connect")
            tab.shows("alert", told)
            assert tab.focus() == field
            expect(tab.page.locator(f"#{field}")).to_have_attribute("aria-invalid", "true")
        tab.everybody_can_use_it("mqtt-wrong")
        tab.page.get_by_label("User").first.fill("ann")
        tab.page.get_by_label("Password").first.fill("S3same")
        tab.press("Connect")
        tab.shows("no-devices", "No device has announced itself below site yet.")
        tab.hides("alert")
        assert "S3same" not in tab.page.url
        assert tab.page.evaluate("document.documentElement.outerHTML").count("S3same") == 0
        assert tab.page.locator("#password").input_value() == ""
        assert tab.page.evaluate("localStorage.length + sessionStorage.length") == 0


def test_what_strangers_leave_on_a_broker_does_no_harm(tab: Tab, page_file: str, broker: Mosquitto) -> None:
    evil = "<img src=x onerror=alert(1)>"
    say(
        broker,
        "site/evil/status",
        f'{{"method": "status.notify", "params": {{"status": "online", "firmware_version": "{evil}"}}}}',
    )
    for name, payload in (("a", "no JSON"), ("b", "[]"), ("c", "null"), ("d", '{"params": 7}'), ("e", "x" * 70_000)):
        say(broker, f"site/{name}/status", payload)
    say(broker, "site/x/y/status", '{"params": {"status": "online"}}')
    say(broker, "site/gone/status", '{"params": {"status": "offline", "firmware_version": null}}')
    connect(tab, page_file, broker)
    presents(tab, "evil", evil, "Online")
    presents(tab, "gone", "Offline")
    assert tab.page.locator("#device-list img").count() == 0
    names = tab.page.locator("#device-list li").evaluate_all("rows => rows.map(row => row.dataset.name)")
    assert set(names) <= {"evil", "gone", "d"}
    say(broker, "site/gone/status", "")
    expect(tab.page.locator("#device-list li[data-name=gone]")).to_have_count(0)
