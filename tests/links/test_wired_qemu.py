"""The proof: a machine whose firmware prints is updated over HTTP, through a gateway that holds its images.

`mgota serve --target stm32f4 --link gdb://…` as a process, QEMU's `netduinoplus2` at the other end; what the firmware
prints is the health check. A good one is committed because it prints, a bad one is rolled back because it does not.
"""

import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream
from qemu_board import board, firmware

from mgota.cli.virtual_device import power_on
from mgota.cli.wired import Health, wired_chip
from mgota.core.link_url import parse_link
from mgota.errors import BusyError, TransferError
from mgota.flash.targets.table import find_target
from mgota.transports.http import serve
from mgota.transports.http.push import Remote

pytestmark = [pytest.mark.asyncio, pytest.mark.program("qemu-system-arm")]


class Uart:
    """Where the machine prints, and a server from which the gateway's console hears it."""

    def __init__(self) -> None:
        self.printed = b""
        self.console = self.machine = 0
        self._listening = list[SocketStream]()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Uart"]:
        machine = await anyio.create_tcp_listener(local_host="127.0.0.1")
        console = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.machine, self.console = (each.extra(SocketAttribute.local_port) for each in (machine, console))
        async with machine, console, anyio.create_task_group() as tasks:
            tasks.start_soon(machine.serve, self._hear)
            tasks.start_soon(console.serve, self._tell)
            yield self
            tasks.cancel_scope.cancel()

    async def _hear(self, stream: Any) -> None:
        async with stream:
            try:
                while True:
                    data = await stream.receive()
                    self.printed += data
                    for listener in self._listening:
                        await listener.send(data)
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                return

    async def _tell(self, stream: Any) -> None:
        async with stream:
            self._listening.append(stream)
            await anyio.sleep_forever()


async def until(remote: Remote, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    while True:
        try:
            now = await remote.status()
        except TransferError:  # cut off by the device's reset
            now = {}
        if now and holds(now):
            return now
        await anyio.sleep(0.05)


async def sent(remote: Remote, image: bytes) -> None:
    while True:
        with suppress(BusyError):  # the commit before it has just been stored, and is not over
            async for _ in remote.push(BytesIO(image)):
                pass
            return
        await anyio.sleep(0.05)


async def test_over_http_the_new_firmware_prints_and_a_bad_one_is_rolled_back(tmp_path: Path) -> None:
    new, bad = firmware(b"new firmware is well\n"), firmware(b"a bad one\n")
    target = find_target("stm32f4", "STM32F405xG")
    async with Uart().open() as uart, board(tmp_path, uart.machine) as machine:
        link = parse_link(f"gdb://127.0.0.1:{machine.port}?reset=system_reset")
        async with await machine.connect():
            pass  # QEMU is up
        health = Health(line="is well", console=parse_link(f"tcp://127.0.0.1:{uart.console}"))
        device = health.watching(wired_chip(target, link, tmp_path / "slots", tmp_path / "state", window=5.0))
        listener = socket.create_server(("127.0.0.1", 0))
        remote = Remote(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with listener:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(power_on, device, partial(serve, listeners=[listener]), lambda: None)
                first = await until(remote, lambda now: now["state"] == "CONFIRMED")
                assert b"the old firmware\n" in uart.printed
                assert (first["active_slot"], first["outcome"]) == ("a", None)
                assert (
                    (tmp_path / "slots" / "a").read_bytes().startswith(firmware(b"the old firmware\n"))
                )  # it was copied

                await sent(remote, new)
                now = await until(remote, lambda now: now["outcome"] is not None and now["trial"] is None)
                assert (now["active_slot"], now["outcome"]) == ("b", "committed")
                assert b"new firmware is well\n" in uart.printed

                await sent(remote, bad)
                now = await until(remote, lambda now: now["outcome"] == "rolled_back" and now["trial"] is None)
                assert now["active_slot"] == "b"
                assert "line" in now["reason"]
                assert b"a bad one\n" in uart.printed
                printed = uart.printed.split(b"a bad one\n")[-1]
                while b"new firmware is well\n" not in printed:
                    await anyio.sleep(0.02)
                    printed = uart.printed.split(b"a bad one\n")[-1]
                tasks.cancel_scope.cancel()
