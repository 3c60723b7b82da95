"""Credentials, and how often they may be wrong."""

from base64 import b64encode

import pytest
from hypothesis import given, strategies as st

from mgota.core.access import Access, Credentials, FailureBudget, network, refusal_for, too_many_failures
from mgota.core.http import Head
from mgota.errors import ConfigError

TOKEN = "correct-horse"


def bearer(token: bytes) -> str:
    return "Bearer " + token.decode("latin-1")


def basic(name: bytes, password: bytes) -> str:
    return "Basic " + b64encode(name + b":" + password).decode()


def check(credentials: Credentials, *fields: str) -> Access:
    return credentials.check(Head("GET", "/", tuple(("authorization", field) for field in fields)))


BOTH = Credentials(tokens=[TOKEN, b"other"], users={"ann": "p:w", "bob": b"\xff\xfe", "": "only a password"})


@pytest.mark.parametrize(
    "field",
    [
        bearer(b"correct-horse"),
        "bearer   correct-horse",
        "BEARER correct-horse \t",
        bearer(b"other"),
        basic(b"ann", b"p:w"),
        basic(b"bob", b"\xff\xfe"),
        basic(b"", b"only a password"),
        "bAsIc " + b64encode(b"ann:p:w").decode(),
    ],
)
def test_right_credentials_are_granted(field: str) -> None:
    assert check(BOTH, field) is Access.GRANTED


@pytest.mark.parametrize(
    "field",
    [
        pytest.param("", id="empty field"),
        pytest.param("Bearer", id="scheme alone"),
        pytest.param("Bearer ", id="empty token"),
        pytest.param("Basic ", id="empty basic"),
        pytest.param(basic(b"", b""), id="empty user and password"),
        pytest.param(basic(b"ann", b""), id="empty password"),
        pytest.param(bearer(b"correct"), id="prefix"),
        pytest.param(bearer(b"horse"), id="suffix"),
        pytest.param(bearer(b"correct-horse-battery"), id="longer"),
        pytest.param(bearer(b"correct-horse\0"), id="NUL behind"),
        pytest.param(bearer("correct-hors\u00e9".encode()), id="non-ASCII"),
        pytest.param("Bearer \u4e2d", id="not even Latin-1"),
        pytest.param(bearer(b"Correct-Horse"), id="case"),
        pytest.param(basic(b"ann", b"p"), id="password prefix"),
        pytest.param(basic(b"ann", b"p:w\0x"), id="password NUL"),
        pytest.param("Basic !!!", id="no base64"),
        pytest.param("Basic " + b64encode(b"ann").decode(), id="no colon"),
        pytest.param("Basic " + b64encode(b"ann:p:w").decode().rstrip("="), id="no padding"),
        pytest.param(basic(b"nobody", b"p:w"), id="unknown user"),
        pytest.param(basic(b"bob", b"p:w"), id="another user's password"),
        pytest.param(basic(b"correct-horse", b""), id="token as user"),
        pytest.param(bearer(b"p:w"), id="password as token"),
        pytest.param("Digest username=ann", id="another scheme"),
        pytest.param("correct-horse", id="no scheme"),
        pytest.param("Bearer\tcorrect-horse", id="tab"),
    ],
)
def test_wrong_credentials_are_wrong(field: str) -> None:
    assert check(BOTH, field) is Access.WRONG


def test_two_fields_are_never_right() -> None:
    good = bearer(b"correct-horse")
    assert check(BOTH, good, good) is Access.WRONG
    assert check(BOTH, good, "Bearer x") is Access.WRONG


def test_no_field_is_missing() -> None:
    assert check(BOTH) is Access.MISSING


def test_a_lone_string_is_one_token() -> None:
    lone = Credentials(tokens="abc")
    assert check(lone, "Bearer abc") is Access.GRANTED
    assert check(lone, "Bearer a") is Access.WRONG
    assert check(Credentials(tokens=b"abc"), "Bearer abc") is Access.GRANTED


def test_a_non_ascii_token_counts_as_utf_8() -> None:
    assert check(Credentials(tokens="schl\u00fcssel"), bearer("schl\u00fcssel".encode())) is Access.GRANTED


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": []},
        {"tokens": ""},
        {"tokens": ["good", ""]},
        {"tokens": " \n"},
        {"tokens": "a\n"},
        {"tokens": " a"},
        {"tokens": "a\0b"},
        {"tokens": b"\x7f"},
        {"users": {}},
        {"users": {"ann": ""}},
        {"users": {"ann": b"  "}},
        {"users": {"a:b": "x"}},
    ],
)
def test_secrets_that_let_anybody_or_nobody_in_are_refused_at_start(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Credentials(**options)  # type: ignore[arg-type]


def test_only_digests_are_kept() -> None:
    kept = repr(vars(BOTH)) + repr(BOTH)
    assert TOKEN not in kept
    assert "p:w" not in kept


@given(st.lists(st.text(max_size=40), max_size=3))
def test_any_fields_are_missing_or_wrong(fields: list[str]) -> None:
    access = check(Credentials(tokens="a token that nobody guesses"), *fields)
    assert access is (Access.WRONG if fields else Access.MISSING)


def test_refusals() -> None:
    assert refusal_for(Access.GRANTED) is None
    for access in (Access.MISSING, Access.WRONG):
        refusal = refusal_for(access)
        assert refusal
        assert refusal.status == 401
        schemes = [value.split()[0] for name, value in refusal.headers if name == "WWW-Authenticate"]
        assert schemes == ["Bearer", "Basic"]
    assert too_many_failures(0.2).headers == (("Retry-After", "1"),)
    assert too_many_failures(2.1).headers == (("Retry-After", "3"),)


def test_ten_failures_then_one_a_second() -> None:
    budget = FailureBudget()
    for _ in range(10):
        assert budget.wait("10.0.0.1", 100.0) == 0
        budget.fail("10.0.0.1", 100.0)
    assert budget.wait("10.0.0.1", 100.0) == pytest.approx(1)
    assert budget.wait("10.0.0.1", 100.5) == pytest.approx(0.5)
    assert budget.wait("10.0.0.2", 100.0) == 0
    assert budget.wait("10.0.0.1", 101.0) == 0
    budget.fail("10.0.0.1", 101.0)
    assert budget.wait("10.0.0.1", 101.0) == pytest.approx(1)
    assert budget.wait("10.0.0.1", 200.0) == 0


def test_a_flood_of_failures_costs_no_more_than_ten() -> None:
    budget = FailureBudget()
    for _ in range(1000):
        budget.fail("10.0.0.1", 5.0)
    assert budget.wait("10.0.0.1", 5.0) == pytest.approx(1)


def test_addresses_are_forgotten() -> None:
    budget = FailureBudget(addresses=3)
    for last in range(5):
        budget.fail(f"10.0.0.{last}", 1.0)
    assert len(budget) == 3
    budget.fail("10.0.0.9", 50.0)
    assert len(budget) == 1
    FailureBudget(addresses=0).fail("10.0.0.1", 0.0)


def test_what_counts_as_one_client() -> None:
    assert network("10.0.0.1") == "10.0.0.1"
    assert network("::ffff:10.0.0.1") == "10.0.0.1"
    assert network("2001:db8:1:2::1") == network("2001:db8:1:2:ffff::9%eth0") != network("2001:db8:1:3::1")
    assert network("local") == "local"
