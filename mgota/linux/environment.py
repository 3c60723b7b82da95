"""How a program finds the device that it runs on, and how another process finds it from outside.

The launcher tells its program by the environment:

    MGOTA_DIR           the directory of the device
    MGOTA_SLOT          the slot that this program was started from: "a" or "b"
    MGOTA_WINDOW        seconds of a trial
    MGOTA_FLOOR         the lowest version that may be installed, if there is one; the program may ask for more
    MGOTA_HARDWARE      what this device is, if that is known
    MGOTA_HISTORY       the file of the last updates, if they are kept
    MGOTA_TRIAL_UNTIL   on trial only: its end, in seconds of CLOCK_MONOTONIC, which all processes share
    NOTIFY_SOCKET       where the launcher listens (see `mgota.linux.notify`)
    WATCHDOG_USEC       microseconds between two feeds, at most; feeding at half of it is good manners

It tells other processes by the file DIR/launcher: one line of JSON, which counts only while the launcher holds the
file's lock. A killed launcher holds none.
"""

import json
import math
import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from mgota.core.geometry import Slot
from mgota.core.history import MAX_HISTORY
from mgota.core.version import highest, order
from mgota.device import Device
from mgota.errors import ConfigError, UpdateRunningError
from mgota.flash.files import FileLock
from mgota.history import History
from mgota.linux.names import LAUNCHER, LOCK, STATE
from mgota.linux.notify import Notifier, NotifyReset, NotifyWatchdog
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.linux.story import FileStory

DIR = "MGOTA_DIR"
SLOT = "MGOTA_SLOT"
WINDOW = "MGOTA_WINDOW"
FLOOR = "MGOTA_FLOOR"
HARDWARE = "MGOTA_HARDWARE"
HISTORY = "MGOTA_HISTORY"
TRIAL_UNTIL = "MGOTA_TRIAL_UNTIL"

_LOOKS = 3
_PAUSE = 0.02  # seconds between two looks: another process that looks holds the lock for less


@dataclass(frozen=True, slots=True)
class LauncherInfo:
    """What a living launcher says of itself.

    Args:
        pid: of the launcher.
        notify: where it listens.
        slot: the slot whose program runs, None while none does.
        trial_until: end of the trial's window on `time.monotonic`, None when none runs.
    """

    pid: int
    notify: str
    slot: Slot | None = None
    trial_until: float | None = None

    def encode(self) -> bytes:
        """The line in DIR/launcher."""
        return json.dumps(asdict(self)).encode("ascii") + b"\n"


def file_device(directory: str | os.PathLike[str], *, running: Slot | None = None, **options: Any) -> Device:
    """The device whose slots, record and lock are files in a directory.

    Args:
        directory: made if it is missing.
        running: the running slot, if the caller knows; otherwise the one that is selected.
        options: further arguments of `Device`.

    Raises:
        FlashError: the directory is missing and cannot be made.
    """
    slots = FileSlots(directory, running=running)
    parts: dict[str, Any] = {
        "state": FileState(slots.directory / STATE),
        "lock": FileLock(slots.directory / LOCK),
    }
    return Device(flash=slots, **{**parts, **options})


def device_from_environment(environ: Mapping[str, str], **options: Any) -> Device:
    """The device that this program runs on: what `Device.from_environment` returns under `mgota run`.

    Without MGOTA_SLOT nobody supervises the program; then the selected slot counts as the running one, and a reset is
    the caller's business.

    Args:
        environ: the environment that the launcher made.
        options: further arguments of `Device`, which replace those found here; of two floors the higher one holds.

    Raises:
        ConfigError: the environment does not describe a device.
    """
    directory = environ.get(DIR)
    if not directory:
        raise ConfigError(f"{DIR} is not set: start this program with `mgota run`")
    if not Path(directory).is_dir():
        raise ConfigError(f"{DIR} is no directory: {directory}")
    running = _slot(environ.get(SLOT))
    found: dict[str, Any] = {}
    if running:
        found["lock"] = OwnTurn(directory, running)
    if environ.get(WINDOW):
        found["window"] = _seconds(environ, WINDOW)
    if hardware := environ.get(HARDWARE):
        found["hardware"] = hardware
    if history := environ.get(HISTORY):
        found["history"] = History(FileStory(history, MAX_HISTORY))
    if floor := environ.get(FLOOR):
        options["floor"] = _higher(floor, options.get("floor"))
    if running and (notifier := Notifier.from_environment(environ)):
        found |= {"watchdog": NotifyWatchdog(notifier), "reset": NotifyReset(notifier)}
    device = file_device(directory, running=running, **{**found, **options})
    device.live.decided = running is not None
    if environ.get(TRIAL_UNTIL):
        device.live.trial_until = _seconds(environ, TRIAL_UNTIL)
    return device


