"""A chip's rules, kept in memory and in a file; and a writer on it."""

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from mgota.core.geometry import Area, Geometry, Region, Sector, uniform
from mgota.errors import (
    ConfigError,
    EraseError,
    FlashError,
    OverrunError,
    ProgramError,
    ReadError,
    TooLargeError,
    TruncatedError,
)
from mgota.flash.simulator import Kind, NorSimulator, Operation
from mgota.flash.writer import NorWriter
from mgota.ports import FlashWriter, NorFlash

pytestmark = pytest.mark.asyncio

GEOMETRY = Geometry((Region(0, 64, 32), Region(64, 128, 64), Region(256, 64, 64)), program_unit=4, erased=b"\x39\xe3")
HOLE = 192
Make = Callable[..., NorSimulator]


@pytest.fixture(params=["memory", "file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    if request.param == "memory":
        return lambda geometry=GEOMETRY: NorSimulator(geometry)
    return lambda geometry=GEOMETRY: NorSimulator.on_file(tmp_path / "flash", geometry)


async def test_it_is_blank_at_first_and_gives_what_was_programmed(make: Make) -> None:
    flash = make()
    assert isinstance(flash, NorFlash)
    assert flash.geometry is GEOMETRY
    assert await flash.read(0, 192) == b"\x39\xe3" * 96
    data = bytes(range(120))
    await flash.program(4, data)  # across three sectors
    assert await flash.read(0, 192) == b"\x39\xe3\x39\xe3" + data + b"\x39\xe3" * 34
    assert await flash.read(5, 3) == data[1:4]
    assert await flash.read(31, 2) == data[27:29]
    assert await flash.read(7, 0) == b""
    assert await flash.read(256, 64) == b"\x39\xe3" * 32
    await flash.erase(Sector(32, 32))
    assert await flash.read(0, 68) == b"\x39\xe3\x39\xe3" + data[:28] + b"\x39\xe3" * 16 + data[60:64]
    await flash.flush()


async def test_wider_items_count_in_bytes(make: Make) -> None:
    flash = make()
    await flash.program(0, memoryview(bytes(range(8))).cast("I"))
    assert await flash.read(0, 8) == bytes(range(8))


@pytest.mark.parametrize(("offset", "size"), [(2, 4), (1, 4), (4, 6), (0, 1)])
async def test_misaligned_programs_are_refused(make: Make, offset: int, size: int) -> None:
    flash = make()
    with pytest.raises(ProgramError, match="whole units"):
        await flash.program(offset, bytes(size))
    assert await flash.read(0, 64) == b"\x39\xe3" * 32


async def test_a_unit_is_programmed_once_per_erase(make: Make) -> None:
    flash = make()
    await flash.program(72, b"\x00" * 8)
    before = await flash.read(0, 192)
    for offset, size in ((72, 4), (76, 4), (0, 192), (68, 8)):
        with pytest.raises(ProgramError, match=r"0x48|0x4c"):
            await flash.program(offset, b"\xff" * size)
    assert await flash.read(0, 192) == before  # a program that is refused changes nothing
    await flash.program(68, b"\x11" * 4)
    await flash.program(80, b"\x11" * 4)
    await flash.erase(Sector(64, 64))
    await flash.program(64, b"\x22" * 64)


async def test_in_memory_the_erased_pattern_counts_as_programmed_too() -> None:
    flash = NorSimulator(GEOMETRY)
    await flash.program(0, b"\x39\xe3\x39\xe3")
    with pytest.raises(ProgramError):
        await flash.program(0, b"\x00" * 4)


async def test_in_a_file_the_erased_pattern_cannot_be_told_from_blank(tmp_path: Path) -> None:
    flash = NorSimulator.on_file(tmp_path / "flash", GEOMETRY)
    await flash.program(0, b"\x39\xe3\x39\xe3")
    await flash.program(0, b"\x00" * 4)


@pytest.mark.parametrize(("offset", "size"), [(HOLE, 4), (HOLE - 4, 8), (252, 8), (316, 8), (320, 4), (-4, 4)])
async def test_holes_and_the_outside_are_refused(make: Make, offset: int, size: int) -> None:
    flash = make()
    with pytest.raises(ReadError, match="not all inside"):
        await flash.read(offset, size)
    with pytest.raises(ProgramError, match="not all inside"):
        await flash.program(offset, bytes(size))
    with pytest.raises(ConfigError):
        flash.peek(offset, size)
    with pytest.raises(ConfigError):
        flash.poke(offset, bytes(size))
    with pytest.raises(ReadError):
        await flash.read(0, -1)


@pytest.mark.parametrize("sector", [Sector(0, 64), Sector(4, 32), Sector(HOLE, 64), Sector(320, 64)])
async def test_only_sectors_are_erased(make: Make, sector: Sector) -> None:
    with pytest.raises(EraseError, match="no sector"):
        await make().erase(sector)


async def test_a_program_of_nothing_is_nothing(make: Make) -> None:
    flash = make()
    await flash.program(0, b"")
    assert not flash.operations.counts


async def test_operations_are_counted_and_reads_have_no_index(make: Make) -> None:
    flash, seen = make(), list[Operation]()
    flash.operations.before = seen.append
    await flash.erase(Sector(32, 32))
    await flash.read(0, 8)
    await flash.program(32, b"abcd")
    assert seen == [
        Operation(Kind.ERASE, 0, 32, 32),
        Operation(Kind.READ, None, 0, 8),
        Operation(Kind.PROGRAM, 1, 32, 4),
    ]
    assert seen[2].data == b"abcd"
    assert flash.operations.changes == 2
    assert flash.operations.counts == {Kind.ERASE: 1, Kind.READ: 1, Kind.PROGRAM: 1}


class PowerCut(BaseException):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_hook_cuts_before_or_after_an_operation(make: Make, moment: str) -> None:
    flash = make()

    def cut(operation: Operation) -> None:
        if operation.index == 1:
            raise PowerCut

    setattr(flash.operations, moment, cut)
    await flash.program(0, b"1234")
    with pytest.raises(PowerCut):
        await flash.program(4, b"5678")
    happened = moment == "after"
    assert flash.peek(0, 8) == b"1234" + (b"5678" if happened else b"\x39\xe3\x39\xe3")


async def test_a_hook_can_tear_an_operation(make: Make) -> None:
    flash = make()

    def tear(operation: Operation) -> None:
        assert operation.data
        flash.poke(operation.offset, operation.data[:6])
        raise PowerCut

    flash.operations.before = tear
    with pytest.raises(PowerCut):
        await flash.program(0, b"12345678")
    flash.operations.before = None
    assert await flash.read(0, 8) == b"123456\x39\xe3"
    with pytest.raises(ProgramError):  # the unit that is torn is no fresh one
        await flash.program(4, b"5678")
    await flash.erase(Sector(0, 32))
    await flash.program(4, b"5678")


async def test_a_fork_shares_sectors_until_they_change() -> None:
    flash = NorSimulator(GEOMETRY)
    await flash.program(0, b"old!" * 16)
    twin = flash.fork()
    assert twin.operations.changes == 0
    await flash.erase(Sector(0, 32))
    await flash.program(0, b"new!")
    await twin.erase(Sector(32, 32))
    await twin.program(64, b"twin")
    third = twin.fork()
    await twin.program(68, b"more")
    assert flash.peek(0, 72) == b"new!" + b"\x39\xe3" * 14 + b"old!" * 8 + b"\x39\xe3" * 4
    assert twin.peek(0, 72) == b"old!" * 8 + b"\x39\xe3" * 16 + b"twinmore"
    assert third.peek(64, 8) == b"twin\x39\xe3\x39\xe3"
    with pytest.raises(ProgramError):  # what was programmed before the fork stays so
        await third.program(64, b"once")


async def test_two_memories_on_one_file_see_the_same(tmp_path: Path) -> None:
    one = NorSimulator.on_file(tmp_path / "flash", GEOMETRY)
    two = NorSimulator.on_file(tmp_path / "flash", GEOMETRY)
    await one.program(8, b"12345678")
    assert await two.read(8, 8) == b"12345678"
    with pytest.raises(ProgramError):
        await two.program(12, b"1234")
    await two.erase(Sector(0, 32))
    assert await one.read(8, 8) == b"\x39\xe3" * 4


async def test_a_file_is_the_raw_array_made_blank_if_missing(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    flash = NorSimulator.on_file(path, GEOMETRY)
    assert path.read_bytes() == b"\x39\xe3" * 160
    await flash.program(256, b"here")
    assert path.read_bytes()[256:260] == b"here"
    assert NorSimulator.on_file(path, GEOMETRY).peek(256, 4) == b"here"
    with pytest.raises(ConfigError, match="copy the file"):
        flash.fork()


async def test_a_large_file_is_blank_over_many_pieces(tmp_path: Path) -> None:
    geometry = uniform(3 * 96 << 10, 96 << 10, program_unit=6, erased=b"abc")
    flash = NorSimulator.on_file(tmp_path / "flash", geometry)
    assert (tmp_path / "flash").read_bytes() == b"abc" * (96 << 10)
    flash.poke(0, b"\0" * geometry.size)
    with pytest.raises(ProgramError, match="0x18000"):
        await flash.program(96 << 10, bytes(96 << 10))
    await flash.erase(Sector(96 << 10, 96 << 10))
    assert flash.peek((96 << 10) - 1, (96 << 10) + 2) == b"\0" + b"abc" * (32 << 10) + b"\0"
    await flash.program(96 << 10, bytes(96 << 10))


async def test_a_file_that_does_not_fit_is_a_matter_of_configuration(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    path.write_bytes(b"\xff" * 319)
    with pytest.raises(ConfigError, match="319 bytes, the memory 320"):
        NorSimulator.on_file(path, GEOMETRY)
    with pytest.raises(ConfigError, match="cannot be used"):
        NorSimulator.on_file(tmp_path / "no" / "flash", GEOMETRY)


async def test_a_file_that_fails_is_translated(tmp_path: Path) -> None:
    path = tmp_path / "flash"
    flash = NorSimulator.on_file(path, GEOMETRY)
    os.truncate(path, 40)
    with pytest.raises(ReadError, match="ends early"):
        await flash.read(32, 32)
    path.unlink()
    for call, error in (
        (lambda: flash.read(0, 4), ReadError),
        (lambda: flash.program(0, b"1234"), ProgramError),
        (lambda: flash.erase(Sector(0, 32)), EraseError),
        (flash.flush, ProgramError),
    ):
        with pytest.raises(error, match="No such file") as caught:
            await call()
        assert isinstance(caught.value.__cause__, OSError)


async def test_a_short_read_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flash = NorSimulator.on_file(tmp_path / "flash", GEOMETRY)
    flash.poke(0, bytes(range(32)))
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr("os.pread", lambda fd, size, offset: pread(fd, min(size, 5), offset))
    monkeypatch.setattr("os.pwrite", lambda fd, data, offset: pwrite(fd, data[:5], offset))
    flash.poke(0, bytes(range(100, 132)))
    assert await flash.read(0, 32) == bytes(range(100, 132))


async def test_a_throttled_memory_sleeps_for_what_is_programmed(monkeypatch: pytest.MonkeyPatch) -> None:
    naps = list[float]()

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    monkeypatch.setattr("mgota.flash.simulator.sleep", sleep)
    flash = NorSimulator(uniform(4096, 1024), throttle=10_000)
    await flash.erase(Sector(0, 1024))
    await flash.program(0, bytes(1000))
    for offset in range(1024, 1124, 10):
        await flash.program(offset, bytes(10))
    assert sum(naps) == pytest.approx(0.11)
    assert len(naps) < 11


async def write_all(writer: FlashWriter, *chunks: bytes) -> None:
    for chunk in chunks:
        await writer.write(chunk)
    await writer.finish()


async def test_a_writer_fills_its_area_and_no_more(make: Make) -> None:
    flash = make()
    flash.poke(0, b"\0" * 192)
    writer = NorWriter(flash, Area(32, 160), 50, flush=flash.flush)
    assert isinstance(writer, FlashWriter)
    await write_all(writer, b"a" * 3, b"", b"b" * 47)
    assert flash.peek(0, 192) == b"\0" * 32 + b"aaa" + b"b" * 47 + b"\x39\xe3" * 55


async def test_a_writer_takes_neither_more_nor_less_than_declared() -> None:
    flash = NorSimulator(GEOMETRY)
    with pytest.raises(TooLargeError):
        NorWriter(flash, Area(0, 64), 65)
    writer = NorWriter(flash, Area(0, 64), 8)
    await writer.write(b"1234")
    with pytest.raises(TruncatedError):
        await writer.finish()
    with pytest.raises(OverrunError):
        await writer.write(b"56789")
    await write_all(writer, b"5678")
    assert flash.peek(0, 8) == b"12345678"


async def test_a_writer_that_was_given_up_takes_nothing() -> None:
    flash = NorSimulator(GEOMETRY)
    writer = NorWriter(flash, Area(0, 64), 8)
    await writer.abort()
    await writer.abort()
    with pytest.raises(FlashError, match="given up"):
        await writer.write(b"1234")
    with pytest.raises(FlashError, match="given up"):
        await writer.finish()
    assert not flash.operations.counts


async def test_a_writer_that_failed_has_a_hole_and_takes_nothing_more() -> None:
    flash = NorSimulator(GEOMETRY)
    writer = NorWriter(flash, Area(0, 64), 8)

    def fail(_: Operation) -> None:
        raise EraseError("worn out")

    flash.operations.before = fail
    with pytest.raises(EraseError):
        await writer.write(b"1234")
    flash.operations.before = None
    with pytest.raises(FlashError, match="given up"):
        await writer.write(b"5678")


@pytest.mark.parametrize("cancelled_at", range(4))
async def test_cancellation_lands_between_operations(make: Make, cancelled_at: int) -> None:
    flash, done = make(), list[tuple[Kind, str]]()
    writer = NorWriter(flash, Area(0, 128), 80)
    with anyio.CancelScope() as scope:

        def before(operation: Operation) -> None:
            done.append((operation.kind, "begun"))
            if operation.index == cancelled_at:
                scope.cancel()

        flash.operations.before = before
        flash.operations.after = lambda operation: done.append((operation.kind, "done"))
        await writer.write(b"x" * 80)
    assert scope.cancelled_caught
    assert len(done) == 2 * (cancelled_at + 1)  # the operation under way was finished, and none was begun after it
    assert all(end == "done" for (_, begin), (_, end) in pairwise(done) if begin == "begun")
    with pytest.raises(FlashError, match="given up"):
        await writer.write(b"")
