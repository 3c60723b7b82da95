"""push, status, commit and rollback over MQTT, as a user has them."""

import gc
import json
import logging
import os
import pty
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mosquitto import Mosquitto
from small_device import MqttDevice, device
from terminal import PROGRAM, Serving, Shop, Terminal

from mgota.core.rpc import COMMIT, Request, read_chunk
from mgota.transports.mqtt import talk

pytestmark = pytest.mark.program("mosquitto")


@pytest.fixture
def mgota(capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    logger = logging.getLogger("mgota")
    handlers, level = logger.handlers[:], logger.level
    yield Terminal(capsys)
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


@pytest.fixture
def url(mosquitto: Mosquitto) -> str:
    return f"{mosquitto.url}/site/gateway-7"


@contextmanager
def running(url: str, **options: Any) -> Iterator[MqttDevice]:
    """A small device in a thread of its own."""
    made: list[MqttDevice] = []
    ready, scopes = threading.Event(), list[anyio.CancelScope]()

    async def run() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async with device(url, **options) as found:
                made.append(found)
                tokens.append(anyio.lowlevel.current_token())
                ready.set()
                await anyio.sleep_forever()

    tokens: list[Any] = []
    thread = threading.Thread(target=anyio.run, args=(run,))
    thread.start()
    try:
        assert ready.wait(10)
        yield made[0]
    finally:
        anyio.from_thread.run_sync(scopes[0].cancel, token=tokens[0])
        thread.join()


def test_push_tells_as_over_http(shop: Shop, mgota: Terminal, url: str) -> None:
    image = shop.image("2.0.0")
    with running(url) as found:
        done = mgota.ok("push", image, url)
        assert done.out.startswith("fw-2.0.0.signed.bin: ")
        assert "ok: the device has" in done.out
        told = mgota.ok("push", image, url.replace("//", "//joe:s3cret@"), "--json", "--mqtt-version", "5").json
        assert told.pop("seconds") > 0
        assert told == {"url": url, "ok": True, "size": image.stat().st_size}
        assert found.installed == image.read_bytes()


def test_push_draws_a_bar_on_a_terminal(shop: Shop, url: str) -> None:
    image = shop.image("2.0.0", 500_000)
    with running(url):
        master, slave = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        process = subprocess.Popen([*PROGRAM, "push", str(image), url], stdout=subprocess.PIPE, stderr=slave, env=env)
        os.close(slave)
        drawn = b""
        try:
            while piece := os.read(master, 4096):
                drawn += piece
        except OSError:
            pass  # the other end is closed
        out = process.communicate(timeout=30)[0]
        os.close(master)
    assert process.returncode == 0
    assert out.startswith(b"ok: the device has")
    assert b"2.0.0" in drawn


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        (("--window", "2", "--chunk", "30000"), [30000, 30000, 10078, 0]),
        (("--stop-and-wait", "--chunk", "50000"), [50000, 20078, 0]),
    ],
)
def test_windows_and_chunks(shop: Shop, mgota: Terminal, url: str, options: tuple[str, ...], sizes: list[int]) -> None:
    image = shop.image("1.0.0", 70_000 - 3)
    with running(url) as found:
        mgota.ok("push", image, url, *options)
        requests = [request for request in found.requests if request.method == "ota.upload"]
    chunks = [read_chunk(request) for request in requests]
    assert [len(chunk.data) for chunk in chunks] == sizes
    assert all((chunk.session is None) == ("--stop-and-wait" in options) for chunk in chunks)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("http://nobody:1", "--window", "3"), "are for mqtt"),
        (("http://nobody:1", "--chunk", "3"), "are for mqtt"),
        (("http://nobody:1", "--stop-and-wait"), "are for mqtt"),
        (("mqtt://nobody/a/b", "--window", "0"), "--window"),
        (("mqtt://nobody/a/b", "--chunk", "65537"), "--chunk"),
        (("mqtt://nobody/a/b", "--window", "3", "--stop-and-wait"), "no window"),
        (("mqtt://nobody/a/b", "--mqtt-version", "3"), "--mqtt-version"),
    ],
)
def test_wrong_usage(shop: Shop, mgota: Terminal, arguments: tuple[str, ...], words: str) -> None:
    done = mgota("push", shop.image("1"), *arguments)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize(
    "bad", ["mqtt://nobody", "mqtt://nobody/device", "mqtt:///a/b", "mqtt://h/a/+", "mqttx://h/a/b"]
)
def test_urls_that_are_none(shop: Shop, mgota: Terminal, bad: str) -> None:
    assert "URL" in mgota("push", shop.image("1"), bad).line


@pytest.mark.parametrize("command", ["status", "commit", "rollback", "push"])
def test_the_help_tells_of_mqtt(mgota: Terminal, command: str) -> None:
    assert "mqtt://BROKER/ROOT/DEVICE" in mgota.ok(command, "--help").out


