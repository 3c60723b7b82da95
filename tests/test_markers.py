"""A test whose program is missing says so, and may not slip through where all programs are promised."""

import shutil
import subprocess
import sys
from pathlib import Path

CASES = """\
import pytest

@pytest.mark.program("no-such-program-of-mgota")
def test_missing():
    raise AssertionError("it ran")

@pytest.mark.program("sh")
def test_there():
    pass
"""


def outcomes(where: Path, **environment: str) -> str:
    shutil.copy(Path(__file__).parent / "conftest.py", where)
    (where / "test_cases.py").write_text(CASES)
    (where / "pytest.ini").write_text("[pytest]\nmarkers = program(name): needs it\n")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:cov", "."]
    paths = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        command, cwd=where, env=paths | environment, capture_output=True, text=True, check=False
    ).stdout


def test_a_missing_program_skips_with_the_reason(tmp_path: Path) -> None:
    told = outcomes(tmp_path)
    assert "1 passed, 1 skipped" in told
    assert "the program no-such-program-of-mgota is not installed" in told


def test_a_missing_program_fails_where_all_are_required(tmp_path: Path) -> None:
    told = outcomes(tmp_path, MGOTA_REQUIRE_ALL="1")
    assert "1 passed, 1 error" in told
    assert "the program no-such-program-of-mgota is not installed, and MGOTA_REQUIRE_ALL=1" in told
