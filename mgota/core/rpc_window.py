"""A sender with a session, without its network: what to send next, and what an answer means.

    AWAY ──connected──> ASKING ──next──> SENDING ──all written──> ENDING ──activated──> DONE
     ^                   ^  │             │    │                   │  │
     │                   │  └─ no such session: from 0 on          │  └─ the device restarted: DOUBT
     └──disconnected─────┴────online, lost bytes, another offset───┘

Rules:
- some chunks are in flight; `next` in an answer means that everything below it is written;
- the device takes chunks in order, so after a gap everything from `next` on is sent again, once: answers to what was
  sent before the turn say nothing about it;
- when nothing is answered in time, one chunk is sent again, and then later and later, until something is written;
- after a reconnect of either end the device is asked where it is. What it does not know any more begins at 0;
- the end is repeated until it is answered. If the device restarted meanwhile, its status tells how it ended;
- a refusal that is no end is waited out: the device may be stopping, and come back;
- another upload is waited for, and nothing sent meanwhile: it ends, or falls asleep. A trial is not;
- only bytes that the device has not had before count as movement, so that nothing goes on for ever.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from mgota.core.rpc import KINDS, MAX_CHUNK, OK, UPLOAD, Code, Fault, Reply, Standing, is_session, read_standing
from mgota.core.rpc_sender import MAX_ATTEMPTS, Ask, Chunk, Message, Phase, a_line, error_of, silence
from mgota.errors import BusyError, ConfigError, MalformedError, StalledError, TransferError

WINDOW: Final = 8
"""Chunks in flight."""

MAX_WINDOW: Final = 32
"""Chunks in flight, at most: a device keeps 64 messages and a MiB that it has no time for, and drops what is more."""

MAX_FLIGHT: Final = 512 * 1024
"""Bytes of the image in flight, at most: as base64 they are two thirds of that MiB."""

CHUNK: Final = 16 * 1024
"""Bytes of a chunk with a session."""

RETRY: Final = 2.0
"""Seconds until the first repetition; each one after it waits twice as long."""

RETRY_MAX: Final = 15.0
"""Most seconds between two repetitions: a device may erase or verify for so long."""

LOOK_AGAIN: Final = 0.5
"""Seconds until a device that is about to restart, or takes another upload, is asked once more."""

GRACE: Final = 3.0
"""Seconds that another upload is waited for beyond patience: one that died just before may last as long."""

SIGNATURES: Final = (0, 64, 68)
"""Bytes of the trailer that a device may leave out of its image's SHA-256."""


