"""What a device is made of, as one TOML file says it: `/etc/mgota.toml`. Its sections are in `mgota.core.sections`.

    [slots]
    kind = "block"
    a = "PARTUUID=…"
    b = "/dev/mmcblk0p3"

Rules:
- every fault is found, and told with its line: a person mends the file once;
- a key that is not known is a fault, for it was meant to do something;
- types are TOML's: a number is not a text, and true is not 1;
- a section that is left out has its defaults; what contradicts itself is a fault of the section.

Nothing here looks at the machine: that is `mgota doctor`'s business.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import isfinite
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from mgota.core.sections import (
    Contradictions,
    DeviceSection,
    HealthSection,
    HistorySection,
    HttpSection,
    KeysSection,
    MqttSection,
    ProgramSection,
    PullSection,
    SelectorSection,
    SlotsSection,
    StateSection,
    WatchdogSection,
)
from mgota.core.toml_lines import Path, line_of, lines_of
from mgota.errors import ConfigError

MAX_CONFIG: Final = 64 * 1024
"""Bytes of the largest file."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a file.

    Args:
        line: counted from 1.
        text: one line for a person.
    """

    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole file. A section that is None was left out, and switches something off."""

    device: DeviceSection = field(default_factory=DeviceSection)
    keys: KeysSection = field(default_factory=KeysSection)
    slots: SlotsSection
    selector: SelectorSection | None = None
    state: StateSection = field(default_factory=StateSection)
    watchdog: WatchdogSection = field(default_factory=WatchdogSection)
    program: ProgramSection = field(default_factory=ProgramSection)
    health: HealthSection | None = None
    http: HttpSection | None = None
    pull: PullSection | None = None
    mqtt: MqttSection | None = None
    history: HistorySection = field(default_factory=HistorySection)

    @property
    def data(self) -> str | None:
        """The directory of what survives updates: of files, that of the slots; None if there is none."""
        return self.slots.directory or self.device.data

    def contradictions(self) -> Contradictions:
        """What makes no sense between sections."""
        yield from _of_files(self) if self.slots.kind == "files" else _of_board(self)
        if self.history.reports and not (self.history.path or self.data):
            name = next(name for name in ("webhook", "mqtt", "query") if getattr(self.history, name))
            yield f"history.{name}", "reports need a history: say its path, or device.data"


def _of_files(config: Config) -> Contradictions:
    """The launcher starts the program of a slot, and the program brings the rest."""
    for name in ("selector", "health", "http", "pull", "mqtt"):
        if getattr(config, name) is not None:
            yield name, "this is for a board: of slots that are files, the program in the slot does it"
    if config.state != StateSection():
        yield "state", "slots that are files have theirs beside them, in slots.directory"
    if config.watchdog.kind == "systemd":
        yield "watchdog.kind", "systemd's watchdog is fed by the launcher of slots that are files, unasked"
    elif config.watchdog.kind == "device" and not config.watchdog.always:
        yield "watchdog.always", "say always = true: trials of slots that are files are the launcher's own"
    for name in ("mqtt", "query"):
        if getattr(config.history, name):
            yield f"history.{name}", "this is for a board: of slots that are files, the program in the slot does it"
    for name in ("data", "lock", "reboot"):
        if getattr(config.device, name) != getattr(DeviceSection(), name):
            yield f"device.{name}", "this is for a board, not for slots that are files"


def _of_board(config: Config) -> Contradictions:
    """The bootloader starts a slot, and mgota serves beside whatever the system does."""
    selector, state = config.selector, config.state
    if selector is None:
        yield "slots", f"{config.slots.kind} slots need a section [selector]: which bootloader is there?"
    if config.program != ProgramSection():
        yield "program", "a program is for slots that are files: a whole system starts its own"
    if state.kind in {"uboot", "grub"} and (selector is None or selector.kind != state.kind):
        yield "state.kind", f"a state in {state.kind}'s environment needs a selector of that kind"
    for name, wanted, section, there in (
        ("health.mqtt", config.health and config.health.mqtt, "[mqtt]", config.mqtt),
        ("health.same_version", config.health and config.health.same_version, "[pull]", config.pull),
        ("history.mqtt", config.history.mqtt, "[mqtt]", config.mqtt),
        ("history.query", config.history.query, "[pull]", config.pull),
    ):
        if wanted and there is None:
            yield name, f"this needs a section {section}"
    needed, place = ("record", state.record) if state.kind == "register" else ("path", state.path)
    if state.kind in {"file", "register"} and not (place or config.data):
        yield "state", f"where is the boot record? Say state.{needed}, or device.data: outside of the slots"


