"""What the board's U-Boot does, as scripts in its environment, and the environment that Linux shares with it.

Debian's U-Boot keeps its own variables in a flash memory that nothing here can write; that is where its scripts are.
The variables that decide what boots lie in two redundant copies on the disk, as a board's U-Boot would keep them that
is configured for it. This one is not, so that its script does the same by hand: it takes the copy with the newer flags
whose CRC fits, and writes the other one.

The convention is RAUC's: of the names in BOOT_ORDER the first one boots that has attempts left, BOOT_x_LEFT, after one
of them is counted off and that is saved. A slot that cannot be loaded is a reset. When no attempts are left at all, all
names in BOOT_ORDER get new ones.

Before it starts a kernel, U-Boot arms the board's watchdog. It has no driver for this one: the i6300esb's registers are
set by hand (Intel 6300ESB ICH datasheet, chapter 17).
"""

from collections.abc import Mapping
from pathlib import Path

from disk import MIB, SECTOR
from mgota.core.ubootenv import Environment, encode_copy

COPIES = (MIB, MIB + 0x10000)
"""Bytes from the start of the disk."""

SIZE = 0x4000
ATTEMPTS = 2

OWN_SIZE = 0x40000  # CONFIG_ENV_SIZE of qemu_arm64

WATCHDOG_TICKS = 0x2000
"""About milliseconds of each of the two stages of the watchdog: sixteen seconds until it bites."""


def _blocks(number: int) -> str:
    return f"{number // SECTOR:x}"


# $b: where a copy is in memory. $t: where it lies without its flags, as U-Boot's commands know an environment.
SCRIPTS: dict[str, str] = {
    "b0": "41000000",
    "b1": "41100000",
    "t": "41200000",
    "scratch": "41300000",
    "take": "cp.b ${b} ${t} 4; setexpr from ${b} + 5; setexpr to ${t} + 4; cp.b ${from} ${to} %x; "
    "env import -c ${t} %x BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT" % (SIZE - 5, SIZE - 1),
    "read": "virtio read ${b0} %s %s; virtio read ${b1} %s %s; "
    "setexpr at ${b0} + 4; setexpr.b f0 *${at}; setexpr at ${b1} + 4; setexpr.b f1 *${at}; "
    "one=0; two=1; flags=${f0}; "
    "if test 0x${f1} -gt 0x${f0}; then one=1; fi; "
    "if test 0x${f0} -eq 255 && test 0x${f1} -eq 0; then one=1; fi; "
    "if test 0x${f1} -eq 255 && test 0x${f0} -eq 0; then one=0; fi; "
    "if test ${one} = 1; then two=0; fi; "
    "setenv b ${b0}; if test ${one} = 1; then setenv b ${b1}; fi; "
    "if run take; then setenv used ${one}; else "
    "setenv b ${b0}; if test ${two} = 1; then setenv b ${b1}; fi; "
    "if run take; then setenv used ${two}; else setenv used none; echo board: both copies are bad; fi; fi"
    % (_blocks(COPIES[0]), _blocks(SIZE), _blocks(COPIES[1]), _blocks(SIZE)),
    "write": "if test ${used} != none; then "
    "if test ${used} = 0; then setenv b ${b1}; lba=%s; else setenv b ${b0}; lba=%s; fi; "
    "if test ${used} = 0; then setexpr flags 0x${f0} + 1; else setexpr flags 0x${f1} + 1; fi; "
    "env export -c -s %x ${t} BOOT_ORDER BOOT_A_LEFT BOOT_B_LEFT; "
    "cp.b ${t} ${b} 4; setexpr to ${b} + 5; setexpr from ${t} + 4; cp.b ${from} ${to} %x; "
    "setexpr at ${b} + 4; mw.b ${at} ${flags}; virtio write ${b} ${lba} %s; fi"
    % (_blocks(COPIES[1]), _blocks(COPIES[0]), SIZE - 1, SIZE - 5, _blocks(SIZE)),
    "choose": "setenv slot; for name in ${BOOT_ORDER}; do "
    "if test -z \"${slot}\" && test ${name} = A && test 0x${BOOT_A_LEFT} -gt 0; then "
    "setexpr BOOT_A_LEFT ${BOOT_A_LEFT} - 1; setenv slot A; setenv part 2; fi; "
    "if test -z \"${slot}\" && test ${name} = B && test 0x${BOOT_B_LEFT} -gt 0; then "
    "setexpr BOOT_B_LEFT ${BOOT_B_LEFT} - 1; setenv slot B; setenv part 3; fi; done",
    "refill": f"for name in ${{BOOT_ORDER}}; do setenv BOOT_${{name}}_LEFT {ATTEMPTS}; done",
    "arm": "pci enum; pci write.l 0.6.0 10 3e000000; pci write.w 0.6.0 4 2; "
    "mw.w 3e00000c 80; mw.w 3e00000c 86; mw.l 3e000000 {0:x}; "
    "mw.w 3e00000c 80; mw.w 3e00000c 86; mw.l 3e000004 {0:x}; "
    "pci write.w 0.6.0 60 0; pci write.b 0.6.0 68 2".format(WATCHDOG_TICKS),
    "start": "setenv bootargs console=ttyAMA0 quiet panic=0 mgota.slot=${slot}; "
    "load virtio 0:${part} ${kernel_addr_r} /boot/Image && load virtio 0:${part} ${ramdisk_addr_r} /boot/initrd && "
    "booti ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdtcontroladdr}",
    "bootcmd": "virtio scan; setenv BOOT_ORDER A B; setenv BOOT_A_LEFT %d; setenv BOOT_B_LEFT %d; run read; run choose; "
    "if test -z \"${slot}\"; then echo board: no attempts left; run refill; run write; reset; fi; "
    "echo board: U-Boot starts ${slot} of ${BOOT_ORDER}, A has ${BOOT_A_LEFT} and B has ${BOOT_B_LEFT} left; "
    "run write; run arm; run start; echo board: slot ${slot} does not boot; reset" % (ATTEMPTS, ATTEMPTS),
    "bootdelay": "0",
    "kernel_addr_r": "0x42000000",
    "ramdisk_addr_r": "0x48000000",
}


def own_environment() -> bytes:
    """The flash memory of U-Boot's own environment."""
    entries = tuple(f"{name}={text}".encode() for name, text in SCRIPTS.items())
    return encode_copy(Environment(entries, 0xFF), OWN_SIZE)


def shared_environment(variables: Mapping[str, str], *, flags: int) -> bytes:
    """A copy of the variables on the disk."""
    entries = tuple(f"{name}={text}".encode() for name, text in variables.items())
    return encode_copy(Environment(entries), SIZE, flags=flags)


def config(device: str | Path) -> str:
    """`/etc/fw_env.config` for them."""
    return "".join(f"{device} {offset:#x} {SIZE:#x}\n" for offset in COPIES)
