"""Sectors, areas and slots of flash memories as irregular as they come."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from mgota.core.geometry import Area, Geometry, Region, Sector, Slot, uniform
from mgota.errors import ConfigError

# An STM32F4's first sectors, a hole, and a uniform rest.
IRREGULAR = Geometry((Region(0, 64, 16), Region(64, 64, 64), Region(256, 256, 128)), program_unit=4, erased=b"\xff\x00")


def test_slots_are_each_others_other() -> None:
    assert [slot.other for slot in Slot] == [Slot.B, Slot.A]
    assert [str(slot) for slot in Slot] == ["a", "b"]


def test_sectors_come_in_order_and_leave_holes_out() -> None:
    assert IRREGULAR.sectors == (
        Sector(0, 16), Sector(16, 16), Sector(32, 16), Sector(48, 16), Sector(64, 64),
        Sector(256, 128), Sector(384, 128),
    )  # fmt: skip
    assert IRREGULAR.size == 512
    assert IRREGULAR.sectors[4].end == 128


@pytest.mark.parametrize(("offset", "index"), [(0, 0), (15, 0), (16, 1), (127, 4), (256, 5), (511, 6)])
def test_a_byte_lies_in_one_sector(offset: int, index: int) -> None:
    assert IRREGULAR.index_at(offset) == index


@pytest.mark.parametrize("offset", [-1, 128, 255, 512, 1 << 40])
def test_a_hole_belongs_to_no_sector(offset: int) -> None:
    with pytest.raises(ConfigError, match="no sector holds"):
        IRREGULAR.index_at(offset)


@pytest.mark.parametrize(
    ("area", "starts"),
    [
        (Area(0, 16), [0]),
        (Area(0, 17), [0, 16]),
        (Area(15, 2), [0, 16]),
        (Area(40, 40), [32, 48, 64]),
        (Area(100, 200), [64, 256]),
        (Area(384, 4096), [384]),
        (Area(20, 0), []),
        (Area(200, 0), []),
    ],
)
def test_the_sectors_of_an_area(area: Area, starts: list[int]) -> None:
    assert [sector.start for sector in IRREGULAR.sectors_in(area)] == starts


def test_an_area_that_begins_in_a_hole_has_no_sectors() -> None:
    with pytest.raises(ConfigError):
        list(IRREGULAR.sectors_in(Area(130, 4)))


@pytest.mark.parametrize(("start", "length"), [(0, 128), (0, 16), (48, 80), (256, 256), (256, 128)])
def test_a_slot_is_a_run_of_whole_sectors(start: int, length: int) -> None:
    assert IRREGULAR.slot_area(start, length) == Area(start, length)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 0), (8, 24), (0, 24), (64, 320), (0, 512), (256, 512), (384, 129), (128, 128)],
    ids=["empty", "begins inside", "ends inside", "a hole", "all", "beyond", "one too many", "in the hole"],
)
def test_anything_else_is_no_slot(start: int, length: int) -> None:
    with pytest.raises(ConfigError):
        IRREGULAR.slot_area(start, length)


def test_blank_bytes_repeat_the_pattern() -> None:
    assert [IRREGULAR.blank(n) for n in range(4)] == [b"", b"\xff", b"\xff\x00", b"\xff\x00\xff"]
    assert uniform(8, 8).blank(3) == b"\xff\xff\xff"


@pytest.mark.parametrize(
    ("regions", "unit", "erased"),
    [
        ((), 1, b"\xff"),
        ((Region(0, 64, 16),), 0, b"\xff"),
        ((Region(0, 64, 16),), 1, b""),
        ((Region(0, 64, 16),), 3, b"\xff\x00"),
        ((Region(0, 60, 16),), 1, b"\xff"),
        ((Region(0, 64, 0),), 1, b"\xff"),
        ((Region(0, 0, 16),), 1, b"\xff"),
        ((Region(0, -16, 16),), 1, b"\xff"),
        ((Region(0, 64, 16),), 32, b"\xff"),
        ((Region(2, 64, 16),), 4, b"\xff"),
        ((Region(-16, 64, 16),), 1, b"\xff"),
        ((Region(64, 64, 16), Region(0, 64, 16)), 1, b"\xff"),
        ((Region(0, 64, 16), Region(48, 64, 16)), 1, b"\xff"),
    ],
)
def test_numbers_that_contradict_each_other_are_a_config_error(
    regions: tuple[Region, ...], unit: int, erased: bytes
) -> None:
    with pytest.raises(ConfigError):
        Geometry(regions, unit, erased)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    unit = draw(st.sampled_from([1, 2, 4, 16]))
    regions, end = [], 0
    for _ in range(draw(st.integers(1, 4))):
        start = end + unit * draw(st.integers(0, 3))
        sector = unit * draw(st.integers(1, 5))
        regions.append(Region(start, sector * draw(st.integers(1, 4)), sector))
        end = regions[-1].end
    return Geometry(tuple(regions), unit)


@given(geometries())
def test_sectors_and_bytes_agree_in_any_geometry(geometry: Geometry) -> None:
    owners = {at: index for index, s in enumerate(geometry.sectors) for at in range(s.start, s.end)}
    for offset in range(-1, geometry.size + 1):
        if offset in owners:
            assert geometry.index_at(offset) == owners[offset]
        else:
            with pytest.raises(ConfigError):
                geometry.index_at(offset)


@given(geometries(), st.integers(0, 120), st.integers(0, 120))
def test_a_slot_in_any_geometry_is_covered_without_a_rest(geometry: Geometry, start: int, length: int) -> None:
    try:
        area = geometry.slot_area(start, length)
    except ConfigError:
        return
    sectors = list(geometry.sectors_in(area))
    assert [b.start - a.end for a, b in pairwise(sectors)] == [0] * (len(sectors) - 1)
    assert (sectors[0].start, sectors[-1].end) == (start, start + length)
