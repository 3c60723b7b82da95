"""A device's end of the JSON-RPC dialect: frames in, replies out, over anything that carries frames.

    receiver = Receiver(device)
    responder = Responder(device, receiver)
    tasks.start_soon(receiver.run)
    async for frame in line:
        await responder.answer(frame, send)        async def send(reply: bytes, certain: bool) -> None

Rules:
- an upload is acknowledged when flash has it; commit, rollback and activation are answered first and done then;
- `send` returns when the reply is on its way, or with `certain` when the other side has it; it may take 2 seconds;
- a frame that is somebody's reply is not answered: two who answer each other's replies never end.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio

from mgota.core.receive import TELL, Answer
from mgota.core.rpc import (
    ABORT,
    COMMIT,
    OK,
    ROLLBACK,
    STATUS,
    UPDATE,
    UPLOAD,
    Abort,
    Chunk,
    Code,
    Fault,
    Id,
    Reply,
    Request,
    RpcError,
    code_of,
    decode_request,
    encode_reply,
    is_reply,
    read_abort,
    read_chunk,
    read_image,
    read_session,
)
from mgota.device import Device
from mgota.errors import OtaError
from mgota.pieces import Pieces
from mgota.trial import check_commit, check_rollback, commit, rollback

log = logging.getLogger("mgota.rpc")

Send = Callable[[bytes, bool], Awaitable[None]]
"""Sends a reply. True: return only when the other side has it, because the device may reset next."""

_UNREAD: Final = frozenset({Code.PARSE, Code.INVALID})
"""Where nobody can say whether an answer was wanted."""

_UPLOADS: Final = frozenset({UPLOAD, UPDATE})


class Responder:
    """Answers requests to one device.

    Args:
        device: what is updated.
        receiver: takes what is uploaded.
    """

    def __init__(self, device: Device, receiver: Pieces) -> None:
        self.device = device
        self.receiver = receiver

    async def answer(self, frame: bytes, send: Send) -> None:
        """Carry out one request and answer it.

        Args:
            frame: the request.
            send: sends the reply. A `TransferError` of its is logged: what was promised is done all the same.
        """
        if is_reply(frame):
            log.debug("a reply came where requests are expected")
            return
        reply_to: Id = None
        try:
            request = decode_request(frame)
            reply_to = request.reply_to
            await self._carry_out(request, send)
        except RpcError as exc:
            log.info("a frame was refused: %s", exc)
            await self._send(Reply(exc.reply_to, fault=Fault(exc.code, str(exc))), send, certain=True)
        except OtaError as exc:
            await self._send(Reply(reply_to, fault=Fault(code_of(exc), str(exc))), send, certain=True)

    async def _carry_out(self, request: Request, send: Send) -> None:
        match request.method:
            case method if method in _UPLOADS:
                await self._take(request, read_chunk(request), send)
            case method if method == ABORT:
                await self._take(request, read_abort(request), send)
            case method if method == STATUS:
                await self._send(Reply(request.reply_to, await self._status(request)), send, certain=True)
            case method if method in {COMMIT, ROLLBACK}:
                await self._act(request, send)
            case _:
                raise RpcError(Code.UNKNOWN_METHOD, "there is no such method", request.reply_to)

    async def _take(self, request: Request, chunk: Chunk | Abort, send: Send) -> None:
        async def tell(answer: Answer) -> None:
            # With a session the sender asks again; but who resets next cannot answer then.
            certain = chunk.session is None or answer.activated
            await self._send(answer.reply(request.reply_to, chunk.session), send, certain=certain)

        await self.receiver.take(chunk, tell)

    async def _status(self, request: Request) -> dict[str, object]:
        wanted, rules = read_session(request), self.receiver.rules
        told = (await self.device.status()).as_dict()
        known = rules.under_way and (wanted is None or wanted == rules.session)
        return told | {
            "session": rules.session if known else None,
            "next": rules.written if known else None,
            "total": rules.total if known else None,
        }

    async def _act(self, request: Request, send: Send) -> None:
        device, image = self.device, read_image(request)
        back = request.method == ROLLBACK
        await (check_rollback if back else check_commit)(device, sha256=image)
        with anyio.move_on_after(TELL):
            await self._send(Reply(request.reply_to, OK), send, certain=True)
        try:
            await (rollback if back else commit)(device, sha256=image)
        except OtaError as exc:
            log.error("after the reply: %s", exc)  # noqa: TRY400  no news in the traceback

    async def _send(self, reply: Reply, send: Send, *, certain: bool) -> None:
        if reply.reply_to is None and not (reply.fault and reply.fault.code in _UNREAD):
            return  # nobody asked to know
        try:
            await send(encode_reply(reply), certain)
        except OtaError as exc:
            log.info("a reply could not be sent: %s", exc)
