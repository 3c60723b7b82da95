"""A backend's whole life, with the power cut at every operation, in every mode, and cut again during the recovery.

    def build(flash: NorSimulator) -> FlashBackend:           called at every boot: memory is lost, flash is not
        return MyBackend(flash)

    report = anyio.run(every_power_cut, build, geometry)
    report.check()
    print(report)

Rules:
- a device is built on simulated flash memory, driven by a real `Device` and a boot record that is stored atomically;
- each *life* is run once without a cut, which counts its operations, and then once for each operation and mode, where
  what is left changes its mind after one read, two and three;
- after a cut the device boots until it settles, and at every boot the rules of `mgota.testing.bench` hold; then the
  update is sent once more, must come up, be committed, and run;
- nothing is drawn but from the seed: a brick is found again by `only=brick`.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from inspect import isawaitable
from random import Random
from zlib import crc32

import anyio

from mgota.core.boot import Verdict, provision_steps
from mgota.core.geometry import Geometry, Slot
from mgota.core.record import BootRecord
from mgota.device import Device
from mgota.flash.operations import Kind, Operation
from mgota.flash.simulator import NorSimulator
from mgota.ports import StateStore
from mgota.session import provision
from mgota.testing.bench import Bench, BrickedError, Build, CellState, MakeState, Restarted, why
from mgota.testing.power import ALL_MODES, ATOMIC_MODES, READS, WAVERING_MODES, CutMode, PowerCut
from mgota.testing.report import Brick, Cut, Life, Report
from mgota.trial import commit, rollback

NEVER_CAME = "the operation never came: what the backend does depends on more than flash and cells"

Factory = Callable[[NorSimulator, bytes], object]


async def every_power_cut(
    build: Build,
    geometry: Geometry,
    *,
    modes: Iterable[CutMode] = ALL_MODES,
    recuts: Iterable[CutMode] = (),
    lives: Iterable[Life] = tuple(Life),
    seed: int = 0,
    old: bytes | None = None,
    new: bytes | None = None,
    factory: Factory | None = None,
    state: MakeState | None = None,
    only: Brick | None = None,
) -> Report:
    """Prove a backend: cut the power at every operation of its life.

    Args:
        build: makes the backend, at every boot anew; a coroutine function, or a plain one. What survives a boot is
            `flash`, and what the backend keeps in `flash.cell(name)` and `flash.register(name)`.
        geometry: of the memory.
        modes: of the cuts.
        recuts: modes of a second cut, at every operation of the recovery from the first; none by default.
        lives: what the device lives through.
        seed: of everything that is drawn.
        old: the first image; by default one of some sectors, and not of whole program units.
        new: the image that it is updated to.
        factory: puts the first image into the memory, for a backend that does not write the running slot.
        state: makes the state store from `flash`, at every boot; by default a record in a cell.
        only: nothing but this brick again; `modes`, `recuts`, `lives` and `seed` are its own then.

    Raises:
        AssertionError: the first image does not run, without any cut.
        OtaError: the first image could not be provisioned.
    """
    if only:
        seed = only.seed
        first, second = (*only.cuts, None, None)[:2]
        lives, modes = [only.life], [first.mode] if first else []
        recuts = [second.mode] if second else []
    bench = Bench(NorSimulator(geometry), build, state or _state_in_a_cell, images={}, may_run=set(Slot), seed=seed)
    proof = _Proof(bench, modes=tuple(map(CutMode, modes)), recuts=tuple(map(CutMode, recuts)), seed=seed, only=only)
    with _silence():
        try:
            await proof.prepare(old, new, factory)
        except BrickedError as exc:
            raise AssertionError(f"the device did not leave the factory: {exc}") from exc
        for life in lives:
            await proof.prove(Life(life))
    return proof.report()


class _Proof:
    """One call of `every_power_cut`."""

    def __init__(
        self, factory: Bench, *, modes: tuple[CutMode, ...], recuts: tuple[CutMode, ...], seed: int, only: Brick | None
    ) -> None:
        self._modes, self._recuts, self._seed = modes, recuts, seed
        self._only = only.cuts if only else None
        self._operations: dict[Life, int] = {}
        self._cuts = self._second_cuts = 0
        self._bricks: list[Brick] = []
        self._starts = {Life.UPDATE: factory}
        self._old = self._new = b""
        self._chunk = max(region.sector for region in factory.flash.geometry.regions) * 2 // 3 | 1

    def report(self) -> Report:
        """What was done so far."""
        return Report(self._operations, self._modes, self._cuts, self._second_cuts, tuple(self._bricks))

    async def prepare(self, old: bytes | None, new: bytes | None, factory: Factory | None) -> None:
        """The device leaves the factory: the old image runs."""
        bench = self._starts[Life.UPDATE]
        device = await bench.start()
        room, sector = await device.flash.capacity(), max(region.sector for region in bench.flash.geometry.regions)
        self._old = old or firmware("1", min(room, 2 * sector + sector // 3) - 3)
        self._new = new or firmware("2", min(room, sector + sector // 2) - 5)
        bench.images.update({sha256(each).hexdigest(): each for each in (self._old, self._new)})
        if factory is None:
            await provision(device, _whole(self._old), size=len(self._old))
        else:
            made = factory(bench.flash, self._old)
            if isawaitable(made):
                await made
            device = await bench.start()
            slot = await device.flash.running_slot()
            image = (await device.read_back(slot, len(self._old))).image
            await device.perform(*provision_steps(BootRecord(), slot, image))
        device, _ = await bench.boot()
        await bench.runs(device, self._old)

    async def prove(self, life: Life) -> None:
        """One life: without a cut, and with a cut at every operation."""
        start = self._starts[Life.UPDATE]
        for before in BEFORE[life]:
            start = start.fork(seed=self._seed)
            problem = await self._attempt(start, self._live(before, start))
            if problem:
                self._lost(before, (), problem)
                return
        clean = start.fork(seed=self._seed)
        clean.listen()
        problem = await self._attempt(clean, self._live(life, clean))
        self._operations[life] = len(clean.log)
        if problem:
            self._lost(life, (), problem)
            return
        if life is Life.FULL:
            return
        for cut in _cuts(clean.log, self._modes, self._only[0] if self._only else None):
            await self._cut(life, start, cut)

    async def _cut(self, life: Life, start: Bench, cut: Cut) -> None:
        bench = start.fork(seed=self._seed)
        bench.power.cut_at(cut.index, cut.mode, reads=cut.reads)
        problem = await self._attempt(bench, self._live(life, bench))
        self._cuts += 1
        if not bench.power.gone:
            self._lost(life, (cut,), problem or NEVER_CAME)
            return
        bench.power.restore()
        again = bench.fork(seed=crc32(f"{self._seed} {cut.index} {cut.mode}".encode()))
        bench.listen()
        problem = await self._attempt(bench, self._recover(bench))
        recovery = bench.log.copy()
        problem = problem or await self._attempt(bench, self._retry(bench))
        if problem:
            self._lost(life, (cut,), problem)
            return
        for second in _cuts(recovery, self._recuts, self._only[1] if self._only and len(self._only) > 1 else None):
            await self._cut_again(life, again, cut, second)

    async def _cut_again(self, life: Life, start: Bench, first: Cut, second: Cut) -> None:
        bench = start.fork(seed=start.seed)
        bench.power.cut_at(second.index, second.mode, reads=second.reads)
        problem = await self._attempt(bench, self._recover(bench))
        self._second_cuts += 1
        if not bench.power.gone:
            self._lost(life, (first, second), problem or NEVER_CAME)
            return
        bench.power.restore()
        problem = await self._attempt(bench, self._recover(bench)) or await self._attempt(bench, self._retry(bench))
        if problem:
            self._lost(life, (first, second), problem)

    def _lost(self, life: Life, cuts: tuple[Cut, ...], what: str) -> None:
        brick = Brick(life, cuts, self._seed, what)
        if brick not in self._bricks:  # a life that another one begins with
            self._bricks.append(brick)

    async def _attempt(self, bench: Bench, work: Awaitable[None]) -> str | None:
        """Do it. Returns what went wrong, unless it was the power."""
        try:
            await work
        except (KeyboardInterrupt, SystemExit, anyio.get_cancelled_exc_class()):
            raise
        except (Exception, BrickedError, PowerCut, Restarted) as exc:  # noqa: BLE001  it is a user's backend
            return None if bench.power.gone else why(exc)
        except BaseExceptionGroup as exc:  # the same, out of a task group
            if exc.split((Exception, BrickedError, PowerCut, Restarted))[1]:
                raise
            return None if bench.power.gone else why(exc)
        return None

    async def _live(self, life: Life, bench: Bench) -> None:
        device, verdict = await bench.boot()
        match life:
            case Life.UPDATE:
                await bench.update(device, self._new, self._chunk)
                return
            case Life.FULL:
                await self._fill(bench, device)
                return
            case Life.COMMIT:
                await _commit(device)
            case Life.RETURN | Life.REGRET:
                await _roll_back(device)
            case Life.SECOND_UPDATE:
                await bench.update(device, self._old, self._chunk)
                device, verdict = await bench.boot()
                await _commit(device)
            case Life.NO_COMMIT:
                if verdict is not Verdict.TRIAL:
                    raise BrickedError("the update did not come up on trial")
        device, _ = await bench.boot()
        await bench.runs(device, self._new if life is Life.COMMIT else self._old)

    async def _fill(self, bench: Bench, device: Device) -> None:
        """What is done to one slot must not touch the end of the other: only an image that reaches there can tell."""
        for version in ("3", "4", "5"):
            image = firmware(version, await device.flash.capacity())
            bench.images[sha256(image).hexdigest()] = image
            await bench.update(device, image, self._chunk)
            device, _ = await bench.boot()
            await bench.runs(device, image)
            await _commit(device)
            device, _ = await bench.boot()

    async def _recover(self, bench: Bench) -> None:
        _, verdict = await bench.boot()
        if verdict is Verdict.TRIAL:
            _, verdict = await bench.boot()  # nobody commits
        if verdict is not Verdict.RUN:
            raise BrickedError("a trial that nobody committed was begun again")

    async def _retry(self, bench: Bench) -> None:
        device, _ = await bench.boot()
        await bench.update(device, self._new, self._chunk)
        device, _ = await bench.boot()
        await bench.runs(device, self._new)
        await _commit(device)
        device, _ = await bench.boot()
        await bench.runs(device, self._new)


BEFORE: dict[Life, tuple[Life, ...]] = {
    Life.UPDATE: (),
    Life.COMMIT: (Life.UPDATE,),
    Life.NO_COMMIT: (Life.UPDATE,),
    Life.RETURN: (Life.UPDATE,),
    Life.REGRET: (Life.UPDATE, Life.COMMIT),
    Life.SECOND_UPDATE: (Life.UPDATE, Life.COMMIT),
    Life.FULL: (),
}
"""What a device lived through when a life begins."""


async def _commit(device: Device) -> None:
    with suppress(Restarted):
        if not await commit(device):
            raise BrickedError("the update came up, and there was nothing to commit")


async def _roll_back(device: Device) -> None:
    with suppress(Restarted):
        await rollback(device)
        raise BrickedError("an operator rolled back, and the device did not reset")


def _cuts(operations: Sequence[Operation], modes: Iterable[CutMode], only: Cut | None) -> Iterator[Cut]:
    for index, operation in enumerate(operations):
        flash = operation.kind in (Kind.ERASE, Kind.PROGRAM)
        for mode in modes:
            what = f"{operation.kind} of {operation.size} bytes"
            what = f"{what} at {operation.offset:#x}" if flash else what
            for reads in sorted(set(READS)) if mode in WAVERING_MODES else (None,):
                cut = Cut(index, mode, what, reads)
                if (flash or mode in ATOMIC_MODES) and only in (None, cut):
                    yield cut


def firmware(version: str, size: int) -> bytes:
    """Bytes with a version in them, and no two blocks alike.

    Args:
        version: what the tag says.
        size: bytes, at least one.
    """
    head = b"MG_VERSION:" + version.encode() + b"\0"
    return (head + Random(version).randbytes(size))[:size]  # noqa: S311  nothing is kept secret here


def _state_in_a_cell(flash: NorSimulator) -> StateStore:
    return CellState(flash.cell("boot record"))


async def _whole(image: bytes) -> AsyncIterator[bytes]:
    yield image


@contextmanager
def _silence() -> Generator[None]:
    """A library that is cut off ten thousand times has much to say."""
    log = logging.getLogger("mgota")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
