"""The updater page in Chromium, served by a device: what a person does with it."""

import signal
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, Tab, held, status
from playwright.sync_api import Browser, FileChooser, expect
from terminal import Serving, Shop, run

pytestmark = pytest.mark.program("chromium")


@pytest.fixture
def place(shop: Shop, tmp_path: Path) -> list[object]:
    """The options of a device that runs version 1.0.0."""
    place = ["--slots", tmp_path / "device", "--key", shop.public]
    done = run("provision", shop.image("1.0.0"), *place)
    assert done.code == 0, done.err
    return place


def slow_uploads(tab: Tab, rate: int) -> None:
    """`rate` in bytes a second."""
    line = tab.page.context.new_cdp_session(tab.page)
    limits = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": rate}
    line.send("Network.enable")
    line.send("Network.emulateNetworkConditions", limits)


def test_an_update_with_its_trial_is_seen_and_kept(tab: Tab, shop: Shop, place: list[object]) -> None:
    with Serving(*place) as device:
        tab.page.goto(device.url)
        tab.shows("state", "Ready")
        assert (tab.text("version"), tab.text("slot"), tab.text("last")) == ("1.0.0", "a", "None yet")
        expect(tab.page.get_by_role("button", name="Install")).to_be_disabled()
        tab.everybody_can_use_it("http-ready")
        tab.choose(shop.image("2.0.0", 3_000_000))
        tab.shows("file-name", "fw-2.0.0.signed.bin, 2.9 MiB, version 2.0.0")
        slow_uploads(tab, 2_000_000)
        tab.watch()
        tab.press("Install")
        tab.shows("sending-title", "Installing 2.0.0")
        assert tab.focus() == "sending-title"
        tab.reaches(10)
        with held(device):
            tab.shows("progress-text", " of 2.9 MiB")
            tab.shows("state", "Being updated")
            tab.everybody_can_use_it("http-progress")
        tab.shows("trial", "2.0.0 is on trial", "left to keep it")
        tab.shows("good", "2.0.0 runs")
        tab.shows("state", "On trial")
        assert tab.focus() == "trial-title"
        tab.hides("update-form", "sending", "back")
        values = [float(value) for value in tab.seen("progress") if value is not None]
        assert values == sorted(values)
        assert len({value for value in values if 0 < value < 100}) >= 3
        assert tab.seen("news")[:4] == [
            "25 percent",
            "50 percent",
            "75 percent",
            "Sent and verified. The device restarts.",
        ]
        tab.everybody_can_use_it("http-trial")
        tab.press("Keep this version…")
        tab.shows("confirm", "Keep 2.0.0?")
        assert tab.focus() == "confirm-no"
        tab.everybody_can_use_it("http-confirm")
        tab.confirm("Cancel")
        assert tab.focus() == "commit"
        assert status(device)["trial"]
        tab.press("Keep this version…")
        tab.confirm("Keep it")
        tab.shows("good", "2.0.0 is kept")
        tab.shows("state", "Ready")
        assert tab.text("last") == "Kept for good"
        now = status(device)
        assert (now["state"], now["trial"], now["outcome"]) == ("CONFIRMED", None, "committed")
        # and back to the version before, on the person's word
        tab.press("Return to the previous version…")
        tab.confirm("Roll back")
        tab.shows("good", "Rolled back. 1.0.0 runs.")
        assert status(device)["image"]["version"] == "1.0.0"


def test_a_trial_is_ended_by_the_person_or_by_its_window(tab: Tab, shop: Shop, place: list[object]) -> None:
    with Serving(*place, "--window", "3") as device:
        tab.page.goto(device.url)
        tab.install(shop.image("2.0.0"))
        tab.shows("trial", "2.0.0 is on trial")
        tab.press("Roll back…")
        tab.confirm("Roll back")
        tab.shows("good", "Rolled back. 1.0.0 runs.")
        tab.install(shop.image("3.0.0"))
        tab.shows("trial", "3.0.0 is on trial")
        tab.shows("alert", "The trial is over. The device went back to 1.0.0")
        tab.shows("last", "Rolled back")
        tab.everybody_can_use_it("http-rolled-back")
        tab.press("Return to the previous version…")  # which is 3.0.0, and was never proven
        tab.confirm("Roll back")
        tab.shows("alert", "The device cannot do that now.")
        assert status(device)["image"]["version"] == "1.0.0"


