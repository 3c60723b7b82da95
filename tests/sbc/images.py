"""Images of the board's slots: a root file system with its kernel, its initramfs and an application that uses mgota.

One image is built and signed for each test run; others are that one with a few bytes changed, and signed anew:
- what the application does stands in /app/behaviour.json, a block of its own; see `guest/board.py`;
- a kernel that hangs is Debian's with `b .` for its first instruction; one that is none lacks its magic number.
"""

import gzip
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import artefacts
import uboot
from disk import Cpio

from mgota.core.image import Trailer, attach
from mgota.core.keys import PrivateKey, load_private_key
from mgota.core.record import SlotImage

HERE = Path(__file__).parent
GUEST = HERE / "guest"
MGOTA_SOURCE = HERE.parents[1] / "mgota"

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4", "i6300esb", "qemu_fw_cfg", "virtio_rng")
HEARTBEAT = 60
"""Seconds of the watchdog between the initramfs and the application. None of the tests waits for it."""

BLOCK = 4096
_MAGIC = b"ARM\x64"  # at byte 56 of an arm64 kernel: Linux, Documentation/arm64/booting.rst
_LOOP = struct.pack("<I", 0x14000000)  # b .


@cache
def initramfs() -> bytes:
    """The first file system of the board: busybox and the modules without which it sees no disk."""
    archive = Cpio()
    for name in ("bin", "dev", "proc", "sys", "modules"):
        archive.directory(name)
    archive.device("dev/console", 5, 1)
    archive.file("bin/busybox", (artefacts.distribution("arm64") / "usr/bin/busybox").read_bytes())
    modules = artefacts.kernel("arm64", "arm64").with_needs(MODULES)
    for module in modules:
        archive.file(f"modules/{module.name}", module.read_bytes(), 0o644)
    archive.file("modules/order", "\n".join(module.name for module in modules).encode(), 0o644)
    archive.file("modules/i6300esb.ko.options", f"heartbeat={HEARTBEAT}".encode(), 0o644)
    archive.file("init", (GUEST / "initramfs.sh").read_bytes())
    return archive.encode()


def _block(behaviour: Mapping[str, Any]) -> bytes:
    return json.dumps(behaviour).encode().ljust(BLOCK - 1) + b"\n"


@dataclass(frozen=True)
class Firmware:
    """A signed image.

    Args:
        path: of the image.
        version: what its application says.
        size: bytes without the trailer.
        sha256: hex digest of them.
    """

    path: Path
    version: str
    size: int
    sha256: str

    def as_proven(self) -> SlotImage:
        """What the boot record of a board says that came from the factory with it."""
        size = self.path.stat().st_size
        return SlotImage(size=self.size, image_size=size, sha256=self.sha256, version=None, proven=True)


class System:
    """Makes the images of a test run.

    Args:
        place: a directory; what is there already is used.
        small: their kernels are compressed: two fifths of the size, for U-Boot to unpack at each boot.
    """

    def __init__(self, place: Path, *, small: bool = False) -> None:
        self.place = place
        self._small = small
        if not (place / "base.img").exists():
            self._build()
        self.private_key = place / "private.pem"
        self._key = load_private_key(self.private_key.read_bytes())
        self._base = (place / "base.img").read_bytes()

    def firmware(self, version: str, *, kernel: str = "", **behaviour: Any) -> Firmware:
        """An image of a version.

        Args:
            version: what its application says that it is.
            kernel: "hangs" or "is none", if it shall not boot.
            behaviour: of the application; see `guest/board.py`.
        """
        data = self._base.replace(_block({}), _block({**behaviour, "version": version}))
        if kernel:
            at = data.index(_MAGIC) - 56
        if kernel == "hangs":
            data = data[:at] + _LOOP + data[at + 4 :]
        elif kernel == "is none":
            data = data[: at + 56] + b"none" + data[at + 60 :]
        digest = hashlib.sha256(data)
        path = self.place / f"{version}-{digest.hexdigest()[:8]}.signed.img"
        if not path.exists():
            draft = path.with_suffix(f".{os.getpid()}.draft")  # another worker may be at it just now
            draft.write_bytes(attach(data, self._key.sign(digest.digest()), Trailer.RAW))
            draft.replace(path)
        return Firmware(path, version, len(data), digest.hexdigest())

    def _build(self) -> None:
        root = self.place / "root"
        shutil.rmtree(root, ignore_errors=True)
        for name in ("boot", "dev", "proc", "sys", "run", "tmp", "data", "usr", "sbin", "etc", "app", "var"):
            (root / name).mkdir(parents=True)
        for name in ("lib", "bin"):
            (root / name).symlink_to(f"usr/{name}")
        (root / "var/lock").symlink_to("/run/lock")
        (root / "etc/fw_env.config").write_text(uboot.config("/dev/vda"))
        kernel = artefacts.kernel("arm64", "arm64").image.read_bytes()
        (root / "boot/Image").write_bytes(gzip.compress(kernel, 6) if self._small else kernel)
        (root / "boot/initrd").write_bytes(initramfs())
        shutil.copy(GUEST / "init.sh", root / "sbin/init")
        (root / "sbin/init").chmod(0o755)
        shutil.copytree(
            MGOTA_SOURCE, root / "app/mgota", ignore=shutil.ignore_patterns("__pycache__", "page", "testing")
        )
        for each in GUEST.glob("*.py"):
            shutil.copy(each, root / "app")
        key = PrivateKey.generate()
        (self.place / "private.pem").write_bytes(key.pem(None))
        (root / "app/public.pem").write_bytes(key.public.pem())
        (root / "app/behaviour.json").write_bytes(_block({}))
        artefacts.compile_tree(root / "app")
        artefacts.file_system(self.place / "draft.img", root)
        (self.place / "draft.img").replace(self.place / "base.img")
        shutil.rmtree(root)
