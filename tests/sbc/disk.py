"""The board's storage: a GPT disk made in plain Python, and cpio archives for initramfs.

Sources: UEFI specification 2.10, section 5 (GPT); Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
import struct
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

SECTOR = 512
MIB = 1 << 20
_ENTRIES, _ENTRY = 128, 128
_LINUX = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")


@dataclass(frozen=True)
class Partition:
    """One partition.

    Args:
        name: its label.
        start: bytes from the start of the disk.
        size: bytes.
    """

    name: str
    start: int
    size: int

    @property
    def uuid(self) -> uuid.UUID:
        """Its PARTUUID: the same on every disk, so that a test can name it."""
        return uuid.uuid5(uuid.NAMESPACE_DNS, f"{self.name}.sbc.mgota")


def make_disk(path: Path, partitions: Iterable[Partition], size: int) -> None:
    """A sparse file with a partition table."""
    table = list(partitions)
    entries = b"".join(_entry(each) for each in table).ljust(_ENTRIES * _ENTRY, b"\0")
    last = size // SECTOR - 1
    with path.open("wb") as file:
        file.truncate(size)
        file.write(_protective(last))
        file.write(_header(1, last, 2, crc32(entries)))
        file.write(entries)
        file.seek((last - 32) * SECTOR)
        file.write(entries)
        file.write(_header(last, 1, last - 32, crc32(entries)))


def _entry(partition: Partition) -> bytes:
    first = partition.start // SECTOR
    end = first + partition.size // SECTOR - 1
    name = partition.name.encode("utf-16-le").ljust(72, b"\0")
    return _LINUX.bytes_le + partition.uuid.bytes_le + struct.pack("<QQQ", first, end, 0) + name


def _protective(last: int) -> bytes:
    entry = struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, min(last, 0xFFFFFFFF))
    return b"\0" * 446 + entry + b"\0" * 48 + b"\x55\xaa"


def _header(here: int, other: int, entries: int, crc: int) -> bytes:
    disk = uuid.uuid5(uuid.NAMESPACE_DNS, "sbc.mgota").bytes_le

    def packed(own: int) -> bytes:
        fields = (b"EFI PART", 0x10000, 92, own, 0, here, other, 34, max(here, other) - 33, disk, entries)
        return struct.pack("<8sIIIIQQQQ16sQIII", *fields, _ENTRIES, _ENTRY, crc)

    return packed(crc32(packed(0))).ljust(SECTOR, b"\0")


class Cpio:
    """An archive in the format that the kernel unpacks: "newc"."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._inode = 0

    def directory(self, name: str) -> None:
        """Add a directory."""
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, mode: int = 0o755) -> None:
        """Add a file."""
        self._add(name, stat.S_IFREG | mode, data)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name: str, major: int, minor: int) -> None:
        """Add a character device."""
        self._add(name, stat.S_IFCHR | 0o600, b"", (major, minor))

    def tree(self, name: str, path: Path) -> None:
        """Add a directory with all that is in it."""
        self.directory(name)
        for each in sorted(path.rglob("*")):
            inside = f"{name}/{each.relative_to(path)}"
            if each.is_symlink():
                self.link(inside, str(each.readlink()))
            elif each.is_dir():
                self.directory(inside)
            else:
                self.file(inside, each.read_bytes(), stat.S_IMODE(each.stat().st_mode))

    def encode(self) -> bytes:
        """The archive."""
        end = Cpio()
        end._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts + end._parts)

    def _add(self, name: str, mode: int, data: bytes, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        path = name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % number for number in numbers)
        self._parts.append(_padded(head + path) + _padded(data))


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
