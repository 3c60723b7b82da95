"""What the virtual board is made of, fetched once by apt and pip and kept outside the tree.

Rules:
- nothing is installed: packages of the board's architecture are unpacked into a directory, with an apt state of its own
  and the machine's own sources;
- a product is made beside its place and renamed into it, under a lock: it is there whole or not at all;
- its name says what it is made of, so that another recipe makes another product. What is there is never fetched again.

`MGOTA_SBC_CACHE` names the directory; `~/.cache/mgota-sbc` is the default. Removing it is safe.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

APT = """\
APT::Architecture "{arch}";
APT::Architectures "{arch}";
APT::Install-Recommends "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "{here}/state";
Dir::State::status "{here}/state/status";
Dir::Cache "{here}/cache";
"""

UNWANTED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/perl5",
    "usr/lib/*/perl*",
    "usr/lib/*/gconv",
)
"""What no program of the board opens."""

PACKAGES = ("python3.11", "python3-cffi-backend", "python3-crcmod", "busybox-static")

WHEELS = (
    *("anyio", "idna", "typing_extensions", "h11", "cryptography", "packaging"),
    *("httpx", "httpcore", "certifi", "aiomqtt", "paho-mqtt"),
)
"""What mgota imports in the board, in the versions that it is tested with here. There is no wheel of cffi for armhf."""

APPLETS = ("sh", "mount", "ifconfig", "route", "sleep", "cat", "mkdir", "grep")
"""Of busybox: what a slot's init calls."""

PLATFORMS = {
    "arm64": ("manylinux_2_28_aarch64", "manylinux2014_aarch64"),
    "armhf": ("manylinux_2_31_armv7l", "manylinux_2_36_armv7l"),
}


@dataclass(frozen=True)
class Kernel:
    """A kernel and its modules, unpacked."""

    image: Path
    modules: Path

    def with_needs(self, names: Sequence[str]) -> list[Path]:
        """The modules of these names and what they need, in the order in which they can be loaded."""
        found = {path.name.removesuffix(".ko").replace("-", "_"): path for path in self.modules.rglob("*.ko")}
        order: dict[Path, None] = {}

        def add(name: str) -> None:
            if (path := found[name]) not in order:
                for need in _needs(path):
                    add(need)
                order[path] = None

        for name in names:
            if name in found:  # others are built in
                add(name)
        return list(order)


def _needs(module: Path) -> list[str]:
    """The modules that this one depends on: `depends=` in its .modinfo."""
    match = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name.replace("-", "_") for name in (match[1].decode() if match else "").split(",") if name]


