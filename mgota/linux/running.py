"""Which slot runs, by what only the boot itself decides: the kernel's command line, or the device that `/` lies on.

Never by what is selected: that may have changed since.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from mgota.core.geometry import Slot
from mgota.errors import ConfigError

CMDLINE = "/proc/cmdline"

KEYS = ("mgota.slot", "rauc.slot")
"""Parameters of the kernel's command line that boot scripts name the slot in."""


def slot_of_cmdline(text: str, names: Mapping[Slot, str]) -> Slot | None:
    """The slot that a kernel's command line names: `mgota.slot=NAME` or `rauc.slot=NAME`; None if it names neither.

    Args:
        text: of `/proc/cmdline`.
        names: of the slots; the case does not matter.
    """
    slots = {name.casefold(): slot for slot, name in names.items()}
    parameters = dict(word.partition("=")[::2] for word in re.findall(r"[^\s\"]+", text))
    for key in KEYS:
        if (slot := slots.get(parameters.get(key, "").casefold())) is not None:
            return slot
    return None


def slot_of_root(devices: Mapping[Slot, str | os.PathLike[str]], root: str | os.PathLike[str] = "/") -> Slot | None:
    """The slot whose block device holds the root file system, by its number; None if neither does.

    Args:
        devices: of the slots.
        root: a path on the file system in question.

    Raises:
        ConfigError: a device is not there.
    """
    try:
        number = os.stat(root).st_dev  # noqa: PTH116  device numbers, not paths
        found = {slot: os.stat(path).st_rdev for slot, path in devices.items()}  # noqa: PTH116
    except OSError as exc:
        raise ConfigError(f"a slot's device cannot be looked at: {exc.filename}: {exc.strerror}") from exc
    return next((slot for slot, device in found.items() if device and device == number), None)


def running_slot(
    names: Mapping[Slot, str],
    devices: Mapping[Slot, str | os.PathLike[str]] | None = None,
    *,
    cmdline: str | os.PathLike[str] = CMDLINE,
) -> Slot:
    """The slot that runs.

    Args:
        names: of the slots on the kernel's command line.
        devices: of the slots, to compare with the one that `/` lies on.
        cmdline: the file with the command line.

    Raises:
        ConfigError: neither tells.
    """
    try:
        text = Path(cmdline).read_text("utf-8", "replace")
    except OSError as exc:
        raise ConfigError(f"{cmdline} cannot be read: {exc.strerror}") from exc
    slot = slot_of_cmdline(text, names) or (slot_of_root(devices) if devices else None)
    if slot is None:
        raise ConfigError(
            f"which slot runs? Let the kernel's command line say mgota.slot={names[Slot.A]}, or ={names[Slot.B]}"
        )
    return slot
