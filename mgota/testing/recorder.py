"""Records what a program does to files, so that every crash on the way can be replayed: the program is not changed.

    with FileRecorder(directory) as recording:
        replace_file(directory / "x", b"new")
    for state in recording.crash_states(after=3):
        state.write_to(other)

`mgota.testing.crashes` does so for each operation.

Rules:
- the functions of `os` that change files, and `open`, are replaced while it records, in all threads, and put back;
- what they do is not believed but looked up: before and after each, the whole directory is compared with what it was.
  So nothing is lost that went around `os.write` (buffered files write in C, mappings without any call); it is found
  at the next operation, and several such writes of one sector are one. Keep the directory small;
- one operation at a time: threads wait for each other;
- other processes are not seen, nor what is written to a file that has lost its name.
"""

import builtins
import io
import os
import posix
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mgota.testing.crash_states import LIMIT, CrashPoint, CrashStates, Order
from mgota.testing.disk import (
    Content,
    Event,
    FileOperation,
    Mode,
    Names,
    Node,
    NodeKind,
    Sync,
    Tree,
    change_names,
    changed_sectors,
)

_WATCHED = {
    "open": (0,),
    "close": (0,),
    "write": (0,),
    "pwrite": (0,),
    "writev": (0,),
    "pwritev": (0,),
    "sendfile": (0,),
    "copy_file_range": (1,),
    "truncate": (0,),
    "ftruncate": (0,),
    "posix_fallocate": (0,),
    "fsync": (0,),
    "fdatasync": (0,),
    "rename": (0, 1),
    "replace": (0, 1),
    "unlink": (0,),
    "remove": (0,),
    "link": (0, 1),
    "symlink": (1,),
    "mkdir": (0,),
    "rmdir": (0,),
    "chmod": (0,),
    "fchmod": (0,),
}
"""Functions of `os`, and which of their arguments are paths or descriptors of what they change."""

_KEYWORDS = (("path", "fd", "src", "file", "out_fd"), ("dst",))
"""What those arguments are called, in the same order."""

_Place = tuple[Node, str]
"""A directory, and a name in it."""


