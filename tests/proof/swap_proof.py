"""Proves the swap on one memory: runs with one cut, two, and many, counted."""

import json
from collections.abc import Callable, Iterable, Iterator
from random import Random
from typing import TypeVar
from zlib import crc32

from sector_maps import BY_NAME
from swap_bench import Cut, MakeLog, SwapBench, cut_everywhere, run, seed_of, starts
from tally import Brick, Tally

from mgota.core.recordlog import RecordLog
from mgota.testing import ALL_MODES, CutMode

T = TypeVar("T")

NAME = "swap"
"""Under which `tools/proof.py` finds a brick of this proof again."""

RECOVERY = 8
"""The first operations after a boot: what a mount of the journal does, and a few steps."""


class SwapProof:
    """Runs on one memory, counted in `tally`.

    Args:
        name: of a sector map.
        scale: of it.
        make_log: what keeps the journal on the chip.
        modes: of the cuts.
        seed: of everything that is drawn.
    """

    def __init__(
        self,
        name: str,
        scale: int = 1,
        *,
        make_log: MakeLog = RecordLog,
        modes: tuple[CutMode, ...] = ALL_MODES,
        seed: int = 0,
    ) -> None:
        self.name, self.scale, self.modes, self.seed = name, scale, modes, seed
        self.tally = Tally()
        self.starts = starts(BY_NAME[name].layout(scale), make_log)
        self.operations = [_operations(start) for start in self.starts]

    def single_cuts(self) -> Tally:
        """Every operation, every mode: forward, reverse, and forward again."""
        for which in range(len(self.starts)):
            for cut, bench in self._first_cuts(which):
                self._counted(which, [cut], self.seed, bench.live)
        return self.tally

    def double_cuts(self, part: int = 0, parts: int = 1) -> Tally:
        """Every operation and mode, and again every operation and mode of what follows: forward and reverse.

        Args:
            part: which of the first cuts are done here.
            parts: that share the first cuts among them.
        """
        firsts = [(which, first, bench) for which in (0, 1) for first, bench in self._first_cuts(which)]
        for which, first, bench in self._share(firsts, part, parts):
            self._second_cuts(which, first, bench)
        return self.tally

    def random_cuts(self, runs: int, *, first: int = 0, reach: int = 0) -> Tally:
        """Three to seven cuts, wherever they fall; half of them in the recovery.

        Args:
            runs: how many.
            first: number of the first run, where others do those before.
            reach: only so many operations after a boot may be cut; those of a whole request by default.
        """
        for number in range(first, first + runs):
            seed = crc32(f"{self.seed} {number}".encode())
            random = Random(seed)
            which = random.randrange(len(self.starts))
            cuts = [self._draw(random, reach or self.operations[which]) for _ in range(random.randint(3, 7))]
            self.run(which, cuts, seed)
        return self.tally

    def run(self, which: int, cuts: list[Cut], seed: int) -> None:
        """One run with these cuts.

        Args:
            which: index in `starts`.
            cuts: each operation counts from the boot before.
            seed: of what is drawn for them.
        """
        self._counted(which, cuts, seed, lambda: run(self.starts[which], cuts, seed))

    def _draw(self, random: Random, reach: int) -> Cut:
        return random.randrange(min(reach, RECOVERY) if random.randrange(2) else reach), random.choice(self.modes)

    def _first_cuts(self, which: int) -> list[tuple[Cut, SwapBench]]:
        return cut_everywhere(self.starts[which].fork(), self.modes, seed_of(self.seed, 0))

    def _share(self, cuts: list[T], part: int, parts: int) -> Iterator[T]:
        """One in so many, and not always of the same modes."""
        number = len(self.modes)
        return (cut for place, cut in enumerate(cuts) if (place + place // number) % parts == part)

    def _second_cuts(self, which: int, first: Cut, bench: SwapBench) -> None:
        twins: list[tuple[Cut, SwapBench]] = []
        seed = seed_of(self.seed, 1)
        self._counted(which, [first], self.seed, lambda: twins.extend(cut_everywhere(bench, self.modes, seed)))
        for second, twin in twins:
            self._counted(which, [first, second], self.seed, twin.live)

    def _counted(self, which: int, cuts: list[Cut], seed: int, live: Callable[[], object]) -> None:
        tally = self.tally
        tally.runs += 1
        tally.cuts += len(cuts)
        for _, mode in cuts:
            tally.modes[mode] += 1
        try:
            live()
        except Exception as exc:  # whatever the code under proof raises: a device that does not boot is a brick
            recipe = {"map": self.name, "scale": self.scale, "start": which, "cuts": cuts, "seed": seed}
            tally.bricked(Brick(NAME, json.dumps(recipe), f"{type(exc).__name__}: {exc}"), exc)


def _operations(start: SwapBench) -> int:
    bench = start.fork()
    bench.live()
    return bench.flash.operations.changes


def replay(recipe: str) -> Tally:
    """A run that ended badly, once more.

    Args:
        recipe: of the brick.
    """
    told = json.loads(recipe)
    proof = SwapProof(told["map"], told["scale"])
    proof.run(told["start"], [(index, CutMode(mode)) for index, mode in told["cuts"]], told["seed"])
    return proof.tally


def total(tallies: Iterable[Tally]) -> Tally:
    """All of them together."""
    return sum(tallies, Tally())
