"""What every implementation of a Protocol promises, asserted: `check_nor_flash` and `check_state_store`.

    async def test_my_flash_keeps_its_promises():
        await check_nor_flash(MyFlash)

Rules:
- a battery asserts what the docstrings of `mgota.ports` say, and nothing else;
- `make` is called wherever a device would boot: what survives a boot has to survive between two calls;
- a promise that is broken is an AssertionError that names it; errors of the medium itself pass through.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from inspect import isawaitable
from itertools import pairwise
from random import Random
from typing import TypeVar, cast

from mgota.core.geometry import Area, Geometry, Sector, Slot
from mgota.core.record import KNOWN_BY, MAX_EARLIER, MAX_RECORD, MAX_TEXT, BootRecord, Outcome, SlotImage, State
from mgota.errors import EraseError, OtaError, ProgramError, ReadError, StateError
from mgota.ports import NorFlash, StateStore

T = TypeVar("T")

Make = Callable[[], T | Awaitable[T]]

RECORDS = 100
"""How many records are stored one after another: logs must be full more than once."""


def require(holds: object, promise: str) -> None:
    """Assert.

    Raises:
        AssertionError: the promise is broken.
    """
    if not holds:
        raise AssertionError(promise)


async def booted(make: Make[T]) -> T:
    """What `make` makes, be it a coroutine function or a plain one."""
    made = make()
    return cast(T, await made if isawaitable(made) else made)


async def refused(call: Awaitable[object], error: type[OtaError], promise: str) -> None:
    """Assert that a call fails as it should.

    Raises:
        AssertionError: it does not, or with another error.
    """
    try:
        await call
    except error:
        return
    except Exception as exc:
        raise AssertionError(f"{promise}: a {error.__name__} should come, and {exc!r} came") from exc
    raise AssertionError(f"{promise}: a {error.__name__} should come, and nothing did")


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes without a pattern."""
    return Random(seed).randbytes(size)  # noqa: S311  nothing is kept secret here


async def check_nor_flash(make: Make[NorFlash]) -> None:
    """Assert what `NorFlash` promises. What is in the memory is lost.

    Args:
        make: makes the memory; called once.

    Raises:
        AssertionError: a promise is broken.
    """
    flash = await booted(make)
    require(isinstance(cast(object, flash), NorFlash), "a NorFlash has geometry, read, erase and program")
    require(isinstance(cast(object, flash.geometry), Geometry), "the geometry is a Geometry")
    for sector in _chosen(flash.geometry):
        await _check_erasing(flash, sector)
        await _check_programming(flash, sector)
        await _check_refusals(flash, sector)
    for one, two in _neighbours(flash.geometry):
        await _check_neighbours(flash, one, two)
    await _check_outside(flash)


def _chosen(geometry: Geometry) -> list[Sector]:
    """The first and the last sector of each region."""
    chosen = [geometry.sectors[geometry.index_at(region.start)] for region in geometry.regions]
    chosen += [geometry.sectors[geometry.index_at(region.end - 1)] for region in geometry.regions]
    return sorted(set(chosen), key=lambda sector: sector.start)


def _neighbours(geometry: Geometry) -> Iterator[tuple[Sector, Sector]]:
    """Pairs without a hole between them: one inside a region, and wherever two regions meet."""
    lasts = {_sector_at(geometry, region.end - 1).start for region in geometry.regions}
    wanted = {geometry.regions[0].start, *lasts}
    for one, two in pairwise(geometry.sectors):
        if one.end == two.start and one.start in wanted:
            yield one, two


def _sector_at(geometry: Geometry, offset: int) -> Sector:
    """The sector at an offset."""
    return geometry.sectors[geometry.index_at(offset)]


async def _check_erasing(flash: NorFlash, sector: Sector) -> None:
    await flash.erase(sector)
    await flash.program(sector.start, noise(sector.length))
    await flash.erase(sector)
    found = await flash.read(sector.start, sector.length)
    require(found == flash.geometry.blank(sector.length), "an erased sector reads as the erased pattern")


