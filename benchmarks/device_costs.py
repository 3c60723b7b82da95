"""What an upload costs the device that takes it: memory that must not grow with the image, and time of its event loop.

Each run is one push to a fresh device, so that nothing of an earlier one counts.
"""

import json
import sys
import threading
import time
from pathlib import Path
from statistics import quantiles
from typing import Any, Self

from servers import HERE, Push, Server, make_image, mgota_command

from mgota.core.keys import PrivateKey

SLOW = 32.0
"""MiB/s of the slow flash: far below what the sender pushes, as NOR flash is (and that is 100 times slower yet)."""

PROBE = 0.01
"""Seconds between two statuses."""


def flat(directory: Path, key: PrivateKey, public: Path, sizes: tuple[int, int]) -> list[dict[str, Any]]:
    """Peak memory of `mgota serve` at each size, then of the same device with slow flash."""
    found: list[dict[str, Any]] = []
    for flash in ("fast", "slow"):
        for mib in sizes:
            where = directory / f"{flash}-{mib}"
            throttle = ["--throttle", str(SLOW)]
            command = mgota_command(where, public) if flash == "fast" else _embedded(where, public, *throttle)
            image = make_image(directory / "image", mib, key)
            with Server(command, where) as server:
                push = server.push_once(image)
            found.append({"flash": flash, "size_mib": mib, "mib_per_s": push.rate, "peak_rss_mib": push.rss})
            _remove(where, image.path)
    return found


def lag(directory: Path, key: PrivateKey, public: Path, mib: int, rounds: int) -> dict[str, Any]:
    """Lateness of a task that ticks every millisecond beside the server, and the longest wait for a status."""
    image = make_image(directory / "image", mib, key)
    late: list[float] = []
    waits: list[float] = []
    for number in range(rounds):
        where, ticks = directory / f"lag-{number}", directory / "ticks.json"
        with Server(_embedded(where, public, "--ticks", str(ticks)), where) as server, _Statuses(server) as statuses:
            push = server.push_once(image)
        late += _during(push, json.loads(ticks.read_text()))
        waits += _during(push, statuses.waits)
        _remove(where)
    if len(late) < 2 or not waits:
        raise RuntimeError("the upload was too short to measure lag: take a larger --size")
    cuts = quantiles(late, n=100, method="inclusive")
    return {
        "ticks": len(late),
        "p50_ms": cuts[49] * 1000,
        "p99_ms": cuts[98] * 1000,
        "max_ms": max(late) * 1000,
        "statuses": len(waits),
        "status_max_ms": max(waits) * 1000,
    }


class _Statuses:
    """Asks for the status again and again, in a thread, while the `with` block runs."""

    def __init__(self, server: Server) -> None:
        self.waits: list[tuple[float, float]] = []
        """When each was asked for (CLOCK_MONOTONIC), and how long it took, in seconds."""
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self) -> None:
        while not self._stop.wait(PROBE):
            began = time.monotonic()
            self._server.status()
            self.waits.append((began, time.monotonic() - began))


def _during(push: Push, samples: list[tuple[float, float]]) -> list[float]:
    return [value for at, value in samples if push.began <= at <= push.ended]


def _embedded(slots: Path, public: Path, *more: str) -> list[str]:
    return [sys.executable, str(HERE / "embedded.py"), "--slots", str(slots), "--key", str(public), *more]


def _remove(*paths: Path) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            _remove(*path.iterdir())
            path.rmdir()
        else:
            path.unlink()
