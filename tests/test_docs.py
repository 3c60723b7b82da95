"""The documents say what the code does."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import mgota
from mgota.core.config import read_config

ROOT = Path(mgota.__file__).parent.parent


def test_the_boot_diagram_in_design_is_the_table() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools/boot_diagram.py", "--check"], cwd=ROOT, check=False)
    assert made.returncode == 0, "DESIGN.md is stale: run python tools/boot_diagram.py"


def test_the_changelog_knows_this_version() -> None:
    assert f"## {version('mgota')}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_test_that_security_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text()))
    written = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 15
    assert named <= written, named - written


def test_the_configuration_in_the_readme_has_no_faults() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    board = (ROOT / "examples/uboot_board.toml").read_text()
    kept = re.sub(r"(?ms)^\[(health|history|mqtt|pull)\].*?(?=^\[|\Z)", "", board)
    ways = '[mqtt]\nurl = "mqtt://h/a/b"\n[pull]\nurl = "https://h/fw.json"\n'
    assert read_config(f"{kept}\n{ways}{block}", "README.md").health
