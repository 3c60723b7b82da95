"""`--floor` and `--hardware` of the commands that are a device."""

from pathlib import Path

import pytest
from terminal import Serving, Shop, Terminal


def test_a_first_image_below_the_floor_is_refused_and_leaves_no_file(
    shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    device = tmp_path / "device"
    options = ["--slots", device, "--key", shop.public, "--floor"]
    assert "below the floor 2" in mgota("provision", shop.image("1.9"), *options, "2").line
    assert not device.exists()
    mgota.ok("provision", shop.image("2.0"), *options, "2")


def test_provisioning_by_force_is_refused_before_the_image_is_gone(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    device = tmp_path / "device"
    options = ["--slots", device, "--key", shop.public]
    mgota.ok("provision", shop.image("2.0"), *options)
    before = {path.name: path.read_bytes() for path in device.iterdir()}
    assert "below the floor 2.1" in mgota("provision", shop.image("2.0.1"), *options, "--floor", "2.1", "--force").line
    assert {path.name: path.read_bytes() for path in device.iterdir()} == before


def test_a_push_below_the_floor_is_refused_and_one_above_is_taken(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    device = tmp_path / "device"
    mgota.ok("provision", shop.image("2.0"), "--slots", device, "--key", shop.public)
    with Serving("--slots", device, "--key", shop.public, "--floor", "2.0", "--hardware", "rev-b") as serving:
        refused = mgota("push", shop.image("1.9"), serving.url)
        assert refused.code == 1
        assert "its version 1.9 is below the floor 2.0" in refused.err
        assert serving.status()["outcome"] == "refused"
        mgota.ok("push", shop.image("2.1"), serving.url)
        serving.until(lambda now: now["state"] == "FAILED")
        mgota.ok("commit", serving.url)
        serving.until(lambda now: now["state"] == "CONFIRMED")
    assert '"floor": "2.0"' in (device / "state").read_text()


@pytest.mark.parametrize("option", [("--floor", "nightly"), ("--floor", ""), ("--hardware", "a b"), ("--hardware", "")])
def test_wrong_usage(mgota: Terminal, tmp_path: Path, option: tuple[str, str]) -> None:
    assert mgota("serve", "--slots", tmp_path / "device", *option).code == 2
    assert not (tmp_path / "device").exists()
