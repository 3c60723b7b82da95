"""The notify protocol: its datagrams, both ends, and what is no datagram of it."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given, strategies as st

from mgota.errors import ConfigError
from mgota.linux import notify as notify_module
from mgota.linux.listener import Listener, Systemd, listen
from mgota.linux.notify import (
    FEED,
    MAX_DATAGRAM,
    READY,
    RESET,
    Notifier,
    NotifyReset,
    NotifyWatchdog,
    asks,
    decode_notice,
    encode_notice,
)
from mgota.ports import Resetter, Watchdog


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    with listen(tmp_path) as made:
        yield made


# datagrams


def test_fields_are_lines() -> None:
    assert encode_notice({"READY": "1", "STATUS": "déjà"}) == "READY=1\nSTATUS=déjà".encode()
    assert decode_notice(b"READY=1\nSTATUS=a=b\n") == {"READY": "1", "STATUS": "a=b"}
    assert asks(decode_notice(b"X=1\nX_MGOTA=RESET"), RESET)
    assert not asks(decode_notice(b"X_MGOTA=RESETS"), RESET)


@pytest.mark.parametrize("fields", [{"a b": "1"}, {"": "1"}, {"A": "1\nB=2"}, {"A": "x" * MAX_DATAGRAM}])
def test_what_cannot_be_sent_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        encode_notice(fields)


@pytest.mark.parametrize("data", [b"", b"\n", b"READY", b"=1", b"ready=1", b"A B=1", b"\xff=\xff", b"A=1" * 5000])
def test_what_is_no_field_is_left_out(data: bytes) -> None:
    assert decode_notice(data) == {}


@given(st.binary(max_size=300) | st.text().map(lambda text: f"READY=1\n{text}".encode("utf-8", "replace")))
def test_any_bytes_are_a_notice(data: bytes) -> None:
    assert all("\n" not in key + value for key, value in decode_notice(data).items())


@given(st.dictionaries(st.from_regex(r"[A-Z0-9_]{1,20}", fullmatch=True), st.text().filter(lambda t: "\n" not in t)))
def test_what_was_encoded_is_decoded(fields: dict[str, str]) -> None:
    fields = {key: value.encode("utf-8", "replace").decode() for key, value in fields.items()}
    assert decode_notice(encode_notice(fields)) == fields


# the sender


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234", "/" + "x" * 107, "@" + "é" * 54, "/a\0b"])
def test_an_address_that_no_socket_has_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="NOTIFY_SOCKET"):
        Notifier(address)


def test_without_an_address_there_is_nobody_to_tell() -> None:
    assert Notifier.from_environment({}) is None
    assert Notifier.from_environment({"NOTIFY_SOCKET": ""}) is None


@pytest.mark.asyncio
async def test_an_abstract_address_is_reached() -> None:
    name = f"mgota-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        await Notifier(f"@{name}").ready()
        assert receiver.recv(100) == b"READY=1"


@pytest.mark.asyncio
async def test_a_watchdog_feeds_and_the_first_time_says_that_it_is_ready(listener: Listener) -> None:
    watchdog = NotifyWatchdog(Notifier(listener.address))
    assert isinstance(watchdog, Watchdog)
    assert watchdog.stoppable
    assert watchdog.limit is None
    await watchdog.arm(5)
    await watchdog.feed()
    await watchdog.feed()
    await watchdog.disarm()
    assert listener.pending() == [{**READY, **FEED}, FEED]


@pytest.mark.asyncio
async def test_a_feed_that_nobody_hears_is_no_error(tmp_path: Path) -> None:
    await NotifyWatchdog(Notifier(str(tmp_path / "nobody"))).feed()
    assert Notifier(str(tmp_path / "nobody")).tell(READY) is False


@pytest.mark.asyncio
async def test_a_reset_waits_to_be_killed(listener: Listener) -> None:
    reset = NotifyReset(Notifier(listener.address))
    assert isinstance(reset, Resetter)
    with anyio.move_on_after(0.1) as scope:
        await reset.reset()
    assert scope.cancelled_caught
    await NotifyReset(Notifier(listener.address), forever=False).reset()
    assert listener.pending() == [RESET, RESET]


@pytest.mark.asyncio
async def test_a_reset_that_nobody_hears_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nobody listens"):
        await NotifyReset(Notifier(str(tmp_path / "nobody"))).reset()


@pytest.mark.asyncio
async def test_a_reset_waits_for_room_in_the_queue(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    notifier = Notifier(listener.address)
    while notifier.tell(FEED):
        pass
    monkeypatch.setattr(notify_module, "_PATIENCE", 0.1)
    with pytest.raises(ConfigError, match="takes nothing more"):
        await notifier.request(RESET)
    monkeypatch.setattr(notify_module, "_PATIENCE", 30)
    async with anyio.create_task_group() as tg:
        tg.start_soon(notifier.request, RESET)
        await anyio.sleep(0.05)
        assert asks(await listener.receive(), FEED)
    assert listener.pending()[-1] == RESET


# the listener


@pytest.mark.asyncio
async def test_a_notice_is_waited_for(listener: Listener) -> None:
    async with anyio.create_task_group() as tg:
        tg.start_soon(anyio.to_thread.run_sync, Notifier(listener.address).tell, READY)
        assert await listener.receive() == READY


def test_a_flood_ends(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_take", lambda: FEED)
    assert len(listener.pending()) == 1000


def test_what_was_left_of_a_killed_launcher_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "notify").touch()
    with listen(tmp_path) as listener:
        assert Notifier(listener.address).tell(READY)
    assert not (tmp_path / "notify").exists()


# systemd


def test_systemd_is_found_in_the_environment(tmp_path: Path) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "s"), "WATCHDOG_USEC": "30000000"}
    assert Systemd.from_environment(environ).timeout == 30
    assert Systemd.from_environment({**environ, "WATCHDOG_PID": str(os.getpid())}).timeout == 30
    assert Systemd.from_environment({**environ, "WATCHDOG_PID": "1"}).timeout is None
    for microseconds in ("0", "", "-5", "much", "1.5"):
        assert Systemd.from_environment({**environ, "WATCHDOG_USEC": microseconds}).timeout is None
    alone = Systemd.from_environment({"WATCHDOG_USEC": "30000000"})
    assert alone.timeout is None
    alone.status("nobody hears")
