"""Prove a backend of your own: the power goes at every operation, in eight ways, and again while the device recovers.

    python3 examples/prove_custom_backend.py

`_Chip` is your driver, as in custom_target.py: two banks, and a register that says which of them boots.
"""

from functools import partial

import anyio

from mgota.core.geometry import Area, uniform
from mgota.flash.custom import CustomBackend
from mgota.flash.writer import NorWriter
from mgota.testing import ALL_MODES, NorSimulator, check_flash_backend, every_power_cut

BANK = 32 << 10
GEOMETRY = uniform(2 * BANK, 4096, program_unit=16)


class _Chip:
    def __init__(self, flash: NorSimulator) -> None:
        self.flash, self.boots, self.runs = flash, flash.register("boot bank"), 0

    async def running(self) -> str:  # asked once per boot
        self.runs = await self.boots.read()
        return "ab"[self.runs]

    async def begin(self, size: int) -> None:
        self.left, self.writer = size, NorWriter(self.flash, Area((1 - self.runs) * BANK, BANK), size)

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        await self.writer.write(chunk)
        self.left -= len(chunk)
        if not self.left:
            await self.writer.finish()

    async def read(self, offset: int, size: int, *, other: int = 1) -> bytes:
        return await self.flash.read((self.runs ^ other) * BANK + offset, size)

    async def end(self) -> None:
        await self.boots.write(1 - self.runs)  # one atomic write


def build(flash: NorSimulator) -> CustomBackend:
    """Make the backend, as at every boot: flash memory and register survive one, and nothing else."""
    c = _Chip(flash)
    driver = partial(CustomBackend, c.begin, c.write, c.end, c.read, rollback=c.end, max_image=BANK)
    return driver(running=c.running, read_running=partial(c.read, other=0))


async def main() -> None:
    """Ask first whether it does what a backend promises, then whether it does so without power."""
    await check_flash_backend(partial(build, NorSimulator(GEOMETRY)), blank=False)
    report = await every_power_cut(build, GEOMETRY, factory=lambda flash, image: flash.poke(0, image), recuts=ALL_MODES)
    print(report)
    report.check()


anyio.run(main)
