"""What answers mean for a download, row by row, and for any bytes."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.download import (
    MAX_WAIT,
    Answer,
    Course,
    Download,
    Patience,
    Tries,
    judge,
    judge_metadata,
    retry_after,
    strong_validator,
)
from mgota.core.pace import Limits
from mgota.errors import ConfigError, OtaError, TransferError

SIZE = 1000
TAG = '"v1"'
DAY = "Sun, 06 Nov 1994 08:49:37 GMT"
LATER = "Sun, 06 Nov 1994 08:49:38 GMT"
DAY_SECONDS = 784111777.0


def answer(status: int, **fields: str) -> Answer:
    return Answer(status, tuple((name.replace("_", "-"), value) for name, value in fields.items()))


def whole(**fields: str) -> Answer:
    return answer(200, **{"content_length": str(SIZE), **fields})


def rest(spec: str, **fields: str) -> Answer:
    return answer(206, **{"content_range": spec, "etag": TAG, **fields})


def resumed(found: Answer, validator: str = TAG) -> tuple[Course, int, int]:
    verdict = judge(found, size=SIZE, asked=400, validator=validator)
    return verdict.course, verdict.begin, verdict.end


TAKEN = (Course.TAKE, 400, SIZE)
AGAIN = (Course.AGAIN, 0, 0)


def test_all_of_it_is_taken_from_the_first_byte() -> None:
    verdict = judge(whole(etag=TAG), size=SIZE)
    assert (verdict.course, verdict.begin, verdict.end, verdict.validator) == (Course.TAKE, 0, SIZE, TAG)
    assert resumed(whole(etag='"v2"')) == (Course.TAKE, 0, SIZE)  # the range was ignored, or the image changed
    assert judge(whole(content_encoding="Identity"), size=SIZE).course is Course.TAKE


@pytest.mark.parametrize(
    ("found", "words", "kind"),
    [
        (answer(200), "how long", TransferError),
        (answer(200, content_length="x"), "how long", TransferError),
        (answer(200, content_length="+1000"), "how long", TransferError),
        (Answer(200, (("content-length", "1000"), ("content-length", "1000"))), "how long", TransferError),
        (answer(200, content_length="999"), "999", TransferError),
        (answer(200, content_length="1001"), "1001", TransferError),
        (whole(content_encoding="gzip"), "compressed", TransferError),
        (answer(206, content_range="bytes 0-999/1000"), "206", TransferError),  # nobody asked for a range
        (answer(416), "416", TransferError),
        (answer(204), "204", TransferError),
        (answer(203, content_length="1000"), "203", TransferError),
        (answer(400), "400", TransferError),
        (answer(401), "401", TransferError),
        (answer(403), "403", TransferError),
        (answer(404), "404", TransferError),
        (answer(410), "410", TransferError),
        (answer(499), "499", TransferError),
        (answer(600), "600", TransferError),
        (answer(304), "304", TransferError),
        (answer(100), "100", TransferError),
    ],
)
def test_what_ends_a_download(found: Answer, words: str, kind: type[OtaError]) -> None:
    verdict = judge(found, size=SIZE)
    assert verdict.course is Course.GIVE_UP
    assert type(verdict.error) is kind
    assert words in str(verdict.error)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again(status: int) -> None:
    for asked in (0, 400):
        verdict = judge(answer(status, retry_after="7"), size=SIZE, asked=asked, validator=TAG)
        assert (verdict.course, verdict.after) == (Course.RETRY, 7.0)
        assert str(status) in str(verdict.error)
    assert judge_metadata(answer(status), limit=10).course is Course.RETRY


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("299", 299.0),
        ("301", MAX_WAIT),
        ("999999999999999999", MAX_WAIT),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        (LATER, 1.0),
        (DAY, 0.0),
        ("Sun, 06 Nov 1993 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 2094 08:49:37 GMT", MAX_WAIT),
        ("Sun, 06 Nov 99999999 08:49:37 GMT", None),
        ("Sun, 06 Brumaire 3 08:49:37", None),
    ],
)
def test_how_long_a_server_asks_to_wait(value: str | None, seconds: float | None) -> None:
    found = answer(503) if value is None else answer(503, retry_after=value)
    assert retry_after(found, DAY_SECONDS) == seconds


def test_a_range_is_joined_only_with_what_it_belongs_to() -> None:
    assert resumed(rest("bytes 400-999/1000")) == TAKEN
    assert resumed(rest("Bytes 400-999/1000", content_length="600")) == TAKEN
    assert resumed(rest("bytes 400-999/*")) == TAKEN
    assert resumed(rest("bytes 400-400/1000")) == (Course.TAKE, 400, 401)  # a part of the range, and then the next
    assert judge(rest("bytes 400-999/1000"), size=SIZE, asked=400, validator=TAG).validator == TAG
    assert resumed(answer(206, content_range="bytes 400-999/1000", last_modified=DAY), DAY) == TAKEN
    assert resumed(answer(206, content_range="bytes 400-999/1000"), DAY) == TAKEN  # it need not be repeated


@pytest.mark.parametrize(
    "found",
    [
        answer(206, etag=TAG),
        rest(""),
        rest("bytes */1000"),
        rest("bytes 399-999/1000"),
        rest("bytes 401-999/1000"),
        rest("bytes 400-1000/1000"),
        rest("bytes 400-399/1000"),
        rest("bytes 400-999/1001"),
        rest("bytes 400-998/999"),
        rest("bytes 400-999/1000", content_length="601"),
        rest("bytes=400-999/1000"),
        rest("bytes 400-999/1000, bytes 400-999/1000"),
        rest("items 400-999/1000"),
        rest("bytes ४००-999/1000"),
        Answer(206, (("content-range", "bytes 400-999/1000"),) * 2),
        answer(206, content_range="bytes 400-999/1000"),  # an ETag has to be repeated
        rest("bytes 400-999/1000", etag='"v2"'),
        rest("bytes 400-999/1000", etag='W/"v1"'),
        answer(416, content_range="bytes */399"),
    ],
)
def test_any_other_range_is_not_joined(found: Answer) -> None:
    assert resumed(found) == AGAIN


def test_a_date_that_changed_is_another_image() -> None:
    assert resumed(answer(206, content_range="bytes 400-999/1000", last_modified=LATER), DAY) == AGAIN
    verdict = judge(rest("bytes 400-999/1000"), size=SIZE, asked=400, validator=None)
    assert verdict.course is Course.AGAIN
    verdict = judge(rest("bytes 400-999/1000", content_encoding="gzip"), size=SIZE, asked=400, validator=TAG)
    assert verdict.course is Course.GIVE_UP


@pytest.mark.parametrize(
    ("fields", "validator"),
    [
        ({"etag": TAG}, TAG),
        ({"etag": '""'}, '""'),
        ({"etag": 'W/"v1"', "last_modified": DAY, "date": LATER}, None),
        ({"etag": "v1"}, None),
        ({"etag": '"a"b"'}, None),
        ({"etag": '"' + "x" * 254 + '"'}, '"' + "x" * 254 + '"'),
        ({"etag": '"' + "x" * 255 + '"'}, None),
        ({"last_modified": DAY, "date": LATER}, DAY),
        ({"last_modified": DAY, "date": DAY}, None),  # it may change twice in a second
        ({"last_modified": DAY}, None),
        ({"date": DAY}, None),
        ({"last_modified": "once", "date": DAY}, None),
        ({"last_modified": DAY, "date": "now"}, None),
        ({"last_modified": DAY + " " * 300 + "x", "date": LATER}, None),
        ({}, None),
    ],
)
def test_only_a_strong_validator_will_do(fields: dict[str, str], validator: str | None) -> None:
    assert strong_validator(answer(200, **fields)) == validator


@pytest.mark.parametrize(
    ("found", "course"),
    [
        (answer(200), Course.TAKE),
        (answer(200, content_length="10"), Course.TAKE),
        (answer(200, content_length="11"), Course.GIVE_UP),
        (answer(200, content_length="many"), Course.TAKE),  # it is counted all the same
        (answer(200, content_encoding="br"), Course.GIVE_UP),
        (answer(206), Course.GIVE_UP),
        (answer(404), Course.GIVE_UP),
        (answer(503), Course.RETRY),
    ],
)
def test_answers_with_metadata(found: Answer, course: Course) -> None:
    assert judge_metadata(found, limit=10).course is course


def test_the_wait_doubles_with_every_try_in_vain_and_begins_below_half_a_second() -> None:
    patience = Patience()
    assert [patience.wait(barren, 1.0) for barren in range(10)] == [0.5, 0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    assert [patience.wait(barren, 0.0) for barren in (0, 1, 2, 10**6)] == [0.25, 0.25, 0.5, 30]


@pytest.mark.parametrize(
    "wrong", [{"tries": 0}, {"first": 0.0}, {"first": 2.0, "longest": 1.0}, {"budget": 0.5}, {"longest": -1.0}]
)
def test_a_patience_that_nobody_can_have_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Patience(**wrong)  # type: ignore[arg-type]


def test_tries_that_bring_nothing_are_counted_and_progress_begins_anew() -> None:
    tries = Tries(Patience())
    trouble = TransferError("cut")
    for expected in range(1, 10):
        tries.failed(trouble, 0.5)
        assert tries.barren == expected
    tries.progress()
    assert tries.failed(trouble, 1.0) == 0.5
    assert tries.failed(trouble, 1.0, after=7.0) == 7.0
    assert tries.failed(trouble, 1.0, after=0.1) == 1.0
    assert tries.failed(trouble, 1.0, after=MAX_WAIT) == MAX_WAIT
    for asked, waited in ((59.0, 59.0), (60.0, 60.0), (MAX_WAIT, 60.0), (None, 32.0)):  # nobody else gets at the device
        assert tries.failed(trouble, 1.0, asked, held=True) == waited
    for _ in range(2):
        tries.failed(trouble, 0.5)
    with pytest.raises(TransferError, match="10 tries that brought nothing new: cut"):
        tries.failed(trouble, 0.5)


RATED = Limits(minimum_rate=100, grace=10)


def a_try(tries: Tries, seconds: float, received: int, after: float | None = None) -> int:
    tries.waited(seconds, received)
    if received:
        tries.progress()
    tries.failed(TransferError("cut"), 1.0, after)
    return tries.barren


def test_a_byte_at_each_try_is_not_enough_for_ever() -> None:
    tries = Tries(Patience(), RATED)
    assert [a_try(tries, 0.5, 1) for _ in range(19)] == [*[0] * 10, *range(1, 10)]
    with pytest.raises(TransferError, match="10 tries that brought less than 100 bytes/s: cut"):
        a_try(tries, 0.5, 1)
    tries = Tries(Patience(), RATED)
    assert [a_try(tries, 0.1, 0 if n % 10 else 1, after=300.0) for n in range(20)] == [*range(10), *range(10)]
    with pytest.raises(TransferError, match="10 tries"):  # again nine put it off, and then there is a byte
        a_try(tries, 0.1, 1)


def test_tries_above_the_rate_may_be_cut_as_often_as_it_happens() -> None:
    tries = Tries(Patience(), RATED)
    for _ in range(1000):
        assert a_try(tries, 1.0, 151) == 0  # of which half a second is the wait in between
    tries = Tries(Patience(), None)
    for _ in range(1000):
        assert a_try(tries, 100.0, 1) == 0
    tries = Tries(Patience(), Limits(minimum_rate=0))
    for _ in range(1000):
        assert a_try(tries, 100.0, 1) == 0


def test_an_outage_is_not_held_against_a_server_that_is_back() -> None:
    tries = Tries(Patience(), RATED)
    for number in range(9):
        assert a_try(tries, 30.0, 0, after=300.0) == number + 1
    assert a_try(tries, 1.0, 200) == 0


def test_the_next_request_goes_on_where_the_last_one_ended() -> None:
    download = Download(SIZE)
    assert download.fields() == [("Accept-Encoding", "identity")]
    assert download.answered(whole(etag=TAG), 0.0).course is Course.TAKE
    download.took(400)
    assert download.fields()[1:] == [("Range", "bytes=400-"), ("If-Range", TAG)]
    assert download.answered(rest("bytes 400-999/1000"), 0.0).begin == 400
    download.took(100)
    assert download.answered(answer(416), 0.0).course is Course.AGAIN  # asked for 400 again
    assert (download.received, download.fields()) == (0, [("Accept-Encoding", "identity")])
    assert download.answered(whole(), 0.0).course is Course.TAKE
    download.took(10)
    assert len(download.fields()) == 1  # no validator, no range


def test_a_download_of_an_earlier_life_is_asked_for_with_its_validator() -> None:
    assert Download(SIZE, received=999, validator=TAG).fields()[1:] == [("Range", "bytes=999-"), ("If-Range", TAG)]
    assert len(Download(SIZE, received=1000, validator=TAG).fields()) == 1
    assert len(Download(SIZE, received=999).fields()) == 1


def test_progress_is_a_byte_that_was_never_there_before() -> None:
    download = Download(SIZE, received=500, validator=TAG, patience=Patience(tries=2))
    download.restart()
    download.took(500)
    download.tries.failed(TransferError("cut"), 0.5)
    assert download.tries.barren == 1
    download.took(1)
    download.tries.failed(TransferError("cut"), 0.5)
    assert download.tries.barren == 0


def test_the_byte_budget_is_four_times_the_size() -> None:
    download = Download(SIZE)
    for _ in range(4):
        download.restart()
        download.took(SIZE)
    with pytest.raises(TransferError, match="allowed"):
        download.took(1)


names = st.sampled_from(
    ["content-length", "content-range", "etag", "last-modified", "date", "retry-after", "content-encoding", "x"]
)
values = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"bytes [0-9]{1,4}-[0-9]{1,4}/([0-9]{1,4}|\*)", fullmatch=True),
    st.integers(0, 2000).map(str),
    st.sampled_from([TAG, 'W/"v1"', DAY, LATER, "identity", "gzip", "bytes 400-999/1000"]),
    st.from_regex(
        r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,9} [0-9]{1,3}:[0-9]{1,3}:[0-9]{1,3} [A-Z+0-9-]{1,9}"
    ),
)
answers = st.builds(
    Answer,
    st.one_of(st.sampled_from([200, 206, 416, 503, 404]), st.integers(0, 999)),
    st.lists(st.tuples(names, values), max_size=6).map(tuple),
)


@given(found=answers, asked=st.sampled_from([0, 400]), validator=st.sampled_from([None, TAG, DAY]))
def test_any_answer_has_a_meaning_that_fits_the_image(found: Answer, asked: int, validator: str | None) -> None:
    verdict = judge(found, size=SIZE, asked=asked, validator=validator, now=DAY_SECONDS)
    if verdict.course is Course.TAKE:
        assert verdict.error is None
        assert 0 <= verdict.begin < verdict.end <= SIZE
        assert verdict.begin in {0, asked}
        assert found.status in {200, 206}
    else:
        assert isinstance(verdict.error, OtaError)
        assert asked or verdict.course is not Course.AGAIN
    assert verdict.after is None or 0 <= verdict.after <= MAX_WAIT
    judge_metadata(found, limit=100, now=DAY_SECONDS)
    assert len(strong_validator(found) or "") <= 256


@given(found=st.lists(answers, max_size=15), counts=st.lists(st.integers(0, 400), min_size=15, max_size=15))
def test_any_conversation_ends(found: list[Answer], counts: list[int]) -> None:
    """Whatever a server says: what is there is never more than the image, and never joined with another one."""
    download = Download(SIZE)
    for one, count in zip(found, counts, strict=False):
        download.fields()
        verdict = download.answered(one, DAY_SECONDS)
        try:
            if verdict.course is Course.TAKE:
                download.took(min(count, verdict.end - verdict.begin))
            else:
                assert verdict.error
                assert 0 < download.tries.failed(verdict.error, 0.5) <= MAX_WAIT
        except TransferError:
            return
        assert 0 <= download.received <= SIZE
