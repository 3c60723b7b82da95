"""The benchmarks run, and report what they promise. Never how fast: a test machine is nobody's measure."""

import json
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "http_push.py"
PEERS = {"mgota", "floor", "aiohttp", "anyio_h11"} - (set() if find_spec("aiohttp") else {"aiohttp"})


def bench(tmp_path: Path, *arguments: str, script: Path = SCRIPT) -> str:
    command = [sys.executable, str(script), "--dir", str(tmp_path), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    return done.stdout


@pytest.mark.slow
def test_all_peers_take_the_image_and_are_compared(tmp_path: Path) -> None:
    found = json.loads(bench(tmp_path, "--size", "1", "--rounds", "1", "--json"))
    assert (found["size_mib"], found["rounds"]) == (1, 1)
    assert set(found["peers"]) == PEERS
    for row in found["peers"].values():
        assert len(row["pushes"]) == 1
        for name in ("mib_per_s", "cpu_s_per_gib", "peak_rss_mib", "rate_ratio", "cpu_ratio"):
            assert row[name] > 0
    assert found["peers"]["floor"]["rate_ratio"] == found["peers"]["floor"]["cpu_ratio"] == 1
    assert all(isinstance(goal["met"], bool) and goal["value"] > 0 for goal in found["goals"])


@pytest.mark.slow
def test_memory_and_lag_of_the_device_are_measured(tmp_path: Path) -> None:
    found = json.loads(bench(tmp_path, "--size", "32", "--rounds", "0", "--flat", "1,2", "--lag", "--json"))
    assert [(run["flash"], run["size_mib"]) for run in found["flat"]] == [
        ("fast", 1), ("fast", 2), ("slow", 1), ("slow", 2),
    ]  # fmt: skip
    assert all(run["peak_rss_mib"] > 0 for run in found["flat"])
    assert found["lag"]["ticks"] > 1
    assert found["lag"]["p50_ms"] <= found["lag"]["p99_ms"] <= found["lag"]["max_ms"]
    assert found["lag"]["status_max_ms"] > 0


def test_a_person_gets_a_table(tmp_path: Path) -> None:
    table = bench(tmp_path, "--size", "1", "--rounds", "1", "--peers", "floor,anyio_h11")
    assert "CPU s/GiB" in table
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["floor", "anyio_h11"]


def test_flash_memory_writer_and_swap_are_measured() -> None:
    script = SCRIPT.with_name("flash.py")
    command = [sys.executable, str(script), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    found = json.loads(done.stdout)
    assert set(found) == {"program_mb_per_s", "writer_mb_per_s", "swap_896_kib_s"}
    assert all(value > 0 for value in found.values())


@pytest.mark.slow
@pytest.mark.program("mosquitto")
def test_mqtt_is_measured_beside_paho_and_stop_and_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = SCRIPT.with_name("mqtt.py")
    found = json.loads(bench(tmp_path, "--size", "1", "--naive", "8", "--rounds", "1", "--json", script=script))
    assert set(found["peers"]) == {"mgota", "paho", "stop-and-wait"}
    for row in found["peers"].values():
        assert all(row[name] > 0 for name in ("mib_per_s", "cpu_s_per_gib", "peak_rss_mib", "rate_ratio"))
    assert found["peers"]["stop-and-wait"]["rate_ratio"] == 1
    assert all(isinstance(goal["met"], bool) and goal["value"] > 0 for goal in found["goals"])
    monkeypatch.syspath_prepend(script.parent)
    told = runpy.run_path(str(script))["table"](found)
    assert [line.split()[0] for line in told.splitlines()[2:5]] == ["mgota", "paho", "stop-and-wait"]


@pytest.mark.slow
def test_a_pull_is_measured_beside_the_floor(tmp_path: Path) -> None:
    script = SCRIPT.with_name("pull.py")
    command = [
        sys.executable,
        str(script),
        "--size",
        "1",
        "--rounds",
        "1",
        "--flat",
        "1,2",
        "--dir",
        str(tmp_path),
        "--json",
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout)
    assert found["rate_ratio"] > 0
    assert found["cpu_ratio"] > 0
    assert len(found["memory"]["pull_peak_rss_mib"]) == 2
    assert [goal["goal"] for goal in found["goals"]] == [
        "rate of a pull ÷ floor ≥ 0.5",
        "growth of peak RSS, MiB ≤ 4",
        "peak RSS of serve with --pull and --mqtt, MiB ≤ 52",
    ]


@pytest.mark.slow
@pytest.mark.program("losetup")
def test_block_slots_are_measured_beside_dd(tmp_path: Path) -> None:
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode:
        pytest.skip("loop devices need root")
    script = SCRIPT.with_name("block_slots.py")
    found = json.loads(bench(tmp_path, "--size", "2", "--rounds", "2", "--json", script=script))
    assert (found["size_mib"], found["rounds"], len(found["ratios"])) == (2, 2, 2)
    assert all(row["mib_per_s"] > 0 and row["rate_ratio"] > 0 for row in found["peers"].values())
    assert [goal["goal"] for goal in found["goals"]] == ["rate ÷ dd and sha256sum ≥ 0.9", "peak RSS, MiB ≤ 40"]
    told = runpy.run_path(str(script))["table"](found)
    assert [line.split()[0] for line in told.splitlines()[2:4]] == ["mgota", "dd"]
