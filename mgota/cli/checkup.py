"""What `mgota doctor` finds on a machine: whether a configuration fits it, in words, and what to do where it does not.

Rules:
- nothing is changed, and no watchdog opened, unless the selector's own test is asked for: that writes what is there;
- every check is made, whatever the others said; one that raises has found something wrong;
- secrets are looked at from outside: who may read them, not what they say.
"""

import errno
import os
import shutil
import stat
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from anyio import to_thread

from mgota.core.config import Config
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord
from mgota.core.sections import SelectorSection
from mgota.errors import OtaError, UpdateRunningError
from mgota.flash.files import FileLock
from mgota.linux.apart import refuse_inside_slots
from mgota.linux.configured import (
    devices_of,
    kept_at,
    keys_of,
    medium_of,
    refuse_selection_inside_slots,
    running_of,
    selector_of,
    state_of,
    state_place,
)
from mgota.linux.environment import launcher_info
from mgota.linux.names import STATE
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.linux.states import RegisterState
from mgota.linux.watchdog import SYSFS, HardwareWatchdog
from mgota.ports import Selector, StateStore

RUN = ".run"
"""What the lock of `mgota run` on a board is called, behind the device's own."""


class Level(StrEnum):
    """How a finding is meant."""

    WELL = "well"
    NOTE = "note"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Args:
        level: whether it is as it should be.
        where: the section or key of the configuration that it belongs to.
        text: one line for a person; what is wrong comes with what to do.
    """

    level: Level
    where: str
    text: str


class Findings(list[Finding]):
    """What was found so far."""

    def well(self, where: str, text: str) -> None:
        """As it should be."""
        self.append(Finding(Level.WELL, where, text))

    def note(self, where: str, text: str) -> None:
        """Somebody should know."""
        self.append(Finding(Level.NOTE, where, text))

    def wrong(self, where: str, text: str) -> None:
        """It will not work, or not be safe."""
        self.append(Finding(Level.WRONG, where, text))

    @contextmanager
    def asking(self, where: str, advice: str = "") -> Generator[None]:
        """What fails inside of the block is wrong.

        Args:
            where: the section or key.
            advice: what to do then.
        """
        try:
            yield
        except (OtaError, OSError) as exc:
            said = f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) and exc.filename else str(exc)
            self.wrong(where, f"{said}{': ' if advice else ''}{advice}")


async def examine(config: Config, *, selftest: bool = False) -> Findings:
    """Look at a machine.

    Args:
        config: what it is meant to be.
        selftest: let the selector write what is there, and read it back.
    """
    found = Findings()
    _check_keys(config, found)
    _check_secrets(config, found)
    if config.slots.kind == "files":
        await _examine_files(config, found)
    else:
        await _examine_board(config, found, selftest)
    return found


def is_at_work(config: Config) -> bool:
    """Whether `mgota run` is, with this configuration."""
    if config.slots.directory:
        return launcher_info(config.slots.directory) is not None
    lock = Path(config.device.lock + RUN)
    if not lock.exists():
        return False
    try:
        with FileLock(lock).hold():
            return False
    except UpdateRunningError:
        return True


def _check_keys(config: Config, found: Findings) -> None:
    if not config.keys.images:
        found.note("keys.images", "no keys: every image is taken, whoever made it")
    for name in ("images", "manifests"):
        for path in getattr(config.keys, name):
            with found.asking(f"keys.{name}", "make it with `mgota keygen`, and copy the public key here"):
                found.well(f"keys.{name}", f"{path} is a public key, {keys_of([path])[0].keyid}")


def _check_secrets(config: Config, found: Findings) -> None:
    for name, section in (("http", config.http), ("mqtt", config.mqtt), ("pull", config.pull)):
        for key in ("token_file", "user_file", "key_file"):
            if path := getattr(section, key, None):
                with found.asking(f"{name}.{key}", "make it, for its owner only"):
                    _check_secret(f"{name}.{key}", path, found)


def _check_secret(where: str, path: str, found: Findings) -> None:
    info = Path(path).stat()
    if info.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        found.wrong(where, f"everybody on this machine can read or change {path}: chmod 600 {path}")
    elif not os.access(path, os.R_OK):
        found.wrong(
            where, f"{path} cannot be read by you: give it to the user of `mgota run`, or call this as that user"
        )
    elif not info.st_size:
        found.wrong(where, f"{path} is empty: it has to hold the secret")
    else:
        found.well(where, f"{path} is there, and not for everybody")


def _check_command(where: str, command: Iterable[str], found: Findings) -> None:
    name = next(iter(command))
    if name == "{slot}" or shutil.which(name):
        found.well(where, f"{name} can be started")
    else:
        found.wrong(where, f"there is no program {name}, or it may not be started: say its whole path")


def _check_directory(where: str, path: Path, found: Findings) -> bool:
    """Whether there is such a directory."""
    if not path.is_dir():
        found.wrong(where, f"there is no directory {path}: make it, outside of both slots")
    elif not os.access(path, os.W_OK | os.X_OK):
        found.wrong(where, f"nothing can be written to {path}: mount it writable, or call this as root")
    else:
        found.well(where, f"{path} can be written to")
    return path.is_dir()


async def _load(where: str, state: StateStore, found: Findings) -> BootRecord | None:
    record = None
    with found.asking(where, "commit with `mgota commit` if what runs is good, and it is made anew"):
        record = await state.load()
        if record is None:
            found.well(where, "there is no boot record yet: the first start makes one")
        else:
            found.well(where, f"the boot record can be read: {record.state}")
    return record


async def _examine_files(config: Config, found: Findings) -> None:
    directory = Path(config.slots.directory or "")
    if not config.program.command:
        found.wrong("program.command", "`mgota run` has nothing to start: say which program, with {slot} in it")
    else:
        _check_command("program.command", config.program.command, found)
    if _check_directory("slots.directory", directory, found):
        with found.asking("slots"):
            slots = FileSlots(directory)
            running = await slots.running_slot()
            if await slots.extent(running):
                found.well("slots", f"slot {running} is selected, and holds an image")
            else:
                found.wrong("slots", f"slot {running} is selected and empty: write an image with `mgota provision`")
        await _load("state", FileState(directory / STATE), found)
    if config.watchdog.kind == "device":
        _check_watchdog(config, found)


async def _examine_board(config: Config, found: Findings, selftest: bool) -> None:
    for slot in Slot:
        with found.asking(f"slots.{slot}", "look at `lsblk -o NAME,PARTLABEL,PARTUUID`"):
            await to_thread.run_sync(_check_slot, config, slot, found)
    with found.asking("slots"):
        await to_thread.run_sync(_check_rooms, config, found)
    running = await _check_selector(config, found, selftest)
    await _check_state(config, running, found)
    if config.device.data:
        _check_directory("device.data", Path(config.device.data), found)
    _check_directory("device.lock", Path(config.device.lock).parent, found)
    _check_command("device.reboot", config.device.reboot, found)
    if config.health and config.health.command:
        _check_command("health.command", config.health.command, found)
    elif not config.health and not (config.http or config.mqtt):
        found.note("health", "no health check, and no way to commit from afar: call `mgota commit` in time")
    _check_watchdog(config, found)


def _check_slot(config: Config, slot: Slot, found: Findings) -> None:
    path, where = devices_of(config.slots)[slot], f"slots.{slot}"
    mode = path.stat().st_mode
    wanted = stat.S_ISBLK(mode) if config.slots.kind == "block" else stat.S_ISCHR(mode)
    if not wanted:
        kind = "block device" if config.slots.kind == "block" else "character device of an MTD"
        found.wrong(where, f"{path} is no {kind}: say which partition is slot {slot}")
    elif not os.access(path, os.R_OK | os.W_OK):
        found.wrong(where, f"{path} cannot be read and written by you: call this as root")
    else:
        found.well(where, f"{path} is there")


def _check_rooms(config: Config, found: Findings) -> None:
    """How large both are, by their drivers."""
    medium = medium_of(config.slots)
    a, b = (medium.room(slot) for slot in Slot)
    if a == b:
        found.well("slots", f"both slots have {a} bytes")
    else:
        found.note("slots", f"slot a has {a} bytes, slot b {b}: an image has to fit the smaller one")


async def _check_selector(config: Config, found: Findings, selftest: bool) -> Slot | None:
    """The slot that runs, if that is known."""
    running = None
    with found.asking("selector"):
        section = cast(SelectorSection, config.selector)
        selector = selector_of(section)
        with found.asking("selector", "give it a partition of its own"):
            refuse_selection_inside_slots(config)
        running = await _check_running(config, selector, found)
        selected = await selector.selected_slot()
        if selected is None:
            found.wrong("selector", f"{section.kind} boots neither slot next: is the board's boot script installed?")
        else:
            found.well("selector", f"{section.kind} boots slot {selected} next")
        if selftest:
            await selector.selftest()
            found.well("selector", f"what is written for {section.kind} reads back")
    return running


async def _check_running(config: Config, selector: Selector, found: Findings) -> Slot | None:
    running = None
    with found.asking("slots"):
        running = await to_thread.run_sync(running_of, config, selector)
        found.well("slots", f"slot {running} runs")
        if config.slots.kind == "block":
            path = devices_of(config.slots)[running.other]
            with found.asking(f"slots.{running.other}"):
                await to_thread.run_sync(_check_free, f"slots.{running.other}", path, found)
    return running


def _check_free(where: str, path: Path, found: Findings) -> None:
    """O_EXCL: the kernel refuses a device that is mounted. Only read from, so that nobody takes it for changed."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        found.wrong(where, f"{path} does not run and is in use: unmount it, and take it out of /etc/fstab")


