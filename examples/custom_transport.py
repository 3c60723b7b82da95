"""Updates over a serial line, a frame of SPEC.md's RPC a line. A transport of your own is this, and no more.

mgota run --dir /var/lib/app -- python3 custom_transport.py /dev/ttyUSB0
"""

import os
import sys
import termios
import tty
from collections.abc import AsyncIterator

import anyio

from mgota import Device
from mgota.core.rpc import MAX_FRAME
from mgota.receiver import Receiver
from mgota.responder import Responder


class SerialLine:
    """Frames on a serial line, each ended by a newline."""

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self._fd)

    async def frames(self) -> AsyncIterator[bytes]:
        """What comes in, until the line hangs up."""
        came = b""
        await anyio.wait_readable(self._fd)
        while piece := os.read(self._fd, 65536):
            *lines, came = (came + piece).split(b"\n")
            for line in filter(None, lines):
                yield line
            came = came[-MAX_FRAME:]  # of endless noise, no more than that is kept
            await anyio.wait_readable(self._fd)

    async def send(self, reply: bytes, certain: bool) -> None:
        """Send a reply; `certain` waits until it has left, because the device may reset next."""
        left = reply + b"\n"
        while left:
            await anyio.wait_writable(self._fd)
            left = left[os.write(self._fd, left) :]
        if certain:
            termios.tcdrain(self._fd)


async def serve(device: Device, line: SerialLine) -> None:
    """Let a device be updated over the line, until it hangs up."""
    receiver = Receiver(device)  # owns the update under way
    responder = Responder(device, receiver)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receiver.run)
        async for frame in line.frames():
            await responder.answer(frame, line.send)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(serve, Device.from_environment(), SerialLine(sys.argv[1]))
