"""The bill of materials: all that mgota takes at run time, and nothing of what developers use."""

import json
import re
import runpy
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import mgota

ROOT = Path(mgota.__file__).parent.parent
TOOL = runpy.run_path(str(ROOT / "tools/sbom.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def bill(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As `make sbom` writes it; that it is CycloneDX is checked there, which takes some seconds."""
    path = tmp_path_factory.mktemp("sbom") / "new" / "mgota.cdx.json"
    TOOL["main"](["--output", str(path), "--no-validate"])
    return json.loads(path.read_text())


def python(bill: Any) -> dict[str, Any]:
    return {canonicalize_name(one["name"]): one for one in bill["components"] if one["purl"].startswith("pkg:pypi/")}


def names(requirements: list[str]) -> set[str]:
    found = (Requirement(line) for line in requirements)
    return {str(canonicalize_name(one.name)) for one in found if one.marker is None or one.marker.evaluate()} - {
        "mgota"
    }


def test_it_is_about_this_version(bill: Any) -> None:
    root = bill["metadata"]["component"]
    assert (root["name"], root["version"]) == ("mgota", version("mgota"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert root["licenses"][0]["license"]["id"] == PROJECT["project"]["license"]


def test_every_requirement_is_there_with_its_version(bill: Any) -> None:
    project, found = PROJECT["project"], python(bill)
    wanted = names(project["dependencies"]).union(*map(names, project["optional-dependencies"].values()))
    assert wanted <= set(found)
    for name, one in found.items():
        assert one["version"] == version(name)
        assert one["purl"] == f"pkg:pypi/{name}@{one['version']}"


def test_what_requirements_require_is_there_too(bill: Any) -> None:
    found, edges = python(bill), {edge["ref"]: set(edge["dependsOn"]) for edge in bill["dependencies"]}
    refs = {name: one["bom-ref"] for name, one in found.items()}
    assert refs["httpcore"] in edges[refs["httpx"]]
    assert refs["paho-mqtt"] in edges[refs["aiomqtt"]]
    root = bill["metadata"]["component"]["bom-ref"]
    assert refs["cryptography"] in edges[root]
    reached, asked = set[str](), [root]
    while asked:
        if (ref := asked.pop()) not in reached:
            reached.add(ref)
            asked += edges[ref]
    assert reached == {root} | {one["bom-ref"] for one in bill["components"]}


def test_nothing_of_the_developers_tools_is_in_it(bill: Any) -> None:
    shipped = python(bill)
    for tool in names(PROJECT["dependency-groups"]["dev"]) | {"pip", "setuptools", "hatchling"}:
        assert tool not in shipped, tool
    assert "axe-core" not in {one["name"] for one in bill["components"]}


def test_the_pages_packages_are_those_of_its_lock(bill: Any) -> None:
    lock = json.loads((ROOT / "page/package-lock.json").read_text())["packages"]
    page = [one for one in bill["components"] if one["purl"].startswith("pkg:npm/")]
    assert len(page) == sum(bool(path) and not one.get("dev") for path, one in lock.items())
    (mqtt,) = (one for one in page if one["name"] == "mqtt")
    assert mqtt["version"] == lock["node_modules/mqtt"]["version"]
    assert re.fullmatch(r"[0-9a-f]{128}", mqtt["hashes"][0]["content"])
    assert mqtt["hashes"][0]["alg"] == "SHA-512"
    (scoped,) = (one for one in page if one["name"] == "@babel/runtime")
    assert scoped["purl"].startswith("pkg:npm/%40babel/runtime@")


def test_nothing_of_this_machine_is_in_it(bill: Any) -> None:
    text = json.dumps(bill)
    assert str(ROOT) not in text
    assert "file:" not in text


def test_what_is_missing_is_told() -> None:
    empty = {"metadata": {"component": {"bom-ref": "root"}}, "components": []}
    with pytest.raises(LookupError, match="not installed: h11"):
        TOOL["pruned"](empty, {"mgota": {"h11"}, "h11": set()})
