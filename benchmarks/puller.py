"""A device that pulls, in a process of its own, for `pull.py`.

    puller.py --slots DIR --key PUBLIC.pem

Each line on stdin is the URL of a manifest: it is pulled, and what it cost is a line of JSON on stdout (`began` and
`ended` on CLOCK_MONOTONIC, `cpu` seconds, `rss` MiB at most meanwhile). Then the image is committed, and the next may
come. The first line is `ready`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import anyio

from mgota import Device, Verifier, boot_check, commit, load_public_key
from mgota.core.offer import Policy
from mgota.linux.environment import file_device
from mgota.linux.note import FileNote
from mgota.transports.pull import pull


def make_device(given: argparse.Namespace) -> Device:
    """Out of reset: what is selected runs."""
    return file_device(given.slots, verifier=Verifier(keys=[load_public_key(given.key.read_bytes())]))


async def once(device: Device, url: str, note: FileNote) -> None:
    """One pull, and what it cost."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)
    began, cpu = time.monotonic(), time.process_time()
    pulled = await pull(device, url, current_version="0", policy=Policy.parse("different"), note=note)
    ended, cpu = time.monotonic(), time.process_time() - cpu
    if not pulled.installed:
        raise RuntimeError(pulled.decision.text)
    rss = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    print(json.dumps({"began": began, "ended": ended, "cpu": cpu, "rss": rss}), flush=True)


async def main(given: argparse.Namespace) -> None:
    """Until stdin ends."""
    given.slots.mkdir(parents=True, exist_ok=True)
    note = FileNote(given.slots / "download")
    device = make_device(given)
    await boot_check(device)
    print("ready", flush=True)
    while url := (await anyio.to_thread.run_sync(sys.stdin.readline)).strip():
        await once(device, url, note)
        device = make_device(given)
        await boot_check(device)
        await commit(device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=Path, required=True)
    parser.add_argument("--key", type=Path, required=True)
    anyio.run(main, parser.parse_args())
