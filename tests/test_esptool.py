"""What esptool says of our images, and what we say of esptool's. It is a program of its own and never imported.

`image-info` exits with 0 even when it prints "(invalid)": its text is what counts.
"""

import os
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from mgota.core.esp_image import CHIPS, EspImage, EspInspector, build_image
from mgota.core.esp_table import default_table, encode_table
from mgota.errors import RejectedError

TOOLS = Path(__file__).parents[1] / ".tools" / "bin" / "esptool"
ESPTOOL = str(TOOLS) if TOOLS.exists() else shutil.which("esptool") or ""

if not ESPTOOL:  # the same rule as `program("esptool")`, which looks on the PATH only
    pytestmark = pytest.mark.program("esptool")

APP = [(0x3F400020, bytes(range(256)) * 4), (0x3FFB0000, b"data" * 20), (0x40080000, b"code" * 33)]
CPU = {"esp32": 0x5E, "esp32s2": 0x5E, "esp32s3": 0x5E, "esp32c3": 0xF3, "esp32c6": 0xF3, "esp32h2": 0xF3}
"""Chips of elf2image, and the machine of their ELF files: Xtensa or RISC-V."""

WHERE = {
    "esp32": (0x3F400020, 0x40080000),
    "esp32s2": (0x3F000020, 0x40024000),
    "esp32s3": (0x3C000020, 0x40374000),
    "esp32c3": (0x3C000020, 0x40380000),
    "esp32c6": (0x42000020, 0x40800000),
    "esp32h2": (0x42000020, 0x40800000),
}
"""Addresses of their read-only data in flash, and of code in RAM (esptool targets/*.py: MEMORY_MAP)."""


def esptool(*arguments: object) -> str:
    done = subprocess.run(
        [ESPTOOL, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"},
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


@dataclass(frozen=True)
class Told:
    """What image-info says."""

    text: str

    def field(self, name: str) -> str:
        found = re.search(rf"^{name}: (.*)$", self.text, re.MULTILINE)
        assert found, self.text
        return found[1].strip()


def info(tmp_path: Path, image: bytes) -> Told:
    path = tmp_path / "app.bin"
    path.write_bytes(image)
    return Told(esptool("image-info", path))


def ours(image: bytes) -> EspImage:
    inspector = EspInspector(len(image))
    inspector.update(image)
    return inspector.image()


@pytest.mark.parametrize("chip_id", sorted(CHIPS))
def test_an_image_that_we_built_is_valid(chip_id: int, tmp_path: Path) -> None:
    told = info(tmp_path, build_image(APP, chip_id=chip_id, entry=0x40080004, min_revision=101, max_revision=399))
    assert told.field("Detected image type").replace("-", "") == CHIPS[chip_id].replace("-", "")
    assert told.field("Chip ID") == f"{chip_id} ({CHIPS[chip_id]})"
    assert told.field("Checksum").endswith("(valid)")
    assert told.field("Validation hash").endswith("(valid)")
    assert told.field("Entry point") == "0x40080004"
    assert told.field("Segments") == "3"
    assert told.field("Minimal chip revision").startswith("v1.1,")
    assert told.field("Maximal chip revision") == "v3.99"
    assert told.field("Flash size") == "4MB"
    rows = re.findall(r"^ +\d+ +(0x[0-9a-f]+) +(0x[0-9a-f]+) +0x[0-9a-f]+", told.text, re.MULTILINE)
    assert [(int(load, 16), int(size, 16)) for size, load in rows] == [(load, len(data)) for load, data in APP]


def test_an_image_without_a_hash_has_none(tmp_path: Path) -> None:
    told = info(tmp_path, build_image(APP, hashed=False))
    assert told.field("Checksum").endswith("(valid)")
    assert "Validation hash" not in told.text or "Not appended" in told.text


@pytest.mark.parametrize(("at", "hash_only"), [(40, False), (200, False), (-33, False), (5, True), (-1, True)])
def test_a_damaged_image_is_invalid_to_both(at: int, hash_only: bool, tmp_path: Path) -> None:
    image = bytearray(build_image(APP))
    image[at] ^= 0x10
    told = info(tmp_path, bytes(image))
    assert "(invalid" in told.text
    assert ("(invalid" in told.field("Checksum")) is not hash_only
    assert "(invalid" in told.field("Validation hash")
    with pytest.raises(RejectedError, match="SHA-256" if hash_only else "checksum"):
        ours(bytes(image))


def elf(machine: int, sections: list[tuple[str, int, bytes, int]], entry: int) -> bytes:
    """An ELF file of 32 bits with these sections: name, address, data, flags (System V ABI, chapter 4)."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections) + b".shstrtab\0"
    at, body, headers = 52, b"", bytes(40)
    for name, address, data, flags in sections:
        place = names.index(name.encode() + b"\0")
        headers += struct.pack("<10I", place, 1, flags, address, at + len(body), len(data), 0, 0, 4, 0)
        body += data
    headers += struct.pack("<10I", names.index(b".shstrtab"), 3, 0, 0, at + len(body), len(names), 0, 0, 1, 0)
    body += names
    head = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIIIIIHHHHHH", 2, machine, 1, entry, 0, at + len(body), 0, 52, 32, 0, 40, len(sections) + 2,
                        len(sections) + 1)  # fmt: skip
    return head + body + headers


@pytest.mark.parametrize("chip", list(CPU))
@pytest.mark.parametrize("options", [(), ("--dont-append-digest",), ("--min-rev-full", "1", "--pad-to-size", "1MB")])
def test_an_image_that_esptool_made_is_whole(chip: str, options: tuple[str, ...], tmp_path: Path) -> None:
    flash, ram = WHERE[chip]
    source, image_file = tmp_path / "app.elf", tmp_path / "app.bin"
    sections = [(".flash.rodata", flash, bytes(range(256)) * 5, 2), (".iram0.text", ram, b"code" * 33, 6)]
    source.write_bytes(elf(CPU[chip], sections, ram + 4))
    said = esptool("--chip", chip, "elf2image", *options, "--output", image_file, source)
    assert image_file.exists(), said
    image = image_file.read_bytes()
    whole = ours(image)
    assert CHIPS[whole.chip_id].lower().replace("-", "") == chip
    assert whole.entry == ram + 4
    assert whole.hashed is ("--dont-append-digest" not in options)
    assert {flash, ram} <= {segment.load for segment in whole.segments}
    assert image[whole.size :] == b"\xff" * (len(image) - whole.size)
    assert (whole.size < len(image)) is ("--pad-to-size" in options)
    told = info(tmp_path, image)
    assert told.field("Checksum").endswith("(valid)")
    assert told.field("Segments") == str(len(whole.segments))


def test_esptool_and_we_merge_a_chip_alike(tmp_path: Path) -> None:
    table, app, merged = tmp_path / "table.bin", tmp_path / "app.bin", tmp_path / "flash.bin"
    table.write_bytes(encode_table(default_table()))
    app.write_bytes(build_image(APP))
    said = esptool("--chip", "esp32", "merge-bin", "--output", merged, "0x8000", table, "0x10000", app)
    assert merged.exists(), said
    flash = merged.read_bytes()
    assert flash[0x8000:0x8C00] == table.read_bytes()
    inspector = EspInspector(len(flash) - 0x10000)
    inspector.update(memoryview(flash)[0x10000:])
    assert inspector.image().size == app.stat().st_size
