"""How long a server waits for a client."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.pace import Limits, Pace
from mgota.errors import ConfigError, StalledError

QUICK = Limits(idle=5, minimum_rate=100, grace=10)


def test_silence_ends_it() -> None:
    pace = Pace(QUICK)
    assert pace.patience == 5
    pace.note(4.9, 0)
    pace.check()
    assert pace.patience == pytest.approx(0.1)
    pace.note(0.1, 0)
    assert pace.patience == 0
    with pytest.raises(StalledError, match="nothing came for 5 s"):
        pace.check()


def test_a_byte_begins_the_silence_anew_but_not_the_rate() -> None:
    pace = Pace(QUICK)
    for _ in range(10):
        pace.note(1, 1)
        pace.check()
    pace.note(1, 1)
    with pytest.raises(StalledError, match="slower than 100 bytes/s"):
        pace.check()
    assert pace.waited == 11


def test_a_steady_client_may_take_for_ever() -> None:
    pace = Pace(QUICK)
    for _ in range(10_000):
        pace.note(1, 100)
        pace.check()


def test_a_fast_start_buys_no_slow_end() -> None:
    pace = Pace(QUICK)
    pace.note(0, 10**9)
    for _ in range(2):
        pace.note(4.9, 1)
    pace.check()
    pace.note(4.9, 1)
    with pytest.raises(StalledError):
        pace.check()


def test_time_in_flash_does_not_count() -> None:
    pace = Pace(QUICK)
    for _ in range(1000):  # hours may pass between these
        pace.note(0, 10)
    pace.check()
    assert pace.waited == 0


def test_a_total_is_possible() -> None:
    pace = Pace(Limits(total=3, minimum_rate=0))
    assert pace.patience == 3
    pace.note(2, 10**6)
    pace.check()
    assert pace.patience == 1
    pace.note(1, 10**6)
    with pytest.raises(StalledError, match="3 s of waiting"):
        pace.check()


def test_without_a_rate_only_silence_counts() -> None:
    pace = Pace(Limits(minimum_rate=0))
    for _ in range(1000):
        pace.note(29, 1)
        pace.check()


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**6)), max_size=30))
def test_patience_is_gone_exactly_when_the_check_says_so(steps: list[tuple[float, int]]) -> None:
    pace = Pace(Limits(idle=5, minimum_rate=100, grace=10, total=60))
    for seconds, received in steps:
        pace.note(seconds, received)
        try:
            pace.check()
        except StalledError:
            assert pace.patience == 0
            return
        assert pace.patience > 0


@pytest.mark.parametrize(
    "options",
    [{"idle": 0}, {"head": -1}, {"connections": 0}, {"buffer": 0}, {"total": 0}, {"minimum_rate": -1}, {"linger": -1}],
)
def test_limits_that_nothing_could_keep(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Limits(**options)  # type: ignore[arg-type]
