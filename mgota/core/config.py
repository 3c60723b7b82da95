"""What a device is made of, as one TOML file says it: `/etc/mgota.toml`. The dataclasses below are its schema.

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
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from math import isfinite
from types import UnionType
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

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


Contradictions = Iterator[tuple[str, str]]
"""Names of keys, and what is wrong with them together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSection:
    """`[device]`."""

    id: str | None = None
    """What it is called in reports; None takes the host's name."""
    hardware: str | None = None
    """Its hardware id, for manifests that say what they are for."""
    floor: str | None = None
    """The lowest version that may be installed."""
    window: float = 60.0
    """Seconds of a trial."""
    tries: int = 1
    on_unknown: Literal["refuse", "confirm"] = "refuse"

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if self.window <= 0:
            yield "window", "a trial needs more than 0 seconds"
        if self.tries < 1:
            yield "tries", "a trial needs at least one try"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysSection:
    """`[keys]`: who signs images and manifests. Files of public keys."""

    images: tuple[str, ...] = ()
    trailer: Literal["raw", "mgsg"] = "raw"
    manifests: tuple[str, ...] = ()
    """Keys of manifests; empty takes those of images."""
    threshold: int = 1
    allow_plain_manifest: bool = False

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        keys = self.manifests or self.images
        if self.threshold < 1 or (self.threshold > 1 and self.threshold > len(keys)):
            yield "threshold", f"{self.threshold} of {len(keys)} keys can never sign"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsSection:
    """`[slots]`: where the two images lie."""

    kind: Literal["files", "block"] = "files"
    directory: str | None = None
    """Of files."""
    a: str | None = None
    """Of block devices: a path, `LABEL=…`, `PARTLABEL=…` or `PARTUUID=…`."""
    b: str | None = None

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        wanted = {"files": ("directory",), "block": ("a", "b")}
        yield from _belonging(self, wanted)
        if self.a is not None and self.a == self.b:
            yield "b", "the two slots are the same"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorSection:
    """`[selector]`: what boots one slot or the other."""

    kind: Literal["symlink", "uboot", "grub", "systemd-boot", "efi", "tryboot", "script"] = "symlink"
    convention: Literal["rauc", "bootcount"] = "rauc"
    """Of U-Boot's variables."""
    config: str = "/etc/fw_env.config"
    """Of U-Boot's environment."""
    path: str | None = None
    """Of GRUB's environment block, systemd-boot's entries, tryboot's partition."""
    a: str | None = None
    """The boot loader's name of slot a, where it has names of its own."""
    b: str | None = None
    command: tuple[str, ...] = ()
    """Of a script."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if (self.kind == "script") != bool(self.command):
            yield "command", "a script selector needs a command, and nothing else has one"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSection:
    """`[state]`: where the boot record is."""

    kind: Literal["file", "uboot", "cells", "register", "mtd"] = "file"
    path: str | None = None
    """A file, an nvmem or EEPROM device, a register's file, an MTD."""
    offset: int = 0
    raw: bool = False
    """Of a register: the seed's bare 0 to 3."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if self.kind not in {"file", "uboot"} and self.path is None:
            yield "path", f"a state in {self.kind} needs a path"
        if self.offset < 0:
            yield "offset", "an offset is not negative"
        if self.raw and self.kind != "register":
            yield "raw", "raw is for a register"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogSection:
    """`[watchdog]`: the dead man's switch."""

    kind: Literal["none", "device", "systemd"] = "none"
    path: str = "/dev/watchdog"
    timeout: float = 15.0

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if self.timeout <= 0:
            yield "timeout", "a watchdog needs more than 0 seconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSection:
    """`[program]`: what `mgota run` starts; `{slot}` is the path of the running slot."""

    command: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSection:
    """`[http]`: the server of `mgota run`, if there is such a section."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    user_file: str | None = None
    cert: str | None = None
    key_file: str | None = None
    client_ca: str | None = None
    allow_hosts: tuple[str, ...] = ()
    insecure: bool = False
    page: bool = False

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if not 0 <= self.port <= 65535:
            yield "port", f"there is no port {self.port}"
        if self.cert is None and (self.key_file or self.client_ca):
            yield "cert", "key_file and client_ca need cert"


@dataclass(frozen=True, slots=True, kw_only=True)
class PullSection:
    """`[pull]`: where updates are looked for, if there is such a section."""

    url: str
    interval: float = 3600.0
    jitter: float = 0.1
    policy: str = "newer"
    """`newer`, `different` or `pinned=VERSION`."""
    allow_http: bool = False
    cacert: str | None = None
    cert: str | None = None
    key_file: str | None = None
    proxy: str | None = None
    mongoose_query: bool = False

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if self.interval <= 0:
            yield "interval", "an interval has more than 0 seconds"
        if not 0 <= self.jitter <= 1:
            yield "jitter", "jitter is a part of the interval, 0 to 1"
        if self.policy not in {"newer", "different"} and not self.policy.startswith("pinned="):
            yield "policy", "policy is newer, different or pinned=VERSION"


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSection:
    """`[mqtt]`: the broker that the device is reached through, if there is such a section."""

    url: str
    user_file: str | None = None
    cacert: str | None = None
    cert: str | None = None
    key_file: str | None = None
    version: Literal["3.1.1", "5"] = "3.1.1"

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if not self.url.startswith(("mqtt://", "mqtts://")):
            yield "url", "a broker's URL begins with mqtt:// or mqtts://"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySection:
    """`[history]`: the last updates, and who is told of them."""

    path: str | None = None
    updates: int = 50
    webhook: str | None = None

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if not 1 <= self.updates <= 1000:
            yield "updates", "a history has 1 to 1000 updates"
        if self.webhook and not self.path:
            yield "webhook", "reports need a history: say its path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A whole file. A section that is None was left out, and switches something off."""

    device: DeviceSection = field(default_factory=DeviceSection)
    keys: KeysSection = field(default_factory=KeysSection)
    slots: SlotsSection
    selector: SelectorSection = field(default_factory=SelectorSection)
    state: StateSection = field(default_factory=StateSection)
    watchdog: WatchdogSection = field(default_factory=WatchdogSection)
    program: ProgramSection = field(default_factory=ProgramSection)
    http: HttpSection | None = None
    pull: PullSection | None = None
    mqtt: MqttSection | None = None
    history: HistorySection = field(default_factory=HistorySection)


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


def _belonging(section: Any, wanted: Mapping[str, tuple[str, ...]]) -> Contradictions:
    """Keys that the kind needs, and keys that belong to another kind."""
    for kind, names in wanted.items():
        for name in names:
            given = getattr(section, name) is not None
            if kind == section.kind and not given:
                yield name, f"{section.kind} slots need {name}"
            if kind != section.kind and given:
                yield name, f"{name} belongs to {kind} slots"


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
            self._fault((*path, name), text)
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
