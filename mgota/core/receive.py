"""An image that comes in pieces, each with its offset: what to do with a piece, and what to tell its sender.

The rules of an upload over MQTT, a serial line, or the older HTTP endpoint. A job is a generator: it yields operations,
gets what they gave (or the `OtaError` that they ended with), and returns an `Answer`. Whoever drives it does one job at
a time, and leaves an upload whose operation failed before it goes on.

    offset 0 begins  ->  pieces in order  ->  total bytes: sealed  ->  the empty piece activates

Rules:
- a piece is taken only where the last one ended. A gap is refused with the offset expected. What came before is
  compared with what is stored: equal, it is acknowledged again; different, the upload is given up;
- an upload that names a session belongs to it alone. A session that failed is over; one that fell asleep is not;
- without a session, offset 0 begins again, but for an exact repeat of the first piece right after it; and a complete
  image is activated by silence too, and by junk behind its end, which is answered with an error: Mongoose's dashboard
  never sends the empty piece, and sends junk for as long as it is answered ok;
- what the sender was told is the same when it asks again, after the reset that it led to, too: the end, and the last
  piece if it is the image's, are answered ok while an image of that size is on trial. Who names a session asks for the
  status instead, and compares digests.
"""

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mgota.core.rpc import OK, Abort, Chunk, Fault, Id, Reply, Standing, code_of, kind_of
from mgota.errors import (
    BusyError,
    OtaError,
    OverrunError,
    StalledError,
    TransferError,
    TruncatedError,
    UpdateRunningError,
    WrongOffsetError,
)

TAIL: Final = 64 * 1024
"""Bytes that were stored last and are compared from memory: a writer may hold back less than a program unit."""


TELL: Final = 2.0
"""Seconds that an answer may take on its way before the device does what it promised in it."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Begin an update of `total` bytes."""

    total: int


@dataclass(frozen=True, slots=True)
class Write:
    """Store the next bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Read:
    """Give back bytes that were stored, from flash."""

    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Recall:
    """Give back bytes of the image that the boot record has on trial; nothing at all if that has another size.

    Args:
        total: bytes that it has to have.
        offset: of the bytes.
        size: how many; 0 just asks whether there is one.
    """

    total: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Seal:
    """Read everything back and verify it."""


@dataclass(frozen=True, slots=True)
class Activate:
    """Put the sealed image on trial; the job goes on when the update survives any cut."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Leave the update under way."""

    why: OtaError


