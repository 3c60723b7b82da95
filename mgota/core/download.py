"""What a server's answer means for a download that may go on where an earlier one broke off.

| asked for | answer | what follows |
|---|---|---|
| anything | 408, 425, 429, 5xx | try again, later |
| anything | any other status that is not below, or a coding other than identity | give up |
| all | 200 of the size announced | take it from byte 0 |
| the rest | 200 | the server does not know the range, or has another image now: take it from byte 0 |
| the rest | 206 of exactly this range, size and validator | take it from where it broke off |
| the rest | any other 206, 416 | ask for all of it |

Rules:
- a range is asked for only with a validator that is strong (RFC 9110 sections 8.8.1, 13.1.5): bytes of two images are
  never joined. What is joined is verified all the same;
- the server's word on sizes is never more than a reason to refuse: no byte beyond the announced size is taken;
- progress is a byte beyond all that were received before. Tries without it are counted, and with it counted from anew;
- the minimum rate holds over all connections: once its grace is used up, a try that brings less is one that brought
  nothing, or a server could hold a device for ever with a byte at a time;
- what all tries brought together is bounded, or a server could let a device download for ever.

Section numbers are those of RFC 9110.
"""

import re
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mgota.core.note import MAX_VALIDATOR
from mgota.core.pace import Limits
from mgota.errors import ConfigError, OtaError, TransferError

MAX_WAIT: Final = 300.0
"""Seconds of the longest `Retry-After` that is obeyed: a server must not talk a device out of updates."""

_TRANSIENT: Final = frozenset({408, 425, 429})
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)  # section 14.4
_NUMBER = re.compile(r"[0-9]{1,18}")
_STRONG = re.compile(r'"[!#-~\x80-\xff]*"')  # section 8.8.3


class FinalError(TransferError):
    """This answer would only come again: within one pull, nothing that is tried again would help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a response.

    Args:
        status: the HTTP status.
        fields: names in lower case, and values, in the order received.
    """

    status: int
    fields: tuple[tuple[str, str], ...] = ()

    def value(self, name: str) -> str | None:
        """The value of a field that may come once (lower case); None if it does not, "" if it comes twice."""
        values = [value.strip(" \t") for field, value in self.fields if field == name]
        return values[0] if len(values) == 1 else "" if values else None


class Course(Enum):
    """What to do after an answer."""

    TAKE = "take"
    """The body follows: take it."""
    AGAIN = "again"
    """Ask for all of it, now."""
    RETRY = "retry"
    """Try the same once more, later."""
    GIVE_UP = "give up"
    """Nothing that is tried again would help."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an answer means.

    Args:
        course: what to do.
        begin: of `TAKE`: the byte of the image that the body begins with.
        end: of `TAKE`: the byte of the image behind the body.
        validator: of `TAKE`: what to ask for the rest with, or None.
        error: of the others: why.
        after: of `RETRY`: seconds that the server asks to wait, or None.
    """

    course: Course
    begin: int = 0
    end: int = 0
    validator: str | None = None
    error: OtaError | None = None
    after: float | None = None


def judge(answer: Answer, *, size: int, asked: int = 0, validator: str | None = None, now: float = 0.0) -> Verdict:
    """What this answer means for a download.

    Args:
        answer: the head of the response.
        size: bytes of the image, as announced.
        asked: the byte that the request asked to begin with; 0 asked for all of it.
        validator: what the request asked with, if for a range.
        now: the time in seconds since the epoch, for a date in `Retry-After`.
    """
    refusal = _refusal(answer, now) if answer.status not in {200, 206, 416} else None
    if refusal:
        return refusal
    if answer.status == 200:
        return _whole(answer, size)
    if not asked:
        return Verdict(Course.GIVE_UP, error=TransferError(f"the server answered {answer.status} to a plain request"))
    if answer.status == 416:
        return Verdict(Course.AGAIN, error=TransferError("the server has no such range: the image is another one now"))
    return _rest(answer, size, asked, validator)


def judge_metadata(answer: Answer, *, limit: int, now: float = 0.0) -> Verdict:
    """What this answer means for who asked for metadata: take it, retry or give up.

    Args:
        answer: the head of the response.
        limit: bytes that are taken.
        now: the time in seconds since the epoch.
    """
    if answer.status != 200:
        return _refusal(answer, now) or Verdict(
            Course.GIVE_UP, error=TransferError(f"the server answered {answer.status}")
        )
    length = _length(answer)
    if length is not None and length > limit:
        return Verdict(Course.GIVE_UP, error=TransferError(f"the metadata has {length} bytes; {limit} are the limit"))
    return _coded(answer) or Verdict(Course.TAKE, end=limit, validator=None)


