"""`mgota serve` with HTTP, `--mqtt` and `--pull` all at once, against a real broker and a web server."""

import os
import signal
from pathlib import Path

import anyio
import pytest
from mosquitto import Mosquitto
from site_server import METADATA, Site
from terminal import Serving, Shop, run

from mgota.transports.mqtt.sender import Remote


@pytest.mark.program("mosquitto")
def test_every_way_at_once_and_within_its_memory(mosquitto: Mosquitto, tmp_path: Path) -> None:
    shop, site = Shop.open(tmp_path), Site()
    place = ["--slots", tmp_path / "d", "--key", shop.public]
    assert run("provision", shop.image("1.0.0"), *place).code == 0
    # Counting lines would weigh, too.
    env = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    broker = f"{mosquitto.url}/site/7"
    with site.in_thread() as url:
        site.publish(shop.image("2.0.0", 16 << 20).read_bytes(), "2.0.0", key=shop.key)
        ways = ["--mqtt", broker, "--pull", f"{url}{METADATA}", "--interval", "1"]
        with Serving(*place, *ways, env=env) as device:
            now = device.until(lambda now: now["trial"] is not None)
            assert now["image"]["version"] == "2.0.0"  # it found that by itself
            assert anyio.run(Remote(broker).status)["image"]["version"] == "2.0.0"
            assert run("commit", broker).code == 0
            device.until(lambda now: now["state"] == "CONFIRMED" and now["trial"] is None)
            assert run("push", shop.image("3.0.0"), broker).code == 0
            device.until(lambda now: now["trial"] is not None and now["image"]["version"] == "3.0.0")
            assert run("commit", device.url).code == 0
            assert run("push", shop.image("4.0.0"), device.url).code == 0
            device.until(lambda now: now["trial"] is not None and now["image"]["version"] == "4.0.0")
            assert device.peak_memory() <= 52
            code, _, err = device.end(signal.SIGTERM)
    assert code == 0
    assert "Traceback" not in err
