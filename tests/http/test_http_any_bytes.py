"""Any bytes where a request should be: a decision or a refusal, nothing else."""

import h11
from hypothesis import example, given, strategies as st

from mgota.core.edge import Decision, Edge
from mgota.core.http import Ends, Refusal, head_end
from mgota.core.pace import Limits
from mgota.transports.http.connection import encode_response, parse_head
from mgota.transports.http.message import Response

HERE = Ends("127.0.0.1", "127.0.0.1")
STATUSES = {400, 403, 404, 405, 411, 421, 431, 501}

LINES = st.one_of(
    st.sampled_from(
        [
            b"Host: localhost", b"Host: evil", b"Host:", b"Content-Length: 5", b"Content-Length: 5, 5",
            b"Content-Length: 0", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip",
            b"Transfer-Encoding: chunked, chunked", b"Origin: null", b"Expect: 100-continue",
            b"Connection: upgrade", b"Upgrade: h2c", b" folded", b"X:\x0b\x0cy", b"X-MGOTA: 1",
        ]
    ),
    st.binary(max_size=30),
)  # fmt: skip
STARTS = st.one_of(
    st.sampled_from(
        [
            b"POST /api/ota/update HTTP/1.1",
            b"GET /api/ota/status HTTP/1.0",
            b"CONNECT gw:1 HTTP/1.1",
            b"X * HTTP/1.1",
            b"",
        ]
    ),
    st.binary(max_size=40),
)


@given(STARTS, st.lists(LINES, max_size=6), st.sampled_from([b"\r\n", b"\n"]))
@example(b"POST /api/ota/update HTTP/1.1", [b"Host: localhost", b"Content-Length: 5"], b"\r\n")
@example(b"GET http://[ HTTP/1.1", [b"Host: localhost"], b"\r\n")
def test_any_bytes_in_the_head_are_a_decision_or_a_refusal(start: bytes, lines: list[bytes], end: bytes) -> None:
    raw = end.join([start, *lines, b"", b""])
    cut = head_end(raw)
    assert cut is not None
    parsed = parse_head(raw[:cut], Limits())
    if isinstance(parsed, Refusal):
        assert parsed.status in STATUSES
        assert parsed.reason.isprintable()
        return
    state, head = parsed
    decision = Edge().admit(head, HERE) or Edge().route(head)
    if isinstance(decision, Decision):
        response = Response.line("ok")
    else:
        assert decision.status in STATUSES
        response = Response.line(decision.reason, decision.status, decision.headers)
    data = encode_response(state, response, method=head.method, close=True)
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="HEAD" if head.method == "HEAD" else "GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    assert isinstance(event := client.next_event(), h11.Response)
    assert event.status_code == response.status
