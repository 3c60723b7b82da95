"""push to one and to many, and what is asked of a device: the operator's side."""

import asyncio
import json
import os
import pty
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import PROGRAM, Serving, Shop, Terminal, run

from mgota.cli import push as module
from mgota.cli.control import describe
from mgota.cli.push import Target, read_devices
from mgota.errors import ConfigError, TransferError
from mgota.flash.files import FileLock
from mgota.transports.http.push import Remote


@pytest.fixture
def closed() -> Iterator[str]:
    """The URL of nobody."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{nobody.getsockname()[1]}"


def test_the_file_of_devices(tmp_path: Path) -> None:
    path = tmp_path / "devices"
    path.write_text("# hall\n\n  http://a:1\nhttp://b:2 tok#en # the token is tok#en\nhttp://c:3 #none\n")
    assert read_devices(path) == [
        Target("http://a:1", None, f"{path}, line 3"),
        Target("http://b:2", "tok#en", f"{path}, line 4"),
        Target("http://c:3", None, f"{path}, line 5"),
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no device"),
        ("# only words\n", "no device"),
        ("http://a t more\n", "line 1"),
        ("http://a\nhttp://b\nhttp://a t\n", "line 3"),
    ],
)
def test_a_file_of_devices_that_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "devices"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_devices(path)


@pytest.mark.parametrize("bad", ["ftp://x", "x", "mqtt://h/one", "mqtt://h/root/#", "http://"])
def test_a_line_that_is_no_url_is_named_and_nothing_is_sent(
    shop: Shop, mgota: Terminal, tmp_path: Path, bad: str
) -> None:
    path = tmp_path / "devices"
    path.write_text(f"http://127.0.0.1:1\n\n{bad}\n")
    line = mgota("push", shop.image("1"), "--devices", path).line
    assert line.startswith(f"mgota: {path}, line 3: ")
    assert "URL" in line


def test_push_to_many_tells_of_each_and_fails_if_one_does(
    shop: Shop, mgota: Terminal, tmp_path: Path, closed: str
) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    image = shop.image("2.0.0")
    with (
        Serving("--slots", tmp_path / "a") as a,
        Serving("--slots", tmp_path / "b", "--token-file", tmp_path / "token") as b,
        Serving("--slots", tmp_path / "c", "--token-file", tmp_path / "token") as c,
    ):
        (tmp_path / "devices").write_text(f"{a.url}\n{b.url} s3cret\n{c.url} wrong\n{closed}\n")
        done = mgota("push", image, "--devices", tmp_path / "devices", "--jobs", "2", "--json")
        assert done.code == 1
        assert done.line == "mgota: 2 of 4 devices did not take the image"
        assert [(row["url"], row["ok"]) for row in done.json] == [
            (a.url, True),
            (b.url, True),
            (c.url, False),
            (closed, False),
        ]
        assert "401" in done.json[2]["error"]
        assert "refused" in done.json[3]["error"]
        assert "s3cret" not in done.out
        mgota.ok("commit", a.url)
        (tmp_path / "devices").write_text(f"{a.url}\n")
        assert mgota.ok("push", image, "--devices", tmp_path / "devices").out.startswith(f"{a.url}\tok\t")


def test_the_table_of_results_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    results = [module.Result("http://a", True, 1.25), module.Result("http://[::1]", False, 0.1, "[bold]no[/bold]")]
    module._draw_table(results)
    out = capsys.readouterr().out
    assert "http://[::1]" in out
    assert "[bold]no[/bold]" in out, "what a device says is text, not markup"


def test_no_more_than_jobs_at_a_time(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    now = most = 0
    ready = threading.Event()
    urls: list[str] = []
    stop = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal now, most
            now += 1
            most = max(most, now)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)
            now -= 1
            writer.write(b"HTTP/1.1 422 No\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        servers = [await asyncio.start_server(one, "127.0.0.1", 0) for _ in range(6)]
        urls.extend(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers)
        ready.set()
        await stop.wait()
        for server in servers:
            server.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    (tmp_path / "devices").write_text("\n".join(urls))
    done = mgota("push", shop.image("1"), "--devices", tmp_path / "devices", "--jobs", "2")
    loop.call_soon_threadsafe(stop.set)
    thread.join()
    loop.close()
    assert done.code == 1
    assert most == 2


def test_push_to_one_in_json(shop: Shop, mgota: Terminal, tmp_path: Path, closed: str) -> None:
    image = shop.image("2.0.0")
    done = mgota("push", image, closed.replace("//", "//joe:secret@"), "--json")
    assert done.code == 1
    assert done.json == {"url": closed, "ok": False, "error": done.line.removeprefix("mgota: ")}
    with Serving("--slots", tmp_path / "d") as device:
        found = mgota.ok("push", image, device.url, "--json").json
    assert found.pop("seconds") > 0
    assert found == {"url": device.url, "ok": True, "size": image.stat().st_size}
    assert "no image" in mgota("push", tmp_path / "missing", device.url).line


def test_push_draws_a_bar_on_a_terminal(shop: Shop, tmp_path: Path) -> None:
    image = shop.image("2.0.0", 2_000_000)
    with Serving("--slots", tmp_path / "d") as device:
        master, slave = pty.openpty()
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        command = [*PROGRAM, "push", str(image), device.url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, env=env)
        os.close(slave)
        drawn = b""
        try:
            while piece := os.read(master, 4096):
                drawn += piece
        except OSError:
            pass  # the other end is closed
        assert process.stdout
        out = process.stdout.read()
        process.stdout.close()
        assert process.wait(30) == 0
        os.close(master)
    assert out.startswith(b"ok: the device has")
    assert b"2.0.0" in drawn
    assert b"MB" in drawn


def test_a_device_of_mongoose_has_no_status(mgota: Terminal) -> None:
    """Commit and rollback work all the same."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[bytes] = []

    def serve() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096)
                asked.append(head.split(b" HTTP")[0])
                status = b"404 Not Found" if head.startswith(b"GET") else b"200 OK"
                connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 3\r\n\r\nok\n")

    thread = threading.Thread(target=serve)
    with listener:
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert "accepted" in mgota.ok("commit", url).out
        assert mgota("status", url).code == 1
        thread.join()
    assert asked == [b"GET /api/ota/status", b"POST /api/ota/commit", b"GET /api/ota/status"]


