"""When to look for an update again.

| the last poll | the next one |
|---|---|
| went well | after the interval, give or take its jitter |
| was the first | within the jitter: devices that were switched on together do not ask together |
| failed | within a minute, and never later than the interval; then doubled each time, up to an hour, or the interval |
| was put off by the application | when it said, or after the interval |
"""

from typing import Final

from mgota.errors import ConfigError

SOON: Final = 60.0
LATE: Final = 3600.0
SHORTEST: Final = 1.0
"""Seconds between two polls, whatever an application asks for."""


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
