"""`tools/proof.py`: its table, its exit status, and bricks that can be made again."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from proof_runner import main
from provers import PROVERS, Budget, Prover, random_cuts
from sector_maps import MAPS
from swap_proof import NAME
from tally import Brick, Tally

TOOL = Path(__file__).parents[2] / "tools" / "proof.py"

RECIPE = '{"map": "uniform", "scale": 16, "start": 1, "cuts": [[3, "prefix"]], "seed": 5}'


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)


def some_runs(part: int, parts: int, seed: int, budget: Budget) -> Tally:
    return Tally(runs=2, cuts=3)


def a_brick(part: int, parts: int, seed: int, budget: Budget) -> Tally:
    return Tally(runs=1, bricks=[Brick(NAME, RECIPE, "lost")] if part == 7 else [])


def test_each_memory_is_proven_with_two_cuts_and_with_many() -> None:
    listed = {(each.place, each.kind) for each in PROVERS if each.name == NAME}
    assert listed == {(each.name, kind) for each in MAPS for kind in ("every 2 cuts", "random 3-7 cuts")}


def test_random_runs_are_the_same_in_however_many_parts() -> None:
    one = random_cuts("STM32F4 1 MiB", 0, 1, 3, Budget(60))
    some = sum((random_cuts("STM32F4 1 MiB", part, 7, 3, Budget(60)) for part in range(7)), Tally())
    assert one == some
    assert one.runs == 60
    assert random_cuts("STM32F4 1 MiB", 0, 1, 4, Budget(60)).modes != one.modes


def test_nothing_is_begun_after_the_deadline() -> None:
    assert random_cuts("uniform", 0, 1, 0, Budget(60, deadline=0.0)) == Tally()


@pytest.mark.slow
def test_the_tool_proves_one_map_with_all_processes() -> None:
    done = tool("--only", "STM32F4 1 MiB random", "--runs", "100", "--least", "100", "--seed", "9")
    assert (done.returncode, done.stderr) == (0, "")
    heading, row, last = done.stdout.splitlines()
    assert heading.split()[:2] == ["proof", "memory"]
    assert "STM32F4 1 MiB" in row
    assert last.startswith("100 runs, ")
    assert "8 modes, 0 bricks, 0 broken rules, 0 doubled swaps" in last
    assert last.endswith("seed 9")


def test_it_fails_when_there_were_too_few_runs(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Prover("other", "memory", "any", some_runs, share=1)]
    assert main(["--jobs", "1", "--least", "48"], rows) == 0
    assert main(["--jobs", "1", "--least", "49"], rows) == 1
    assert "too few runs: 49" in capsys.readouterr().out


def test_it_fails_when_nothing_was_chosen() -> None:
    assert main(["--jobs", "1", "--only", "no such memory"]) == 1


def test_it_fails_when_there_was_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "1", "--seconds", "-1"], [Prover("other", "memory", "any", some_runs)]) == 1
    assert "no time for 24 of 24 parts" in capsys.readouterr().out


def test_a_brick_fails_it_and_says_how_to_make_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs", "1"], [Prover(NAME, "memory", "any", a_brick)]) == 1
    out = capsys.readouterr().out
    assert f"BRICK lost\n      tools/proof.py --replay {NAME} '{RECIPE}'\n" in out
    assert main(["--replay", NAME, RECIPE]) == 0  # the real code keeps it
    assert capsys.readouterr().out.startswith("1 runs, 1 cuts in 1 modes, 0 bricks")


def test_a_part_may_be_a_partial_of_a_function() -> None:
    assert all(isinstance(each.prove, partial) for each in PROVERS if each.name == NAME)
