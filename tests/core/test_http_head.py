"""The head of a request: where it ends, what is wrong with its framing, and the status of every error."""

import pytest
from hypothesis import given, strategies as st

from mgota import errors
from mgota.core.http import Head, Refusal, error_refusal, head_end, head_fault, one_line

OK = b"POST /api/ota/update HTTP/1.1\r\nHost: gw\r\n"


def fault(*lines: bytes) -> int | None:
    refusal = head_fault(OK + b"".join(line + b"\r\n" for line in lines) + b"\r\n")
    return refusal.status if refusal else None


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n", b"\n\r\n", b"\r\n\n"])
def test_the_end_of_a_head_is_found_whole_and_byte_by_byte(end: bytes) -> None:
    data = b"GET / HTTP/1.1" + end + b"body\n\n"
    assert head_end(data) == 14 + len(end)
    searched = 0
    for length in range(len(data)):
        found = head_end(data[:length], searched)
        assert (found is not None) == (length >= 14 + len(end))
        if found is not None:
            assert found == 14 + len(end)
            break
        searched = length


def test_a_plain_head_has_no_fault() -> None:
    assert fault(b"Content-Length: 5") is None
    assert fault(b"Transfer-Encoding: chunked") is None
    assert fault() is None


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"Content-Length: 5", b"Content-Length: 5"], id="twice, equal"),
        pytest.param([b"Content-Length: 5", b"content-length: 6"], id="twice, different"),
        pytest.param([b"Content-Length: 5, 5"], id="a list"),
        pytest.param([b"Content-Length: 5", b"Transfer-Encoding: chunked"], id="with Transfer-Encoding"),
        pytest.param(
            [b"TRANSFER-ENCODING: chunked", b"Content-Length : 5"], id="with Transfer-Encoding, spelled oddly"
        ),
        pytest.param([b"Content-Length: +5"], id="signed"),
        pytest.param([b"Content-Length: -5"], id="negative"),
        pytest.param([b"Content-Length: 0x5"], id="hex"),
        pytest.param([b"Content-Length: 1_0"], id="underscore"),
        pytest.param(["Content-Length: \u0665".encode()], id="another script's digit"),
        pytest.param([b"Content-Length: 5 5"], id="two numbers"),
        pytest.param([b"Content-Length:"], id="empty"),
        pytest.param([b"Content-Length: " + b"9" * 5000], id="more than int() takes"),
        pytest.param([b"X: a", b" Content-Length: 5"], id="folded"),
        pytest.param([b"X: a", b"\tb"], id="folded with a tab"),
    ],
)
def test_a_doubtful_framing_is_400(lines: list[bytes]) -> None:
    assert fault(*lines) == 400


def test_too_many_fields_or_bytes_are_431() -> None:
    assert fault(*[b"X: y"] * 99) is None
    assert fault(*[b"X: y"] * 100) == 431
    assert fault(b"X: " + b"y" * (16 * 1024)) == 431
    room = 16 * 1024 - len(OK) - len(b"X: \r\n\r\n")
    assert fault(b"X: " + b"y" * room) is None
    assert fault(b"X: " + b"y" * (room + 1)) == 431


@given(st.binary(max_size=300))
def test_any_bytes_are_a_head_or_a_refusal(data: bytes) -> None:
    refusal = head_fault(data + b"\r\n\r\n")
    assert refusal is None or refusal.status in {400, 431}


def test_fields_are_found_by_their_lower_case_name() -> None:
    head = Head("GET", "/", (("host", "a"), ("x", "1"), ("x", "2")))
    assert head.values("x") == ["1", "2"]
    assert head.value("x") == "1"
    assert head.value("y") is None
    assert head.values("y") == []


@pytest.mark.parametrize(
    ("target", "path", "authority"),
    [
        ("/", "/", None),
        ("/api/ota/update", "/api/ota/update", None),
        ("/a?b=/c?d", "/a", None),
        ("/a%2fb", "/a%2fb", None),
        ("//evil/api", "//evil/api", None),
        ("*", "*", None),
        ("gw:80", "gw:80", None),
        ("http://gw:80/a?b", "/a", "gw:80"),
        ("HTTPS://gw/a", "/a", "gw"),
        ("http://gw", "/", "gw"),
        ("http://gw?x", "", "gw"),
        ("ftp://gw/a", "ftp://gw/a", None),
        ("/a?http://b/c", "/a", None),
    ],
)
def test_the_path_of_a_target(target: str, path: str, authority: str | None) -> None:
    head = Head("GET", target)
    assert (head.path, head.authority) == (path, authority)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.RejectedError("x"), 422),
        (errors.UnsignedError("x"), 422),
        (errors.BadSignatureError("x"), 422),
        (errors.DigestError("x"), 422),
        (errors.MalformedError("x"), 422),
        (errors.ManifestError("x"), 422),
        (errors.DowngradeError("x"), 422),
        (errors.TooLargeError(9, 8), 413),
        (errors.EmptyImageError("x"), 400),
        (errors.RollbackRefusedError("x"), 409),
        (errors.WrongImageError("x"), 412),
        (errors.TransferError("x"), 400),
        (errors.TruncatedError(1, 2), 400),
        (errors.OverrunError(2), 400),
        (errors.WrongOffsetError(1, 2), 400),
        (errors.StalledError("x"), 408),
        (errors.FlashError("x"), 500),
        (errors.StateError("x"), 500),
        (errors.BusyError("x"), 409),
        (errors.TrialRunningError("x"), 409),
        (errors.ConfigError("x"), 500),
        (errors.OtaError("x"), 500),
        (ValueError("a secret"), 500),
    ],
)
def test_every_error_has_its_status(error: Exception, status: int) -> None:
    refusal = error_refusal(error)
    assert refusal.status == status
    assert "secret" not in refusal.reason


def test_a_reason_is_one_printable_line() -> None:
    assert error_refusal(errors.OtaError("a\r\nSet-Cookie: b\x00\x1b[31m")) == Refusal(500, "a Set-Cookie: b [31m")
    assert error_refusal(errors.StalledError()) == Refusal(408, "StalledError")
    assert one_line("\u00e9  x\t") == "\u00e9 x"
