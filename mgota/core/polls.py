"""When to look for an update again.

| the last poll | the next one |
|---|---|
| went well | after the interval, give or take its jitter |
| was the first | within the jitter: devices that were switched on together do not ask together |
| failed | within a minute, and never later than the interval; then doubled each time, up to an hour, or the interval |
| brought a refused image | as after a failure; the image itself waits ten minutes, then twice as long, up to a day |
| was put off by the application | when it said, or after the interval |
"""

from typing import Final

from mgota.errors import ConfigError

SOON: Final = 60.0
LATE: Final = 3600.0
SHORTEST: Final = 1.0
"""Seconds between two polls, whatever an application asks for."""

REFUSED: Final = 600.0
"""Seconds before an image that was refused is fetched again; doubled each time, up to a day."""

DAY: Final = 86400.0

MAX_REFUSALS: Final = 16
"""Refused images that are remembered; the oldest one is forgotten."""


class Refusals:
    """Images that were refused. A byte may have been wrong on the way only: each is fetched again, after a while."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}

    def note(self, name: str, now: float) -> None:
        """An image was refused.

        Args:
            name: of the image.
            now: seconds on any clock that goes on.
        """
        _, before = self._seen.pop(name, (0.0, REFUSED / 2))
        wait = min(before * 2, DAY)
        self._seen[name] = (now + wait, wait)
        if len(self._seen) > MAX_REFUSALS:
            del self._seen[next(iter(self._seen))]

    def holds(self, name: str, now: float) -> bool:
        """Whether an image was refused so lately that it is not fetched again yet.

        Args:
            name: of the image.
            now: seconds on the clock of `note`.
        """
        until, _ = self._seen.get(name, (now, 0.0))
        return now < until


def check_interval(interval: float, jitter: float) -> None:
    """Whether polls can be so far apart.

    Args:
        interval: seconds.
        jitter: the part of the interval by which it varies, from 0 to 1.

    Raises:
        ConfigError: they cannot.
    """
    if not SHORTEST <= interval < float("inf"):
        raise ConfigError("the interval of polls is at least one second")
    if not 0 <= jitter <= 1:
        raise ConfigError("the jitter of polls is a part of their interval, from 0 to 1")


def first_poll(interval: float, jitter: float, draw: float) -> float:
    """Seconds until the first poll.

    Args:
        interval: seconds between polls.
        jitter: the part of it by which it varies.
        draw: a random number from 0 to 1.
    """
    return interval * jitter * draw


def next_poll(interval: float, jitter: float, draw: float, *, failures: int = 0, after: float | None = None) -> float:
    """Seconds until the next poll.

    Args:
        interval: seconds between polls.
        jitter: the part of it by which it varies.
        draw: a random number from 0 to 1.
        failures: polls in a row that failed.
        after: seconds that the application asked for.
    """
    if failures:
        wait = min(min(interval, SOON) * 2.0 ** min(failures - 1, 32), max(interval, LATE))
        return wait * (0.5 + draw / 2)
    if after is not None:
        return max(after, SHORTEST)
    return interval * (1 + jitter * (2 * draw - 1))
