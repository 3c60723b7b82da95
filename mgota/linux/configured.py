"""From a configuration file to a device: `device_of(load_config("/etc/mgota.toml"))`.

One function for each section; what a section says and the machine has not is a `ConfigError` that names the key.
Nothing is written here, and no watchdog opened.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from mgota.core.bootvars import BootCount, BootOrder, GrubOrder
from mgota.core.config import MAX_CONFIG, Config, read_config
from mgota.core.geometry import Slot
from mgota.core.history import MAX_HISTORY
from mgota.core.image import Trailer, Verifier
from mgota.core.keys import PublicKey, load_public_key
from mgota.core.register import Form
from mgota.core.sections import KeysSection, SelectorSection, SlotsSection, StateSection
from mgota.device import Device
from mgota.errors import ConfigError
from mgota.flash.files import FileLock
from mgota.history import History
from mgota.linux.apart import refuse_inside_slots, refuse_place_in_slots
from mgota.linux.blockdev import find_device
from mgota.linux.blockslots import BlockSlots
from mgota.linux.efi import EFIVARS, EfiSelector
from mgota.linux.environment import device_at
from mgota.linux.grub import GRUBENV, GrubEnvironment, GrubSelector
from mgota.linux.lifelong import LifelongWatchdog
from mgota.linux.mtd import MtdDevice
from mgota.linux.mtdslots import MtdSlots
from mgota.linux.notify import Notifier, NotifyWatchdog
from mgota.linux.reset import RebootCommand
from mgota.linux.running import running_slot
from mgota.linux.script import ScriptSelector
from mgota.linux.sdboot import ENTRIES, SystemdBootSelector
from mgota.linux.selected import SelectedSlots, SlotMedium
from mgota.linux.state import FileState
from mgota.linux.states import (
    CellState,
    MappedRegister,
    RegisterState,
    VariableState,
    mtd_state,
)
from mgota.linux.story import FileStory
from mgota.linux.symlink import SymlinkSelector
from mgota.linux.tryboot import AUTOBOOT, TrybootSelector, running_partition
from mgota.linux.uboot import UbootEnvironment, UbootSelector
from mgota.linux.variables import VariableStore
from mgota.linux.watchdog import HardwareWatchdog
from mgota.ports import Selector, StateStore, Watchdog

CONFIG = "/etc/mgota.toml"


def read_config_file(path: str | os.PathLike[str]) -> str:
    """The text of a configuration file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_CONFIG + 1)
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > MAX_CONFIG:
        raise ConfigError(f"{path} is longer than {MAX_CONFIG} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path} is no text in UTF-8") from exc


def load_config(path: str | os.PathLike[str] = CONFIG) -> Config:
    """What a configuration file says.

    Raises:
        ConfigError: it cannot be read, or has faults: the first one, with its line.
    """
    return read_config(read_config_file(path), str(path))


def keys_of(files: Iterable[str]) -> tuple[PublicKey, ...]:
    """Public keys.

    Raises:
        ConfigError: a file cannot be read, or is none.
    """
    found: list[PublicKey] = []
    for path in files:
        try:
            found.append(load_public_key(Path(path).read_bytes()))
        except OSError as exc:
            raise ConfigError(f"the public key {path} cannot be read: {exc.strerror}") from exc
        except ConfigError as exc:
            raise ConfigError(f"the public key {path}: {exc}") from exc
    return tuple(found)


def verifier_of(keys: KeysSection) -> Verifier | None:
    """Which images are taken; None takes every one.

    Raises:
        ConfigError: a key cannot be read, or is none.
    """
    return Verifier(keys=keys_of(keys.images), trailer=Trailer(keys.trailer)) if keys.images else None


def kept_at(config: Config, name: str) -> Path | None:
    """A file of what survives updates; None if the configuration has no place for it."""
    return Path(config.data, name) if config.data else None


def history_of(config: Config) -> History | None:
    """The history, if there is a place for it."""
    path = config.history.path or kept_at(config, "history")
    return History(FileStory(path, MAX_HISTORY), most=config.history.updates) if path else None


def devices_of(slots: SlotsSection) -> dict[Slot, Path]:
    """The device of each slot of a board.

    Raises:
        ConfigError: there is none of its name.
    """
    names = {Slot.A: slots.a or "", Slot.B: slots.b or ""}
    return {slot: find_device(name) if slots.kind == "block" else Path(name) for slot, name in names.items()}


