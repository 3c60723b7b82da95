"""`mgota targets`: what scripts and people are told of the chips."""

from typing import Any

import pytest
from terminal import Terminal, run

from mgota.flash.targets.table import NAMES, TARGETS

KEYS = [
    *("name", "part", "default", "regions", "program_unit", "erased", "swap", "journal", "recovery", "max_image"),
    *("rollback", "sources", "run_on_silicon"),
]


@pytest.fixture
def listed(mgota: Terminal) -> list[dict[str, Any]]:
    found = mgota.ok("targets", "--json").json
    assert isinstance(found, list)
    return found


def test_json_has_one_entry_for_every_part(listed: list[dict[str, Any]]) -> None:
    assert [(entry["name"], entry["part"]) for entry in listed] == [(target.name, target.part) for target in TARGETS]
    assert {entry["name"] for entry in listed} == set(NAMES)


def test_json_has_exactly_the_keys_and_types_that_scripts_rely_on(listed: list[dict[str, Any]]) -> None:
    for entry in listed:
        assert list(entry) == KEYS
        assert type(entry["default"]) is type(entry["rollback"]) is bool
        assert type(entry["program_unit"]) is type(entry["max_image"]) is int
        assert entry["program_unit"] > 0
        assert entry["max_image"] >= 0
        assert entry["swap"] in {"bank", "copy", "otadata", "double_map", "custom"}
        assert entry["journal"] in {"chip", "host", "none"}
        assert entry["recovery"] in {"hardware", "host"}
        assert bytes.fromhex(entry["erased"])
        assert entry["erased"] == entry["erased"].lower()
        assert entry["sources"]
        assert all(type(source) is str and source for source in entry["sources"])
        assert entry["run_on_silicon"] is False


def test_json_has_regions_in_absolute_addresses(listed: list[dict[str, Any]]) -> None:
    for entry in listed:
        if entry["regions"] is None:
            assert entry["name"] in {"u2a6", "u2a8", "u2a16", "custom"}
            continue
        end = 0
        for region in entry["regions"]:
            assert list(region) == ["start", "length", "sector"]
            assert all(type(number) is int for number in region.values())
            assert region["start"] >= end
            assert region["length"] > 0
            assert region["length"] % region["sector"] == 0
            end = region["start"] + region["length"]


def test_json_of_one_name(mgota: Terminal) -> None:
    found = mgota.ok("targets", "--json", "ch32v307").json
    assert found == [
        {
            "name": "ch32v307",
            "part": "CH32V307",
            "default": True,
            "regions": [{"start": 0x08000000, "length": 480 * 1024, "sector": 4096}],
            "program_unit": 4,
            "erased": "39e339e3",
            "swap": "copy",
            "journal": "chip",
            "recovery": "host",
            "max_image": 232 * 1024,
            "rollback": True,
            "sources": found[0]["sources"],
            "run_on_silicon": False,
        }
    ]


def test_names_are_found_whatever_their_case(mgota: Terminal) -> None:
    assert {entry["name"] for entry in mgota.ok("targets", "STM32F4", "--json").json} == {"stm32f4"}


def test_a_person_reads_every_part_under_its_name_and_the_default_is_marked(mgota: Terminal) -> None:
    lines = mgota.ok("targets").out.splitlines()
    name = ""
    for target in TARGETS:
        if target.name != name:
            name = target.name
            assert lines.count(name) == 1
            at = lines.index(name)
        at += 1
        mark, part = ("*" if target.default else " "), lines[at][2:].split()[0]
        assert (lines[at][0], part) == (mark, target.part)


def test_a_person_is_told_what_host_means_and_that_nothing_ran_on_silicon(mgota: Terminal) -> None:
    told = " ".join(mgota.ok("targets", "rt1050").out.split())
    assert "safe ONLY while a gateway drives the swap with the chip held in reset" in told
    assert "SPEC.md" in told
    assert "A bare chip that swaps by itself is not safe." in told
    assert "proven on the simulator only. None of it has run on silicon." in told


def test_a_person_sees_sectors_sizes_and_what_is_too_small(mgota: Terminal) -> None:
    shown = mgota.ok("targets", "stm32f4").out
    rows = {line[2:].split()[0]: " ".join(line[2:].split()[1:]) for line in shown.splitlines() if "STM32" in line}
    assert rows["STM32F429xI"] == "2048 4x16 64 7x128 4x16 64 7x128 4 ff copy host host 896"
    assert rows["STM32F410xB"] == "128 4x16 64 4 ff copy host host too small for two slots"
    assert "unverified" in mgota.ok("targets", "u2a8").out
    assert "the backend's" in mgota.ok("targets", "custom").out


def test_an_unknown_name_is_wrong_usage_and_lists_the_names(mgota: Terminal) -> None:
    for arguments in (["z80"], ["z80", "--json"], ["stm32f4", "stm32f7"]):
        assert mgota("targets", *arguments).code == 2
    told = mgota("targets", "z80")
    assert told.out == ""
    assert all(name in told.err for name in NAMES)


def test_it_speaks_where_there_is_only_ascii() -> None:
    done = run("targets", "stm32f4", env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"})
    assert done.code == 0, done.err
    assert done.out.isascii()
