"""Raspberry Pi: `autoboot.txt` says which partition boots, and which one after `reboot "0 tryboot"`, once.

    [all]
    tryboot_a_b=1
    boot_partition=2
    [tryboot]
    boot_partition=3

Rules:
- a trial changes nothing: the firmware goes to the other partition once, because the reboot says so, and comes back by
  itself;
- a commit exchanges the two numbers;
- the firmware reads 512 bytes of the file, and other lines of it are kept.

This is a model of the documented rules: nobody has run it on a board. Source: Raspberry Pi documentation, "The
autoboot.txt file" and "Fail-safe OS updates (tryboot)".
"""

import re
from dataclasses import dataclass

from mgota.errors import FlashError

LIMIT = 512
"""Bytes that the firmware reads."""

REBOOT_ARGUMENT = "0 tryboot"

_SECTION = re.compile(r"\[([^\]]*)\]")
_PARTITION = re.compile(r"boot_partition=(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Autoboot:
    """What the file says.

    Args:
        normal: number of the partition that boots.
        trial: number of the one that boots after a tryboot.
        lines: of the file.
    """

    normal: int
    trial: int
    lines: tuple[str, ...]

    def with_numbers(self, normal: int, trial: int) -> "Autoboot":
        """The same file with other numbers."""
        lines, section = list[str](), "all"
        for line in self.lines:
            section = found[1] if (found := _SECTION.fullmatch(line.strip())) else section
            if _PARTITION.fullmatch(line.strip()):
                lines.append(f"boot_partition={trial if section == 'tryboot' else normal}")
            else:
                lines.append(line)
        return Autoboot(normal, trial, tuple(lines))


def encode_autoboot(autoboot: Autoboot) -> bytes:
    """The bytes of the file.

    Raises:
        FlashError: the firmware would not read all of them.
    """
    data = "".join(f"{line}\n" for line in autoboot.lines).encode("utf-8", "surrogateescape")
    if len(data) > LIMIT:
        raise FlashError(f"autoboot.txt would have {len(data)} bytes: the firmware reads {LIMIT}")
    return data


def decode_autoboot(data: bytes) -> Autoboot:
    """What a file says.

    Raises:
        FlashError: it does not describe two partitions, or is too long.
    """
    if len(data) > LIMIT:
        raise FlashError(f"autoboot.txt has {len(data)} bytes: the firmware reads {LIMIT}")
    lines = tuple(data.decode("utf-8", "surrogateescape").splitlines())
    section, numbers, flags = "all", dict[str, int](), set[str]()
    for line in lines:
        if found := _SECTION.fullmatch(line.strip()):
            section = found[1]
        elif found := _PARTITION.fullmatch(line.strip()):
            if section in numbers:
                raise FlashError(f"autoboot.txt names two partitions in [{section}]")
            numbers[section] = int(found[1])
        elif line.strip() == "tryboot_a_b=1":
            flags.add(section)
    if numbers.keys() != {"all", "tryboot"} or "all" not in flags or numbers["all"] == numbers["tryboot"]:
        raise FlashError("autoboot.txt needs tryboot_a_b=1 and a boot_partition in [all], and another in [tryboot]")
    return Autoboot(numbers["all"], numbers["tryboot"], lines)


def decode_cell(data: bytes) -> int:
    """A number of the device tree: 32 bits, big-endian.

    Raises:
        FlashError: it is none.
    """
    if len(data) != 4:
        raise FlashError(f"a number of the device tree has 4 bytes, not {len(data)}")
    return int.from_bytes(data)
