"""docs/compliance.md names each clause, and no test that does not exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import mgota

ROOT = Path(mgota.__file__).parent.parent
TEXT = (ROOT / "docs/compliance.md").read_text()
ROWS = {
    cells[0]: cells for line in TEXT.splitlines() if len(cells := [cell.strip() for cell in line.split("|")[1:-1]]) == 4
}
CLAUSES = (
    "CRA I (1)",
    *(f"CRA I (2)({letter})" for letter in "abcdefghijklm"),
    *(f"CRA II ({number})" for number in range(1, 9)),
    *(f"EN 5.3-{number}" for number in range(1, 17)),
    "EDR 3.10",
    "EDR 3.10 RE (1)",
)
NAMED = sorted(set(re.findall(r"`(tests/[^`]+)`", TEXT)) - {"tests/test_compliance.py"})


@cache
def collected(path: Path) -> frozenset[str]:
    """Functions that pytest would collect there, those of classes behind the class's name."""
    found = set[str]()
    for node in ast.parse(path.read_text()).body:
        inside = node.body if isinstance(node, ast.ClassDef) and node.name.startswith("Test") else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = (one for one in inside if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef))
        found |= {prefix + one.name for one in functions if one.name.startswith("test")}
    return frozenset(found)


@pytest.mark.parametrize("named", NAMED)
def test_a_test_that_is_named_exists(named: str) -> None:
    file, _, name = named.partition("::")
    path = ROOT / file
    assert path.name.startswith("test_"), named
    assert path.is_file(), named
    assert name in collected(path), named


@pytest.mark.parametrize("clause", CLAUSES)
def test_a_clause_has_a_feature_and_a_test_or_is_said_to_be_the_users(clause: str) -> None:
    _, asked, feature, tests = ROWS[clause]
    assert asked
    assert feature
    assert re.findall(r"`tests/\S+::test_\w+`", tests) or "ours" in feature or "SECURITY.md" in feature or (
        feature == "the same"
    ), clause  # fmt: skip


def test_no_clause_is_there_that_is_none_or_stands_there_twice() -> None:
    assert set(ROWS) - {"clause", "---"} == set(CLAUSES)
    assert len(re.findall(r"(?m)^\| (?:CRA|EN|EDR) ", TEXT)) == len(CLAUSES)
    assert len(NAMED) > 30


def test_a_name_in_a_class_and_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "test_x.py"
    path.write_text("def test_a(): ...\nclass TestB:\n    async def test_c(self): ...\n    def other(self): ...\n")
    assert collected(path) == {"test_a", "TestB::test_c"}
