"""`mgota serve --target NAME`: every chip of the table lives, is updated, rolled back, and survives kill -9."""

import os
import signal
import struct
import subprocess
import time
from hashlib import sha256
from pathlib import Path

import pytest
from terminal import PROGRAM, Serving, Shop, Terminal

from mgota.core.geometry import Slot
from mgota.core.recordlog import Kind, encode_entry
from mgota.core.swap import Phase, SwapState
from mgota.flash.targets.table import NAMES, find_target

SERVED = [name for name in NAMES if find_target(name).max_image]


def files(tmp_path: Path) -> list[object]:
    return ["--flash", tmp_path / "chip.bin", "--state", tmp_path / "chip.state"]


@pytest.mark.parametrize("name", SERVED)
def test_every_chip_is_updated_committed_and_rolled_back(
    name: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--target", name, *files(tmp_path), "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    with Serving(*place) as device:
        assert device.status()["image"]["version"] == "1.0.0"
        mgota.ok("push", shop.image("2.0.0"), device.url)
        device.until(lambda now: now["trial"] is not None)
        flash = (tmp_path / "chip.bin").read_bytes()
        for version in ("1.0.0", "2.0.0"):  # during a trial both images lie whole in the file
            assert shop.directory.joinpath(f"fw-{version}.signed.bin").read_bytes() in flash
        mgota.ok("commit", device.url)
        device.until(lambda now: now["state"] == "CONFIRMED" and now["trial"] is None)
        assert mgota.ok("rollback", device.url, "--json").json["rolled_back"] is True
        assert device.status()["image"]["version"] == "1.0.0"
        assert device.end(signal.SIGTERM)[0] == 0


@pytest.mark.parametrize("name", ["stm32f4", "picosdk", "esp32", "stm32h7"])
def test_what_is_not_committed_goes_back_and_a_kill_is_a_power_cut(
    name: str, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--target", name, *files(tmp_path), "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    with Serving(*place, "--window", "2") as device:
        mgota.ok("push", shop.image("2.0.0"), device.url)
        now = device.until(lambda now: now["state"] == "CONFIRMED" and now["outcome"] is not None)
        assert (now["outcome"], now["image"]["version"]) == ("rolled_back", "1.0.0")
    image = shop.image("3.0.0", 200_000)
    for pause in (0.05, 0.2, 0.5):  # somewhere in writing, sealing, swapping, booting, trying
        with Serving(*place) as device:
            pushing = subprocess.Popen([*PROGRAM, "push", image, device.url], stderr=subprocess.DEVNULL)
            device.until(lambda now: now["update"] is not None or now["state"] != "CONFIRMED")
            time.sleep(pause)
            device.end(signal.SIGKILL)
            pushing.communicate(timeout=60)
        with Serving(*place, "--window", "1") as device:
            now = device.until(lambda now: now["state"] == "CONFIRMED" and now["trial"] is None)
            assert now["image"]["version"] == "1.0.0"


def test_a_part_is_chosen_and_its_file_has_its_size(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    place = ["--target", "stm32f4", "--part", "stm32f405xg", *files(tmp_path)]
    with Serving(*place) as device:
        assert (tmp_path / "chip.bin").stat().st_size == 1 << 20
        mgota.ok("push", shop.image("1.0.0", (384 << 10) - 200), device.url)
    too_large = shop.image("2.0.0", 384 << 10)
    with Serving(*place) as device:
        assert "413" in mgota("push", too_large, device.url).line


def test_a_new_esp32_has_a_partition_table_and_empty_otadata(tmp_path: Path) -> None:
    with Serving("--target", "esp32", *files(tmp_path)) as device:
        assert device.status()["active_slot"] == "a"
    flash = (tmp_path / "chip.bin").read_bytes()
    assert len(flash) == 4 << 20
    entries = {}
    for at in range(0x8000, 0x8C00, 32):
        magic, kind, subtype, offset, size, label, _ = struct.unpack("<2sBBLL16sL", flash[at : at + 32])
        if magic == b"\xaa\x50":
            entries[label.rstrip(b"\0").decode()] = (kind, subtype, offset, size)
    assert entries["ota_0"] == (0, 0x10, 0x10000, 0x1E0000)
    assert entries["ota_1"] == (0, 0x11, 0x1F0000, 0x1E0000)
    assert entries["otadata"][2:] == (0xE000, 0x2000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "u2a16"], "has no regions to serve"),
        (["--target", "stm32h7", "--part", "STM32H750xB"], "too small for two slots"),
        (["--target", "stm32f7", "--part", "STM32F750x8"], "too small for two slots"),
        (["--target", "stm32f4", "--part", "STM32F999"], "has no part STM32F999; it has"),
        (["--target", "z80"], "there is no target z80; there are stm32h5"),
        (["--target", "custom"], "belong together"),
        (["--target", "stm32f4", "--backend", "os:getcwd"], "belong together"),
        (["--target", "custom", "--backend", "nonsense"], "MODULE:FACTORY"),
        (["--target", "custom", "--backend", "no_such_module:f"], "cannot be loaded"),
        (["--target", "custom", "--backend", "os:no_such_name"], "cannot be loaded"),
        (["--target", "custom", "--backend", ".os:getcwd"], "cannot be loaded"),
        (["--target", "custom", "--backend", "os:sep"], "is no function"),
        (["--target", "ch32v307", "--check-image"], "nothing can be told"),
    ],
)
@pytest.mark.parametrize("command", ["serve", "provision"])
def test_what_cannot_be_served_is_a_usage_error(
    command: str, options: list[object], said: str, mgota: Terminal, tmp_path: Path
) -> None:
    image = tmp_path / "fw.bin"
    image.write_bytes(b"firmware")
    done = mgota(command, *([image] if command == "provision" else []), *options, *files(tmp_path))
    assert done.code == 2
    assert said in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fw.bin"]  # nothing was made


