"""What an HTTP request may do: from its head alone to a decision, before a byte of its body is read.

The order is the meaning (security.md, "HTTP edge"); each step may refuse:

    framing      every route     head_fault, on the raw bytes
    Host         every route     admit
    foreign page OTA routes      admit; to the updater page, which holds nothing secret, a link may lead
    credentials  OTA routes      Credentials or the application's callback
    page's proof OTA routes      route
    route        OTA routes      route: 404, 405
    length       update, piece   route: 411, 400, 413
    packing      update          route: 415, 400, 413; not_unpacked: 415
    size         update          too_large: 413
    lock         update          the session: 409

A route is one exact spelling of a path: nothing is decoded, merged or completed. Where one server has several devices,
the routes of each stand below its name, those without a name are not there, and the prefix itself lists the devices.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from mgota.core import older
from mgota.core.http import Ends, Head, Refusal, error_refusal
from mgota.core.names import check_names, name_fault, split_name
from mgota.core.origin import SAFE_METHODS, Hosts, foreign_page, is_navigation, unproven_page
from mgota.core.unpack import Packing, largest_packed, packings
from mgota.errors import ConfigError, EmptyImageError, TooLargeError


class Action(Enum):
    """What a request asks for."""

    UPDATE = "update"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    STATUS = "status"
    APP = "app"
    """Something of the application that the OTA routes are mounted beside."""
    PAGE = "page"
    """The updater page, for a person with a browser."""
    PIECE = "piece"
    """A piece of an image, as Mongoose's older dashboard sends it (`mgota.core.older`)."""
    SLOTS = "slots"
    """What the two slots hold, for that dashboard."""
    DEVICES = "devices"
    """The status of each device, where there are several."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A request that may be carried out.

    Args:
        action: what it asks for.
        size: of an update, the bytes of its image, unpacked; of a piece, those of the piece.
        length: of an update, the bytes of its body: fewer than those of its image, if it is packed.
        packing: how the body of an update is packed, or None.
        image: of a commit or rollback, the SHA-256 of the image that the sender means to be running, as hex, or None.
        offset: of a piece.
        total: of a piece, the bytes of its image.
        older: whether Mongoose's older dashboard asks, which expects other words.
        device: the name of the device that is meant, where there are several; else "".
    """

    action: Action
    size: int = 0
    length: int = 0
    packing: Packing | None = None
    image: str | None = None
    offset: int = 0
    total: int = 0
    older: bool = False
    device: str = ""


_ROUTES: Final = {
    "": Action.UPDATE,  # Mongoose 7.22's dashboard posts to the prefix itself
    "/update": Action.UPDATE,
    "/commit": Action.COMMIT,
    "/rollback": Action.ROLLBACK,
    "/status": Action.STATUS,
}
_OLDER_ROUTES: Final = {
    "/upload": Action.PIECE,
    "/status": Action.SLOTS,
    "/commit": Action.COMMIT,
    "/rollback": Action.ROLLBACK,
}
_READS: Final = frozenset({Action.STATUS, Action.PAGE, Action.SLOTS, Action.DEVICES})
_LEGACY: Final = frozenset({Action.COMMIT, Action.ROLLBACK})

IMAGE_FIELD: Final = "x-mgota-image"
"""Binds a commit or rollback to the image that runs, so that a replayed one is refused after the next update."""

SIZE_FIELD: Final = "x-mgota-size"
"""The bytes of an image that comes packed, unpacked: what is signed, checked and counted."""

_PACKINGS: Final = {"": None, "identity": None, "gzip": Packing.GZIP, "x-gzip": Packing.GZIP, "zstd": Packing.ZSTD}

_DIGITS: Final = 20
# Of the largest size that is read: far beyond any slot.


