"""A board by its configuration file, as a person has it: doctor, run, install, status, rollback. On loop devices."""

import gzip
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest
from mosquitto import Mosquitto
from terminal import PATIENCE, PROGRAM, run
from watchdog_driver import Driver, made

from mgota.cli import board_run
from mgota.core.geometry import Slot
from mgota.core.keys import PrivateKey
from mgota.core.ubootenv import Environment, encode_copy
from mgota.linux.configured import load_config
from mgota.linux.lifelong import LifelongWatchdog
from mgota.linux.ubootenv import UbootEnvironment
from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.connection import Message, connected

A, B = Slot
SIZE = 0x1000
pytestmark = pytest.mark.program("losetup")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Board:
    """What a board has, and its power switch."""

    def __init__(self, root: Path, loop: Callable[[Path], str]) -> None:
        self.root, self.config = root, root / "mgota.toml"
        self.devices = {}
        for slot in Slot:
            (root / slot).write_bytes(b"factory " * (1 << 16))
            self.devices[slot] = loop(root / slot)
        (root / "data").mkdir()
        (root / "token").write_text("open sesame\n")
        (root / "token").chmod(0o600)
        copy = encode_copy(Environment((b"BOOT_ORDER=A B",)), SIZE, flags=1)
        (root / "env").write_bytes(copy + bytes(SIZE))
        (root / "fw_env.config").write_text("".join(f"{root}/env {at:#x} {SIZE:#x}\n" for at in (0, SIZE)))
        self.port = free_port()
        self.key = PrivateKey.generate()
        (root / "public.pem").write_bytes(self.key.public.pem())
        (root / "private.pem").write_bytes(self.key.pem())
        self.write()

    def write(self, more: str = "", **changes: str) -> None:
        text = f"""\
[device]
id = "gateway-17"
data = "{self.root}/data"
lock = "{self.root}/lock"
reboot = ["touch", "{self.root}/rebooted"]
window = 30
[keys]
images = ["{self.root}/public.pem"]
[slots]
kind = "block"
a = "{self.devices[A]}"
b = "{self.devices[B]}"
cmdline = "{self.root}/cmdline"
[selector]
kind = "uboot"
config = "{self.root}/fw_env.config"
lock = "{self.root}/env.lock"
[health]
command = ["test", "-e", "{self.root}/healthy"]
interval = 0.05
consecutive = 2
[http]
port = {self.port}
token_file = "{self.root}/token"
{more}
"""
        for old, new in changes.items():
            text = text.replace(f"{{{old}}}", new)
        self.config.write_text(text)

    def boot_next(self) -> Slot:
        """What U-Boot would do."""
        (self.root / "rebooted").unlink(missing_ok=True)
        name = UbootEnvironment.from_config(self.root / "fw_env.config", lock=None).variables()["BOOT_ORDER"][0]
        (self.root / "cmdline").write_text(f"rauc.slot={name}\n")
        return Slot(name.lower())

    @contextmanager
    def on(self) -> Iterator[subprocess.Popen[str]]:
        command = [*PROGRAM, "run", "--config", str(self.config)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            self.until(lambda: (self.root / "rebooted").exists() or process.poll() is not None or self.answers())
            yield process
        finally:
            process.kill()  # a power cut
            process.communicate()

    def answers(self) -> bool:
        """Whether it is reached. Before its boot is decided, who connects waits."""
        url = f"http://127.0.0.1:{self.port}"
        done = run("status", url, "--token-file", self.root / "token", "--timeout", "1")
        return done.code == 0

    def here(self) -> Any:
        return run("status", "--config", self.config, "--json").json

    def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def image(self, version: str) -> Path:
        (self.root / "fw").write_bytes(f"MG_VERSION:{version}\0".encode() + os.urandom(200_000))
        path = self.root / f"fw-{version}.img"
        done = run("sign", self.root / "fw", "--key", self.root / "private.pem", "--out", path)
        assert done.code == 0, done.err
        return path


@pytest.fixture
def board(tmp_path: Path, loop: Callable[[Path], str]) -> Board:
    return Board(tmp_path, loop)


@pytest.fixture
def hook() -> Iterator[tuple[str, list[Any]]]:
    """A server that is told of updates."""
    told: list[Any] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", told
        server.shutdown()
        thread.join()


def test_a_life_of_a_board(board: Board, hook: tuple[str, list[Any]]) -> None:
    url, told = hook
    board.write(f'[history]\nwebhook = "{url}"')
    assert board.boot_next() is A
    doctor = run("doctor", "--config", board.config, "--selftest")
    assert doctor.code == 0, doctor.out
    assert "both slots have 524288 bytes" in doctor.out
    assert "what is written for uboot reads back" in doctor.out
    image = board.image("2.0.0")
    with board.on():
        assert "another `mgota run` is this board" in run("run", "--config", board.config).err
        assert "`mgota run` is at work" in run("doctor", "--config", board.config).out
        push = run("push", image, f"http://127.0.0.1:{board.port}", "--token-file", board.root / "token")
        assert push.code == 0, push.err
        board.until((board.root / "rebooted").exists)
    assert board.boot_next() is B
    with board.on() as process:
        (board.root / "healthy").touch()
        board.until(lambda: board.here()["state"] == "CONFIRMED")
        board.until(lambda: bool(told))
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    now = board.here()
    assert (now["active_slot"], now["outcome"], now["image"]["version"]) == ("b", "committed", "2.0.0")
    assert (told[0]["device"], told[0]["to_version"], told[0]["outcome"]) == ("gateway-17", "2.0.0", "committed")
    back = run("rollback", "--config", board.config)
    assert (back.code, back.out) == (0, "the previous image is selected\n"), back.err
    assert (board.root / "rebooted").exists()
    assert board.boot_next() is A


@pytest.mark.asyncio
async def test_a_board_whose_watchdog_is_fed_always(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    dog = LifelongWatchdog(made(board.root, driver), 0.03)
    monkeypatch.setattr(board_run, "watchdog_of", lambda _config, _environ: dog)
    board.boot_next()
    codes = list[int]()

    async def be_the_board() -> None:
        codes.append(await board_run.run_board(load_config(board.config)))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(be_the_board)
            while driver.feeds < 10:
                await anyio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
    assert codes == [0]
    assert (board.root / "watchdog").read_bytes() == b"V"
    assert board.here()["state"] == "CONFIRMED"


def test_a_packed_file_is_installed_and_goes_when_it_is_not_well(board: Board) -> None:
    board.boot_next()
    packed = board.root / "fw.img.gz"
    packed.write_bytes(gzip.compress(board.image("3.0.0").read_bytes()))
    done = run("install", packed, "--config", board.config, "--json")
    assert done.code == 0, done.err
    assert (done.json["slot"], done.json["version"]) == ("b", "3.0.0")
    assert (board.root / "rebooted").exists()
    assert board.boot_next() is B
    board.config.write_text(board.config.read_text().replace("window = 30", "window = 1"))
    with board.on():
        board.until((board.root / "rebooted").exists)
    assert "health check command" in board.here()["reason"]
    assert (board.boot_next(), board.here()["active_slot"]) == (B, "b")
    with board.on():  # this boot sees that the trial is over, and selects the other slot
        board.until((board.root / "rebooted").exists)
    assert board.boot_next() is A
    with board.on():
        assert board.here()["outcome"] == "rolled_back"
    assert run("commit", "--config", board.config).out == "nothing is on trial: nothing to commit\n"


def test_what_cannot_be_installed_is_refused(board: Board) -> None:
    board.boot_next()
    (board.root / "fw.img.gz").write_bytes(gzip.compress(board.image("1").read_bytes())[:-9])
    assert "was cut off" in run("install", board.root / "fw.img.gz", "--config", board.config).line
    (board.root / "fw.zst").write_bytes(b"no zstd")
    assert "not packed by zstd" in run("install", board.root / "fw.zst", "--config", board.config).line
    (board.root / "bare").write_bytes(os.urandom(1000))
    assert run("install", board.root / "bare", "--config", board.config).code == 1
    assert "cannot be read" in run("install", board.root / "gone", "--config", board.config).line
    assert not (board.root / "rebooted").exists()
    assert board.boot_next() is A


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[keys]", "[kyes]", "kyes: there is no such key"),
        ("public.pem", "gone.pem", "keys.images: the public key"),
        ("/token", "/gone", "http.token_file: "),
        ('"test"', '"no-such-program"', "health.command: there is no program no-such-program"),
        ('"touch"', '"no-such-program"', "device.reboot: there is no program no-such-program"),
        ("/data", "/gone", "device.data: "),
        ("/cmdline", "/env", "slots: which slot runs?"),
        ("fw_env.config", "gone", "selector: "),
        ("host-is", "", ""),
    ],
)
def test_doctor_finds_what_is_wrong(board: Board, old: str, new: str, said: str) -> None:
    board.boot_next()
    text = board.config.read_text()
    board.config.write_text(text.replace(old, new))
    done = run("doctor", "--config", board.config)
    wrong = [line for line in done.out.splitlines() if line.startswith("WRONG")]
    assert done.code == (1 if old in text else 0), done.out
    assert any(said in line for line in wrong) or old not in text, done.out


