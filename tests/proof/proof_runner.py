"""Runs the proofs of `provers.py` on all cores, prints a table, and fails on any brick. Started by `tools/proof.py`.

    tools/proof.py                              every pair of cuts, and 40,000 runs of 3 to 7 cuts
    tools/proof.py --only RP2040 --runs 1000    one map
    tools/proof.py --replay swap '{"map": …}'   one run again: what a brick's line says

Exit status 1: a brick, fewer runs than `--least`, or no time to finish.
"""

import argparse
import multiprocessing
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from provers import PROVERS, REPLAYS, Budget, Prover
from tally import Brick, Tally

PARTS = 24
"""Tasks of a row: a second or two each, so that no core waits long for another."""

SHOWN = 20
"""Bricks that are listed."""


@dataclass(frozen=True)
class Task:
    """One part of a row."""

    row: int
    prover: Prover
    part: int
    seed: int
    budget: Budget


@dataclass
class Row:
    """What became of a prover so far."""

    prover: Prover
    waits: int = PARTS
    skipped: int = 0
    seconds: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def __str__(self) -> str:
        tally, rate = self.tally, self.tally.runs / self.seconds if self.seconds else 0
        numbers = f"{tally.runs:>9,} {tally.cuts:>9,} {len(tally.modes):>5} {len(tally.bricks):>6} {rate:>8,.0f}"
        late = f"   {self.skipped} of {PARTS} parts: no time" if self.skipped else ""
        return f"{self.prover.name:<8} {self.prover.place:<14} {self.prover.kind:<15} {numbers}{late}"


HEADING = f"{'proof':<8} {'memory':<14} {'kind':<15} {'runs':>9} {'cuts':>9} {'modes':>5} {'bricks':>6} {'runs/s':>8}"


def work(task: Task) -> tuple[int, Tally | None, float]:
    """In a process of its own: one part; no tally if there was no time to begin it."""
    if task.budget.over:
        return task.row, None, 0.0
    begun = time.process_time()
    tally = task.prover.prove(task.part, PARTS, task.seed, task.budget)
    return task.row, tally, time.process_time() - begun


def tasks(rows: Sequence[Row], runs: int, seed: int, deadline: float) -> Iterator[Task]:
    """All that there is first, then what is drawn: part after part, so that every row gets its share of the time."""
    shares = sum(row.prover.share for row in rows) or 1
    whole = [(number, row.prover) for number, row in enumerate(rows) if not row.prover.share]
    drawn = [(number, row.prover) for number, row in enumerate(rows) if row.prover.share]
    for number, prover in whole:
        for part in range(PARTS):
            yield Task(number, prover, part, seed, Budget(0, deadline))
    for part in range(PARTS):
        for number, prover in drawn:
            yield Task(number, prover, part, seed, Budget(-(-runs * prover.share // shares), deadline))


def prove(provers: Sequence[Prover], *, runs: int, seed: int, deadline: float, jobs: int) -> list[Row]:
    """All of them. Prints each row when it is done."""
    rows = [Row(prover) for prover in provers]
    print(HEADING, flush=True)
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for number, tally, seconds in pool.imap_unordered(work, tasks(rows, runs, seed, deadline)):
            row = rows[number]
            row.waits -= 1
            row.seconds += seconds
            if tally is None:
                row.skipped += 1
            else:
                row.tally += tally
            if not row.waits:
                print(row, flush=True)
    return rows


def list_bricks(bricks: Sequence[Brick]) -> None:
    """What was lost, and how to lose it again."""
    for brick in bricks[:SHOWN]:
        print(f"BRICK {brick.why}\n      tools/proof.py --replay {brick.prover} {shlex.quote(brick.recipe)}")
    if len(bricks) > SHOWN:
        print(f"      … and {len(bricks) - SHOWN:,} more")


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools/proof.py", description="Prove that no power cut loses a device.")
    parser.add_argument("--runs", type=int, default=40_000, help="runs that are drawn, in all (default %(default)s)")
    parser.add_argument("--least", type=int, default=0, help="fail below so many runs of all kinds")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin nothing after so many seconds")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: one a core)")
    parser.add_argument("--only", default="", help="only rows with this in name, memory or kind")
    parser.add_argument("--replay", nargs=2, metavar=("PROOF", "RECIPE"), help="one run again")
    return parser.parse_args(argv)


def chosen(provers: Iterable[Prover], only: str) -> list[Prover]:
    return [each for each in provers if only.lower() in f"{each.name} {each.place} {each.kind}".lower()]


def main(argv: Sequence[str] | None = None, provers: Sequence[Prover] = PROVERS) -> int:
    """Prove, or replay. Returns the exit status."""
    given = options(argv)
    if given.replay:
        tally = REPLAYS[given.replay[0]](given.replay[1])
        print(tally)
        list_bricks(tally.bricks)
        return 1 if tally.bricks else 0
    begun = time.monotonic()
    rows = prove(
        chosen(provers, given.only),
        runs=given.runs,
        seed=given.seed,
        deadline=begun + given.seconds,
        jobs=given.jobs,
    )
    total = sum((row.tally for row in rows), Tally())
    list_bricks(total.bricks)
    late = sum(row.skipped for row in rows)
    if late:
        print(f"no time for {late} of {len(rows) * PARTS} parts")
    if total.runs < max(given.least, 1):
        print(f"too few runs: {given.least:,} were to be made")
    print(f"{total}; {time.monotonic() - begun:.0f} s on {given.jobs} cores, seed {given.seed}")
    return 1 if total.bricks or late or total.runs < max(given.least, 1) else 0
