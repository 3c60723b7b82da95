"""systemd-boot: which of its entries boots, by names that count and versions that order, and how that is changed.

    mgota-b+3.conf      slot b, three attempts left
    mgota-b+2-1.conf    one of them used: the boot loader renames the file before it starts it
    mgota-b+0-3.conf    none left: it goes to the end of the list
    mgota-b.conf        good: not counted

Rules:
- of entries with one sort-key the one with the highest `version` boots, unless it has no attempts left;
- a selection is one file that appears under its final name, with a version above all others. What it replaces is
  removed behind it; what a cut leaves of that, `recover` removes;
- a commit renames the file without its counter.

Source: systemd, docs/AUTOMATIC_BOOT_ASSESSMENT.md and the UAPI group's Boot Loader Specification, "Sorting", "Boot
counting". A model of these: tests do not boot it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mgota.core.geometry import Slot

SORT_KEY = "mgota"
PREFIX = "mgota-"

_NAME = re.compile(PREFIX + r"([ab])(?:\+(\d{1,9})(?:-(\d{1,9}))?)?\.conf")
_VERSION = re.compile(r"^version\s+(\d{1,18})\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.

    Args:
        name: of it.
        slot: that it starts.
        version: that it says.
        left: attempts, None if they are not counted.
        done: attempts that were used.
    """

    name: str
    slot: Slot
    version: int
    left: int | None = None
    done: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Make a file for a slot that appears at once, whole."""

    name: str
    slot: Slot
    version: int


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a file another name."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file."""

    name: str


Step = Write | Rename | Remove


def read_entry(name: str, text: str) -> Entry | None:
    """What a file says; None if it is none of ours."""
    found = _NAME.fullmatch(name)
    if not found:
        return None
    version = _VERSION.search(text)
    left = None if found[2] is None else int(found[2])
    return Entry(name, Slot(found[1]), int(version[1]) if version else 0, left, int(found[3] or 0))


def entry_text(template: str, version: int) -> str:
    """The content of a file: the board's lines, and those that order it."""
    kept = [line for line in template.splitlines() if line.split()[:1] not in (["version"], ["sort-key"])]
    return "\n".join([*kept, f"sort-key {SORT_KEY}", f"version {version}"]) + "\n"


def name_of(slot: Slot, attempts: int | None = None) -> str:
    """The name of a file."""
    return f"{PREFIX}{slot}{'' if attempts is None else f'+{attempts}'}.conf"


def booting(entries: Iterable[Entry]) -> Entry | None:
    """The entry that the boot loader starts."""
    return max(entries, key=lambda entry: (entry.left != 0, entry.version, entry.left or 0, -entry.done), default=None)


def newest(entries: Iterable[Entry]) -> Entry | None:
    """The entry that was selected last."""
    return max(entries, key=lambda entry: entry.version, default=None)


def select(entries: Sequence[Entry], slot: Slot, *, running: Slot, attempts: int) -> list[Step]:
    """Steps after which `slot` boots. If it is the running one, nothing else does."""
    counted = slot is not running
    name = name_of(slot, attempts if counted else None)
    mine, top = newest(entry for entry in entries if entry.slot is slot), newest(entries)
    steps, gone = list[Step](), {name}
    if mine is None or top is not mine or (counted and mine.name != name):
        steps.append(Write(name, slot, (top.version if top else 0) + 1))
    elif mine.name != name:
        steps.append(Rename(mine.name, name))
        gone.add(mine.name)
    unwanted = {slot} if counted else set(Slot)
    return steps + [Remove(entry.name) for entry in entries if entry.slot in unwanted and entry.name not in gone]


def settle(entries: Sequence[Entry], running: Slot, *, fallback: bool) -> list[Step]:
    """Steps after a good boot. If another slot was selected, or none of ours boots, nothing is changed."""
    mine, other = (newest(entry for entry in entries if entry.slot is slot) for slot in (running, running.other))
    if mine is None or newest(entries) is not mine:
        return []
    steps: list[Step] = [Rename(mine.name, name_of(running))] if mine.left is not None else []
    if fallback and other is None:
        steps.append(Write(name_of(running.other), running.other, max(mine.version - 1, 0)))
    if not fallback:
        steps += [Remove(entry.name) for entry in entries if entry.slot is not running]
    return steps


def tidy(entries: Sequence[Entry]) -> list[Step]:
    """Steps that remove what a selection which was cut off has left: older files of a slot."""
    kept: Mapping[Slot, Entry | None] = {slot: newest(e for e in entries if e.slot is slot) for slot in Slot}
    return [Remove(entry.name) for entry in entries if entry is not kept[entry.slot]]


def tried(entries: Sequence[Entry], slot: Slot) -> bool:
    """Whether the slot was selected last, and has no attempts left."""
    last = newest(entries)
    return last is not None and last.slot is slot and last.left == 0
