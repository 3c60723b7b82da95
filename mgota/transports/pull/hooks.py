"""The application's say in a pull: three moments at which it can be put off, and what it is told.

| hook | asked | what is at stake |
|---|---|---|
| `may_download` | before the image is asked for | the network: is it a paid one? |
| `may_install` | before the staging slot is overwritten | the way back: it holds the previous image |
| `may_activate` | when the image is verified and staged | the device: is it busy? the new image starts at once |

Who returns False or raises `Postpone` is asked again later. An image whose activation is put off stays staged, also
over restarts, and is not downloaded again.
"""

import inspect
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from mgota.core.offer import Decision
from mgota.errors import ConfigError

log = logging.getLogger("mgota.pull")

LONGEST: Final = 1e9
"""Seconds, three decades, by which an update can be postponed. What is longer, or no number at all, would end polls."""

Hook = Callable[[Decision], Awaitable[bool]]
OnStatus = Callable[[str], object]


class Gate(StrEnum):
    """A moment at which a pull can be put off."""

    DOWNLOAD = "download"
    INSTALL = "install"
    ACTIVATE = "activate"


class Postpone(Exception):  # noqa: N818  it is an answer
    """Not now.

    Args:
        seconds: when to ask again, at least 0 and at most `LONGEST`; None leaves that to the interval of the polls.

    Raises:
        ConfigError: nobody can wait so long: it is negative, no number, or without an end.
    """

    def __init__(self, seconds: float | None = None) -> None:
        if seconds is not None and not 0 <= seconds <= LONGEST:
            raise ConfigError(f"an update is postponed by 0 to {LONGEST:.0f} seconds, not by {seconds}")
        super().__init__("postponed")
        self.seconds = seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What an application is asked. Each is awaited with the decision, whose manifest tells version and size.

    Args:
        may_download: before the image is asked for.
        may_install: before the staging slot is overwritten.
        may_activate: when the image is verified and staged.
    """

    may_download: Hook | None = None
    may_install: Hook | None = None
    may_activate: Hook | None = None

    async def ask(self, gate: Gate, decision: Decision) -> Postpone | None:
        """None to go on, or the answer that puts it off.

        Args:
            gate: the moment.
            decision: what would be installed.
        """
        hook = {
            Gate.DOWNLOAD: self.may_download,
            Gate.INSTALL: self.may_install,
            Gate.ACTIVATE: self.may_activate,
        }[gate]
        try:
            if hook is None or await hook(decision):
                return None
        except Postpone as exc:
            return exc
        return Postpone()


async def tell(on_status: OnStatus | None, text: str) -> None:
    """Tell a status. Whatever the callback does, the update goes on.

    Args:
        on_status: the callback, which may be asynchronous.
        text: one of the seed's ("Same version", "Pulling firmware", "OTA fail"), or a reason.
    """
    log.info("%s", text)
    if on_status is None:
        return
    try:
        told = on_status(text)
        if inspect.isawaitable(told):
            await told
    except Exception:
        log.exception("the status could not be told")
