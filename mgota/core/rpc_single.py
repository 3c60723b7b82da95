"""A sender of MQTT's dialect for devices of Mongoose, without its network: one chunk at a time.

Rules:
- devices know it by one of two names; one that does not know the first is asked by the other;
- no chunk is sent twice: such a device compares its offset with 0 only, and would write it twice;
- when an answer may be lost, because the broker or the device was away, the push begins again at 0;
- an answer to the end that may be lost stays lost: whoever pushes has to look what the device runs.
"""

from typing import Final

from mgota.core.rpc import MAX_CHUNK, UPDATE, UPLOAD, Code, Reply
from mgota.core.rpc_sender import MAX_ATTEMPTS, Chunk, Message, Phase, error_of, silence
from mgota.errors import ConfigError, StalledError, TransferError

SINGLE_CHUNK: Final = 4096
"""Bytes of a chunk: what Mongoose's dashboard sends."""


class SinglePush:
    """A push without a session, for devices of Mongoose: one chunk at a time, none of them twice.

    Args:
        total: bytes of the image.
        first_id: of the first request; random, because all senders hear all answers.
        chunk: bytes of one.
        patience: seconds that an answer may take.
    """

    def __init__(self, total: int, *, first_id: int, chunk: int = SINGLE_CHUNK, patience: float = 60.0) -> None:
        if not 1 <= chunk <= MAX_CHUNK:
            raise ConfigError(f"a chunk has 1 to {MAX_CHUNK} bytes")
        self.total = total
        self.acked = 0
        """Bytes that the device took."""
        self.heard = False
        """Whether it ever answered."""
        self.waiting = ""
        """As a push with a session: but this one waits for nobody."""
        self.phase = Phase.AWAY
        self.method = UPLOAD
        """By what name the device is asked."""
        self._chunk, self._patience = chunk, patience
        self._next = first_id
        self._asked: Chunk | None = None
        self._attempts = 0
        self._moved: float | None = None

    @property
    def done(self) -> bool:
        """Whether the device took the end."""
        return self.phase is Phase.DONE

    @property
    def deadline(self) -> float:
        """When `tick` has something to do, if nothing else happens."""
        return (self._moved or 0.0) + self._patience

    def connected(self, now: float) -> None:
        """The broker is there, and the answers are subscribed to.

        Raises:
            TransferError: connections were lost too often, or in the end.
        """
        self._moved = now if self._moved is None else self._moved
        self._begin(now)

    def disconnected(self) -> None:
        """The broker has gone. A push that waits for the answer to its end cannot know any more."""
        if self.phase is not Phase.ENDING:
            self.phase = Phase.AWAY

    def online(self, now: float) -> None:
        """The device said that it is there, once more: it may have restarted, and missed what was sent.

        Raises:
            TransferError: this happened too often, or in the end.
        """
        if self.phase is not Phase.DONE:
            self._begin(now)

    def _begin(self, now: float) -> None:
        if self.phase is Phase.ENDING:
            raise TransferError("the answer to the end of the image was lost: see which version the device runs")
        self._attempts += 1
        if self._attempts > MAX_ATTEMPTS:
            raise TransferError(f"the push was cut off {MAX_ATTEMPTS} times")
        if self.acked:
            self._moved = now
        self.acked, self._asked, self.phase = 0, None, Phase.SENDING

    def next_message(self, now: float) -> Message | None:  # noqa: ARG002  the other one needs the time
        """What to send now; None when there is nothing until an answer comes, or `deadline`."""
        if self._asked is not None or self.phase not in {Phase.SENDING, Phase.ENDING}:
            return None
        self._asked = Chunk(self._next, self.acked, min(self._chunk, self.total - self.acked))
        self._next += 1
        return self._asked

    def tick(self, now: float) -> None:
        """Time has passed.

        Raises:
            StalledError: there was no answer for too long.
        """
        if not self.done and self._moved is not None and now >= self._moved + self._patience:
            raise StalledError(silence(self.phase, self._patience))

    def take(self, reply: Reply, now: float) -> None:
        """A reply came; those to others' requests are left alone.

        Raises:
            OtaError: the device refused; the kind says what to do.
        """
        asked = self._asked
        if asked is None or reply.reply_to != asked.id or self.phase in {Phase.AWAY, Phase.DONE}:
            return
        self.heard = True
        if reply.fault is not None:
            if reply.fault.code != Code.UNKNOWN_METHOD or asked.offset or self.method == UPDATE:
                raise error_of(reply.fault)
            self.method, self._asked = UPDATE, None
            return
        self._asked, self._moved = None, now
        self.acked = asked.offset + asked.size
        if asked.size == 0:
            self.phase = Phase.DONE
        elif self.acked == self.total:
            self.phase = Phase.ENDING
