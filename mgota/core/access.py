"""Who may: secrets, what a request presents, and how often it may be wrong.

Rules:
- a secret is kept as its SHA-256 digest and nothing else;
- digests are compared, whole and as bytes, in constant time and all of them: neither the length of a secret, nor
  a prefix that fits, nor whether a user exists can be measured (ESPHome compared only as many characters as
  the client had sent, CVE-2025-57808);
- an empty secret is refused when it is configured, and never matches;
- only a request that presents credentials can be wrong, so only such a one counts as a failure.
"""

import binascii
import hmac
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from ipaddress import IPv6Address, IPv6Network
from math import ceil
from typing import Final

from mgota.core.http import Head, Refusal
from mgota.core.origin import plain_address
from mgota.errors import ConfigError

_REALM: Final = (
    ("WWW-Authenticate", 'Bearer realm="mgota"'),
    ("WWW-Authenticate", 'Basic realm="mgota", charset="UTF-8"'),
)
# Both at once: a tool sends a token, and a browser asks for name and password (RFC 6750, RFC 7617).

_TOKEN_ONLY: Final = _REALM[:1]
# To a script of the updater page, which asks by itself: at the word Basic a browser would put its own dialog before it.

_MALFORMED: Final = b""
# Presented, but unreadable. It is no digest, so it equals none.


class Access(Enum):
    """What authentication found."""

    GRANTED = "granted"
    MISSING = "missing"
    """The request presents nothing."""
    WRONG = "wrong"


def _secret(value: str | bytes, what: str) -> bytes:
    data = value.encode() if isinstance(value, str) else bytes(value)
    if not data.strip():
        raise ConfigError(f"an empty {what} would let anybody in")
    return data


def _token_digest(token: bytes) -> bytes:
    return sha256(b"bearer\0" + sha256(token).digest()).digest()


def _user_digest(name: bytes, password: bytes) -> bytes:
    # Each part is digested before they are joined, so that no other split of the same bytes gives the same digest.
    return sha256(b"basic\0" + sha256(name).digest() + sha256(password).digest()).digest()


class Credentials:
    """Bearer tokens, and users with passwords for Basic authentication. Any one of them opens the door.

    Args:
        tokens: one token or several. Text counts as its UTF-8 bytes.
        users: passwords by user name.

    Raises:
        ConfigError: no secret at all, an empty one, or one that no client could send.
    """

    def __init__(
        self, *, tokens: str | bytes | Iterable[str | bytes] = (), users: Mapping[str, str | bytes] | None = None
    ) -> None:
        # A lone string is one token; taken as an iterable, each of its letters would be.
        several = (tokens,) if isinstance(tokens, str | bytes) else tuple(tokens)
        known = [_token_digest(self._checked_token(token)) for token in several]
        for name, password in (users or {}).items():
            if ":" in name:
                raise ConfigError("a user name cannot contain a colon: Basic authentication ends it there")
            known.append(_user_digest(name.encode(), _secret(password, "password")))
        if not known:
            raise ConfigError("credentials without a token and without a user would let nobody in")
        self._digests = tuple(known)

    @staticmethod
    def _checked_token(token: str | bytes) -> bytes:
        data = _secret(token, "token")
        if data != data.strip() or any(byte < 0x20 or byte == 0x7F for byte in data):
            raise ConfigError("a token with control characters or surrounding spaces cannot be sent in a header")
        return data

    def __repr__(self) -> str:
        return f"<Credentials, {len(self._digests)} secrets>"

    def check(self, head: Head) -> Access:
        """Whether the request presents one of the secrets. Two Authorization fields are never right."""
        fields = head.values("authorization")
        if not fields:
            return Access.MISSING
        presented = _presented(fields[0]) if len(fields) == 1 else _MALFORMED
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, presented)
        return Access.GRANTED if found else Access.WRONG


def _presented(field: str) -> bytes:
    """The digest of what an Authorization field presents."""
    scheme, _, rest = field.partition(" ")
    value = rest.strip(" \t").encode("latin-1", "replace")
    match scheme.lower():
        case "bearer":
            return _token_digest(value)
        case "basic":
            try:
                name, colon, password = b64decode(value, validate=True).partition(b":")
            except binascii.Error:
                return _MALFORMED
            return _user_digest(name, password) if colon else _MALFORMED
        case _:
            return _MALFORMED


@dataclass(slots=True)
class _Bucket:
    """Failures that still count, and when that was so."""

    failures: float
    at: float


class FailureBudget:
    """How many wrong credentials an address may present: so many at once, and one more every so often.

    IPv6 addresses count by their /64, which is what one client has. The number of addresses that are remembered is
    bounded; when it is reached, the one whose last failure is longest ago is forgotten.

    Args:
        limit: failures until an address has to wait.
        refill: failures forgiven per second.
        addresses: most addresses to remember.
    """

    def __init__(self, *, limit: int = 10, refill: float = 1.0, addresses: int = 1024) -> None:
        self._limit = limit
        self._refill = refill
        self._addresses = addresses
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()  # in the order of their last failures

    def __len__(self) -> int:
        return len(self._buckets)

    def _failures(self, key: str, now: float) -> float:
        bucket = self._buckets.get(key)
        return 0.0 if bucket is None else max(0.0, bucket.failures - (now - bucket.at) * self._refill)

    def wait(self, address: str, now: float) -> float:
        """Seconds until `address` may present credentials again; 0 if it may now.

        Args:
            address: the client's.
            now: seconds of any clock that does not go back.
        """
        return max(0.0, (self._failures(network(address), now) - self._limit + 1) / self._refill)

    def fail(self, address: str, now: float) -> None:
        """`address` presented wrong credentials at `now`."""
        key = network(address)
        failures = min(self._failures(key, now) + 1, float(self._limit))
        self._buckets[key] = _Bucket(failures, now)
        self._buckets.move_to_end(key)
        self._forget(now)

    def _forget(self, now: float) -> None:
        """Drop the addresses whose failures are all forgiven, and the oldest beyond the bound."""
        while self._buckets:
            oldest = next(iter(self._buckets))
            if self._failures(oldest, now) > 0 and len(self._buckets) <= self._addresses:
                return
            del self._buckets[oldest]


def network(address: str) -> str:
    """What counts as one client: an IPv4 address, the /64 of an IPv6 address, or any other text as it is."""
    plain = plain_address(address)
    if isinstance(plain, IPv6Address):
        return str(IPv6Network((plain, 64), strict=False))
    return address if plain is None else str(plain)


def refusal_for(access: Access, *, scripted: bool = False) -> Refusal | None:
    """401 unless access was granted.

    Args:
        access: what authentication found.
        scripted: whether a page's script asks, as `X-MGOTA: 1` says.
    """
    if access is Access.GRANTED:
        return None
    reason = "authentication is required" if access is Access.MISSING else "wrong credentials"
    return Refusal(401, reason, _TOKEN_ONLY if scripted else _REALM)


def too_many_failures(wait: float) -> Refusal:
    """429 with the seconds to wait."""
    seconds = max(1, ceil(wait))
    return Refusal(429, "too many failed attempts; wait", (("Retry-After", str(seconds)),))
