"""GRUB's environment block between mgota and GRUB itself, which really boots: as U-Boot's EFI application.

What is asked is GRUB, by what its script says on the console, and `grub-editenv`, by what lies on the disk.
"""

import re
import subprocess
from pathlib import Path

import artefacts
import pytest
import uboot
from disk import MIB, Partition, make_disk
from images import GUEST
from machine import CONSOLE, DIES_WITH_US

from mgota.core.bootvars import GrubOrder
from mgota.core.geometry import Slot
from mgota.linux.grub import GrubEnvironment, GrubSelector

A, B = Slot

pytestmark = [
    pytest.mark.sbc,
    pytest.mark.timeout(600),
    pytest.mark.program("qemu-system-aarch64", "mkfs.ext4", "grub-mkimage", "grub-editenv", "setpriv"),
]

MODULES = ("part_gpt", "ext2", "normal", "echo", "test", "loadenv", "search_fs_file", "sleep")
EARLY = "search.file /grub/grub.cfg root\nset prefix=($root)/grub\n"
BOOT = "virtio scan; load virtio 0:1 42000000 /grub.efi; bootefi 42000000 ${fdtcontroladdr}; echo no GRUB; reset"
BLOCK = 1024


class GrubBoard:
    """A board whose GRUB keeps its variables in a file of its boot partition.

    Args:
        place: a directory of its own.
        variables: that it comes with from the factory.
    """

    def __init__(self, place: Path, *variables: str) -> None:
        self.place, self.disk, self.block = place, place / "disk.img", place / "grubenv"
        files = place / "boot"
        (files / "grub").mkdir(parents=True)
        (files / "grub.efi").write_bytes(artefacts.grub(MODULES, EARLY).read_bytes())
        (files / "grub/grub.cfg").write_bytes((GUEST / "grub.cfg").read_bytes())
        artefacts.run("grub-editenv", files / "grub/grubenv", "create")
        artefacts.run("grub-editenv", files / "grub/grubenv", "set", *variables)
        artefacts.file_system(place / "boot.img", files)
        data = (place / "boot.img").read_bytes()
        make_disk(self.disk, [Partition("boot", MIB, len(data))], len(data) + 2 * MIB)
        self.offset = MIB + data.index((files / "grub/grubenv").read_bytes())
        self._write(MIB, data)
        uboot.write_flash(place, uboot.own_environment([f"bootcmd={BOOT}", "bootdelay=-2"]))
        self.selector = GrubSelector(GrubEnvironment(self.block), GrubOrder())
        self.look()

    def look(self) -> dict[str, str]:
        """The variables on the disk, read by GRUB's own tool; `selector` works on the same block."""
        with self.disk.open("rb") as file:
            file.seek(self.offset)
            self.block.write_bytes(file.read(BLOCK))
        listed = artefacts.run("grub-editenv", self.block, "list")
        return dict(line.partition("=")[::2] for line in listed.splitlines())

    def boot(self) -> str:
        """What GRUB starts now; then the power is cut."""
        self._write(self.offset, self.block.read_bytes())
        command = [
            *(*DIES_WITH_US, "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", "256", "-accel", "tcg"),
            *("-display", "none", *CONSOLE, "-monitor", "none", "-nodefaults", *uboot.flash_drives(self.place)),
            *("-drive", f"if=none,id=disk,format=raw,file={self.disk}", "-device", "virtio-blk-pci,drive=disk"),
        ]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        ) as machine:
            assert machine.stdout
            try:
                for line in machine.stdout:
                    print(line.rstrip())
                    if match := re.search("board: GRUB starts (.*?) of", line):
                        return match[1]
            finally:
                machine.kill()
        pytest.fail("GRUB did not start anything")

    def _write(self, offset: int, data: bytes) -> None:
        with self.disk.open("r+b") as file:
            file.seek(offset)
            file.write(data)


@pytest.mark.asyncio
async def test_grub_starts_what_mgota_selects_once_until_it_is_settled(tmp_path: Path) -> None:
    board = GrubBoard(tmp_path / "board", "ORDER=A B", "A_OK=1", "A_TRY=0", "B_OK=0", "B_TRY=0")
    selector = board.selector
    assert board.boot() == "A"
    assert board.look() == {"ORDER": "A B", "A_OK": "1", "A_TRY": "1", "B_OK": "0", "B_TRY": "0"}
    await selector.settle(A, fallback=False)
    assert not await selector.tried(A)

    await selector.select(B, running=A)  # an update
    assert await selector.selected_slot() is B
    assert board.boot() == "B"
    assert board.look()["B_TRY"] == "1"
    assert await selector.tried(B)
    assert board.boot() == "A"  # it hung on its trial
    assert board.look()["A_TRY"] == "1"
    assert await selector.tried(B)
    await selector.settle(A, fallback=False)
    assert board.boot() == "A"

    board.look()
    await selector.settle(A, fallback=False)
    await selector.select(B, running=A)  # another one
    assert board.boot() == "B"
    board.look()
    await selector.settle(B, fallback=True)  # it was committed
    assert board.boot() == "B"
    assert board.look() == {"ORDER": "B A", "A_OK": "1", "A_TRY": "0", "B_OK": "1", "B_TRY": "1"}
    assert board.boot() == "A"  # a good version that does not say so has the one behind it for its fallback


@pytest.mark.asyncio
async def test_a_block_that_mgota_rewrote_is_grub_s_still(tmp_path: Path) -> None:
    board = GrubBoard(tmp_path / "board", "ORDER=B A", "A_OK=1", "A_TRY=0", "B_OK=1", "B_TRY=0", "mine=a\\\\b")
    before = board.look()
    await board.selector.selftest()
    assert board.boot() == "B"
    assert board.look() == {**before, "B_TRY": "1"}
