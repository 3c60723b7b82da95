"""Which of two versions is the newer one. The only module that knows `packaging`, and loads it when it is asked.

Versions are ordered as Python's packages are (PEP 440), which takes what firmware versions look like: `1.2.3`, `v1.2`,
`1.2.3-rc.1`, `2026.11`, `1.2.3+build.5`. A text that cannot be ordered is never guessed at: it is None, and whoever
asked says what that means.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.version import Version

MAX_VERSION = 64
"""Characters of the longest version, as of the tag inside a firmware."""


def order(text: str | None) -> "Version | None":
    """What sorts as the version does; None if it cannot be ordered.

    Args:
        text: a version; None is one that nobody knows.
    """
    from packaging.version import InvalidVersion, Version  # noqa: PLC0415  who compares nothing does not load it

    if text is None or len(text) > MAX_VERSION or not text.isascii():
        return None
    try:
        return Version(text)
    except InvalidVersion:
        return None


def highest(versions: Iterable[str | None]) -> str | None:
    """The newest of the versions that can be ordered, as it was written; None if there is none."""
    best: tuple[Version, str] | None = None
    for text in versions:
        found = order(text)
        if text is not None and found is not None and (best is None or found > best[0]):
            best = found, text
    return best[1] if best else None


def is_version(text: str) -> bool:
    """Whether it has the form of a version in a manifest or a tag: 1 to 64 printable characters without spaces."""
    return 0 < len(text) <= MAX_VERSION and all("!" <= char <= "~" for char in text)
