"""What the simulator, the writer and the swap cost, in memory: nobody should wait for them in a test.

    python benchmarks/flash.py [--json]

Programs 64 MiB at once, writes an image through the writer, and swaps two images of 896 KiB on an STM32F429xI. Best of
several runs: what is wanted is the code's own cost, not the machine's other business.
"""

import argparse
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from mgota.core.geometry import Slot, uniform
from mgota.core.swap import HostJournal, SwapState, plan_swap, select
from mgota.flash.simulator import NorSimulator
from mgota.flash.targets.table import find_target
from mgota.flash.targets.virtual import virtual_target
from mgota.testing.jobs import KeptBeside, carry_out_now

MIB = 1 << 20
ROUNDS = 5

GOALS = (("program_mb_per_s", 200.0, True), ("swap_896_kib_s", 1.0, False))
"""Name, bound, and whether more is better."""


async def best(work: Callable[[], Awaitable[float]]) -> float:
    """Seconds of the fastest of several runs."""
    return min([await work() for _ in range(ROUNDS)])


async def program_at_once() -> float:
    """64 MiB in programs of 1 MiB."""
    flash = NorSimulator(uniform(64 * MIB, 256 << 10, program_unit=16))
    data = bytes(range(256)) * (MIB // 256)
    began = time.perf_counter()
    for offset in range(0, 64 * MIB, MIB):
        await flash.program(offset, data)
    return time.perf_counter() - began


async def write_an_image() -> float:
    """1 MiB into a bank of an STM32H5, by chunks of 64 KiB, sectors of 8 KiB erased on the way."""
    chip = virtual_target(find_target("stm32h5"))
    chunk = bytes(range(256)) * 256
    began = time.perf_counter()
    writer = await chip.backend.open_writer(Slot.B, MIB)
    for _ in range(MIB // len(chunk)):
        await writer.write(chunk)
    await writer.finish()
    return time.perf_counter() - began


async def swap() -> float:
    """896 KiB against 896 KiB; the journal costs nothing here."""
    target = find_target("stm32f4", "STM32F429xI")
    assert target.geometry
    layout = plan_swap(target.geometry, target.journal)
    flash = NorSimulator(target.geometry)
    beside = KeptBeside(flash.operations)
    flash.program_now(layout.primary.start, b"\x55" * layout.max_image)
    flash.program_now(layout.aside(1).start, b"\xaa" * layout.max_image)
    began = time.perf_counter()
    state = carry_out_now(select(layout, HostJournal(), SwapState(), Slot.B), flash, beside)
    took = time.perf_counter() - began
    assert state.base is Slot.B
    assert flash.peek(layout.primary.start, layout.max_image) == b"\xaa" * layout.max_image
    return took


async def measure() -> dict[str, float]:
    """All of it."""
    return {
        "program_mb_per_s": 64 * MIB / 1e6 / await best(program_at_once),
        "writer_mb_per_s": MIB / 1e6 / await best(write_an_image),
        "swap_896_kib_s": await best(swap),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What simulator, writer and swap cost.")
    parser.add_argument("--json", action="store_true", help="print JSON instead of lines")
    options = parser.parse_args()
    found: dict[str, Any] = anyio.run(measure)
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:20}{value:10.3g}")
    for name, bound, more in GOALS:
        met = found[name] >= bound if more else found[name] <= bound
        print(f"{'met    ' if met else 'MISSED '} {name} {'≥' if more else '≤'} {bound:g}")


if __name__ == "__main__":
    main()
