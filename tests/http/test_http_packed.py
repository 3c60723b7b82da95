"""Updates that come packed: what is stored, signed and counted is the unpacked image, and never more than announced."""

import asyncio
import gzip
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import pytest
import zstandard
from fake_device import FakeDevice
from raw_client import Client, Reply, ask, request

from mgota.core import unpack
from mgota.core.image import Verifier
from mgota.core.keys import PrivateKey
from mgota.core.record import State
from mgota.core.unpack import Packing, Unpacker, largest_packed
from mgota.transports.http import serve

pytestmark = pytest.mark.asyncio

UPDATE = "/api/ota/update"
IMAGE = bytes(range(256)) * 64 + os.urandom(9000)
PACK: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "zstd": zstandard.compress}
BOTH = pytest.mark.parametrize("packing", list(PACK))
BLOCKING = pytest.mark.parametrize("blocking", [False, True], ids=["in_tasks", "in_a_thread"])


def packed(packing: str, body: bytes, size: int) -> bytes:
    return request("POST", UPDATE, body, f"Content-Encoding: {packing}", f"X-MGOTA-Size: {size}")


async def sent(fake: FakeDevice, data: bytes) -> Reply:
    async with serve(fake.device) as server:
        return await ask(server.port, data)


@BOTH
@BLOCKING
@pytest.mark.parametrize("piece", [1 << 20, 997])
async def test_what_is_stored_is_the_unpacked_image(packing: str, blocking: bool, piece: int) -> None:
    fake = FakeDevice(blocking=blocking)
    data = packed(packing, PACK[packing](IMAGE), len(IMAGE))
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        for at in range(0, len(data), piece):
            await client.send(data[at : at + piece])
        assert (await client.reply()).status == 200
        await client.close()
        await fake.reset.happened.wait()
    assert fake.staged == IMAGE
    assert fake.state.record
    assert fake.state.record.state is State.TESTING


@BOTH
async def test_the_signature_is_that_of_the_unpacked_image(packing: str) -> None:
    key = PrivateKey.generate()
    image = IMAGE + key.sign(sha256(IMAGE).digest())
    fake = FakeDevice(verifier=Verifier(keys=[key.public]))
    assert (await sent(fake, packed(packing, PACK[packing](image), len(image)))).status == 200
    assert fake.staged == image
    inside = PACK[packing](IMAGE)
    around = inside + key.sign(
        sha256(inside).digest()
    )  # of the packed bytes: what follows them is no part of the image
    fake = FakeDevice(verifier=Verifier(keys=[key.public]))
    assert (await sent(fake, packed(packing, around, len(IMAGE)))).status == 422
    assert fake.untouched()


@BOTH
@BLOCKING
@pytest.mark.parametrize(
    ("body", "size", "status", "words"),
    [
        (lambda pack: pack(IMAGE), len(IMAGE) - 1, 400, "more than the declared"),
        (lambda pack: pack(IMAGE), len(IMAGE) + 1, 400, "only"),
        (lambda pack: pack(IMAGE)[:-1], len(IMAGE), 400, "cut off|only"),
        (lambda pack: pack(IMAGE) + b"and more", len(IMAGE), 422, "not packed by"),
        (lambda pack: pack(IMAGE) + pack(b"x"), len(IMAGE), 400, "more than the declared"),
        (lambda pack: pack(bytes(1 << 24)), len(IMAGE), 400, "more than the declared"),
        (lambda pack: IMAGE, len(IMAGE), 422, "not packed by"),
    ],
    ids=["size_too_small", "size_too_large", "cut_off", "trailing_garbage", "one_more_member", "bomb", "not_packed"],
)
async def test_what_is_not_what_was_announced_is_refused_in_words(
    packing: str, blocking: bool, body: Callable[[Callable[[bytes], bytes]], bytes], size: int, status: int, words: str
) -> None:
    fake = FakeDevice(blocking=blocking)
    reply = await sent(fake, packed(packing, body(PACK[packing]), size))
    assert reply.status == status
    assert any(word in reply.body.decode() for word in words.split("|")), reply.body
    assert fake.untouched()
    assert len(fake.staged) <= size
    assert fake.flash.aborted == 1


