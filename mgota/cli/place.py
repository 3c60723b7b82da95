"""Which device a command is about: `--slots`, or `--target` with its files; and the virtual device made of it.

    --slots DIR                                               two slots as files
    --target NAME [--part PART] --flash FILE --state FILE     a chip of the table; `mgota targets` lists them
    --target NAME --link URL --slots DIR --state FILE         a chip that is wired to this machine, two slots as files
    --target custom --backend MODULE:FACTORY --state FILE     a backend of one's own

The factory of a custom backend is called with the path of `--flash`, if that is given, and returns a `FlashBackend`.
Everything that can be wrong with the options is a `UsageError`, found before the first file is made or changed.
"""

import importlib
import sys
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from mgota.cli.chip_files import JOURNAL, LOCK, PART, POWER, beside
from mgota.cli.options import FILE, FOLDER
from mgota.cli.virtual_device import VirtualDevice, chip, chip_seen, two_slots
from mgota.core.http import one_line
from mgota.core.inspect import Inspect
from mgota.device import Device
from mgota.errors import ConfigError, OtaError
from mgota.flash.files import FileLock
from mgota.flash.virtual import VirtualReset, VirtualWatchdog
from mgota.linux.state import FileState
from mgota.ports import FlashBackend

if TYPE_CHECKING:
    from mgota.core.link_url import LinkUrl
    from mgota.flash.targets.table import Target

F = TypeVar("F", bound=Callable[..., Any])

CUSTOM = "custom"
CHIP_FILES = ("opt", LOCK, PART)
"""What lies beside --flash FILE, as FILE.opt."""

STATE_FILES = ("download", JOURNAL, LOCK, POWER, PART)
"""What lies beside --state FILE."""

NOTE = "download"
"""Where the progress of a download is marked: in --slots DIR, or beside --state FILE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a device is, as the options say; checked.

    Args:
        slots: directory of two slots as files, or None.
        target: the chip, or None.
        flash: its raw array; None only with `slots` and of a custom target.
        state: its boot record.
        backend: makes the backend of a custom target.
        inspect: looks at images: are they for this chip? None does not ask.
        link: where a wired chip is reached, or None.
    """

    slots: Path | None
    target: "Target | None"
    flash: Path | None
    state: Path | None
    backend: Callable[..., object] | None
    inspect: Inspect | None
    link: "LinkUrl | None" = None

    @property
    def note(self) -> Path | None:
        """Where the progress of a download is marked; None if no device was named."""
        if self.slots:
            return self.slots / NOTE
        return self.state and beside(self.state, NOTE)

    @property
    def exists(self) -> bool:
        """Whether there is a device at this place already."""
        return any(path.exists() for path in (self.slots, self.flash, self.state) if path)

    @contextmanager
    def seen(self, **options: Any) -> Generator[Device]:
        """The device that exists at this place, to look at: nothing is made or changed, whoever runs it. Blocks.

        Args:
            options: further arguments of `Device`.

        Raises:
            ConfigError: the files are not this device's.
        """
        if self.target and self.flash and self.state and not self.backend:
            with chip_seen(self.target, self.flash, self.state, inspect=self.inspect, **options) as device:
                yield device
        else:
            yield self.device(**options).device

    def device(self, **options: Any) -> VirtualDevice:
        """The virtual device at this place. Blocks; makes what files are missing.

        Args:
            options: further arguments of `Device`.

        Raises:
            ConfigError: the files are not this device's.
        """
        if self.link and self.target and self.slots and self.state:
            from mgota.cli.wired import wired_chip  # noqa: PLC0415  plain `serve` stays small without

            return wired_chip(self.target, self.link, self.slots, self.state, inspect=self.inspect, **options)
        if self.slots:
            return two_slots(self.slots, **options)
        if not (self.target and self.state):
            raise ConfigError("no device was named")
        if self.backend:
            return _custom(self.backend, self.flash, self.state, **options)
        if not self.flash:
            raise ConfigError("no flash memory was named")
        return chip(self.target, self.flash, self.state, inspect=self.inspect, **options)


def place_options(command: F) -> F:
    """The options that say which device; the command gets them as one argument, `place`."""

    @wraps(command)
    def checked(**arguments: Any) -> Any:
        found = {name: arguments.pop(name) for name in ("slots", "target", "part", "flash", "state", "backend", "link")}
        slots = arguments.pop("directory", None)
        if slots and found["slots"]:
            raise click.UsageError("--dir and --slots are the same: give one")
        found["slots"] = found["slots"] or slots
        place = _checked(check_image=arguments.pop("check_image"), **found)
        return command(place=place, **arguments)

    for option in (
        click.option("--check-image", is_flag=True, help="Refuse an image that was made for another chip."),
        click.option("--backend", metavar="MODULE:FACTORY", help="The backend of --target custom."),
        click.option(
            "--link", metavar="URL", help="Where a wired chip is reached: gdb://HOST:PORT or serial:///DEVICE."
        ),
        click.option("--state", type=FILE, metavar="FILE", help="Where the boot record is kept."),
        click.option("--flash", type=FILE, metavar="FILE", help="The raw flash array; made if it is missing."),
        click.option("--part", metavar="PART", help="Which variant of the chip; `mgota targets` lists them."),
        click.option("--target", metavar="NAME", help="A chip; `mgota targets` lists them."),
        click.option("--slots", type=FOLDER, metavar="DIR", help="Two slots as files; made if missing."),
    ):
        checked = option(checked)
    return cast(F, checked)