def _refusal(answer: Answer, now: float) -> Verdict | None:
    """The meaning of a status that says no."""
    status = answer.status
    error = TransferError(f"the server answered {status}")
    if status in _TRANSIENT or 500 <= status <= 599:
        return Verdict(Course.RETRY, error=error, after=retry_after(answer, now))
    return Verdict(Course.GIVE_UP, error=error)


def retry_after(answer: Answer, now: float) -> float | None:
    """Seconds that the server asks to wait (section 10.2.3), at most `MAX_WAIT`; None if it does not say.

    Args:
        answer: the head of the response.
        now: the time in seconds since the epoch.
    """
    value = answer.value("retry-after")
    if not value:
        return None
    if _NUMBER.fullmatch(value):
        return min(float(value), MAX_WAIT)
    date = _seconds(value)
    return None if date is None else min(max(date - now, 0.0), MAX_WAIT)


def _seconds(date: str) -> float | None:
    from email.utils import mktime_tz, parsedate_tz  # noqa: PLC0415  a mebibyte, for what servers hardly ever say

    try:
        parsed = parsedate_tz(date)
        return None if parsed is None else float(mktime_tz(parsed))
    except (ValueError, OverflowError, IndexError, TypeError):  # what it makes of dates that are none
        return None


def _coded(answer: Answer) -> Verdict | None:
    """A body that is not the bytes themselves was not asked for (section 12.5.3)."""
    coding = answer.value("content-encoding")
    if coding is None or coding.lower() == "identity":
        return None
    return Verdict(Course.GIVE_UP, error=TransferError("the server sends the body compressed, which was not asked for"))


def _length(answer: Answer) -> int | None:
    value = answer.value("content-length")
    return int(value) if value and _NUMBER.fullmatch(value) else None


def _whole(answer: Answer, size: int) -> Verdict:
    length = _length(answer)
    if length is None:
        error = TransferError("the server does not say how long the image is")
    elif length != size:
        error = TransferError(f"the server has an image of {length} bytes, {size} were announced")
    else:
        return _coded(answer) or Verdict(Course.TAKE, 0, size, strong_validator(answer))
    return Verdict(Course.GIVE_UP, error=error)


def _rest(answer: Answer, size: int, asked: int, validator: str | None) -> Verdict:
    """A 206: the same image, and no other range of it (section 15.3.7)."""
    match = _RANGE.fullmatch(answer.value("content-range") or "")
    begin, last, whole = (int(found) if found != "*" else size for found in match.groups()) if match else (-1, -1, -1)
    length = _length(answer)
    fits = begin == asked and begin <= last < size == whole and length in {None, last + 1 - begin}
    if not fits or not _is_same(answer, validator):
        return Verdict(Course.AGAIN, error=TransferError("the server sent another range, or has another image now"))
    return _coded(answer) or Verdict(Course.TAKE, begin, last + 1, validator)


def _is_same(answer: Answer, validator: str | None) -> bool:
    """Whether the validator in a 206 is the one that was asked with, if there is one of its kind."""
    if not validator:
        return False
    if validator.startswith('"'):
        return answer.value("etag") == validator  # it has to be there: section 15.3.7
    return answer.value("last-modified") in {None, validator}  # this one does not


