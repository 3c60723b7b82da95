"""How fast an image is pulled, and at what price, beside the floor of `http_push.py`.

    python benchmarks/pull.py [--size MIB] [--rounds N] [--dir DIR] [--flat S,L] [--json]

mgota asks a plain file server for a signed manifest and for the image, over loopback; writes it with marks, makes it
durable, drops the page cache, reads back, hashes, verifies, and stores its record. The floor takes the same image as a
push: one blocking socket and one buffer, the same work with the image, no manifest, no marks, no record. Rounds are
interleaved; ratios are medians of the ratios within each round. `--flat` tells the peak memory at two sizes, and that
of `mgota serve` with `--pull` and `--mqtt`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import file_digest
from pathlib import Path
from statistics import median
from typing import Any

from servers import FLOOR, HERE, MGOTA, Image, Push, Server, make_image, mgota_command, peer

from mgota.core.keys import PrivateKey
from mgota.core.manifest import Manifest
from mgota.core.signed_manifest import encode_signed

WARM_UP = 2
PATIENCE = 120.0


def serve_files(directory: Path, listener: socket.socket) -> None:
    """A web server of the simplest kind, in a thread: GET, sendfile, keep-alive. It is never what is waited for."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it was closed
        threading.Thread(target=_serve, args=(directory, connection), daemon=True).start()


def _serve(directory: Path, connection: socket.socket) -> None:
    with connection, suppress(OSError):
        pending = b""
        while True:
            while b"\r\n\r\n" not in pending:
                some = connection.recv(4096)
                if not some:
                    return
                pending += some
            head, _, pending = pending.partition(b"\r\n\r\n")
            with (directory / head.split()[1].decode().strip("/")).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                answer = f'HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: "{size}"\r\n\r\n'
                connection.sendall(answer.encode())
                connection.sendfile(file)


@contextmanager
def web(directory: Path) -> Iterator[str]:
    """The files of a directory, served."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve_files, args=(directory, listener), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


class Puller:
    """A device in a process, which pulls what it is told to.

    Args:
        directory: of its slots.
        public: the key that it trusts.
    """

    def __init__(self, directory: Path, public: Path) -> None:
        command = [sys.executable, str(HERE / "puller.py"), "--slots", str(directory), "--key", str(public)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._line()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the device that pulls has ended")
        return line

    def pull(self, url: str, mib: float) -> Push:
        """One pull."""
        assert self._process.stdin
        self._process.stdin.write(f"{url}\n")
        self._process.stdin.flush()
        told = json.loads(self._line())
        rate = mib / (told["ended"] - told["began"])
        return Push(rate, told["cpu"] * 1024 / mib, told["rss"], told["began"], told["ended"])

    def end(self) -> None:
        """Close its stdin, which ends it."""
        self._process.communicate("\n", timeout=60)


class Shelf:
    """Images in a directory, and manifests that name them in turn: no device wants what it runs."""

    def __init__(self, directory: Path, mib: int, key: PrivateKey) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._key, self._number = directory, key, 0
        self.mib = mib
        self.images = [make_image(directory / f"image-{number}", mib, key) for number in range(2)]
        self._digests = [self._digest(image) for image in self.images]

    @staticmethod
    def _digest(image: Image) -> str:
        with image.path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()

    def offer(self) -> Image:
        """Another image than before, in the manifest."""
        self._number += 1
        which = self._number % 2
        image = self.images[which]
        manifest = Manifest(
            version=f"1.{self._number}",
            url=image.path.name,
            size=image.path.stat().st_size,
            sha256=self._digests[which],
            seq=self._number,
        )
        (self._directory / "manifest.json").write_bytes(encode_signed(manifest, [self._key]))
        return image


def run_rounds(directory: Path, shelf: Shelf, public: Path, rounds: int) -> dict[str, list[Push]]:
    """One after the other, every second round in the other order."""
    found: dict[str, list[Push]] = {MGOTA: [], FLOOR: []}
    with peer(FLOOR, directory / FLOOR, public) as floor, web(shelf.images[0].path.parent) as url:
        puller = Puller(directory / "puller", public)
        try:
            for number in range(WARM_UP + rounds):
                image = shelf.offer()
                names = [MGOTA, FLOOR] if number % 2 else [FLOOR, MGOTA]
                for name in names:
                    push = puller.pull(f"{url}/manifest.json", shelf.mib) if name == MGOTA else floor.push(image)
                    if number >= WARM_UP:
                        found[name].append(push)
        finally:
            puller.end()
    return found


def memory(directory: Path, key: PrivateKey, public: Path, sizes: Sequence[int]) -> dict[str, Any]:
    """Peak memory of a pull at each size, and of `mgota serve` that pulls and is on a broker beside its HTTP."""
    peaks: list[float] = []
    served = 0.0
    for mib in sizes:
        shelf = Shelf(directory / f"shelf-{mib}", mib, key)
        with web(shelf.images[0].path.parent) as url:
            shelf.offer()
            puller = Puller(directory / f"flat-{mib}", public)
            peaks.append(puller.pull(f"{url}/manifest.json", mib).rss)
            puller.end()
            if mib == min(sizes):
                served = _served(directory / "served", public, f"{url}/manifest.json")
    return {"sizes_mib": list(sizes), "pull_peak_rss_mib": peaks, "serve_peak_rss_mib": served}


def _served(directory: Path, public: Path, url: str) -> float:
    """Peak memory of `mgota serve --pull --mqtt`, up to the trial of what it pulled. The broker may be missing."""
    more = ["--pull", url, "--interval", "1", "--policy", "different", "--mqtt", "mqtt://127.0.0.1:1883/bench/7"]
    with Server([*mgota_command(directory, public), *more], directory) as server:
        deadline = time.monotonic() + PATIENCE
        while server.status()["trial"] is None:
            if time.monotonic() > deadline:
                raise RuntimeError("mgota serve did not pull")
            time.sleep(0.2)
        return server.peak()


def goals(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What has to be reached, what was, and whether that is enough."""
    rows: list[tuple[str, str, float, float]] = []
    if found.get("rate_ratio"):
        rows.append(("rate of a pull ÷ floor", "≥", 0.5, found["rate_ratio"]))
    if flat := found.get("memory"):
        peaks = flat["pull_peak_rss_mib"]
        rows.append(("growth of peak RSS, MiB", "≤", 4.0, peaks[-1] - peaks[0]))
        rows.append(("peak RSS of serve with --pull and --mqtt, MiB", "≤", 52.0, flat["serve_peak_rss_mib"]))
    return [
        {"goal": f"{what} {sense} {limit:g}", "value": value, "met": value >= limit if sense == "≥" else value <= limit}
        for what, sense, limit, value in rows
    ]


