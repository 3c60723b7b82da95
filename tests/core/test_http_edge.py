"""From the head of a request to a decision, in the order that security.md gives."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from mgota.core import unpack
from mgota.core.edge import Action, Decision, Edge, not_unpacked, too_large
from mgota.core.http import Ends, Head, Refusal
from mgota.core.unpack import Packing, largest_packed
from mgota.errors import ConfigError

HERE = Ends("127.0.0.1", "127.0.0.1")
SHA = "ab" * 32


def head(method: str, target: str, *fields: tuple[str, str]) -> Head:
    return Head(method, target, (("host", "localhost"), *fields))


def route(method: str, target: str, *fields: tuple[str, str], edge: Edge | None = None) -> Decision | int:
    decision = (edge or Edge()).route(head(method, target, *fields))
    return decision.status if isinstance(decision, Refusal) else decision


LENGTH = ("content-length", "5")


def test_the_routes() -> None:
    assert route("POST", "/api/ota/update", LENGTH) == Decision(Action.UPDATE, size=5, length=5)
    assert route("POST", "/api/ota", LENGTH) == Decision(Action.UPDATE, size=5, length=5)
    assert route("POST", "/api/ota/update?x=1", LENGTH) == Decision(Action.UPDATE, size=5, length=5)
    assert route("POST", "/api/ota/commit") == Decision(Action.COMMIT)
    assert route("POST", "/api/ota/rollback") == Decision(Action.ROLLBACK)
    assert route("GET", "/api/ota/status") == Decision(Action.STATUS)
    assert route("HEAD", "/api/ota/status") == Decision(Action.STATUS)


@pytest.mark.parametrize(
    "path",
    [
        "/", "/api", "/api/ot", "/api/otaupdate", "/api/ota/", "/api/ota/update/", "/api/ota//update", "/API/OTA",
        "/api/ota/%75pdate", "/x/../api/ota/update", "//api/ota/update", "*", "api/ota/update", "",
    ],
)  # fmt: skip
def test_everything_else_is_404(path: str) -> None:
    assert route("POST", path, LENGTH) == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/api/ota/update", "POST"),
        ("PUT", "/api/ota/update", "POST"),
        ("GET", "/api/ota", "POST"),
        ("post", "/api/ota/update", "POST"),
        ("GET", "/api/ota/commit", "POST"),
        ("HEAD", "/api/ota/rollback", "POST"),
        ("OPTIONS", "/api/ota/rollback", "POST"),
        ("POST", "/api/ota/status", "GET, HEAD"),
        ("DELETE", "/api/ota/status", "GET, HEAD"),
        ("CONNECT", "/api/ota/status", "GET, HEAD"),
    ],
)
def test_a_wrong_method_is_405_with_the_right_one(method: str, path: str, allow: str) -> None:
    refusal = Edge().route(head(method, path))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.headers) == (405, (("Allow", allow),))


def test_get_commits_only_where_that_was_asked_for() -> None:
    legacy = Edge(legacy_get=True)
    assert route("GET", "/api/ota/commit", edge=legacy) == Decision(Action.COMMIT)
    assert route("GET", "/api/ota/rollback", edge=legacy) == Decision(Action.ROLLBACK)
    assert route("POST", "/api/ota/commit", edge=legacy) == Decision(Action.COMMIT)
    assert route("HEAD", "/api/ota/commit", edge=legacy) == 405
    assert route("GET", "/api/ota/update", edge=legacy) == 405
    assert route("GET", "/api/ota/commit", ("referer", "http://evil/"), edge=legacy) == 403
    assert route("GET", "/api/ota/commit", ("referer", "http://evil/")) == 405
    assert route("GET", "/api/ota/status", ("referer", "http://localhost/"), edge=legacy) == Decision(Action.STATUS)


def test_the_length_of_an_update() -> None:
    assert route("POST", "/api/ota/update") == 411
    assert route("POST", "/api/ota/update", ("transfer-encoding", "chunked")) == 411
    assert route("POST", "/api/ota/update", ("content-length", "0")) == 400
    assert route("POST", "/api/ota/update", ("content-length", "x")) == 400
    assert route("POST", "/api/ota/update", ("content-length", "\u0665")) == 400


def packed(encoding: str, length: int, *sizes: str) -> Decision | Refusal:
    fields = [("content-encoding", encoding), ("content-length", str(length))]
    return Edge().route(head("POST", "/api/ota/update", *fields, *(("x-mgota-size", size) for size in sizes)))


def test_an_update_may_come_packed() -> None:
    for name, packing in {
        "gzip": Packing.GZIP,
        "X-GZIP": Packing.GZIP,
        " zstd": Packing.ZSTD,
        "identity": None,
    }.items():
        assert packed(name, 5, "5") == Decision(Action.UPDATE, size=5, length=5, packing=packing)
    assert packed("gzip", 5, "900") == Decision(Action.UPDATE, size=900, length=5, packing=Packing.GZIP)
    assert packed("identity", 5) == packed("", 5, "5") == Decision(Action.UPDATE, size=5, length=5)


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "gzip,zstd", "gz ip"])
def test_a_packing_that_is_not_known_is_415_and_told_which_are(encoding: str) -> None:
    refusal = packed(encoding, 5, "9")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.headers) == (415, (("Accept-Encoding", "gzip, zstd"),))


@pytest.mark.parametrize(
    ("encoding", "sizes", "words"),
    [
        ("gzip", [], "needs X-MGOTA-Size"),
        ("gzip", ["x"], "not one number"),
        ("gzip", ["-1"], "not one number"),
        ("gzip", ["\u0665"], "not one number"),
        ("gzip", [""], "not one number"),
        ("gzip", ["5", "5"], "not one number"),
        ("gzip", ["1" * 21], "not one number"),
        ("gzip", ["0"], "no bytes"),
        ("identity", ["6"], "another number"),
    ],
)
def test_the_size_of_a_packed_image_makes_sense(encoding: str, sizes: list[str], words: str) -> None:
    refusal = packed(encoding, 5, *sizes)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 400
    assert words in refusal.reason


def test_a_packed_body_is_hardly_larger_than_its_image() -> None:
    most = largest_packed(900)
    assert isinstance(packed("gzip", most, "900"), Decision)
    refusal = packed("gzip", most + 1, "900")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 413
    assert packed("gzip", 5, "1" * 20) == Decision(
        Action.UPDATE, size=int("1" * 20), length=5, packing=Packing.GZIP
    )  # too large for any slot: 413 comes of that


def test_what_cannot_be_unpacked_here_is_415(monkeypatch: pytest.MonkeyPatch) -> None:
    zstd = Decision(Action.UPDATE, size=9, length=5, packing=Packing.ZSTD)
    assert not_unpacked(zstd) is None
    monkeypatch.setattr(unpack, "find_spec", lambda name: None)
    refusal = not_unpacked(zstd)
    assert refusal
    assert (refusal.status, refusal.headers) == (415, (("Accept-Encoding", "gzip"),))
    assert "mgota[zstd]" in refusal.reason
    assert not_unpacked(replace(zstd, packing=Packing.GZIP)) is None
    assert not_unpacked(replace(zstd, packing=None)) is None


def test_larger_than_the_slot_is_413() -> None:
    assert too_large(Decision(Action.UPDATE, size=5), 5) is None
    refusal = too_large(Decision(Action.UPDATE, size=6), 5)
    assert refusal
    assert refusal.status == 413


def test_a_commit_may_be_bound_to_an_image() -> None:
    assert route("POST", "/api/ota/commit", ("x-mgota-image", SHA.upper())) == Decision(Action.COMMIT, image=SHA)
    for wrong in ("", SHA[:-1], SHA + "a", "g" * 64):
        assert route("POST", "/api/ota/rollback", ("x-mgota-image", wrong)) == 400
    assert route("POST", "/api/ota/commit", ("x-mgota-image", SHA), ("x-mgota-image", SHA)) == 400


def test_the_rule_for_browsers_comes_before_the_route() -> None:
    origin = ("origin", "http://localhost")
    assert route("POST", "/nowhere", origin) == 403
    assert route("DELETE", "/api/ota/status", origin) == 403
    assert route("GET", "/nowhere", origin) == 404
    assert route("POST", "/api/ota/commit", origin, ("x-mgota", "1")) == Decision(Action.COMMIT)


def test_the_host_rule_is_for_every_route_and_the_page_rule_for_ours() -> None:
    beside = Edge(has_app=True)
    evil = Head("GET", "/index.html", (("host", "evil.example"),))
    refusal = beside.admit(evil, HERE)
    assert refusal
    assert refusal.status == 421
    page = ("origin", "http://evil.example")
    assert beside.admit(head("POST", "/index.html", page), HERE) is None
    assert beside.route(head("POST", "/index.html", page)) == Decision(Action.APP)
    assert isinstance(beside.admit(head("POST", "/api/ota/x", page), HERE), Refusal)
    assert isinstance(beside.admit(head("POST", "/api/ota", page), HERE), Refusal)
    assert isinstance(Edge().admit(head("POST", "/index.html", page), HERE), Refusal)
    assert route("CONNECT", "gw:80", edge=beside) == 501
    assert Edge(allow_hosts=["evil.example"]).admit(evil, HERE) is None


def test_another_prefix() -> None:
    edge = Edge(prefix="/x")
    assert route("POST", "/x/update", LENGTH, edge=edge) == Decision(Action.UPDATE, size=5, length=5)
    assert route("POST", "/api/ota/update", LENGTH, edge=edge) == 404


@pytest.mark.parametrize("prefix", ["", "api", "/", "/api/", "/a?b", "/a b", "/a\n", "/a#b"])
def test_a_prefix_that_no_request_could_have(prefix: str) -> None:
    with pytest.raises(ConfigError):
        Edge(prefix=prefix)


NAMES = st.sampled_from(
    [
        "host",
        "origin",
        "referer",
        "sec-fetch-site",
        "authorization",
        "x-mgota",
        "content-length",
        "transfer-encoding",
        "x-mgota-image",
        "x-mgota-size",
        "content-encoding",
    ]
)
VALUES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["localhost", "null", "http://localhost", "1", "0", "chunked", "gzip", "7", SHA]),
)


@given(
    st.sampled_from(["GET", "POST", "PUT", "HEAD", "X"]),
    st.one_of(
        st.text(max_size=30), st.sampled_from(["/api/ota", "/api/ota/update", "/api/ota/commit", "http://a/api/ota"])
    ),
    st.lists(st.tuples(NAMES, VALUES), max_size=8),
    st.booleans(),
)
def test_any_head_is_a_decision_or_a_refusal(
    method: str, target: str, fields: list[tuple[str, str]], legacy: bool
) -> None:
    edge = Edge(legacy_get=legacy)
    request = Head(method, target, tuple(fields))
    refusal = edge.admit(request, HERE)
    assert refusal is None or refusal.status in {400, 403, 421}
    decision = edge.route(request)
    if isinstance(decision, Refusal):
        assert decision.status in {400, 403, 404, 405, 411, 413, 415}
    elif decision.action is Action.UPDATE:
        assert method == "POST"
        assert decision.size > 0


# The updater page.

PAGE = Edge(page="/")
FOREIGN = ("sec-fetch-site", "cross-site")
BY_LINK = (("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document"))


def admitted(edge: Edge, request: Head) -> int | None:
    refusal = edge.admit(request, HERE)
    return refusal.status if refusal else None


def test_the_page_is_there_where_it_was_asked_for_and_nowhere_else() -> None:
    assert route("GET", "/", edge=PAGE) == route("HEAD", "/?x", edge=PAGE) == Decision(Action.PAGE)
    assert route("POST", "/", edge=PAGE) == 405
    assert route("GET", "/") == 404
    assert route("GET", "/index.html", edge=PAGE) == 404
    assert route("GET", "/api/ota/status", edge=PAGE) == Decision(Action.STATUS)


def test_the_page_goes_before_an_application() -> None:
    beside = Edge(page="/update", has_app=True)
    assert route("GET", "/update", edge=beside) == Decision(Action.PAGE)
    assert route("GET", "/update/", edge=beside) == Decision(Action.APP)
    assert route("POST", "/update", edge=beside) == 405


def test_the_page_needs_no_credentials_and_everything_else_does() -> None:
    for edge in (PAGE, Edge(page="/", has_app=True)):
        assert not edge.guards(head("GET", "/"))
        assert edge.guards(head("GET", "/api/ota/status"))
    assert PAGE.guards(head("GET", "/x"))
    assert Edge().guards(head("GET", "/"))


def test_a_link_may_lead_to_the_page_and_no_other_page_may_use_it() -> None:
    assert admitted(PAGE, head("GET", "/")) is None
    assert admitted(PAGE, head("GET", "/", FOREIGN, *BY_LINK)) is None
    assert admitted(PAGE, head("GET", "/", FOREIGN)) == 403  # an image, a script, a fetch
    assert admitted(PAGE, head("GET", "/", FOREIGN, BY_LINK[0], ("sec-fetch-dest", "iframe"))) == 403
    assert admitted(PAGE, head("POST", "/", FOREIGN, *BY_LINK)) == 403  # a form
    assert admitted(PAGE, head("GET", "/", ("origin", "null"))) == 403
    assert admitted(PAGE, head("GET", "/api/ota/status", FOREIGN, *BY_LINK)) == 403
    assert admitted(PAGE, Head("GET", "/", (("host", "evil.example"), *BY_LINK))) == 421


@pytest.mark.parametrize("page", ["", "page", "/a?b", "/a b", "/a#b", "/a\n", "/\u00e9", "/api/ota", "/api/ota/page"])
def test_a_page_where_none_can_be(page: str) -> None:
    with pytest.raises(ConfigError):
        Edge(page=page)
