"""A browser for the tests of the updater page, a device that it is about, and a second pair of eyes (axe-core)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Tab, browsing
from playwright.sync_api import Browser
from terminal import Shop


# Of a module, no longer: while Playwright runs, its event loop is the thread's, and other tests want their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """A window of a person who has never been here before. At the end nothing may have gone wrong inside."""
    with Tab.open(browser) as tab:
        yield tab


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)
