"""Any number of senders in any disorder, against a model that is nothing but the bytes that were acknowledged.

Three senders push three images, pieces come twice, late, torn, in the wrong order and from strangers, flash fails, time
passes. Whatever comes: what is activated is one of the images, whole; what was acknowledged is stored; who is told the
offset expected is told where flash ends; and at the end, the next sender who does it right succeeds.
"""

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mgota.core.receive import (
    Activate,
    Answer,
    Begin,
    GiveUp,
    Job,
    Operation,
    Patience,
    Phase,
    Read,
    Recall,
    Receiving,
    Seal,
    Write,
)
from mgota.core.rpc import Chunk
from mgota.errors import BadSignatureError, BusyError, OtaError, ProgramError, WrongOffsetError

SESSIONS = [None, "a" * 16, "b" * 16]
IMAGES = {
    None: bytes(range(60)),
    "a" * 16: bytes(range(60))[::-1] + b"tail",
    "b" * 16: bytes(range(30)) + bytes(30),  # begins like the first one
}


class Uploads(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.upload = Receiving(Patience())
        self.stored: bytearray | None = None  # the update under way
        self.sealed = False
        self.activated: list[bytes] = []
        self.on_trial: bytes | None = None  # by the record, after a restart
        self.failing = 0  # operations until flash fails; 0 is never

    @initialize(size=st.integers(1, 40))
    def choose(self, size: int) -> None:
        self.size = size

    def drive(self, job: Job) -> Answer:
        try:
            operation = next(job)
            while True:
                try:
                    data = self.do(operation)
                except OtaError as exc:
                    self.stored, self.sealed = None, False
                    operation = job.throw(exc)
                else:
                    operation = job.send(data)
        except StopIteration as stop:
            answer: Answer = stop.value
            return answer

    def do(self, operation: Operation) -> bytes | None:
        if self.failing and not isinstance(operation, GiveUp):
            self.failing -= 1
            if not self.failing:
                raise ProgramError("this sector does not take it")
        if isinstance(operation, GiveUp):
            self.stored, self.sealed = None, False
            return None
        if isinstance(operation, Begin):
            assert self.stored is None, "an update begins while another is under way"
            self.stored, self.on_trial = bytearray(), None
            return None
        if isinstance(operation, Recall):
            image = self.on_trial
            known = image is not None and len(image) == operation.total
            return image[operation.offset :][: operation.size] if image and known else None
        assert self.stored is not None, f"{operation} without an update"
        match operation:
            case Write(data):
                assert not self.sealed
                self.stored += data
                assert len(self.stored) <= self.upload.total
            case Read(offset, size):
                assert 0 <= offset < offset + size <= len(self.stored)
                return bytes(self.stored[offset : offset + size])
            case Seal():
                assert len(self.stored) == self.upload.total
                if bytes(self.stored) not in IMAGES.values():
                    raise BadSignatureError("no trusted key signed this")
                self.sealed = True
            case Activate():
                assert self.sealed
                self.activated.append(bytes(self.stored))
                self.stored, self.sealed = None, False
        return None

    def deliver(self, chunk: Chunk) -> Answer:
        before, owner, stored = len(self.activated), self.upload.session, bytes(self.stored or b"")
        under_way, failing = self.stored is not None, self.failing
        answer = self.drive(self.upload.take(chunk))
        if under_way and chunk.session != owner:
            assert isinstance(answer.error, BusyError)
            assert bytes(self.stored or b"") == stored
        elif under_way and not failing and chunk.total == self.upload.total and (chunk.offset or owner):
            end = chunk.offset + len(chunk.data)
            if chunk.data and stored[chunk.offset : end] == chunk.data:
                assert answer.error is None, "an equal duplicate is not acknowledged"
                assert bytes(self.stored or b"") == stored
        if answer.error is None and chunk.data and self.stored is not None:
            end = chunk.offset + len(chunk.data)
            assert self.stored[chunk.offset : end] == chunk.data, "what was acknowledged is not stored"
            assert answer.next == len(self.stored)
        if isinstance(answer.error, WrongOffsetError) and self.stored is not None:
            assert answer.next == len(self.stored) == answer.error.expected
        if answer.activated and len(self.activated) == before:
            assert self.upload.phase is Phase.ACTIVATED or (self.on_trial or b"").endswith(chunk.data)
        return answer

    @rule(session=st.sampled_from(SESSIONS), data=st.data())
    def a_piece(self, session: str | None, data: st.DataObject) -> None:
        image = IMAGES[session]
        offset = data.draw(st.sampled_from([0, self.upload.written, *range(0, len(image), self.size)]))
        self.deliver(Chunk(len(image), offset, image[offset : offset + self.size], session))

    @rule(session=st.sampled_from(SESSIONS))
    def the_next_piece(self, session: str | None) -> None:
        offset = self.upload.written if self.upload.under_way else 0
        image = IMAGES[session]
        self.deliver(Chunk(len(image), offset, image[offset : offset + self.size], session))

    @rule(session=st.sampled_from(SESSIONS))
    def an_end(self, session: str | None) -> None:
        self.deliver(Chunk(len(IMAGES[session]), len(IMAGES[session]), b"", session))

    @rule(
        session=st.sampled_from(SESSIONS),
        total=st.sampled_from([0, 1, 59, 60, 64, 10**9]),
        offset=st.integers(0, 70),
        data=st.binary(max_size=70),
    )
    def junk(self, session: str | None, total: int, offset: int, data: bytes) -> None:
        self.deliver(Chunk(total, offset, data, session))

    @rule()
    def time_passes(self) -> None:
        if self.upload.patience is not None:
            self.drive(self.upload.waited())
            assert not self.upload.under_way

    @rule()
    def the_device_restarts(self) -> None:
        if self.stored is None and self.activated:
            self.upload, self.on_trial = Receiving(Patience()), self.activated[-1]

    @rule(operations=st.integers(1, 4))
    def flash_is_about_to_fail(self, operations: int) -> None:
        self.failing = operations

    @rule(session=st.sampled_from(SESSIONS), size=st.integers(1, 64))
    def a_sender_who_follows_the_answers(self, session: str | None, size: int) -> None:
        """Follows `next` where it has a session; gives up when it is told to."""
        image, offset = IMAGES[session], 0
        for _ in range(200):
            answer = self.deliver(Chunk(len(image), offset, image[offset : offset + size], session))
            if answer.activated:
                assert self.activated[-1] == image or offset == len(image)
                return
            if answer.error is None:
                offset = min(offset + size, len(image)) if session is None else answer.next or 0
            elif session is not None and answer.next is not None:
                offset = answer.next
            else:
                return

    @invariant()
    def nothing_but_whole_images_was_activated(self) -> None:
        assert all(image in IMAGES.values() for image in self.activated)
        assert self.upload.under_way == (self.stored is not None)
        assert len(self.stored or b"") == (self.upload.written if self.stored is not None else 0)

    def teardown(self) -> None:
        self.failing = 0
        self.time_passes()
        image, count = IMAGES[None], len(self.activated)
        for offset in range(0, len(image), self.size):
            assert self.deliver(Chunk(len(image), offset, image[offset : offset + self.size])).error is None
        assert self.deliver(Chunk(len(image), len(image), b"")).activated
        assert self.activated[count:] == [image]


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
