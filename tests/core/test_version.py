"""Which version is the newer one, and that a text without an order has none."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.version import MAX_VERSION, highest, is_version, order


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        ("1.2.3", "1.2.4"),
        ("1.2.9", "1.2.10"),
        ("v1.2", "1.3"),
        ("1.2.3-rc.1", "1.2.3"),
        ("1.2.3", "1.2.3+build.5"),
        ("1.2.3", "1!0.1"),
        ("2025.12", "2026.11"),
    ],
)
def test_versions_are_ordered(older: str, newer: str) -> None:
    first, second = order(older), order(newer)
    assert first
    assert second
    assert first < second


def test_one_version_in_two_spellings_is_the_same() -> None:
    assert order("v1.2") == order("1.2.0")


@pytest.mark.parametrize("text", [None, "", "latest", "1.2.3-4-gabcdef", "1..2", "\u0661.\u0662", "1.2.3 beta"])
def test_what_has_no_order_is_not_guessed_at(text: str | None) -> None:
    assert order(text) is None


def test_a_version_is_so_long_at_most() -> None:
    assert order("9" * MAX_VERSION)
    assert order("9" * (MAX_VERSION + 1)) is None
    assert is_version("9" * MAX_VERSION)
    assert not is_version("9" * (MAX_VERSION + 1))


@pytest.mark.parametrize("text", ["", "1 2", "1\n", "1\x7f", "\u00e9", "\ud800"])
def test_what_is_no_version_in_a_manifest(text: str) -> None:
    assert not is_version(text)


def test_the_highest_is_told_as_it_was_written() -> None:
    assert highest(["1.0", None, "nightly", "v1.10", "1.9"]) == "v1.10"
    assert highest(["1.0", "1.0.0"]) == "1.0"
    assert highest([None, "nightly"]) is None
    assert highest([]) is None


@given(st.text(max_size=80))
def test_any_text_has_an_order_or_none(text: str) -> None:
    found = order(text)
    assert found is None or found == order(str(found)) or len(str(found)) > MAX_VERSION
