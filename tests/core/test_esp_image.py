"""ESP32 images: built, and looked at in pieces of any size."""

import struct
from functools import reduce
from hashlib import sha256
from operator import xor

import pytest
from hypothesis import given, strategies as st

from mgota.core.esp_image import CHIPS, MAX_SEGMENT, EspImage, EspInspector, EspSegment, build_image, fold
from mgota.errors import ConfigError, OtaError, RejectedError, WrongHardwareError

SEGMENTS = [(0x3F400020, bytes(range(256)) * 9), (0x40080000, b"code" * 33), (0x50000000, b"")]


def look(image: bytes, block: int = 100, **options: object) -> EspImage:
    inspector = EspInspector(len(image), **options)  # type: ignore[arg-type]
    for start in range(0, len(image), block):
        inspector.update(memoryview(image)[start : start + block])
    inspector.finish()
    return inspector.image()


def with_byte(image: bytes, at: int, value: int) -> bytes:
    return image[:at] + bytes([value]) + image[at + 1 :]


def resealed(body: bytes) -> bytes:
    """A body with a hash that fits: what is wrong with it is not the hash."""
    return body + sha256(body).digest()


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("block", [1, 7, 16, 1 << 20])
def test_an_image_that_was_built_is_whole(hashed: bool, block: int) -> None:
    image = build_image(SEGMENTS, chip_id=9, entry=0x40080004, hashed=hashed, min_revision=3, max_revision=99)
    assert look(image, block) == EspImage(
        chip_id=9,
        entry=0x40080004,
        segments=(EspSegment(0x3F400020, 2304), EspSegment(0x40080000, 132), EspSegment(0x50000000, 0)),
        hashed=hashed,
        size=len(image),
        min_revision=3,
        max_revision=99,
    )


def test_an_image_is_the_bytes_that_the_headers_of_esp_idf_say() -> None:
    data = bytes(range(1, 9))
    body = (
        struct.pack("<BBBBI", 0xE9, 1, 2, 0x20, 0x40080000)  # esp_image_header_t
        + struct.pack("<B3sHBHH4sB", 0xEE, bytes(3), 5, 0, 0, 0xFFFF, bytes(4), 1)
        + struct.pack("<II", 0x40080000, 8)  # esp_image_segment_header_t
        + data
    )
    assert len(body) == 40
    body += bytes(7) + bytes([reduce(xor, data, 0xEF)])  # the last byte of a block of 16
    assert build_image([(0x40080000, data)], chip_id=5, entry=0x40080000) == body + sha256(body).digest()


@pytest.mark.parametrize("size", range(0, 40, 4))
def test_the_checksum_ends_a_block_of_sixteen(size: int) -> None:
    image = build_image([(0, bytes(size))], hashed=False)
    assert len(image) % 16 == 0
    assert 0 < len(image) - 32 - size <= 16
    assert look(image).size == len(image)


def test_data_is_padded_to_words() -> None:
    assert look(build_image([(0, b"12345")])).segments == (EspSegment(0, 8),)


def test_what_follows_the_image_is_nobodys_business() -> None:
    image = build_image(SEGMENTS)
    assert look(image + b"\xff" * 3000).size == len(image)


@pytest.mark.parametrize(
    ("chip_id", "chip_ids", "said"),
    [
        (0, None, None),
        (32, None, None),
        (9, {9}, None),
        (9, {5, 0}, r"is for ESP32-S3, and not for ESP32 or ESP32-C3"),
        (7, {0}, r"is for a chip that nobody knows \(id 7\), and not for ESP32"),
        (7, {0x1234}, r"and not for id 4660"),
        (7, None, r"is for a chip that nobody knows \(id 7\)$"),
        (7, {7}, None),
        (0x0900, None, r"id 2304"),  # it has two bytes
    ],
)
def test_an_image_is_for_one_chip(chip_id: int, chip_ids: set[int] | None, said: str | None) -> None:
    image = build_image(SEGMENTS, chip_id=chip_id)
    if said is None:
        assert look(image, chip_ids=chip_ids).chip_id == chip_id
        return
    with pytest.raises(WrongHardwareError, match=said):
        look(image, chip_ids=chip_ids)


