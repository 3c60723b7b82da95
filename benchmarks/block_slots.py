"""256 MiB written to a loop device and verified, beside `dd conv=fdatasync` and `sha256sum` of the same. Needs root.

    python benchmarks/block_slots.py [--size MiB] [--runs N] [--dir DIRECTORY]

Prints the ratio of the fastest runs, which take turns, and the peak of this process's resident memory.
"""

import argparse
import os
import resource
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=256, help="MiB")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dir", help="where the files of the loop devices lie; a disk, not a tmpfs")
    options = parser.parse_args()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        source = directory / "image"
        with source.open("wb") as file:
            for _ in range(options.size):
                file.write(os.urandom(MIB))
        devices = {
            Slot.A: loop(stack, directory / "a", MIB),
            Slot.B: loop(stack, directory / "b", (options.size + 4) * MIB),
        }
        ours, theirs = list[float](), list[float]()
        for number in range(options.runs):
            begin = time.perf_counter()
            plain(devices[Slot.B], source)
            middle = time.perf_counter()
            anyio.run(update, devices, source, directory / f"state{number}")
            theirs.append(middle - begin)
            ours.append(time.perf_counter() - middle)
            print(f"dd and sha256sum {theirs[-1]:6.2f} s    mgota {ours[-1]:6.2f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{min(theirs) / min(ours):.2f} of the rate of dd and sha256sum, peak RSS {peak:.0f} MiB")


if __name__ == "__main__":
    main()
