"""Answers that lead elsewhere, and answers that would only come again."""

import pytest
from memory_device import NEW, OLD, Board, Restarted
from site_server import IMAGE, METADATA, Request, Site, response

from mgota.core.download import Patience
from mgota.core.geometry import Slot
from mgota.errors import TransferError
from mgota.transports.pull import Web, pull

pytestmark = pytest.mark.asyncio

WEB = Web(patience=Patience(first=0.001, longest=0.002), allow_http=True)


def chunked(size: int) -> bytes:
    """An answer that does not say how long it is."""
    body = f"{size:x}\r\n".encode() + b" " * size + b"\r\n0\r\n\r\n"
    return response(200, body, content_length="-", transfer_encoding="chunked")


@pytest.mark.parametrize(
    ("path", "answer", "requests"),
    [
        (METADATA, chunked(64 * 1024 + 1), 1),
        (METADATA, response(302), 1),
        (IMAGE, response(302), 1),
        (IMAGE, response(302, location="file:///etc/passwd"), 1),
        (IMAGE, response(302, location=IMAGE), 6),
    ],
)
async def test_an_answer_that_would_only_come_again_is_final(path: str, answer: bytes, requests: int) -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)
    site.quirk = lambda request, _: answer if request.path == path else None
    async with site.served() as url:
        with pytest.raises(TransferError):
            await pull(one.device, f"{url}{METADATA}", current_version="1", web=WEB)
    assert len(site.asked(path)) == requests


async def test_the_url_of_the_image_is_relative_to_where_the_manifest_came_from() -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)
    moved = {f"/releases/2{path}": site.files.pop(path) for path in (METADATA, IMAGE)}
    site.files.update(moved)
    site.quirk = lambda request, _: (
        response(302, location=f"/releases/2{METADATA}") if request.path == "/latest.json" else None
    )
    async with site.served() as url:
        with pytest.raises(Restarted):
            await pull(one.device, f"{url}/latest.json", current_version="1", web=WEB)
    assert one.content(Slot.B) == NEW


async def test_a_name_and_a_password_stay_with_their_origin() -> None:
    site, one = Site(), Board(OLD)
    site.publish(NEW)

    async with site.served() as url:

        def quirk(request: Request, _number: int) -> bytes | None:
            if "authorization" not in request.fields:
                return response(401)
            return response(302, location=f"{url}{METADATA}") if request.path == "/latest.json" else None

        site.quirk = quirk
        named = url.replace("//", "//joe:pass@")
        with pytest.raises(Restarted):
            await pull(one.device, f"{named}/latest.json", current_version="1", web=WEB)
    assert one.content(Slot.B) == NEW
