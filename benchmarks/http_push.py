"""How fast an image is taken over HTTP, and at what price: mgota beside a floor and what one would write oneself.

    python benchmarks/http_push.py [--size MIB] [--rounds N] [--peers A,B] [--dir DIR] [--json] [--flat [S,L]] [--lag]

All of them do the same work: a POST over loopback, written to an allocated file with a running CRC-32, `fdatasync`,
page cache dropped, read back, CRC-32 compared, SHA-256, ECDSA-P256 verified, 200. Measured from connect to the 200.

    mgota        the device as it is: `mgota serve --slots`, with its boot record and its lock
    floor        one blocking socket and one buffer in one Python process, no HTTP to speak of
    aiohttp      `iter_chunked`, files in threads
    anyio_h11    `SocketStream.receive`, h11's body events, files in threads

Rounds are interleaved, and a ratio is the median of the ratios within each round: what else the machine does hits both.
`--flat` tells the peak memory of the device for a small and a large image, with fast and with slow flash; `--lag` how
late its event loop runs during an upload, and how long a status takes meanwhile.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from device_costs import flat, lag
from servers import FLOOR, MGOTA, Image, Push, Server, installed_peers, make_image, peer

from mgota.core.keys import PrivateKey

WARM_UP = 2
"""Pushes before the first round: a device with two slots then overwrites an allocated file, as everybody else does."""

Pushes = dict[str, list[Push]]


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Push images over loopback, side by side.")
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="firmware in MiB (default 64)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default 7)")
    parser.add_argument("--peers", type=lambda text: text.split(","), default=installed_peers(), help="comma separated")
    parser.add_argument(
        "--dir", type=Path, default="/var/tmp", help="where files lie: a real disk (default /var/tmp, not memory)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--flat", nargs="?", type=two_sizes, const=(16, 256), metavar="S,L", help="peak memory at two sizes in MiB"
    )
    parser.add_argument("--lag", action="store_true", help="lag of the event loop, and of a status")
    given = parser.parse_args(arguments)
    if unknown := set(given.peers) - set(installed_peers()):
        parser.error(f"not installed, or no peer: {', '.join(sorted(unknown))}")
    return given


def two_sizes(text: str) -> tuple[int, int]:
    """A small and a large size in MiB."""
    small, large = text.split(",")
    return int(small), int(large)


_STEAL = 7
"""Column of /proc/stat: time that the host gave to others. A hundredth of it is enough to spoil a comparison."""


def run_rounds(servers: dict[str, Server], image: Image, rounds: int) -> Pushes:
    """Push to each in turn, every round in another order: what one leaves behind is not always paid by the same."""
    names, order = list(servers), Random(rounds)
    pushes: Pushes = {name: [] for name in names}
    for name in names:
        for _ in range(WARM_UP):
            servers[name].push(image)
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            pushes[name].append(servers[name].push(image))
    return pushes


def summary(pushes: Pushes) -> dict[str, dict[str, Any]]:
    """For each peer its medians, and its ratios to the floor where that ran."""
    return {
        name: {
            "mib_per_s": median(push.rate for push in done),
            "cpu_s_per_gib": median(push.cpu for push in done),
            "peak_rss_mib": max(push.rss for push in done),
            "rate_ratio": ratio(pushes, name, FLOOR, "rate"),
            "cpu_ratio": ratio(pushes, name, FLOOR, "cpu"),
            "pushes": [{"mib_per_s": push.rate, "cpu_s_per_gib": push.cpu, "peak_rss_mib": push.rss} for push in done],
        }
        for name, done in pushes.items()
        if done
    }


def ratio(pushes: Pushes, name: str, other: str, what: str) -> float | None:
    """The median over the rounds of one peer's value divided by another's in the same round."""
    pairs = zip(pushes.get(name, []), pushes.get(other, []), strict=False)
    values = [getattr(mine, what) / getattr(theirs, what) for mine, theirs in pairs]
    return median(values) if values else None


def goals(pushes: Pushes, costs: dict[str, Any]) -> list[dict[str, Any]]:
    """What mgota has to reach, what it reached, and whether that is enough. What was not measured is left out."""
    memory = [run["peak_rss_mib"] for run in costs.get("flat", [])]
    growth = [
        large["peak_rss_mib"] - small["peak_rss_mib"]
        for small, large in zip(costs.get("flat", [])[::2], costs.get("flat", [])[1::2], strict=True)
    ]
    memory += [push.rss for push in pushes.get(MGOTA, [])]
    late = costs.get("lag", {})
    rows = [
        ("rate ÷ floor", "≥", 0.85, ratio(pushes, MGOTA, FLOOR, "rate")),
        ("CPU ÷ floor", "≤", 1.25, ratio(pushes, MGOTA, FLOOR, "cpu")),
        ("rate ÷ aiohttp", "≥", 1.0, ratio(pushes, MGOTA, "aiohttp", "rate")),
        ("CPU ÷ aiohttp", "≤", 1.0, ratio(pushes, MGOTA, "aiohttp", "cpu")),
        ("peak RSS, MiB", "≤", 40.0, max(memory, default=None)),
        ("growth of peak RSS, MiB", "≤", 4.0, max(growth, default=None)),
        ("event loop lag p99, ms", "≤", 5.0, late.get("p99_ms")),
        ("status during an upload, max, ms", "≤", 100.0, late.get("status_max_ms")),
    ]
    return [
        {"goal": f"{what} {sense} {limit:g}", "value": value, "met": value >= limit if sense == "≥" else value <= limit}
        for what, sense, limit, value in rows
        if value is not None
    ]


def measure(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All that was asked for. Servers run side by side but are pushed to one at a time."""
    key = PrivateKey.generate()
    public = directory / "public.pem"
    public.write_bytes(key.public.pem())
    pushes: Pushes = {}
    before = _processor_times()
    if given.rounds > 0 and given.peers:
        image = make_image(directory / "image", given.size, key)
        with ExitStack() as stack:
            running = {name: stack.enter_context(peer(name, directory / name, public)) for name in given.peers}
            pushes = run_rounds(running, image, given.rounds)
        image.path.unlink()
    costs: dict[str, Any] = {}
    if given.flat:
        costs["flat"] = flat(directory, key, public, given.flat)
    if given.lag:
        costs["lag"] = lag(directory, key, public, given.size, max(given.rounds, 1))
    spent = [after - then for after, then in zip(_processor_times(), before, strict=True)]
    stolen = spent[_STEAL] / max(sum(spent), 1)
    found = {"size_mib": given.size, "rounds": given.rounds, "peers": summary(pushes), "stolen": stolen, **costs}
    return {**found, "goals": goals(pushes, costs)}


