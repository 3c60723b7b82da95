"""On which line of a TOML file something stands: what a person needs to mend it.

`tomllib` parses and says nothing of places. Here only headers and the beginnings of `key = value` lines are looked for;
what stands inside of a value is found where its key is. The text has been parsed before: it is TOML (1.0.0).
"""

import re
import tomllib
from collections.abc import Mapping
from typing import Any, Final, cast

Path = tuple[str, ...]
"""Names from the top of the file down to a value."""

_HEADER: Final = re.compile(r"\s*(\[\[?)\s*(.+?)\s*\]\]?\s*(?:#.*)?$")
_NAME: Final = r"""(?:[A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')"""
_KEY: Final = re.compile(rf"\s*({_NAME}(?:\s*\.\s*{_NAME})*)\s*=")
_MULTILINE: Final = re.compile(r'"""|\'\'\'')


def lines_of(text: str) -> Mapping[Path, int]:
    """The line, counted from 1, on which each table and each value begins.

    Args:
        text: a TOML document.
    """
    found: dict[Path, int] = {}
    table: Path = ()
    inside = False  # of a text of several lines
    for number, line in enumerate(text.splitlines(), 1):
        was_inside, inside = inside, inside ^ bool(len(_MULTILINE.findall(line)) % 2)
        if was_inside:
            continue
        if header := _HEADER.match(line):
            table = _names(header[2])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            path = (*table, *_names(key[1]))
            for length in range(len(table) + 1, len(path) + 1):
                found.setdefault(path[:length], number)
    return found


def _names(dotted: str) -> Path:
    """The names in a dotted key; one that cannot be read is taken as it stands."""
    try:
        parsed: Any = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return (dotted,)
    names: list[str] = []
    while isinstance(parsed, dict):
        [(name, parsed)] = cast(dict[str, Any], parsed).items()
        names.append(name)
    return tuple(names)


def line_of(lines: Mapping[Path, int], path: Path) -> int:
    """The line of a value, or of what it stands in; 1 if nothing of it is there."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)
