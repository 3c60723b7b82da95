"""What devices tell of themselves when they ask for a manifest: Mongoose's `arch, version, id, interval, boot`.

Anybody can tell anything: this is for people to look at, and nothing is decided by it. The table is bounded, and who
was not seen for the longest time goes first.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

MAX_DEVICES: Final = 10_000
MAX_FIELDS: Final = 20
MAX_TEXT: Final = 64
"""Characters of a value that are kept."""

BOOT: Final = {"0": "CONFIRMED", "1": "TESTING", "2": "FAILED", "3": "ROLLED BACK"}
"""Mongoose's numbers of the boot state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A device, as it last showed itself.

    Args:
        id: as it calls itself; its address in brackets, if it does not.
        version: that it runs.
        arch: its architecture.
        boot: its boot state in words, or the number if there is no word for it.
        interval: seconds until it asks again, as it says.
        path: that it asked for.
        peer: its address.
        seen: when, in Unix seconds.
        count: how often since the server began.
    """

    id: str
    version: str
    arch: str
    boot: str
    interval: str
    path: str
    peer: str
    seen: float
    count: int = 1

    def as_dict(self) -> dict[str, object]:
        """The device as JSON (SPEC.md, update server)."""
        return {name: getattr(self, name) for name in self.__slots__}


class Sightings:
    """The devices that were seen.

    Args:
        limit: most of them.
    """

    def __init__(self, limit: int = MAX_DEVICES) -> None:
        self._limit = limit
        self._devices: OrderedDict[str, Sighting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._devices)

    def note(self, target: str, *, peer: str, now: float) -> None:
        """A request was answered.

        Args:
            target: path and query, as sent. Without a word of Mongoose's in the query it is nobody's.
            peer: the client's address.
            now: Unix seconds.
        """
        path, _, query = target.partition("?")
        told = _told(query)
        if not told.keys() & {"id", "version", "boot"}:
            return
        name = told.get("id") or f"[{peer}]"
        before = self._devices.pop(name, None)
        boot = told.get("boot", "")
        self._devices[name] = Sighting(
            id=name,
            version=told.get("version", ""),
            arch=told.get("arch", ""),
            boot=BOOT.get(boot, boot),
            interval=told.get("interval", ""),
            path=_clean(path),
            peer=peer,
            seen=now,
            count=before.count + 1 if before else 1,
        )
        while len(self._devices) > self._limit:
            self._devices.popitem(last=False)

    def latest(self) -> list[Sighting]:
        """All of them, who was seen last first."""
        return list(reversed(self._devices.values()))


def _told(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        return {}
    return {name: _clean(value) for name, value in pairs}


def _clean(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_TEXT])
