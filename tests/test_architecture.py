"""The walls of the house, as DESIGN.md draws them: who may import whom, and who may know what."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mgota

ROOT = Path(mgota.__file__).parent
MODULES = {
    ".".join(("mgota", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}
# From the top of the house down. A module imports from its own room and from those above.
ROOMS = (
    ("mgota.errors",),
    ("mgota.core",),
    ("mgota.ports",),
    (
        "mgota.status",
        "mgota.verified",
        "mgota.device",
        "mgota.finished",
        "mgota.gateway",
        "mgota.health",
        "mgota.history",
        "mgota.outgoing",
        "mgota.packed",
        "mgota.pieces",
        "mgota.receiver",
        "mgota.responder",
        "mgota.resume",
        "mgota.session",
        "mgota.status",
        "mgota.trial",
    ),
    ("mgota.flash",),
    ("mgota.linux",),
    ("mgota.transports",),
    ("mgota.testing",),
    ("mgota.cli",),
)


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text())


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, inside functions too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else node.module


def room(module: str) -> int:
    for floor, names in enumerate(ROOMS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return floor
    raise AssertionError(f"{module} is in no room")


INSIDE = sorted(module for module in MODULES if module != "mgota")


@pytest.mark.parametrize("module", INSIDE)
def test_a_module_imports_only_from_rooms_above(module: str) -> None:
    for other in imports(module):
        if other.startswith("mgota."):
            assert room(other) <= room(module), f"{module} imports {other}, which lies below it"
        assert other != "mgota", f"{module} goes through the door from inside"


def test_imports_make_no_circle_and_are_not_deep() -> None:
    graph = {module: {name for name in imports(module) if name in MODULES} for module in INSIDE}
    depth: dict[str, int] = {}
    for module in TopologicalSorter(graph).static_order():  # raises CycleError
        depth[module] = 1 + max((depth.get(other, 0) for other in graph.get(module, ())), default=0)
    library = {module: d for module, d in depth.items() if not module.startswith("mgota.cli")}
    assert max(library.values()) <= 9, {m: d for m, d in library.items() if d > 9}


@pytest.mark.parametrize("module", [m for m in INSIDE if m.startswith("mgota.transports")])
def test_transports_know_neither_media_nor_each_other(module: str) -> None:
    own = ".".join(module.split(".")[:3])
    for other in imports(module):
        assert not other.startswith(("mgota.flash", "mgota.linux")), f"{module} imports {other}"
        if other.startswith("mgota.transports."):
            assert other == own or other.startswith(own + "."), f"{module} imports {other}"


@pytest.mark.parametrize("module", [m for m in INSIDE if m.startswith("mgota.core")])
def test_core_only_decides(module: str) -> None:
    foreign = {name.partition(".")[0] for name in imports(module)}
    assert not foreign & {"anyio", "asyncio", "time", "datetime", "socket", "os", "pathlib", "threading", "random"}
    for node in ast.walk(tree(module)):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith), module
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "input"}, f"{module}:{node.lineno}"


@pytest.mark.parametrize(
    ("library", "importers"),
    [
        ("cryptography", {"mgota.core.keys"}),
        ("crcmod", {"mgota.core.checksum"}),
        ("isal", {"mgota.core.checksum"}),
        ("zstandard", {"mgota.core.unpack"}),
        ("h11", {"mgota.transports.http"}),
        ("xml", {"mgota.core.memory_map"}),
        ("serialx", {"mgota.flash.links.wire"}),
        ("httpx", {"mgota.transports.pull"}),
        ("aiomqtt", {"mgota.transports.mqtt"}),
        ("packaging", {"mgota.core.version"}),
        ("fcntl", {"mgota.flash.files", "mgota.linux.ioctl"}),
        ("ctypes", {"mgota.linux"}),
        ("click", {"mgota.cli"}),
        ("rich", {"mgota.cli"}),
        ("ssl", {"mgota.transports", "mgota.cli"}),
    ],
)
def test_a_library_enters_by_one_door(library: str, importers: set[str]) -> None:
    found = {m for m in INSIDE if any(name.partition(".")[0] == library for name in imports(m))}
    strangers = {m for m in found if not any(m == i or m.startswith(i + ".") for i in importers)}
    assert not strangers


def test_asyncio_is_reached_through_anyio() -> None:
    found = {m for m in INSIDE if any(name.partition(".")[0] == "asyncio" for name in imports(m))}
    assert found == set()


def test_the_door_loads_nothing_that_not_everybody_needs() -> None:
    code = "import sys, mgota; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"aiomqtt", "httpx", "packaging", "click", "rich", "h11", "ssl"} & set(loaded)


def test_the_door_is_narrow_and_every_name_is_behind_it() -> None:
    assert len(mgota.__all__) <= 25
    assert list(mgota.__all__) == sorted(mgota.__all__)
    for name in mgota.__all__:
        assert getattr(mgota, name).__doc__, name


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_says_what_it_is_for_and_fits_a_head(module: str) -> None:
    assert ast.get_docstring(tree(module)), f"{module} does not say what it is for"
    assert len(MODULES[module].read_text().splitlines()) <= 450, f"{module} is two rooms"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 70, f"{module}:{node.lineno} {node.name} fits no screen"
