"""mgota on NOR flash behind a real driver: QEMU's sabrelite board, whose SPI flash only clears bits."""

import re
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import artefacts
import pytest
from disk import MIB, Cpio
from images import GUEST, MGOTA_SOURCE
from machine import CONSOLE, DIES_WITH_US

pytestmark = [pytest.mark.sbc, pytest.mark.timeout(600), pytest.mark.program("qemu-system-arm")]

MODULES = ("gpio_mxc", "spi_imx", "spi_nor", "mtdblock")
SIZE = 2 * MIB  # an SST25VF016B


def build_initramfs(path: Path) -> None:
    """Everything that the board has: busybox, Python with what mgota imports, mgota, and the modules."""
    kernel = artefacts.kernel("armhf", "armmp")
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "modules", "app"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    usr = artefacts.distribution("armhf") / "usr"
    archive.tree("usr", usr)
    archive.link("lib", "usr/lib")
    archive.file("bin/busybox", (usr / "bin/busybox").read_bytes())
    modules = kernel.with_needs(MODULES)
    for module in modules:
        archive.file(f"modules/{module.name}", module.read_bytes(), 0o644)
    archive.file("modules/order", "\n".join(module.name for module in modules).encode(), 0o644)
    archive.file("init", (GUEST / "nor.sh").read_bytes())
    archive.file("app/nor.py", (GUEST / "nor.py").read_bytes())
    archive.tree("app/mgota", MGOTA_SOURCE)
    path.write_bytes(archive.encode())


@contextmanager
def powered(place: Path) -> Generator[Generator[str]]:
    """The board, on while the block runs; then its power is cut. What it says, line by line."""
    kernel = artefacts.kernel("armhf", "armmp")
    tree = next(kernel.image.parents[1].rglob("imx6q-sabrelite.dtb"))
    command: list[str | Path] = [
        *DIES_WITH_US,
        *("qemu-system-arm", "-M", "sabrelite", "-m", "512", "-display", "none", "-monitor", "none", "-nodefaults"),
        *("-kernel", kernel.image, "-dtb", tree, "-initrd", place / "initramfs"),
        *("-append", "console=ttymxc1 quiet", "-serial", "null", *CONSOLE),
        *("-drive", f"if=mtd,format=raw,file={place / 'nor.img'}"),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as machine:
        assert machine.stdout
        try:
            yield (shown(line) for line in machine.stdout)
        finally:
            machine.kill()


def shown(line: str) -> str:
    """For whoever reads of a failure."""
    print(f"{time.monotonic():.2f} {line.rstrip()}")
    return line


def until(lines: Generator[str], pattern: str) -> re.Match[str]:
    """The next line that fits."""
    return next(match for line in lines if (match := re.search(pattern, line)))


def test_the_flash_memory_and_the_state_store_on_it_survive_power_cuts(tmp_path: Path) -> None:
    build_initramfs(tmp_path / "initramfs")
    (tmp_path / "nor.img").write_bytes(b"\xff" * SIZE)
    with powered(tmp_path) as lines:
        assert until(lines, r"nor: kind (\d+), (\d+) bytes").groups() == ("3", str(SIZE))
        assert until(lines, "nor: bytes (.*)")[1].strip() == "ff f0 30"
        until(lines, "nor: the flash memory keeps its promises")
        until(lines, "nor: the state store keeps its promises")
        until(lines, "nor: stored 5")
        stored = int(until(lines, r"nor: storing (\d+)")[1]) - 1
    with powered(tmp_path) as lines:
        assert int(until(lines, r"nor: revision (\d+)")[1]) >= stored
        until(lines, "nor: stored")
    assert b"mgota-state 1" in (tmp_path / "nor.img").read_bytes()