@dataclass(frozen=True, kw_only=True)
class Edge:
    """The rules of one server.

    Args:
        prefix: the path that the OTA routes begin with.
        legacy_get: let GET commit and roll back, as old dashboards do. A web page can make a browser send that.
        has_app: whether other paths belong to an application; otherwise there are none.
        allow_hosts: further names that the server answers to.
        page: the path of the updater page, or None without one. It goes before the application's own.
        older: the path that Mongoose's older routes begin with, or None without them.
        devices: the names of the devices, where there are several; None for one that has none.

    Raises:
        ConfigError: a prefix, the page or a name can never be in a request, or the page is among the OTA routes; or
            something that speaks of one device shall speak of several.
    """

    prefix: str = "/api/ota"
    legacy_get: bool = False
    has_app: bool = False
    allow_hosts: Iterable[str] = ()
    page: str | None = None
    older: str | None = None
    devices: tuple[str, ...] | None = None
    _hosts: Hosts = field(init=False)

    def __post_init__(self) -> None:
        for prefix in (self.prefix, self.older):
            if prefix is not None and (not _is_path(prefix) or prefix.endswith("/")):
                raise ConfigError(f"{prefix!r} is not a path that routes could begin with")
        if self.older and (_below(self.older, self.prefix) or _below(self.prefix, self.older)):
            raise ConfigError(f"{self.older} and {self.prefix} overlap: the older routes need a path of their own")
        if self.page is not None and not _is_path(self.page):
            raise ConfigError(f"{self.page!r} is not a path that a page could have")
        if self.page is not None and self._is_route(self.page):
            raise ConfigError(f"{self.page} is among the OTA routes: the updater page needs another path")
        if self.devices is not None:
            check_names(self.devices)
            if self.page is not None or self.older is not None:
                raise ConfigError("the updater page and Mongoose's older routes are for one device, not for a gateway")
        object.__setattr__(self, "_hosts", Hosts(self.allow_hosts))

    def _is_route(self, path: str) -> bool:
        return _below(path, self.prefix) or (self.older is not None and _below(path, self.older))

    def is_page(self, head: Head) -> bool:
        """Whether the request is for the updater page."""
        return self.page is not None and head.path == self.page

    def guards(self, head: Head) -> bool:
        """Whether authentication and the browser rules apply.

        To the OTA routes they do, and without an application to all but the updater page: that one asks for the
        credentials, so it must be there before them.
        """
        return not self.is_page(head) and (not self.has_app or self._is_route(head.path))

    def admit(self, head: Head, ends: Ends) -> Refusal | None:
        """Whether the request may be looked at: it names this server, and no foreign page made it."""
        refusal = self._hosts.check(head, ends)
        if refusal is None and (self.guards(head) or (self.is_page(head) and not is_navigation(head))):
            refusal = foreign_page(head, secure=ends.secure)
        return refusal

    def _methods(self, action: Action) -> tuple[str, ...]:
        if action in _READS:
            return ("GET", "HEAD")
        return ("GET", "POST") if self.legacy_get and action in _LEGACY else ("POST",)

    def route(self, head: Head) -> Decision | Refusal:
        """What an admitted and authenticated request asks for."""
        if self.is_page(head):
            return self._allowed(head, Action.PAGE) or Decision(Action.PAGE)
        if not self.guards(head):
            # CONNECT would turn the connection into something else; no server of ours is a proxy.
            return Refusal(501, "this is no proxy") if head.method == "CONNECT" else Decision(Action.APP)
        action, device = self._action(head.path)
        changes = head.method not in SAFE_METHODS or (self.legacy_get and action in _LEGACY)
        refusal = unproven_page(head, changes=changes)
        if refusal is not None:
            return refusal
        if action is None:
            return Refusal(404, f"there is no device {device} here" if device else "there is nothing here")
        refusal = self._allowed(head, action)
        if refusal is not None:
            return refusal
        is_older = self.older is not None and _below(head.path, self.older)
        decision = _told(head, action)
        return replace(decision, older=is_older, device=device) if isinstance(decision, Decision) else decision

    def _action(self, path: str) -> tuple[Action | None, str]:
        """What a path stands for, and the device that it names; of one that is not here, the name only."""
        if self.devices is not None and _below(path, self.prefix):
            return self._action_of_named(path.removeprefix(self.prefix))
        for prefix, routes in ((self.prefix, _ROUTES), (self.older, _OLDER_ROUTES)):
            if prefix is not None and _below(path, prefix):
                return routes.get(path.removeprefix(prefix)), ""
        return None, ""

    def _action_of_named(self, rest: str) -> tuple[Action | None, str]:
        if not rest:
            return Action.DEVICES, ""
        name, route = split_name(rest)
        if name in (self.devices or ()):
            return _ROUTES.get(route), name if route in _ROUTES else ""
        return None, name if name_fault(name) is None else ""

    def _allowed(self, head: Head, action: Action) -> Refusal | None:
        """405 for a method that the route does not know."""
        methods = self._methods(action)
        if head.method in methods:
            return None
        return Refusal(405, f"use {' or '.join(methods)}", (("Allow", ", ".join(methods)),))


