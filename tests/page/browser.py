"""Chromium, and what the tests do in it as a person would."""

import json
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from terminal import Serving

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
AXE = ROOT / "page" / "node_modules" / "axe-core" / "axe.min.js"
MQTT = ROOT / "mgota" / "page" / "mqtt.min.js"

# The system's Chromium, in a container too, and without its own errands in the network.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK = {"width": 900, "height": 900}
PHONE = {"width": 360, "height": 740}
LOOKS: tuple[tuple[str, str, dict[str, int], list[str]], ...] = (
    # all of axe-core's rules once, and then those that depend on the look
    ("light", "light", DESK, []),
    ("dark", "dark", DESK, ["color-contrast"]),
    ("phone", "light", PHONE, ["target-size", "scrollable-region-focusable"]),
)
SECONDS = 1000.0

expect.set_options(timeout=15 * SECONDS)


def npm(path: Path) -> Path:
    """What `make page` fetches from npm: skip without it, and fail where nothing may be missing."""
    if not path.exists():
        reason = f"{path.relative_to(ROOT)} is not there: make page"
        if os.environ.get("MGOTA_REQUIRE_ALL") == "1":
            pytest.fail(f"{reason}, and MGOTA_REQUIRE_ALL=1", pytrace=False)
        pytest.skip(reason)
    return path


def status(device: Serving) -> dict[str, Any]:
    """What the device says itself, over HTTP and not by way of the page."""
    with urllib.request.urlopen(f"{device.url}/api/ota/status", timeout=10) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def until(device: Serving, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first status that is so. (Playwright's event loop runs in this thread: `Serving.until` cannot.)"""
    deadline = time.monotonic() + 20
    while True:
        with suppress(OSError):  # cut off by a reset
            if holds(now := status(device)):
                return now
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def held(device: Serving) -> Iterator[None]:
    """The device does nothing for a while: what is seen meanwhile stays as it is."""
    device.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        device.process.send_signal(signal.SIGCONT)


@contextmanager
def browsing() -> Iterator[Browser]:
    """The system's Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        yield browser
        browser.close()


class Tab:
    """One window, and what a person does in it.

    Args:
        page: Playwright's.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.troubles: list[str] = []
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", lambda said: self._said(said.type, said.text))

    def _said(self, kind: str, text: str) -> None:
        # A refused request is a trouble of the test's own making; a breach of the page's own policy is none.
        network = ("Failed to load resource", "WebSocket connection to", "WebSocket is already in CLOSING")
        if kind in {"error", "warning"} and not text.startswith(network):
            self.troubles.append(text)

    @classmethod
    @contextmanager
    def open(cls, browser: Browser, **options: Any) -> Iterator["Tab"]:
        context = browser.new_context(viewport=cast(Any, DESK), **options)
        tab = cls(context.new_page())
        yield tab
        context.close()
        assert not tab.troubles, tab.troubles

    def text(self, name: str) -> str:
        return self.page.locator(f"#{name}").inner_text()

    def shows(self, name: str, *texts: str, seconds: float = 15) -> None:
        """Wait until an element is seen, with all of these texts in it."""
        place = self.page.locator(f"#{name}")
        expect(place).to_be_visible(timeout=seconds * SECONDS)
        for text in texts:
            expect(place).to_contain_text(text, timeout=seconds * SECONDS)

    def hides(self, *names: str) -> None:
        for name in names:
            expect(self.page.locator(f"#{name}")).to_be_hidden()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name).click()

    def choose(self, path: Path) -> None:
        self.page.locator("#file").set_input_files(path)
        self.shows("file-name", path.name)

    def install(self, path: Path) -> None:
        self.choose(path)
        self.press("Install")

    def confirm(self, answer: str) -> None:
        self.page.locator("#confirm").get_by_role("button", name=answer).click()
        expect(self.page.locator("#confirm")).to_be_hidden()

    def focus(self) -> str:
        """The id of the element that has the focus."""
        return str(self.page.evaluate("document.activeElement.id"))

    def reaches(self, percent: float) -> float:
        """Wait until the progress bar shows more than that, and tell what it shows."""
        bar = self.page.locator("#progress")
        until = time.monotonic() + 15
        while (now := float(bar.evaluate("bar => bar.value"))) <= percent:
            assert time.monotonic() < until, f"it stays at {now} percent"
            self.page.wait_for_timeout(10)
        return now

    def watch(self) -> None:
        """Note from now on every value of the progress bar and every announcement."""
        self.page.evaluate("""() => {
            window.seen = {progress: [], news: []};
            const bar = document.getElementById("progress"), news = document.getElementById("news");
            new MutationObserver(() => seen.progress.push(bar.getAttribute("value"))).observe(bar, {attributes: true});
            new MutationObserver(() => seen.news.push(news.textContent)).observe(news, {childList: true});
        }""")

    def seen(self, what: str) -> list[Any]:
        return cast(list[Any], self.page.evaluate(f"seen.{what}"))

    def everybody_can_use_it(self, name: str) -> None:
        """Light, dark, on a phone: axe-core finds nothing, nothing is cut off; a picture of each is kept."""
        self.page.evaluate(f"() => {{ if (!window.axe) {{ {npm(AXE).read_text()} }} }}")
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        for look, scheme, size, rules in LOOKS:
            self.page.emulate_media(color_scheme=cast(Any, scheme))
            self.page.set_viewport_size(cast(Any, size))
            self.page.screenshot(path=SCREENSHOTS / f"{name}-{look}.png", full_page=True)
            options = {"resultTypes": ["violations"]} | ({"runOnly": rules} if rules else {})
            found = self.page.evaluate("async (options) => (await axe.run(document, options)).violations", options)
            told = [(each["id"], each["help"], [node["target"] for node in each["nodes"]]) for each in found]
            assert told == [], f"{name}, {look}"
            wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert self.page.evaluate(wide) == 0, f"{name}, {look}: something is wider than the window"
        self.page.emulate_media(color_scheme="light")
        self.page.set_viewport_size(cast(Any, DESK))
