"""The environment of U-Boot where it lies: in files, on block devices, on NOR flash.

Rules:
- `/etc/fw_env.config` says where, and `/var/lock/fw_printenv.lock` keeps `fw_setenv` out meanwhile;
- a change is one write of one whole copy: of the one that does not count if there are two, then fsync, then read back.
  Two changes at once are one, or none;
- both copies bad: nothing is written, ever;
- on NOR flash the new copy is erased and programmed whole, and only then the old one's flags become 0, as U-Boot and
  libubootenv have it there. In between both are 1, and the first copy counts, be it the old or the new one;
- one copy that is a whole file is replaced by renaming.

With one copy on a device, a power cut in the midst of its write may leave none, as with `saveenv`; see DESIGN.md.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mgota.core.ubootenv import (
    ACTIVE,
    CRC,
    OBSOLETE,
    Copy,
    Environment,
    EnvPlace,
    choose,
    decode_copy,
    encode_copy,
    next_flags,
    parse_config,
)
from mgota.errors import ConfigError, FlashError, ReadError, UpdateRunningError, VerifyError
from mgota.flash.files import FileLock, replace_file
from mgota.linux.mtd import MtdDevice, is_mtd

CONFIG = "/etc/fw_env.config"
LOCK = "/var/lock/fw_printenv.lock"
LOCK_WAIT = 10.0
"""Seconds that another program has to finish with the environment."""

Change = Callable[[Mapping[str, str]], Mapping[str, str | None]]
"""From the variables to changes of them."""


@dataclass(frozen=True, slots=True)
class _Found:
    """What both places hold, and which of them counts."""

    copies: tuple[Copy | None, ...]
    index: int
    environment: Environment


class UbootEnvironment:
    """The environment at some places. Its calls block: the caller brings the thread.

    Args:
        places: one, or two of a redundant environment.
        lock: the file that other programs lock; None where there are none.
        wait: seconds to wait for it.
    """

    def __init__(
        self, places: tuple[EnvPlace, ...], *, lock: str | os.PathLike[str] | None = LOCK, wait: float = LOCK_WAIT
    ) -> None:
        self.places = places
        self._lock = None if lock is None else FileLock(lock)
        self._wait = wait

    @classmethod
    def from_config(
        cls, path: str | os.PathLike[str] = CONFIG, *, lock: str | os.PathLike[str] | None = LOCK
    ) -> "UbootEnvironment":
        """The environment that a configuration file describes.

        Raises:
            ConfigError: there is no such file, or it describes none.
        """
        try:
            text = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"{path} cannot be read: {getattr(exc, 'strerror', None) or 'it is no text'}") from exc
        return cls(parse_config(text), lock=lock)

    @property
    def redundant(self) -> bool:
        """Whether there are two copies."""
        return len(self.places) > 1

    def variables(self) -> dict[str, str]:
        """All variables, as U-Boot would find them now.

        Raises:
            FlashError: they cannot be read, or no copy is good.
        """
        with self._locked():
            return self._load().environment.variables

    def change(self, change: Change) -> bool:
        """Change variables, in one write.

        Args:
            change: called with them while nobody else can change them. No changes, and nothing is written.

        Returns:
            Whether anything was written.

        Raises:
            FlashError: nothing was changed, or nobody knows; no copy is good, or the new one does not read back.
        """
        with self._locked():
            found = self._load()
            changes = change(found.environment.variables)
            if changes:
                self._store(found, found.environment.changed(changes))
            return bool(changes)

    def rewrite(self) -> None:
        """Write what is there once more, and read it back: a test of everything that a change needs.

        Raises:
            FlashError: it did not work.
        """
        with self._locked():
            found = self._load()
            self._store(found, found.environment)

    def _load(self) -> _Found:
        raw = [_read(place) for place in self.places]
        copies = tuple(decode_copy(data, redundant=self.redundant) for data in raw)
        index = choose(copies)
        copy = None if index is None else copies[index]
        if index is None or copy is None:
            where = " and ".join(f"{place.device} at {place.offset:#x}" for place in self.places)
            raise ReadError(
                f"no good copy of U-Boot's environment in {where}: run saveenv in U-Boot, or check fw_env.config"
            )
        return _Found(copies, index, copy.environment)

    def _store(self, found: _Found, environment: Environment) -> None:
        target = 1 - found.index if self.redundant else 0
        place, old = self.places[target], self.places[found.index]
        flags = next_flags(copy.flags) if self.redundant and (copy := found.copies[found.index]) else None
        on_nor = self.redundant and is_mtd(place.device)
        if on_nor:
            flags = ACTIVE[0]
            _check_apart(place, old)
        data = encode_copy(environment, place.size, flags=flags)
        _write(place, data, alone=not self.redundant)
        if on_nor:
            MtdDevice(old.device).program(start_of(old) + CRC, OBSOLETE)
        if self._load().environment != environment:
            raise VerifyError(f"{place.device} does not keep U-Boot's environment")

    @contextmanager
    def _locked(self) -> Generator[None]:
        with _translated(self.places[0].device):
            if self._lock is None:
                yield
                return
            with self._wait_for(self._lock):
                yield

    @contextmanager
    def _wait_for(self, lock: FileLock) -> Generator[None]:
        deadline = time.monotonic() + self._wait
        while True:
            try:
                held = lock.hold()
                held.__enter__()
                break
            except UpdateRunningError:
                if time.monotonic() >= deadline:
                    raise FlashError(f"another program does not let go of {lock.path}") from None
                time.sleep(0.02)
        try:
            yield
        finally:
            held.__exit__(None, None, None)


@contextmanager
def _translated(device: str) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise FlashError(f"U-Boot's environment in {device}: {exc.strerror}") from exc


def start_of(place: EnvPlace) -> int:
    """The first byte, also where the configuration counts from the end.

    Raises:
        OSError: the device cannot be looked at.
        FlashError: nor can its driver be asked.
    """
    if place.offset >= 0:
        return place.offset
    if is_mtd(place.device):
        return MtdDevice(place.device).info().size + place.offset
    fd = os.open(place.device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END) + place.offset
    finally:
        os.close(fd)


def _read(place: EnvPlace) -> bytes:
    """The bytes of a place, from the medium."""
    if is_mtd(place.device):
        return MtdDevice(place.device).read(start_of(place), place.size)
    fd = os.open(place.device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with suppress(OSError):  # advice
            os.posix_fadvise(fd, start_of(place), place.size, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, place.size, start_of(place))
    finally:
        os.close(fd)
    if len(data) != place.size:
        raise ReadError(f"{place.device} ends before {start_of(place) + place.size:#x}: check fw_env.config")
    return data


def _write(place: EnvPlace, data: bytes, *, alone: bool) -> None:
    if is_mtd(place.device):
        _write_nor(MtdDevice(place.device), place, data)
        return
    if alone and _is_whole_file(place):
        replace_file(place.device, data)
        return
    _allow_writing(place.device)
    fd = os.open(place.device, os.O_WRONLY | os.O_CLOEXEC)
    try:
        if os.pwrite(fd, data, start_of(place)) != len(data):
            _too_short(place)
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_whole_file(place: EnvPlace) -> bool:
    found = os.stat(place.device)  # noqa: PTH116  as above
    return stat.S_ISREG(found.st_mode) and not place.offset and found.st_size == place.size


def _too_short(place: EnvPlace) -> NoReturn:
    raise OSError(errno.EIO, f"{place.device} took only a part of the environment")


def _blocks(place: EnvPlace) -> tuple[int, int]:
    """The erase blocks that a place touches: their first byte, and the one behind them."""
    block, start = MtdDevice(place.device).info().erase_size, start_of(place)
    return start // block * block, -(-(start + place.size) // block) * block


def _check_apart(one: EnvPlace, two: EnvPlace) -> None:
    if os.path.samefile(one.device, two.device):  # noqa: PTH121  as above
        (start, end), (other, other_end) = _blocks(one), _blocks(two)
        if start < other_end and other < end:
            raise ConfigError(f"both copies of U-Boot's environment share an erase block of {one.device}")


def _write_nor(device: MtdDevice, place: EnvPlace, data: bytes) -> None:
    """Erase whole blocks, and program them; what shares them with the environment is kept."""
    (first, end), start = _blocks(place), start_of(place)
    content = bytearray(device.read(first, end - first))
    content[start - first : start - first + place.size] = data
    device.erase(first, end - first)
    device.program(first, content)


def _allow_writing(device: str) -> None:
    """The boot areas of an eMMC are read-only until the kernel is told otherwise."""
    with suppress(OSError):
        if stat.S_ISBLK(os.stat(device).st_mode):  # noqa: PTH116  as above
            name = Path(device).resolve().name
            switch = Path("/sys/class/block", name, "force_ro")
            if switch.exists() and switch.read_text().strip() == "1":
                switch.write_text("0")
