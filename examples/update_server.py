"""An update server of one's own: a directory for devices to pull from, and a word about those that rolled back.

    mgota manifest sign app.signed.bin --key private.pem --seq 7 -o firmware/manifest.json
    cp app.signed.bin firmware/
    python3 examples/update_server.py firmware [PORT]
    mgota pull http://127.0.0.1:8080/manifest.json --slots DIR --key public.pem --current-version 1.0

`mgota publish firmware` does the same without a line of Python. So does any web server that knows ranges; what it does
not know is which device asked, and with which version. A device tells that in the query, as Mongoose's devices do.
"""

import sys
from pathlib import Path

import anyio

from mgota.transports.http.publish import Publisher
from mgota.transports.http.server import listening


async def tell_rollbacks(publisher: Publisher) -> None:
    """Say once of every device and version that it did not work out."""
    told: set[tuple[str, str]] = set()
    while True:
        for device in publisher.sightings.latest():
            if device.boot == "ROLLED BACK" and (device.id, device.version) not in told:
                told.add((device.id, device.version))
                print(f"{device.id} went back to {device.version}", flush=True)
        await anyio.sleep(0.5)


async def main(directory: str, port: int) -> None:
    """Until it is ended."""
    publisher = Publisher(Path(directory))
    async with listening(publisher, host="127.0.0.1", port=port) as server:
        print(f"listening on {server.url}", flush=True)
        await tell_rollbacks(publisher)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int((sys.argv[2:] or ["8080"])[0]))
