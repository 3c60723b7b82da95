"""How far back a device may go."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.floor import below_floor, check_floor, check_sequence, effective_floor, raised
from mgota.core.version import order
from mgota.errors import DowngradeError


@pytest.mark.parametrize(
    ("recorded", "configured", "holds"),
    [
        (None, None, None),
        ("1.0", None, "1.0"),
        (None, "1.0", "1.0"),
        ("1.9", "1.10", "1.10"),
        ("1.10", "1.9", "1.10"),
        ("nightly", "1.0", "nightly"),
    ],
)
def test_the_higher_floor_holds(recorded: str | None, configured: str | None, holds: str | None) -> None:
    assert effective_floor(recorded, configured) == holds


@pytest.mark.parametrize("version", ["1.2", "1.2.0", "v1.2", "1.2.1", "2.0rc1"])
def test_equal_and_higher_is_taken(version: str) -> None:
    assert below_floor(version, "1.2") is None
    check_floor(version, "1.2")


@pytest.mark.parametrize("version", ["1.1.9", "1.2rc1", "1.2-rc.1", "0", None, "nightly", ""])
def test_lower_unknown_and_without_order_is_refused(version: str | None) -> None:
    with pytest.raises(DowngradeError, match="floor"):
        check_floor(version, "1.2")


def test_a_floor_without_order_is_above_everything() -> None:
    with pytest.raises(DowngradeError, match="cannot be compared"):
        check_floor("999", effective_floor("nightly", "1"))


@pytest.mark.parametrize("version", ["0", None, "nightly"])
def test_without_a_floor_everything_is_taken(version: str | None) -> None:
    check_floor(version, None)


def test_a_sequence_is_equal_or_higher() -> None:
    for sequence, lowest in ((7, 7), (8, 7), (0, 0), (None, 7), (0, None), (None, None)):
        check_sequence(sequence, lowest)
    with pytest.raises(DowngradeError, match="sequence 6 is lower than 7"):
        check_sequence(6, 7)


@pytest.mark.parametrize(
    ("floor", "image", "configured", "after"),
    [
        ((None, None), ("2", None), None, (None, None)),
        ((None, None), ("2", None), "1", ("1", None)),
        (("1.5", None), ("2", None), "1", ("1.5", None)),
        ((None, None), ("2", 1), None, ("2", 1)),
        ((None, None), ("2", 0), None, ("2", 0)),
        (("1", 3), ("2", 4), None, ("2", 4)),
        (("1", 4), ("2", 4), None, ("1", 4)),
        (("3", 4), ("2", 5), "1", ("3", 5)),
        (("1", 4), ("2", None), "1.5", ("1.5", 4)),
        (("1", 4), ("nightly", 5), None, ("1", 5)),
        (("1", 4), (None, 5), None, ("1", 5)),
    ],
)
def test_what_a_commit_raises(
    floor: tuple[str | None, int | None],
    image: tuple[str | None, int | None],
    configured: str | None,
    after: tuple[str | None, int | None],
) -> None:
    assert raised(floor, image, configured) == after


versions = st.none() | st.from_regex(r"\A[0-9]\.[0-9]\Z") | st.just("nightly")
numbers = st.none() | st.integers(0, 3)


@given(st.tuples(versions, numbers), st.tuples(versions, numbers), versions)
def test_a_commit_never_lowers_anything(
    floor: tuple[str | None, int | None], image: tuple[str | None, int | None], configured: str | None
) -> None:
    lowest, sequence = raised(floor, image, configured)
    assert floor[1] is None or (sequence is not None and sequence >= floor[1])
    before, after = order(floor[0]), order(lowest)
    assert before is None or (after is not None and after >= before)
    assert before is not None or floor[0] is None or lowest == floor[0]
