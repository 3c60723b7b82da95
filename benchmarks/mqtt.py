"""How fast an image is taken over MQTT: mgota at both ends, and paho as one would write it, through a real mosquitto.

    python benchmarks/mqtt.py [--size MIB] [--naive KIB] [--rounds N] [--dir DIR] [--json]

    mgota        `mgota serve --slots --mqtt` and mgota's sender: 16 KiB chunks, 8 in flight, resent when they are lost
    paho         a device and a sender on paho: the same chunks and the same window, nothing resent
    stop-and-wait
                 the same two with 4096 bytes, QoS 1, one at a time, and a broker as it is installed: Nagle's algorithm
                 and delayed acknowledgements wait for each other

The broker has `set_tcp_nodelay`, but for stop-and-wait. The work of a device is that of `http_push.py`: written to an
allocated file with a running CRC-32, made durable, dropped from the page cache, read back, hashed, verified. Measured
from connect to the device's word that it takes the image. Rounds are interleaved.
"""

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from servers import HERE, Image, Push, Server, make_image, mgota_command

from mgota.core.keys import PrivateKey

sys.path.append(str(HERE.parent / "tests" / "mqtt"))
from mosquitto import Mosquitto

WINDOW, CHUNK = 8, 16 * 1024
NAIVE_CHUNK = 4096
TOPIC = "bench/device"

MGOTA, PAHO, NAIVE = "mgota", "paho", "stop-and-wait"


class MgotaDevice(Server):
    """`mgota serve --mqtt`, and mgota's sender."""

    def __init__(self, broker: Mosquitto, directory: Path, key: Path) -> None:
        self._url = f"{broker.url}/{TOPIC}-mgota"
        super().__init__([*mgota_command(directory, key), "--mqtt", self._url], directory, device=True)

    def sender(self, image: Image) -> list[str]:
        return [str(HERE / "mqtt_sender.py"), self._url, str(WINDOW), str(CHUNK), str(image.path)]


class PahoDevice(Server):
    """A device and a sender on paho."""

    def __init__(self, broker: Mosquitto, directory: Path, key: Path, *, qos: int, window: int, chunk: int) -> None:
        place = f"127.0.0.1:{broker.port}"
        script = [sys.executable, str(HERE / "peers" / "paho_device.py"), "--broker", place, "--topic", TOPIC]
        super().__init__([*script, "--slots", str(directory), "--key", str(key)], directory)
        self._way = [place, TOPIC, str(qos), str(window), str(chunk)]

    def sender(self, image: Image) -> list[str]:
        return [str(HERE / "peers" / "paho_sender.py"), *self._way, str(image.path)]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Push images through a broker, side by side.")
    parser.add_argument("--size", type=int, default=32, metavar="MIB", help="firmware in MiB (default 32)")
    parser.add_argument(
        "--naive", type=int, default=128, metavar="KIB", help="bytes of stop-and-wait in KiB (default 128)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default 5)")
    parser.add_argument(
        "--dir", type=Path, default="/var/tmp", help="where files lie: a real disk (default /var/tmp, not memory)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser.parse_args()


def small_image(path: Path, kib: int, key: PrivateKey) -> Image:
    """The first bytes of an image of a MiB, signed."""
    whole = make_image(path, 1, key)
    firmware = path.read_bytes()[: kib * 1024]
    digest = sha256(firmware)
    path.write_bytes(firmware + key.sign(digest.digest()))
    return Image(whole.path, kib / 1024, digest.hexdigest())


def measure(given: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """All of it."""
    key = PrivateKey.generate()
    public = directory / "public.pem"
    public.write_bytes(key.public.pem())
    image = make_image(directory / "image", given.size, key)
    small = small_image(directory / "small", given.naive, key)
    pushes: dict[str, list[Push]] = {MGOTA: [], PAHO: [], NAIVE: []}
    with ExitStack() as stack:
        quick = stack.enter_context(Mosquitto(directory / "broker"))
        stock = stack.enter_context(Mosquitto(directory / "stock", nodelay=False))
        devices: dict[str, tuple[Server, Image]] = {
            MGOTA: (MgotaDevice(quick, directory / MGOTA, public), image),
            PAHO: (PahoDevice(quick, directory / PAHO, public, qos=0, window=WINDOW, chunk=CHUNK), image),
            NAIVE: (PahoDevice(stock, directory / NAIVE, public, qos=1, window=1, chunk=NAIVE_CHUNK), small),
        }
        for device, _ in devices.values():
            stack.enter_context(device)
        for number in range(given.rounds + 1):  # in the first one, files are made
            for name, (device, what) in devices.items():
                push = device.push(what)
                if number:
                    pushes[name].append(push)
    return summary(given, pushes)


def summary(given: argparse.Namespace, pushes: dict[str, list[Push]]) -> dict[str, Any]:
    """Medians, ratios and goals."""

    def ratio(name: str, other: str) -> float:
        return median(mine.rate / theirs.rate for mine, theirs in zip(pushes[name], pushes[other], strict=True))

    peers = {
        name: {
            "mib_per_s": median(push.rate for push in done),
            "cpu_s_per_gib": median(push.cpu for push in done),
            "peak_rss_mib": max(push.rss for push in done),
            "rate_ratio": ratio(name, NAIVE),
        }
        for name, done in pushes.items()
    }
    rows = [
        ("MiB/s", "≥", 10.0, peers[MGOTA]["mib_per_s"]),
        ("rate ÷ stop-and-wait", "≥", 50.0, peers[MGOTA]["rate_ratio"]),
        ("peak RSS of the device, MiB", "≤", 52.0, peers[MGOTA]["peak_rss_mib"]),
    ]
    goals = [
        {"goal": f"{what} {sense} {limit:g}", "value": value, "met": value >= limit if sense == "≥" else value <= limit}
        for what, sense, limit, value in rows
    ]
    return {
        "size_mib": given.size,
        "rounds": given.rounds,
        "peers": peers,
        "mgota_to_paho": ratio(MGOTA, PAHO),
        "goals": goals,
    }


def table(found: dict[str, Any]) -> str:
    """The same for a person."""
    lines = [f"{found['size_mib']} MiB over MQTT, {found['rounds']} rounds"]
    lines += [f"{'':14}{'MiB/s':>10}{'÷ stop-and-wait':>18}{'device CPU s/GiB':>18}{'peak RSS, MiB':>16}"]
    for name, row in found["peers"].items():
        lines.append(
            f"{name:14}{row['mib_per_s']:10.2f}{row['rate_ratio']:18.1f}{row['cpu_s_per_gib']:18.1f}"
            f"{row['peak_rss_mib']:16.1f}"
        )
    lines.append(f"mgota ÷ paho, the same chunks and window: {found['mgota_to_paho']:.2f}")
    for goal in found["goals"]:
        lines.append(f"{'met   ' if goal['met'] else 'MISSED'}  {goal['goal']}: {goal['value']:.2f}")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    given = options()
    given.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mgota-bench-", dir=given.dir) as directory:
        try:
            found = measure(given, Path(directory))
        except (RuntimeError, AssertionError) as exc:
            sys.exit(str(exc))
    print(json.dumps(found, indent=2) if given.json else table(found))


if __name__ == "__main__":
    main()
