"""Memory stays flat when flash is slow and the sender runs ahead."""

import asyncio
import hashlib
import tracemalloc

import anyio
import pytest
from fake_device import FakeDevice
from raw_client import Client

from mgota.transports.http import Limits, serve
from mgota.transports.http.upload import upload

pytestmark = pytest.mark.asyncio


class SlowSink:
    """Takes its time for every buffer."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = 0
        self.hash = hashlib.sha256()

    blocking = False

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        await anyio.sleep(0.002)
        self.write_blocking(chunk)

    def write_blocking(self, chunk: bytes | bytearray | memoryview) -> None:
        self.hash.update(chunk)
        self.received += len(chunk)


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_slow_consumer_keeps_memory_flat_while_the_sender_runs_ahead(blocking: bool) -> None:
    fake = FakeDevice(room=1 << 40, blocking=blocking)
    fake.flash.keep = False
    size = 64 << 20

    async def slow() -> None:
        await anyio.sleep(0.002)

    fake.flash.on_write = slow
    async with serve(fake.device) as server, await Client.open(server.port) as client:
        await client.send(
            f"POST /api/ota/update HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
        )
        piece = bytes(1 << 16)
        peaks = []
        tracemalloc.start()
        try:
            for sent in range(0, size, len(piece)):
                await client.send(piece)
                if sent % (size // 4) == 0:
                    peaks.append(tracemalloc.get_traced_memory()[1])
                    tracemalloc.reset_peak()
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert (await client.reply()).status == 500  # this flash kept nothing
    assert max(peaks) < 6 << 20
    assert peaks[-1] <= peaks[1] + (1 << 20)


async def test_one_buffer_serves_the_whole_body_and_is_no_larger_than_it() -> None:
    for size in (10, 1 << 20, (5 << 20) + 3):
        sink = SlowSink(size)
        views: list[int] = []

        class Source:
            """As much as the reader has room for."""

            def recv_now(self, view: memoryview, views: list[int] = views) -> int:
                views.append(id(view.obj))
                assert memoryview(view.obj).nbytes <= 1 << 20
                view[:] = bytes(len(view))
                return len(view)

            async def wait_readable(self) -> None: ...

            def expect(self, size: int) -> None: ...

            def fileno(self) -> None: ...

            def wait_blocking(self, timeout: float) -> bool:
                return True

            async def send(self, data: bytes) -> None: ...

            async def finish(self) -> None: ...

            async def aclose(self) -> None: ...

        await asyncio.wait_for(upload(Source(), b"", sink, Limits()), 60)
        assert sink.received == size
        assert len(set(views)) == 1
        assert sink.hash.digest() == hashlib.sha256(bytes(size)).digest()
