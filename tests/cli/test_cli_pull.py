"""`mgota pull` and `mgota serve --pull`: the commands, with real servers, real files and real kills."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import anyio
import pytest
from site_server import IMAGE, METADATA, Site, response
from terminal import PROGRAM, Serving, Shop, Terminal, run

from mgota.core.manifest import Manifest
from mgota.core.record import decode_record, encode_record
from mgota.core.signed_manifest import encode_signed
from mgota.linux.environment import file_device
from mgota.session import OtaSession

MEBIBYTE = 1 << 20


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    with site.in_thread() as found:
        yield found + METADATA


def offer(site: Site, shop: Shop, version: str, size: int = 70_000) -> bytes:
    image = shop.image(version, size).read_bytes()
    site.publish(image, version, key=shop.key)
    return image


PLACES = {
    "slots": ["--slots", "d"],
    "stm32h5": ["--target", "stm32h5", "--flash", "chip.bin", "--state", "chip.state"],
    "stm32f4": ["--target", "stm32f4", "--part", "STM32F405xG", "--flash", "chip.bin", "--state", "chip.state"],
    "esp32": ["--target", "esp32", "--flash", "chip.bin", "--state", "chip.state"],
}


@pytest.fixture(params=list(PLACES))
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return PLACES[request.param]


def record_at(tmp_path: Path) -> str:
    path = tmp_path / "d" / "state"
    return decode_record((path if path.exists() else tmp_path / "chip.state").read_bytes()).state.value


def test_an_update_is_pulled_and_its_trial_begins_at_the_next_serve(
    site: Site, url: str, shop: Shop, mgota: Terminal, place: list[str], tmp_path: Path
) -> None:
    mgota.ok("provision", shop.image("1.0.0"), *place, "--key", shop.public)
    image = offer(site, shop, "2.0.0")
    options = [url, *place, "--key", shop.public]
    dry = mgota.ok("pull", *options, "--dry-run", "--json").json
    assert (dry["installed"], dry["update"], dry["reason"]) == (False, True, "newer")
    assert not site.asked()
    assert "2.0.0 is installed" in mgota.ok("pull", *options).out
    assert record_at(tmp_path) == "TESTING"
    for more in ([], ["--json"]):  # selected, and waiting for its start: also who was killed before it could say so
        again = mgota.ok("pull", *options, *more)
        assert again.json["installed"] is True if more else "2.0.0 is installed" in again.out
    assert record_at(tmp_path) == "TESTING"
    with Serving(*place, "--key", shop.public) as device:
        now = device.status()
        assert (now["state"], now["trial"] is not None) == ("FAILED", True)
        assert (now["image"]["version"], now["active_slot"]) == ("2.0.0", "b")
        assert now["image"]["sha256"] == sha256(image[:-64]).hexdigest()
        mgota.ok("commit", device.url)
    again = mgota("pull", *options)
    assert (again.code, again.out) == (3, "Same version: 2.0.0\n")
    assert mgota("pull", *options, "--json").json["installed"] is False
    assert mgota("pull", *options, "--dry-run").code == 3
    assert len(site.asked()) == 1


DYING = """
import os, sys
import mgota.linux.slots as slots
from mgota.cli import main
from mgota.device import Device
real = slots.FileSlots.select
async def select(self, slot):
    if slot.value == "b":
        os.kill(os.getpid(), 9)
    await real(self, slot)