def test_doctor_looks_at_secrets_ports_slots_and_the_watchdog(board: Board) -> None:
    board.boot_next()
    (board.root / "token").chmod(0o644)
    board.write(f'[watchdog]\nkind = "device"\npath = "{board.root}/none"\n[state]\npath = "{board.devices[B]}"\n')
    with socket.create_server(("127.0.0.1", board.port)):
        done = run("doctor", "--config", board.config, "--json")
    assert done.code == 1
    wrong = {one["where"]: one["text"] for one in done.json if one["level"] == "wrong"}
    assert f"chmod 600 {board.root}/token" in wrong["http.token_file"]
    assert "cannot listen" in wrong["http.port"]
    assert "would lie in the slot" in wrong["state"]
    assert "load its driver" in wrong["watchdog.path"]
    (board.root / "token").write_text("")
    (board.root / "token").chmod(0o600)
    before = {path: path.read_bytes() for path in board.root.iterdir() if path.is_file()}
    assert "is empty" in run("doctor", "--config", board.config).out
    after = {path: path.read_bytes() for path in board.root.iterdir() if path.is_file()}
    assert before == {path: after[path] for path in before}


def test_doctor_sees_a_slot_that_is_mounted(board: Board, mount: Callable[[str], Path]) -> None:
    board.boot_next()
    subprocess.run(["mkfs.ext4", "-q", board.devices[B]], check=True)
    mount(board.devices[B])
    done = run("doctor", "--config", board.config)
    assert f"WRONG slots.b: {board.devices[B]} does not run and is in use: unmount it" in done.out


