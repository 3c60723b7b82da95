"""What the vector table of a Cortex-M firmware gives away."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from mgota.core.vectors import VectorInspector
from mgota.errors import WrongHardwareError

F4 = ((0x08000000,), 384 << 10, (0,))
H5 = ((0x08000000, 0x0C000000), 1 << 20, (0,))
RP2040 = ((0x10000000,), 1016 << 10, (0x100,))
RT1060 = ((0x60000000,), 2040 << 10, (0x2000,))
Chip = tuple[tuple[int, ...], int, tuple[int, ...]]


def look(chip: Chip, firmware: bytes, block: int = 700) -> None:
    inspector = VectorInspector(*chip, len(firmware))
    for start in range(0, len(firmware), block):
        inspector.update(memoryview(firmware)[start : start + block])
    inspector.finish()


def firmware(stack: int, reset: int, at: int = 0) -> bytes:
    return bytes(at) + struct.pack("<II", stack, reset) + bytes(20_000)


@pytest.mark.parametrize(
    ("chip", "image"),
    [
        (F4, firmware(0x20020000, 0x08000189)),
        (F4, firmware(0x10010000, 0x08000001)),  # a stack in CCM
        (F4, firmware(0x20020000, 0x08000000 + (384 << 10) - 1)),  # the slot's last bytes
        (H5, firmware(0x200A0000, 0x0C000201)),  # linked for the secure addresses
        (RP2040, firmware(0x20042000, 0x100001F7, at=0x100)),
        (RT1060, firmware(0x20200000, 0x60002345, at=0x2000)),
        (RT1060, bytes(0x1000) + struct.pack("<II", 0x412000D1, 0x60003000) + bytes(20_000)),  # an IVT
    ],
)
@pytest.mark.parametrize("block", [1, 3, 4096, 100_000])
def test_a_firmware_that_can_run_is_taken(chip: Chip, image: bytes, block: int) -> None:
    look(chip, image, block)


@pytest.mark.parametrize(
    ("chip", "image", "said"),
    [
        (F4, firmware(0x20020000, 0x10000189), "0x10000189 lies outside of the slot, 0x08000000 to 0x0805ffff"),
        (F4, firmware(0x20020000, 0x07FFFFFF), "outside"),
        (F4, firmware(0x20020000, 0x08000000 + (384 << 10) + 1), "outside"),
        (F4, firmware(0x20020000, 0x08000188), "no Thumb code"),
        (F4, firmware(0x20020002, 0x08000189), "no stack can begin"),
        (F4, firmware(0xE0000000, 0x08000189), "no stack can begin"),
        (F4, b"\xff" * 4000, "no stack can begin"),
        (F4, b"\xe9\x02\x02\x20" + bytes(4000), "no stack can begin"),  # an ESP32's
        (F4, b"1234567", "too short"),
        (H5, firmware(0x200A0000, 0x10000201), "0x08000000 to 0x080fffff or 0x0c000000"),
        (RP2040, firmware(0x20042000, 0x100001F7), "no Thumb code"),  # without boot2
        (RT1060, bytes(0x1000) + struct.pack("<II", 0x412000D1, 0x08003000) + bytes(20_000), "no Thumb code"),
        (RT1060, bytes(0x1000) + struct.pack("<II", 0x412000D2, 0x60003000) + bytes(20_000), "no Thumb code"),
        (RT1060, bytes(0x1001), "too short"),
    ],
)
def test_a_firmware_for_another_chip_is_refused_in_words(chip: Chip, image: bytes, said: str) -> None:
    with pytest.raises(WrongHardwareError, match=said):
        look(chip, image)


@given(st.binary(max_size=9000), st.sampled_from([F4, H5, RP2040, RT1060]))
def test_any_bytes_are_taken_or_refused(image: bytes, chip: Chip) -> None:
    with suppress(WrongHardwareError):
        look(chip, image)
