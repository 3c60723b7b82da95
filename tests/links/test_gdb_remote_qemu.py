"""QEMU's GDB server and a Cortex-M4 behind it: the old firmware prints, is replaced over the link, the new one prints.

What QEMU does not prove: that flash memory is erased and programmed. It has none; memory is written.
"""

import os
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from mgota.core.geometry import uniform
from mgota.errors import LinkError
from mgota.flash.links.gdb_remote import GdbRemote
from mgota.flash.links.wire import StreamWire, open_tcp

pytestmark = [pytest.mark.asyncio, pytest.mark.program("qemu-system-arm")]

GEOMETRY = uniform(32 << 10, 16 << 10, program_unit=4)

CODE = (
    0x4806,  # 08  ldr   r0, =USART1
    0x4907,  # 0a  ldr   r1, =UE | TE
    0x60C1,  # 0c  str   r1, [r0, #CR1]
    0xA107,  # 0e  adr   r1, text
    0x780A,  # 10  next: ldrb r2, [r1]
    0x2A00,  # 12  cmp   r2, #0
    0xD005,  # 14  beq   end
    0x6803,  # 16  wait: ldr r3, [r0, #SR]
    0x061B,  # 18  lsls  r3, r3, #24   TXE is bit 7
    0xD5FC,  # 1a  bpl   wait
    0x6042,  # 1c  str   r2, [r0, #DR]
    0x3101,  # 1e  adds  r1, #1
    0xE7F6,  # 20  b     next
    0xE7FE,  # 22  end:  b end
)
USART1, ENABLE = 0x40011000, 0x2008
STACK, ENTRY = 0x20001000, 0x08000009


def firmware(text: bytes) -> bytes:
    """A program for the STM32F405 that prints a text and goes on for ever."""
    words = [number.to_bytes(4, "little") for number in (STACK, ENTRY, USART1, ENABLE)]
    code = b"".join(half.to_bytes(2, "little") for half in CODE)
    image = b"".join(words[:2]) + code + b"".join(words[2:]) + text + b"\0"
    return image + b"\xff" * (-len(image) % 4)


class Board:
    """A machine in QEMU, and what it prints."""

    def __init__(self, port: int, printed: int) -> None:
        self.port = port
        self._printed = printed

    async def connect(self) -> StreamWire:
        while True:
            try:
                return await open_tcp("127.0.0.1", self.port)
            except LinkError:
                await anyio.sleep(0.02)

    async def line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            await anyio.wait_readable(self._printed)
            line += os.read(self._printed, 1)
        return line


@asynccontextmanager
async def board(tmp_path: Path) -> AsyncGenerator[Board]:
    (tmp_path / "old.bin").write_bytes(firmware(b"the old firmware\n"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ours, its = os.pipe()
    command = ["qemu-system-arm", "-M", "netduinoplus2", "-display", "none", "-monitor", "none", "-serial", "stdio"]
    command += ["-kernel", str(tmp_path / "old.bin"), "-gdb", f"tcp:127.0.0.1:{port}", "-S"]
    machine = await anyio.open_process(command, stdin=subprocess.DEVNULL, stdout=its, stderr=None)
    os.close(its)
    try:
        with anyio.fail_after(60):
            yield Board(port, ours)
        assert machine.returncode is None, "QEMU is gone"
    finally:
        os.close(ours)
        with anyio.CancelScope(shield=True):
            if machine.returncode is None:
                machine.kill()
            await machine.aclose()


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