def test_status_for_a_person() -> None:
    image = {"size": 5, "sha256": "ab" * 32, "version": None}
    found = {
        "state": "FAILED",
        "active_slot": "b",
        "image": image,
        "staged": None,
        "trial": {"seconds_left": 3.2},
        "update": {"received": 1, "size": 2},
        "outcome": "rolled_back",
        "reason": "operator",
    }
    text = describe(found)
    for words in ("FAILED", "slot b", "version unknown", "3.2 s left", "1 of 2 bytes", "rolled back: operator"):
        assert words in text
    assert "no image" in describe({**found, "image": None})


def test_a_directory_without_a_launcher(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    place = tmp_path / "device"
    assert "no directory" in mgota("status", "--dir", place).line
    found = mgota.ok("provision", shop.image("1.0.0"), "--dir", place, "--key", shop.public, "--json").json
    assert (found["slot"], found["version"]) == ("a", "1.0.0")
    assert mgota.ok("status", "--dir", place, "--json").json["image"]["version"] == "1.0.0"
    assert json.loads(mgota.ok("commit", "--dir", place, "--json").out) == {"committed": False}
    assert "no whole and proven image" in mgota("rollback", "--dir", place).line


@pytest.mark.parametrize("place", [["--slots", "d"], ["--target", "stm32h5", "--flash", "f", "--state", "s"]])
def test_provision_takes_only_what_is_signed_and_only_once(
    shop: Shop, mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_bytes(os.urandom(1000))
    (tmp_path / "empty").touch()
    assert "bad signature" in mgota("provision", "bad", *place, "--key", shop.public).line
    assert "at least one byte" in mgota("provision", "empty", *place, "--key", shop.public).line
    assert "missing" in mgota("provision", "missing", *place).line
    mgota.ok("provision", shop.image("1.0.0"), *place, "--key", shop.public)
    assert "already" in mgota("provision", shop.image("1.0.1"), *place, "--key", shop.public).line
    mgota.ok("provision", shop.image("1.0.2"), *place, "--key", shop.public, "--force")
    assert "not checked" in mgota.ok("provision", "bad", *place, "--force").err
    if "stm32h5" in place:
        (tmp_path / "large").write_bytes(bytes((1 << 20) + 1))
        assert "does not fit" in mgota("provision", "large", *place, "--force").line


def test_a_refused_first_image_leaves_the_device_as_it_was(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    place = tmp_path / "device"
    mgota.ok("provision", shop.image("1.0.0"), "--slots", place, "--key", shop.public)
    before = mgota.ok("status", "--dir", place, "--json").json
    (tmp_path / "bad").write_bytes(os.urandom(1000))
    assert "bad signature" in mgota("provision", tmp_path / "bad", "--dir", place, "--force", "--key", shop.public).line
    assert mgota.ok("status", "--dir", place, "--json").json == before
    assert (place / "a").read_bytes() == shop.directory.joinpath("fw-1.0.0.signed.bin").read_bytes()


@pytest.mark.parametrize("place", [("--slots", "d"), ("--target", "stm32h5", "--flash", "f", "--state", "s")])
def test_one_process_is_a_device(
    shop: Shop, mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    with Serving(*place) as device:
        assert "another process runs this device" in mgota("serve", "--port", "0", *place).line
        assert "another process runs this device" in mgota("provision", shop.image("1"), *place).line
        assert device.status()["image"] is None


@pytest.mark.parametrize("state", ["f", "f.opt", "./f.lock", "f.part"])
def test_the_record_has_a_file_of_its_own(
    mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = mgota("serve", "--target", "stm32h5", "--flash", "f", "--state", state)
    assert done.code == 2
    assert "a file of its own" in done.err
    assert not list(tmp_path.iterdir())


def test_a_commit_that_cannot_be_done_is_not_promised(shop: Shop, tmp_path: Path) -> None:
    place = tmp_path / "device"
    with Serving("--slots", place, "--window", "30") as device:
        assert run("push", shop.image("1.0.0"), device.url).code == 0
        device.until(lambda now: now["trial"] is not None)
        with FileLock(place / "lock").hold():
            done = run("commit", device.url)
            assert done.code == 1
            assert "409" in done.line
        assert device.status()["state"] == "FAILED"
        assert run("commit", device.url).code == 0


def test_a_lock_held_at_the_end_of_the_window_only_delays_it(shop: Shop, tmp_path: Path) -> None:
    place = tmp_path / "device"
    run("provision", shop.image("1.0.0"), "--slots", place)
    with Serving("--slots", place, "--window", "1") as device:
        assert run("push", shop.image("2.0.0"), device.url).code == 0
        device.until(lambda now: now["trial"] is not None)
        with FileLock(place / "lock").hold():
            time.sleep(7)  # longer than a boot check waits
        assert device.until(lambda now: now["state"] == "CONFIRMED")["outcome"] == "rolled_back"


def test_an_operator_rolls_back_in_a_directory(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    place = tmp_path / "device"
    mgota.ok("provision", shop.image("1.0.0"), "--slots", place, "--key", shop.public)
    with Serving("--slots", place, "--key", shop.public) as device:
        mgota.ok("push", shop.image("2.0.0"), device.url)
        mgota.ok("commit", device.url)
    assert mgota.ok("status", "--dir", place, "--json").json["image"]["version"] == "2.0.0"
    assert "selected" in mgota.ok("rollback", "--dir", place).out
    assert mgota.ok("status", "--dir", place, "--json").json["image"]["version"] == "1.0.0"


def test_a_device_that_does_not_do_what_it_said(mgota: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    on_trial: dict[str, object] = {"state": "FAILED", "active_slot": "b", "image": None, "trial": {"seconds_left": 9.0}}
    answers: list[dict[str, object] | Exception] = []

    async def status(_: Remote) -> dict[str, object]:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def act(_: Remote, **__: object) -> None:
        pass

    monkeypatch.setattr(Remote, "status", status)
    monkeypatch.setattr(Remote, "commit", act)
    monkeypatch.setattr(Remote, "rollback", act)
    monkeypatch.setattr("mgota.cli.control._EFFECT", 0.2)
    monkeypatch.setattr("mgota.cli.control._PAUSE", 0.0)
    for command in ("commit", "rollback"):
        answers[:] = [on_trial]
        assert "did not do it" in mgota(command, "http://device").line
        # it restarts for it and is not back in time: nobody knows yet
        answers[:] = [TransferError("cut off"), {**on_trial, "state": "TESTING"}, on_trial, TransferError("down")]
        assert "does not show it yet" in mgota.ok(command, "http://device").out
    answers[:] = [TransferError("nobody there")]
    assert "nobody there" in mgota("commit", "http://device").line
