"""Actions and jobs: how a piece of flash memory is rewritten."""

from collections.abc import Generator

import pytest
from hypothesis import given, strategies as st

from mgota.core.geometry import Area, Geometry, Region, uniform
from mgota.core.nor import Action, Erase, Program, Read, occupied, rewrite
from mgota.errors import EraseError, ProgramError
from mgota.testing import BadFlash, Flaw, Kind, NorSimulator
from mgota.testing.jobs import KeptBeside, carry_out_now

WCH = bytes.fromhex("39e339e3")
GEOMETRIES = (
    uniform(256, 64),
    uniform(256, 64, program_unit=4, erased=WCH),
    uniform(2048, 512, program_unit=256),
    uniform(4096, 1024, program_unit=512),
    Geometry((Region(0, 32, 16), Region(32, 96, 32)), program_unit=8, erased=b"\0"),
)


def padded(geometry: Geometry, data: bytes) -> bytes:
    """Data up to whole units."""
    whole = -(-len(data) // geometry.program_unit) * geometry.program_unit
    return data + geometry.blank(whole)[len(data) :]


@given(st.sampled_from(GEOMETRIES), st.lists(st.booleans(), max_size=16), st.data())
def test_occupied_ends_with_the_last_unit_that_is_not_blank(
    geometry: Geometry, used: list[bool], draw: st.DataObject
) -> None:
    unit = geometry.program_unit
    data = bytearray(geometry.blank(len(used) * unit))
    for index, each in enumerate(used):
        if each:
            data[index * unit + draw.draw(st.integers(0, unit - 1))] ^= 0x80
    last = max((index + 1 for index, each in enumerate(used) if each), default=0)
    assert occupied(bytes(data), geometry.blank(len(data)), unit) == last * unit


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_rewritten_area_holds_the_data_whatever_it_held(geometry: Geometry) -> None:
    flash = NorSimulator(geometry)
    sectors = geometry.sectors
    area = Area(sectors[1].start, sectors[1].length + sectors[2].length)
    flash.poke(0, b"\x55" * geometry.size)
    for length in (0, 1, geometry.program_unit, area.length // 2 + 1, area.length):
        data = padded(geometry, bytes(i % 251 for i in range(length)))
        assert carry_out_now(rewrite(geometry, area, data), flash) is True
        assert flash.peek(area.start, area.length) == data + geometry.blank(area.length - len(data))
        assert flash.programmed(area.start + len(data), area.length - len(data)) is None
    rest = geometry.size - area.end
    assert flash.peek(0, area.start) + flash.peek(area.end, rest) == b"\x55" * (area.start + rest)
    assert not flash.operations.broken_rules


def test_blank_units_at_the_end_are_not_programmed_and_those_before_are() -> None:
    geometry = uniform(128, 64, program_unit=4, erased=WCH)
    data = WCH * 3 + b"\1\2\3\4" + WCH * 12
    actions = said(rewrite(geometry, Area(64, 64), data), data)
    assert actions == [Erase(geometry.sectors[1]), Program(64, WCH * 3 + b"\1\2\3\4"), Read(64, 64)]
    blank = WCH * 16
    assert said(rewrite(geometry, Area(64, 64), blank), blank) == [Erase(geometry.sectors[1]), Read(64, 64)]


def said(job: Generator[Action, bytes, bool], answer: bytes) -> list[Action]:
    """What a job asks for when every read gives `answer`."""
    actions: list[Action] = []
    with pytest.raises(StopIteration) as ended:  # noqa: PT012  the job's end ends the loop
        action = next(job)
        while True:
            # As it is now: a view is valid until the next action.
            actions.append(Program(action.offset, bytes(action.data)) if isinstance(action, Program) else action)
            action = job.send(answer if isinstance(action, Read) else b"")
    assert ended.value.value is True
    return actions


@pytest.mark.parametrize("kind", [Kind.ERASE, Kind.PROGRAM])
def test_an_area_that_does_not_take_the_data_is_told(kind: Kind) -> None:
    geometry = uniform(256, 64, program_unit=4)
    flash = NorSimulator(geometry)
    flash.poke(64, b"\x55" * 64)
    bad = BadFlash(flash)
    bad.fail(kind, Flaw.IGNORED, sectors=[geometry.sectors[1]])
    if kind is Kind.ERASE:  # what was there is still there, and the chip refuses to program over it
        with pytest.raises(ProgramError):
            carry_out_now(rewrite(geometry, Area(64, 64), b"\1" * 64), flash)
    else:
        assert carry_out_now(rewrite(geometry, Area(64, 64), b"\1" * 64), flash) is False


def test_a_failure_is_thrown_into_the_job() -> None:
    geometry = uniform(256, 64)
    flash = NorSimulator(geometry)
    BadFlash(flash).fail(Kind.ERASE, Flaw.ERROR)
    job = rewrite(geometry, Area(64, 64), b"\1" * 64)
    with pytest.raises(EraseError):
        carry_out_now(job, flash)
    with pytest.raises(StopIteration):  # ended, not left standing
        next(job)


def test_one_stuck_bit_is_noticed() -> None:
    geometry = uniform(256, 64)
    for offset in (64, 100, 127):
        flash = NorSimulator(geometry)
        BadFlash(flash).stick(offset, 1, 0)
        assert carry_out_now(rewrite(geometry, Area(64, 64), b"\1" * 64), flash) is False
        assert carry_out_now(rewrite(geometry, Area(64, 64), b"\2" * 64), flash) is True  # it stands as it should


def test_what_is_kept_beside_counts_as_an_operation() -> None:
    flash = NorSimulator(uniform(256, 64))
    beside = KeptBeside(flash.operations)
    assert beside.load() is None
    beside.store(b"journal")
    assert (beside.load(), beside.data, flash.operations.changes) == (b"journal", b"journal", 1)