def test_a_token_is_for_http(shop: Shop, mgota: Terminal, tmp_path: Path, url: str) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    line = mgota("push", shop.image("1"), url, "--token-file", tmp_path / "token").line
    assert "a token is for http" in line
    assert "s3cret" not in line


def test_a_topic_that_nobody_listens_to(shop: Shop, mgota: Terminal, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(talk, "ANSWER", 0.2)
    for arguments in (("push", shop.image("1")), ("status",), ("commit",), ("rollback",)):
        assert "nobody answers on site/gateway-7" in mgota(*arguments, url).line
    assert "cannot be reached" in mgota("status", "mqtt://127.0.0.1:1/a/b").line


def test_devices_of_both_kinds_in_one_file(
    shop: Shop, mgota: Terminal, mosquitto: Mosquitto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "ANSWER", 0.2)
    image = shop.image("2.0.0")
    (tmp_path / "token").write_text("s3cret\n")
    urls = [f"{mosquitto.url}/site/{name}" for name in ("a", "b", "nobody")]
    with ExitStack() as stack:
        found = [stack.enter_context(running(url)) for url in urls[:2]]
        http = stack.enter_context(Serving("--slots", tmp_path / "c", "--token-file", tmp_path / "token"))
        (tmp_path / "devices").write_text(f"{urls[0]}\n{http.url}  # the one in the cellar\n{urls[1]}\n{urls[2]}\n")
        done = mgota(
            "push",
            image,
            "--devices",
            tmp_path / "devices",
            "--token-file",
            tmp_path / "token",
            "--json",
            "--window",
            "3",
        )
        assert done.code == 1
        assert done.line == "mgota: 1 of 4 devices did not take the image"
        assert [(row["url"], row["ok"]) for row in done.json] == [
            (urls[0], True),
            (http.url, True),
            (urls[1], True),
            (urls[2], False),
        ]
        assert "nobody answers" in done.json[3]["error"]
        assert [each.installed for each in found] == [image.read_bytes()] * 2
    (tmp_path / "devices").write_text(f"{urls[0]} s3cret\n")
    assert "a token is for http" in mgota("push", image, "--devices", tmp_path / "devices").line


def test_a_password_from_a_file(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    with Mosquitto(tmp_path / "m", users={"joe": "s3cret"}) as mosquitto:
        url = f"{mosquitto.url}/site/7"
        (tmp_path / "user").write_text("joe:s3cret\n")
        (tmp_path / "wrong").write_text("joe:guess\n")
        with running(url.replace("//", "//joe:s3cret@")):
            line = mgota("push", shop.image("1"), url, "--user-file", tmp_path / "wrong").line
            assert "does not let us in" in line
            assert "guess" not in line
            mgota.ok("push", shop.image("1"), url, "--user-file", tmp_path / "user")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_by_the_options_that_http_has(shop: Shop, mgota: Terminal, tmp_path: Path, pki: Path) -> None:
    with Mosquitto(tmp_path / "m", pki=pki, client_certificates=True) as mosquitto:
        url = f"{mosquitto.tls_url}/site/7"
        with running(f"{mosquitto.url}/site/7"):
            assert "certificate" in mgota("push", shop.image("1"), url).line
            mgota.ok("push", shop.image("1"), url, "--cacert", pki / "ca.pem", "--cert", pki / "client.pem")
    gc.collect()  # paho leaves the socket of a handshake that failed to the collector, which says so


def test_status_commit_and_rollback(mgota: Terminal, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.cli.control._EFFECT", 0.3)
    status: dict[str, Any] = {
        "state": "FAILED",
        "active_slot": "b",
        "image": {"size": 5, "sha256": "ab" * 32, "version": "2.0.0"},
        "staged": None,
        "trial": {"seconds_left": 9.5},
        "update": None,
        "outcome": None,
        "reason": None,
    }

    async def hook(found: MqttDevice, request: Request) -> bool:
        if request.method == "ota.status":
            await found.reply(request, {**status, "session": None, "next": None, "total": None})
            return False
        if request.method == COMMIT:
            assert request.params == {"image": "ab" * 32}
            status.update(state="CONFIRMED", trial=None)
        else:
            status.update(active_slot="a")
        return True

    with running(url, hook=hook):
        assert json.loads(mgota.ok("status", url, "--json").out) == status
        assert "version 2.0.0" in mgota.ok("status", url).out
        assert mgota.ok("commit", url).out == "committed\n"
        assert "nothing to commit" in mgota.ok("commit", url).out
        assert mgota.ok("rollback", url).out == "rolled back\n"


def test_a_device_of_mongoose_commits_all_the_same(mgota: Terminal, url: str) -> None:
    async def hook(found: MqttDevice, request: Request) -> bool:
        if request.method == "ota.status":
            await found.refuse(request, "no such method", code=-32601)
            return False
        return True

    with running(url, hook=hook) as found:
        assert "accepted" in mgota.ok("commit", url).out
        assert found.requests[-1].params == {}
