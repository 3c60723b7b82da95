"""Polls for ever: a device that looks for updates by itself.

Rules:
- when the next poll comes is decided by `mgota.core.polls`;
- an image that was refused waits, longer each time, before it is fetched again: the fault may have been on the way;
- whatever fails is told and logged, and the next poll comes all the same: nothing but a cancellation ends it.
"""

import logging
import random
from collections.abc import Sequence
from typing import NoReturn, TypedDict, Unpack

import anyio

from mgota.core.keys import PublicKey
from mgota.core.offer import Policy
from mgota.core.polls import Refusals, check_interval, first_poll, next_poll
from mgota.core.signed_manifest import ManifestVerifier
from mgota.core.weburl import check_source
from mgota.device import Device
from mgota.errors import OtaError
from mgota.ports import Note
from mgota.transports.pull.client import Web
from mgota.transports.pull.hooks import Hooks, OnStatus
from mgota.transports.pull.pulling import Pulled, pull

log = logging.getLogger("mgota.pull")


class PullOptions(TypedDict, total=False):
    """What `pull` can be told besides the device and the URL."""

    current_version: str | None
    keys: Sequence[PublicKey] | None
    threshold: int
    allow_plain: bool
    policy: Policy
    force: bool
    hooks: Hooks | None
    on_status: OnStatus | None
    note: Note | None
    web: Web | None
    mongoose_query: bool
    device_id: str | None


async def poll(
    device: Device, url: str, *, interval: float = 3600.0, jitter: float = 0.1, **options: Unpack[PullOptions]
) -> NoReturn:
    """Pull again and again, for ever.

    Args:
        device: what is updated.
        url: of the manifest.
        interval: seconds between two polls, at least one.
        jitter: the part of the interval by which it varies.
        options: of `pull`.

    Raises:
        ConfigError: an interval or a threshold that cannot be, or a URL that may not be asked.
    """
    check_interval(interval, jitter)
    web, keys = options.get("web") or Web(), options.get("keys")
    keys = keys if keys is not None else device.verifier.keys if device.verifier else ()
    ManifestVerifier(keys=keys, threshold=options.get("threshold", 1))  # who cannot be satisfied is told now
    check_source(url, allow_http=web.allow_http or bool(keys))
    failures, refusals = 0, Refusals()
    wait = first_poll(interval, jitter, _draw())
    while True:
        await anyio.sleep(wait)
        pulled = await _once(device, url, interval, refusals, options)
        failures = 0 if pulled else failures + 1
        wait = next_poll(interval, jitter, _draw(), failures=failures, after=pulled.after if pulled else None)
        log.debug("the next poll comes in %.0f s", wait)


async def _once(device: Device, url: str, interval: float, refusals: Refusals, options: PullOptions) -> Pulled | None:
    """One pull; None if it failed."""
    try:
        return await pull(device, url, interval=interval, refusals=refusals, **options)
    except OtaError as exc:
        log.warning("the poll failed: %s", exc)
    except Exception:
        log.exception("the poll failed")  # a hook of the application
    return None


def _draw() -> float:
    return random.random()  # noqa: S311  to spread devices, not to hide
