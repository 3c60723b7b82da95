"""What `tools/proof.py` proves: each line of `PROVERS` is one row of its table.

To add one: write a function of a module's top level, `(part, parts, seed, budget) -> Tally`, and list it. It does the
share `part` of `parts`, draws from `seed` and nothing else, and stops early when the budget is over. Give bricks the
prover's name and a recipe that its `replay` understands.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import life_proof
import otadata_proof
import swap_proof
from sector_maps import MAPS
from swap_proof import SwapProof
from tally import Tally

from mgota.testing import Life

SCALE = 16
"""What large memories are divided by: the same steps in a fraction of the time."""

SLICE = 100
"""Runs between two looks at the clock."""


@dataclass(frozen=True)
class Budget:
    """How much a prover may do.

    Args:
        runs: in all parts together, where they are drawn.
        deadline: on the monotonic clock, which all processes share.
    """

    runs: int
    deadline: float = float("inf")

    @property
    def over(self) -> bool:
        """Whether there is no time left."""
        return time.monotonic() > self.deadline


Prove = Callable[[int, int, int, Budget], Tally]


@dataclass(frozen=True)
class Prover:
    """A row of the table.

    Args:
        name: of the family, which finds a brick of it again.
        place: the memory, or the target.
        kind: of the cuts.
        prove: does a part of it; a function, or a partial of one, that a process can be sent.
        share: its part of the runs that are drawn, beside the others'; 0 if it does all there is, whatever the budget.
    """

    name: str
    place: str
    kind: str
    prove: Prove
    share: int = 0


def double_cuts(name: str, part: int, parts: int, seed: int, budget: Budget) -> Tally:
    """Every pair of cuts on one map."""
    del budget  # a part takes a second or two
    return SwapProof(name, SCALE, seed=seed).double_cuts(part, parts)


def random_cuts(name: str, part: int, parts: int, seed: int, budget: Budget) -> Tally:
    """Three to seven cuts on one map. The same seed draws the same runs in however many parts."""
    proof = SwapProof(name, SCALE, seed=seed)
    first, end = (budget.runs * each // parts for each in (part, part + 1))
    while first < end and not budget.over:
        proof.random_cuts(min(SLICE, end - first), first=first)
        first += SLICE
    return proof.tally


def lives(name: str, part: int, parts: int, seed: int, budget: Budget) -> Tally:
    """Every cut of every life in one place."""
    del budget
    chosen = tuple(Life)[part::parts]
    return life_proof.counted(name, life_proof.live(life_proof.place_called(name), lives=chosen, seed=seed))


def lives_twice(name: str, part: int, parts: int, seed: int, budget: Budget) -> Tally:
    """Every cut of every life in one place, and every wavering one of the recovery."""
    del budget
    place, modes = life_proof.place_called(name), life_proof.TWICE[name]
    pairs = [(life, mode) for life in Life for mode in modes][part::parts]
    return sum(
        (
            life_proof.counted(
                name, life_proof.live(place, modes=[mode], recuts=life_proof.WAVERING, lives=[life], seed=seed)
            )
            for life, mode in pairs
        ),
        Tally(),
    )


def otadata(part: int, parts: int, seed: int, budget: Budget) -> Tally:
    """Three to twelve cuts of otadata."""
    tally = Tally()
    first, end = (budget.runs * each // parts for each in (part, part + 1))
    while first < end and not budget.over:
        tally += otadata_proof.random_cuts(min(SLICE, end - first), first=first, seed=seed)
        first += SLICE
    return tally


PLACES = (*(each.name for each in MAPS), life_proof.RECORD, life_proof.ESP32)

PROVERS: tuple[Prover, ...] = (
    *(Prover(swap_proof.NAME, each.name, "every 2 cuts", partial(double_cuts, each.name)) for each in MAPS),
    *(Prover(swap_proof.NAME, each.name, "random 3-7 cuts", partial(random_cuts, each.name), share=1) for each in MAPS),
    *(Prover(life_proof.NAME, name, "every cut", partial(lives, name)) for name in PLACES),
    *(Prover(life_proof.NAME, name, "every 2 cuts", partial(lives_twice, name)) for name in life_proof.TWICE),
    Prover(otadata_proof.NAME, "esp32", "random 3-12 cuts", otadata, share=1),
)

REPLAYS: dict[str, Callable[[str], Tally]] = {
    each.NAME: each.replay for each in (swap_proof, life_proof, otadata_proof)
}
"""How each family does a run again, from a brick's recipe."""
