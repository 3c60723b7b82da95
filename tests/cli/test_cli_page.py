"""`mgota page`: one file that needs no other, or one line that says why there is none."""

import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from terminal import Serving, Terminal

from mgota.transports.http import page as module

MQTT = Path(module.__file__).parents[2] / "page" / module.MQTT


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files of the page, those from npm made up: this test does not need them."""
    files = {path.name: path.read_bytes() for path in MQTT.parent.iterdir()} | {module.MQTT: b"var mqtt = {};\n"}

    def get_data(_: str, name: str) -> bytes:
        found = files.get(name.removeprefix("page/"))
        if found is None:
            raise FileNotFoundError(name)
        return found

    monkeypatch.setattr("mgota.transports.http.page.pkgutil.get_data", get_data)
    return files


def test_the_page_is_one_file(mgota: Terminal, tmp_path: Path, parts: dict[str, bytes]) -> None:
    path = tmp_path / "updater.html"
    path.write_text("an older one")
    assert mgota.ok("page", path).out == f"{path}\n"
    text = path.read_text()
    assert "var mqtt = {};" in text
    assert "connect-src ws: wss:" in text
    assert '<meta name="mgota-api" content="">' in text
    assert not re.findall(r'<(?:script|link)[^>]* (?:src|href)="(?!data:)', text)
    assert len(re.findall("<script>", text)) == 7


def test_without_the_part_from_npm_it_says_what_to_do(mgota: Terminal, tmp_path: Path, parts: dict[str, bytes]) -> None:
    del parts[module.MQTT]
    assert "make page" in mgota("page", tmp_path / "updater.html").line
    assert not list(tmp_path.iterdir())


def test_where_it_cannot_be_written_the_file_that_was_asked_for_is_named(
    mgota: Terminal, tmp_path: Path, parts: dict[str, bytes]
) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "missing" / "updater.html", tmp_path / "folder.html", tmp_path / "file" / "updater.html"):
        line = mgota("page", path).line
        assert line.startswith(f"mgota: {path}: ")
        assert "tmp" not in line.removeprefix(f"mgota: {path}: ")


def test_an_installation_without_the_page_says_so(mgota: Terminal, tmp_path: Path, parts: dict[str, bytes]) -> None:
    parts.clear()
    assert "not in this installation" in mgota("page", tmp_path / "updater.html").line


def test_a_virtual_device_shows_its_page_unless_told_not_to(tmp_path: Path) -> None:
    with Serving("--slots", tmp_path / "a") as device, urllib.request.urlopen(device.url, timeout=10) as reply:
        assert b"<title>Firmware update</title>" in reply.read()
    with Serving("--slots", tmp_path / "a", "--no-page") as device:
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(device.url, timeout=10)
        refused.value.close()
        assert refused.value.code == 404
