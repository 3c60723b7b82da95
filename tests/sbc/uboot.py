"""What the board's U-Boot does, and the environment that Linux shares with it.

Debian's U-Boot keeps its own variables in a flash memory that nothing here can write; its scripts are there, see
`guest/boot.env`. The variables that decide what boots lie in two redundant copies on the disk, as they do on a board
whose U-Boot is configured for that. This one is not, so that its script does the same by hand: it takes the copy with
the newer flags whose CRC fits, and writes the other one.

The convention is RAUC's: of the names in BOOT_ORDER the first one boots that has attempts left, BOOT_x_LEFT, after one
of them is counted off and that is saved. A slot that cannot be loaded is a reset. When no attempts are left at all, all
names in BOOT_ORDER get new ones.

Before it starts a kernel, U-Boot arms the board's watchdog. It has no driver for this one: the i6300esb's registers are
set by hand (Intel 6300ESB I/O Controller Hub datasheet, "Watchdog Timer").
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import artefacts
from disk import MIB, SECTOR

from mgota.core.ubootenv import Environment, encode_copy

BOOT_ENV = Path(__file__).parent / "guest" / "boot.env"

COPIES = (MIB, MIB + 0x10000)
"""Bytes from the start of the disk."""

SIZE = 0x4000
ATTEMPTS = 2

OWN_SIZE = 0x40000  # CONFIG_ENV_SIZE of qemu_arm64

FILL = {
    "ATTEMPTS": ATTEMPTS,
    "LBA0": COPIES[0] // SECTOR,
    "LBA1": COPIES[1] // SECTOR,
    "BLOCKS": SIZE // SECTOR,
    "DATA": SIZE - 5,  # without CRC and flags
    "PLAIN": SIZE - 1,  # without flags
    "TICKS": 0x2000,  # eight seconds in each of two stages
}


def own_environment(entries: Sequence[str] = ()) -> bytes:
    """The flash memory of U-Boot's own environment.

    Args:
        entries: its variables; none are those of the board with two slots, with its scripts.
    """
    return encode_copy(Environment(tuple(entry.encode() for entry in entries or _scripts()), 0xFF), OWN_SIZE)


def _scripts() -> list[str]:
    entries: list[str] = []
    for line in BOOT_ENV.read_text().splitlines():
        if line.startswith(" "):
            entries[-1] += line.strip() + "\n"
        elif line and not line.startswith("#"):
            entries.append(line)
    return [re.sub(r"@(\w+)@", lambda match: f"{FILL[match[1]]:x}", entry) for entry in entries]


def write_flash(place: Path, environment: bytes) -> None:
    """The two flash memories of a board: U-Boot, and its own environment."""
    for name, data in (("uboot.img", artefacts.uboot().read_bytes()), ("uboot-env.img", environment)):
        (place / name).write_bytes(data)
        os.truncate(place / name, 64 * MIB)


def flash_drives(place: Path) -> list[str]:
    """QEMU's arguments for them."""
    return [
        argument
        for unit, name in enumerate(("uboot.img", "uboot-env.img"))
        for argument in ("-drive", f"if=pflash,unit={unit},format=raw,readonly=on,file={place / name}")
    ]


def shared_environment(variables: Mapping[str, str], *, flags: int) -> bytes:
    """A copy of the variables on the disk."""
    entries = tuple(f"{name}={text}".encode() for name, text in variables.items())
    return encode_copy(Environment(entries), SIZE, flags=flags)


def config(device: str | Path) -> str:
    """`/etc/fw_env.config` for them."""
    return "".join(f"{device} {offset:#x} {SIZE:#x}\n" for offset in COPIES)
