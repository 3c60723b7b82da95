"""The updater page as one document: its parts put into it, and the policy that lets a browser run these and no others.

The page is written as files beside each other (`mgota/page/`), so that it can be read, and opened as it lies there.
It is served, and handed out, as a single document. Rules:
- a script or style that is put in is allowed by its hash (Content Security Policy Level 3, section 2.3.1), and
  nothing else is: neither what somebody manages to inject nor anything from another place;
- served by a device, the page speaks with that device; on its own, with brokers;
- a part that is not there leaves its element out: without the npm part the page still works over HTTP.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from mgota.errors import ConfigError

_PART = re.compile(
    r'[ \t]*<(?:link rel="stylesheet" href|script src)="(?P<name>[a-z]+(?:\.min)?\.(?:css|js))">(?:</script>)?\n'
)
_API = '<meta name="mgota-api" content="">'
_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="[^"]*">')
_ENDS: Final = {
    "style": re.compile("</style", re.IGNORECASE),
    "script": re.compile("</script|<!--", re.IGNORECASE),  # behind the latter, another <script would hide the end
}

_DEVICE: Final = "'self'"
_BROKERS: Final = "ws: wss:"


@dataclass(frozen=True, slots=True)
class Page:
    """The page, ready to be sent.

    Args:
        body: the document, UTF-8.
        policy: value of the Content-Security-Policy field to send with it.
    """

    body: bytes
    policy: str


def compose(html: str, parts: Mapping[str, str], *, api: str | None = None) -> Page:
    """Make one document of the page and its parts.

    Args:
        html: the page, with elements that name its parts.
        parts: texts of styles and scripts, by file name; an element whose part is missing is left out.
        api: the path that the device's OTA routes begin with; None for a page of its own, which speaks with brokers.

    Raises:
        ConfigError: a part cannot stand inside a document, or the page is not the one that belongs to this version.
    """
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def put_in(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in parts:
            return ""
        text = parts[name].replace("\r\n", "\n")
        element = "style" if name.endswith(".css") else "script"
        if _ENDS[element].search(text):
            raise ConfigError(f"{name} holds what would end it inside a document")
        hashes[element].append(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'")
        return f"<{element}>{text}</{element}>\n"

    from html import escape  # noqa: PLC0415  its table of entities is not for every device

    if html.count(_API) != 1 or len(_POLICY.findall(html)) != 1:
        raise ConfigError("the updater page is not the one that belongs to this version of mgota")
    document = _PART.sub(put_in, html)
    policy = _policy(hashes, _BROKERS if api is None else _DEVICE)
    document = _POLICY.sub(lambda _: f'<meta http-equiv="Content-Security-Policy" content="{policy}">', document)
    document = document.replace(_API, f'<meta name="mgota-api" content="{escape(api or "")}">')
    return Page(document.encode(), f"{policy}; frame-ancestors 'none'")  # in a document that one is not obeyed


def _policy(hashes: Mapping[str, list[str]], connect: str) -> str:
    """What the page may load and whom it may speak with: nothing but what is named."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(hashes['script'])}",
            f"style-src {' '.join(hashes['style'])}",
            "img-src data:",  # the empty icon, so that no browser asks for one
            f"connect-src {connect}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