class FileRecorder:
    """Records what happens below a directory inside a `with` block. What lies there before counts as durable.

    Args:
        root: the directory. Only directories, regular files and symbolic links in it are recorded.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(os.path.realpath(root))
        self.operations: list[FileOperation] = []
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._nodes: dict[tuple[int, int], Node] = {}
        self._contents: dict[Node, bytes] = {}
        self._modes: dict[Node, int] = {}
        self._top = Node(NodeKind.DIRECTORY, ".")
        self._start: Tree = {}
        self._tree: Tree = {self._top: {}}

    def __enter__(self) -> Self:
        found = self.root.stat()
        self._nodes[found.st_dev, found.st_ino] = self._top
        self._look("what was there")
        # What was found came in as events: it is not news, but the start.
        self.operations.clear()
        self._start = {directory: dict(names) for directory, names in self._tree.items()}
        for node, content in self._contents.items():
            node.content = content
        for name in _WATCHED:
            self._replace(os, name, self._watched(name, getattr(os, name)))
        opened = self._watched("open", io.open)
        self._replace(io, "open", opened)
        self._replace(builtins, "open", opened)
        return self

    def _replace(self, module: object, name: str, new: object) -> None:
        self._stack.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, new)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack, self._lock:
            self._look("write past os")

    def mark(self, value: object) -> None:
        """Note that the program got this far: an operation that changes nothing, and is in every later crash point."""
        with self._lock:
            self._look("write past os")
            self.operations.append(FileOperation(f"mark {value}", marks=(value,)))

    def points(self) -> Iterator[CrashPoint]:
        """Every moment of a crash, from before the first operation to after the last."""
        yield CrashPoint(0, "nothing was done", ())
        marks: tuple[object, ...] = ()
        for number, operation in enumerate(self.operations, 1):
            marks += operation.marks
            yield CrashPoint(number, operation.what, marks)

    def crash_states(
        self, after: int | None = None, *, order: Order = Order.ANY, limit: int = LIMIT, seed: int = 0
    ) -> CrashStates:
        """What a crash may leave.

        Args:
            after: number of operations that were done; None for all.
            order: which pending changes of names may survive.
            limit: states up to which all are given; of more, about so many are drawn.
            seed: of the draw.

        Raises:
            IndexError: so many operations were not recorded.
        """
        points = list(self.points())
        point = points[-1 if after is None else after]
        done = self.operations[: point.operation]
        return CrashStates(point, self.root, self._start, done, order=order, limit=limit, seed=seed)

    # what a call is about

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if not self._concerns(name, args, options):
                return real(*args, **options)
            with self._lock:
                self._look("write past os")
                if name in ("fsync", "fdatasync"):
                    return self._sync(name, real, _argument(0, args, options))
                if name in ("rename", "replace"):
                    return self._rename(real, args, options)
                try:
                    return real(*args, **options)
                finally:
                    self._look(name)

        return call

    def _concerns(self, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> bool:
        targets = ((_argument(index, args, options), _directory_of(index, options)) for index in _WATCHED[name])
        return any(self._is_ours(target, directory) for target, directory in targets)

    def _is_ours(self, target: Any, directory: int | None) -> bool:
        if isinstance(target, str | bytes) or hasattr(target, "__fspath__"):
            path = _absolute(os.fsdecode(target), directory)
            return self._place(path) is not None or Path(os.path.realpath(path)).is_relative_to(self.root)
        with suppress(OSError, AttributeError):  # whatever else it is: the function itself will say so
            return _key(target) in self._nodes
        return False

    def _place(self, path: Path) -> _Place | None:
        parent = Path(os.path.realpath(path.parent))
        if not parent.is_relative_to(self.root):
            return None
        node = self._top
        for name in parent.relative_to(self.root).parts:
            following = self._tree.get(node, {}).get(name)
            if following is None:
                return None
            node = following
        return node, path.name

    # what it did

    def _sync(self, name: str, real: Callable[..., Any], target: Any) -> None:
        node, done = self._nodes[_key(target)], False
        try:
            real(target)
            done = True
        finally:
            what = f"{name} {node.path}" if done else f"failed {name} {node.path}"
            self.operations.append(FileOperation(what, [Sync(node, name == "fdatasync", done)]))

    def _rename(self, real: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        paths = (os.fsdecode(_argument(index, args, options)) for index in (0, 1))
        old, new = (self._place(_absolute(path, _directory_of(index, options))) for index, path in enumerate(paths))
        try:
            real(*args, **options)
            if old and new:
                self._renamed(old, new)
        finally:
            self._look("rename")

    def _renamed(self, old: _Place, new: _Place) -> None:
        node = self._tree[old[0]].get(old[1])
        if node is None or self._tree[new[0]].get(new[1]) is node:
            return  # two names of one file: POSIX does nothing then
        what = f"rename {_path(*old)} to {_path(*new)}"
        names = Names(what, ((*old, None), (*new, node)))
        change_names(self._tree, names)
        node.path = _path(*new)
        self.operations.append(FileOperation(what, [names]))

    # what there is

    def _look(self, name: str) -> None:
        """Compare the directory with what it was, and record the difference."""
        events = list[Event]()
        self._look_into(self._top, self.root, events)
        if events:
            paths = dict.fromkeys(_path_of(event) for event in events)
            self.operations.append(FileOperation(f"{name} {', '.join(paths)}", events))

    def _look_into(self, directory: Node, path: Path, events: list[Event]) -> None:
        known = self._tree.setdefault(directory, {})
        statuses = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(path)}
        found = {name: (kind, status) for name, status in statuses.items() if (kind := _kind(status))}
        for name in sorted(known.keys() - found.keys()):
            self._name(Names(f"remove {_path(directory, name)}", ((directory, name, None),)), events)
        for name, (kind, status) in sorted(found.items(), key=lambda entry: entry[0]):
            below = path / name
            node = self._nodes.get((status.st_dev, status.st_ino))
            if node is None or known.get(name) is not node:
                node = self._arrive(directory, name, kind, below, status)
                verb = "replace" if name in known else "create"
                self._name(Names(f"{verb} {node.path}", ((directory, name, node),)), events)
            self._compare(node, below, status, events)
            if kind is NodeKind.DIRECTORY:
                self._look_into(node, below, events)

    def _name(self, names: Names, events: list[Event]) -> None:
        change_names(self._tree, names)
        events.append(names)

    def _arrive(self, directory: Node, name: str, kind: NodeKind, path: Path, status: os.stat_result) -> Node:
        key, where = (status.st_dev, status.st_ino), _path(directory, name)
        node = self._nodes.get(key)
        if node and node.kind is kind and any(node in names.values() for names in self._tree.values()):
            return node  # another name of the same file
        target = os.fsencode(path.readlink()) if kind is NodeKind.LINK else b""
        node = self._nodes[key] = Node(kind, where, target, stat.S_IMODE(status.st_mode))
        self._modes[node] = node.mode
        return node

    def _compare(self, node: Node, path: Path, status: os.stat_result, events: list[Event]) -> None:
        mode = stat.S_IMODE(status.st_mode)
        if node.kind is not NodeKind.LINK and mode != self._modes[node]:
            self._modes[node] = mode
            events.append(Mode(node, mode))
        if node.kind is NodeKind.FILE:
            old, new = self._contents.get(node, b""), _read(path)
            if old != new:
                self._contents[node] = new
                events.append(Content(node, len(new), changed_sectors(old, new)))


def _kind(status: os.stat_result) -> NodeKind | None:
    if stat.S_ISREG(status.st_mode):
        return NodeKind.FILE
    if stat.S_ISLNK(status.st_mode):
        return NodeKind.LINK
    return NodeKind.DIRECTORY if stat.S_ISDIR(status.st_mode) else None


def _path(directory: Node, name: str) -> str:
    return name if directory.path == "." else f"{directory.path}/{name}"


def _path_of(event: Event) -> str:
    if isinstance(event, Names):
        directory, name, _ = event.changes[-1]
        return _path(directory, name)
    return event.node.path


def _directory_of(index: int, options: dict[str, Any]) -> int | None:
    directory: int | None = options.get("dir_fd", options.get(("src_dir_fd", "dst_dir_fd")[index]))
    return directory


def _argument(index: int, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if index < len(args):
        return args[index]
    return next((options[key] for key in _KEYWORDS[index] if key in options), None)


def _absolute(path: str, directory: int | None) -> Path:
    base = Path.cwd() if directory is None else Path(f"/proc/self/fd/{directory}").readlink()
    return base / path


def _key(target: Any) -> tuple[int, int]:
    found = os.fstat(target if isinstance(target, int) else target.fileno())
    return found.st_dev, found.st_ino


def _read(path: Path) -> bytes:
    descriptor = posix.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        pieces = list[bytes]()
        while piece := os.read(descriptor, 1 << 20):
            pieces.append(piece)
        return b"".join(pieces)
    finally:
        posix.close(descriptor)