def test_a_board_fetches_what_is_offered(board: Board) -> None:
    image = board.image("4.0.0")
    manifest = {"version": "4.0.0", "url": image.name, "size": image.stat().st_size}
    served = {"/fw.json": json.dumps(manifest).encode(), f"/{image.name}": image.read_bytes()}

    class Site(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = served[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/fw.json"
            board.write(f'[pull]\nurl = "{url}"\ninterval = 1\njitter = 0\npolicy = "different"\n')
            text = board.config.read_text().replace("[slots]", "allow_plain_manifest = true\n[slots]")
            board.config.write_text(text)
            board.boot_next()
            assert "ok    pull: what it needs is there" in run("doctor", "--config", board.config).out
            board.config.write_text(text.replace("different", "newer"))
            with board.on():  # the first start: what the factory wrote has no version
                pass
            assert "WRONG pull.policy: nobody knows which version runs" in run("doctor", "--config", board.config).out
            board.config.write_text(text)
            with board.on():
                board.until((board.root / "rebooted").exists)
        finally:
            server.shutdown()
            thread.join()
    assert board.boot_next() is B
    assert board.here()["image"]["version"] == "4.0.0"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[http]", '[http]\nhost = "0.0.0.0"', None),
        ("token_file =", "# token_file =", None),
        ("token_file =", 'host = "0.0.0.0"\n# token_file =', "http: http.host: 0.0.0.0 is reached from elsewhere"),
        ("[http]", '[mqtt]\nurl = "mqtt://127.0.0.1/site/7"\n[http]', None),
        ("[http]", '[mqtt]\nurl = "mqtt://127.0.0.1"\n[http]', "mqtt: "),
        ("[http]", '[mqtt]\nurl = "mqtts://h/a/b"\ncacert = "/gone"\n[http]', "mqtt: the certificates cannot be used"),
        ("[keys]", "[keys]\nimages = []\n#", None),
    ],
)
def test_doctor_builds_every_way(board: Board, old: str, new: str, said: str | None) -> None:
    board.boot_next()
    board.config.write_text(board.config.read_text().replace(old, new).replace("#\nimages", "#\n# images"))
    done = run("doctor", "--config", board.config)
    assert done.code == (1 if said else 0), done.out
    assert (f"WRONG {said}" if said else "ok") in done.out


