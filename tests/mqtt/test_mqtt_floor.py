"""The floor holds whichever way an image comes: over MQTT and over HTTP, in one piece and in many."""

import contextlib
import json
from collections.abc import Awaitable, Callable
from http.client import HTTPConnection

import pytest
from anyio import to_thread
from fake_device import FakeDevice
from mosquitto import Mosquitto
from test_mqtt_device import activated, bench

from mgota.core.geometry import Slot
from mgota.transports.http import serve

pytestmark = [pytest.mark.asyncio, pytest.mark.program("mosquitto")]

OLD = b"MG_VERSION:1.9\0" + bytes(5000)
NEW = b"MG_VERSION:2.0\0" + bytes(5000)
BARE = bytes(5000)

Upload = Callable[[bytes], Awaitable[str]]


async def refused_then_taken(fake: FakeDevice, upload: Upload) -> None:
    assert "below the floor 2.0" in await upload(OLD)
    assert "version is not known" in await upload(BARE)
    assert fake.flash.selected is Slot.A
    await upload(NEW)
    await activated(fake, NEW)


async def test_old_signed_image_over_mqtt(mosquitto: Mosquitto) -> None:
    fake = FakeDevice(floor="2.0")
    async with bench(mosquitto, fake) as tool:

        async def upload(image: bytes) -> str:
            answers = [await tool.chunk(at, image[at : at + 4096], total=len(image)) for at in (0, 4096)]
            answers.append(await tool.chunk(len(image), b"", total=len(image)))
            return json.dumps(answers)

        await refused_then_taken(fake, upload)


async def test_old_signed_image_over_mqtt_with_a_session(mosquitto: Mosquitto) -> None:
    fake = FakeDevice(floor="2.0")
    async with bench(mosquitto, fake) as tool:
        names = iter("abcdef")

        async def upload(image: bytes) -> str:
            name = next(names) * 16
            answers = [
                await tool.chunk(at, image[at : at + 4096], total=len(image), session=name)
                for at in (0, 4096, len(image))
            ]
            return json.dumps(answers)

        await refused_then_taken(fake, upload)


def posted(port: int, target: str, body: bytes) -> str:
    with contextlib.closing(HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", target, body)
        reply = connection.getresponse()
        return f"{reply.status} {reply.read().decode()}"


@pytest.mark.parametrize("older", [False, True], ids=["whole", "in pieces"])
async def test_old_signed_image_over_http(older: bool) -> None:
    fake = FakeDevice(floor="2.0")
    async with serve(fake.device) as server:

        async def post(target: str, body: bytes) -> str:
            return await to_thread.run_sync(posted, server.port, target, body)

        async def upload(image: bytes) -> str:
            if not older:
                return await post("/api/ota/update", image)
            pieces = [(at, image[at : at + 4096]) for at in (0, 4096)]
            said = [
                await post(f"/api/firmware/upload?offset={at}&total={len(image)}&name=f", piece)
                for at, piece in (*pieces, (len(image), b""))
            ]
            return " ".join(said)

        if not older:
            assert (await upload(OLD)).startswith("422 ")
        await refused_then_taken(fake, upload)
