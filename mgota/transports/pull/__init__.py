"""Pull: a device fetches its updates from any web server. Needs the extra `pull` (httpx).

    decision = await check(url, "1.2.0")                                  is there one?
    pulled = await pull(device, url, note=FileNote("/var/lib/app/download"))
    await poll(device, url, interval=3600)                                for ever

What is served is a manifest (`mgota manifest` writes it) and the image that it names.
"""

from mgota.transports.pull.client import Web
from mgota.transports.pull.hooks import Gate, Hooks, Postpone
from mgota.transports.pull.polling import poll
from mgota.transports.pull.pulling import Pulled, check, pull

__all__ = ["Gate", "Hooks", "Postpone", "Pulled", "Web", "check", "poll", "pull"]
