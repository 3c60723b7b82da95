"""What must not lie in a slot, for the next update would write over it: the boot record, and what selects a slot.

| it is | refused when |
|---|---|
| a file | the file system of a slot holds it |
| a device | it is a slot |
| a range of a disk | a slot is a partition of that disk, and both have bytes in common |
"""

import os
from collections.abc import Iterable
from pathlib import Path

from mgota.core.ubootenv import EnvPlace
from mgota.errors import ConfigError
from mgota.linux.ubootenv import start_of

SECTOR = 512
"""Bytes of the unit in which the kernel describes partitions, whatever the disk's own is."""

RECORD = "the boot record"
Name = str | os.PathLike[str]


def refuse_inside_slots(path: Name, devices: Iterable[Name], *, what: str = RECORD) -> None:
    """Refuse a place that an update would write over.

    Args:
        path: a file, or a device. It need not exist yet, its directory must.
        devices: block devices of the slots.
        what: lies there.

    Raises:
        ConfigError: it is one of the slots, or a file on the file system of one; or it cannot be looked at.
    """
    place = Path(os.path.realpath(path))
    try:
        found = os.stat(place if place.exists() else place.parent)  # noqa: PTH116  device numbers, not paths
        for device in devices:
            slot = os.stat(device)  # noqa: PTH116
            if os.path.samestat(found, slot) or (slot.st_rdev and slot.st_rdev in (found.st_dev, found.st_rdev)):
                raise _inside(what, path, device)
    except OSError as exc:
        raise _unseen(exc) from exc


def refuse_place_in_slots(place: EnvPlace, devices: Iterable[Name], *, what: str, sys: Name = "/sys") -> None:
    """The same for a copy of U-Boot's environment, which may lie between the partitions of a disk.

    Args:
        place: where it lies.
        devices: of the slots.
        what: lies there.
        sys: where the kernel describes partitions.

    Raises:
        ConfigError: it has bytes in common with a slot, or cannot be looked at.
    """
    devices = list(devices)
    refuse_inside_slots(place.device, devices, what=what)
    try:
        disk = os.stat(place.device).st_rdev  # noqa: PTH116
        for device in devices:
            partition = _partition(os.stat(device).st_rdev, Path(sys))  # noqa: PTH116
            if disk and partition and partition[0] == _name(disk):
                start = start_of(place)
                if start < partition[2] and partition[1] < start + place.size:
                    raise _inside(what, f"{place.device} at {start:#x}", device)
    except OSError as exc:
        raise _unseen(exc) from exc


def _name(number: int) -> str:
    return f"{os.major(number)}:{os.minor(number)}"


def _partition(number: int, sys: Path) -> tuple[str, int, int] | None:
    """The disk of a partition by its number, its first byte there and the one behind it; None if it is none."""
    folder = sys / "dev/block" / _name(number)
    try:
        start, size = (int((folder / name).read_text()) * SECTOR for name in ("start", "size"))
        disk = (folder.resolve().parent / "dev").read_text().strip()
    except (OSError, ValueError):
        return None
    return disk, start, start + size


def _inside(what: str, place: Name, slot: Name) -> ConfigError:
    return ConfigError(f"{what} {place} would lie in the slot {slot}, and go with the next update")


def _unseen(exc: OSError) -> ConfigError:
    return ConfigError(f"{exc.filename} cannot be looked at: {exc.strerror}")