def test_a_person_s_yes_counts_for_the_image_that_the_dialog_named(tab: Tab, shop: Shop, place: list[object]) -> None:
    with Serving(*place) as device:
        tab.page.goto(device.url)
        tab.install(shop.image("2.0.0"))
        tab.press("Keep this version…")
        tab.confirm("Keep it")
        tab.shows("good", "2.0.0 is kept")
        tab.press("Return to the previous version…")
        tab.shows("confirm", "Roll back 2.0.0?")
        assert run("rollback", device.url).code == 0  # somebody else is faster
        expect(tab.page.locator("#version")).to_have_text("1.0.0", timeout=15_000)
        tab.confirm("Roll back")
        tab.shows("alert", "")
        assert status(device)["image"]["version"] == "1.0.0"


def test_what_nobody_signed_is_refused_in_words(tab: Tab, shop: Shop, place: list[object]) -> None:
    unsigned = shop.directory / "unsigned.bin"
    unsigned.write_bytes(shop.image("2.0.0").read_bytes()[:-64])
    with Serving(*place) as device:
        tab.page.goto(device.url)
        tab.install(unsigned)
        tab.shows("alert", "The device refused the image.", "It keeps running what it ran.")
        tab.shows("state", "Ready")
        tab.everybody_can_use_it("http-refused")
        assert status(device)["image"]["version"] == "1.0.0"
        tab.install(shop.image("2.0.0"))  # the page is ready for the right one
        tab.shows("trial", "2.0.0 is on trial")
        tab.hides("alert")


