"""What a power cut may leave of files: a model of a disk that keeps its promises, and not one more.

    durable   what was there when the log began, and what a successful fsync has covered since
    pending   everything else: after a crash each of it may be there or not, whatever happened to the rest

Rules, and where they come from:
- the content of a file is pending until fsync or fdatasync of *that file*, sector by sector (512 bytes, which a disk
  writes as one), in any order: POSIX.1-2017 fsync(), fdatasync(); each sector holds what it held after one of its
  writes, as the page cache writes out whole sectors;
- its size is pending by itself. A size may be durable before the data is: the file then reads as zeros, or as what
  other files left there (ext4(5), data=writeback; T. S. Pillai et al., "All File Systems Are Not Created Equal",
  OSDI 2014, table 1: appends with garbage);
- its mode is pending until fsync; fdatasync does not cover it: fdatasync(2);
- a name (create, rename, unlink, symlink, link, mkdir) is pending until fsync of *its directory*: fsync(2), "explicit
  fsync() on a file descriptor for the directory is also needed". A rename between two needs both. The fsync of a file
  does not make its name durable, though ext4 and others do so: POSIX does not say it;
- one change of names is atomic, a rename also where it replaces something: POSIX.1-2017 rename(). A symbolic link
  comes with its target, or not at all;
- a name may be durable before what it names: the file is then empty. The help of ext4's `auto_da_alloc` (ext4(5)),
  which writes the data of a file that is renamed over another one first, is not relied on;
- pending changes of names survive in any subset (`any`: what POSIX allows; Pillai et al., table 1), or those
  of one directory in their order (`prefix`: a journal, as ext4, XFS and Btrfs have one);
- an fsync that failed has thrown its pages away: what it should have covered is pending for ever, and a later fsync
  that succeeds says nothing of it (fsync(2), EIO; A. Rebello et al., "Can Applications Recover from fsync Failures?",
  USENIX ATC 2020). What is written anew counts anew.

Not modelled: owners, times, extended attributes, media that lie about flushes. O_SYNC counts for nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

SECTOR = 512
"""Bytes that a disk writes as one."""

STALE = (b"what another file left here. " * 18)[:SECTOR]
"""What a sector may hold that belongs to a file and was never written."""

T = TypeVar("T")


class NodeKind(Enum):
    """What a name stands for."""

    FILE = "file"
    LINK = "link"
    DIRECTORY = "directory"


@dataclass(slots=True, eq=False)
class Node:
    """An inode.

    Args:
        kind: what it is.
        path: under which it was last seen, relative to the root, for people.
        content: of a file when it came into the log; the target of a link.
        mode: permissions at that time.
    """

    kind: NodeKind
    path: str
    content: bytes = b""
    mode: int = 0o644


Tree = dict[Node, dict[str, Node]]
"""The names in each directory."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names that change at one stroke: directory, name, and what it stands for from now on (None: nothing)."""

    what: str
    changes: tuple[tuple[Node, str, Node | None], ...]


@dataclass(frozen=True, slots=True)
class Content:
    """A file has another size, or other sectors, by their index; each is filled up with zeros."""

    node: Node
    size: int
    sectors: Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Mode:
    """A file or directory has another mode."""

    node: Node
    mode: int


@dataclass(frozen=True, slots=True)
class Sync:
    """An fsync of a file or a directory, and whether it succeeded."""

    node: Node
    data_only: bool
    done: bool


Event = Names | Content | Mode | Sync


@dataclass(frozen=True, slots=True)
class FileOperation:
    """One thing that a program did: a crash may come after it.

    Args:
        what: it did, for people.
        events: what that meant for the disk.
        marks: the program's own note, if it is one; see `FileRecorder.mark`.
    """

    what: str
    events: list[Event] = field(default_factory=list[Event])
    marks: tuple[object, ...] = ()


class Versions(Generic[T]):
    """What one spot on the disk may hold after a crash, oldest first."""

    __slots__ = ("_untried", "values")

    def __init__(self, durable: T) -> None:
        self.values = [durable]
        self._untried = 1  # from here on no fsync was tried

    @property
    def open(self) -> bool:
        """Whether there is more than one."""
        return len(self.values) > 1

    def add(self, value: T) -> None:
        """The program wrote."""
        self.values.append(value)

    def sync(self, *, done: bool) -> None:
        """An fsync was tried: what it covers is durable, or nobody knows for ever."""
        if done and self._untried < len(self.values):
            self.values = self.values[-1:]
        self._untried = len(self.values)

    def pick(self, chosen: "Mapping[Versions[Any], int]") -> T:
        """The version that was chosen."""
        return self.values[chosen.get(self, -1)]


