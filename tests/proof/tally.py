"""What a proof tried, and what became of it."""

from collections import Counter
from dataclasses import dataclass, field

from mgota.testing import CutMode


class BrickError(AssertionError):
    """The device is lost, or lies."""


class DoubledError(BrickError):
    """A request was carried out twice."""


class RuleBrokenError(BrickError):
    """All is whole, but something was done that the chip forbids."""


@dataclass(frozen=True)
class Brick:
    """A run that ended badly.

    Args:
        prover: that found it.
        recipe: what the prover needs in order to do it again.
        why: which rule did not hold.
    """

    prover: str
    recipe: str
    why: str

    def __str__(self) -> str:
        return f"{self.prover}: {self.why}: {self.recipe}"


@dataclass
class Tally:
    """What was tried, and what became of it.

    Args:
        runs: lives of a device, each looked at to its end.
        cuts: that fell in them.
        modes: how often each kind of cut fell.
        bricks: the runs that ended badly, those that broke a chip's rule included.
        broken_rules: programs and erases that a chip forbids.
        doubled: requests that were carried out twice.
    """

    runs: int = 0
    cuts: int = 0
    modes: Counter[CutMode] = field(default_factory=Counter)
    bricks: list[Brick] = field(default_factory=list)
    broken_rules: int = 0
    doubled: int = 0

    @property
    def lost(self) -> int:
        """Bricks where more was lost than a chip's rule."""
        return len(self.bricks) - self.broken_rules

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.runs + other.runs,
            self.cuts + other.cuts,
            self.modes + other.modes,
            self.bricks + other.bricks,
            self.broken_rules + other.broken_rules,
            self.doubled + other.doubled,
        )

    def __str__(self) -> str:
        return (
            f"{self.runs:,} runs, {self.cuts:,} cuts in {len(self.modes)} modes, {len(self.bricks):,} bricks, "
            f"{self.broken_rules:,} broken rules, {self.doubled:,} doubled swaps"
        )

    def bricked(self, brick: Brick, exc: BaseException) -> None:
        """A run ended badly, with this exception."""
        self.bricks.append(brick)
        self.broken_rules += isinstance(exc, RuleBrokenError)
        self.doubled += isinstance(exc, DoubledError)

    def check(self, least: int) -> None:
        """Fail if anything went wrong, or if there were too few runs for a proof.

        Raises:
            AssertionError: so it is; it lists the first bricks.
        """
        assert not self.bricks, "\n".join([str(self), *map(str, self.bricks[:10])])
        assert (self.broken_rules, self.doubled) == (0, 0), str(self)
        assert self.runs >= least, f"{self.runs:,} runs prove too little: at least {least:,} were to be made"