def _higher(found: str, own: str | None) -> str | None:
    for floor in (found, own):
        if floor is not None and order(floor) is None:
            raise ConfigError(f"the floor {floor!r} is no version that others could be compared with")
    return highest((found, own))


class OwnTurn:
    """The device's lock, for a program that the launcher started: held only while it is still that program's turn.

    A process that outlives its turn, because it left the process group, still believes that its slot runs. An update
    by it would be written over what really does.

    Args:
        directory: of the device.
        slot: that the program was started from.
    """

    def __init__(self, directory: str | os.PathLike[str], slot: Slot) -> None:
        self._directory = Path(directory)
        self._slot = slot

    @contextmanager
    def hold(self) -> Generator[None]:
        """Hold the lock inside a `with` block. Does not wait.

        Raises:
            UpdateRunningError: another process holds it, or the launcher runs another slot by now.
        """
        with FileLock(self._directory / LOCK).hold():
            info = launcher_info(self._directory)
            if info and info.slot is not self._slot:
                raise UpdateRunningError(f"this program is left over from slot {self._slot}: the launcher went on")
            yield


def device_at(directory: str | os.PathLike[str], **options: Any) -> Device:
    """A device as another process sees it: `mgota status`, `commit` and `rollback` with `--dir`.

    If a launcher lives there, the running slot and the end of the trial are what it says, and a reset is asked of it,
    without waiting for it. Otherwise nothing runs: the selected slot counts, and a reset is nobody's.

    Args:
        directory: of the device.
        options: further arguments of `Device`, which replace those found here.

    Raises:
        ConfigError: there is no such directory.
    """
    if not Path(directory).is_dir():
        raise ConfigError(f"there is no directory {directory}")
    info = launcher_info(directory)
    if info is None:
        return file_device(directory, **options)
    reset = NotifyReset(Notifier(info.notify), forever=False)
    device = file_device(directory, running=info.slot, **{"reset": reset, **options})
    device.live.trial_until = info.trial_until
    return device


def launcher_info(directory: str | os.PathLike[str]) -> LauncherInfo | None:
    """What the launcher of this directory says; None if none lives."""
    path = Path(directory) / LAUNCHER
    for _ in range(_LOOKS):
        if not path.exists() or not _is_held(path):
            return None
        with suppress(OSError, ValueError, TypeError, KeyError):
            info = _decode(path.read_bytes())
            if Path(f"/proc/{info.pid}").exists():  # else a killed launcher left it, and somebody else looks just now
                return info
        time.sleep(_PAUSE)  # it is just being written
    return None


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path).hold():
            return False
    except UpdateRunningError:
        return True


def _decode(data: bytes) -> LauncherInfo:
    found = cast(dict[str, Any], json.loads(data))
    slot, until = found["slot"], found["trial_until"]
    return LauncherInfo(
        pid=int(found["pid"]),
        notify=str(found["notify"]),
        slot=None if slot is None else Slot(slot),
        trial_until=None if until is None else float(until),
    )


def _slot(name: str | None) -> Slot | None:
    if not name:
        return None
    try:
        return Slot(name)
    except ValueError as exc:
        raise ConfigError(f"{SLOT} is neither a nor b: {name!r}") from exc


def _seconds(environ: Mapping[str, str], key: str) -> float:
    with suppress(ValueError):
        seconds = float(environ[key])
        if math.isfinite(seconds):
            return seconds
    raise ConfigError(f"{key} is no number of seconds: {environ[key]!r}")
