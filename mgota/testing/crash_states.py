"""The states that a crash may leave of files: counted, labelled, and written into a directory.

    after operation 7 (rename .x.tmp to x); lost: 2 of 2 sectors of x

`mgota.testing.disk` says what a crash may do. Rules:
- of a crash point with few states all are tried (`LIMIT`); of one with more, the corners (everything kept, everything
  lost, all of one file lost, data without size, size without data, ...), and others by a seeded draw: the count tells;
- two states that look alike are one;
- a state is written by itself: it does not depend on the file system that it is written to.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from itertools import combinations, islice, product
from pathlib import Path
from random import Random
from typing import Any

from mgota.testing.disk import Change, Disk, FileOperation, Node, NodeKind, Tree, Versions

LIMIT = 256
"""States of one crash point up to which all are tried; of more, about as many are drawn."""

MIN_SHARE = 8
"""States that are drawn for each set of names, however many sets there are."""

Chosen = Mapping[Versions[Any], int]


class Order(StrEnum):
    """Which pending changes of names may survive a crash.

    ANY: every subset, as POSIX allows. PREFIX: in each directory the first so many, as with a journal.
    """

    ANY = "any"
    PREFIX = "prefix"


@dataclass(frozen=True, slots=True)
class CrashPoint:
    """The moment of a crash.

    Args:
        operation: number of operations done; 0 is before the first.
        what: the last of them.
        marks: what the program had noted by then, in order.
    """

    operation: int
    what: str
    marks: tuple[object, ...]

    def __str__(self) -> str:
        return f"after operation {self.operation} ({self.what})"


@dataclass(frozen=True, slots=True)
class Entry:
    """What lies under one path after a crash: a file, a link with its target, or a directory."""

    kind: NodeKind
    content: bytes
    mode: int
    node: Node = field(compare=False)


@dataclass(frozen=True, slots=True)
class CrashState:
    """What a crash left.

    Args:
        point: when it was.
        entries: by path, relative to the root; a directory comes before what lies in it.
        lost: what did not survive, for people.
        root: the directory that was recorded: an absolute link into it leads into the copy.
    """

    point: CrashPoint
    entries: Mapping[str, Entry]
    lost: tuple[str, ...]
    root: Path

    @property
    def label(self) -> str:
        """When it was and what was lost, for people."""
        return f"{self.point}; lost: {', '.join(self.lost) or 'nothing'}"

    @property
    def key(self) -> bytes:
        """Equal for states that look alike."""
        digest = sha256()
        for path, entry in sorted(self.entries.items()):
            content = entry.content if len(entry.content) < 64 else sha256(entry.content).digest()
            digest.update(repr((path, entry.kind, entry.mode, content)).encode())
        return digest.digest()

    def write_to(self, directory: str | os.PathLike[str]) -> None:
        """Make a directory look like this. It is made if it is missing, and should be empty.

        Raises:
            OSError: it cannot be done, or something was there.
        """
        base = Path(directory)
        base.mkdir(parents=True, exist_ok=True)
        first: dict[Node, Path] = {}
        for path, entry in self.entries.items():
            target = base / path
            if entry.node in first and entry.kind is not NodeKind.DIRECTORY:
                target.hardlink_to(first[entry.node])
                continue
            first[entry.node] = target
            match entry.kind:
                case NodeKind.FILE:
                    with target.open("xb") as file:
                        file.write(entry.content)
                        os.fchmod(file.fileno(), entry.mode)
                case NodeKind.LINK:
                    target.symlink_to(self._led(os.fsdecode(entry.content), base))
                case NodeKind.DIRECTORY:
                    target.mkdir()
        for path, entry in reversed(list(self.entries.items())):
            if entry.kind is NodeKind.DIRECTORY:
                (base / path).chmod(entry.mode)

    def _led(self, target: str, base: Path) -> str:
        path = Path(target)
        return str(base.absolute() / path.relative_to(self.root)) if path.is_relative_to(self.root) else target


@dataclass(frozen=True, slots=True)
class _View:
    """The names after a crash, and what may differ in the files that they lead to."""

    lost: tuple[Change, ...]
    paths: Mapping[str, Node]
    dimensions: tuple[Versions[Any], ...]

    @property
    def states(self) -> int:
        return math.prod(len(versions.values) for versions in self.dimensions)


class CrashStates:
    """The distinct states that a crash at one point may leave. Iterate over it, as often as you like.

    Args:
        point: the moment.
        root: the directory that was recorded.
        start: the names at the start of the record; its first directory is the root.
        operations: what was done up to the point.
        order: which pending changes of names may survive.
        limit: states up to which all are given; of more, about so many.
        seed: of the draw.
    """

    def __init__(
        self,
        point: CrashPoint,
        root: Path,
        start: Tree,
        operations: Sequence[FileOperation],
        *,
        order: Order = Order.ANY,
        limit: int = LIMIT,
        seed: int = 0,
    ) -> None:
        self.point = point
        self._root = root
        self._top = next(iter(start))
        self._disk = Disk(start, operations)
        self._limit = limit
        self._random = (seed, point.operation)
        subsets, self._all_names = self._subsets(order)
        self._views = self._distinct_views(subsets)

    @property
    def possible(self) -> int:
        """States that the model allows, those that look alike counted apart; if names are drawn, at least so many."""
        return sum(view.states for view in self._views)

    @property
    def exhaustive(self) -> bool:
        """Whether all of them are given."""
        return self._all_names and self.possible <= self._limit

    def __iter__(self) -> Iterator[CrashState]:
        seen = set[bytes]()
        rng = Random(repr(self._random))  # noqa: S311  a draw that can be repeated
        share = max(MIN_SHARE, self._limit // len(self._views))
        for view in self._views:
            choices = _all(view.dimensions) if self.exhaustive else self._drawn(view, share, rng)
            new = self._new(view, choices, seen)
            yield from new if self.exhaustive else islice(new, share)

    def _new(self, view: _View, choices: Iterable[Chosen], seen: set[bytes]) -> Iterator[CrashState]:
        for chosen in choices:
            state = self._state(view, chosen)
            if (key := state.key) not in seen:
                seen.add(key)
                yield state

    # names

    def _subsets(self, order: Order) -> tuple[list[tuple[Change, ...]], bool]:
        """The sets of changes that may be lost together, and whether these are all."""
        pending = self._disk.pending()
        if order is Order.PREFIX:
            suffixes = list(islice(_suffixes(pending), self._limit + 1))
            return suffixes, len(suffixes) <= self._limit
        if 2 ** len(pending) <= self._limit:
            counts = range(len(pending) + 1)
            return [lost for count in counts for lost in combinations(pending, count)], True
        rng = Random(repr(self._random))  # noqa: S311  a draw that can be repeated
        drawn: list[tuple[Change, ...]] = [(), tuple(pending), *((change,) for change in pending)]
        drawn += [tuple(other for other in pending if other is not change) for change in pending]
        drawn += [tuple(change for change in pending if rng.random() < 0.5) for _ in range(self._limit - len(drawn))]
        return drawn, False

    def _distinct_views(self, subsets: Sequence[tuple[Change, ...]]) -> list[_View]:
        views: dict[tuple[tuple[str, Node], ...], _View] = {}
        for lost in subsets:
            paths = dict(_walk(self._disk.names(lost), self._top))
            views.setdefault(tuple(paths.items()), _View(lost, paths, self._dimensions(paths)))
        return list(views.values())

    def _dimensions(self, paths: Mapping[str, Node]) -> tuple[Versions[Any], ...]:
        nodes = dict.fromkeys(paths.values())
        return tuple(versions for node in nodes for versions in self._disk.place(node).dimensions())

    # contents

    def _drawn(self, view: _View, share: int, rng: Random) -> Iterator[Chosen]:
        """More than the share, because some look alike."""
        if view.states <= share:
            yield from _all(view.dimensions)
            return
        yield from self._corners(view)
        for _ in range(4 * share):
            yield _draw(view.dimensions, rng)

    def _corners(self, view: _View) -> Iterator[Chosen]:
        yield {}
        yield dict.fromkeys(view.dimensions, 0)
        for node in dict.fromkeys(view.paths.values()):
            place = self._disk.place(node)
            mine = set(place.dimensions())
            sectors = mine & set(place.sectors.values())
            if mine:
                yield dict.fromkeys(mine, 0)
                yield dict.fromkeys(set(view.dimensions) - mine, 0)
                yield dict.fromkeys(sectors, 0)
                yield dict.fromkeys(sectors, 1)  # where there is something stale, that
                yield dict.fromkeys(mine - sectors, 0)

    def _state(self, view: _View, chosen: Chosen) -> CrashState:
        entries: dict[str, Entry] = {}
        lost = [change.names.what for change in view.lost]
        told = set[Node]()
        for path, node in view.paths.items():
            place = self._disk.place(node)
            content = place.content(chosen) if node.kind is NodeKind.FILE else node.content
            entries[path] = Entry(node.kind, content, place.mode.pick(chosen), node)
            if node not in told:
                told.add(node)
                lost += self._losses(path, node, chosen)
        return CrashState(self.point, entries, tuple(lost), self._root)

    def _losses(self, path: str, node: Node, chosen: Chosen) -> Iterator[str]:
        place = self._disk.place(node)
        sectors = [versions for versions in place.sectors.values() if versions.open]
        if lost := sum(_is_lost(versions, chosen) for versions in sectors):
            yield f"{lost} of {len(sectors)} sectors of {path}"
        if _is_lost(place.size, chosen):
            yield f"the size of {path}, which is {place.size.pick(chosen)}"
        if _is_lost(place.mode, chosen):
            yield f"the mode of {path}, which is {place.mode.pick(chosen):o}"


def _is_lost(versions: Versions[Any], chosen: Chosen) -> bool:
    return chosen.get(versions, -1) not in (-1, len(versions.values) - 1)


def _all(dimensions: Sequence[Versions[Any]]) -> Iterator[Chosen]:
    for indexes in product(*(range(len(versions.values) - 1, -1, -1) for versions in dimensions)):
        yield dict(zip(dimensions, indexes, strict=True))


def _draw(dimensions: Sequence[Versions[Any]], rng: Random) -> Chosen:
    """Each by itself, few lost, few kept, or the first so many kept, or lost: what is written in order is torn so."""
    match rng.randrange(5):
        case 0:
            return {versions: rng.randrange(len(versions.values)) for versions in dimensions}
        case 1:
            return {versions: rng.randrange(len(versions.values)) for versions in dimensions if rng.random() < 0.1}
        case 2:
            return {versions: 0 for versions in dimensions if rng.random() < 0.9}
        case 3:
            return dict.fromkeys(dimensions[rng.randrange(len(dimensions)) :], 0)
        case _:
            return dict.fromkeys(dimensions[: rng.randrange(len(dimensions)) + 1], 0)


def _suffixes(pending: Sequence[Change]) -> Iterator[tuple[Change, ...]]:
    """What may be lost if each directory keeps its first so many changes. A rename between two is kept by both."""
    directories = list(dict.fromkeys(d for change in pending for d in change.directories))
    mine = {directory: [change for change in pending if directory in change.directories] for directory in directories}
    for kept in product(*(range(len(mine[directory]), -1, -1) for directory in directories)):
        lost = {c for directory, count in zip(directories, kept, strict=True) for c in mine[directory][count:]}
        held = {c for directory, count in zip(directories, kept, strict=True) for c in mine[directory][:count]}
        if not lost & held:
            yield tuple(change for change in pending if change in lost)


def _walk(tree: Tree, *above: Node, prefix: str = "") -> Iterator[tuple[str, Node]]:
    for name, node in sorted(tree.get(above[-1], {}).items(), key=lambda entry: entry[0]):
        if node in above:
            continue  # of several renames of directories some were lost: a knot that fsck would cut
        yield prefix + name, node
        if node.kind is NodeKind.DIRECTORY:
            yield from _walk(tree, *above, node, prefix=f"{prefix}{name}/")
