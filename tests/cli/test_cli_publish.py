"""`mgota publish`: as a process, with what another command wrote."""

import json
import select
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from terminal import PATIENCE, PROGRAM, Shop, Terminal


@contextmanager
def publishing(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [*PROGRAM, "publish", "--port", "0", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
            line = process.stdout.readline() if ready else ""
            assert line.startswith("listening on "), line
            yield line.split()[-1], process
        finally:
            process.kill()


def fetched(url: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as reply:
        data: bytes = reply.read()
    return data


def test_what_manifest_wrote_is_served_and_who_asked_is_shown(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    shelf = tmp_path / "firmware"
    shelf.mkdir()
    image = shop.image("1.2.3").rename(shelf / "fw.bin")
    mgota.ok("manifest", "sign", image, "--key", tmp_path / "private.pem", "--seq", 1, "-o", shelf / "manifest.json")
    (tmp_path / "token").write_text("T\n")
    with publishing(shelf, "--token-file", tmp_path / "token") as (url, process):
        manifest = fetched(f"{url}/manifest.json?id=dev7&version=1.0&boot=0")
        assert manifest == (shelf / "manifest.json").read_bytes()
        assert fetched(f"{url}/{json.loads(manifest)['url']}", Range="bytes=5-") == image.read_bytes()[5:]
        found = json.loads(fetched(f"{url}/devices", Authorization="Bearer T"))
        assert [(device["id"], device["boot"]) for device in found["devices"]] == [("dev7", "CONFIRMED")]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        assert process.stderr
        assert "rich" not in process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nowhere"], 1, "no directory"),
        ([".", "--token-file", "missing"], 1, "missing"),
        ([".", "--host", "256.0.0.1", "--port", 0], 1, "256.0.0.1"),
        ([".", "--key-file", "key.pem"], 2, "--cert"),
        ([".", "--connections", 0], 2, "connections"),
        ([], 2, "DIR"),
    ],
)
def test_what_is_wrong(
    mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = mgota("publish", *arguments)
    assert done.code == code
    assert words in done.err
