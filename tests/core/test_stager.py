"""Chunks in, whole units out: the same flash for any chunking."""

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given, settings, strategies as st

from mgota.core.geometry import Area, Geometry, Region, Sector, uniform
from mgota.core.nor import Erase, Operation, Program
from mgota.core.stager import Stager, whole_sectors
from mgota.errors import ConfigError, OverrunError, TooLargeError, TruncatedError
from mgota.flash.simulator import Kind, NorSimulator

GEOMETRY = Geometry((Region(0, 64, 32), Region(64, 128, 64)), program_unit=8)
AREA = Area(32, 160)


def stage(stager: Stager, *chunks: bytes) -> list[Operation]:
    return [operation for chunk in chunks for operation in stager.feed(chunk)] + list(stager.finish())


def test_one_chunk_is_erases_and_then_one_program_that_is_a_view_of_it() -> None:
    image = bytes(range(72))
    stager = Stager(GEOMETRY, AREA, 72)
    *erases, program = stager.feed(image)
    assert erases == [Erase(Sector(32, 32)), Erase(Sector(64, 64))]
    assert isinstance(program, Program)
    assert program.offset == 32
    assert isinstance(program.data, memoryview)
    assert program.data.obj is image
    assert program.data == image
    assert list(stager.finish()) == [Erase(Sector(128, 64))]


def test_only_the_carry_is_copied() -> None:
    first, second = b"abc", b"defghijklmnopqrstu"
    stager = Stager(GEOMETRY, AREA, 21)
    assert list(stager.feed(first)) == []
    erase, head, bulk = stager.feed(second)
    assert erase == Erase(Sector(32, 32))
    assert head == Program(32, b"abcdefgh")
    assert isinstance(bulk, Program)
    assert isinstance(bulk.data, memoryview)
    assert bulk.data.obj is second
    assert (bulk.offset, bytes(bulk.data)) == (40, b"ijklmnop")
    assert list(stager.finish()) == [
        Program(48, b"qrstu\xff\xff\xff"),
        Erase(Sector(64, 64)),
        Erase(Sector(128, 64)),
    ]


def test_a_pad_that_enters_a_sector_erases_it_first() -> None:
    stager = Stager(GEOMETRY, AREA, 33)
    operations = stage(stager, bytes(33))
    assert operations[-3:] == [Erase(Sector(64, 64)), Program(64, b"\x00" + b"\xff" * 7), Erase(Sector(128, 64))]


def test_a_pad_of_a_longer_pattern_keeps_its_phase() -> None:
    geometry = uniform(64, 32, program_unit=8, erased=b"\x39\xe3")
    operations = stage(Stager(geometry, Area(0, 32), 3), b"abc")
    assert operations[1] == Program(0, b"abc\xe3\x39\xe3\x39\xe3")


def test_a_chunk_of_wider_items_counts_in_bytes() -> None:
    stager = Stager(GEOMETRY, AREA, 16)
    _, program = stager.feed(memoryview(bytes(range(16))).cast("I"))
    assert isinstance(program, Program)
    assert bytes(program.data) == bytes(range(16))


def test_empty_chunks_do_nothing() -> None:
    stager = Stager(GEOMETRY, AREA, 8)
    assert list(stager.feed(b"")) == []
    assert stager.received == 0


def test_more_than_declared_takes_nothing() -> None:
    stager = Stager(GEOMETRY, AREA, 8)
    list(stager.feed(b"1234"))
    with pytest.raises(OverrunError):
        stager.feed(b"56789")
    assert stager.received == 4
    assert next(iter(stager.feed(b"5678"))) == Erase(Sector(32, 32))


def test_less_than_declared_does_not_finish() -> None:
    stager = Stager(GEOMETRY, AREA, 8)
    list(stager.feed(b"1234567"))
    with pytest.raises(TruncatedError) as caught:
        stager.finish()
    assert (caught.value.received, caught.value.size) == (7, 8)


def test_what_does_not_fit_is_refused() -> None:
    Stager(GEOMETRY, AREA, 160)
    with pytest.raises(TooLargeError):
        Stager(GEOMETRY, AREA, 161)
    with pytest.raises(ConfigError):
        Stager(GEOMETRY, Area(16, 32), 1)


