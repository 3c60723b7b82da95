"""What `every_power_cut` tells: which lives were lived, how many cuts they got, and which devices were lost.

Rules:
- a brick says all that it takes to find it again;
- a report is one line for people, and a check for programs.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from mgota.testing.power import CutMode

SHOWN = 10
"""How many bricks a failed check lists."""


class Life(StrEnum):
    """What a device lives through, from a boot on. Together they cut every operation of a life from begin to end."""

    UPDATE = "update"
    """The old image runs; the new one is written, sealed and activated."""
    COMMIT = "commit"
    """The new image comes up on its trial and is committed."""
    NO_COMMIT = "no commit"
    """It comes up, and nobody commits it: the next boot rolls back."""
    RETURN = "return"
    """It comes up, and an operator rolls it back."""
    REGRET = "regret"
    """It was committed, and an operator rolls it back."""
    SECOND_UPDATE = "second update"
    """It was committed, and the old image comes back as an update, into the slot that was the first's."""
    FULL = "full slots"
    """Two images that fill their slots come as updates and are committed, one after the other. Lived without a cut."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut.

    Args:
        index: how many operations that change something came before it, since the life, or the recovery, began.
        mode: what it left.
        what: the operation that it hit.
        reads: after how many of them what is left changes its mind, in the two modes that do; else None.
    """

    index: int
    mode: CutMode
    what: str = field(default="", compare=False)
    reads: int | None = None

    def __str__(self) -> str:
        reads = "" if self.reads is None else f" after {self.reads} read{'s' * (self.reads > 1)}"
        return f"operation {self.index} ({self.what}), {self.mode}{reads}"


@dataclass(frozen=True, slots=True)
class Brick:
    """A device that was lost, and how to lose it again.

    Args:
        life: what it lived through.
        cuts: none, if the life fails without one; the second hit the recovery from the first.
        seed: of the run.
        what: which rule did not hold.
    """

    life: Life
    cuts: tuple[Cut, ...]
    seed: int
    what: str

    def __str__(self) -> str:
        cuts = "; again at ".join(map(str, self.cuts))
        return f"{self.life}, {f'cut at {cuts}' if cuts else 'without a cut'}, seed {self.seed}: {self.what}"


@dataclass(frozen=True, slots=True)
class Report:
    """What `every_power_cut` did.

    Args:
        operations: how many each life has, without a cut.
        modes: of the first cuts.
        cuts: runs with one cut.
        recuts: runs with a second one.
        bricks: the runs that failed.
    """

    operations: dict[Life, int]
    modes: tuple[CutMode, ...]
    cuts: int
    recuts: int
    bricks: tuple[Brick, ...]

    @property
    def runs(self) -> int:
        """How often a device lived, with cuts or without."""
        return len(self.operations) + self.cuts + self.recuts

    def __str__(self) -> str:
        return (
            f"{self.runs} runs: {len(self.operations)} lives of {sum(self.operations.values())} operations in all, "
            f"{len(self.modes)} modes, {self.cuts} cuts, {self.recuts} second cuts, {len(self.bricks)} bricks"
        )

    def check(self) -> None:
        """Fail if there are bricks.

        Raises:
            AssertionError: there are; it lists the first of them.
        """
        if self.bricks:
            more = f"\n… and {len(self.bricks) - SHOWN} more" if len(self.bricks) > SHOWN else ""
            raise AssertionError("\n".join([str(self), *map(str, self.bricks[:SHOWN])]) + more)