async def test_both_sides_of_the_slot_and_of_the_body() -> None:
    fake = FakeDevice(room=len(IMAGE))
    assert (await sent(fake, packed("gzip", gzip.compress(IMAGE), len(IMAGE)))).status == 200
    fake = FakeDevice(room=len(IMAGE) - 1)
    reply = await sent(fake, packed("gzip", gzip.compress(IMAGE), len(IMAGE)))
    assert (reply.status, fake.flash.opened) == (413, 0)
    inside, padding = gzip.compress(IMAGE), gzip.compress(b"")
    count = (largest_packed(len(IMAGE)) - len(inside)) // len(padding)
    fake = FakeDevice()
    assert (await sent(fake, packed("gzip", inside + padding * count, len(IMAGE)))).status == 200
    assert fake.staged == IMAGE
    fake = FakeDevice()
    assert (await sent(fake, packed("gzip", inside + padding * (count + 1), len(IMAGE)))).status == 413
    assert not fake.flash.opened


async def test_without_zstandard_it_is_415_before_anything_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "find_spec", lambda name: None)
    fake = FakeDevice()
    reply = await sent(fake, packed("zstd", zstandard.compress(IMAGE), len(IMAGE)))
    assert (reply.status, reply.get("accept-encoding")) == (415, "gzip")
    assert b"mgota[zstd]" in reply.body
    assert not fake.flash.opened


async def test_the_status_says_what_is_unpacked() -> None:
    async with serve(FakeDevice().device) as server:
        reply = await ask(server.port, request("GET", "/api/ota/status"))
    assert b'"packings": ["gzip", "zstd"]' in reply.body


@BLOCKING
async def test_it_is_unpacked_in_a_thread(blocking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[threading.Thread] = set()
    real = Unpacker._unpacked

    def noted(self: Unpacker, data: Any) -> Iterator[bytes]:
        for piece in real(self, data):
            threads.add(threading.current_thread())
            yield piece

    monkeypatch.setattr(Unpacker, "_unpacked", noted)
    fake = FakeDevice(blocking=blocking)
    assert (await sent(fake, packed("gzip", gzip.compress(IMAGE), len(IMAGE)))).status == 200
    assert threads
    assert threading.main_thread() not in threads


@BOTH
@BLOCKING
async def test_memory_stays_as_it_is(packing: str, blocking: bool) -> None:
    size = 24 << 20
    fake = FakeDevice(room=1 << 40, blocking=blocking)
    fake.flash.keep = False
    body = PACK[packing](bytes(size))  # as much as a few bytes can stand for
    tracemalloc.start()
    try:
        reply = await sent(fake, packed(packing, body, size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.status == 500  # this flash kept nothing
    assert sum(fake.flash.chunks) == size
    assert peak < (4 << 20 if packing == Packing.GZIP else 16 << 20)  # zstd: what 128 bytes stand for, twice


async def test_a_server_that_ends_does_not_wait_for_a_bomb() -> None:
    size = 1 << 40
    fake = FakeDevice(room=size, blocking=True)
    fake.flash.keep = False
    begun, body = asyncio.Event(), zstandard.compress(bytes(200 << 20)) * 40
    loop = asyncio.get_running_loop()

    class Chunks(list[int]):
        def append(self, size: int) -> None:
            super().append(size)
            loop.call_soon_threadsafe(begun.set)

    fake.flash.chunks = Chunks()
    async with serve(fake.device) as server:
        client = await Client.open(server.port)
        await client.send(packed("zstd", body, size))
        await asyncio.wait_for(begun.wait(), 30)
    await client.close()
    assert sum(fake.flash.chunks) < 40 * (200 << 20)
    assert fake.flash.aborted == 1