def test_an_image_that_fills_the_slot_leaves_nothing_to_finish() -> None:
    stager = Stager(GEOMETRY, AREA, 160)
    list(stager.feed(bytes(160)))
    assert list(stager.finish()) == []


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    erased = draw(st.sampled_from([b"\xff", b"\x00", b"\x39\xe3", b"\xef\xbe\xad\xde"]))
    unit = draw(st.integers(1, 32 // len(erased))) * len(erased)
    regions: list[Region] = []
    start = unit * draw(st.integers(0, 3))
    for _ in range(draw(st.integers(1, 4))):
        sector = unit * draw(st.integers(1, 9))
        length = sector * draw(st.integers(1, 4))
        regions.append(Region(start, length, sector))
        start += length
    return Geometry(tuple(regions), unit, erased)


def cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    start = 0
    for end in [*sorted(cuts), len(data)]:
        yield data[start:end]  # empty where two cuts fall together
        start = end


def program(flash: NorSimulator, area: Area, image: bytes, chunks: Iterator[bytes]) -> bytes:
    """What the whole area holds after the image was staged in these chunks; the simulator judges each operation."""

    async def perform() -> None:
        flash.poke(area.start, b"\x5a" * area.length)  # an older image
        for operation in stage(Stager(flash.geometry, area, len(image)), *chunks):
            if isinstance(operation, Erase):
                await flash.erase(operation.sector)
            else:
                await flash.program(operation.offset, operation.data)

    asyncio.run(perform())
    return flash.peek(area.start, area.length)


@settings(deadline=None)
@given(st.data(), geometries())
def test_any_chunking_gives_the_same_flash_and_breaks_no_rule(data: st.DataObject, geometry: Geometry) -> None:
    first = data.draw(st.integers(0, len(geometry.sectors) - 1))
    last = data.draw(st.integers(first, len(geometry.sectors) - 1))
    start = geometry.sectors[first].start
    area = geometry.slot_area(start, geometry.sectors[last].end - start)
    image = data.draw(st.binary(max_size=area.length))
    cuts = data.draw(st.lists(st.integers(0, len(image)), max_size=12))
    base = geometry.sectors[0].start
    blank = NorSimulator(geometry)
    blank.poke(base, b"\xa5" * (geometry.size - base))  # units count as programmed: an erase that is missing shows
    whole, pieces = blank.fork(), blank.fork()

    content = program(pieces, area, image, cut(image, cuts))

    assert content == program(whole, area, image, iter([image]))
    assert content == image + geometry.blank(area.length)[len(image) :]
    assert pieces.operations.counts[Kind.ERASE] == last - first + 1
    assert pieces.peek(base, start - base) == b"\xa5" * (start - base)
    assert set(pieces.peek(area.end, geometry.size - area.end)) <= {0xA5}


@pytest.mark.parametrize(
    ("size", "start"), [(0, 0), (1, 0), (31, 0), (32, 32), (95, 32), (96, 96), (159, 96), (160, 160)]
)
def test_an_image_goes_on_where_a_sector_begins(size: int, start: int) -> None:
    assert whole_sectors(GEOMETRY, AREA, size) == start


@pytest.mark.parametrize("start", [0, 32, 96, 160])
def test_what_is_there_already_is_left_alone(start: int) -> None:
    image = bytes(range(160))
    stager = Stager(GEOMETRY, AREA, 160, start=start)
    assert (stager.received, stager.stored) == (start, start)
    operations = stage(stager, image[start:])
    erased = [operation.sector.start for operation in operations if isinstance(operation, Erase)]
    assert erased == [at for at in (32, 64, 128) if at >= 32 + start]
    programs = [operation for operation in operations if isinstance(operation, Program)]
    assert b"".join(bytes(program.data) for program in programs) == image[start:]
    assert all(program.offset >= 32 + start for program in programs)
    assert stager.stored == 160


def test_what_was_programmed_is_counted_in_whole_units() -> None:
    stager = Stager(GEOMETRY, AREA, 40, start=32)
    assert (list(stager.feed(b"abc")), stager.stored) == ([], 32)
    list(stager.feed(b"defgh"))
    assert stager.stored == 40


@pytest.mark.parametrize(("size", "start"), [(100, 31), (100, 64), (31, 32)])
def test_an_image_cannot_go_on_inside_a_sector_or_behind_its_end(size: int, start: int) -> None:
    with pytest.raises(ConfigError):
        Stager(GEOMETRY, AREA, size, start=start)
