"""mgota on real NOR flash: a chip that the kernel drives, behind /dev/mtd0.

The first life proves the flash memory and the state store on it; every life then stores a boot record more.
"""

import logging
import os
import sys

import anyio

from mgota.core.record import BootRecord
from mgota.flash.norstate import NorState
from mgota.linux.mtd import MtdDevice, MtdFlash
from mgota.testing import check_nor_flash, check_state_store

PATH = "/dev/mtd0"
UNPROGRAMMED, FIRST, SECOND = 0xFF, 0xF0, 0x3C


def say(text: str) -> None:
    """A line on the console."""
    sys.stdout.write(f"nor: {text}\n")
    sys.stdout.flush()


def prove_that_it_is_nor() -> None:
    """Bits go from 1 to 0, and back only by an erase. A file would keep the last byte written."""
    device = MtdDevice(PATH)
    device.erase(0, device.info().erase_size)
    fd = os.open(PATH, os.O_RDWR)
    try:
        seen = [os.pread(fd, 1, 0)[0]]
        for byte in (FIRST, SECOND):
            os.pwrite(fd, bytes([byte]), 0)
            seen.append(os.pread(fd, 1, 0)[0])
    finally:
        os.close(fd)
    say(f"bytes {seen[0]:02x} {seen[1]:02x} {seen[2]:02x}")


def build_state(flash: MtdFlash) -> NorState:
    """In the last sectors but one, so that there is another behind it."""
    return NorState(flash, flash.geometry.sectors[-4:-1])


async def main() -> None:
    """One life."""
    device = MtdDevice(PATH)
    info = device.info()
    say(f"kind {info.kind}, {info.size} bytes, erase {info.erase_size}, write {info.write_size}")
    flash = MtdFlash(device)
    record = await build_state(flash).load()
    if record is None:
        prove_that_it_is_nor()
        await check_nor_flash(lambda: flash)
        say("the flash memory keeps its promises")
        for sector in flash.geometry.sectors[-4:-1]:
            await flash.erase(sector)
        await check_state_store(lambda: build_state(flash))
        say("the state store keeps its promises")
        for sector in flash.geometry.sectors[-4:-1]:
            await flash.erase(sector)
        record = BootRecord()
    state = build_state(flash)
    await state.load()
    say(f"revision {record.revision}")
    while True:
        record = record.next(reason=f"life {record.revision}")
        say(f"storing {record.revision}")
        await state.store(record)
        say(f"stored {record.revision}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="nor: %(name)s %(message)s", stream=sys.stdout)
    anyio.run(main)
