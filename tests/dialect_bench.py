"""A small device of the dialect and a bad network, on a clock of their own: what the senders are tried against."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from typing import Any

from mgota.core.receive import Activate, Answer, Begin, GiveUp, Operation, Read, Receiving, Seal, Write
from mgota.core.rpc import (
    OK,
    STATUS,
    UPLOAD,
    Chunk as Piece,
    Code,
    Fault,
    Reply,
    Request,
    Standing,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    read_chunk,
    read_session,
    upload_request,
)
from mgota.core.rpc_sender import Ask, Message
from mgota.core.rpc_single import SinglePush
from mgota.core.rpc_window import WindowPush

Push = WindowPush | SinglePush


class SmallDevice:
    """Takes chunks in order, as simply as can be; forgets what it had when it restarts."""

    def __init__(self) -> None:
        self.installed: bytes | None = None
        self.outcome: str | None = None
        self.session: str | None = None
        self.total = 0
        self.data = bytearray()
        self.begun = 0
        self.written: list[int] = []
        self.ended = False

    def restart(self) -> None:
        if self.session and not self.ended:
            self.outcome = "interrupted"
        self.session, self.ended = None, False
        self.data.clear()

    def answer(self, frame: bytes) -> bytes:
        request = decode_request(frame)
        return encode_reply(self.status(request) if request.method == STATUS else self.upload(request))

    def status(self, request: Request) -> Reply:
        mine = self.session is not None and read_session(request) == self.session
        image = self.installed and {"size": len(self.installed), "sha256": sha256(self.installed).hexdigest()}
        found: dict[str, Any] = {"state": "CONFIRMED", "image": image, "staged": None, "outcome": self.outcome}
        found |= {"session": self.session, "next": len(self.data), "total": self.total} if mine else {"session": None}
        return Reply(request.reply_to, found)

    def upload(self, request: Request) -> Reply:
        piece = read_chunk(request)
        if piece.session is None:
            return self.plain(request, piece)
        if self.ended and piece.session != self.session:
            self.restart()
        if self.session not in {None, piece.session}:
            return Reply(request.reply_to, fault=Fault(Code.BUSY, "another update is running", piece.session))
        if piece.offset == 0 and not self.data and piece.data:
            self.session, self.total = piece.session, piece.total
            self.begun += 1
        if piece.session != self.session:
            return self.gap(request, piece, 0)
        if piece.offset > len(self.data):
            return self.gap(request, piece, len(self.data))
        if piece.offset < len(self.data):
            assert self.data[piece.offset : piece.offset + len(piece.data)] == piece.data
        else:
            self.data += piece.data
            self.written.append(len(piece.data))
            if not piece.data:
                self.ended, self.installed, self.outcome = True, bytes(self.data), None
        told = Standing(piece.session, len(self.data), len(self.data) == self.total, self.ended)
        return Reply(request.reply_to, told)

    def gap(self, request: Request, piece: Piece, expected: int) -> Reply:
        return Reply(request.reply_to, fault=Fault(Code.FAILED, f"expected {expected}", piece.session, expected))

    def plain(self, request: Request, piece: Piece) -> Reply:
        """As Mongoose does: the offset says only whether it begins."""
        if piece.offset == 0 and piece.data:
            self.data.clear()
            self.begun += 1
        self.data += piece.data
        self.written.append(len(piece.data))
        if not piece.data:
            self.installed = bytes(self.data)
        return Reply(request.reply_to, OK)


class RuledDevice(SmallDevice):
    """Takes chunks by the rules of a real one, into memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rules = Receiving()

    def restart(self) -> None:
        if self.rules.under_way:
            self.outcome = "interrupted"
        self.rules = Receiving()
        self.data.clear()

    def status(self, request: Request) -> Reply:
        rules = self.rules
        self.session = rules.session if rules.under_way else None
        self.total = rules.total
        return super().status(request)

    def upload(self, request: Request) -> Reply:
        piece = read_chunk(request)
        job = self.rules.take(piece)
        given: bytes | None = None
        try:
            while True:
                given = self._do(job.send(given))
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer.reply(request.reply_to, piece.session)

    def _do(self, operation: Operation) -> bytes | None:
        match operation:
            case Begin():
                self.begun += 1
                self.data.clear()
            case Write(data):
                self.data += data
                self.written.append(len(data))
            case Read(offset, size):
                return bytes(self.data[offset : offset + size])
            case Activate():
                self.installed, self.outcome = bytes(self.data), None
            case GiveUp() | Seal():
                pass
        return None