def measure(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All that was asked for."""
    key = PrivateKey.generate()
    public = directory / "public.pem"
    public.write_bytes(key.public.pem())
    found: dict[str, Any] = {"size_mib": given.size, "rounds": given.rounds}
    if given.rounds:
        runs = run_rounds(directory, Shelf(directory / "shelf", given.size, key), public, given.rounds)
        pairs = list(zip(runs[MGOTA], runs[FLOOR], strict=True))
        found["rate_ratio"] = median(mine.rate / theirs.rate for mine, theirs in pairs)
        found["cpu_ratio"] = median(mine.cpu / theirs.cpu for mine, theirs in pairs)
        found["runs"] = {
            name: {"mib_per_s": median(p.rate for p in done), "cpu_s_per_gib": median(p.cpu for p in done)}
            for name, done in runs.items()
        }
    if given.flat:
        found["memory"] = memory(directory, key, public, given.flat)
    return {**found, "goals": goals(found)}


def table(found: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"pull of {found['size_mib']} MiB, {found['rounds']} rounds"]
    for name, row in found.get("runs", {}).items():
        lines.append(f"{name:12}{row['mib_per_s']:8.0f} MiB/s {row['cpu_s_per_gib']:8.2f} CPU s/GiB")
    if found.get("cpu_ratio"):
        lines.append(f"CPU ÷ floor: {found['cpu_ratio']:.2f}")
    if flat := found.get("memory"):
        for mib, peak in zip(flat["sizes_mib"], flat["pull_peak_rss_mib"], strict=True):
            lines.append(f"peak RSS of a pull of {mib} MiB: {peak:.1f} MiB")
    lines += [
        f"{'met   ' if goal['met'] else 'MISSED'}  {goal['goal']}: {goal['value']:.2f}" for goal in found["goals"]
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Pull images over loopback, beside the floor.")
    parser.add_argument("--size", type=int, default=64, metavar="MIB")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dir", type=Path, default="/var/tmp", help="where files lie: a real disk")
    parser.add_argument(
        "--flat", type=lambda text: [int(part) for part in text.split(",")], default=None, metavar="S,L"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mgota-bench-", dir=given.dir) as directory:
        found = measure(given, Path(directory))
    print(json.dumps(found, indent=2) if given.json else table(found))


if __name__ == "__main__":
    main()