slots.FileSlots.select = select
main(["pull", *sys.argv[1:]])
"""


def test_a_kill_between_the_record_and_the_selection_is_made_good_by_the_next_pull(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--slots", str(tmp_path / "d"), "--key", str(shop.public)]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    offer(site, shop, "2.0.0")
    assert subprocess.run([sys.executable, "-c", DYING, url, *place], check=False).returncode == -signal.SIGKILL
    assert record_at(tmp_path) == "TESTING"
    dry = mgota.ok("pull", url, *place, "--dry-run", "--json").json
    done = mgota.ok("pull", url, *place, "--json").json
    assert (dry["reason"], done["reason"], done["installed"]) == ("newer", "newer", True)
    assert len(site.asked()) == 1
    with Serving(*place) as device:
        assert device.status()["image"]["version"] == "2.0.0"


def test_a_staged_image_is_activated(site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    place = ["--slots", tmp_path / "d", "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    image = offer(site, shop, "2.0.0")

    async def stage() -> None:
        device = file_device(tmp_path / "d")
        async with OtaSession(device, size=len(image)) as session:
            await session.write(image)
            await session.activate(await session.seal(), reset=False)

    anyio.run(stage)
    path = tmp_path / "d" / "state"
    record = decode_record(path.read_bytes())
    assert record.b
    staged = replace(
        record.b, size=len(image) - 64, sha256=sha256(image[:-64]).hexdigest(), image_sha256=record.b.sha256
    )
    path.write_bytes(encode_record(record.next(b=staged)))
    assert mgota.ok("pull", url, *place, "--json").json["installed"] is True
    assert not site.asked()
    assert record_at(tmp_path) == "TESTING"


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_refused_offer_has_its_reason_in_json(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path, dry: list[str]
) -> None:
    place = ["--slots", tmp_path / "d", "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    offer(site, shop, "2.0.0")
    done = mgota("pull", url, *place, "--json", "--floor", "3.0", *dry)
    assert (done.code, done.json["reason"], done.json["installed"]) == (1, "below_floor", False)
    assert "below the floor" in done.err


def test_what_failed_its_trial_is_not_pulled_again_unless_forced(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--slots", tmp_path / "d", "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    offer(site, shop, "2.0.0")
    mgota.ok("pull", url, *place)
    with Serving(*place, "--window", "0.5") as device:
        device.until(lambda now: now["state"] == "CONFIRMED" and now["outcome"] == "rolled_back")
    refused = mgota("pull", url, *place)
    assert (refused.code, "already failed" in refused.out) == (3, True)
    assert mgota.ok("pull", url, *place, "--force").code == 0


def test_a_manifest_without_a_signature_and_a_device_without_keys(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    image = shop.image("2.0.0").read_bytes()
    site.json(version="2.0.0", url="fw.bin", size=len(image))
    site.put(IMAGE, image)
    device = tmp_path / "d"
    assert "not encrypted" in mgota("pull", url, "--slots", device, "--current-version", "1").line
    signed = ["--key", shop.public, "--current-version", "1"]
    assert "not signed" in mgota("pull", url, "--slots", tmp_path / "e", *signed).line
    assert mgota.ok("pull", url, "--slots", tmp_path / "e", *signed, "--allow-plain-manifest").code == 0
    plain = ["--allow-http", "--current-version", "1.9"]
    assert not device.exists()
    assert mgota("pull", url, "--slots", device, "--dry-run", *plain).code == 0
    assert mgota("pull", url, "--slots", device, "--dry-run", "--allow-http").code == 1  # nobody knows what runs
    assert not device.exists()
    assert mgota("pull", url, "--slots", device, *plain, "--policy", "pinned=3").code == 3
    assert mgota.ok("pull", url, "--slots", device, *plain, "--policy", "pinned=2.0.0").code == 0
    assert (device / "b").read_bytes() == image


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--policy", "newest"], 2, "newest"),
        (["--policy", "pinned"], 2, "pinned"),
        (["--deadline", "0"], 2, "no time"),
        (["--tries", "0"], 2, "--tries"),
        (["--key", "missing.pem"], 1, "missing.pem"),
        (["--cacert", "missing.pem"], 1, "certificates"),
        (["--allow-origin", "nonsense"], 1, "nonsense"),
        (["--proxy", "gopher://x", "--tries", "1"], 1, "proxy"),
        (["--hardware", "board-7"], 1, "board-8"),
        (["--floor", "3.0"], 1, "below the floor"),
    ],
)
def test_what_is_wrong_is_one_line(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    image = shop.image("2.0.0").read_bytes()
    site.publish(image, "2.0.0", key=shop.key, hw=("board-8",) if "--hardware" in options else ())
    place = ["--slots", tmp_path / "d", "--key", shop.public, "--current-version", "1"]
    done = mgota("pull", url, *place, *options)
    assert done.code == code
    assert words in done.err
    if code == 1:
        assert done.line


def test_servers_that_fail_and_images_that_are_refused(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--slots", tmp_path / "d", "--key", shop.public, "--tries", "2"]
    mgota.ok("provision", shop.image("1.0.0"), *place[:4])
    assert "answered 404" in mgota("pull", url, *place).line
    assert "2 tries that brought nothing new" in mgota("pull", "http://127.0.0.1:9/fw.json", *place).line
    image = offer(site, shop, "2.0.0")
    site.put(IMAGE, image[:-1] + bytes([image[-1] ^ 1]))
    assert mgota("pull", url, *place).code == 1
    assert len(site.asked()) == 1
    assert record_at(tmp_path) == "CONFIRMED"
    with Serving(*place[:4]) as device:
        assert device.status()["image"]["version"] == "1.0.0"


def test_a_device_that_runs_is_left_alone(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    offer(site, shop, "2.0.0")
    place = [*PLACES["stm32h5"], "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    with Serving(*place):
        assert "another process runs this device" in mgota("pull", url, *place).line


def test_a_program_under_the_launcher_is_replaced_at_once(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--slots", tmp_path / "d", "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    offer(site, shop, "2.0.0")
    seen = tmp_path / "seen"
    program = ["sh", "-c", f"grep -ao 'MG_VERSION:[0-9.]*' {{slot}} >> {seen}; exec sleep 60"]
    command = [
        *PROGRAM,
        "run",
        "--dir",
        str(tmp_path / "d"),
        "--key",
        str(shop.public),
        "--window",
        "30",
        "--",
        *program,
    ]
    launcher = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def await_version(version: str) -> None:
        deadline = time.monotonic() + 30
        while not (seen.exists() and seen.read_text().endswith(f"MG_VERSION:{version}\n")):
            assert time.monotonic() < deadline, seen.exists() and seen.read_text()
            time.sleep(0.05)

    try:
        await_version("1.0.0")
        assert mgota.ok("pull", url, *place).out == "version 2.0.0 is installed: its trial begins now\n"
        await_version("2.0.0")
        assert record_at(tmp_path) == "FAILED"  # its trial has begun
        mgota.ok("commit", "--dir", tmp_path / "d")
        assert mgota("pull", url, *place).code == 3
    finally:
        launcher.terminate()
        launcher.wait(20)


@pytest.mark.parametrize(("kind", "size", "mark"), [("slots", 5 * MEBIBYTE, 2621440), ("stm32h5", 600_000, 262144)])
def test_a_kill_in_the_middle_goes_on_from_the_mark(
    site: Site,
    url: str,
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    size: int,
    mark: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    place = [*PLACES[kind], "--key", shop.public, "--current-version", "1"]
    image = offer(site, shop, "2.0.0", size)
    half = response(200, image, etag='"v1"')[: len(image) // 2 + 500]
    site.quirk = lambda request, number: half if request.path == IMAGE and not number else None
    first = subprocess.Popen([*PROGRAM, "pull", url, *map(str, place)])
    try:
        note = tmp_path / ("d/download" if kind == "slots" else "chip.state.download")
        deadline = time.monotonic() + 30
        while not (note.exists() and b'"mark": %d' % mark in note.read_bytes()):  # the last step below the half
            assert time.monotonic() < deadline, note.exists() and note.read_bytes()
            assert first.poll() is None
            time.sleep(0.02)
    finally:
        first.kill()
        first.wait()
    assert run("pull", url, *place).code == 0
    asked = site.asked()
    assert [request.range for request in asked] == [None, f"bytes={mark}-"]
    assert asked[1].fields["if-range"] == '"v1"'
    if kind == "slots":
        assert (tmp_path / "d" / "b").read_bytes() == image
    else:
        assert image in (tmp_path / "chip.bin").read_bytes()
    assert record_at(tmp_path) == "TESTING"


def test_a_device_that_serves_pulls_by_itself(
    site: Site, url: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--slots", tmp_path / "d", "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    offer(site, shop, "2.0.0")
    with Serving(*place, "--pull", url, "--interval", "1", "--mongoose-query", "gw7") as device:
        now = device.until(lambda now: now["trial"] is not None)
        assert now["image"]["version"] == "2.0.0"
        mgota.ok("commit", device.url)
        offer(site, shop, "3.0.0")
        device.until(lambda now: now["trial"] is not None and now["image"]["version"] == "3.0.0")
        mgota.ok("commit", device.url)
        mgota.ok("push", shop.image("4.0.0"), device.url)  # the other way works beside it
        device.until(lambda now: now["trial"] is not None and now["image"]["version"] == "4.0.0")
        code, _, err = device.end(signal.SIGTERM)
    assert code == 0
    assert "Traceback" not in err
    queries = [request.query for request in site.asked(METADATA)]
    assert queries[0] == "arch=1&version=1.0.0&id=gw7&interval=1&boot=0"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--interval", "5"], "--pull"),
        (["--policy", "different"], "--pull"),
        (["--pull", "http://a/b", "--interval", "0.5"], "--interval"),
        (["--pull", "https://a/b", "--threshold", "2"], "--threshold 2"),
    ],
)
def test_options_of_pull_belong_to_it(mgota: Terminal, tmp_path: Path, options: list[str], words: str) -> None:
    done = mgota("serve", "--slots", tmp_path / "d", *options)
    assert done.code == 2
    assert words in done.err
    assert "not encrypted" in mgota("serve", "--slots", tmp_path / "d", "--pull", "http://a/b").line
    assert "no http or https URL" in mgota("serve", "--slots", tmp_path / "d", "--pull", "").line
    assert not (tmp_path / "d").exists()


def test_httpx_is_loaded_only_when_something_is_pulled_and_rich_never(tmp_path: Path, url: str) -> None:
    code = (
        "import sys, atexit, mgota.cli as c;"
        "atexit.register(lambda: print(*sorted(m for m in sys.modules if m in ('httpx', 'rich', 'aiomqtt'))));"
        "c.main(sys.argv[1:])"
    )

    def loaded(*arguments: object) -> str:
        command = [PROGRAM[0], "-c", code, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout.strip()

    assert loaded("serve", "--slots", tmp_path / "d", "--host", "no-such-host.invalid") == ""
    assert (
        loaded("serve", "--slots", tmp_path / "d", "--host", "no-such-host.invalid", "--pull", "https://a/b") == "httpx"
    )
    assert loaded("pull", url, "--slots", tmp_path / "d", "--allow-http", "--current-version", "1") == "httpx"


@contextmanager
def nginx(directory: Path, more: str = "location = /slow.bin { limit_rate 600k; }") -> Iterator[str]:
    """A server of another make, on a free port, for the files in a directory."""
    place = directory.parent / "nginx"
    place.mkdir()
    log = place / "access.log"
    port = _free_port()
    (place / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {place}/pid; error_log {place}/error.log;\n"
        "events {}\n"
        "http { log_format mine '$request_uri $status $http_range $sent_http_content_range';\n"
        f"access_log {log} mine; client_body_temp_path {place}/b; proxy_temp_path {place}/p;\n"
        f"fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; root {directory}; {more} }} }}\n"
    )
    program = shutil.which("nginx") or "nginx"
    process = subprocess.Popen([program, "-c", str(place / "nginx.conf"), "-p", str(place)], stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while not _answers(port):
            assert time.monotonic() < deadline, (place / "error.log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except OSError:
        return False
    finally:
        connection.close()
    return True


@pytest.mark.program("nginx")
def test_nginx_serves_it_and_the_rest_of_it_after_a_kill(shop: Shop, tmp_path: Path) -> None:
    www = tmp_path / "www"
    www.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    image = shop.image("2.0.0", 2 * MEBIBYTE).read_bytes()
    (www / "slow.bin").write_bytes(image)
    old = time.time() - 100
    os.utime(www / "slow.bin", (old, old))
    manifest = Manifest(version="2.0.0", url="slow.bin", size=len(image), sha256=sha256(image).hexdigest(), seq=1)
    (www / "fw.json").write_bytes(encode_signed(manifest, [shop.key]))
    place = ["--slots", str(tmp_path / "d"), "--key", str(shop.public), "--current-version", "1"]
    with nginx(www) as url:
        first = subprocess.Popen([*PROGRAM, "pull", f"{url}/fw.json", *place])
        try:
            note, deadline = tmp_path / "d" / "download", time.monotonic() + 30
            while not (note.exists() and b'"mark"' in note.read_bytes()):
                assert time.monotonic() < deadline
                assert first.poll() is None
                time.sleep(0.02)
        finally:
            first.kill()
            first.wait()
        done = run("pull", f"{url}/fw.json", *place)
        assert done.code == 0, done.err
        log = (tmp_path / "nginx" / "access.log").read_text()
    match = re.search(r"/slow.bin 206 bytes=(\d+)- bytes (\d+)-", log)
    assert match, log
    assert match[1] == match[2]
    assert int(match[1]) % 65536 == 0
    assert int(match[1]) > 0
    assert (tmp_path / "d" / "b").read_bytes() == image
    assert json.loads((tmp_path / "d" / "state").read_text().splitlines()[1])["state"] == "TESTING"
