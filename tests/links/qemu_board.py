"""A Cortex-M4 in QEMU behind its GDB server, and a firmware that prints one line."""

import os
import socket
import subprocess
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from mgota.errors import LinkError
from mgota.flash.links.wire import StreamWire, open_tcp

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
async def board(tmp_path: Path, console: int | None = None) -> AsyncGenerator[Board]:
    """A machine that waits to be let run.

    Args:
        tmp_path: for its first firmware.
        console: port of a TCP server that its UART connects to; None gives what it prints to `line`.
    """
    (tmp_path / "old.bin").write_bytes(firmware(b"the old firmware\n"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ours, its = os.pipe()
    command = ["qemu-system-arm", "-M", "netduinoplus2", "-display", "none", "-monitor", "none", "-serial"]
    command.append("stdio" if console is None else f"tcp:127.0.0.1:{console}")
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