async def _check_state(config: Config, running: Slot | None, found: Findings) -> None:
    where = "state"
    if config.data:
        with found.asking("device.data", "choose a partition of its own"):
            refuse_inside_slots(kept_at(config, STATE) or "", devices_of(config.slots).values())
    if (place := state_place(config)) is not None and config.state.kind in {"file", "register"}:
        _check_directory("state", place.parent, found)
    with found.asking(where):
        state = await to_thread.run_sync(state_of, config)
        if isinstance(state, RegisterState):  # to load it would set the register
            found.well(where, f"the register can be read: {state.register.read():#010x}")
            state = state.rest
        if config.state.kind == "mtd":  # to load it may finish an erase that was cut off
            found.well(where, f"{config.state.path} is NOR flash, with room for the boot record")
        else:
            _check_version(config, await _load(where, state, found), running, found)


def _check_version(config: Config, record: BootRecord | None, running: Slot | None, found: Findings) -> None:
    """Whether a newer version can be told from the one that runs."""
    image = record.image(running) if record and running else None
    if config.pull and config.pull.policy == "newer" and image and image.version is None:
        found.wrong("pull.policy", "nobody knows which version runs, and so which is newer: say `different` for now")


def _check_watchdog(config: Config, found: Findings, sysfs: str = SYSFS) -> None:
    section = config.watchdog
    if section.kind == "none":
        found.note("watchdog", "no watchdog: an image that hangs before `mgota run` starts stays until the power goes")
    elif section.kind == "systemd":
        found.well("watchdog", "systemd watches `mgota run`, if its unit says WatchdogSec=")
    elif not Path(section.path).exists():
        found.wrong("watchdog.path", f"there is no {section.path}: load its driver, such as softdog")
    else:
        _check_device(config, HardwareWatchdog(section.path, limit=section.limit, sysfs=sysfs), found)