def _told(head: Head, action: Action) -> Decision | Refusal:
    """A request for an action, if what its head says of it makes sense."""
    if action is Action.UPDATE:
        return _sized(head)
    return _piece(head) if action is Action.PIECE else _bound(head, action)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _is_path(text: str) -> bool:
    return text.startswith("/") and text.isascii() and text.isprintable() and not set(text) & set("?# ")


def _sized(head: Head) -> Decision | Refusal:
    """An update, if its length is known beforehand."""
    if head.value("transfer-encoding") is not None:
        return Refusal(411, "an update needs a Content-Length, not a Transfer-Encoding")
    length = head.value("content-length")
    if length is None:
        return Refusal(411, "an update needs a Content-Length")
    if not (length.isascii() and length.isdigit()):
        return Refusal(400, "Content-Length is not a number")
    if int(length) == 0:
        return error_refusal(EmptyImageError("an image of no bytes"))
    return _packed(head, int(length))


def _packed(head: Head, length: int) -> Decision | Refusal:
    """An update, if what is said of its packing makes sense: `Content-Encoding` (RFC 9110 section 8.4) and the size."""
    encoding = _encoding(head)
    if encoding not in _PACKINGS:
        return _unsupported("an image comes as it is, or packed by gzip or zstd")
    packing = _PACKINGS[encoding]
    sizes = head.values(SIZE_FIELD)
    if packing is None and not sizes:
        return Decision(Action.UPDATE, size=length, length=length)
    if not sizes:
        return Refusal(400, "a packed image needs X-MGOTA-Size, the bytes that it has unpacked")
    if len(sizes) > 1 or not (sizes[0].isascii() and sizes[0].isdigit()) or len(sizes[0]) > _DIGITS:
        return Refusal(400, "X-MGOTA-Size is not one number")
    size = int(sizes[0])
    if packing is None and size != length:
        return Refusal(400, "X-MGOTA-Size is another number than Content-Length, and the image is not packed")
    if not size:
        return error_refusal(EmptyImageError("an image of no bytes"))
    if packing and length > largest_packed(size):
        return Refusal(413, f"{length} bytes are too many for a packed image of {size}")
    return Decision(Action.UPDATE, size=size, length=length, packing=packing)


def _encoding(head: Head) -> str:
    """How a body is packed, by its field; "" if it says nothing."""
    return ", ".join(head.values("content-encoding")).strip().lower()


def _unsupported(reason: str) -> Refusal:
    """415, with what would be taken (RFC 9110 section 12.5.3)."""
    return Refusal(415, reason, (("Accept-Encoding", ", ".join(packings())),))


def _piece(head: Head) -> Decision | Refusal:
    """A piece of an image, if it says where it belongs and how long it is."""
    if _encoding(head) not in {"", "identity"}:  # it would be stored as it comes
        return Refusal(415, "a piece of an image is not packed", (("Accept-Encoding", "identity"),))
    size = older.sized(head)
    if isinstance(size, Refusal):
        return size
    place = older.read_place(head)
    if isinstance(place, Refusal):
        return place
    return Decision(Action.PIECE, size=size, offset=place[0], total=place[1])


def _bound(head: Head, action: Action) -> Decision | Refusal:
    """A commit or rollback, bound to an image if the request says so."""
    values = head.values(IMAGE_FIELD)
    if not values:
        return Decision(action)
    image = values[0].lower()
    if len(values) > 1 or len(image) != 64 or set(image) - set("0123456789abcdef"):
        return Refusal(400, "X-MGOTA-Image is not one SHA-256 in hex")
    return Decision(action, image=image)


def too_large(decision: Decision, capacity: int) -> Refusal | None:
    """413 when the image of an update is larger than the slot.

    Args:
        decision: any.
        capacity: bytes of the largest image that the slot can take.
    """
    return error_refusal(TooLargeError(decision.size, capacity)) if decision.size > capacity else None


def not_unpacked(decision: Decision) -> Refusal | None:
    """415 when the image comes packed by something that is not installed here."""
    if decision.packing is None or decision.packing in packings():
        return None
    return _unsupported(f"this device does not unpack {decision.packing}: it lacks the extra mgota[{decision.packing}]")
