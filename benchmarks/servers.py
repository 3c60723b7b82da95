"""Servers as processes: how they are started, pushed to, and what a push cost them.

Rules:
- every server prints `listening on URL` first and overwrites files in a directory of its own;
- before a push what it wrote earlier is on the disk and out of the page cache, so that nobody pays for another's push;
- CPU is the process's clock, read by the sender around the push; peak memory is what the kernel noted meanwhile.
"""

import http.client
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from mgota.core.keys import PrivateKey

HERE = Path(__file__).parent
MIB = 1 << 20
TOUCHED = 512 << 20
"""Bytes that are touched before each push: more than any of them needs."""

START = 60.0
"""Seconds that a server may take to listen, and a device to become ready for the next update."""


@dataclass(frozen=True, slots=True)
class Image:
    """A signed image in a file: random bytes, then R and S."""

    path: Path
    mib: float
    sha256: str
    """Of the firmware, in hex."""


def make_image(path: Path, mib: int, key: PrivateKey) -> Image:
    """Write an image of `mib` MiB and a signature. It stays in the page cache."""
    digest = sha256()
    with path.open("wb") as file:
        for _ in range(mib):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
        file.write(key.sign(digest.digest()))
        file.flush()
        os.fsync(file.fileno())  # now: not while somebody is being measured
    return Image(path, mib, digest.hexdigest())


@dataclass(frozen=True, slots=True)
class Push:
    """One image pushed, from connect to the 200."""

    rate: float
    """MiB per second."""
    cpu: float
    """Seconds of the server's CPU time for a GiB."""
    rss: float
    """Peak of its resident memory in MiB."""
    began: float
    ended: float
    """CLOCK_MONOTONIC, seconds."""


class Server:
    """A server process; a context manager that starts and stops it.

    Args:
        command: how it is started.
        directory: where its files lie; made if missing.
        device: it is an mgota device, which commits between two pushes.
    """

    def __init__(self, command: list[str], directory: Path, *, device: bool = False) -> None:
        self._command = command
        self._directory = directory
        self._device = device
        self.host, self.port = "", 0

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._log = (self._directory.parent / f"{self._directory.name}.log").open("w+b")
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=self._log)
        try:
            self.host, self.port = self._listening()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()
        self._log.close()

    def _listening(self) -> tuple[str, int]:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], START)
        line = self._process.stdout.readline().decode() if ready else ""
        before, mark, url = line.strip().partition("listening on ")
        if before or not mark:
            self._log.seek(0)
            why = self._log.read().decode(errors="replace").strip() or f"first line {line!r}"
            raise RuntimeError(f"{' '.join(self._command)} does not listen: {why}")
        address = urlsplit(url)
        return address.hostname or "", address.port or 0

    def push(self, image: Image) -> Push:
        """Push the image, and leave the server ready for another one."""
        push = self.push_once(image)
        if self._device:
            self._commit(image)
        return push

    def push_once(self, image: Image) -> Push:
        """Push the image. A device is left on trial."""
        self._settle()
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)
        sender = [sys.executable, *self.sender(image), str(self._process.pid)]
        done = subprocess.run(sender, check=True, stdout=subprocess.PIPE, timeout=600)
        told = json.loads(done.stdout)
        if told["status"] != http.client.OK:
            raise RuntimeError(f"{' '.join(self._command)} answered {told['status']}")
        seconds = told["ended"] - told["began"]
        cost = told["cpu"] * 1024 / image.mib
        return Push(image.mib / seconds, cost, self.peak(), told["began"], told["ended"])

    def sender(self, image: Image) -> list[str]:
        """What sends the image: a script and its arguments; the server's process id comes behind them."""
        return [str(HERE / "sender.py"), self.host, str(self.port), str(image.path)]

    def status(self) -> dict[str, Any]:
        """What a device says of itself."""
        status, body = self._request("GET", "/api/ota/status")
        if status != http.client.OK:
            raise RuntimeError(f"status answered {status}")
        found: dict[str, Any] = json.loads(body)
        return found

    def _commit(self, image: Image) -> None:
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            try:
                now = self.status()
                if now["state"] == "CONFIRMED" and now["trial"] is None:
                    if now["image"]["sha256"] == image.sha256:
                        return
                    raise RuntimeError(f"the device does not run what was pushed: {now}")
                if now["trial"] is not None:
                    self._request("POST", "/api/ota/commit")
            except (OSError, http.client.HTTPException):
                pass  # it resets
            time.sleep(0.02)
        raise RuntimeError("the device did not become ready")

    def _request(self, method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _settle(self) -> None:
        for path in self._directory.iterdir():
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        _touch_memory()

    def peak(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


MGOTA = "mgota"
FLOOR = "floor"
_SCRIPTS = {FLOOR: "floor.py", "aiohttp": "aiohttp_server.py", "anyio_h11": "anyio_h11_server.py"}


def installed_peers() -> list[str]:
    """The names of all the peers that can be started here."""
    return [FLOOR, MGOTA, *(name for name in ("aiohttp", "anyio_h11") if find_spec(name.partition("_")[0]))]


def mgota_command(slots: Path, key: Path) -> list[str]:
    """The real command line of the device."""
    program = Path(sys.executable).with_name(MGOTA)
    return [str(program), "serve", "--slots", str(slots), "--key", str(key), "--port", "0"]


def peer(name: str, directory: Path, key: Path) -> Server:
    """The server of that name; its files lie in `directory`."""
    if name == MGOTA:
        return Server(mgota_command(directory, key), directory, device=True)
    script = [sys.executable, str(HERE / "peers" / _SCRIPTS[name])]
    return Server([*script, "--slots", str(directory), "--key", str(key)], directory)


def _touch_memory() -> None:
    """Have the host give memory to this machine now, not while somebody is being measured.

    A virtual machine's free pages may not be there until they are touched; who touches them first pays for it.
    """
    with mmap.mmap(-1, TOUCHED) as memory:
        for page in range(0, TOUCHED, mmap.PAGESIZE):
            memory[page] = 1
