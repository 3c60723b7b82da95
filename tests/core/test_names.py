"""Names of devices in a gateway, and the routes below them."""

import pytest
from hypothesis import example, given, settings, strategies as st

from mgota.core.edge import Action, Decision, Edge
from mgota.core.http import Head, Refusal
from mgota.core.names import MAX_NAME, check_names, name_fault, split_name
from mgota.errors import ConfigError

GATEWAY = Edge(devices=("main", "mcu-2"))
HOST = ("host", "localhost")
LENGTH = ("content-length", "5")


def route(method: str, path: str, *fields: tuple[str, str], edge: Edge = GATEWAY) -> Decision | int:
    found = edge.route(Head(method, path, (HOST, *fields)))
    return found.status if isinstance(found, Refusal) else found


@pytest.mark.parametrize("name", ["a", "main", "MCU_2", "esp32.kitchen", "-", "...", "updates", "a" * MAX_NAME])
def test_a_name(name: str) -> None:
    assert name_fault(name) is None
    assert check_names([name]) == (name,)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "empty"),
        ("a" * (MAX_NAME + 1), "1 to 64"),
        (".", "1 to 64"),
        ("..", "1 to 64"),
        ("a b", "1 to 64"),
        ("a/b", "1 to 64"),
        ("a\n", "1 to 64"),
        ("+", "1 to 64"),
        ("#", "1 to 64"),
        ("%61", "1 to 64"),
        ("ä", "1 to 64"),
        ("²", "1 to 64"),
        ("update", "word of the API"),
        ("commit", "word of the API"),
        ("rollback", "word of the API"),
        ("Status", "word of the API"),
        ("rx", "word of the API"),
        ("TX", "word of the API"),
    ],
)
def test_no_name(name: str, why: str) -> None:
    assert why in (name_fault(name) or "")
    with pytest.raises(ConfigError, match=why):
        check_names(["main", name])


def test_a_gateway_without_devices_is_none() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        check_names([])


def test_a_path_is_split() -> None:
    assert split_name("") == ("", "")
    assert split_name("/") == ("", "")
    assert split_name("/main") == ("main", "")
    assert split_name("/main/update") == ("main", "/update")
    assert split_name("/main/update/") == ("main", "/update/")
    assert split_name("//main") == ("", "/main")


def test_the_routes_of_each_device_stand_below_its_name() -> None:
    update = Decision(Action.UPDATE, size=5, length=5, device="main")
    assert route("POST", "/api/ota/main/update", LENGTH) == update
    assert route("POST", "/api/ota/main", LENGTH) == update
    assert route("POST", "/api/ota/mcu-2/commit") == Decision(Action.COMMIT, device="mcu-2")
    assert route("POST", "/api/ota/mcu-2/rollback") == Decision(Action.ROLLBACK, device="mcu-2")
    assert route("GET", "/api/ota/mcu-2/status") == Decision(Action.STATUS, device="mcu-2")
    assert route("GET", "/api/ota") == route("HEAD", "/api/ota") == Decision(Action.DEVICES)


@pytest.mark.parametrize(
    "path",
    [
        *("/api/ota/update", "/api/ota/commit", "/api/ota/status", "/api/ota/", "/api/ota//update"),
        *("/api/ota/main/", "/api/ota/main/x", "/api/ota/main/main/update", "/api/ota/%6dain/update"),
        *("/api/ota/Main/update", "/main/update", "/"),
    ],
)
def test_what_names_no_device_is_not_there(path: str) -> None:
    assert route("POST", path, LENGTH) == route("GET", path) == 404


def test_who_asks_for_a_device_that_is_not_there_is_told_so() -> None:
    for path, told in {
        "/api/ota/esp/status": "there is no device esp here",
        "/api/ota/%00/status": "there is nothing here",
        "/api/ota/main/x": "there is nothing here",
    }.items():
        refusal = GATEWAY.route(Head("GET", path, (HOST,)))
        assert isinstance(refusal, Refusal)
        assert (refusal.status, refusal.reason) == (404, told)


def test_methods_and_get_as_for_one_device() -> None:
    assert (
        route("POST", "/api/ota", LENGTH)
        == route("GET", "/api/ota/main")
        == route("GET", "/api/ota/main/commit")
        == 405
    )
    legacy = Edge(devices=("main",), legacy_get=True)
    assert route("GET", "/api/ota/main/commit", edge=legacy) == Decision(Action.COMMIT, device="main")
    assert route("GET", "/api/ota/main/commit", ("referer", "http://evil/"), edge=legacy) == 403


def test_beside_an_application_every_name_is_guarded() -> None:
    beside = Edge(devices=("main",), has_app=True)
    assert beside.guards(Head("GET", "/api/ota/nobody/status"))
    assert not beside.guards(Head("GET", "/index.html"))
    assert route("GET", "/index.html", edge=beside) == Decision(Action.APP)


def test_what_speaks_of_one_device_is_not_for_several() -> None:
    with pytest.raises(ConfigError, match="for one device"):
        Edge(devices=("main",), page="/")
    with pytest.raises(ConfigError, match="for one device"):
        Edge(devices=("main",), older="/api/firmware")
    with pytest.raises(ConfigError, match="word of the API"):
        Edge(devices=("main", "update"))


@settings(max_examples=100)
@given(st.text(max_size=70))
@example("main/update")
@example("mcu-2")
def test_any_path_is_for_one_device_by_its_exact_name_or_for_none(rest: str) -> None:
    found = GATEWAY.route(Head("POST", f"/api/ota/{rest}", (HOST, LENGTH)))
    if isinstance(found, Decision):
        assert rest.partition("/")[0] == found.device in ("main", "mcu-2")
    else:
        assert found.status in {404, 405}
