"""The updater page from the package's own files: as a response of a device, or as a document of its own.

The files lie in `mgota/page/`. What npm brings, `mqtt.min.js`, is not among them until `make page` puts it there, and
only a page of its own needs it.
"""

import pkgutil
from typing import Final

from mgota.core.page import Page, compose
from mgota.errors import ConfigError
from mgota.transports.http.message import Response

MQTT: Final = "mqtt.min.js"
"""From npm: how a page of its own reaches a broker."""

_OF_BOTH: Final = ("page.css", "words.js", "tell.js", "page.js")
_OF_A_DEVICE: Final = (*_OF_BOTH, "http.js")
_OF_ITS_OWN: Final = (*_OF_BOTH, MQTT, "sender.js", "broker.js", "devices.js")


def page_of_device(api: str) -> Response:
    """The page that a device serves. Who frames it, or embeds it elsewhere, gets nothing.

    Args:
        api: the path that the device's OTA routes begin with.

    Raises:
        ConfigError: the page is not in this installation.
    """
    page = _composed(_OF_A_DEVICE, api)
    headers = (
        ("Content-Security-Policy", page.policy),
        ("X-Frame-Options", "DENY"),
        ("Cross-Origin-Resource-Policy", "same-origin"),
        ("Referrer-Policy", "same-origin"),
    )
    return Response(body=page.body, content_type="text/html; charset=utf-8", headers=headers)


def page_of_its_own() -> bytes:
    """The page as one document that reaches devices through a broker, from wherever it is opened.

    Raises:
        ConfigError: the page, or what npm brings, is not in this installation.
    """
    return _composed(_OF_ITS_OWN, None).body


def _composed(names: tuple[str, ...], api: str | None) -> Page:
    return compose(_text("index.html"), {name: _text(name) for name in names}, api=api)


def _text(name: str) -> str:
    try:
        data = pkgutil.get_data("mgota", f"page/{name}")
    except OSError as exc:
        hint = ": `make page` in the repository fetches it from npm" if name == MQTT else ""
        raise ConfigError(f"{name} of the updater page is not in this installation{hint}") from exc
    return (data or b"").decode()
