"""The names of several devices in one gateway, and how a path or a topic is read that holds one.

    /api/ota/<name>/update|commit|rollback|status        <root>/<name>/rx|tx|status

Rules:
- a name is one level of a path and of a topic, spelled one way only: ASCII letters, digits, `.`, `_` and `-`;
- `.` and `..` are none, since clients resolve them before they send;
- what the API itself says in that place, in whatever case, is none: `/api/ota/status` must not become a device.
"""

from collections.abc import Iterable
from typing import Final

from mgota.errors import ConfigError

MAX_NAME: Final = 64

_LETTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
_TAKEN: Final = frozenset({"update", "commit", "rollback", "status", "rx", "tx"})
# Verbs of the HTTP routes, and directions of the topics.


def name_fault(name: str) -> str | None:
    """Why a device cannot have this name; None if it can."""
    if not name:
        return "a device of a gateway needs a name, and this one is empty"
    if len(name) > MAX_NAME or set(name) - _LETTERS or name in {".", ".."}:
        return f"{name!r} is no name of a device: 1 to {MAX_NAME} letters, digits, '.', '_' and '-'"
    if name.lower() in _TAKEN:
        return f"{name!r} is no name of a device: it is a word of the API"
    return None


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of a gateway's devices, in their order.

    Raises:
        ConfigError: there are none, or one is none.
    """
    found = tuple(names)
    if not found:
        raise ConfigError("a gateway needs at least one device")
    for name in found:
        fault = name_fault(name)
        if fault:
            raise ConfigError(fault)
    return found


def split_name(rest: str) -> tuple[str, str]:
    """What stands behind the prefix of the routes, as the name of a device and its own route.

    Args:
        rest: of a path: empty, or begins with a slash.

    Returns:
        Such as `("main", "/update")`; two empty texts for no name, and `("main", "")` for a name alone. Whether such a
        device exists is not asked.
    """
    name, slash, route = rest.removeprefix("/").partition("/")
    return name, slash + route
