"""Where a chip is reached, as one text.

    gdb://127.0.0.1:3333                            a GDB server; QEMU's resets by ?reset=system_reset
    serial:///dev/ttyUSB0?baud=115200&proto=esp     a serial port, and what is spoken on it
    tcp://192.168.1.7:2217                          a serial port in the network, as raw bytes

Any text is a `LinkUrl` or a `ConfigError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

from mgota.errors import ConfigError

SCHEMES: Final = ("gdb", "serial", "tcp")
_OPTIONS: Final = frozenset({"baud", "proto", "reset"})
FASTEST: Final = 10_000_000
"""Bits per second of the fastest port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUrl:
    """Where a chip is reached.

    Args:
        scheme: one of `SCHEMES`.
        host: name or address; "" of a serial port.
        port: of TCP; 0 of a serial port.
        path: of a serial port; "" of TCP.
        baud: bits per second, or None for what the protocol begins with.
        proto: the protocol, or None for the target's own.
        reset: the GDB server's command that resets the chip, or None for the usual one.
    """

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""
    baud: int | None = None
    proto: str | None = None
    reset: str | None = None


def parse_link(text: str) -> LinkUrl:
    """What a text names.

    Raises:
        ConfigError: no chip can be reached there.
    """
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname or ""
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError as exc:
        raise ConfigError(f"{text!r} is no link: {exc}") from exc
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"a link begins with {', '.join(f'{scheme}://' for scheme in SCHEMES)}, not {text!r}")
    if parts.username is not None or parts.fragment or set(options) - _OPTIONS:
        raise ConfigError(f"a link has a place and the options baud, proto and reset, nothing else: {text!r}")
    baud, proto, reset = _baud(options), options.get("proto"), options.get("reset")
    if parts.scheme == "serial":
        path = unquote(parts.path)
        if host or port is not None or len(path) < 2 or "\0" in path:
            raise ConfigError(f"a serial link names a port's path, as serial:///dev/ttyUSB0, not {text!r}")
        return LinkUrl(scheme="serial", path=path, baud=baud, proto=proto, reset=reset)
    if not host or not port or parts.path not in {"", "/"}:
        raise ConfigError(
            f"a {parts.scheme} link names host and port, as {parts.scheme}://127.0.0.1:3333, not {text!r}"
        )
    if baud is not None:
        raise ConfigError("a network has no baud: that is for serial:///…")
    return LinkUrl(scheme=parts.scheme, host=host, port=port, proto=proto, reset=reset)


def _baud(options: Mapping[str, str]) -> int | None:
    text = options.get("baud")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 0 < int(text) <= FASTEST):
        raise ConfigError(f"baud is a number of bits per second, up to {FASTEST}, not {text!r}")
    return int(text)
