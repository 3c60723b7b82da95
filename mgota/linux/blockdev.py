"""Block devices: how one is found, how large it is, and what is refused.

Rules:
- a device is opened for writing with O_EXCL: the kernel refuses one that is mounted, or whose disk or partition is;
- names are resolved when a device is opened, not before: a card may be exchanged.
"""

import errno
import os
import stat
import struct
from pathlib import Path

from mgota.errors import ConfigError, FlashError
from mgota.linux.ioctl import Ioctl, request

BLKGETSIZE64 = request("\x12", 114, 8, read=True)
BLKDISCARD = request("\x12", 119)

_SIZE = struct.Struct("=Q")
_RANGE = struct.Struct("=QQ")
_NO_DISCARD = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS)

_BY = {"PARTUUID": "by-partuuid", "PARTLABEL": "by-partlabel", "LABEL": "by-label", "UUID": "by-uuid"}
_UEVENT = {"PARTUUID": "PARTUUID", "PARTLABEL": "PARTNAME"}


def find_device(name: str, *, dev: str | os.PathLike[str] = "/dev", sys: str | os.PathLike[str] = "/sys") -> Path:
    """The device that a name stands for.

    Args:
        name: a path, or `PARTUUID=`, `PARTLABEL=`, `LABEL=` or `UUID=` and what it is. The last two name file systems.
        dev: where devices are.
        sys: where the kernel describes them: without udev, partitions are looked for there.

    Raises:
        ConfigError: there is none.
    """
    key, equals, value = name.partition("=")
    if not equals:
        if not name.startswith("/"):
            raise ConfigError(f"{name!r} is no device: give its path, or PARTUUID=, PARTLABEL=, LABEL= or UUID=")
        return Path(name)
    if key not in _BY or not value or "/" in value:
        raise ConfigError(f"{name!r} is no device: one is found by PARTUUID=, PARTLABEL=, LABEL= or UUID=")
    wanted = value.lower() if key == "PARTUUID" else value
    link = Path(dev, "disk", _BY[key], _escaped(wanted))
    if link.exists():
        return link
    found = _in_sysfs(key, wanted, Path(sys)) if key in _UEVENT else []
    if len(found) > 1:
        raise ConfigError(f"more than one device is {name}: {', '.join(found)}")
    if not found:
        raise ConfigError(f"no device is {name}")
    return Path(dev, found[0])


def _in_sysfs(key: str, wanted: str, sys: Path) -> list[str]:
    """Names of partitions that the kernel itself describes so."""
    found = list[str]()
    for uevent in sorted(sys.glob("class/block/*/uevent")):
        try:
            text = uevent.read_text("utf-8", "replace")
        except OSError:
            continue  # it went away
        lines = {name: value for name, _, value in (line.partition("=") for line in text.splitlines())}
        value = lines.get(_UEVENT[key])
        if value is not None and (value.lower() if key == "PARTUUID" else value) == wanted:
            found.append(lines.get("DEVNAME", uevent.parent.name))
    return found


def _escaped(name: str) -> str:
    """As udev writes names that are no plain words: other bytes in hexadecimal."""
    plain = b"#+-.:=@_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "".join(chr(byte) if byte in plain or byte > 0x7F else f"\\x{byte:02x}" for byte in name.encode())


def open_device(path: Path, *, writing: bool) -> int:
    """Open a block device.

    Args:
        path: of it.
        writing: for writing as well, and then for nobody else.

    Raises:
        FlashError: it is not there, is no block device, or is in use.
    """
    flags = (os.O_RDWR | os.O_EXCL) if writing else os.O_RDONLY
    try:
        if not stat.S_ISBLK(os.stat(path).st_mode):  # noqa: PTH116  a device, not a file
            raise FlashError(f"{path} is no block device")
        if writing and os.stat("/").st_dev == os.stat(path).st_rdev:  # noqa: PTH116
            raise FlashError(f"{path} holds the system that runs, and is not written over")
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as exc:
        why = "it is mounted, or in use" if exc.errno == errno.EBUSY else exc.strerror
        raise FlashError(f"{path} cannot be opened: {why}") from exc


def device_size(fd: int, ioctl: Ioctl) -> int:
    """Bytes of an open block device.

    Raises:
        OSError: the driver refused.
    """
    size: int = _SIZE.unpack(ioctl(fd, BLKGETSIZE64, bytes(_SIZE.size)))[0]
    return size


def discard(fd: int, start: int, length: int, ioctl: Ioctl) -> bool:
    """Tell a device that bytes are of no use any more. What they read as then is anything.

    Args:
        fd: of the device.
        start: the first of them, a multiple of 512.
        length: bytes, a multiple of 512.
        ioctl: how drivers are called.

    Returns:
        Whether the device knows the call.

    Raises:
        OSError: it failed.
    """
    try:
        ioctl(fd, BLKDISCARD, _RANGE.pack(start, length))
    except OSError as exc:
        if exc.errno not in _NO_DISCARD:
            raise
        return False
    return True