FATES = ("there", "there", "there", "lost", "twice", "late", "device", "broker", "online")
"""What may happen to a message; the last three: the device restarts, the broker does, the device reconnects."""

DELAY = 0.01


@dataclass(order=True)
class Event:
    at: float
    number: int
    what: str = field(compare=False)
    frame: bytes = field(compare=False, default=b"")
    connection: int = field(compare=False, default=0)


class Network:
    """Runs a push to its end.

    Args:
        push: the sender.
        image: what it sends.
        device: what takes it.
        fates: of one message after the other, in both directions; when they are used up, all is well.
    """

    def __init__(self, push: Push, image: bytes, device: SmallDevice, fates: Iterable[str] = ()) -> None:
        self.push, self.image, self.device = push, image, device
        self.fates: Iterator[str] = iter(fates)
        self.now = 100.0
        self.sent: list[Message] = []
        self._events: list[Event] = []
        self._numbers = count()
        self._connection = 0

    def run(self, most: int = 20_000) -> None:
        self._reconnect()
        for _ in range(most):
            while message := self.push.next_message(self.now):
                self.sent.append(message)
                self._go("rx", self.frame(message))
            if self.push.done:
                return
            if self._events and self._events[0].at <= self.push.deadline:
                event = heapq.heappop(self._events)
                self.now = max(self.now, event.at)
                self._happen(event)
            else:
                self.now = max(self.now, self.push.deadline)
                self.push.tick(self.now)
            if isinstance(self.push, WindowPush) and self.push.seen is not None and self.push.phase.value == "doubt":
                self.push.settle({sha256(self.image).hexdigest()}, self.now)
        raise AssertionError("it goes on for ever")

    def frame(self, message: Message) -> bytes:
        session = self.push.session if isinstance(self.push, WindowPush) else None
        if isinstance(message, Ask):
            return encode_request(Request(message.id, STATUS, {"session": session}))
        data = self.image[message.offset : message.offset + message.size]
        piece = Piece(self.push.total, message.offset, data, session)
        return encode_request(upload_request(message.id, piece, UPLOAD))

    def _happen(self, event: Event) -> None:
        match event.what:
            case "rx":
                self._go("tx", self.device.answer(event.frame))
            case "tx" if event.connection == self._connection:
                self.push.take(decode_reply(event.frame), self.now)
            case "online":
                self.push.online(self.now)
            case "broker":
                self._reconnect()

    def _reconnect(self) -> None:
        self._connection += 1
        self.push.connected(self.now)

    def _go(self, what: str, frame: bytes) -> None:
        fate = next(self.fates, "there")
        if fate == "lost":
            return
        for _ in range(2 if fate == "twice" else 1):
            self._at(7 * DELAY if fate == "late" else DELAY, what, frame)
        if fate == "device":
            self._events = [event for event in self._events if event.what != "rx"]
            heapq.heapify(self._events)
            self.device.restart()
            self._at(3 * DELAY, "online")
        elif fate == "broker":
            self._events.clear()
            self.push.disconnected()
            self._at(5 * DELAY, "broker")
        elif fate == "online":
            self._at(DELAY, "online")

    def _at(self, delay: float, what: str, frame: bytes = b"") -> None:
        event = Event(self.now + delay, next(self._numbers), what, frame, self._connection)
        heapq.heappush(self._events, event)