class WindowPush:
    """A push with a session: chunks in flight, resent and resumed.

    Args:
        total: bytes of the image.
        session: its random name.
        first_id: of the first request; random, because all senders hear all answers.
        window: chunks in flight.
        chunk: bytes of one.
        patience: seconds in which something has to move.
    """

    def __init__(
        self,
        total: int,
        *,
        session: str,
        first_id: int,
        window: int = WINDOW,
        chunk: int = CHUNK,
        patience: float = 60.0,
    ) -> None:
        if not (1 <= chunk <= MAX_CHUNK and 1 <= window <= MAX_WINDOW) or not is_session(session):
            raise ConfigError(f"a chunk has 1 to {MAX_CHUNK} bytes, and a window 1 to {MAX_WINDOW} chunks")
        self.total = total
        self.session = session
        self.acked = 0
        """Bytes that the device has written."""
        self.heard = False
        """Whether it ever answered."""
        self.seen: Mapping[str, Any] | None = None
        """In DOUBT: the status that it told."""
        self.phase = Phase.AWAY
        self.method = UPLOAD
        """By what name the device is asked."""
        self._chunk, self._most = chunk, min(window * chunk, MAX_FLIGHT)
        self._first, self._next = first_id, first_id  # ids of this attempt: from the one on, up to the other
        self._patience = patience
        self._moved: float | None = None
        self._attempts = 1
        self._sent = self._top = self._high = 0  # the next byte to send; ends of what was sent, and of what was written
        self._open = chunk  # bytes that may be in flight: one chunk until the device has taken it
        self._flight: dict[int, int] = {}
        self._asked = 0
        self._out = False  # the question or the end is on its way
        self._ended = False
        self._said = ""  # by the device, since something moved
        self.waiting = ""
        """What is waited for before anything is sent, in words."""
        self._busy = False  # the device said so, and its status does not show another upload
        self._wait = RETRY
        self._due: float | None = None

    @property
    def done(self) -> bool:
        """Whether the device has said that the update survives any cut."""
        return self.phase is Phase.DONE

    @property
    def deadline(self) -> float:
        """When `tick` has something to do, if nothing else happens."""
        given_up = self._given_up
        return given_up if self._due is None else min(self._due, given_up)

    @property
    def _given_up(self) -> float:
        return (self._moved or 0.0) + self._patience + (GRACE if self.waiting else 0.0)

    def connected(self, now: float) -> None:
        """The broker is there, and the answers are subscribed to."""
        self._moved = now if self._moved is None else self._moved
        self._ask()

    def disconnected(self) -> None:
        """The broker has gone."""
        self.phase, self._due = Phase.AWAY, None

    def online(self, now: float) -> None:  # noqa: ARG002  the other one needs the time
        """The device said that it is there, once more: it may have restarted."""
        if self.phase in {Phase.ASKING, Phase.SENDING, Phase.ENDING}:
            self._ask()

    def new_id(self) -> int:
        """The id of another request."""
        self._next += 1
        return self._next - 1

    def next_message(self, now: float) -> Message | None:
        """What to send now; None when there is nothing until an answer comes, or `deadline`."""
        if self.phase is Phase.SENDING:
            return self._next_chunk(now)
        if self.phase not in {Phase.ASKING, Phase.ENDING} or self._out:
            return None
        self._out = True
        self._arm(now)
        if self.phase is Phase.ASKING:
            return Ask(self.new_id())
        self._ended = True
        end = Chunk(self.new_id(), self.total, 0)
        self._flight[end.id] = end.offset
        return end

    def _next_chunk(self, now: float) -> Chunk | None:
        if self._sent >= self.total or self._sent - self.acked >= self._open:
            return None
        chunk = Chunk(self.new_id(), self._sent, min(self._chunk, self.total - self._sent))
        self._flight[chunk.id] = chunk.offset
        self._sent += chunk.size
        self._top = max(self._top, self._sent)
        self._arm(now)
        return chunk

    def tick(self, now: float) -> None:
        """Time has passed.

        Raises:
            StalledError: nothing moved for too long.
        """
        if self.done:
            return
        if self._moved is not None and now >= self._given_up:
            if self.waiting:
                raise BusyError(f"{self.waiting} on the device, and has been for {self._patience:g} s")
            raise StalledError(silence(self.phase, self._patience, self._said))
        if self._due is None or now < self._due:
            return
        self._due = None
        self._wait = min(2 * self._wait, RETRY_MAX)
        self._out = False
        if self.phase is Phase.SENDING:
            self._go_back(self.acked)
            self._open = self._chunk

    def take(self, reply: Reply, now: float) -> None:
        """A reply came; those to others' requests, and what makes no sense, are left alone.

        Raises:
            OtaError: the push is over; its kind says what to do.
        """
        request = reply.reply_to
        if not isinstance(request, int) or not self._first <= request < self._next:
            return
        self.heard = True
        if self.phase in {Phase.DONE, Phase.DOUBT, Phase.AWAY}:
            return
        if reply.fault is not None:
            self._refused(request, reply.fault, now)
        elif reply.result == OK:
            raise ConfigError("the device does not know sessions: push to it with stop-and-wait")
        elif self.phase is Phase.ASKING and request >= self._asked:
            if isinstance(found := reply.result, dict):
                self._resume(cast(dict[str, Any], found), now)
        else:
            with suppress(MalformedError):
                self._standing(read_standing(reply.result), now)

    def _standing(self, told: Standing, now: float) -> None:
        if told.session != self.session:
            return
        if told.activated and self._ended:
            self._finish()
        else:
            self._acknowledged(told.next, now)

    def _finish(self) -> None:
        self.phase, self._due, self.acked = Phase.DONE, None, self.total

    def settle(self, digests: Collection[str], now: float) -> None:
        """Out of DOUBT: the device restarted after the end was sent; its status tells whether it took the image.

        Args:
            digests: SHA-256 in hex of the image without each trailer of `SIGNATURES`.
            now: the time.

        Raises:
            TransferError: it did not take the image, and told why.
        """
        seen = self.seen or {}
        if any(_digest(seen.get(name)) in digests for name in ("image", "staged")):
            self._finish()
        elif seen.get("state") == "TESTING":
            self._ask()
            self._out, self._due = True, now + LOOK_AGAIN
        elif seen.get("outcome") == "interrupted":
            self._begin_again(now)
        else:
            why = a_line(str(seen.get("reason") or seen.get("outcome") or "it does not say why"))
            raise TransferError(f"the device restarted at the end and does not run the image: {why}")

    def _resume(self, status: Mapping[str, Any], now: float) -> None:
        position = self._position(status)
        if position is not None:
            self._calm()
            if position < self.acked:
                self._count_attempt()
                self._moved, self._high = now, position
            self._turn_to(position, now)
        elif self._ended:
            self.seen = status
            self.phase, self._due = Phase.DOUBT, None
        elif self._sent == 0:
            self._calm()
            self._begin(status, now)
        else:
            self._begin_again(now)

    def _begin(self, status: Mapping[str, Any], now: float) -> None:
        """Send the first chunk, or wait for somebody else's last one."""
        if isinstance(status.get("update"), dict):
            self.waiting, self._busy = "another upload is under way", False
            self._out, self._due = True, now + LOOK_AGAIN
        else:
            self.waiting, self.phase = "", Phase.SENDING

    def _position(self, status: Mapping[str, Any]) -> int | None:
        """How far the device is with this push; None if it does not know it."""
        position = status.get("next")
        if status.get("session") != self.session or status.get("total") != self.total or type(position) is not int:
            return None
        return position if 0 <= position <= self.total else None

    def _begin_again(self, now: float) -> None:
        self._count_attempt()
        self._first = self._next
        self._moved = now
        self._top = self._high = 0
        self._ended = False
        self._calm()
        self._open = self._chunk
        self._turn_to(0, now)

    def _count_attempt(self) -> None:
        self._attempts += 1
        if self._attempts > MAX_ATTEMPTS:
            raise TransferError(f"the device lost what it had {MAX_ATTEMPTS} times: see its log")

    def _refused(self, request: int, refusal: Fault, now: float) -> None:
        if refusal.final or refusal.next is None:
            if KINDS.get(refusal.kind or "") is TransferError and not refusal.final:
                self._said = a_line(refusal.message)  # such as that it stops just now: silence sends it again
                return
            if isinstance(error_of(refusal), BusyError) and self.acked == 0 and not self._busy:
                self._busy, self._sent, self._top = True, 0, 0  # nothing was taken; its status tells why
                self._ask()
                return
            if self.phase is Phase.ASKING and refusal.code == Code.UNKNOWN_METHOD:
                raise ConfigError("the device does not know ota.status: push to it with stop-and-wait")
            raise error_of(refusal)
        offset = self._flight.get(request)
        if self.phase is not Phase.ASKING and offset is not None and refusal.next < self.acked:
            self._ask()  # it lost bytes, or this answer is an old one: the device itself knows
            return
        self._acknowledged(refusal.next, now)
        if offset is not None and offset > refusal.next:  # else it was sent before the turn, or is there already
            self._go_back(refusal.next)

    def _acknowledged(self, position: int, now: float) -> None:
        """Everything below `position` is written."""
        if self.phase is Phase.ASKING or not self.acked < position <= self._top:
            return
        self._turn_to(position, now, sent=max(self._sent, position))
        self._calm()
        if self._flight:
            self._arm(now)

    def _turn_to(self, position: int, now: float, sent: int | None = None) -> None:
        """The device is at `position`; the next chunk begins there, or at `sent`."""
        self.acked = position
        self._sent = position if sent is None else sent
        self._flight = {id_: at for id_, at in self._flight.items() if at >= position and sent is not None}
        self._top = max(self._top, position)
        if position > self._high:
            self._high, self._moved, self._said = position, now, ""
        if position:
            self._open = self._most
        self._out = False
        self.phase = Phase.ENDING if position == self.total else Phase.SENDING

    def _go_back(self, position: int) -> None:
        self._sent = position
        self._flight.clear()

    def _ask(self) -> None:
        self.phase, self._out, self._due = Phase.ASKING, False, None
        self._asked = self._next
        self._flight.clear()

    def _calm(self) -> None:
        self._wait, self._due = RETRY, None

    def _arm(self, now: float) -> None:
        if self._due is None:
            self._due = now + self._wait


def _digest(image: object) -> object:
    """The SHA-256 of an image in a status, from whoever answered."""
    return cast(dict[str, object], image).get("sha256") if isinstance(image, dict) else None