Operation = Begin | Write | Read | Recall | Seal | Activate | GiveUp
Job = Generator[Operation, bytes | None, "Answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the sender of a piece is told.

    Args:
        next: the offset from which it can go on; None if it cannot.
        sealed: all bytes are there and verified.
        activated: the image goes on trial.
        error: why the piece was not taken.
        final: the upload is over, and going on is useless.
        instead: what an application wants to be said instead, where a transport can say it; see `mgota.finished`.
    """

    next: int | None = None
    sealed: bool = False
    activated: bool = False
    error: OtaError | None = None
    final: bool = False
    instead: object = None

    def reply(self, reply_to: Id, session: str | None) -> Reply:
        """As a frame of the dialect; who named no session gets plain ones.

        Args:
            reply_to: the id of the request.
            session: that the request named.
        """
        if self.error is not None:
            message = str(self.error) or type(self.error).__name__
            told = None if session is None else self.next
            final = session is not None and self.final
            owner = session if final or told is not None else None
            kind = None if session is None else kind_of(self.error)
            fault = Fault(code_of(self.error), message, session=owner, next=told, final=final, kind=kind)
            return Reply(reply_to, fault=fault)
        if session is None:
            return Reply(reply_to, OK)
        return Reply(reply_to, Standing(session, self.next or 0, sealed=self.sealed, activated=self.activated))


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an upload may be silent. Seconds.

    Args:
        idle: until it is given up.
        silence: until a complete image without a session is activated; None never does.
    """

    idle: float = 60.0
    silence: float | None = 5.0


class Phase(Enum):
    """Where an upload is."""

    IDLE = "idle"
    RECEIVING = "receiving"
    SEALED = "sealed"
    ACTIVATED = "activated"


class Receiving:
    """The upload under way, and what became of the last one.

    Args:
        patience: with senders.
    """

    def __init__(self, patience: Patience | None = None) -> None:
        self.phase = Phase.IDLE
        self.session: str | None = None
        self.total = 0
        self.written = 0
        """Bytes that were stored."""
        self._patience = patience or Patience()
        self._first = 0  # bytes of the first piece
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._over: tuple[str | None, OtaError] | None = None  # the last upload that failed, and why

    @property
    def under_way(self) -> bool:
        """Whether an upload holds the device."""
        return self.phase in {Phase.RECEIVING, Phase.SEALED}

    @property
    def patience(self) -> float | None:
        """Seconds that may pass until `waited` is to be done; None is for ever."""
        if not self.under_way:
            return None
        silence = self._patience.silence
        if silence is not None and self.phase is Phase.SEALED and self.session is None:
            return silence
        return self._patience.idle

    def take(self, chunk: Chunk | Abort) -> Job:
        """What to do with a piece, or with a sender that gives up."""
        if isinstance(chunk, Abort):
            return (yield from self._given_up(chunk))
        if self.under_way:
            if chunk.session != self.session:
                return _refused(self._taken())
            return (yield from self._go_on(chunk))
        if self.phase is Phase.ACTIVATED and chunk.session == self.session and (self.session or not _begins(chunk)):
            return self._repeat(chunk)
        if self._over and chunk.session == self._over[0] and (chunk.session or not _begins(chunk)):
            return _refused(self._over[1], final=True)
        if (yield from self._ended_before(chunk)):
            return Answer(next=chunk.total, sealed=True, activated=True)
        if not chunk.data:
            return _refused(TruncatedError(0, chunk.total), following=0)
        if chunk.offset:
            return _refused(WrongOffsetError(0, chunk.offset), following=0)
        return (yield from self._begin(chunk))

    def _taken(self) -> UpdateRunningError:
        idle = self._patience.idle
        return UpdateRunningError(
            f"another upload is under way; without a word of its sender it ends within {idle:g} s"
        )

    def _ended_before(self, chunk: Chunk) -> Generator[Operation, bytes | None, bool]:
        """Whether this is the end of an image, or its last piece, that went on trial before the device started."""
        if chunk.session is not None or _begins(chunk) or not chunk.total:
            return False
        if chunk.data and chunk.offset + len(chunk.data) != chunk.total:
            return False
        try:
            return (yield Recall(chunk.total, chunk.offset, len(chunk.data))) == chunk.data
        except OtaError:
            return False

    def _given_up(self, abort: Abort) -> Job:
        if not self.under_way or abort.session != self.session:
            return _refused(TransferError("no upload of this session is under way"))
        yield GiveUp(TransferError("its sender gave it up"))
        self.phase = Phase.IDLE  # and not over: it may begin again at 0
        return Answer(next=0)

    def waited(self) -> Job:
        """What to do when nothing came for as long as `patience` says."""
        if self.phase is Phase.SEALED and self.session is None and self._patience.silence is not None:
            return (yield from self._activate())
        stalled = StalledError(f"nothing came for {self._patience.idle:g} s")
        yield GiveUp(stalled)
        self.phase = Phase.IDLE  # and not over: who wakes up begins again at 0
        return Answer(error=stalled)

    def _begin(self, chunk: Chunk) -> Job:
        if len(chunk.data) > chunk.total:
            return _refused(OverrunError(chunk.total))
        try:
            yield Begin(chunk.total)
        except BusyError as exc:
            return Answer(error=exc)
        except OtaError as exc:
            self._over = (chunk.session, exc)
            return Answer(error=exc, final=True)
        self.phase, self.session, self.total, self.written = Phase.RECEIVING, chunk.session, chunk.total, 0
        self._first, self._over = len(chunk.data), None
        self._tail.clear()
        self._tail_size = 0
        return (yield from self._store(chunk.data))

    def _go_on(self, chunk: Chunk) -> Job:
        """A piece of the upload under way, or its end."""
        restarts = self.session is None and _begins(chunk)
        if restarts and not (yield from self._repeats_the_first(chunk)):
            yield GiveUp(TransferError("its sender began again"))
            self.phase = Phase.IDLE
            return (yield from self._begin(chunk))
        if not chunk.data:
            return (yield from self._end())
        if chunk.total != self.total:
            wrong = TransferError(f"an image of {self.total} bytes is under way, not one of {chunk.total}")
            return _refused(wrong)
        if chunk.offset >= self.total:
            return (yield from self._beyond(chunk))
        if chunk.offset > self.written:
            return _refused(WrongOffsetError(self.written, chunk.offset), following=self.written)
        if chunk.offset + len(chunk.data) > self.total:
            return _refused(OverrunError(self.total))
        known = self.written - chunk.offset
        if known:
            try:
                equal = restarts or (yield from self._holds(chunk.offset, chunk.data[:known]))
            except OtaError as exc:
                return self._failed(exc)
            if not equal:
                return (yield from self._spoiled(chunk.offset))
        return (yield from self._store(chunk.data[known:]))

    def _store(self, data: bytes) -> Job:
        """The next bytes, if any; with the last ones comes the seal."""
        try:
            if data:
                yield Write(data)
                self._remember(data)
            if self.written == self.total and self.phase is Phase.RECEIVING:
                yield Seal()
                self.phase = Phase.SEALED
        except OtaError as exc:
            return self._failed(exc)
        return self._standing()

    def _end(self) -> Job:
        if self.phase is Phase.SEALED:
            return (yield from self._activate())
        short = TruncatedError(self.written, self.total)
        if self.session is None:  # it says that this is all
            yield GiveUp(short)
            return self._failed(short)
        return Answer(next=self.written, error=short)

    def _activate(self) -> Job:
        try:
            yield Activate()
        except OtaError as exc:
            return self._failed(exc)
        self.phase = Phase.ACTIVATED
        return self._standing()

    def _beyond(self, chunk: Chunk) -> Job:
        """Bytes behind the end."""
        if self.phase is Phase.SEALED and self.session is None:
            answer = yield from self._activate()
            return answer if answer.error else Answer(activated=True, error=_complete())
        return _refused(WrongOffsetError(self.written, chunk.offset), following=self.written)

    def _repeat(self, chunk: Chunk) -> Answer:
        """Something of an upload that was activated already: its end, and its last piece, get the same answer."""
        if not chunk.data or self._remembers(chunk):
            return self._standing()
        return _refused(_complete(), following=self.total)

    def _remembers(self, chunk: Chunk) -> bool:
        """Whether this is the end of what was stored last."""
        tail = b"".join(self._tail)
        return chunk.offset + len(chunk.data) == self.total == chunk.total and tail.endswith(chunk.data)

    def _repeats_the_first(self, chunk: Chunk) -> Generator[Operation, bytes | None, bool]:
        if chunk.total != self.total or not self.written == self._first == len(chunk.data):
            return False
        try:
            return (yield from self._holds(0, chunk.data))
        except OtaError:
            self.phase = Phase.IDLE  # it was left because flash cannot be read; what follows begins again
            return False

    def _spoiled(self, offset: int) -> Job:
        differs = TransferError(f"what came for offset {offset} differs from what came before: begin again")
        yield GiveUp(differs)
        return self._failed(differs)

    def _failed(self, exc: OtaError) -> Answer:
        self.phase = Phase.IDLE
        self._over = (self.session, exc)
        return Answer(error=exc, final=True)

    def _standing(self) -> Answer:
        activated = self.phase is Phase.ACTIVATED
        return Answer(next=self.written, sealed=activated or self.phase is Phase.SEALED, activated=activated)

    def _remember(self, data: bytes) -> None:
        self.written += len(data)
        self._tail.append(data)
        self._tail_size += len(data)
        while self._tail_size - len(self._tail[0]) >= TAIL:
            self._tail_size -= len(self._tail.popleft())

    def _holds(self, offset: int, data: bytes) -> Generator[Operation, bytes | None, bool]:
        """Whether these bytes are stored at this offset."""
        start = self.written - self._tail_size
        old = max(start - offset, 0)  # of the bytes, so many lie before what is remembered
        if old and (yield Read(offset, min(old, len(data)))) != data[:old]:
            return False
        begin = max(offset - start, 0)
        recent = data[old:]
        return not recent or b"".join(self._tail)[begin : begin + len(recent)] == recent


def _begins(chunk: Chunk) -> bool:
    return chunk.offset == 0 and bool(chunk.data)


def _complete() -> TransferError:
    return TransferError("the image was complete, and is activated: nothing more is taken")


def _refused(error: OtaError, *, following: int | None = None, final: bool = False) -> Answer:
    return Answer(next=following, error=error, final=final)
