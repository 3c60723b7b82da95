"""Images that are sent packed: what the device has in the end is the image, whatever the file was called."""

import gzip
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from anyio.from_thread import start_blocking_portal
from fake_device import FakeDevice
from site_server import Site, response
from terminal import Terminal

from mgota.cli.packing import outgoing
from mgota.core import unpack
from mgota.core.unpack import Packing
from mgota.errors import ConfigError, OtaError
from mgota.packed import Packed, measured, pack, size_of
from mgota.transports.http import serve

IMAGE = b"MG_VERSION:2.0.0\0" + bytes(9000) + os.urandom(500_000)


class Device:
    """A device in a thread of its own, and the bodies' sizes that it was sent."""

    def __init__(self, url: str, fake: FakeDevice) -> None:
        self.url, self.fake = url, fake


@pytest.fixture
def device() -> Iterator[Device]:
    fake = FakeDevice(room=1 << 20)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serve(fake.device)) as server:
        yield Device(server.url, fake)


@pytest.mark.parametrize(
    ("name", "write", "options", "stored"),
    [
        ("fw.bin", bytes, ["--compress", "gzip"], IMAGE),
        ("fw.bin", bytes, ["--compress", "zstd"], IMAGE),
        ("fw.bin.gz", gzip.compress, [], IMAGE),
        ("fw.bin.zst", zstandard.compress, [], IMAGE),
        ("fw.bin.gz", gzip.compress, ["--compress", "gzip"], IMAGE),
        ("fw.bin.gz", gzip.compress, ["--compress", "zstd"], IMAGE),
        ("fw.bin.gz", bytes, ["--compress", "none"], IMAGE),
    ],
    ids=["gzip", "zstd", "gz_file", "zst_file", "gz_file_as_gzip", "gz_file_as_zstd", "gz_file_as_it_is"],
)
def test_the_device_has_the_image(
    mgota: Terminal,
    tmp_path: Path,
    device: Device,
    name: str,
    write: Callable[[bytes], bytes],
    options: list[str],
    stored: bytes,
) -> None:
    (tmp_path / name).write_bytes(write(IMAGE))
    found = mgota.ok("push", tmp_path / name, device.url, "--json", *options).json
    assert (found["ok"], found["size"]) == (True, len(stored))
    assert device.fake.staged == stored


def test_a_fleet_gets_it_packed_and_the_line_tells_the_image(mgota: Terminal, tmp_path: Path, device: Device) -> None:
    (tmp_path / "fw").write_bytes(IMAGE)
    (tmp_path / "devices").write_text(device.url)
    done = mgota.ok("push", tmp_path / "fw", "--devices", tmp_path / "devices", "--compress", "gzip", "--json")
    assert done.json[0]["ok"]
    assert device.fake.staged == IMAGE


def test_a_file_that_is_not_what_its_name_says_is_refused_here(mgota: Terminal, tmp_path: Path, device: Device) -> None:
    (tmp_path / "fw.gz").write_bytes(IMAGE)
    assert "not packed by gzip" in mgota("push", tmp_path / "fw.gz", device.url).line
    (tmp_path / "fw.gz").write_bytes(gzip.compress(IMAGE)[:-1])
    assert "cut off" in mgota("push", tmp_path / "fw.gz", device.url).line
    assert not device.fake.flash.opened


def test_a_device_that_does_not_unpack_gets_nothing(
    mgota: Terminal, tmp_path: Path, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fw.zst").write_bytes(zstandard.compress(IMAGE))
    monkeypatch.setattr(unpack, "find_spec", lambda name: None)
    line = mgota("push", tmp_path / "fw.zst", device.url).line
    assert "does not say that it unpacks zstd: push the image unpacked" in line
    assert not device.fake.flash.opened


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b"", "does not say that it unpacks gzip"),
        (200, b"[]", "does not say that it unpacks gzip"),
        (200, b'{"packings": "gzip"}', "does not say that it unpacks gzip"),
        (200, b"no JSON", "does not speak JSON"),
        (401, b"", "401"),
    ],
)
def test_somebody_elses_device_gets_nothing(
    mgota: Terminal, tmp_path: Path, status: int, body: bytes, words: str
) -> None:
    (tmp_path / "fw").write_bytes(IMAGE)
    site = Site()
    site.quirk = lambda request, number: response(status, body, connection="close")
    site.keep_alive = False
    with site.in_thread() as url:
        assert words in mgota("push", tmp_path / "fw", url, "--compress", "gzip").line
    assert [request.path for request in site.requests] == ["/api/ota/status"]


def test_a_broker_gets_no_packed_image(mgota: Terminal, tmp_path: Path) -> None:
    (tmp_path / "fw").write_bytes(IMAGE)
    done = mgota("push", tmp_path / "fw", "mqtt://127.0.0.1:1/a/b", "--compress", "gzip")
    assert (done.code, "--compress is for http" in done.err) == (2, True)


@pytest.mark.parametrize("compress", [None, "zstd", "gzip"])
def test_who_does_not_unpack_gets_a_packed_file_unpacked(tmp_path: Path, compress: str | None) -> None:
    (tmp_path / "fw.gz").write_bytes(gzip.compress(IMAGE))
    with outgoing(tmp_path / "fw.gz", compress) as (packed, plain):
        assert isinstance(packed, Packed)
        assert (packed.packing, packed.size) == (compress or "gzip", len(IMAGE))
        image = plain()
        assert isinstance(image, Path)
        assert image.read_bytes() == IMAGE
        assert plain() == image
    assert not image.exists()


def test_files_that_cannot_be_read_or_made(tmp_path: Path) -> None:
    gone, packing = tmp_path / "gone.gz", Packing.GZIP
    with pytest.raises(ConfigError, match="cannot be read"):
        size_of(gone, packing)
    with pytest.raises(ConfigError, match="cannot be packed"):
        pack(gone, tmp_path / "out", packing)
    (tmp_path / "two.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert measured(tmp_path / "two.gz", packing).size == size_of(tmp_path / "two.gz", packing) == 7
    (tmp_path / "bad.gz").write_bytes(b"\x1f\x8bjunk")
    with pytest.raises(OtaError):
        measured(tmp_path / "bad.gz", packing)
