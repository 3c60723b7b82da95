"""QEMU's GDB server and a Cortex-M4 behind it: the old firmware prints, is replaced over the link, the new one prints.

What QEMU does not prove: that flash memory is erased and programmed. It has none; memory is written.
"""

from pathlib import Path

import pytest
from qemu_board import board, firmware

from mgota.core.geometry import uniform
from mgota.flash.links.gdb_remote import GdbRemote

pytestmark = [pytest.mark.asyncio, pytest.mark.program("qemu-system-arm")]

GEOMETRY = uniform(32 << 10, 16 << 10, program_unit=4)


async def test_new_firmware_prints_after_an_update_and_the_old_one_after_the_way_back(tmp_path: Path) -> None:
    old, new = firmware(b"the old firmware\n"), firmware(b"a new firmware, of another length\n")
    async with board(tmp_path) as machine:
        async with await machine.connect() as wire:
            chip = GdbRemote(wire, GEOMETRY, reset="system_reset")
            await chip.enter()
            assert not chip.programs_flash
            await chip.run()
            assert await machine.line() == b"the old firmware\n"
            await chip.enter()  # it runs, and is stopped
            assert await chip.holds(0, old)
            await chip.erase(GEOMETRY.sectors[0])
            assert await chip.read(0, GEOMETRY.size // 2) == b"\xff" * (GEOMETRY.size // 2)
            await chip.program(0, new)
            assert await chip.read(0, len(new)) == new
            await chip.reset()
            assert await machine.line() == b"a new firmware, of another length\n"
        async with await machine.connect() as wire:  # as after a restart of the gateway
            chip = GdbRemote(wire, GEOMETRY, reset="system_reset")
            await chip.enter()
            assert await chip.holds(0, new)
            await chip.erase(GEOMETRY.sectors[0])
            await chip.program(0, old)
            await chip.reset()
            assert await machine.line() == b"the old firmware\n"
            await chip.enter()
            await chip.detach()


async def test_a_connection_that_broke_in_the_midst_of_a_request_is_followed_by_another(tmp_path: Path) -> None:
    new = firmware(b"new\n")
    async with board(tmp_path) as machine:
        for cut in (b"$", b"$M8000000,10:0011", b"$M8000000,1:00#", b"$m8000000,100#5", b"\x03"):
            async with await machine.connect() as wire:
                await wire.send(cut)
        async with await machine.connect() as wire:
            chip = GdbRemote(wire, GEOMETRY, reset="system_reset")
            await chip.enter()
            await chip.program(0, new)
            await chip.reset()
            assert await machine.line() == b"new\n"