def _check_device(config: Config, watchdog: HardwareWatchdog, found: Findings) -> None:
    where, path = "watchdog", watchdog.path
    if not os.access(path, os.W_OK):
        found.wrong(where, f"{path} cannot be written by you: call this as root")
    if watchdog.active and not is_at_work(config):
        found.wrong(
            where, f"another program feeds {path}: systemd does, if RuntimeWatchdogSec= is set; switch that off"
        )
    limit, window = watchdog.limit or watchdog.longest, config.device.window
    if limit is not None and limit < window and config.slots.kind != "files":
        found.note(
            where, f"{path} counts {limit:g} s, the window has {window:g} s: it is fed until the last {limit:g} s"
        )
    found.well(where, f"{path} is {watchdog.identity or 'a watchdog that does not say its name'}")
    if config.watchdog.always:
        counts = config.watchdog.timeout if limit is None else min(config.watchdog.timeout, limit)
        found.well(where, f"{path} is fed for life: {counts:g} s without a sign of it reset the board")
    else:
        found.note(where, f"{path} is fed on trial only: say watchdog.always = true, and what hangs later is reset too")
    if not watchdog.stoppable and config.watchdog.always:
        found.note(where, f"{path} cannot be stopped (nowayout): without `mgota run` the board resets")
    elif not watchdog.stoppable:
        found.note(where, f"{path} cannot be stopped (nowayout): every commit resets the board")