def strong_validator(answer: Answer) -> str | None:
    """What a range of this representation can be asked for with; None if it offers nothing that is strong.

    An ETag that is not weak; or a Last-Modified that is at least a second older than the answer, so that the image
    cannot have changed within it (section 8.8.2.2).
    """
    etag = answer.value("etag")
    if etag is not None:
        return etag if _STRONG.fullmatch(etag) and len(etag) <= MAX_VALIDATOR else None
    modified, date = answer.value("last-modified"), answer.value("date")
    if not modified or not date or len(modified) > MAX_VALIDATOR:
        return None
    then, now = _seconds(modified), _seconds(date)
    return modified if then is not None and now is not None and now - then >= 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a download is tried. Times are seconds.

    Args:
        tries: in a row that brought no new byte, before it is given up.
        first: the longest wait after a first failure, and after one that brought something.
        longest: the longest wait after many.
        budget: bytes that are received in all, as a multiple of the image's size.

    Raises:
        ConfigError: a patience that nobody could have.
    """

    tries: int = 10
    first: float = 0.5
    longest: float = 60.0
    budget: float = 4.0

    def __post_init__(self) -> None:
        if self.tries < 1 or not 0 < self.first <= self.longest or self.budget < 1:
            raise ConfigError("a download needs at least one try, a wait of more than nothing and room for the image")

    def wait(self, barren: int, draw: float) -> float:
        """Seconds until the next try: doubled with each that brought nothing, and never the same for two devices.

        Args:
            barren: tries in a row that brought nothing new.
            draw: a random number from 0 to 1.
        """
        most = min(self.longest, self.first * 2.0 ** min(max(barren - 1, 0), 32))
        return most * (0.5 + draw / 2)


class Tries:
    """Counts tries. One that brought something begins the count anew, unless it all comes too slowly.

    Args:
        patience: how many there may be, and how far apart.
        limits: `minimum_rate` and `grace` of all tries together; None asks for no rate.
    """

    def __init__(self, patience: Patience, limits: Limits | None = None) -> None:
        self._patience = patience
        self._rate = limits.minimum_rate if limits else 0.0
        self._grace = self._credit = limits.grace if limits else 0.0
        self._gained = 0.0
        self._progress = False
        self.barren = 0
        """Tries in a row that brought nothing new, or too little."""

    def progress(self) -> None:
        """This try brought something new."""
        self._progress = True

    def waited(self, seconds: float, received: int) -> None:
        """This try waited for the server, and that brought so many bytes, new or not."""
        if self._rate:
            self._gained += received / self._rate - seconds

    def _too_slow(self) -> bool:
        """Whether the grace is used up, this try counted. It is never overdrawn: a try that is quick again counts."""
        self._credit = min(self._grace, max(0.0, self._credit + self._gained))
        return self._rate > 0 and self._credit <= 0

    def failed(self, error: OtaError, draw: float, after: float | None = None, *, held: bool = False) -> float:
        """A try has failed: seconds until the next one.

        Args:
            error: why.
            draw: a random number from 0 to 1.
            after: seconds that the server asked to wait.
            held: whether the device is kept from every other update meanwhile. Then the server is not obeyed for
                longer than the patience waits by itself.

        Raises:
            TransferError: that was the last one.
        """
        slow = self._too_slow() and self._progress
        self.barren = 0 if self._progress and not slow else self.barren + 1
        self._progress = False
        if self.barren >= self._patience.tries:
            brought = f"less than {self._rate:g} bytes/s" if slow else "nothing new"
            raise TransferError(f"given up after {self.barren} tries that brought {brought}: {error}") from error
        asked = min(after or 0.0, self._patience.longest) if held else after or 0.0
        wait = max(self._patience.wait(self.barren, draw), asked)
        self._gained = -min(wait, self._patience.first)  # longer waits are after tries that are counted
        return wait


class Download:
    """One image on its way: what to ask for next, and when to stop.

    Args:
        size: bytes of the image, as announced.
        received: bytes that are there already, of an earlier download.
        validator: what the rest of it can be asked for with, or None.
        patience: how long it is tried.
        limits: `minimum_rate` and `grace` over all tries, or None.
    """

    def __init__(
        self,
        size: int,
        *,
        received: int = 0,
        validator: str | None = None,
        patience: Patience | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.size = size
        self.received = received
        """Bytes of the image that are there."""
        self.validator = validator
        patience = patience or Patience()
        self.tries = Tries(patience, limits)
        self._budget = int(patience.budget * size)
        self._furthest = received
        self._asked = 0

    def fields(self) -> list[tuple[str, str]]:
        """Header fields of the next request."""
        fields = [("Accept-Encoding", "identity")]
        self._asked = self.received if self.validator and self.received < self.size else 0
        if self._asked and self.validator:
            fields += [("Range", f"bytes={self._asked}-"), ("If-Range", self.validator)]
        return fields

    def answered(self, answer: Answer, now: float) -> Verdict:
        """What the answer to that request means. After `AGAIN`, the next request asks for all of it.

        Args:
            answer: the head of the response.
            now: the time in seconds since the epoch.
        """
        verdict = judge(answer, size=self.size, asked=self._asked, validator=self.validator, now=now)
        if verdict.course is Course.TAKE:
            self.received, self.validator = verdict.begin, verdict.validator
        elif verdict.course is Course.AGAIN:
            self.restart()
        return verdict

    def restart(self) -> None:
        """What is there is worth nothing: begin with byte 0. Tries and budget go on."""
        self.received, self.validator = 0, None

    def took(self, count: int) -> None:
        """So many more bytes came, and fit.

        Raises:
            TransferError: all tries together brought more than this image is worth.
        """
        self.received += count
        if self.received > self._furthest:
            self._furthest = self.received
            self.tries.progress()
        self._budget -= count
        if self._budget < 0:
            raise TransferError(f"given up: more than the allowed bytes were received for an image of {self.size}")
