"""The example of a transport of one's own, on a pseudo terminal."""

import importlib.util
import json
import os
import pty
import sys
import tty
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from fake_device import FakeDevice

import mgota
from mgota.core.geometry import Slot
from mgota.core.rpc import MAX_FRAME, Chunk, encode_request, upload_request

pytestmark = pytest.mark.asyncio

IMAGE = bytes(range(256)) * 200
SESSION = "0123456789abcdef"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(mgota.__file__).parents[1] / "examples" / "custom_transport.py"
    spec = importlib.util.spec_from_file_location("custom_transport", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_transport"] = module
    spec.loader.exec_module(module)
    return module


class Far:
    """The other end of the line."""

    def __init__(self) -> None:
        self.fd, self.near = pty.openpty()
        tty.setraw(self.fd)
        os.set_blocking(self.fd, False)
        self._came = b""

    @property
    def path(self) -> str:
        return os.ttyname(self.near)

    async def write(self, data: bytes) -> None:
        while data:
            await anyio.wait_writable(self.fd)
            data = data[os.write(self.fd, data) :]

    async def reply(self) -> dict[str, Any]:
        with anyio.fail_after(20):
            while b"\n" not in self._came:
                await anyio.wait_readable(self.fd)
                self._came += os.read(self.fd, 65536)
        line, _, self._came = self._came.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    async def piece(self, offset: int, data: bytes, session: str | None = None) -> dict[str, Any]:
        await self.write(encode_request(upload_request(offset, Chunk(len(IMAGE), offset, data, session))) + b"\n")
        return await self.reply()

    def close(self) -> None:
        os.close(self.near)
        os.close(self.fd)


async def test_an_update_over_a_serial_line(example: ModuleType) -> None:
    fake, far = FakeDevice(), Far()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example.serve, fake.device, example.SerialLine(far.path))
        for offset in range(0, len(IMAGE), 5000):
            assert (await far.piece(offset, IMAGE[offset : offset + 5000], SESSION))["result"]["session"] == SESSION
            if offset == 10000:  # somebody pulled at the plug
                await far.write(b"\n\xff\xfe noise\n")
                assert (await far.reply())["error"]["code"] == -32700
                gap = await far.piece(0xFFFF, b"x", SESSION)
                assert gap["error"]["data"]["next"] == 15000
        end = await far.piece(len(IMAGE), b"", SESSION)
        assert end["result"]["activated"]
        with anyio.fail_after(10):
            await fake.reset.happened.wait()
        tasks.cancel_scope.cancel()
    assert fake.staged == IMAGE
    assert fake.flash.selected is Slot.B
    far.close()


async def test_endless_noise_is_bounded_and_a_hangup_ends_it(example: ModuleType) -> None:
    fake, far = FakeDevice(), Far()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example.serve, fake.device, example.SerialLine(far.path))
        await far.write(b"x" * (3 * MAX_FRAME))
        await far.write(b"\n")
        assert (await far.reply())["error"]["code"] == -32700
        assert (await far.piece(0, IMAGE[:100]))["result"] == "ok"
        assert fake.device.live.held
        tasks.cancel_scope.cancel()
    assert not fake.device.live.held
    assert fake.untouched()
    far.close()