def root() -> Path:
    """The cache."""
    given = os.environ.get("MGOTA_SBC_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "mgota-sbc"


def product(name: str, recipe: object, make: Callable[[Path], None]) -> Path:
    """The product of a recipe; `make` is given the path to make it at, if it is not there yet."""
    place = root() / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    if not place.exists():
        with _locked(place.name):
            if not place.exists():
                draft = place.with_name(f".{place.name}.draft")
                _remove(draft)
                make(draft)
                draft.replace(place)
    return place


@contextmanager
def _locked(name: str) -> Generator[None]:
    root().mkdir(parents=True, exist_ok=True)
    with (root() / f".{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run(*command: str | Path, env: dict[str, str] | None = None) -> str:
    """Run a program to its end; what it says is the message if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(env or {})}, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def apt(arch: str) -> dict[str, str]:
    """The environment of apt commands for a foreign architecture; its lists are fetched once."""

    def fetch(here: Path) -> None:
        for each in ("state/lists/partial", "cache/archives/partial"):
            (here / each).mkdir(parents=True)
        (here / "state/status").touch()
        config = here / "apt.conf"
        config.write_text(APT.format(arch=arch, here=here))
        # A list that cannot be had, of updates on a mirror that is behind, is missed where a package is: not here.
        with suppress(RuntimeError):
            run("apt-get", "update", "-qq", env={"APT_CONFIG": str(config)})

    here = product(f"apt-{arch}", (APT, arch), fetch)
    (here / "apt.conf").write_text(APT.format(arch=arch, here=here))
    return {"APT_CONFIG": str(here / "apt.conf")}


def tree(arch: str, names: Sequence[str]) -> Path:
    """These packages and what they depend on, unpacked over each other."""

    def make(here: Path) -> None:
        with TemporaryDirectory(dir=root()) as debs:
            (Path(debs) / "partial").mkdir()
            fetch = ("apt-get", "install", "--download-only", "-y", "-qq", "-o", f"Dir::Cache::archives={debs}")
            with _locked(f"apt-{arch}"):
                run(*fetch, *names, env=apt(arch))
            for deb in sorted(Path(debs).glob("*.deb")):
                run("dpkg", "-x", deb, here)
        for pattern in UNWANTED:
            for path in here.glob(pattern):
                _remove(path)

    return product(f"tree-{arch}", (list(names), UNWANTED), make)


def _unpack(arch: str, name: str, here: Path) -> None:
    """One package, without what it needs."""
    with TemporaryDirectory(dir=root()) as debs, _locked(f"apt-{arch}"):
        run("sh", "-c", 'cd "$0" && apt-get download -qq "$1"', debs, name, env=apt(arch))
        run("dpkg", "-x", next(Path(debs).glob("*.deb")), here)


@cache
def kernel(arch: str, flavour: str) -> Kernel:
    """Debian's kernel of a flavour, such as "arm64": the newest of its release when it was fetched."""

    def make(here: Path) -> None:
        depends = run("apt-cache", "depends", f"linux-image-{flavour}", env=apt(arch))
        _unpack(arch, next(line.split()[1] for line in depends.splitlines() if "Depends: linux-image-" in line), here)

    here = product(f"kernel-{flavour}", (arch, flavour), make)
    return Kernel(next(here.glob("boot/vmlinuz-*")), next(here.glob("lib/modules/*")))


@cache
def distribution(arch: str) -> Path:
    """A directory with /usr of the board: Python, what mgota imports, and busybox."""
    wheels = tuple(f"{name}=={version(name)}" for name in WHEELS)
    base = tree(arch, PACKAGES)

    def make(here: Path) -> None:
        shutil.copytree(base, here, symlinks=True)
        for top in ("lib", "bin", "sbin"):  # the packages may still use the old places
            if (here / top).is_dir() and not (here / top).is_symlink():
                shutil.copytree(here / top, here / "usr" / top, symlinks=True, dirs_exist_ok=True)
                shutil.rmtree(here / top)
        site = here / "usr/lib/python3/dist-packages"
        platforms = [f"--platform={each}" for each in PLATFORMS[arch]]
        pip = (
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-compile",
            "--no-deps",
            "--upgrade",
            "--target",
            site,
        )
        run(*pip, *platforms, "--python-version=3.11", "--only-binary=:all:", *wheels)
        for applet in APPLETS:
            (here / "usr/bin" / applet).symlink_to("busybox")
        compile_tree(here / "usr/lib")

    return product(f"distribution-{arch}", (PACKAGES, wheels, PLATFORMS[arch], APPLETS), make)


def compile_tree(path: Path) -> None:
    """Byte code beside every module: it saves the board two thirds of the time that imports take."""
    if sys.version_info[:2] == (3, 11):  # the board's, whose byte code does not depend on the processor
        run(sys.executable, "-m", "compileall", "-q", "-j2", "--invalidation-mode", "unchecked-hash", path)


@cache
def distribution_image(arch: str) -> Path:
    """The board's /usr as a file system, which all machines read and none writes."""
    base = distribution(arch)
    return product(f"usr-{arch}.ext4", base.name, lambda draft: file_system(draft, base / "usr"))


def file_system(
    path: Path, content: Path, *, spare: int = 0, features: str = "^has_journal,^metadata_csum,^64bit"
) -> None:
    """An ext4 file system with the content of a directory.

    Args:
        path: the file to make.
        content: the directory.
        spare: bytes to leave free, besides a little that the file system needs.
        features: of the file system: U-Boot reads one without all that.
    """
    used = sum((each.lstat().st_size + 4095) // 4096 + 1 for each in content.rglob("*"))
    blocks = used + used // 20 + 256 + spare // 4096
    run(
        "mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-O", features, "-E", "root_owner=0:0,lazy_itable_init=0",
        "-d", content, path, str(blocks),
    )  # fmt: skip


@cache
def grub(modules: tuple[str, ...], early: str) -> Path:
    """GRUB as a program for EFI on arm64, which U-Boot is, too.

    Args:
        modules: of GRUB, built in.
        early: the script that it begins with.
    """

    def make(draft: Path) -> None:
        here = product("grub-arm64", "grub-efi-arm64-bin", lambda place: _unpack("arm64", "grub-efi-arm64-bin", place))
        with TemporaryDirectory(dir=root()) as work:
            (Path(work) / "early.cfg").write_text(early)
            target = ("-O", "arm64-efi", "-d", str(here / "usr/lib/grub/arm64-efi"), "-p", "/grub")
            run("grub-mkimage", *target, "-c", Path(work) / "early.cfg", "-o", draft, *modules)

    return product("grub-arm64.efi", (modules, early), make)


def uboot(board: str = "qemu_arm64") -> Path:
    """Debian's U-Boot for a machine of QEMU, installed with u-boot-qemu."""
    return Path("/usr/lib/u-boot") / board / "u-boot.bin"
