"""Loop devices and mounts: what needs root, and skips with the reason without. Under MGOTA_REQUIRE_ALL=1 it fails."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def run(*command: str | Path) -> str:
    """Run what only root may, where the kernel plays along."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as exc:
        why = f"{command[0]}: {getattr(exc, 'stderr', None) or exc}".strip()
    if os.environ.get("MGOTA_REQUIRE_ALL") == "1":
        pytest.fail(f"{why}, and MGOTA_REQUIRE_ALL=1", pytrace=False)
    pytest.skip(why)


@pytest.fixture
def loop() -> Iterator[Callable[[Path], str]]:
    """Makes a loop device of a file."""
    made = list[str]()

    def make(file: Path) -> str:
        made.append(run("losetup", "-f", "--show", file))
        return made[-1]

    yield make
    for device in made:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.fixture
def mount(tmp_path: Path, loop: object) -> Iterator[Callable[[str], Path]]:
    """Mounts a device. The loop devices go after it."""
    made = list[Path]()

    def make(device: str) -> Path:
        where = tmp_path / f"mount{len(made)}"
        where.mkdir()
        run("mount", device, where)
        made.append(where)
        return where

    yield make
    for where in made:
        subprocess.run(["umount", where], check=True)
