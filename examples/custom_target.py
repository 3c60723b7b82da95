"""A chip that mgota does not know: the seed's three calls as coroutines, and `read`, which verifying needs.

    python3 examples/custom_target.py STATE

The "chip" here is a pair of byte arrays. What is yours to write are the four coroutines of `Chip`; chunks of any size,
erasing, padding, the signature and the way back are mgota's or stay as they are in your driver.
"""

import sys

import anyio

from mgota import Device, OtaSession, boot_check, commit
from mgota.flash.custom import CustomBackend
from mgota.linux.state import FileState


class Chip:
    """Your driver: two banks, and a bit that says which one boots."""

    def __init__(self) -> None:
        self.banks = [bytearray(b"old firmware"), bytearray()]
        self.boots = self.runs = 0

    async def begin(self, size: int) -> None:
        """Make room in the bank that does not run."""
        if size > 1 << 20:
            raise ValueError("it does not fit")  # any exception, or False, is a refusal
        self.banks[1 - self.runs] = bytearray()

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Store the next bytes."""
        self.banks[1 - self.runs] += chunk

    async def read(self, offset: int, size: int) -> bytes:
        """Give back what is really stored."""
        return bytes(self.banks[1 - self.runs][offset : offset + size])

    async def end(self) -> None:
        """Make the new image the one that boots: set, never toggle."""
        self.boots = 1 - self.runs


async def main(state: str) -> None:
    """Update the chip once. STATE is the file where the boot record is kept."""
    chip = Chip()
    device = Device(flash=CustomBackend(chip.begin, chip.write, chip.end, chip.read), state=FileState(state))
    await boot_check(device)
    async with OtaSession(device, size=12) as ota:
        for chunk in (b"new ", b"firm", b"ware"):
            await ota.write(chunk)
        await ota.activate(await ota.seal())
    chip.runs = chip.boots  # the reset
    print("after the reset:", await boot_check(device))  # on trial
    print("committed:", await commit(device))
    print((await device.status()).as_dict(), bytes(chip.banks[chip.runs]))


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
