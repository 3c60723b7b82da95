"""A gateway that updates its whole root file system: two partitions, U-Boot with RAUC's script, the board's watchdog.

MGOTA_DEVICE=uboot_board:device     and in the program, early at every boot:

device = Device.from_environment(verifier=Verifier(keys=[load_public_key(pem)]))
await boot_check(device, reason=reason(device))
await run_trial(device, checks=[...])
"""

from collections.abc import Mapping
from typing import Any

from mgota import Device, Slot
from mgota.core.bootvars import BootOrder
from mgota.flash.files import FileLock
from mgota.linux.apart import refuse_inside_slots
from mgota.linux.blockslots import BlockSlots
from mgota.linux.reset import RebootCommand
from mgota.linux.running import running_slot
from mgota.linux.selected import SelectedSlots
from mgota.linux.state import FileState
from mgota.linux.uboot import UbootEnvironment, UbootSelector
from mgota.linux.watchdog import HardwareWatchdog

DEVICES = {Slot.A: "PARTLABEL=root-a", Slot.B: "PARTLABEL=root-b"}
DATA = "/data/mgota"  # a partition of its own: what lies in a slot goes with the next update
CMDLINE = "/proc/cmdline"  # the boot script says rauc.slot=A there
CONFIG = "/etc/fw_env.config"


def device(environ: Mapping[str, str], **options: Any) -> Device:
    """The board, as `Device.from_environment` asks for it."""
    del environ
    convention = BootOrder()
    slots = BlockSlots(DEVICES)
    paths = {slot: slots.path(slot) for slot in Slot}
    refuse_inside_slots(f"{DATA}/state", paths.values())
    running = running_slot(convention.names, paths, cmdline=CMDLINE)
    selector = UbootSelector(UbootEnvironment.from_config(CONFIG), convention)
    parts: dict[str, Any] = {
        "state": FileState(f"{DATA}/state"),
        "lock": FileLock(f"{DATA}/lock"),
        "watchdog": HardwareWatchdog(),
        "reset": RebootCommand(),
        "window": 120.0,
    }
    return Device(flash=SelectedSlots(slots, selector, running=running), **(parts | options))


def reason(board: Device) -> str | None:
    """Why the board started again, if its watchdog knows."""
    return board.watchdog.last_reset if isinstance(board.watchdog, HardwareWatchdog) else None