def test_the_chips_of_esptool_are_known() -> None:
    assert CHIPS[0] == "ESP32"  # esptool 5.6, targets/*.py: IMAGE_CHIP_ID
    assert {2, 5, 9, 12, 13, 16, 18, 20, 23, 25, 28, 31, 32} < set(CHIPS)


@pytest.mark.parametrize(
    ("image", "error", "said"),
    [
        (b"", RejectedError, "it ends early"),
        (b"\xe9" * 23, RejectedError, "it ends early"),
        (bytes(5000), WrongHardwareError, "no ESP32 image"),
        (b"\xff" * 5000, WrongHardwareError, "no ESP32 image"),
        (with_byte(build_image(SEGMENTS), 23, 2), WrongHardwareError, "no ESP32 image"),
        (with_byte(build_image(SEGMENTS), 1, 0), RejectedError, "number of segments"),
        (with_byte(build_image(SEGMENTS), 1, 17), RejectedError, "number of segments"),
        (with_byte(build_image(SEGMENTS), 28, 1), RejectedError, "no possible length"),
        (with_byte(build_image(SEGMENTS), 29, 0x7F), RejectedError, "no possible length"),
        (with_byte(build_image(SEGMENTS), 31, 1), RejectedError, "no possible length"),
        (with_byte(build_image(SEGMENTS), 100, 0), RejectedError, "checksum"),
        (with_byte(build_image(SEGMENTS, hashed=False), 100, 0), RejectedError, "checksum"),
        (with_byte(build_image(SEGMENTS), 4, 1), RejectedError, "SHA-256"),
        (build_image(SEGMENTS)[:-1], RejectedError, "it ends early"),
        (build_image(SEGMENTS, hashed=False)[:-1], RejectedError, "it ends early"),
        (build_image(SEGMENTS)[:1000], RejectedError, "no possible length"),
        (resealed(with_byte(build_image(SEGMENTS)[:-32], 100, 0)), RejectedError, "checksum"),
    ],
)
@pytest.mark.parametrize("block", [1, 4096])
def test_a_damaged_image_is_refused(image: bytes, error: type[OtaError], said: str, block: int) -> None:
    with pytest.raises(error, match=said) as caught:
        look(image, block)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_an_image_that_came_shorter_than_it_was_announced_is_refused() -> None:
    image = build_image(SEGMENTS)
    inspector = EspInspector(len(image))
    inspector.update(image[:1000])
    with pytest.raises(RejectedError, match="it ends early"):
        inspector.finish()


@given(st.binary(max_size=300), st.integers(0, 200), st.integers(1, 50))
def test_any_bytes_are_an_image_or_an_ota_error(noise: bytes, at: int, block: int) -> None:
    whole = build_image([(0x40080000, bytes(range(100))), (0x3FFB0000, b"data" * 4)])
    for data in (noise, b"\xe9\x02" + noise, whole[:at] + noise + whole[at + len(noise) :]):
        try:
            image = look(data, block)
        except OtaError:
            continue
        assert image.size <= len(data)


@given(st.lists(st.tuples(st.integers(0, 0xFFFFFFFF), st.binary(max_size=80)), min_size=1, max_size=16), st.booleans())
def test_any_segments_make_an_image(segments: list[tuple[int, bytes]], hashed: bool) -> None:
    image = build_image(segments, hashed=hashed)
    assert [segment.load for segment in look(image, 33).segments] == [load for load, _ in segments]


@given(st.binary(max_size=600))
def test_folding_is_xor(data: bytes) -> None:
    assert fold(data) == reduce(xor, data, 0)


def test_what_no_image_can_say_is_refused() -> None:
    for segments in ([], [(0, b"")] * 17, [(0, bytes(MAX_SEGMENT))]):
        with pytest.raises(ConfigError, match="1 to 16 segments"):
            build_image(segments)
    with pytest.raises(ConfigError, match="no ESP32 image"):
        build_image(SEGMENTS, chip_id=1 << 16)
    with pytest.raises(ConfigError, match="no ESP32 image"):
        build_image(SEGMENTS, entry=-1)
    with pytest.raises(ConfigError, match="no ESP32 image"):
        build_image([(1 << 32, b"")])
