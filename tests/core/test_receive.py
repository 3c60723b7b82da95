"""Pieces of an image: what is done with each, and what its sender is told."""

from typing import Any

import pytest

from mgota.core.receive import (
    TAIL,
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
from mgota.core.rpc import OK, Abort, Chunk, Code, Fault, Reply, Standing
from mgota.errors import (
    BadSignatureError,
    OtaError,
    OverrunError,
    ProgramError,
    ReadError,
    StalledError,
    TooLargeError,
    TransferError,
    TrialRunningError,
    TruncatedError,
    UpdateRunningError,
    WrongOffsetError,
)

A = "session-a-session"
B = "session-b-session"
IMAGE = bytes(range(256)) * 40  # 10240


class Bench:
    """What drives the rules in tests: a flash memory, and a list of what was done."""

    def __init__(self, patience: Patience | None = None) -> None:
        self.rules = Receiving(patience)
        self.flash = bytearray()
        self.done: list[str] = []
        self.fails: dict[type[Operation], OtaError] = {}
        self.open = False
        self.on_trial: bytes | None = None

    def drive(self, job: Job) -> Answer:
        try:
            operation = next(job)
            while True:
                try:
                    data = self.do(operation)
                except OtaError as exc:
                    self.open = False
                    operation = job.throw(exc)
                else:
                    operation = job.send(data)
        except StopIteration as stop:
            answer = stop.value
            assert isinstance(answer, Answer)
            assert self.open == self.rules.under_way
            return answer

    def do(self, operation: Operation) -> bytes | None:
        self.done.append(type(operation).__name__)
        if type(operation) in self.fails:
            raise self.fails.pop(type(operation))
        match operation:
            case Begin():
                assert not self.open
                self.open = True
                self.flash.clear()
            case Write(data):
                assert self.open
                assert data
                self.flash += data
                assert len(self.flash) <= self.rules.total
            case Read(offset, size):
                assert self.open
                assert size > 0
                data = bytes(self.flash[offset : offset + size])
                assert len(data) == size
                return data
            case Recall(total, offset, size):
                self.done.pop()  # it changes nothing
                assert not self.open
                known = self.on_trial is not None and len(self.on_trial) == total
                return self.on_trial[offset : offset + size] if self.on_trial and known else None
            case Seal():
                assert self.open
                assert len(self.flash) == self.rules.total
            case Activate():
                assert self.open
                self.open = False
            case GiveUp():
                self.open = False
        return None

    def send(self, offset: int, data: bytes, session: str | None = None, total: int = len(IMAGE)) -> Answer:
        return self.drive(self.rules.take(Chunk(total, offset, data, session)))

    def piece(self, offset: int, size: int = 4096, session: str | None = None) -> Answer:
        return self.send(offset, IMAGE[offset : offset + size], session)

    def pieces(self, upto: int, session: str | None = None, size: int = 4096) -> Answer:
        answer = Answer()
        for offset in range(0, upto, size):
            answer = self.piece(offset, min(size, upto - offset), session)
            assert answer.error is None
        return answer


def error(answer: Answer) -> type[OtaError]:
    assert answer.error
    return type(answer.error)


@pytest.mark.parametrize("session", [None, A])
def test_pieces_in_order_are_sealed_and_the_empty_one_activates(session: str | None) -> None:
    bench = Bench()
    assert bench.piece(0, session=session) == Answer(next=4096)
    assert bench.piece(4096, session=session) == Answer(next=8192)
    assert bench.piece(8192, session=session) == Answer(next=10240, sealed=True)
    end = bench.send(10240, b"", session)
    assert end == Answer(next=10240, sealed=True, activated=True)
    assert bench.flash == IMAGE
    assert bench.done == ["Begin", "Write", "Write", "Write", "Seal", "Activate"]
    assert bench.send(10240, b"", session) == end  # a duplicate end: the same answer
    assert bench.rules.phase is Phase.ACTIVATED
    assert bench.done[-1] == "Activate"


@pytest.mark.parametrize("session", [None, A])
def test_the_last_piece_once_more_is_answered_as_the_end_was(session: str | None) -> None:
    bench = Bench()
    bench.pieces(10240, session)
    end = bench.send(10240, b"", session)
    assert bench.piece(8192, session=session) == end
    for offset, data, total in (
        (8192, b"x" * 2048, 10240),  # other bytes
        (8191, IMAGE[8192:], 10240),  # it ends before the end
        (8192, IMAGE[8192:] + b"x", 10241),  # of another image
        (10240, b"undefined", 10240),  # what Mongoose's dashboard sends until it is refused
    ):
        assert bench.send(offset, data, session, total).error


def test_after_the_reset_the_end_and_the_last_piece_are_answered_once_more() -> None:
    bench = Bench()
    bench.on_trial = IMAGE
    told = Answer(next=10240, sealed=True, activated=True)
    assert bench.send(10240, b"") == told
    assert bench.piece(8192) == told
    assert bench.send(0, b"", total=10240) == told  # wherever an end says that it is
    for offset, data, total in (
        (10240, b"", 10241),
        (10240, b"", 10239),
        (0, b"", 0),
        (8192, b"x" * 2048, 10240),  # other bytes
        (4096, IMAGE[4096:8192], 10240),  # not the last piece
        (10240, b"undefined", 10240),
    ):
        assert bench.send(offset, data, total=total).error, (offset, total)
    # Who names a session is asked to look at the status: there the digest tells whose image it is.
    assert error(bench.send(10240, b"", A)) is TruncatedError
    assert bench.done == []
    bench.on_trial = None
    assert error(bench.send(10240, b"")) is TruncatedError


def test_after_the_reset_a_flash_that_cannot_be_read_is_no_answer() -> None:
    bench = Bench()
    bench.on_trial = IMAGE
    bench.fails[Recall] = ReadError("this sector cannot be read")
    assert error(bench.piece(8192)) is WrongOffsetError
    assert bench.piece(8192).activated


@pytest.mark.parametrize("session", [None, A])
def test_a_gap_is_refused_with_the_offset_expected_and_nothing_happens(session: str | None) -> None:
    bench = Bench()
    bench.piece(0, session=session)
    answer = bench.piece(8192, session=session)
    assert (error(answer), answer.next, answer.final) == (WrongOffsetError, 4096, False)
    assert bench.piece(4096, session=session) == Answer(next=8192)
    assert bench.done == ["Begin", "Write", "Write"]


def test_before_anything_began_offset_0_is_expected() -> None:
    bench = Bench()
    for session in (None, A):
        assert error(bench.piece(4096, session=session)) is WrongOffsetError
        assert bench.piece(4096, session=session).next == 0
        assert error(bench.send(0, b"", session)) is TruncatedError
    assert error(bench.send(0, b"abc", total=2)) is OverrunError
    assert bench.done == []


@pytest.mark.parametrize("session", [None, A])
def test_an_equal_duplicate_is_acknowledged_again_and_written_once(session: str | None) -> None:
    bench = Bench()
    bench.pieces(8192, session)
    for _ in range(2):
        assert bench.piece(4096, session=session) == Answer(next=8192)
    assert bench.piece(4096, 6144, session) == Answer(next=10240, sealed=True)  # its beginning is known, its end new
    assert bench.piece(4096, session=session) == Answer(next=10240, sealed=True)
    assert bench.flash == IMAGE
    assert bench.done == ["Begin", "Write", "Write", "Write", "Seal"]


def test_what_is_long_gone_is_compared_with_flash_and_the_rest_with_memory() -> None:
    image = bytes(byte * 7 % 256 for byte in range(TAIL * 3))
    bench = Bench()

    def piece(offset: int, data: bytes) -> Answer:
        return bench.send(offset, data, A, total=len(image))

    for offset in range(0, TAIL * 2 + 30_000, 10_000):
        assert piece(offset, image[offset : offset + 10_000]).error is None
    written = bench.rules.written
    assert "Read" not in bench.done
    # All in flash, half and half, all in memory.
    for offset, size in ((0, 10_000), (written - TAIL - 10_001, 20_000), (written - 10_000, 10_000), (0, written)):
        bench.done.clear()
        assert piece(offset, image[offset : offset + size]) == Answer(next=written)
        assert ("Read" in bench.done) == (offset < written - TAIL - 9_999)
    # Memory is what counts where a writer may hold back; flash is where it may not.
    bench.flash[written - 1] ^= 1
    assert piece(written - 10_000, image[written - 10_000 : written]).error is None
    bench.flash[5] ^= 1
    answer = piece(0, image[:10_000])
    assert (error(answer), answer.final) == (TransferError, True)


@pytest.mark.parametrize("session", [None, A])
def test_after_a_repeat_that_differs_every_piece_but_offset_0_is_refused(session: str | None) -> None:
    bench = Bench()
    bench.pieces(8192, session)
    answer = bench.send(4096, b"x" * 4096, session)
    assert (error(answer), answer.final, bench.open) == (TransferError, True, False)
    for offset, data in ((8192, IMAGE[8192:]), (4096, IMAGE[4096:8192]), (10240, b""), (10240, b"junk")):
        assert bench.send(offset, data, session) == answer
    if session is None:
        bench.pieces(10240)
    else:
        assert bench.piece(0, session=A) == answer  # the session is over
        bench.pieces(10240, B)
    assert bench.flash == IMAGE


def test_offset_0_begins_again_without_a_session() -> None:
    bench = Bench()
    bench.piece(0)
    assert bench.piece(0) == Answer(next=4096)  # an exact repeat right after it
    assert bench.done == ["Begin", "Write"]
    bench.piece(4096)
    assert bench.piece(0) == Answer(next=4096)  # not right after it
    assert bench.done == ["Begin", "Write", "Write", "GiveUp", "Begin", "Write"]
    for data, total in ((b"x" * 4096, 10240), (IMAGE[:4095], 10240), (IMAGE[:4096], 10241)):
        bench.done.clear()
        assert bench.send(0, data, total=total).next == len(data)
        assert bench.done == ["GiveUp", "Begin", "Write"]


def test_an_image_of_one_piece() -> None:
    bench = Bench()
    assert bench.send(0, b"abc", total=3) == Answer(next=3, sealed=True)
    assert bench.send(0, b"abc", total=3) == Answer(next=3, sealed=True)
    assert bench.send(0, b"abd", total=3) == Answer(next=3, sealed=True)
    assert bench.done == ["Begin", "Write", "Seal", "GiveUp", "Begin", "Write", "Seal"]
    assert bench.flash == b"abd"


def test_a_session_belongs_to_one_and_keeps_others_away() -> None:
    bench = Bench()
    bench.piece(0, session=A)
    for session in (None, B):
        for offset, data in ((0, IMAGE[:4096]), (4096, IMAGE[4096:8192]), (10240, b"")):
            assert error(bench.send(offset, data, session)) is UpdateRunningError
    assert bench.piece(0, session=A) == Answer(next=4096)  # a duplicate: a session does not begin again
    bench.pieces(10240, A)
    assert error(bench.send(0, b"x", None)) is UpdateRunningError  # sealed is under way, too
    assert bench.send(10240, b"", A).activated
    plain = Bench()
    plain.piece(0)
    assert error(plain.piece(0, session=A)) is UpdateRunningError


def test_a_session_may_not_change_its_size() -> None:
    bench = Bench()
    bench.piece(0, session=A)
    answer = bench.send(4096, b"x", A, total=9999)
    assert (error(answer), answer.next, answer.final) == (TransferError, None, False)
    assert error(bench.send(0, IMAGE[:4096], A, total=9999)) is TransferError
    assert bench.piece(4096, session=A).next == 8192


@pytest.mark.parametrize("session", [None, A])
def test_a_piece_that_reaches_beyond_the_end(session: str | None) -> None:
    bench = Bench()
    bench.pieces(8192, session)
    assert error(bench.send(8192, IMAGE[8192:] + b"x", session)) is OverrunError
    assert error(bench.send(10240, b"junk", session)) is WrongOffsetError
    assert error(bench.send(99999, b"junk", session)) is WrongOffsetError
    assert bench.piece(8192, session=session).sealed


def test_junk_behind_a_complete_image_activates_it_and_is_answered_with_an_error() -> None:
    bench = Bench()
    bench.pieces(10240)
    answer = bench.send(12288, b"junk")
    assert (error(answer), answer.activated) == (TransferError, True)
    assert bench.done[-1] == "Activate"
    again = bench.send(16384, b"junk")
    assert (str(again.error), again.activated) == (str(answer.error), False)
    assert bench.done.count("Activate") == 1
    failing = Bench()
    failing.pieces(10240)
    failing.fails[Activate] = TrialRunningError("x")
    assert error(failing.send(12288, b"junk")) is TrialRunningError


def test_junk_of_a_session_activates_nothing() -> None:
    bench = Bench()
    bench.pieces(10240, A)
    answer = bench.send(10240, b"junk", A)
    assert (error(answer), answer.next) == (WrongOffsetError, 10240)
    assert "Activate" not in bench.done
    bench.send(10240, b"", A)
    late = bench.piece(0, session=A)  # a piece that comes late does not begin a new update
    assert (error(late), late.next, late.final) == (TransferError, 10240, False)
    assert bench.done.count("Begin") == 1


def test_silence_activates_a_complete_image_without_a_session() -> None:
    bench = Bench(Patience(idle=60, silence=5))
    assert bench.rules.patience is None
    bench.piece(0)
    assert bench.rules.patience == 60
    bench.pieces(10240)
    assert bench.rules.patience == 5
    assert bench.drive(bench.rules.waited()) == Answer(next=10240, sealed=True, activated=True)
    assert bench.rules.patience is None
    assert bench.send(10240, b"").activated  # the end that came late


@pytest.mark.parametrize(("session", "silence"), [(A, 5.0), (None, None)])
def test_silence_gives_up_what_was_sealed_and_not_ended(session: str | None, silence: float | None) -> None:
    bench = Bench(Patience(idle=60, silence=silence))
    bench.pieces(10240, session)
    assert bench.rules.patience == 60
    assert error(bench.drive(bench.rules.waited())) is StalledError
    assert bench.done[-1] == "GiveUp"


def test_a_session_that_fell_asleep_may_begin_again() -> None:
    bench = Bench(Patience(idle=7))
    bench.pieces(8192, A)
    bench.drive(bench.rules.waited())
    answer = bench.piece(8192, session=A)
    assert (answer.next, answer.final) == (0, False)
    bench.pieces(10240, A)
    assert bench.send(10240, b"", A).activated


def test_an_end_that_comes_too_early() -> None:
    bench = Bench()
    bench.piece(0, session=A)
    answer = bench.send(10240, b"", A)
    assert (error(answer), answer.next, answer.final) == (TruncatedError, 4096, False)
    assert bench.piece(4096, session=A).next == 8192
    plain = Bench()
    plain.piece(0)
    first = plain.send(10240, b"")
    assert (error(first), plain.open) == (TruncatedError, False)
    assert plain.send(10240, b"") == first


@pytest.mark.parametrize("session", [None, A])
@pytest.mark.parametrize("operation", [Begin, Write, Seal, Activate])
def test_what_fails_ends_the_upload_and_is_said_again(operation: type[Any], session: str | None) -> None:
    bench = Bench()
    bench.fails[operation] = failure = ProgramError("sector 7 does not take it")
    answers = [bench.piece(offset, session=session) for offset in (0, 4096, 8192)] + [bench.send(10240, b"", session)]
    first = next(answer for answer in answers if answer.error)
    assert (first.error, first.final, bench.open) == (failure, True, False)
    assert answers[-1] == first
    # The next one works.
    bench.pieces(10240, B if session else None)
    assert bench.send(10240, b"", B if session else None).activated


def test_who_was_busy_may_come_again_and_who_was_rejected_not() -> None:
    bench = Bench()
    bench.fails[Begin] = UpdateRunningError("somebody")
    answer = bench.piece(0, session=A)
    assert (error(answer), answer.final) == (UpdateRunningError, False)
    bench.fails[Begin] = TooLargeError(10240, 5)
    assert bench.piece(0, session=A).final
    assert error(bench.piece(0, session=A)) is TooLargeError
    assert bench.piece(0, session=B).error is None


def test_a_bad_signature_is_the_answer_to_the_last_piece() -> None:
    bench = Bench()
    bench.fails[Seal] = BadSignatureError("no")
    bench.pieces(8192)
    assert error(bench.piece(8192)) is BadSignatureError
    assert error(bench.send(10240, b"")) is BadSignatureError
    assert "Activate" not in bench.done


def test_flash_that_cannot_be_read_for_a_comparison() -> None:
    image = bytes(TAIL * 3)
    bench = Bench()
    for offset in range(0, TAIL * 2, TAIL):
        bench.send(offset, image[:TAIL], A, total=len(image))
    bench.fails[Read] = ReadError("no")
    assert error(bench.send(0, image[:TAIL], A, total=len(image))) is ReadError
    # The first piece of an upload without a session is longer than what is remembered only in theory.
    plain = Bench()
    plain.send(0, image, total=len(image) + 1)
    plain.rules._tail.clear()
    plain.rules._tail_size = 0
    plain.fails[Read] = ReadError("no")
    assert plain.send(0, image, total=len(image) + 1) == Answer(next=len(image))
    assert plain.done == ["Begin", "Write", "Read", "GiveUp", "Begin", "Write"]


def test_after_an_activation_anybody_may_begin_and_the_device_says_no() -> None:
    bench = Bench()
    bench.pieces(10240)
    bench.send(10240, b"")
    assert error(bench.piece(4096)) is TransferError
    bench.fails[Begin] = TrialRunningError("an image is about to go on trial")
    assert error(bench.piece(0)) is TrialRunningError
    assert error(bench.piece(4096, session=A)) is WrongOffsetError
    assert bench.piece(0, session=A).error is None  # it was only staged


def test_a_sender_that_gives_up_frees_the_device_and_may_begin_again() -> None:
    bench = Bench()
    assert error(bench.drive(bench.rules.take(Abort(A)))) is TransferError
    bench.piece(0, session=A)
    assert error(bench.drive(bench.rules.take(Abort(B)))) is TransferError
    assert bench.rules.under_way, "another one's word counts for nothing"
    assert bench.drive(bench.rules.take(Abort(A))) == Answer(next=0)
    assert bench.done[-1] == "GiveUp"
    assert not bench.rules.under_way
    assert error(bench.drive(bench.rules.take(Abort(A)))) is TransferError
    assert bench.piece(0, session=A).error is None
    assert bench.drive(bench.rules.take(Abort(A))).error is None
    assert bench.piece(0, session=B).error is None


def test_answers_as_frames() -> None:
    gap = WrongOffsetError(4096, 8192)
    assert Answer(next=1).reply(7, None) == Reply(7, OK)
    assert Answer(next=1, sealed=True).reply(7, A) == Reply(7, Standing(A, 1, sealed=True))
    assert Answer(error=gap, next=4096).reply(7, None) == Reply(7, fault=Fault(Code.FAILED, str(gap)))
    at = Fault(Code.FAILED, str(gap), A, 4096, kind="transfer")
    assert Answer(error=gap, next=4096).reply(7, A) == Reply(7, fault=at)
    over = Fault(1, str(gap), A, final=True, kind="transfer")
    assert Answer(error=gap, final=True).reply(7, A) == Reply(7, fault=over)
    busy = Fault(Code.BUSY, "TrialRunningError", kind="busy")
    assert Answer(error=TrialRunningError()).reply(7, A) == Reply(7, fault=busy)
