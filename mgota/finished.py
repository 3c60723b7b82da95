"""An application is told how an update ended, whatever brought it. Nothing that it does then can stop the update.

    async def on_finished(result: VerifiedImage | OtaError) -> Response | None: ...

Rules:
- once for each update that ended: with the image, when it survives any cut and before its sender is told, or with why
  it came to nothing, when the device is free again. One that could not begin ended, too;
- not when the device stops, nor at a reset: what becomes of the image after that, its record and `Device.history` tell;
- what it returns is what the sender is told instead, where the transport lets an application say something else: over
  HTTP a `Response`. MQTT and other carriers of the RPC dialect have fixed replies, which senders compare.
"""

import logging
from collections.abc import Awaitable, Callable

import anyio

from mgota.errors import OtaError
from mgota.verified import VerifiedImage

log = logging.getLogger("mgota.finished")

OnFinished = Callable[[VerifiedImage | OtaError], Awaitable[object]]
"""Told how an update ended."""


async def tell_finished(on_finished: OnFinished | None, result: VerifiedImage | OtaError, patience: float) -> object:
    """Tell the application, if it wants to know. What it raises is logged.

    Args:
        on_finished: the application's function.
        result: the image, or why there is none.
        patience: seconds that it may take.

    Returns:
        What it returned; None if it failed or took too long.
    """
    if on_finished is None:
        return None
    try:
        with anyio.move_on_after(patience):
            return await on_finished(result)
        log.error("on_finished took too long")
    except Exception:
        log.exception("on_finished failed")
    return None