def parse_config(text: str) -> tuple[Config | None, tuple[Fault, ...]]:
    """What a file says, and every fault of it; with a fault, there is no configuration."""
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        return None, (_syntax(text, exc),)
    reader = _Reader(lines_of(text))
    config = reader.read(Config, found, ())
    return (config if not reader.faults else None), tuple(sorted(reader.faults, key=lambda fault: fault.line))


def read_config(text: str, name: str) -> Config:
    """What a file says.

    Args:
        text: all of it.
        name: of the file, for the message.

    Raises:
        ConfigError: it has faults; the first one, with its line.
    """
    config, faults = parse_config(text)
    if config is None:
        raise ConfigError(f"{name}:{faults[0].line}: {faults[0].text}")
    return config


def _syntax(text: str, exc: tomllib.TOMLDecodeError) -> Fault:
    """Tomllib says where in its message, and nowhere else on Python 3.11."""
    told, _, place = str(exc).rpartition(" (at ")
    digits = "".join(char for char in place.partition(",")[0] if char.isdigit())
    line = int(digits) if digits else max(len(text.splitlines()), 1)
    return Fault(line, f"this is no TOML: {told[:1].lower()}{told[1:]}" if told else f"this is no TOML: {exc}")


class _Reader:
    """Builds sections, and gathers what is wrong with them."""

    def __init__(self, lines: Mapping[Path, int]) -> None:
        self._lines = lines
        self.faults: list[Fault] = []

    def _fault(self, path: Path, text: str) -> None:
        name = ".".join(path)
        self.faults.append(Fault(line_of(self._lines, path), f"{name}: {text}" if name else text))

    def read(self, kind: type[T], found: Mapping[str, Any], path: Path) -> T | None:
        """A section from a table; None if it has a fault."""
        before = len(self.faults)
        types, members = get_type_hints(kind), {one.name: one for one in fields(cast(Any, kind))}
        values: dict[str, Any] = {}
        for name, value in found.items():
            if name in members:
                values[name] = self._value(types[name], value, (*path, name))
            else:
                self._fault((*path, name), f"there is no such key; there are {', '.join(members)}")
        for name, one in members.items():
            if name not in found and one.default is MISSING and one.default_factory is MISSING:
                self._fault(path, f"{name} is missing")
        if len(self.faults) > before:
            return None
        section = kind(**values)
        for name, text in getattr(section, "contradictions", tuple)():
            self._fault((*path, *name.split(".")), text)
        return section

    def _value(self, kind: Any, value: Any, path: Path) -> Any:
        """A value of this type; None, and a fault, if it is none."""
        if get_origin(kind) in {UnionType, Union}:
            kind = next(one for one in get_args(kind) if one is not type(None))
        if is_dataclass(kind):
            fits, what = isinstance(value, dict), "a section"
        elif get_origin(kind) is Literal:
            fits, what = value in get_args(kind), f"one of {', '.join(get_args(kind))}"
        elif get_origin(kind) is tuple:
            fits, what = _is_texts(value), "a list of texts in quotes"
        elif kind is float:
            fits, what = type(value) in {int, float} and isfinite(value), "a number"
        else:
            fits, what = type(value) is kind, _NAMES[kind]
        if not fits:
            self._fault(path, f"this has to be {what}")
            return None
        if is_dataclass(kind):
            return self.read(cast(type[Any], kind), value, path)
        return tuple(value) if get_origin(kind) is tuple else float(value) if kind is float else value


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in cast(list[object], value))


_NAMES: Final[dict[Any, str]] = {str: "a text in quotes", int: "a whole number", bool: "true or false"}
