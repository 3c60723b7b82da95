"""Packed images: whatever the pieces, what comes out is the image, and never more than was announced."""

import builtins
import gzip
import os
import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings, strategies as st

from mgota.core import unpack as module
from mgota.core.unpack import PIECE, WINDOW, Packing, Unpacker, largest_packed, packer_of, packing_of, packings
from mgota.errors import ConfigError, MalformedError, OtaError, OverrunError, TransferError, TruncatedError

PACK: dict[Packing, Callable[[bytes], bytes]] = {Packing.GZIP: gzip.compress, Packing.ZSTD: zstandard.compress}
BOTH = pytest.mark.parametrize("packing", list(Packing))
IMAGE = bytes(range(256)) * 3000 + bytes(PIECE)


def unpack(packing: Packing, size: int, *pieces: bytes) -> bytes:
    unpacker = Unpacker(packing, size)
    image = b"".join(out for piece in pieces for out in unpacker.feed(piece))
    unpacker.finish()
    return image


@settings(max_examples=30)
@given(st.sampled_from(Packing), st.binary(max_size=3000), st.lists(st.integers(0, 3000), max_size=5))
def test_an_image_comes_out_however_it_came(packing: Packing, image: bytes, cuts: list[int]) -> None:
    packed = PACK[packing](image)
    places = sorted({0, len(packed), *(cut for cut in cuts if cut < len(packed))})
    assert unpack(packing, len(image), *(packed[a:b] for a, b in pairwise(places))) == image


@BOTH
def test_byte_by_byte_and_in_members(packing: Packing) -> None:
    packed = b"".join(PACK[packing](part) for part in (b"one ", b"", b"two"))
    assert unpack(packing, 7, *(bytes([byte]) for byte in packed)) == unpack(packing, 7, packed) == b"one two"


@BOTH
def test_many_small_members_are_little_work(packing: Packing) -> None:
    packed = PACK[packing](b"x") * 20_000
    assert unpack(packing, 20_000, packed) == b"x" * 20_000


@BOTH
def test_a_bomb_stops_at_the_announced_size(packing: Packing) -> None:
    packed = PACK[packing](bytes(64 << 20))
    unpacker = Unpacker(packing, 1 << 20)
    sizes = list[int]()
    with pytest.raises(OverrunError, match="more than the declared 1048576"):
        sizes.extend(len(piece) for piece in unpacker.feed(packed))
    assert sum(sizes) <= 1 << 20
    assert max(sizes, default=0) <= PIECE


@BOTH
def test_sizes_on_each_side(packing: Packing) -> None:
    packed = PACK[packing](IMAGE)
    assert unpack(packing, len(IMAGE), packed) == IMAGE
    with pytest.raises(OverrunError):
        unpack(packing, len(IMAGE) - 1, packed)
    with pytest.raises(TruncatedError):
        unpack(packing, len(IMAGE) + 1, packed)


@BOTH
def test_an_image_that_is_cut_off_is_not_taken(packing: Packing) -> None:
    packed = PACK[packing](b"image " * 100)
    for end in range(len(packed)):
        with pytest.raises(TransferError):
            unpack(packing, 600, packed[:end])
    with pytest.raises(TransferError):
        unpack(packing, 0)


@BOTH
@pytest.mark.parametrize("junk", [b"not packed at all", b"\0" * 30, b"\x1f\x8b\x09\x00junk"])
def test_what_is_not_packed_is_refused(packing: Packing, junk: bytes) -> None:
    packed = PACK[packing](b"image")
    with pytest.raises(MalformedError, match=f"not packed by {packing}"):
        unpack(packing, 5 + len(junk), packed, junk)


def test_a_wrong_checksum_is_refused() -> None:
    packed = bytearray(gzip.compress(b"image" * 50))
    packed[-6] ^= 1
    with pytest.raises(MalformedError):
        unpack(Packing.GZIP, 250, bytes(packed))
    for data in (zlib.compress(b"image"), zstandard.compress(b"image")):
        with pytest.raises(MalformedError):
            unpack(Packing.GZIP, 5, data)


def test_a_window_beyond_the_limit_is_refused() -> None:
    for bits, fits in ((23, True), (24, False)):
        parameters = zstandard.ZstdCompressionParameters(window_log=bits)
        packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        image = bytes(range(256)) * (WINDOW // 128)
        packed = packer.compress(image) + packer.flush()
        if fits:
            assert unpack(Packing.ZSTD, len(image), packed) == image
        else:
            with pytest.raises(MalformedError):
                unpack(Packing.ZSTD, len(image), packed)


@given(st.sampled_from(Packing), st.binary(max_size=60), st.booleans())
def test_any_bytes_are_an_image_or_an_error(packing: Packing, data: bytes, headed: bool) -> None:
    head = PACK[packing](b"")[:4] if headed else b""
    try:
        unpack(packing, 100, head + data)
    except OtaError:
        return


@BOTH
def test_small_pieces_are_gathered_and_large_ones_given_at_once(packing: Packing) -> None:
    image = os.urandom(PIECE * 3)
    packed = PACK[packing](image)
    sizes = [len(piece) for piece in Unpacker(packing, len(image)).feed(packed)]
    assert len(sizes) <= 6
    assert sum(sizes) == len(image)


@BOTH
def test_what_we_pack_is_unpacked_and_fits(packing: Packing) -> None:
    for image in (b"", b"x", os.urandom(300_000), IMAGE):
        packer = packer_of(packing)
        packed = packer.compress(image) + packer.flush()
        assert unpack(packing, len(image), packed) == image
        assert len(packed) <= largest_packed(len(image))


def test_what_can_be_unpacked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packings() == (Packing.GZIP, Packing.ZSTD)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert packings() == (Packing.GZIP,)


def test_files_are_known_by_their_names() -> None:
    assert packing_of("fw.bin.gz") is packing_of("FW.GZ") is Packing.GZIP
    assert packing_of("fw.zst") is Packing.ZSTD
    assert packing_of("fw.bin") is packing_of("gz") is None


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **options: Any) -> Any:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install 'mgota\[zstd\]'"):
        Unpacker(Packing.ZSTD, 1)
    assert Unpacker(Packing.GZIP, 1).done == 0
