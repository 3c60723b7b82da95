"""The demo: that it tells the truth, and leaves nothing behind."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anyio
import pytest
from terminal import PROGRAM, Shop

from mgota.cli import demo_mqtt
from mgota.cli.demo import Demo, build
from mgota.cli.stage import Stage, StepFailedError
from mgota.core.image import ImageScan


def started(tmp_path: Path) -> "subprocess.Popen[str]":
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    return subprocess.Popen([*PROGRAM, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def processes_in(directory: Path) -> list[str]:
    """Command lines of the processes that have this directory as theirs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(directory) in str((process / "cwd").readlink()):
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_the_demo_shows_everything_it_promises(tmp_path: Path) -> None:
    out, err = (process := started(tmp_path)).communicate(timeout=110)
    assert process.returncode == 0, out + err
    times = [float(line.split(" s  ")[0]) for line in out.splitlines() if re.match(r" *[0-9.]+ s  ", line)]
    assert times == sorted(times)
    story = re.sub(r"\s+", " ", out)
    assert re.search(
        r"version 1\.0\.0.*2\.0\.0 .*committed itself.*3\.0\.0 was rolled back.*4\.0\.0 was rolled back"
        r".*nobody signed.*refused.*one bit.*refused.*",
        story,
    )
    assert re.search(
        r"a web server with a signed manifest.*changed the manifest: refused.*2\.0\.0 is fetched"
        r".*found 3\.0\.0 by itself.*2\.0\.0 runs again; 3\.0\.0 is still offered, and is not installed",
        story,
    )
    if demo_mqtt.missing():
        assert re.search(r"the MQTT act is left out: \w+ is not installed: .*done", story)
    else:
        assert re.search(
            r"which only connects outwards.*push version 2\.0\.0 over MQTT.*on trial.*keeps it.*nobody signed.*refused"
            r".*broker goes away.*online again by itself.*done",
            story,
        )
    assert err == ""
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.slow
def test_a_demo_that_is_terminated_ends_its_processes(tmp_path: Path) -> None:
    process = started(tmp_path)
    assert process.stdout
    for line in process.stdout:
        if "$ mgota run" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "terminated" in err
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


@pytest.mark.parametrize(
    ("which", "found", "words"), [(None, True, "apt install mosquitto"), ("/m", None, "mgota[mqtt]")]
)
def test_an_act_says_what_it_needs_and_how_to_get_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    which: str | None,
    found: bool | None,
    words: str,
) -> None:
    monkeypatch.setattr("mgota.cli.demo_mqtt.shutil.which", lambda *_, **__: which)
    monkeypatch.setattr(demo_mqtt, "find_spec", lambda _: found)
    anyio.run(demo_mqtt.mqtt_act, Stage(tmp_path), "a", "b", "c")
    assert words in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_did_not_happen_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgota.cli.demo.PATIENCE", 0.2)
    demo = Demo(tmp_path)
    with pytest.raises(StepFailedError, match="pigs fly"):
        anyio.run(demo._await, "pigs fly", lambda _: True)
    with pytest.raises(StepFailedError, match="mgota info"):
        anyio.run(demo.mgota, "info", "missing")


def test_what_the_demo_builds_runs_and_is_tagged(shop: Shop, tmp_path: Path) -> None:
    build(tmp_path / "app.pyz", "9.8.7", "", shop.public)
    data = (tmp_path / "app.pyz").read_bytes()
    scan = ImageScan(len(data), trailer=None)
    scan.update(data)
    assert scan.version == "9.8.7"
    with tempfile.TemporaryDirectory() as elsewhere:
        signed = Path(elsewhere) / "a"
        signed.write_bytes(data + bytes(64))  # a signature behind it does not disturb Python
        env = {key: value for key, value in os.environ.items() if not key.startswith("MGOTA")}
        done = subprocess.run([sys.executable, signed, "0"], capture_output=True, text=True, env=env, check=False)
    assert "MGOTA_DIR is not set" in done.stderr
