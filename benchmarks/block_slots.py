"""256 MiB written to a loop device and verified, beside `dd conv=fdatasync` and `sha256sum` of the same. Needs root.

    python benchmarks/block_slots.py [--size MIB] [--rounds N] [--dir DIR] [--json]

    mgota        `OtaSession` on `BlockSlots`, boot record and all: written as it comes, made durable, dropped from the
                 cache, read back, CRC-32 compared, SHA-256
    dd           `dd bs=1M conv=fdatasync`, then `sha256sum` of as many bytes, which the cache may still have

Both read the image from one file. Rounds are interleaved, each in another order, and the ratio is the median of those
within each round: what else the machine does hits both. The memory is this process's, image and all.
"""

import argparse
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import anyio

from mgota.core.geometry import Slot
from mgota.device import Device
from mgota.linux.blockslots import BlockSlots
from mgota.linux.selected import SelectedSlots
from mgota.linux.state import FileState
from mgota.session import OtaSession

MIB = 1 << 20


class NoSelector:
    """There is no bootloader, and nothing is activated."""

    async def selected_slot(self) -> Slot:
        return Slot.A

    async def select(self, slot: Slot, *, running: Slot) -> None:
        pass

    async def tried(self, slot: Slot) -> bool:  # noqa: ARG002
        return False

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        pass

    async def recover(self) -> None:
        pass

    async def selftest(self) -> None:
        pass


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def loop(stack: ExitStack, path: Path, size: int) -> str:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    device = run("losetup", "-f", "--show", path)
    stack.callback(run, "losetup", "-d", device)
    return device


async def update(devices: dict[Slot, str], source: Path, state: Path) -> None:
    flash = SelectedSlots(BlockSlots(devices), NoSelector(), running=Slot.A)
    device = Device(flash=flash, state=FileState(state))
    size = source.stat().st_size
    buffer = bytearray(MIB)
    async with OtaSession(device, size=size) as ota:
        with source.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                await ota.write(memoryview(buffer)[:count])
        await ota.activate(await ota.seal(), reset=False)


def plain(device: str, source: Path) -> None:
    run("dd", f"if={source}", f"of={device}", "bs=1M", "conv=fdatasync", "status=none")
    run("sh", "-c", f"head -c {source.stat().st_size} {device} | sha256sum")


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write block devices, side by side.")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the image (default 256)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count, behind one that does not (default 5)")
    parser.add_argument("--dir", default="/var/tmp", help="where files lie: a real disk (default /var/tmp, not memory)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args(arguments)


def measure(size: int, rounds: int, where: str) -> dict[str, Any]:
    """Seconds of each, round by round, and what comes of them."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where)))
        source = directory / "image"
        with source.open("wb") as file:
            for _ in range(size):
                file.write(os.urandom(MIB))
        devices = {
            Slot.A: loop(stack, directory / "a", MIB),
            Slot.B: loop(stack, directory / "b", (size + 4) * MIB),
        }
        works: dict[str, Callable[[], object]] = {
            "mgota": lambda: anyio.run(update, devices, source, directory / "state"),
            "dd": lambda: plain(devices[Slot.B], source),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        order = Random(rounds)
        for number in range(rounds + 1):  # the first one allocates the device's file
            for name in order.sample(list(works), len(works)):
                (directory / "state").unlink(missing_ok=True)
                begin = time.perf_counter()
                works[name]()
                if number:
                    seconds[name].append(time.perf_counter() - begin)
    return found(size, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def found(size: int, seconds: dict[str, list[float]], peak: float) -> dict[str, Any]:
    """Rates, the ratio, and whether the goals are met."""
    ratios = [theirs / ours for ours, theirs in zip(seconds["mgota"], seconds["dd"], strict=True)]
    ratio = median(ratios)
    return {
        "size_mib": size,
        "rounds": len(ratios),
        "peers": {
            name: {
                "mib_per_s": median(size / each for each in took),
                "rate_ratio": ratio if name == "mgota" else 1.0,
                "seconds": took,
            }
            for name, took in seconds.items()
        },
        "ratios": ratios,
        "peak_rss_mib": peak,
        "goals": [
            {"goal": "rate ÷ dd and sha256sum ≥ 0.9", "value": ratio, "met": ratio >= 0.9},
            {"goal": "peak RSS, MiB ≤ 40", "value": peak, "met": peak <= 40},
        ],
    }


def table(result: dict[str, Any]) -> str:
    """What a person reads."""
    lines = [
        f"{result['size_mib']} MiB to a loop device, {result['rounds']} rounds",
        f"{'':24}{'MiB/s':>8}{'ratio':>8}",
    ]
    names = {"mgota": "mgota", "dd": "dd and sha256sum"}
    for name, row in result["peers"].items():
        lines.append(f"{names[name]:24}{row['mib_per_s']:8.0f}{row['rate_ratio']:8.2f}")
    lines.append(f"ratio of each round: {' '.join(f'{one:.2f}' for one in result['ratios'])}")
    lines += [f"{'met ' if goal['met'] else 'MISSED'} {goal['goal']}: {goal['value']:.2f}" for goal in result["goals"]]
    return "\n".join(lines)


def main() -> None:
    given = options()
    result = measure(given.size, given.rounds, given.dir)
    print(json.dumps(result) if given.json else table(result))


if __name__ == "__main__":
    main()
