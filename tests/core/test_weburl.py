"""Where a device fetches from, and lets itself be sent."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.weburl import check_source, is_reference, origin, redirected, resolved, shown, with_query
from mgota.errors import ConfigError, OtaError, TransferError

HERE = "https://updates.example/dir/fw.json"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://a", ("http", "a", 80)),
        ("HTTPS://A.example:443/x", ("https", "a.example", 443)),
        ("https://joe:secret@a:8443", ("https", "a", 8443)),
        ("http://[::1]:8000/", ("http", "::1", 8000)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, found: tuple[str, str, int]) -> None:
    assert origin(url) == found


@pytest.mark.parametrize(
    "url",
    ["", "fw.bin", "ftp://a/fw", "http://", "http:///x", "http://a:0/", "http://a:99999/", "http://a:x/", "http://[::1/",
     "http://a/b c", "http://a/\n", "file:///etc/passwd", "https://a/" + "x" * 8192],
)  # fmt: skip
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        origin(url)


def test_http_needs_a_reason() -> None:
    check_source("https://a/x", allow_http=False)
    check_source("http://a/x", allow_http=True)
    with pytest.raises(ConfigError, match="http://a/x is not encrypted"):
        check_source("http://joe:secret@a/x?token=secret", allow_http=False)


def test_secrets_are_not_shown() -> None:
    assert shown("https://joe:p@ss@a.example/b?c=d#e") == "https://a.example/b"
    assert shown("https://a?x") == "https://a"
    assert shown("a\x1b[1m\nb") == "a?[1m?b"
    assert len(shown("https://a/" + "x" * 999)) == 200


@pytest.mark.parametrize("text", ["fw.bin", "/fw.bin", "../x?y", "http://a/b", "HTTPS://a/b", "//cdn.example/fw.bin"])
def test_what_a_manifest_can_name_an_image_by(text: str) -> None:
    assert is_reference(text)


@pytest.mark.parametrize(
    "text", ["ftp://a/b", "file:///etc/passwd", "c:fw.bin", "http://", "http://a:b/", "http://[/", "a b"]
)
def test_what_no_manifest_can_name_an_image_by(text: str) -> None:
    assert not is_reference(text)


def test_a_reference_is_resolved_where_it_was_found() -> None:
    assert resolved(HERE, "fw.bin") == "https://updates.example/dir/fw.bin"
    assert resolved(HERE, "/fw.bin") == "https://updates.example/fw.bin"
    assert resolved(HERE, "https://cdn.example/fw.bin") == "https://cdn.example/fw.bin"
    for wrong in ("ftp://a/x", "http://[", "a b"):
        with pytest.raises(TransferError):
            resolved(HERE, wrong)


def test_redirections_stay_where_they_may() -> None:
    assert redirected(HERE, "other") == "https://updates.example/dir/other"
    assert redirected(HERE, "https://updates.example:443/x") == "https://updates.example:443/x"
    assert redirected("http://a/x", "http://a/y") == "http://a/y"
    allowed = frozenset({origin("https://cdn.example"), origin("http://plain.example")})
    assert redirected(HERE, "//cdn.example/fw", allowed=allowed) == "https://cdn.example/fw"
    assert redirected("http://plain.example/x", "https://cdn.example/y", allowed=allowed) == "https://cdn.example/y"
    for wrong, words in (
        (None, "where to"),
        ("", "where to"),
        ("https://cdn.example/fw", "another origin"),
        ("https://updates.example:8443/", "another origin"),
        ("http://updates.example/dir/fw.json", "from https to http"),
        ("javascript:alert(1)", "no URL"),
    ):
        with pytest.raises((TransferError, ConfigError), match=words):
            redirected(HERE, wrong)
    with pytest.raises(ConfigError, match="from https to http"):
        redirected(HERE, "http://plain.example/", allowed=allowed)  # not even there


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("https://a/y", "https://joe:p%40ss@a/y"),
        ("/y", "https://joe:p%40ss@a/y"),
        ("https://ann@a/y", "https://ann@a/y"),
        ("https://b/y", "https://b/y"),
    ],
)
def test_a_name_and_a_password_stay_with_their_origin(location: str, found: str) -> None:
    assert redirected("https://joe:p%40ss@a/x", location, allowed=frozenset({origin("https://b")})) == found


def test_parameters_are_added() -> None:
    assert with_query("http://a/x", {"id": "a b", "v": "1&2"}) == "http://a/x?id=a+b&v=1%262"
    assert with_query("http://a/x?y=1#z", {"id": "1"}) == "http://a/x?y=1&id=1"


@given(url=st.text(max_size=60), location=st.text(max_size=60))
def test_any_text_is_a_place_or_an_error(url: str, location: str) -> None:
    for base in (url, HERE):
        try:
            target = redirected(base, location)
        except OtaError:
            continue
        assert origin(target) == origin(base)
    assert "\n" not in shown(url)
