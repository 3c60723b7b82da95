"""Which names a server answers to, and what a web page in somebody's browser may ask of it.

A browser inside the network will carry requests of any page it shows. Three rules keep such pages out:
- the Host must be one that this device is known by, or DNS rebinding makes a foreign page "same origin";
- a foreign Origin (`null` is one) and a cross-site fetch are refused, whatever the method;
- a request that changes something and comes from a browser needs a header that a plain cross-site form cannot set.

Addresses are compared as addresses, names without case and trailing dot, and the port of a Host not at all.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from mgota.core.http import Ends, Head, Refusal
from mgota.errors import ConfigError

_AUTHORITY = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]+)(?:%[0-9A-Za-z._~%-]+)?\]|(?P<name>[0-9A-Za-z._-]+))(?::(?P<port>[0-9]{0,5}))?"
)
_ORIGIN = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#@]+)")
_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_TRUSTED_SITES: Final = frozenset({"none", "same-origin"})

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110 section 9.2.1)."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A host and, if it was written, a port.

    Args:
        host: a name in lower case without trailing dot, or an IP address in its shortest form without brackets.
        port: None if there was none.
    """

    host: str
    port: int | None = None


def plain_address(text: str) -> IPv4Address | IPv6Address | None:
    """The IP address that `text` spells, or None. A scope is dropped; an IPv4 address in IPv6 clothes is undressed."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """Whether `host` (normalised) can only mean this machine."""
    address = plain_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def parse_authority(text: str) -> Authority | None:
    """`host[:port]` as it stands in a Host field, normalised; None if it is malformed."""
    match = _AUTHORITY.fullmatch(text)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if port is not None and port > 65535:
        return None
    host: str = match["six"] or match["name"].removesuffix(".").lower()
    address = plain_address(host)
    if address is not None:
        return Authority(str(address), port)
    return Authority(host, port) if match["name"] and host else None


def _allowed_name(name: str) -> str:
    address = plain_address(name)
    authority = Authority(str(address)) if address else parse_authority(name)
    if authority is None:
        raise ConfigError(f"{name!r} is not a host name that a client could send")
    return authority.host


@dataclass(frozen=True)
class Hosts:
    """The names that a server answers to, besides the loopback names and each connection's own address.

    Args:
        allowed: further names or addresses; a port in them is ignored.

    Raises:
        ConfigError: one of them could never be in a Host field.
    """

    allowed: Iterable[str] = ()
    _names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_names", frozenset(map(_allowed_name, self.allowed)))

    def _knows(self, host: str, ends: Ends) -> bool:
        own = plain_address(ends.own) if ends.own else None
        return is_loopback(host) or host in self._names or (own is not None and host == str(own))

    def check(self, head: Head, ends: Ends) -> Refusal | None:
        """Whether the request names this server: 400 without one well-formed Host, 421 for a foreign one."""
        hosts = head.values("host")
        if len(hosts) != 1:
            return Refusal(400, "a request needs exactly one Host")
        for text in (*hosts, head.authority):
            authority = None if text is None else parse_authority(text)
            if text is not None and authority is None:
                return Refusal(400, "malformed Host")
            if authority is not None and not self._knows(authority.host, ends):
                name = authority.host
                return Refusal(421, f"this device is not known as {name}; allow it with --allow-host {name}")
        return None


def is_same_origin(origin: str, host: str, *, secure: bool) -> bool:
    """Whether a page of `origin` was served by the very server that is addressed as `host` (RFC 6454 section 5).

    Args:
        origin: the value of an Origin field.
        host: the value of the Host field.
        secure: whether the server speaks TLS; a TLS server's own origin is https.
    """
    match = _ORIGIN.fullmatch(origin.lower())
    here = parse_authority(host)
    there = parse_authority(match["authority"]) if match else None
    if match is None or here is None or there is None:
        return False
    scheme = "https" if secure else "http"
    default = _DEFAULT_PORT[scheme]
    same_host = there.host == here.host and (there.port or default) == (here.port or default)
    return match["scheme"] == scheme and same_host


def foreign_page(head: Head, *, secure: bool) -> Refusal | None:
    """403 when the browser says that a foreign page made this request."""
    host = head.value("host") or ""
    if not all(is_same_origin(origin, host, secure=secure) for origin in head.values("origin")):
        return Refusal(403, "requests from a foreign origin are refused")
    if not all(site in _TRUSTED_SITES for site in head.values("sec-fetch-site")):
        return Refusal(403, "cross-site requests are refused")
    return None


def is_navigation(head: Head) -> bool:
    """Whether a person opens this in a tab of its own: by a link or an address, not inside of another page.

    A browser says so with Sec-Fetch-Mode and Sec-Fetch-Dest (W3C Fetch Metadata, section 2).
    """
    return (
        head.method in SAFE_METHODS
        and head.values("sec-fetch-mode") == ["navigate"]
        and head.values("sec-fetch-dest") == ["document"]
    )


def unproven_page(head: Head, *, changes: bool) -> Refusal | None:
    """403 when a browser asks for a change without a header field that a plain form cannot set.

    Args:
        head: the request.
        changes: whether it would change anything.
    """
    browser = any(name in {"origin", "referer"} or name.startswith("sec-fetch-") for name, _ in head.fields)
    proven = head.value("authorization") is not None or head.values("x-mgota") == ["1"]
    if changes and browser and not proven:
        return Refusal(403, "a browser's request needs Authorization or X-MGOTA: 1")
    return None