def medium_of(slots: SlotsSection) -> SlotMedium:
    """Where the images of a board lie.

    Raises:
        ConfigError: a device is missing, or both are one, or one is no NOR flash.
        FlashError: one cannot be opened.
    """
    if slots.kind == "block":
        return BlockSlots({Slot.A: slots.a or "", Slot.B: slots.b or ""})
    return MtdSlots({slot: MtdDevice(path) for slot, path in devices_of(slots).items()})


def environment_of(section: SelectorSection) -> VariableStore:
    """The bootloader's environment.

    Raises:
        ConfigError: the bootloader has none, or its configuration cannot be read.
    """
    if section.kind == "uboot":
        return UbootEnvironment.from_config(section.config, lock=section.lock)
    if section.kind == "grub":
        return GrubEnvironment(section.path or GRUBENV)
    raise ConfigError(f"{section.kind} has no environment")


_USUAL = {"grub": GRUBENV, "systemd-boot": ENTRIES, "tryboot": AUTOBOOT}


def refuse_selection_inside_slots(config: Config) -> None:
    """Refuse slots that hold what selects them, and perhaps the boot record beside it.

    Raises:
        ConfigError: one does, or a place cannot be looked at.
    """
    section = config.selector
    if section is None:
        return
    devices = devices_of(config.slots).values()
    if section.kind == "uboot":
        for place in UbootEnvironment.from_config(section.config, lock=None).places:
            refuse_place_in_slots(place, devices, what="U-Boot's environment")
    elif (path := section.path or _USUAL.get(section.kind)) and Path(path).exists():  # else the selector says so
        refuse_inside_slots(path, devices, what=f"what {section.kind} boots by,")


def names_of(section: SelectorSection) -> dict[Slot, str] | None:
    """The bootloader's own names of the slots; None if none are given."""
    return {Slot.A: section.a, Slot.B: section.b} if section.a is not None and section.b is not None else None


def selector_of(section: SelectorSection) -> Selector:
    """What tells the bootloader.

    Raises:
        ConfigError: the section makes no sense, or a file that it names cannot be read.
    """
    return _SELECTORS[section.kind](section, names_of(section) or {})


def _given(**options: Any) -> dict[str, Any]:
    """Options that are not left out."""
    return {name: value for name, value in options.items() if value}


def _uboot(section: SelectorSection, names: Mapping[Slot, str]) -> Selector:
    if section.convention == "rauc":
        order = BootOrder(**_given(names=names, attempts=section.attempts))
        return UbootSelector(environment_of(section), order)
    count = BootCount(**_given(names=names, limit=section.attempts, variable=section.variable))
    return UbootSelector(environment_of(section), count)


def _grub(section: SelectorSection, names: Mapping[Slot, str]) -> Selector:
    return GrubSelector(environment_of(section), GrubOrder(**_given(names=names)))


def _systemd_boot(section: SelectorSection, names: Mapping[Slot, str]) -> Selector:
    templates: dict[Slot, str] = {}
    for slot, path in names.items():
        try:
            templates[slot] = Path(path).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            why = getattr(exc, "strerror", None) or "it is no text"
            raise ConfigError(f"selector.{slot}: the boot entry {path} cannot be read: {why}") from exc
    options = _given(attempts=section.attempts)
    return SystemdBootSelector(templates, directory=section.path or ENTRIES, **options)


def _efi(section: SelectorSection, names: Mapping[Slot, str]) -> Selector:
    entries = {slot: int(number, 16) for slot, number in names.items()}
    return EfiSelector(entries, directory=section.path or EFIVARS)


def _tryboot(section: SelectorSection, names: Mapping[Slot, str]) -> Selector:
    partitions = {slot: int(number) for slot, number in names.items()}
    return TrybootSelector(partitions, path=section.path or AUTOBOOT)


def _symlink(section: SelectorSection, names: Mapping[Slot, str]) -> Selector:
    return SymlinkSelector(section.path or "", names or None)


def _script(section: SelectorSection, _: Mapping[Slot, str]) -> Selector:
    return ScriptSelector(section.command, timeout=section.timeout)


_SELECTORS: Mapping[str, Callable[[SelectorSection, Mapping[Slot, str]], Selector]] = {
    "uboot": _uboot,
    "grub": _grub,
    "systemd-boot": _systemd_boot,
    "efi": _efi,
    "tryboot": _tryboot,
    "symlink": _symlink,
    "script": _script,
}


