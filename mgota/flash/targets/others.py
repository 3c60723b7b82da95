"""ESP32, RP2040 and RP2350, RH850/U2A, CH32V307, and whatever a user brings.

Sources stand with each. An erased word of a CH32V307 reads 0xE339E339, hence its bytes lie in flash as 39 E3 39 E3:
WCH's example EVT/EXAM/FLASH/FLASH_Program says 0x39 for an even address and 0xE3 for an odd one.
"""

from collections.abc import Iterator
from itertools import chain

from mgota.core.geometry import uniform
from mgota.core.swap import JournalPlace
from mgota.flash.targets.target import Swap, Target

KIB, MIB = 1 << 10, 1 << 20

BOOT2 = 0x100
"""Bytes of the RP2040's second stage, before the vector table (pico-sdk rp2040/memmap_default.ld)."""

XIP = 0x10000000
"""XIP_BASE in pico-sdk's addressmap.h, of both chips."""

SERIAL_SECTOR, SERIAL_PAGE = 4 * KIB, 256
"""FLASH_SECTOR_SIZE and FLASH_PAGE_SIZE in pico-sdk's hardware/flash.h."""

WCH_ERASED = bytes.fromhex("39e339e3")
WCH_LIMIT = 4096 * 256 / 40_000
"""Seconds: 12 bits, prescaler /256 at most, LSI of 40 kHz (CH32FV2x_V3xRM: IWDG)."""


def _esp32() -> Iterator[Target]:
    """Offsets in the serial flash: where it is mapped is the partition's and the image's business."""
    for size in (4, 8, 16):
        yield Target(
            name="esp32",
            part=f"ESP32-{size}MB",
            default=size == 4,
            geometry=uniform(size * MIB, 4 * KIB),
            swap=Swap.OTADATA,
            aliases=("ESP32",) if size == 4 else (),
            sources=("ESP-IDF spi_flash_mmap.h: SPI_FLASH_SEC_SIZE", "ESP-IDF esptool_py/Kconfig.projbuild: sizes"),
        )


def _picosdk() -> Iterator[Target]:
    """RP2040 and RP2350 with 2 MiB, and what boards of theirs have besides. An RP2354 has 2 MiB inside."""
    for chip, vectors, aliases in (("RP2040", BOOT2, ()), ("RP2350", 0, ("RP2354",))):
        for size in (2, 4, 8, 16):
            yield Target(
                name="picosdk",
                part=chip if size == 2 else f"{chip}-{size}MB",
                default=chip == "RP2040" and size == 2,
                base=XIP,
                geometry=uniform(size * MIB, SERIAL_SECTOR, program_unit=SERIAL_PAGE),
                swap=Swap.COPY,
                journal=JournalPlace.CHIP,
                aliases=(f"{chip}-2MB", *aliases) if size == 2 else (),
                vectors=(vectors,),
                sources=(
                    "pico-sdk hardware/flash.h, addressmap.h and boards/*.h",
                    "pyOCD target_rp2.py",
                    "Mongoose src/ota_picosdk.c",
                ),
            )


def _u2a() -> Iterator[Target]:
    """Known by name only: nobody has verified where their blocks of 16 KiB and more lie."""
    for name in ("u2a6", "u2a8", "u2a16"):
        yield Target(
            name=name,
            part=name.upper(),
            default=True,
            swap=Swap.DOUBLE_MAP,
            unit=512,
            aliases=(f"RH850/{name.upper()}",),
            sources=("Mongoose src/ota.h: MG_OTA_U2A, no driver", "unverified: no source was found for its blocks"),
        )


def _ch32v307() -> Iterator[Target]:
    yield Target(
        name="ch32v307",
        part="CH32V307",
        default=True,
        base=0x08000000,
        geometry=uniform(480 * KIB, 4 * KIB, program_unit=4, erased=WCH_ERASED),
        swap=Swap.COPY,
        journal=JournalPlace.CHIP,
        aliases=("CH32V307RCT6", "CH32V307VCT6", "CH32V307WCU6"),
        watchdog_limit=WCH_LIMIT,
        watchdog_stoppable=False,
        sources=(
            "WCH EVT/EXAM/FLASH/FLASH_Program/User/main.c: pages, erased pattern",
            "probe-rs CH32V2_CH32V3_Series.yaml: size",
            "Mongoose src/ota_ch32v307.c",
        ),
    )


def _custom() -> Iterator[Target]:
    yield Target(name="custom", part="custom", default=True, swap=Swap.CUSTOM, sources=("the user's backend",))


OTHERS = tuple(chain(_esp32(), _picosdk(), _u2a(), _ch32v307(), _custom()))
"""All of them."""
