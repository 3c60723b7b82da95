"""The connection of a pull broken at every byte: always the right image, or the old one.

Each run is a whole pull on a device of memory, through a proxy that breaks its second connection, which carries the
image, once. What the server says to the request that follows differs: the rest, all of it, or another image.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
from memory_device import KEY, OLD, Board, Restarted, firmware, signed, verifying
from site_server import IMAGE, METADATA, Request, Site, response

from mgota.core.download import Patience
from mgota.core.geometry import Slot
from mgota.core.pace import Limits
from mgota.core.record import State
from mgota.errors import OtaError
from mgota.testing import Effect, Fault, FaultProxy, fault_proxy
from mgota.transports.pull import Web, pull

# Each byte is a run: what is counted here, others count quicker.
pytestmark = [pytest.mark.asyncio, pytest.mark.no_cover]

FIRST, NEW = signed(OLD), signed(firmware("2", 50))
OTHER = signed(firmware("3", 50))
QUICK = Patience(first=0.0001, longest=0.0002)
WEB = Web(allow_http=True, patience=QUICK)
# A machine that is busy looks like a stall: many tries, so that only the script decides.
IMPATIENT = Web(allow_http=True, patience=Patience(tries=100, first=0.0001, longest=0.0002), limits=Limits(idle=0.02))
HEAD = len(response(200, b"", etag='"v1"', connection="close", content_length="114"))
EVERYTHING = HEAD + len(NEW)
BREAKS: dict[str, Callable[[int], Fault]] = {"cut": Fault.cut, "reset": Fault.reset, "stall": Fault.stall}


@asynccontextmanager
async def broken(site: Site) -> AsyncGenerator[FaultProxy]:
    site.keep_alive = False
    site.publish(NEW, key=KEY)
    async with site.served() as url, fault_proxy("127.0.0.1", int(url.rpartition(":")[2])) as proxy:
        yield proxy


async def outcome(site: Site, proxy: FaultProxy, fault: Fault) -> tuple[Board, Exception | None]:
    """One pull by a device of its own, its image's connection broken once."""
    site.requests.clear()
    faults = [fault]
    proxy.script = lambda _: [faults.pop()] if faults and site.requests else []  # the one after the manifest's
    web = IMPATIENT if fault.effect is Effect.STALL else WEB
    board = Board(FIRST, verifier=verifying())
    try:
        await pull(board.device, f"http://127.0.0.1:{proxy.port}{METADATA}", current_version="1", web=web)
    except OtaError as exc:
        return board, exc
    except Restarted:
        return board, None
    raise AssertionError("it neither failed nor installed")


def check(board: Board, failure: Exception | None, image: bytes = NEW) -> None:
    if failure is None:
        assert board.content(Slot.B) == image
        assert (board.flash.selected, board.record.state) == (Slot.B, State.TESTING)
    else:
        assert (board.flash.selected, board.record.state) == (Slot.A, State.CONFIRMED)
    assert board.content(Slot.A) == FIRST


@pytest.mark.parametrize("how", list(BREAKS))
async def test_a_connection_that_breaks_at_any_byte_is_made_again_and_goes_on(how: str) -> None:
    site, resumed = Site(), 0
    async with broken(site) as proxy:
        for at in range(EVERYTHING + 1):
            board, failure = await outcome(site, proxy, BREAKS[how](at))
            assert failure is None, (at, failure)
            check(board, None)
            resumed += any(request.range for request in site.asked())
    assert resumed >= (len(NEW) - 1 if how == "cut" else len(NEW) // 2)  # a reset may lose what was on its way


def _whole(request: Request, _number: int) -> bytes | None:
    return response(200, NEW, etag='"v1"', connection="close") if request.path == IMAGE else None


def _wrong_range(request: Request, _number: int) -> bytes | None:
    if request.path != IMAGE or not request.range:
        return None
    begin = int(request.range[6:-1])
    spec = f"bytes {max(begin - 1, 0)}-{len(NEW) - 1}/{len(NEW)}"
    return response(206, NEW[max(begin - 1, 0) :], etag='"v1"', connection="close", content_range=spec)


def _not_satisfiable(request: Request, _number: int) -> bytes | None:
    return response(416, connection="close") if request.range else None


@pytest.mark.parametrize("quirk", [_whole, _wrong_range, _not_satisfiable])
async def test_a_server_that_does_not_send_the_rest_sends_it_all(quirk: Callable[[Request, int], bytes | None]) -> None:
    site = Site()
    async with broken(site) as proxy:
        site.quirk = quirk
        for at in range(0, EVERYTHING + 1, 1 if quirk is _whole else 4):
            board, failure = await outcome(site, proxy, Fault.cut(at))
            assert failure is None, (at, failure)
            check(board, None)


@pytest.mark.parametrize("forgetful", [False, True])
async def test_an_image_that_changes_in_the_middle_is_never_joined(forgetful: bool) -> None:
    """The server has another image from the second request on. A forgetful one sends its rest all the same."""
    site = Site()

    def quirk(request: Request, number: int) -> bytes | None:
        if request.path == IMAGE:
            if number == 0:
                site.put(IMAGE, NEW, etag='"v1"')
            else:
                site.put(IMAGE, OTHER, etag='"v2"')
                if forgetful and request.range:
                    request.fields["if-range"] = '"v2"'
        return None

    async with broken(site) as proxy:
        site.quirk = quirk
        failures, runs = 0, range(0, EVERYTHING + 1, 4 if forgetful else 1)
        for at in runs:
            board, failure = await outcome(site, proxy, Fault.cut(at))
            check(board, failure)
            assert board.content(Slot.B) in {b"", NEW, OTHER}  # whole, or not begun
            failures += failure is not None
    # The manifest names the first image's digest. Cut before its first byte, the server may not even have been asked.
    assert failures >= len(runs) - 2


async def test_many_breaks_in_one_download() -> None:
    site, draw = Site(), Random(4)
    async with broken(site) as proxy:
        for _ in range(60):
            first = proxy.connections
            faults = [[BREAKS[draw.choice(list(BREAKS))](draw.randrange(EVERYTHING))] for _ in range(draw.randrange(8))]
            proxy.script = lambda number, first=first, faults=faults: (
                faults[number - first - 1] if 0 < number - first <= len(faults) else []
            )
            board = Board(FIRST, verifier=verifying())
            with pytest.raises((Restarted, OtaError)) as ended:
                await pull(board.device, f"http://127.0.0.1:{proxy.port}{METADATA}", current_version="1", web=IMPATIENT)
            check(board, ended.value if isinstance(ended.value, OtaError) else None)