async def _check_programming(flash: NorFlash, sector: Sector) -> None:
    unit, blank = flash.geometry.program_unit, flash.geometry.blank(sector.length)
    units = min(sector.length // unit, 5)
    data = bytearray(noise(units * unit, 1))
    wanted = bytes(data) + blank[len(data) :]
    await flash.program(sector.start, memoryview(data)[:unit])
    await flash.program(sector.start + unit, data[unit:])
    data[:] = bytes(len(data))
    require(
        await flash.read(sector.start, sector.length) == wanted, "what was programmed is read, and the rest is blank"
    )
    for start, end in ((0, 0), (0, 1), (unit - 1, unit + 1), (1, units * unit), (sector.length - 1, sector.length)):
        found = await flash.read(sector.start + start, min(end, sector.length) - start)
        require(found == wanted[start:end], "a read has any offset and any size, and gives exactly that")
    await flash.program(sector.start, b"")
    require(await flash.read(sector.start, sector.length) == wanted, "a program of no units changes nothing")


async def _check_refusals(flash: NorFlash, sector: Sector) -> None:
    """The sector holds some programmed units at its start."""
    unit, start = flash.geometry.program_unit, sector.start
    units = min(sector.length // unit, 5)
    before = await flash.read(start, sector.length)

    async def unchanged(promise: str) -> None:
        require(await flash.read(start, sector.length) == before, f"{promise}: it changed something all the same")

    twice = "a unit is programmed once per erase"
    for first, count in ((0, 1), (units - 1, 1), (0, sector.length // unit)):
        data = noise(count * unit, 2)
        await refused(flash.program(start + first * unit, data), ProgramError, twice)
        await unchanged(twice)
    whole = "only whole units are programmed"
    if unit > 1:
        for offset, size in ((0, unit - 1), (0, unit + 1), (1, unit), (unit - 1, 1)):
            at = start + (sector.length - 2 * unit if sector.length // unit > units + 1 else 0) + offset
            await refused(flash.program(at, noise(size)), ProgramError, whole)
            await unchanged(whole)
    for wrong in (Sector(start + unit, sector.length), Sector(start, sector.length + unit), Sector(start, unit)):
        if wrong not in flash.geometry.sectors:
            await refused(flash.erase(wrong), EraseError, "only sectors are erased")
            await unchanged("only sectors are erased")


async def _check_neighbours(flash: NorFlash, one: Sector, two: Sector) -> None:
    unit = flash.geometry.program_unit
    for sector in (one, two):
        await flash.erase(sector)
    data = noise(2 * unit, 3)
    await flash.program(one.end - unit, data)
    require(await flash.read(one.end - unit, 2 * unit) == data, "a program and a read may span two sectors")
    await flash.erase(two)
    found = await flash.read(one.end - unit, 2 * unit)
    require(found == data[:unit] + flash.geometry.blank(unit), "an erase ends where its sector ends")
    await flash.program(two.start, data[unit:])
    await flash.erase(one)
    found = await flash.read(one.end - unit, 2 * unit)
    require(found == flash.geometry.blank(unit) + data[unit:], "an erase begins where its sector begins")


async def _check_outside(flash: NorFlash) -> None:
    geometry = flash.geometry
    unit, last = geometry.program_unit, geometry.sectors[-1]
    await flash.erase(last)
    ranges = [Area(last.end - unit, 2 * unit), Area(last.end, unit)]
    for one, two in pairwise(geometry.regions):
        if one.end != two.start:
            ranges += [Area(one.end, unit), Area(one.end - unit, two.start - one.end + 2 * unit)]
            await flash.erase(_sector_at(geometry, one.end - 1))
            await flash.erase(_sector_at(geometry, two.start))
    for area in ranges:
        await refused(flash.read(area.start, area.length), ReadError, "what is not all there is not read")
        await refused(
            flash.program(area.start, bytes(area.length)), ProgramError, "what is not there is not programmed"
        )
        await refused(flash.erase(Sector(area.start, area.length)), EraseError, "what is not there is not erased")
    found = await flash.read(last.start, last.length)
    require(found == geometry.blank(last.length), "a program that is refused changes nothing, at the memory's end too")


SMALLEST = BootRecord()
LARGEST = BootRecord(
    revision=2**31,
    state=State.FAILED,
    trial=Slot.B,
    swaps=3,
    tries=99,
    select_failures=3,
    staged=Slot.B,
    a=SlotImage(
        size=2**40,
        image_size=2**40 + 68,
        sha256="a" * 64,
        version="1" * 64,
        proven=True,
        image_sha256="d" * 64,
        sequence=2**40,
    ),
    b=SlotImage(
        size=2**40,
        image_size=2**40 + 68,
        sha256="b" * 64,
        version="2" * 64,
        proven=True,
        image_sha256="e" * 64,
        sequence=2**40,
    ),
    outcome=Outcome.ROLLED_BACK,
    reason="r" * MAX_TEXT,
    failed_sha256="c" * 64,
    floor="9" * 64,
    failed_image_sha256="f" * 64,
    failed_version="3" * 64,
    failed_earlier=("7" * KNOWN_BY,) * MAX_EARLIER,
    sequence=2**40,
)
"""As long as mgota makes one: a version has at most 64 characters, a reason 500. Rotations of keys that a device has
followed come on top: up to 1100 bytes, and 250 for the first one to a single key."""


async def check_state_store(
    make: Make[StateStore], *, damage: Callable[[], object] | None = None, largest: BootRecord = LARGEST
) -> None:
    """Assert what `StateStore` promises.

    Args:
        make: makes the store, at every boot anew; before the first call nothing was ever stored.
        damage: spoils what is stored, so that it cannot be read; a coroutine function, or a plain one.
        largest: the largest record that it has to take.

    Raises:
        AssertionError: a promise is broken.
    """
    store = await booted(make)
    require(isinstance(cast(object, store), StateStore), "a StateStore has load and store")
    for _ in range(2):
        require(await store.load() is None, "a store that holds nothing loads None")
        store = await booted(make)
    for record in (SMALLEST, largest, replace(SMALLEST, reason="häufig ✓"), *_many(), largest, SMALLEST):
        await store.store(record)
        require(await store.load() == record, "what was stored is loaded")
        if record.revision % 3 == 0:
            store = await booted(make)
            require(await store.load() == record, "what was stored is loaded after a boot")
    await _check_too_long(make)
    if damage:
        await _check_damage(make, damage)


def _many() -> Iterator[BootRecord]:
    record = BootRecord(a=SlotImage(size=1, image_size=65, sha256="0" * 64))
    for index in range(RECORDS):
        on_trial = index % 4 in (1, 2)
        record = record.next(
            state=(State.TESTING if index % 4 == 1 else State.FAILED) if on_trial else State.CONFIRMED,
            trial=Slot.B if on_trial else None,
            reason="r" * (index * 5 % MAX_TEXT) or None,
        )
        yield record


async def _check_too_long(make: Make[StateStore]) -> None:
    store = await booted(make)
    record = replace(SMALLEST, revision=7)
    await store.store(record)
    long = replace(SMALLEST, reason="r" * (MAX_RECORD + 1))
    try:
        await store.store(long)
    except StateError:
        pass
    except Exception as exc:
        raise AssertionError(f"a record that cannot be stored is a StateError, and {exc!r} came") from exc
    else:
        record = long
    for each in (store, await booted(make)):
        require(await each.load() == record, "a record is stored entirely or not at all")


async def _check_damage(make: Make[StateStore], damage: Callable[[], object]) -> None:
    spoilt = damage()
    if isawaitable(spoilt):
        await spoilt
    store = await booted(make)
    for _ in range(2):
        await refused(store.load(), StateError, "what cannot be read is no record, and not none either")
    record = replace(SMALLEST, revision=9)
    await store.store(record)
    require(await store.load() == record, "a record can be stored over what cannot be read")
    require(await (await booted(make)).load() == record, "a record that was stored over damage is loaded after a boot")