class Place:
    """What an inode may be after a crash: mode, size and sectors, each by itself."""

    def __init__(self, node: Node) -> None:
        self._born_with = node.content
        self.mode = Versions(node.mode)
        self.size = Versions(len(node.content))
        self.sectors: dict[int, Versions[bytes]] = {}

    def take(self, event: Content | Mode | Sync) -> None:
        """Go on by one event, which has to be of this inode."""
        match event:
            case Mode():
                self.mode.add(event.mode)
            case Content():
                for index, data in event.sectors.items():
                    self._write(index, data)
                if event.size != self.size.values[-1]:
                    self.size.add(event.size)
            case Sync():
                self.size.sync(done=event.done)
                for versions in self.sectors.values():
                    versions.sync(done=event.done)
                if not event.data_only:
                    self.mode.sync(done=event.done)

    def _write(self, index: int, data: bytes) -> None:
        versions = self.sectors.setdefault(index, Versions(sector(self._born_with, index)))
        if index * SECTOR >= self.size.values[0] and not versions.open:
            versions.add(STALE)  # the size may be durable, and the block be the file's, before the data is
        versions.add(data)

    def dimensions(self) -> list[Versions[Any]]:
        """Everything of which more than one version may be found; the last one is what the program saw."""
        found: list[Versions[Any]] = [self.mode, self.size, *(self.sectors[index] for index in sorted(self.sectors))]
        return [versions for versions in found if versions.open]

    def content(self, chosen: Mapping[Versions[Any], int]) -> bytes:
        """The file's bytes.

        Args:
            chosen: index of the version that is there; the last one where none is named.
        """
        size = self.size.pick(chosen)
        data = bytearray(self._born_with.ljust(max(size, (max(self.sectors, default=-1) + 1) * SECTOR), b"\0"))
        for index, versions in self.sectors.items():
            data[index * SECTOR : (index + 1) * SECTOR] = versions.pick(chosen)
        return bytes(data[:size])


def sector(content: bytes | memoryview, index: int) -> bytes:
    """One sector of a file, filled up with zeros."""
    return bytes(content[index * SECTOR : (index + 1) * SECTOR]).ljust(SECTOR, b"\0")


def changed_sectors(old: bytes, new: bytes) -> dict[int, bytes]:
    """The sectors in which two contents of a file differ, as they are in the new one."""
    size = max(len(old), len(new))
    before, after = memoryview(old.ljust(size, b"\0")), memoryview(new.ljust(size, b"\0"))
    indexes = range(-(-size // SECTOR))
    places = (slice(index * SECTOR, (index + 1) * SECTOR) for index in indexes)
    return {index: sector(after, index) for index, at in zip(indexes, places, strict=True) if before[at] != after[at]}


class Change:
    """A change of names that is on its way to the disk."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.directories = {directory for directory, _, _ in names.changes}
        self._untried = set(self.directories)
        self._failed = False

    def sync(self, directory: Node, *, done: bool) -> None:
        """An fsync of one of its directories was tried."""
        if directory in self._untried:
            self._untried.discard(directory)
            self._failed |= not done

    @property
    def pending(self) -> bool:
        """Whether a crash may lose it."""
        return self._failed or bool(self._untried)


class Disk:
    """What is durable and what is pending after some operations.

    Args:
        tree: the names at the start, all of them durable, and what they stand for.
        operations: what was done since.
    """

    def __init__(self, tree: Tree, operations: Iterable[FileOperation]) -> None:
        self.tree = tree
        self.places: dict[Node, Place] = {}
        self.changes: list[Change] = []
        for operation in operations:
            for event in operation.events:
                self._take(event)

    def place(self, node: Node) -> Place:
        """What this inode may be."""
        return self.places.setdefault(node, Place(node))

    def _take(self, event: Event) -> None:
        if isinstance(event, Names):
            self.changes.append(Change(event))
            return
        self.place(event.node).take(event)
        if isinstance(event, Sync):
            for change in self.changes:
                change.sync(event.node, done=event.done)

    def names(self, lost: Collection[Change]) -> Tree:
        """The names where some of the pending changes are lost."""
        tree = {directory: dict(names) for directory, names in self.tree.items()}
        for change in self.changes:
            if change not in lost:
                change_names(tree, change.names)
        return tree

    def pending(self) -> list[Change]:
        """The changes of names that a crash may lose."""
        return [change for change in self.changes if change.pending]


def change_names(tree: Tree, names: Names) -> None:
    """Do what the names say."""
    for directory, name, node in names.changes:
        entries = tree.setdefault(directory, {})
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node
