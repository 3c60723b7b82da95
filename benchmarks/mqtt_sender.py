"""mgota's sender in a process of its own: one image to one device behind a broker.

    mqtt_sender.py URL WINDOW CHUNK IMAGE PID

It waits until the device answers, and then measures from before connect to the device's word that it takes the image.
Prints what `sender.py` prints; 200 stands for that word.
"""

import json
import sys
import time
from pathlib import Path

import anyio
from sender import process_clock

from mgota.transports.mqtt.sender import Remote


async def main(*arguments: str) -> None:
    """Send, and tell."""
    url, window, chunk, image, pid = arguments
    remote = Remote(url, window=int(window), chunk=int(chunk))
    await remote.status()
    clock = process_clock(int(pid))
    cpu, began = time.clock_gettime(clock), time.monotonic()
    async for _ in remote.push(Path(image)):
        pass
    ended, cpu = time.monotonic(), time.clock_gettime(clock) - cpu
    print(json.dumps({"status": 200, "began": began, "ended": ended, "cpu": cpu}))


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