def running_of(config: Config, selector: Selector) -> Slot:
    """The slot that a board was started from: by the kernel's command line, the root device, or the Pi's firmware.

    Raises:
        ConfigError: none of them tells.
    """
    words = {slot: slot.value for slot in Slot}
    if config.selector and config.selector.kind in {"uboot", "grub"}:
        words = names_of(config.selector) or words
    devices = devices_of(config.slots) if config.slots.kind == "block" else None
    try:
        return running_slot(words, devices, cmdline=config.slots.cmdline)
    except ConfigError:
        if not isinstance(selector, TrybootSelector):
            raise
        booted = running_partition()
        slot = next((slot for slot, number in selector.partitions.items() if number == booted), None)
        if slot is None:
            raise ConfigError(f"the firmware booted partition {booted}, which is neither slot's") from None
        return slot


def state_place(config: Config) -> Path | None:
    """The file or device that holds a board's boot record; None where the selector's environment does."""
    state = config.state
    match state.kind:
        case "file":
            return Path(state.path) if state.path else kept_at(config, "state")
        case "register":
            return Path(state.record) if state.record else kept_at(config, "state")
        case "cells" | "mtd":
            return Path(state.path or "")
        case _:
            return None


def state_of(config: Config) -> StateStore:
    """Where a board's boot record survives.

    Raises:
        ConfigError: it would lie inside a slot, or the section makes no sense on this machine.
        FlashError: an MTD cannot be opened.
    """
    state, place = config.state, state_place(config)
    if place is None:
        return VariableState(environment_of(cast(SelectorSection, config.selector)), state.variable)
    refuse_inside_slots(place, devices_of(config.slots).values())
    match state.kind:
        case "cells":
            return CellState(place, state.size or 0, offset=state.offset)
        case "mtd":
            return mtd_state(MtdDevice(place), first=state.block)
        case "register":
            return _register(state, place)
        case _:
            return FileState(place)


def _register(state: StateSection, record: Path) -> StateStore:
    register = MappedRegister(state.path or "/dev/mem", state.address or 0)
    return RegisterState(register, FileState(record), form=Form.RAW if state.raw else Form.ENCODED)


def watchdog_of(config: Config, environ: Mapping[str, str]) -> Watchdog | None:
    """The dead man's switch of the process that runs the trial.

    Raises:
        ConfigError: systemd is meant, and does not watch this process.
    """
    match config.watchdog.kind:
        case "device":
            hardware = HardwareWatchdog(config.watchdog.path, limit=config.watchdog.limit)
            return LifelongWatchdog(hardware, config.watchdog.timeout) if config.watchdog.always else hardware
        case "systemd":
            notifier = Notifier.from_environment(environ)
            if notifier is None:
                raise ConfigError("watchdog: systemd does not watch this process: start it as a service")
            return NotifyWatchdog(notifier)
        case _:
            return None


def trust_of(config: Config) -> dict[str, Any]:
    """What a device of any kind trusts: arguments of `Device`.

    Raises:
        ConfigError: a key cannot be read, or is none.
    """
    device = config.device
    return {
        "verifier": verifier_of(config.keys),
        "history": history_of(config),
        "window": device.window,
        "tries": device.tries,
        "on_unknown": device.on_unknown,
        "floor": device.floor,
        "hardware": device.hardware,
    }


def reset_of(config: Config, selector: Selector) -> RebootCommand:
    """How a board starts again; a Raspberry Pi is told what for."""
    argument = (lambda: selector.reboot_argument) if isinstance(selector, TrybootSelector) else None
    return RebootCommand(config.device.reboot, argument=argument)


def board_of(config: Config, watchdog: Watchdog | None = None) -> Device:
    """The device whose slots a bootloader starts.

    Args:
        config: of slots that are no files.
        watchdog: of the process that runs the trial.

    Raises:
        ConfigError: the configuration does not fit this machine.
        FlashError: a slot cannot be opened.
    """
    selector = selector_of(cast(SelectorSection, config.selector))
    refuse_selection_inside_slots(config)
    running = running_of(config, selector)
    flash = SelectedSlots(medium_of(config.slots), selector, running=running)
    parts: dict[str, Any] = {
        "state": state_of(config),
        "lock": FileLock(config.device.lock),
        "reset": reset_of(config, selector),
        "watchdog": watchdog,
    }
    return Device(flash=flash, **parts, **trust_of(config))


def device_of(config: Config) -> Device:
    """The device as another process than `mgota run` sees it: for a status, a commit, a rollback, an installation.

    Raises:
        ConfigError: the configuration does not fit this machine.
        FlashError: a slot cannot be opened.
    """
    if config.slots.directory:
        return device_at(config.slots.directory, **trust_of(config))
    return board_of(config)
