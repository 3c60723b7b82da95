"""A Raspberry Pi that updates its root file system by tryboot: partitions 2 and 3 boot, 5 and 6 are the root.

After the documentation of its firmware; nobody has run it on a board. Each boot partition's `cmdline.txt` says
mgota.slot=a or mgota.slot=b. What is updated here is the root; the two boot partitions keep their kernels.

    MGOTA_DEVICE=raspberry_board:device
"""

from collections.abc import Mapping
from typing import Any

from mgota import Device, Slot
from mgota.flash.files import FileLock
from mgota.linux.blockslots import BlockSlots
from mgota.linux.reset import RebootCommand
from mgota.linux.running import running_slot
from mgota.linux.selected import SelectedSlots
from mgota.linux.state import FileState
from mgota.linux.tryboot import TrybootSelector
from mgota.linux.watchdog import HardwareWatchdog

DEVICES = {Slot.A: "/dev/mmcblk0p5", Slot.B: "/dev/mmcblk0p6"}
BOOT = {Slot.A: 2, Slot.B: 3}
DATA = "/data/mgota"
CMDLINE = "/proc/cmdline"


def device(environ: Mapping[str, str], **options: Any) -> Device:
    """The board, as `Device.from_environment` asks for it."""
    del environ
    running = running_slot({Slot.A: "a", Slot.B: "b"}, cmdline=CMDLINE)
    selector = TrybootSelector(BOOT)
    parts: dict[str, Any] = {
        "state": FileState(f"{DATA}/state"),
        "lock": FileLock(f"{DATA}/lock"),
        "watchdog": HardwareWatchdog(limit=15),  # its chip counts no longer; a longer window is fed
        "reset": RebootCommand(argument=lambda: selector.reboot_argument),
        "window": 120.0,
    }
    return Device(flash=SelectedSlots(BlockSlots(DEVICES), selector, running=running), **(parts | options))