def test_http_without_a_lock_on_the_door_is_not_fetched_from(board: Board) -> None:
    board.boot_next()
    board.write('[pull]\nurl = "http://updates.example/fw.json"\n')
    board.config.write_text(board.config.read_text().replace("images =", "# images ="))
    out = run("doctor", "--config", board.config).out
    assert "note  keys.images: no keys: every image is taken" in out
    assert "WRONG pull: " in out


def test_a_reboot_that_fails_ends_the_run_in_one_line(board: Board) -> None:
    board.write('[history]\nwebhook = "http://127.0.0.1:9/"\n')
    board.boot_next()
    assert run("install", board.image("5"), "--config", board.config).code == 0
    assert board.boot_next() is B
    text = board.config.read_text().replace("window = 30", "window = 0.5").replace('"touch"', '"false"')
    board.config.write_text(text)
    done = run("run", "--config", board.config)
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("mgota: false ")
    assert "Traceback" not in done.err
    assert "health check command" in board.here()["reason"]
    board.config.write_text(text.replace('"false"', '"no-such-program"'))  # back to slot a it goes all the same
    done = run("run", "--config", board.config)
    assert done.err.splitlines()[-1] == "mgota: no-such-program cannot be started: No such file or directory"
    assert board.boot_next() is A


def last_update(url: str) -> Any:
    """What the device's status at its broker says of its last update."""

    async def ask() -> Any:
        broker, found = Broker.from_url(url), list[Message]()
        async with connected(broker, found.append) as link:
            await link.subscribe(broker.topic("status"))
            with anyio.move_on_after(PATIENCE):
                while not (found and b"last_update" in found[-1].payload):
                    await anyio.sleep(0.02)
        return json.loads(found[-1].payload)["params"].get("last_update")

    return anyio.run(ask)


@pytest.mark.program("mosquitto")
def test_a_board_behind_a_broker_is_well_when_it_is_connected_and_tells_it_there(board: Board) -> None:
    board.boot_next()
    with Mosquitto(board.root) as broker:
        url = f"{broker.url}/site/7"
        text = board.config.read_text().partition("[health]")[0]
        board.config.write_text(
            f'{text}[mqtt]\nurl = "{url}"\n[health]\nmqtt = true\ninterval = 0.05\n[history]\nmqtt = true\n'
        )
        command = [*PROGRAM, "run", "--config", str(board.config)]
        process = subprocess.Popen(command)
        try:
            push = run("push", board.image("6.0.0"), url)
            assert push.code == 0, push.err
            board.until((board.root / "rebooted").exists)
        finally:
            process.kill()
            process.wait()
        assert board.boot_next() is B
        process = subprocess.Popen(command)
        try:
            told = last_update(url)
        finally:
            process.kill()
            process.wait()
    assert (told["outcome"], told["to_version"]) == ("committed", "6.0.0")
    now = board.here()
    assert (now["state"], now["image"]["version"]) == ("CONFIRMED", "6.0.0")