def _processor_times() -> list[int]:
    return [int(ticks) for ticks in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]


def table(found: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [
        f"{found['size_mib']} MiB, {found['rounds']} rounds; {found['stolen']:.1%} of the time went to other guests"
    ]
    lines += [f"{'':12}{'MiB/s':>10}{'÷ floor':>10}{'CPU s/GiB':>12}{'÷ floor':>10}{'peak RSS, MiB':>16}"]
    for name, row in found["peers"].items():
        rate, cpu = (f"{row[what]:.2f}" if row[what] else "-" for what in ("rate_ratio", "cpu_ratio"))
        lines.append(
            f"{name:12}{row['mib_per_s']:10.0f}{rate:>10}{row['cpu_s_per_gib']:12.2f}{cpu:>10}{row['peak_rss_mib']:16.1f}"
        )
    for run in found.get("flat", []):
        lines.append(f"peak RSS with {run['flash']} flash, {run['size_mib']} MiB: {run['peak_rss_mib']:.1f} MiB")
    if late := found.get("lag"):
        lines.append(
            "event loop lag: " + ", ".join(f"{name} {late[name]:.2f}" for name in ("p50_ms", "p99_ms", "max_ms"))
        )
        lines.append(f"status during an upload: max {late['status_max_ms']:.1f} ms of {late['statuses']}")
    for goal in found["goals"]:
        lines.append(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['goal']}: {goal['value']:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    given = options()
    given.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mgota-bench-", dir=given.dir) as directory:
        try:
            found = measure(given, Path(directory))
        except RuntimeError as exc:
            sys.exit(str(exc))
    print(json.dumps(found, indent=2) if given.json else table(found))


if __name__ == "__main__":
    main()
