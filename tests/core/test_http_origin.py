"""Names that a server answers to, and what a page in a browser may ask."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.http import Ends, Head
from mgota.core.origin import (
    Authority,
    Hosts,
    foreign_page,
    is_loopback,
    is_same_origin,
    parse_authority,
    plain_address,
    unproven_page,
)
from mgota.errors import ConfigError

HERE = Ends("192.168.1.7", "192.168.1.20")


def refused(
    *hosts: str, ends: Ends = HERE, allowed: tuple[str, ...] = ("gw", "gw.local"), target: str = "/"
) -> int | None:
    head = Head("GET", target, tuple(("host", host) for host in hosts))
    refusal = Hosts(allowed).check(head, ends)
    return refusal.status if refusal else None


@pytest.mark.parametrize(
    "host",
    [
        "192.168.1.7", "192.168.1.7:8080", "localhost", "LOCALHOST:1", "localhost.", "127.0.0.1", "127.8.9.10:80",
        "[::1]", "[::1]:8080", "[0:0::1]", "[::ffff:127.0.0.1]", "[::ffff:192.168.1.7]:9",
        "gw", "GW.Local", "gw.local.:80", "gw:",
    ],
)  # fmt: skip
def test_names_of_its_own(host: str) -> None:
    assert refused(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "192.168.1.8", "gw.local.evil.example", "xgw", "0.0.0.0", "127.1", "2130706433", "[::]",
        "[fe80::1]", "a_b",
    ],
)  # fmt: skip
def test_a_foreign_name_is_421_and_the_refusal_names_the_option(host: str) -> None:
    assert refused(host) == 421
    refusal = Hosts().check(Head("GET", "/", (("host", host),)), HERE)
    assert refusal
    assert refusal.reason.endswith(f"--allow-host {host.strip('[]')}")


@pytest.mark.parametrize(
    "host",
    [
        "", ".", ":80", "gw:x", "gw:99999", "gw:123456", "a b", "gw/x", "user@gw", "[::1", "::1", "[gw]",
        "[127.0.0.1]x", "g\u00fc", "[]", "[1.2.3]", "gw\x01",
    ],
)  # fmt: skip
def test_a_malformed_host_is_400(host: str) -> None:
    assert refused(host) == 400


def test_a_missing_or_doubled_host_is_400() -> None:
    assert refused() == 400
    assert refused("gw", "gw") == 400


def test_the_host_inside_an_absolute_target_counts_too() -> None:
    assert refused("gw", target="http://gw:80/x") is None
    assert refused("gw", target="http://evil.example/x") == 421
    assert refused("gw", target="http://user@gw/x") == 400


def test_an_own_ipv6_address_may_have_a_scope() -> None:
    ends = Ends("fe80::1%eth0", "fe80::2%eth0")
    assert refused("[fe80::1]:80", ends=ends) is None
    assert refused("[fe80::1%25eth0]", ends=ends) is None
    assert refused("[fe80::2]", ends=ends) == 421


def test_without_an_own_address_only_names_count() -> None:
    assert refused("192.168.1.7", ends=Ends(None, "local")) == 421
    assert refused("gw", ends=Ends(None, "local")) is None


def test_the_client_on_another_own_address() -> None:
    assert refused("10.0.0.1", allowed=("10.0.0.1:99", "fe80::5")) is None
    assert refused("[fe80::5]", allowed=("fe80::5",)) is None
    assert refused("[fe80::5]", allowed=("[fe80::5]",)) is None


@pytest.mark.parametrize("name", ["", "http://gw", "a b", "g\u00fc"])
def test_a_name_that_could_never_be_sent_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError):
        Hosts((name,))


def test_loopback() -> None:
    assert is_loopback("localhost")
    assert is_loopback("127.255.0.1")
    assert is_loopback("::1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("localhost.evil.example")


def test_addresses_in_their_shortest_form() -> None:
    assert parse_authority("[0:0:0:0:0:0:0:1]:80") == Authority("::1", 80)
    assert parse_authority("[::FFFF:10.0.0.1]") == Authority("10.0.0.1")
    assert plain_address("gw") is None


@given(st.text(max_size=40))
def test_any_text_is_an_authority_or_none(text: str) -> None:
    authority = parse_authority(text)
    if authority is not None:
        host = f"[{authority.host}]" if ":" in authority.host else authority.host
        assert parse_authority(host) == Authority(authority.host)
    assert not is_same_origin(text, "evil.example", secure=False) or "evil.example" in text.lower()


@pytest.mark.parametrize(
    ("origin", "host", "secure"),
    [
        ("http://gw", "gw", False),
        ("http://gw:80", "GW", False),
        ("http://gw", "gw:80", False),
        ("http://GW:8080", "gw:8080", False),
        ("https://gw", "gw:443", True),
        ("https://gw:8443", "gw:8443", True),
        ("http://[::1]:80", "[0::1]", False),
        ("http://gw.", "gw", False),
    ],
)
def test_same_origin(origin: str, host: str, secure: bool) -> None:
    assert is_same_origin(origin, host, secure=secure)


@pytest.mark.parametrize(
    ("origin", "host", "secure"),
    [
        ("null", "gw", False),
        ("", "gw", False),
        ("http://evil.example", "gw", False),
        ("http://gw.evil.example", "gw", False),
        ("http://gw:81", "gw", False),
        ("http://gw", "gw:8080", False),
        ("https://gw", "gw", False),
        ("http://gw", "gw", True),
        ("https://gw:80", "gw:80", False),
        ("http://gw/", "gw", False),
        ("http://user@gw", "gw", False),
        ("http://gw http://evil", "gw", False),
        ("ftp://gw", "gw", False),
        ("http://gw:x", "gw", False),
        ("http://gw", "", False),
    ],
)
def test_foreign_origin(origin: str, host: str, secure: bool) -> None:
    assert not is_same_origin(origin, host, secure=secure)


def page(*fields: tuple[str, str], secure: bool = False) -> int | None:
    refusal = foreign_page(Head("GET", "/", (("host", "gw"), *fields)), secure=secure)
    return refusal.status if refusal else None


def test_pages() -> None:
    assert page() is None
    assert page(("origin", "http://gw")) is None
    assert page(("origin", "null")) == 403
    assert page(("origin", "http://gw"), ("origin", "http://evil")) == 403
    assert page(("origin", "https://gw"), secure=True) is None
    assert page(("sec-fetch-site", "none")) is None
    assert page(("sec-fetch-site", "same-origin")) is None
    assert page(("sec-fetch-site", "same-site")) == 403
    assert page(("sec-fetch-site", "cross-site")) == 403
    assert page(("sec-fetch-site", "same-origin"), ("sec-fetch-site", "cross-site")) == 403
    assert foreign_page(Head("GET", "/", (("origin", "http://gw"),)), secure=False)


def proof(*fields: tuple[str, str], changes: bool = True) -> int | None:
    refusal = unproven_page(Head("POST", "/", fields), changes=changes)
    return refusal.status if refusal else None


@pytest.mark.parametrize("trace", [("origin", "http://gw"), ("referer", "http://gw/"), ("sec-fetch-mode", "cors")])
def test_a_change_from_a_browser_needs_a_header_that_a_form_cannot_set(trace: tuple[str, str]) -> None:
    assert proof(trace) == 403
    assert proof(trace, ("x-mgota", "0")) == 403
    assert proof(trace, ("x-mgota", "1"), ("x-mgota", "1")) == 403
    assert proof(trace, ("x-mgota", "1")) is None
    assert proof(trace, ("authorization", "Bearer T")) is None
    assert proof(trace, changes=False) is None


def test_a_tool_needs_no_proof() -> None:
    assert proof(("user-agent", "curl")) is None
