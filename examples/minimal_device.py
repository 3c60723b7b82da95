"""The smallest device: two slots as files, served over HTTP on loopback.

    python3 examples/minimal_device.py DIR [PORT]
    mgota push firmware.bin http://127.0.0.1:8000

Whoever starts it again after it ends is the reset: `while true; do python3 examples/minimal_device.py DIR; done`.
It takes every image. To take only your own, give the device a `verifier=Verifier(keys=[load_public_key(pem)])`.
"""

import os
import sys

import anyio

from mgota import boot_check, run_trial
from mgota.linux.environment import file_device
from mgota.transports.http import serve


class Exit:
    """The reset of a program: it ends, as abruptly as a chip does."""

    async def reset(self) -> None:
        """End."""
        os._exit(0)


async def main(directory: str, port: int) -> None:
    """One boot."""
    device = file_device(directory, reset=Exit(), window=30)
    await boot_check(device)  # first of all: which image runs, and is it on trial?
    async with serve(device, port=port) as server:
        print(f"listening on {server.url}", flush=True)
        await run_trial(device)  # until somebody commits; at the window's end it resets, and the next boot rolls back
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int((sys.argv[2:] or ["8000"])[0]))
