"""The page's scripts that only decide, in Node: the sender's session and everything that is said in words."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "page"


@pytest.mark.program("node")
def test_what_only_decides() -> None:
    node = shutil.which("node") or "node"
    done = subprocess.run(
        [node, "--test", "--test-reporter=tap"], cwd=PAGE, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed
    assert int(passed[1]) > 20
