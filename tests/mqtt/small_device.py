"""A small device of the dialect behind a real broker: as simple as can be, and slow, silent or forgetful on demand."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from dialect_bench import SmallDevice

from mgota.core.rpc import (
    COMMIT,
    OK,
    ROLLBACK,
    UPDATE,
    UPLOAD,
    Code,
    Fault,
    Reply,
    Request,
    decode_request,
    encode_reply,
    encode_request,
    presence,
)
from mgota.errors import TransferError
from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.connection import Link, Message, Will, connected

Hook = Callable[["MqttDevice", Request], Awaitable[bool]]


async def nothing(_: "MqttDevice", __: Request) -> bool:
    """Every request is answered."""
    return True


class MqttDevice(SmallDevice):
    """Args:
    url: where.
    hook: awaited with every request; False leaves it unanswered.
    says: whether it announces its presence.
    methods: by which names it takes uploads.
    """

    def __init__(
        self, url: str, *, hook: Hook = nothing, says: bool = True, methods: tuple[str, ...] = (UPLOAD, UPDATE)
    ) -> None:
        super().__init__()
        self.broker = Broker.from_url(url)
        self.hook, self.says, self.methods = hook, says, methods
        self.requests: list[Request] = []
        self.link: Link | None = None
        self.connections = 0
        self.ready = anyio.Event()
        self._frames, self._waiting = anyio.create_memory_object_stream[bytes](1000)

    async def run(self) -> None:
        while True:
            try:
                will = Will(self.broker.topic("status"), presence(online=False, version=None)) if self.says else None
                async with connected(self.broker, self._put, will=will) as link, anyio.create_task_group() as tasks:
                    await link.subscribe(self.broker.topic("rx"))
                    self.link = link
                    await self.announce()
                    self.connections += 1
                    self.ready.set()
                    tasks.start_soon(self._closed, link, tasks.cancel_scope)
                    await self._serve(link)
            except (TransferError, ExceptionGroup):
                pass
            await anyio.sleep(0.02)

    async def announce(self, *, online: bool = True) -> None:
        if self.says and self.link:
            note = presence(online=online, version="1")
            await self.link.publish(self.broker.topic("status"), note, qos=1, retain=True)

    def _put(self, message: Message) -> None:
        if not message.retain:
            self._frames.send_nowait(message.payload)

    async def _closed(self, link: Link, scope: anyio.CancelScope) -> None:
        try:
            await link.closed()
        except TransferError:
            scope.cancel()

    async def _serve(self, link: Link) -> None:
        async for frame in self._waiting:
            request = decode_request(frame)
            self.requests.append(request)
            if await self.hook(self, request):
                plain = "session" not in request.params
                await link.publish(self.broker.topic("tx"), self.answer(frame), qos=1 if plain else 0)

    def answer_frame(self, request: Request) -> bytes:
        return self.answer(encode_request(request))

    async def reply(self, request: Request, result: object) -> None:
        await self.say(encode_reply(Reply(request.reply_to, result)))

    async def refuse(self, request: Request, line: str, code: int = 1) -> None:
        await self.say(encode_reply(Reply(request.reply_to, fault=Fault(code, line, final=True))))

    async def say(self, frame: bytes) -> None:
        assert self.link
        await self.link.publish(self.broker.topic("tx"), frame)

    def answer(self, frame: bytes) -> bytes:
        request = decode_request(frame)
        if request.method in {COMMIT, ROLLBACK}:
            return encode_reply(Reply(request.reply_to, OK))
        if request.method in {UPLOAD, UPDATE} and request.method not in self.methods:
            return encode_reply(Reply(request.reply_to, fault=Fault(Code.UNKNOWN_METHOD, "no such method")))
        return super().answer(frame)


@asynccontextmanager
async def device(url: str, **options: Any) -> AsyncGenerator[MqttDevice]:
    """A device that is online."""
    made = MqttDevice(url, **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.run)
        try:
            with anyio.fail_after(10):
                await made.ready.wait()
            yield made
        finally:
            tasks.cancel_scope.cancel()
            made._frames.close()
            made._waiting.close()
