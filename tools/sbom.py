"""Writes the bill of materials of mgota: what it takes at run time, with every extra, as CycloneDX JSON.

Use:
python tools/sbom.py [--output FILE] [--no-validate]      FILE is dist/mgota.cdx.json if omitted, - is stdout

`cyclonedx-py` tells what is installed beside this Python. Of that only the packages stay that mgota asks for by its own
metadata and theirs, with the markers of this machine: tools of developers are not shipped. The updater page's packages
from npm come from its lock file; a wheel holds a part of them, bundled.
"""

import argparse
import base64
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
NAME = "mgota"
EXTRA = "all"
Graph = dict[str, set[str]]


def runtime() -> Graph:
    """What mgota needs, with every extra, and what each of those needs, by canonical name."""
    found: Graph = {}
    asked: list[tuple[str, frozenset[str]]] = [(NAME, frozenset({EXTRA}))]
    seen: set[tuple[str, frozenset[str]]] = set()
    while asked:
        here = asked.pop()
        if here in seen:
            continue
        seen.add(here)
        name, extras = here
        needs = found.setdefault(name, set())
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            if any(wanted(requirement, extra) for extra in extras or {""}):
                other = canonicalize_name(requirement.name)
                asked.append((other, frozenset(requirement.extras)))
                if other != name:  # an extra of its own
                    needs.add(other)
    return found


def wanted(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement holds on this machine."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def installed() -> dict[str, Any]:
    """What cyclonedx-py finds beside this Python."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", sys.executable, "--no-validate"]
    options = ["--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library", "--output-reproducible"]
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True)
    bill: dict[str, Any] = json.loads(done.stdout)
    return bill


def pruned(bill: Mapping[str, Any], needs: Graph) -> dict[str, Any]:
    """The part of a bill that is shipped.

    Raises:
        LookupError: something that is needed is not installed.
    """
    kept: dict[str, Any] = {canonicalize_name(one["name"]): one for one in bill["components"]}
    missing = sorted(set(needs) - set(kept) - {NAME})
    if missing:
        raise LookupError(f"not installed: {', '.join(missing)}")
    root = bill["metadata"]["component"]["bom-ref"]
    refs = {name: root if name == NAME else kept[name]["bom-ref"] for name in needs}
    edges = [{"ref": refs[name], "dependsOn": sorted(refs[one] for one in needs[name])} for name in sorted(needs)]
    components = [kept[name] for name in sorted(needs) if name != NAME]
    return {**bill, "components": components, "dependencies": edges}


def page_packages(lock: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the updater page is made of: packages of npm. Optional, for a device without a broker needs none."""
    found: list[dict[str, Any]] = []
    for path, one in sorted(lock["packages"].items()):
        if not path or one.get("dev"):
            continue
        name, version = path.rpartition("node_modules/")[2], one["version"]
        purl = f"pkg:npm/{name.replace('@', '%40')}@{version}"
        kind, _, digest = one["integrity"].partition("-")
        found.append({
            "bom-ref": f"{purl}#{path}",
            "type": "library",
            "name": name,
            "version": version,
            "purl": purl,
            "scope": "optional",
            "licenses": [{"license": {"id": one["license"]}}],
            "hashes": [{"alg": kind.upper().replace("SHA", "SHA-"), "content": base64.b64decode(digest).hex()}],
        })  # fmt: skip
    return found


def page_edges(lock: Mapping[str, Any], packages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each of those packages requires: the nearest one of its name, as Node looks for it."""
    refs = {one["bom-ref"].partition("#")[2]: one["bom-ref"] for one in packages}
    edges: list[dict[str, Any]] = []
    for path, ref in refs.items():
        found: list[str] = []
        for name in lock["packages"][path].get("dependencies", ()):
            folders = [path[: at.end() - 1] for at in re.finditer(r"node_modules/(?:@[^/]+/)?[^/]+(?:/|$)", path + "/")]
            places = [f"{folder}/node_modules/{name}" for folder in reversed(folders)] + [f"node_modules/{name}"]
            found += [refs[place] for place in places if place in refs][:1]
        edges.append({"ref": ref, "dependsOn": sorted(found)})
    return edges


def bill_of_materials() -> dict[str, Any]:
    """All of it."""
    bill = pruned(installed(), runtime())
    lock = json.loads((ROOT / "page/package-lock.json").read_text())
    page = page_packages(lock)
    (root,) = (edge for edge in bill["dependencies"] if edge["ref"] == bill["metadata"]["component"]["bom-ref"])
    root["dependsOn"] += [one["bom-ref"] for one in page if one["name"] == "mqtt"]
    bill["components"] += page
    bill["dependencies"] += page_edges(lock, page)
    return bill


def check(text: str) -> None:
    """Whether it is CycloneDX.

    Raises:
        ValueError: it is not.
    """
    from cyclonedx.schema import SchemaVersion  # noqa: PLC0415  slow to load
    from cyclonedx.validation.json import JsonStrictValidator  # noqa: PLC0415

    if why := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(str(why))


def main(arguments: Iterable[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write mgota's bill of materials.")
    parser.add_argument("--output", default=str(ROOT / "dist/mgota.cdx.json"), metavar="FILE")
    parser.add_argument("--validate", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args(None if arguments is None else list(arguments))
    text = json.dumps(bill_of_materials(), indent=1, sort_keys=True) + "\n"
    if given.validate:
        check(text)
    if given.output == "-":
        sys.stdout.write(text)
        return
    path = Path(given.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    sys.stderr.write(f"{path}: {len(json.loads(text)['components'])} components\n")


if __name__ == "__main__":
    main()