def _checked(
    *,
    slots: Path | None,
    target: str | None,
    part: str | None,
    flash: Path | None,
    state: Path | None,
    backend: str | None,
    link: str | None,
    check_image: bool,
) -> Place:
    if link is not None:
        return _wired(link, slots, target, part, state, check_image=check_image, others=(flash, backend))
    if (slots is None) == (target is None):
        raise click.UsageError("which device? give either --slots DIR or --target NAME --flash FILE --state FILE")
    if slots and (flash or state or part or backend or check_image):
        raise click.UsageError("--part, --flash, --state, --backend and --check-image belong to --target")
    factory = None
    found = _target(target, part) if target else None
    if found:
        if (found.name == CUSTOM) != (backend is not None):
            raise click.UsageError("--target custom and --backend MODULE:FACTORY belong together")
        if not state or not (flash or backend):
            raise click.UsageError("--target needs --flash FILE and --state FILE")
        factory = _factory(backend) if backend else None
    if state:
        _check_files(flash, state)
    inspect = _inspect(found) if found and check_image else None
    return Place(slots=slots, target=found, flash=flash, state=state, backend=factory, inspect=inspect)


def _wired(
    link: str,
    slots: Path | None,
    target: str | None,
    part: str | None,
    state: Path | None,
    *,
    check_image: bool,
    others: tuple[object, ...],
) -> Place:
    from mgota.core.link_url import parse_link  # noqa: PLC0415  plain `serve` stays small without
    from mgota.flash.links.opened import connector  # noqa: PLC0415  the same
    from mgota.flash.targets.table import find_target  # noqa: PLC0415  the same

    if not (slots and target and state) or any(others):
        raise click.UsageError(
            "--link URL needs --target NAME, --slots DIR and --state FILE, and no --flash or --backend"
        )
    try:
        url, found = parse_link(link), find_target(target, part)
        connector(url, found)
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc
    inspect = _inspect(found) if check_image else None
    return Place(slots=slots, target=found, flash=None, state=state, backend=None, inspect=inspect, link=url)


def _target(name: str, part: str | None) -> "Target":
    from mgota.flash.targets.table import find_target  # noqa: PLC0415  `serve --slots` stays small without

    try:
        target = find_target(name, part)
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc
    if target.name != CUSTOM and target.geometry is None:
        raise click.UsageError(f"{target.name} has no regions to serve: nobody has verified where its sectors lie")
    if target.name != CUSTOM and not target.max_image:
        raise click.UsageError(f"{target.name} {target.part} is too small for two slots")
    return target


def _inspect(target: "Target") -> Inspect:
    from mgota.flash.targets.virtual import inspector_for  # noqa: PLC0415  the same

    try:
        return inspector_for(target)
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


def _factory(name: str) -> Callable[..., object]:
    """A function by its name; its module may lie in the current directory."""
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise click.UsageError("--backend is MODULE:FACTORY, as in --backend my_driver:backend")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: object = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as exc:  # whatever that module does when it is imported
        raise click.UsageError(f"--backend {name} cannot be loaded: {_said(exc)}") from exc
    if not callable(factory):
        raise click.UsageError(f"--backend {name} is no function")
    return factory


def _said(exc: BaseException) -> str:
    """What an exception of somebody else's code says, in one line."""
    return one_line(f"{type(exc).__name__}: {exc}")


def _check_files(flash: Path | None, state: Path) -> None:
    """Every file is another one, and can be made where it is to be."""
    for path, option in ((flash, "--flash"), (state, "--state")):
        if path and path.is_dir():
            raise click.UsageError(f"{option} {path} is a directory")
        if path and not path.resolve().parent.is_dir():
            raise click.UsageError(f"{option} {path} lies in no directory")
    if flash:
        chip_files = {flash.resolve(), *(beside(flash.resolve(), ending) for ending in CHIP_FILES)}
        if {state.resolve(), *(beside(state.resolve(), ending) for ending in STATE_FILES)} & chip_files:
            raise click.UsageError("the boot record needs a file of its own: --state is one of the chip's")


def _custom(factory: Callable[..., object], flash: Path | None, state: Path, **options: Any) -> VirtualDevice:
    state = state.resolve()
    try:
        backend = factory(flash) if flash else factory()
    except OtaError:
        raise
    except (Exception, SystemExit) as exc:  # no fault of mgota's: say whose
        raise ConfigError(f"the backend's factory failed: {_said(exc)}") from exc
    if not isinstance(backend, FlashBackend):
        raise ConfigError(f"the backend's factory returned {type(backend).__name__}, which is no FlashBackend")
    reset, watchdog = VirtualReset(), VirtualWatchdog()
    lock = FileLock(beside(state, LOCK))
    device = Device(flash=backend, state=FileState(state), watchdog=watchdog, reset=reset, lock=lock, **options)
    latch: Callable[[], Awaitable[object]] = getattr(backend, "boot", backend.recover)
    power = (FileLock(beside(state, POWER)),)
    return VirtualDevice(device=device, latch=latch, reset=reset, watchdog=watchdog, power=power)
