"""The sections of `/etc/mgota.toml`: what keys there are, of which types, and what contradicts itself in one of them.

A key that is left out has the default that stands here. What belongs to one kind of a thing only is refused for others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

from mgota.core.offer import Policy
from mgota.core.polls import check_interval
from mgota.core.version import is_version, order
from mgota.errors import ConfigError

Contradictions = Iterator[tuple[str, str]]
"""Names of keys, and what is wrong with them together."""

Keys = Mapping[str, tuple[str, ...]]
"""Keys by kinds."""


def _of_kind(section: Any, needed: Keys, allowed: Keys) -> Contradictions:
    """Keys that the kind needs, and keys that belong to another one."""
    for one in fields(section):
        given = one.name != "kind" and getattr(section, one.name) != one.default
        need, may = needed.get(section.kind, ()), allowed.get(section.kind, ())
        if one.name in need and not given:
            yield one.name, f"{section.kind} needs {one.name}"
        elif given and one.name not in need and one.name not in may:
            yield one.name, f"{one.name} does not belong to {section.kind}"


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
    data: str | None = None
    """A directory outside of both slots: boot record, history, progress of downloads."""
    lock: str = "/run/mgota.lock"
    """What keeps two processes from updating at once."""
    reboot: tuple[str, ...] = ("reboot",)
    """The command that starts the machine again."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if self.window <= 0:
            yield "window", "a trial needs more than 0 seconds"
        if self.tries < 1:
            yield "tries", "a trial needs at least one try"
        if self.floor is not None and order(self.floor) is None:
            yield "floor", f"{self.floor} is no version that others could be compared with"
        if self.hardware is not None and not is_version(self.hardware):
            yield "hardware", "a hardware id is 1 to 64 printable characters without spaces"
        if not self.reboot:
            yield "reboot", "a machine is started again by some command"


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

    kind: Literal["files", "block", "mtd"] = "files"
    directory: str | None = None
    """Of files."""
    a: str | None = None
    """Of block: a path, `LABEL=…`, `PARTLABEL=…` or `PARTUUID=…`. Of mtd: `/dev/mtdN`."""
    b: str | None = None
    cmdline: str = "/proc/cmdline"
    """Of block and mtd: where the kernel was told which slot it was started from."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        pair, place = ("a", "b"), ("cmdline",)
        needed = {"files": ("directory",), "block": pair, "mtd": pair}
        yield from _of_kind(self, needed, {"block": place, "mtd": place})
        if self.a is not None and self.a == self.b:
            yield "b", "the two slots are the same"


_NUMBERS: Final = {
    "efi": (re.compile(r"[0-9A-Fa-f]{4}"), "four hexadecimal digits, as efibootmgr shows them behind Boot"),
    "tryboot": (re.compile(r"[1-9][0-9]{0,2}"), "the number of its boot partition, in quotes"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectorSection:
    """`[selector]`: what boots one slot or the other."""

    kind: Literal["uboot", "grub", "systemd-boot", "efi", "tryboot", "symlink", "script"]
    convention: Literal["rauc", "bootcount"] = "rauc"
    """Of U-Boot's variables."""
    config: str = "/etc/fw_env.config"
    """Of U-Boot's environment."""
    lock: str = "/var/lock/fw_printenv.lock"
    """What other programs lock that change U-Boot's environment."""
    path: str | None = None
    """GRUB's environment block, systemd-boot's entries, efivars, autoboot.txt, a link; None is where it usually is."""
    a: str | None = None
    """The bootloader's name of slot a: a word of uboot and grub, a boot entry of efi, a partition of tryboot, what the
    link says, a file with the entry of systemd-boot."""
    b: str | None = None
    attempts: int | None = None
    """Boots of a new slot until the bootloader gives it up."""
    variable: str | None = None
    """Of the convention bootcount: the one that names the slot."""
    command: tuple[str, ...] = ()
    """Of a script."""
    timeout: float = 30.0
    """Seconds that a script has."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        pair = ("a", "b")
        needed = {"systemd-boot": pair, "efi": pair, "tryboot": pair, "symlink": ("path",), "script": ("command",)}
        allowed = {
            "uboot": (*pair, "convention", "config", "lock", "attempts", "variable"),
            "grub": ("path", *pair),
            "systemd-boot": ("path", "attempts"),
            "efi": ("path",),
            "tryboot": ("path",),
            "symlink": pair,
            "script": ("timeout",),
        }
        yield from _of_kind(self, needed, allowed)
        yield from self._names()
        if self.variable is not None and self.convention != "bootcount":
            yield "variable", "the convention rauc has variables of its own"
        if self.attempts is not None and not 1 <= self.attempts <= 15:
            yield "attempts", "a slot gets between 1 and 15 attempts to boot"
        if self.timeout <= 0:
            yield "timeout", "a script needs more than 0 seconds"

    def _names(self) -> Contradictions:
        if (self.a is None) != (self.b is None) or (self.a is not None and self.a == self.b):
            yield "b", "the bootloader knows both slots, by two names"
        form, words = _NUMBERS.get(self.kind, (None, ""))
        for name in ("a", "b"):
            value = getattr(self, name)
            if form and value is not None and not form.fullmatch(value):
                yield name, f"this has to be {words}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSection:
    """`[state]`: where the boot record is."""

    kind: Literal["file", "uboot", "grub", "cells", "register", "mtd"] = "file"
    path: str | None = None
    """A file (None is the one in device.data), an nvmem or EEPROM device, what a register is mapped from, an MTD."""
    variable: str = "mgota_state"
    """Of an environment."""
    size: int | None = None
    """Bytes of both cells together."""
    offset: int = 0
    """Of the first cell, in bytes."""
    block: int = 0
    """Of an MTD: the number of the first of three erase blocks."""
    address: int | None = None
    """Of a register, in bytes."""
    raw: bool = False
    """Of a register: the bare numbers 0 to 3."""
    record: str | None = None
    """Of a register: the file with the record itself."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        needed = {"cells": ("path", "size"), "register": ("address",), "mtd": ("path",)}
        allowed = {
            "file": ("path",),
            "uboot": ("variable",),
            "grub": ("variable",),
            "cells": ("offset",),
            "register": ("path", "raw", "record"),
            "mtd": ("block",),
        }
        yield from _of_kind(self, needed, allowed)
        for name in ("size", "offset", "block", "address"):
            if (getattr(self, name) or 0) < 0:
                yield name, f"{name} is not negative"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchdogSection:
    """`[watchdog]`: the dead man's switch."""

    kind: Literal["none", "device", "systemd"] = "none"
    path: str = "/dev/watchdog"
    limit: float | None = None
    """Seconds of its longest timeout, where that is known; otherwise its driver is asked."""
    always: bool = False
    """Fed for life by `mgota run`, and not in trials only: what hangs after its commit is reset as well."""
    timeout: float = 30.0
    """Seconds without a sign of life after which the board is reset, outside of trials."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        yield from _of_kind(self, {}, {"device": ("path", "limit", "always", "timeout")})
        if self.timeout < 1:
            yield "timeout", "a watchdog counts at least 1 second"
        elif not self.always and self.timeout != 30.0:
            yield "timeout", "outside of trials it is armed only if always = true"
        if self.limit is not None and self.limit < 1:
            yield "limit", "a watchdog counts at least 1 second"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSection:
    """`[program]`: what `mgota run` starts; `{slot}` is the path of the running slot."""

    command: tuple[str, ...] = ()
    watchdog: float = 10.0
    """Seconds between two signs of life, from the first one on; 0 asks for none."""
    grace: float = 5.0
    """Seconds from SIGTERM to SIGKILL."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        for name in ("watchdog", "grace"):
            if getattr(self, name) < 0:
                yield name, "this is no time to wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthSection:
    """`[health]`: what has to be so before an image on trial is made permanent. Without it, somebody else commits."""

    command: tuple[str, ...] = ()
    """Ends with status 0 when all is well."""
    url: str | None = None
    """Answers with a status below 400, such as that of the application itself."""
    cacert: str | None = None
    """Whom to trust for `url`, if it is https and its certificate is nothing that the system trusts."""
    mqtt: bool = False
    """The broker of `[mqtt]` is connected."""
    same_version: bool = False
    """The update server of `[pull]` offers what runs."""
    timeout: float = 10.0
    """Seconds that each of them has."""
    consecutive: int = 1
    """How often in a row all of them have to say yes."""
    interval: float = 5.0
    """Seconds between two looks."""

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if not (self.command or self.url or self.mqtt or self.same_version):
            yield "command", "there is nothing to look at: say command, url, mqtt or same_version"
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            yield "url", "a URL begins with https:// or http://"
        if self.cacert is not None and not (self.url or "").startswith("https://"):
            yield "cacert", "cacert needs a url with https://"
        for name in ("timeout", "interval"):
            if getattr(self, name) <= 0:
                yield name, f"{name} has more than 0 seconds"
        if self.consecutive < 1:
            yield "consecutive", "a device is healthy after at least one look"


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
    allow_origins: tuple[str, ...] = ()
    cacert: str | None = None
    cert: str | None = None
    key_file: str | None = None
    proxy: str | None = None
    mongoose_query: bool = False

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        for name, check in (("interval", lambda: check_interval(self.interval, 0.0)),
                            ("jitter", lambda: check_interval(1.0, self.jitter)),
                            ("policy", lambda: Policy.parse(self.policy))):  # fmt: skip
            try:
                check()
            except ConfigError as exc:
                yield name, str(exc)
        if self.key_file and not self.cert:
            yield "cert", "key_file needs cert"


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttSection:
    """`[mqtt]`: the broker that the device is reached through, if there is such a section."""

    url: str
    user_file: str | None = None
    cacert: str | None = None
    cert: str | None = None
    key_file: str | None = None
    version: Literal["auto", "3.1.1", "5"] = "auto"

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if not self.url.startswith(("mqtt://", "mqtts://")):
            yield "url", "a broker's URL begins with mqtt:// or mqtts://"
        if self.key_file and not self.cert:
            yield "cert", "key_file needs cert"


@dataclass(frozen=True, slots=True, kw_only=True)
class HistorySection:
    """`[history]`: the last updates, and who is told of them."""

    path: str | None = None
    """A file; None is the one in device.data, or beside slots that are files."""
    updates: int = 50
    webhook: str | None = None
    """A URL that gets each update that ended, as JSON by POST."""
    cacert: str | None = None
    """Whom to trust for `webhook`, if not the system's."""
    mqtt: bool = False
    """Whether the device's status at the broker of `[mqtt]` has the last update that ended."""
    query: bool = False
    """Whether the update server of `[pull]` is asked after each update that ended, with Mongoose's query."""

    @property
    def reports(self) -> bool:
        """Whether anybody is told."""
        return bool(self.webhook or self.mqtt or self.query)

    def contradictions(self) -> Contradictions:
        """What makes no sense."""
        if not 1 <= self.updates <= 1000:
            yield "updates", "a history has 1 to 1000 updates"
        if self.webhook is not None and not self.webhook.startswith(("http://", "https://")):
            yield "webhook", "a URL begins with https:// or http://"
        if self.cacert is not None and not (self.webhook or "").startswith("https://"):
            yield "cacert", "cacert needs a webhook with https://"
