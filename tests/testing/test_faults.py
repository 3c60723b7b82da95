"""Flash memory that is worn out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mgota.core.geometry import Area, uniform
from mgota.errors import ConfigError, EraseError, FlashError, ProgramError, ReadError
from mgota.testing import ALL_MODES, BadFlash, CutMode, Flaw, Kind, NorSimulator, PowerCut, PowerSupply

GEOMETRY = uniform(256, 64, program_unit=4)
ONE, TWO = GEOMETRY.sectors[1:3]
DATA = bytes(range(64))


def bad_flash(seed: int = 0) -> tuple[NorSimulator, BadFlash]:
    flash = NorSimulator(GEOMETRY)
    return flash, BadFlash(flash, seed=seed)


def test_a_stuck_bit_reads_the_same_whatever_is_programmed() -> None:
    flash, bad = bad_flash()
    bad.stick(70, 0b0101, 0b0100)
    bad.stick(70, 0b1000, 0)
    assert flash.read_now(64, 8) == b"\xff" * 6 + b"\xf6\xff"
    flash.program_now(68, b"\0\0\x0b\0")
    assert flash.read_now(70, 1) == b"\x06"
    assert flash.peek(70, 1) == b"\x0b"
    hits = bad.hits
    assert flash.read_now(71, 4) == b"\0\xff\xff\xff"
    assert bad.hits == hits
    flash.erase_now(ONE)
    assert flash.read_now(70, 1) == b"\xf6"
    bad.mend()
    assert flash.read_now(70, 1) == b"\xff"


def test_bits_stick_somewhere() -> None:
    for seed in range(10):
        flash, bad = bad_flash(seed)
        places = bad.stick_somewhere(5, Area(64, 64))
        flash.program_now(64, bytes(64))
        zero = flash.read_now(64, 64)
        flash.erase_now(ONE)
        one = flash.read_now(64, 64)
        assert len(places) == 5
        wrong = [64 + at for at in range(64) if zero[at] or one[at] != 0xFF]
        assert tuple(wrong) == places
        assert all((zero[at - 64] | one[at - 64] ^ 0xFF).bit_count() == 1 for at in places)
    assert bad_flash(3)[1].stick_somewhere(4) == bad_flash(3)[1].stick_somewhere(4)


def test_what_is_ignored_reports_success() -> None:
    flash, bad = bad_flash()
    bad.fail(Kind.PROGRAM, Flaw.IGNORED, sectors=[ONE])
    bad.fail(Kind.ERASE, Flaw.IGNORED, sectors=[TWO])
    flash.program_now(60, DATA[:8])  # one bad sector is enough
    assert flash.read_now(60, 8) == b"\xff" * 8
    flash.program_now(128, DATA)
    flash.erase_now(TWO)
    assert flash.read_now(128, 64) == DATA
    with pytest.raises(ProgramError, match="not erased"):
        flash.program_now(128, DATA)
    assert bad.hits == 2
    assert flash.operations.changes == 4


def test_what_fails_is_half_done_and_counts_as_programmed() -> None:
    flash, bad = bad_flash()
    bad.fail(Kind.PROGRAM, Flaw.ERROR, at=[1])
    bad.fail(Kind.ERASE, Flaw.ERROR, sectors=[TWO], times=1)
    bad.fail(Kind.READ, Flaw.ERROR, at=[2])
    flash.program_now(0, DATA[:8])
    with pytest.raises(ProgramError, match="could not"):
        flash.program_now(64, bytes(8))
    assert flash.read_now(64, 8) == bytes(4) + b"\xff" * 4
    with pytest.raises(ProgramError, match="not erased"):
        flash.program_now(68, bytes(4))
    flash.program_now(128, DATA)
    with pytest.raises(EraseError):
        flash.erase_now(TWO)
    assert flash.read_now(128, 64) == b"\xff" * 32 + DATA[32:]
    with pytest.raises(ReadError):
        flash.read_now(0, 4)
    flash.erase_now(TWO)
    assert flash.read_now(128, 64) == b"\xff" * 64
    assert bad.hits == 3


def test_indices_count_from_now() -> None:
    flash, bad = bad_flash()
    flash.program_now(0, DATA[:4])
    flash.read_now(0, 4)
    bad.fail(Kind.ERASE, Flaw.ERROR, at=[0])
    bad.fail(Kind.READ, Flaw.ERROR, at=[0])
    with pytest.raises(ReadError):
        flash.read_now(0, 4)
    with pytest.raises(EraseError):
        flash.erase_now(ONE)
    flash.read_now(0, 4)
    flash.erase_now(ONE)


def test_a_fork_is_a_chip_without_flaws() -> None:
    flash, bad = bad_flash()
    bad.fail(Kind.READ, Flaw.ERROR)
    twin = flash.fork()
    assert twin.read_now(0, 4) == b"\xff" * 4
    with pytest.raises(FlashError):
        flash.read_now(0, 4)


@pytest.mark.parametrize(
    "call",
    [
        lambda bad: bad.stick(256, 1, 0),
        lambda bad: bad.stick(0, 0, 0),
        lambda bad: bad.stick(0, 256, 0),
        lambda bad: bad.stick_somewhere(257),
        lambda bad: bad.stick_somewhere(65, Area(0, 64)),
        lambda bad: bad.fail(Kind.OPTION, Flaw.ERROR),
        lambda bad: bad.fail(Kind.READ, Flaw.IGNORED),
    ],
)
def test_flaws_that_no_flash_has_are_refused(call: Callable[[BadFlash], object]) -> None:
    with pytest.raises(ConfigError):
        call(bad_flash()[1])


@pytest.mark.parametrize("mode", ALL_MODES)
def test_the_power_goes_at_an_operation_that_fails_too(mode: CutMode) -> None:
    flash, bad = bad_flash()
    bad.fail(Kind.PROGRAM, Flaw.ERROR, at=[0])
    power = PowerSupply(flash)
    power.cut_at(0, mode)
    with pytest.raises((PowerCut, ProgramError)):
        flash.program_now(64, DATA)
    with pytest.raises(PowerCut):
        flash.read_now(0, 4)
    assert power.gone
    assert power.last
    assert power.last.offset == 64
    power.restore()
    if mode is CutMode.ALL:
        assert flash.read_now(64, 64) == DATA[:32] + b"\xff" * 32


@pytest.mark.asyncio
async def test_a_memory_in_a_file_wears_out_alike(tmp_path: Path) -> None:
    flash = NorSimulator.on_file(tmp_path / "flash", GEOMETRY)
    bad = BadFlash(flash)
    bad.stick(0, 1, 0)
    bad.fail(Kind.PROGRAM, Flaw.IGNORED, at=[0])
    bad.fail(Kind.ERASE, Flaw.ERROR)
    await flash.program(0, DATA)
    assert await flash.read(0, 2) == b"\xfe\xff"
    with pytest.raises(EraseError):
        await flash.erase(ONE)