def test_a_wrong_token_then_the_right_one(tab: Tab, shop: Shop, place: list[object], tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("T0ken-\u00e9\n")
    (tmp_path / "users").write_text("ann:pass:word\n")
    with Serving(*place, "--token-file", tmp_path / "tokens", "--user-file", tmp_path / "users") as device:
        tab.page.goto(device.url)
        tab.shows("signin", "Sign in")
        tab.hides("device", "alert")
        tab.everybody_can_use_it("http-signin")
        secret = tab.page.get_by_label("Password or token")
        secret.fill("wrong")
        secret.press("Enter")
        tab.shows("alert", "The device does not accept these credentials.")
        assert tab.focus() == "secret"
        expect(secret).to_have_value("")
        secret.fill("T0ken-\u00e9")
        tab.press("Sign in")
        tab.shows("version", "1.0.0")
        tab.hides("signin", "alert")
        tab.install(shop.image("2.0.0"))
        tab.shows("trial", "2.0.0 is on trial")
        tab.page.reload()  # nothing was stored
        tab.shows("signin")
        assert tab.page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        tab.page.get_by_label("User (empty for a token)").fill("ann")
        secret.fill("pass:word")
        tab.press("Sign in")
        tab.shows("trial", "2.0.0 is on trial")


def test_with_the_keyboard_alone(tab: Tab, shop: Shop, place: list[object]) -> None:
    keys = tab.page.keyboard
    choosers: list[FileChooser] = []

    def opened(chooser: FileChooser) -> None:
        choosers.append(chooser)

    tab.page.on("filechooser", opened)  # before anything else: Chromium is told in the background
    with Serving(*place) as device:
        tab.page.goto(device.url)
        tab.shows("state", "Ready")
        keys.press("Tab")
        assert tab.focus() == "file"
        outline = "getComputedStyle(document.querySelector('#file + .button')).outlineStyle"
        assert tab.page.evaluate(outline) == "solid"
        keys.press("Space")
        while not choosers:
            tab.page.wait_for_timeout(20)
        choosers[0].set_files(shop.image("2.0.0"))
        expect(tab.page.locator("#install")).to_be_enabled()
        keys.press("Tab")
        assert tab.focus() == "install"
        keys.press("Enter")
        expect(tab.page.locator("#trial-title")).to_be_focused()
        keys.press("Tab")
        assert tab.focus() == "commit"
        keys.press("Enter")
        expect(tab.page.locator("#confirm-no")).to_be_focused()
        keys.press("Escape")
        tab.hides("confirm")
        assert tab.focus() == "commit"
        keys.press("Space")
        keys.press("Tab")
        expect(tab.page.locator("#confirm-yes")).to_be_focused()
        keys.press("Enter")
        tab.shows("good", "2.0.0 is kept")
        assert tab.focus() == "device-title"
        assert status(device)["outcome"] == "committed"


def test_a_device_that_is_away_is_seen_to_come_back(tab: Tab, shop: Shop, place: list[object]) -> None:
    with Serving(*place) as device:
        tab.page.goto(device.url)
        tab.choose(shop.image("2.0.0"))
        device.end(signal.SIGKILL)
        tab.shows("state", "Away")
        tab.shows("gone", "The device does not answer.")
        expect(tab.page.locator("#install")).to_be_disabled()
    with Serving(*place, "--port", device.url.rpartition(":")[2]):
        tab.shows("state", "Ready")
        expect(tab.page.locator("#install")).to_be_enabled()


def test_an_upload_is_cancelled_and_another_is_dropped_on_the_page(tab: Tab, shop: Shop, place: list[object]) -> None:
    with Serving(*place) as device:
        tab.page.goto(device.url)
        slow_uploads(tab, 200_000)
        tab.install(shop.image("2.0.0", 3_000_000))
        tab.shows("sending-title", "Installing 2.0.0")
        tab.press("Cancel")
        tab.shows("alert", "Cancelled. The device keeps running what it ran.")
        tab.shows("state", "Ready")
        slow_uploads(tab, -1)
        drop(tab, "fw.bin", shop.image("3.0.0").read_bytes())
        tab.shows("file-name", "fw.bin", "version 3.0.0")
        tab.press("Install")
        tab.shows("trial", "3.0.0 is on trial")


def drop(tab: Tab, name: str, data: bytes) -> None:
    script = """([name, data]) => {
        const files = new DataTransfer();
        files.items.add(new File([Uint8Array.from(data)], name));
        const place = document.getElementById("drop");
        for (const kind of ["dragover", "drop"])
            place.dispatchEvent(new DragEvent(kind, {dataTransfer: files, bubbles: true, cancelable: true}));
    }"""
    tab.page.evaluate(script, [name, list(data)])


def test_text_of_a_device_is_text(tab: Tab, shop: Shop, place: list[object]) -> None:
    """A version may hold any printable characters; the page's policy would stop a script besides."""
    evil = "<img/src=x/onerror=document.title='owned'>"
    image = shop.directory / "evil.signed.bin"
    image.write_bytes(shop.image("1.0.0").read_bytes())
    done = run("info", image, "--json")
    assert done.code == 0
    with Serving(*place) as device:
        tab.page.route("**/api/ota/status", lambda route: route.fulfill(json=told(device, evil)))
        tab.page.goto(device.url)
        tab.shows("version", evil)
        tab.shows("last", evil)
        assert tab.page.locator("main img").count() == 0
        assert tab.page.title() == "Firmware update"


def told(device: Serving, text: str) -> dict[str, Any]:
    now = status(device)
    return {**now, "image": {**now["image"], "version": text}, "outcome": "rolled_back", "reason": text}


def test_those_who_want_no_motion_get_none(browser: Browser, place: list[object]) -> None:
    with Serving(*place) as device, Tab.open(browser, reduced_motion="reduce") as tab:
        tab.page.set_viewport_size({"width": PHONE["width"], "height": PHONE["height"]})
        tab.page.goto(device.url)
        tab.shows("state", "Ready")
        bar = "document.getElementById('progress')"
        tab.page.evaluate(f"{bar}.removeAttribute('value')")
        assert tab.page.evaluate(f"getComputedStyle({bar}).animationName") == "none"
