"""The slot selector for systemd-boot: entries with counters; see `mgota.core.sdboot`.

Rules:
- a file is made under another name, made durable, and renamed; then the directory is made durable;
- the board says what an entry holds besides: title, kernel, options. The slot's name belongs on the kernel's command
  line.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread

from mgota.core.geometry import Slot
from mgota.core.sdboot import (
    PREFIX,
    Entry,
    Remove,
    Rename,
    Step,
    Write,
    booting,
    entry_text,
    read_entry,
    select,
    settle,
    tidy,
    tried,
)
from mgota.errors import ConfigError, FlashError, SelectError
from mgota.flash.files import replace_file, sync_directory

ENTRIES = "/boot/loader/entries"
MAX_ENTRY = 1 << 16
_TEST = b"mgota\n"


class SystemdBootSelector:
    """Selects by entries of systemd-boot; implements `Selector`.

    Args:
        templates: what each slot's entry holds: lines of the Boot Loader Specification.
        directory: of the entries.
        attempts: that a slot gets until it counts as one that does not boot.

    Raises:
        ConfigError: a template starts nothing, or there are no attempts.
    """

    def __init__(
        self, templates: Mapping[Slot, str], *, directory: str | os.PathLike[str] = ENTRIES, attempts: int = 3
    ) -> None:
        for slot, template in templates.items():
            if not any(line.split()[:1] in (["linux"], ["efi"]) for line in template.splitlines()):
                raise ConfigError(f"the entry of slot {slot} has neither a line `linux` nor `efi`: it starts nothing")
        if attempts < 1:
            raise ConfigError("a slot needs at least one attempt to boot")
        self.templates = dict(templates)
        self.directory = Path(directory)
        self.attempts = attempts

    async def selected_slot(self) -> Slot | None:
        """The slot that boots next, among the two; None if there is no entry.

        Raises:
            FlashError: the entries cannot be read.
        """
        entry = booting(await to_thread.run_sync(self._load))
        return entry.slot if entry else None

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Make the slot's entry the one that boots.

        Raises:
            SelectError: the entries could not be changed.
        """
        try:
            await to_thread.run_sync(self._select, slot, running)
        except FlashError as exc:
            raise SelectError(f"cannot select slot {slot}: {exc}") from exc

    async def tried(self, slot: Slot) -> bool:
        """Whether the slot has no attempts left.

        Raises:
            FlashError: the entries cannot be read.
        """
        return tried(await to_thread.run_sync(self._load), slot)

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Stop counting.

        Raises:
            FlashError: the entries could not be changed.
        """
        await to_thread.run_sync(self._settle, running, fallback)

    async def recover(self) -> None:
        """Remove what a selection that was cut off has left.

        Raises:
            FlashError: it cannot be done.
        """
        await to_thread.run_sync(self._recover)

    async def selftest(self) -> None:
        """Write a file that is no entry, rename it, read it back, and remove it.

        Raises:
            FlashError: a selection would not work, and why.
        """
        await to_thread.run_sync(self._selftest)

    def _load(self) -> list[Entry]:
        entries = list[Entry]()
        try:
            for path in sorted(self.directory.glob(f"{PREFIX}*.conf")):
                with path.open("rb") as file:
                    entry = read_entry(path.name, file.read(MAX_ENTRY).decode("utf-8", "replace"))
                if entry:
                    entries.append(entry)
        except OSError as exc:
            raise FlashError(f"the entries in {self.directory} cannot be read: {exc.strerror}") from exc
        return entries

    def _select(self, slot: Slot, running: Slot) -> None:
        self._perform(select(self._load(), slot, running=running, attempts=self.attempts))
        entry = booting(self._load())
        if entry is None or entry.slot is not slot:
            raise FlashError(f"{self.directory} does not keep its entries")

    def _settle(self, running: Slot, fallback: bool) -> None:
        self._perform(settle(self._load(), running, fallback=fallback))

    def _recover(self) -> None:
        try:
            for stale in self.directory.glob(f".{PREFIX}*.tmp"):
                stale.unlink(missing_ok=True)
        except OSError as exc:
            raise FlashError(f"{self.directory} cannot be tidied: {exc.strerror}") from exc
        self._perform(tidy(self._load()))

    def _selftest(self) -> None:
        path, renamed = (self.directory / f"{PREFIX}{name}" for name in ("selftest", "selftest+1"))
        try:
            replace_file(path, _TEST)
            path.replace(renamed)  # as a commit does
            sync_directory(self.directory)
            kept = renamed.read_bytes()
            renamed.unlink()
            sync_directory(self.directory)
        except OSError as exc:
            raise FlashError(f"{self.directory} cannot be written: {exc.strerror}") from exc
        if kept != _TEST or path.exists():
            raise FlashError(f"{self.directory} does not keep what is written")
        if booting(self._load()) is None:
            raise FlashError(f"{self.directory} has no entry for a slot yet: {PREFIX}a.conf is the factory's")

    def _perform(self, steps: list[Step]) -> None:
        try:
            for step in steps:
                match step:
                    case Write(name, slot, version):
                        replace_file(self.directory / name, entry_text(self.templates[slot], version).encode())
                    case Rename(old, new):
                        (self.directory / old).replace(self.directory / new)
                        sync_directory(self.directory)
                    case Remove(name):
                        (self.directory / name).unlink(missing_ok=True)
            if steps:
                sync_directory(self.directory)
        except OSError as exc:
            raise FlashError(f"the entries in {self.directory} cannot be changed: {exc.strerror}") from exc
