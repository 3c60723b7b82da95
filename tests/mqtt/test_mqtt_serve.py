"""`mgota serve --mqtt`: a virtual device that boots again and again, reached through a broker; and our own sender."""

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest
from mosquitto import Mosquitto
from terminal import Serving, Shop, Terminal, run

from mgota.core.rpc import Chunk, encode_request, upload_request
from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.connection import connected

pytestmark = pytest.mark.program("mosquitto")


@pytest.fixture
def mgota(capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(capsys)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop.open(tmp_path)


def test_an_update_its_trial_a_commit_and_a_rollback(mosquitto: Mosquitto, shop: Shop, tmp_path: Path) -> None:
    url = f"{mosquitto.url}/site/7"
    place = ["--slots", tmp_path / "device"]
    assert run("provision", shop.image("1.0.0"), *place, "--key", shop.public).code == 0
    with Serving(*place, "--key", shop.public, "--mqtt", url) as device:
        assert run("push", shop.image("2.0.0", 300_000), url).code == 0
        device.until(lambda now: now["trial"] is not None and now["image"]["version"] == "2.0.0")
        assert "trial" in run("push", shop.image("3.0.0"), url).line  # it would destroy the way back
        assert run("commit", url).out == "committed\n"
        assert device.until(lambda now: now["outcome"] == "committed")["active_slot"] == "b"
        assert run("rollback", url).code == 0
        assert device.until(lambda now: now["active_slot"] == "a")["image"]["version"] == "1.0.0"
        unsigned = shop.directory / "unsigned.bin"
        unsigned.write_bytes(shop.image("2.0.0").read_bytes()[:-64])
        assert run("push", unsigned, url).code == 1
        assert device.status()["outcome"] == "refused"
        code, out, err = device.end(signal.SIGTERM)
    assert (code, out) == (0, "")
    assert "Traceback" not in err
    assert err.count("online at") == 3  # at the start and after each reset


def test_a_broker_that_is_down_at_the_start_and_a_device_on_http_all_the_same(
    shop: Shop, tmp_path: Path, pki: Path
) -> None:
    (tmp_path / "user").write_text("joe:secret-word\n")
    with Mosquitto(tmp_path / "m", pki=pki, client_certificates=True, users={"joe": "secret-word"}) as mosquitto:
        mosquitto.stop()
        url = f"{mosquitto.tls_url}/site/7"
        options = ["--mqtt-cacert", pki / "ca.pem", "--mqtt-cert", pki / "client.pem", "--mqtt-version", "5"]
        options += ["--mqtt-user-file", tmp_path / "user"]
        with Serving("--slots", tmp_path / "device", "--key", shop.public, "--mqtt", url, *options) as device:
            assert device.status()["state"] == "CONFIRMED"
            mosquitto.start()
            mine = ["--cacert", pki / "ca.pem", "--cert", pki / "client.pem", "--user-file", tmp_path / "user"]
            assert run("push", shop.image("2.0.0"), url, *mine).code == 0
            device.until(lambda now: now["trial"] is not None)
            err = device.end(signal.SIGTERM)[2]
    assert "cannot be reached" in err
    assert "the next try is in" in err
    assert "secret-word" not in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mqtt", "http://h/a/b"], "mqtt://"),
        (["--mqtt", "mqtt://h/device"], "mqtt://"),
        (["--mqtt", "mqtt://h/a/b", "--mqtt-cacert", "ca"], "ca"),
        (["--mqtt", "mqtt://h/a/b", "--mqtt-user-file", "missing"], "missing"),
        (["--mqtt", "mqtts://h/a/b", "--mqtt-key-file", "x"], "--cert"),
        (["--mqtt-user-file", "x"], "--mqtt"),
        (["--mqtt-version", "5"], "belong to --mqtt URL"),
        (["--mqtt", "mqtt://h/root/#"], "wildcards"),
    ],
)
def test_what_is_wrong_at_the_start_is_one_line_and_nothing_is_made(
    mgota: Terminal, tmp_path: Path, options: list[str], words: str
) -> None:
    done = mgota("serve", "--slots", tmp_path / "device", "--port", "0", *options)
    assert done.code != 0
    assert words in done.err
    assert not (tmp_path / "device").exists()


@pytest.mark.parametrize(
    ("missing", "options", "extra"),
    [
        ("aiomqtt", ["--mqtt", "mqtt://h/a/b"], "mgota[mqtt]"),
        ("httpx", ["--pull", "https://updates.example/m.json"], "mgota[pull]"),
    ],
)
def test_an_extra_that_is_not_installed_is_named_at_the_start(
    mgota: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, options: list[str], extra: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("mgota.transports.pull")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert extra in mgota("serve", "--slots", tmp_path / "device", "--port", "0", *options).line
    assert not (tmp_path / "device").exists()


def test_memory_with_a_broker(mosquitto: Mosquitto, shop: Shop, tmp_path: Path) -> None:
    """What `serve` may take with --mqtt, and that it does not grow with the image."""
    url = f"{mosquitto.url}/site/7"
    env = {key: value for key, value in os.environ.items() if not key.startswith("COV")}  # that would weigh, too
    peaks = []
    for size in (1 << 20, 16 << 20):
        with Serving("--slots", tmp_path / str(size), "--key", shop.public, "--mqtt", url, env=env) as device:
            assert run("push", shop.image("2.0.0", size), url).code == 0
            device.until(lambda now: now["trial"] is not None)
            peaks.append(device.peak_memory())
    assert max(peaks) <= 48
    assert peaks[1] - peaks[0] <= 4


SLOW = """
import anyio
from mgota.flash.custom import CustomBackend

def backend():
    image = bytearray()
    async def begin(size): image.clear()
    async def write(chunk): await anyio.sleep(0.02); image.extend(bytes(len(chunk))[:1])
    async def end(): pass
    async def read(offset, size): return bytes(size)
    return CustomBackend(begin, write, end, read, max_image=1 << 30)
"""


def test_memory_stays_flat_when_more_comes_than_a_slow_flash_takes(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """96 MiB are thrown at a device that stores a chunk in 20 ms, by somebody who waits for nothing."""
    (tmp_path / "slow_driver.py").write_text(SLOW)
    env = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    env["PYTHONPATH"] = str(tmp_path)
    place = ["--target", "custom", "--backend", "slow_driver:backend", "--state", tmp_path / "state"]
    url = f"{mosquitto.url}/site/7"
    with Serving(*place, "--mqtt", url, env=env) as device:

        async def flood() -> list[float]:
            broker, peaks = Broker.from_url(url), []
            came = anyio.Event()
            async with connected(broker, lambda _: came.set()) as link:
                await link.subscribe(broker.topic("status"))  # retained: it comes when the device is there
                with anyio.fail_after(30):
                    await came.wait()
                came = anyio.Event()
                await link.subscribe(broker.topic("tx"))
                for number in range(2048):
                    chunk = Chunk(1 << 30, number * 49152, bytes(49152), "0123456789abcdef")
                    await link.publish(broker.topic("rx"), encode_request(upload_request(number, chunk)))
                    if number in {64, 2047}:
                        await link.publish(broker.topic("rx"), b"{}", qos=1)  # up to here the broker has it
                        with anyio.fail_after(30):
                            await came.wait()
                        peaks.append(device.peak_memory())
            return peaks

        before, after = anyio.run(flood)
        status = device.status()
        assert status["update"], (status, device.end(signal.SIGTERM))
    assert after - before <= 4, (before, after)