def test_a_custom_backend_is_served(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    (tmp_path / "my_driver.py").write_text(
        "from mgota.core.geometry import uniform\n"
        "from mgota.core.swap import JournalPlace, plan_swap\n"
        "from mgota.flash.copied import CopiedFlash\n"
        "from mgota.flash.simulator import NorSimulator\n"
        "def backend(path):\n"
        "    geometry = uniform(1 << 20, 4096)\n"
        "    return CopiedFlash(NorSimulator.on_file(path, geometry), plan_swap(geometry, JournalPlace.CHIP))\n"
        "def wrong(path):\n"
        "    return 7\n"
        "def broken(path):\n"
        "    raise KeyError('spi0')\n"
        "def leaving(path):\n"
        "    raise SystemExit(7)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    place = ["--target", "custom", "--backend", "my_driver:backend", *files(tmp_path), "--key", shop.public]
    with Serving(*place, env=env) as device:
        mgota.ok("push", shop.image("1.0.0"), device.url)
        device.until(lambda now: now["trial"] is not None)
        mgota.ok("commit", device.url)
        device.until(lambda now: now["state"] == "CONFIRMED" and now["trial"] is None)
    with pytest.raises(AssertionError, match="no FlashBackend"):
        Serving(*place[:3], "my_driver:wrong", *place[4:], env=env).__enter__()
    with pytest.raises(AssertionError, match="the backend's factory failed: KeyError: 'spi0'"):
        Serving(*place[:3], "my_driver:broken", *place[4:], env=env).__enter__()
    with pytest.raises(AssertionError, match="the backend's factory failed: SystemExit: 7"):
        Serving(*place[:3], "my_driver:leaving", *place[4:], env=env).__enter__()


def vectors(reset: int, stack: int = 0x20001000, size: int = 5000) -> bytes:
    return struct.pack("<II", stack, reset) + bytes(range(256)) * (size // 256)


@pytest.mark.parametrize(
    ("target", "firmware", "said"),
    [
        ("stm32f4", vectors(0x08000101), None),
        ("stm32h5", vectors(0x08000101), None),
        ("stm32f4", vectors(0x10000201), "outside"),
        ("stm32f4", vectors(0x08000100), "Thumb"),
        ("esp32", vectors(0x08000101), "ESP32"),
    ],
)
def test_an_image_for_another_chip_is_refused_where_its_format_tells(
    target: str, firmware: bytes, said: str | None, shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    path = tmp_path / "fw.bin"
    path.write_bytes(firmware + shop.key.sign(sha256(firmware).digest()))
    place = ["--target", target, *files(tmp_path), "--key", shop.public]
    with Serving(*place, "--check-image") as device:
        done = mgota("push", path, device.url)
        if said is None:
            assert done.code == 0
            device.until(lambda now: now["trial"] is not None)
        else:
            assert "422" in done.line
            assert said in done.line
            assert device.status()["outcome"] == "refused"
    with Serving(*place) as device:  # nobody asked
        if said is not None:
            mgota.ok("push", path, device.url)


def test_an_image_for_another_chip_is_refused_before_anything_is_erased(
    shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    good, wrong = tmp_path / "good.bin", tmp_path / "wrong.bin"
    good.write_bytes(vectors(0x08000101))
    wrong.write_bytes(vectors(0x10000201))
    place = ["--target", "stm32f4", *files(tmp_path), "--check-image"]
    mgota.ok("provision", good, *place)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = mgota("provision", wrong, *place, "--force")
    assert done.code == 1
    assert "outside" in done.line
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_empty_image_is_refused_and_nothing_is_made(mgota: Terminal, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "at least one byte" in mgota("provision", tmp_path / "empty", "--target", "stm32f4", *files(tmp_path)).line
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_blank_image_is_an_image_that_can_be_gone_back_to(shop: Shop, mgota: Terminal, tmp_path: Path) -> None:
    (tmp_path / "blank").write_bytes(b"\xff" * 5000)
    place = ["--target", "picosdk", *files(tmp_path)]
    mgota.ok("provision", tmp_path / "blank", *place)
    with Serving(*place, "--window", "1") as device:
        mgota.ok("push", shop.image("2.0.0"), device.url)
        now = device.until(lambda now: now["state"] == "CONFIRMED" and now["outcome"] is not None)
        assert (now["outcome"], now["image"]["size"]) == ("rolled_back", 5000)


# --- the files of one chip -------------------------------------------------------------------------------------------


@pytest.fixture
def chip(shop: Shop, mgota: Terminal, tmp_path: Path) -> list[object]:
    """An STM32F4, whose journal lies beside its boot record, that has been updated once."""
    place = ["--target", "stm32f4", *files(tmp_path), "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    with Serving(*place) as device:
        mgota.ok("push", shop.image("2.0.0"), device.url)
        device.until(lambda now: now["trial"] is not None)
        mgota.ok("commit", device.url)
        device.until(lambda now: now["state"] == "CONFIRMED" and now["trial"] is None)
    return place


@pytest.mark.parametrize(
    ("gone", "said"), [("chip.state.journal", "the journal of the swap is gone"), ("chip.bin", "chip.bin is missing")]
)
def test_a_file_that_is_gone_is_not_taken_for_a_new_chip(
    gone: str, said: str, chip: list[object], shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    (tmp_path / gone).unlink()
    for command in (["serve", "--port", "0"], ["provision", shop.image("3.0.0"), "--force"]):
        done = mgota(*command, *chip)
        assert done.code == 1
        assert said in done.line
        assert not (tmp_path / gone).exists()


def test_a_journal_on_the_chip_that_is_gone_is_not_taken_for_a_new_chip(
    shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    place = ["--target", "picosdk", *files(tmp_path), "--key", shop.public]
    mgota.ok("provision", shop.image("1.0.0"), *place)
    with (tmp_path / "chip.bin").open("r+b") as file:
        file.seek(-3 * 4096, os.SEEK_END)
        file.write(b"\xff" * 3 * 4096)
    assert "the journal of the swap is gone" in mgota("serve", "--port", "0", *place).line
    (tmp_path / "chip.state").unlink()  # a new beginning
    mgota.ok("provision", shop.image("1.0.0"), *place)


def test_a_new_chip_begins_without_the_journal_of_one_that_is_gone(
    chip: list[object], shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "chip.bin").unlink()
    (tmp_path / "chip.state").unlink()
    assert (tmp_path / "chip.state.journal").exists()
    assert mgota.ok("provision", shop.image("3.0.0"), *chip, "--json").json["slot"] == "a"
    with Serving(*chip) as device:
        assert device.status()["image"]["version"] == "3.0.0"


def test_the_memory_of_another_part_is_refused(chip: list[object], mgota: Terminal, tmp_path: Path) -> None:
    line = mgota("serve", "--port", "0", *chip, "--part", "STM32F427xI").line
    assert "is the flash memory of stm32f4 STM32F429xI, not of stm32f4 STM32F427xI" in line
    for name in ("chip.bin.part", "chip.state.part"):
        (tmp_path / name).unlink()
    with Serving(*chip, "--part", "STM32F427xI"):
        pass


def test_a_name_that_another_chip_had_is_free_when_its_files_are_gone(
    shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    for target in ("stm32h5", "picosdk", "stm32f4"):
        place = ["--target", target, *files(tmp_path), "--key", shop.public]
        for _ in range(2):
            mgota.ok("provision", shop.image("1.0.0"), *place, "--force")
        (tmp_path / "chip.bin").unlink()
        (tmp_path / "chip.state").unlink()


def cut_in_its_swap(chip: list[object], shop: Shop, tmp_path: Path) -> None:
    """The journal of a chip that was killed in its swap, as it is on the disk."""
    entry = SwapState(phase=Phase.FORWARD, base=Slot.B, raised=True, count=1, step=1, tag=7)
    (tmp_path / "chip.state.journal").write_bytes(encode_entry(7, Kind.SWAP, entry.encode()))


def test_a_chip_is_not_served_with_the_record_of_another_one(
    chip: list[object], shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    """Its journal lies beside its record: in the midst of a swap another one would take a torn image as proven."""
    other = ["--target", "stm32f4", "--flash", tmp_path / "other.bin", "--state", tmp_path / "other.state"]
    mgota.ok("provision", shop.image("3.0.0"), *other)
    for flash, state in (("chip.bin", "new.state"), ("chip.bin", "other.state"), ("other.bin", "chip.state")):
        place = ["--target", "stm32f4", "--flash", tmp_path / flash, "--state", tmp_path / state]
        for command in (["serve", "--port", "0"], ["provision", shop.image("3.0.0"), "--force"]):
            assert "are of two different chips" in mgota(*command, *place).line
    assert not (tmp_path / "new.state").exists()


@pytest.mark.parametrize("damage", [None, b"garbage"])
def test_a_flash_file_in_the_place_of_one_that_was_cut_in_its_swap_is_not_touched(
    damage: bytes | None, chip: list[object], shop: Shop, mgota: Terminal, tmp_path: Path
) -> None:
    cut_in_its_swap(chip, shop, tmp_path)
    if damage:
        (tmp_path / "chip.state.journal").write_bytes(damage)
    (tmp_path / "chip.state").unlink()
    dump = os.urandom(2 << 20)
    (tmp_path / "chip.bin").write_bytes(dump)
    assert "a swap of this chip was cut off" in mgota("serve", "--port", "0", *chip).line
    assert (tmp_path / "chip.bin").read_bytes() == dump
    (tmp_path / "chip.state.journal").unlink()
    with Serving(*chip) as device:
        assert device.status()["state"] == "CONFIRMED"


def test_a_record_that_was_removed_in_peace_is_made_anew(chip: list[object], tmp_path: Path) -> None:
    (tmp_path / "chip.state").unlink()
    with Serving(*chip) as device:
        assert device.status()["state"] == "CONFIRMED"


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"\xff\n", b"one two", b"x" * 300])
def test_a_damaged_note_of_whose_file_it_is_is_told_in_one_line(
    content: bytes, chip: list[object], mgota: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "chip.bin.part").write_bytes(content)
    assert "chip.bin.part is damaged" in mgota("serve", "--port", "0", *chip).line
    (tmp_path / "chip.bin.part").unlink()
    os.mkfifo(tmp_path / "chip.bin.part")
    assert "cannot be used" in mgota("serve", "--port", "0", *chip).line


def test_of_two_processes_that_make_one_chip_one_does(shop: Shop, tmp_path: Path) -> None:
    command = [*PROGRAM, "provision", shop.image("1.0.0", 200_000), "--target", "rt1050"]
    for name in range(3):
        common = [*map(str, command), "--flash", str(tmp_path / f"f{name}"), "--state"]
        both = [
            subprocess.Popen([*common, str(tmp_path / f"s{name}.{which}")], stderr=subprocess.PIPE, text=True)
            for which in range(2)
        ]
        told = [process.communicate(timeout=60)[1] for process in both]
        assert sorted(process.returncode for process in both) == [0, 1], told
        assert any("another process runs this device" in line or "two different chips" in line for line in told)


def test_what_a_killed_process_left_is_removed_by_a_later_one(chip: list[object], tmp_path: Path) -> None:
    left = [tmp_path / name for name in (".chip.bin.01234567.tmp", ".chip.state.89abcdef.tmp")]
    young = tmp_path / ".chip.state.00000000.tmp"
    for path in (*left, young):
        path.write_bytes(b"half")
    for path in left:
        os.utime(path, (1, 1))
    with Serving(*chip):
        pass
    assert [path.exists() for path in (*left, young)] == [False, False, True]


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_chip_is_itself_by_any_name(link: str, chip: list[object], mgota: Terminal, tmp_path: Path) -> None:
    getattr(tmp_path / "other.bin", link)(tmp_path / "chip.bin")
    other = ["--target", "stm32f4", "--flash", tmp_path / "other.bin", "--state", tmp_path / "other.state"]
    with Serving(*chip):
        assert "another process runs this device" in mgota("serve", "--port", "0", *other).line


def test_two_chips_do_not_share_a_boot_record(chip: list[object], mgota: Terminal, tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes((tmp_path / "chip.bin").read_bytes())
    (tmp_path / "other.state").symlink_to("chip.state")
    with Serving(*chip):
        for state in ("chip.state", "other.state"):
            (tmp_path / "other.bin.part").write_bytes((tmp_path / "chip.bin.part").read_bytes())
            other = ["--target", "stm32f4", "--flash", tmp_path / "other.bin", "--state", tmp_path / state]
            assert "another process runs this device" in mgota("serve", "--port", "0", *other).line


@pytest.mark.parametrize(
    ("flash", "state", "said"),
    [("f", "d", "--state"), ("f", "no/s", "--state"), ("d", "s", "--flash"), ("no/f", "s", "--flash")],
)
def test_files_that_cannot_be_made_are_wrong_usage_and_nothing_is_made(
    flash: str, state: str, said: str, mgota: Terminal, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    for options in (["--target", "stm32f4"], ["--target", "custom", "--backend", "os:getcwd"]):
        done = mgota("serve", "--port", "0", *options, "--flash", tmp_path / flash, "--state", tmp_path / state)
        assert done.code == 2
        assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["d"]
