"""When to look for an update again."""

import pytest

from mgota.core.polls import MAX_REFUSALS, Refusals, check_interval, first_poll, next_poll
from mgota.errors import ConfigError


def test_polls_are_an_interval_apart_give_or_take() -> None:
    assert [next_poll(100, 0.1, draw) for draw in (0.0, 0.5, 1.0)] == [90, 100, pytest.approx(110)]
    assert [first_poll(100, 0.1, draw) for draw in (0.0, 0.5, 1.0)] == [0, 5, 10]
    assert next_poll(100, 0.0, 0.7) == 100


def test_a_failure_is_tried_again_soon_and_then_later_and_later() -> None:
    hourly = [next_poll(3600, 0.1, 1.0, failures=count) for count in range(1, 10)]
    assert hourly == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]
    assert [next_poll(10, 0.1, 1.0, failures=count) for count in (1, 2, 3, 50)] == [10, 20, 40, 3600]
    assert next_poll(86400, 0.1, 1.0, failures=10**6) == 86400
    assert next_poll(3600, 0.1, 0.0, failures=1) == 30


def test_a_refused_image_waits_longer_each_time_and_never_for_ever() -> None:
    refusals, now, waits = Refusals(), 5.0, list[float]()
    for _ in range(10):
        assert not refusals.holds("x", now)
        refusals.note("x", now)
        wait = 600.0
        while refusals.holds("x", now + wait):
            wait += 600.0
        assert refusals.holds("x", now + wait - 1)
        waits.append(wait)
        now += wait
    assert waits == [600, 1200, 2400, 4800, 9600, 19200, 38400, 76800, 86400, 86400]


def test_few_refused_images_are_remembered() -> None:
    refusals = Refusals()
    for number in range(MAX_REFUSALS + 1):
        refusals.note(str(number), 0)
    assert not refusals.holds("0", 1)
    assert all(refusals.holds(str(number), 1) for number in range(1, MAX_REFUSALS + 1))


def test_an_application_says_when() -> None:
    assert next_poll(100, 0.1, 0.5, after=7) == 7
    assert next_poll(100, 0.1, 0.5, after=0) == 1
    assert next_poll(100, 0.1, 0.5, after=1e6) == 1e6


@pytest.mark.parametrize(
    ("interval", "jitter", "good"),
    [
        (1, 0, True), (0.99, 0, False), (float("inf"), 0, False), (float("nan"), 0, False),
        (9, 1, True), (9, 1.01, False), (9, -0.01, False), (9, float("nan"), False),
    ],
)  # fmt: skip
def test_what_polls_cannot_be(interval: float, jitter: float, good: bool) -> None:
    if good:
        check_interval(interval, jitter)
    else:
        with pytest.raises(ConfigError):
            check_interval(interval, jitter)
