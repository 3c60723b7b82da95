"""Which URLs a device fetches from, and where it lets itself be sent.

Rules:
- `http:` and `https:` only. What comes over `http:` must be signed, or somebody has to have allowed it;
- a redirection stays at its origin (RFC 6454 section 4), or goes to one that is allowed; never from https to http;
- what is told of a URL in logs and messages has neither a password nor a query: both may be secrets.
"""

import re
from typing import Final
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from mgota.errors import ConfigError, TransferError

MAX_REDIRECTS: Final = 5
MAX_URL: Final = 8192

REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
"""Statuses that send a GET elsewhere (RFC 9110 section 15.4)."""

_PORTS: Final = {"http": 80, "https": 443}
_PLAIN = re.compile(r"[!-~\x80-\U0010ffff]+")  # no spaces, no control characters

Origin = tuple[str, str, int]


def _split(url: str) -> SplitResult | None:
    """The parts of an `http` or `https` URL, or None if it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in _PORTS and bool(parts.hostname) and parts.port != 0  # raises for a port that is none
    except ValueError:
        return None
    return parts if usable and len(url) <= MAX_URL and _PLAIN.fullmatch(url) else None


def origin(url: str) -> Origin:
    """Scheme, host and port of a URL.

    Raises:
        ConfigError: it is no http or https URL.
    """
    parts = _split(url)
    if parts is None or parts.hostname is None:
        raise ConfigError(f"no http or https URL: {shown(url)}")
    return parts.scheme, parts.hostname.lower(), parts.port or _PORTS[parts.scheme]


def shown(url: str) -> str:
    """A URL for a person to read: without user, password, query and fragment."""
    head = re.split("[?#]", url, maxsplit=1)[0]
    scheme, mark, rest = head.partition("://")
    authority, slash, path = rest.partition("/")
    text = scheme + mark + authority.rpartition("@")[2] + slash + path
    return "".join(char if char.isprintable() else "?" for char in text)[:200]


def check_source(url: str, *, allow_http: bool) -> None:
    """Whether something may be fetched from there.

    Args:
        url: where from.
        allow_http: `http:` will do: what comes is signed, or somebody said so.

    Raises:
        ConfigError: it is no URL, or one whose answers anybody on the way could have written.
    """
    if origin(url)[0] == "http" and not allow_http:
        raise ConfigError(f"{shown(url)} is not encrypted: configure a key to verify with, or allow http")


def resolved(base: str, reference: str) -> str:
    """The URL that a reference means which was found at `base`.

    Raises:
        TransferError: it means none.
    """
    try:
        url = urljoin(base, reference)
    except ValueError:
        url = ""
    if _split(url) is None:
        raise TransferError(f"this is no URL to fetch from: {shown(reference)}")
    return url


def is_reference(text: str) -> bool:
    """Whether a manifest can name an image by this: a URL of http or https, or one that is relative to such."""
    try:
        resolved("https://manifest.example/", text)
    except TransferError:
        return False
    return True


def redirected(url: str, location: str | None, *, allowed: frozenset[Origin] = frozenset()) -> str:
    """Where a redirection leads, if that is a place to go to. A name and a password stay with their origin.

    Args:
        url: that was asked.
        location: the Location field of the answer, or None.
        allowed: origins besides that of `url`.

    Raises:
        TransferError: it leads nowhere.
        ConfigError: it leads where it must not.
    """
    if not location:
        raise TransferError("the server redirects, and does not say where to")
    target = resolved(url, location)
    here, there = origin(url), origin(target)
    if here[0] == "https" and there[0] == "http":
        raise ConfigError(f"the server redirects from https to http: {shown(target)}")
    if there != here and there not in allowed:
        raise ConfigError(f"the server redirects to another origin, which is not allowed: {shown(target)}")
    return _with_user(target, url) if there == here else target


def _with_user(target: str, url: str) -> str:
    """A URL of the same origin, with the name and password that this origin was asked with before."""
    asked, parts = urlsplit(url), urlsplit(target)
    if asked.username is None or parts.username is not None:
        return target
    user = asked.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}").geturl()


def with_query(url: str, parameters: dict[str, str]) -> str:
    """A URL with further parameters, behind `?` or `&`.

    Args:
        url: what they are added to; a fragment is dropped.
        parameters: names and values; both are encoded.
    """
    head = url.partition("#")[0]
    return f"{head}{'&' if '?' in head else '?'}{urlencode(parameters)}"
