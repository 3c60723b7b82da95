"""The table of targets against a second source: facts written down here as they were found, each with its origin.

None of them is derived from the table. A fact names real parts, as its origin spells them.
"""

import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise

import pytest

from mgota.core.geometry import Area, Geometry, Slot
from mgota.core.swap import JournalPlace, SwapLayout, plan_swap
from mgota.errors import ConfigError
from mgota.flash.banked import Banks
from mgota.flash.targets import stm32h5
from mgota.flash.targets.table import NAMES, TARGETS, Recovery, Swap, Target, find_target, targets_of

Triples = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Fact:
    """Where these parts have which sectors.

    Args:
        origin: who says so.
        name: of the target.
        parts: as the origin spells them, or as the table does where the origin knows one only.
        regions: absolute start, length, bytes of a sector.
    """

    origin: str
    name: str
    parts: str
    regions: Triples


F4_64 = ((0x08000000, 0x10000, 0x4000),)
F4_128 = (*F4_64, (0x08010000, 0x10000, 0x10000))
F4_256 = (*F4_128, (0x08020000, 0x20000, 0x20000))
F4_384 = (*F4_128, (0x08020000, 0x40000, 0x20000))
F4_512 = (*F4_128, (0x08020000, 0x60000, 0x20000))
F4_768 = (*F4_128, (0x08020000, 0xA0000, 0x20000))
F4_1024 = (*F4_128, (0x08020000, 0xE0000, 0x20000))
F4_1536 = (*F4_128, (0x08020000, 0x160000, 0x20000))
F4_1024_DUAL = (*F4_512, (0x08080000, 0x10000, 0x4000), (0x08090000, 0x10000, 0x10000), (0x080A0000, 0x60000, 0x20000))
F4_2048 = (*F4_1024, (0x08100000, 0x10000, 0x4000), (0x08110000, 0x10000, 0x10000), (0x08120000, 0xE0000, 0x20000))
F7_64 = ((0x08000000, 0x10000, 0x8000),)
F7_512 = ((0x08000000, 0x20000, 0x8000), (0x08020000, 0x20000, 0x20000), (0x08040000, 0x40000, 0x40000))
F7_1024 = (*F7_512[:2], (0x08040000, 0xC0000, 0x40000))
F7_2048 = (*F7_512[:2], (0x08040000, 0x1C0000, 0x40000))

PROBE_F2 = "probe-rs STM32F2_Series.yaml (pack 2.11.0): BANK_1, stm32f2xx_1024"
PROBE_F4 = "probe-rs STM32F4_Series.yaml (pack 2.17.1): BANK_1"
PROBE_F7 = "probe-rs STM32F7_Series.yaml (pack 2.16.0): BANK_1"
PROBE_H5 = "probe-rs STM32H5_Series.yaml (pack 1.3.0): BANK_1, BANK_2, sectors of stm32h5xx_2m_0800"
PROBE_H7 = "probe-rs STM32H7_Series.yaml (pack 3.1.1): BANK_1, BANK_2"
PYOCD = "pyOCD d1974ff pyocd/target/builtin/target_"
OPENOCD = "OpenOCD abbbc2e src/flash/nor/"
CMSIS = "ST cmsis_device_"

FACTS = (
    Fact(PROBE_F2, "stm32f2", "STM32F205RB STM32F205VB", F4_128),
    Fact(PROBE_F2, "stm32f2", "STM32F205RC STM32F205VC STM32F205ZC STM32F207IC STM32F207VC STM32F207ZC", F4_256),
    Fact(PROBE_F2, "stm32f2", "STM32F205RE STM32F205ZE STM32F207IE STM32F207VE STM32F215RE STM32F217IE", F4_512),
    Fact(PROBE_F2, "stm32f2", "STM32F205RF STM32F205VF STM32F205ZF STM32F207IF STM32F207VF STM32F207ZF", F4_768),
    Fact(PROBE_F2, "stm32f2", "STM32F205RG STM32F205ZG STM32F207IG STM32F207ZG STM32F215RG STM32F217VG", F4_1024),
    Fact(f"{OPENOCD}stm32f2x.c: 1 MiByte part with 4 x 16, 1 x 64, 7 x 128", "stm32f2", "STM32F207ZG", F4_1024),
    Fact(f"{PROBE_F4}, stm32f4xx_128", "stm32f4", "STM32F410C8 STM32F410R8 STM32F410T8", F4_64),
    Fact(f"{PROBE_F4}, stm32f4xx_128", "stm32f4", "STM32F401CB STM32F401RB STM32F401VB", F4_128),
    Fact(f"{CMSIS}f4 stm32f410rx.h: FLASH_END 0x0801FFFF; HAL: sectors 0 to 4", "stm32f4", "STM32F410RB", F4_128),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F401CC STM32F411RC STM32F446MC STM32F446ZC", F4_256),
    Fact(f"{CMSIS}f4 stm32f401xc.h: FLASH_END 0x0803FFFF; HAL: sectors 0 to 5", "stm32f4", "STM32F401RC", F4_256),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F401CD STM32F401RD STM32F401VD", F4_384),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F401CE STM32F405OE STM32F407IE STM32F407ZE", F4_512),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F411RE STM32F412ZE STM32F417ZE STM32F429ZE", F4_512),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F446RE STM32F446ZE STM32F469AE STM32F469ZE", F4_512),
    Fact(f"{PYOCD}STM32F412xx.py", "stm32f4", "STM32F412xE", F4_512),
    Fact(f"{PYOCD}STM32F412xx.py", "stm32f4", "STM32F412xG", F4_1024),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F405RG STM32F407VG STM32F412ZG STM32F413CG", F4_1024),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F415RG STM32F417ZG STM32F427ZG STM32F429ZG", F4_1024),
    Fact(f"{PROBE_F4}, stm32f4xx_1024", "stm32f4", "STM32F437ZG STM32F439ZG STM32F469AG STM32F479ZG", F4_1024),
    Fact(f"{PYOCD}STM32F429xx.py", "stm32f4", "STM32F429xG", F4_1024),
    Fact(f"{PROBE_F4}, stm32f4xx_1536", "stm32f4", "STM32F413CH STM32F413ZH STM32F423RH STM32F423ZH", F4_1536),
    Fact(f"{OPENOCD}stm32f2x.c: 1.5 MiByte, 4 x 16, 1 x 64, 11 x 128", "stm32f4", "STM32F413ZH STM32F423ZH", F4_1536),
    Fact(
        f"{OPENOCD}stm32f2x.c: DB1M set, 4 x 16, 1 x 64, 3 x 128, twice; probe-rs stm32f4xx_1024dual",
        "stm32f4",
        "STM32F427ZG-dual STM32F429ZG-dual STM32F437ZG-dual STM32F439ZG-dual STM32F469ZG-dual STM32F479ZG-dual",
        F4_1024_DUAL,
    ),
    Fact(f"{PROBE_F4}, stm32f4xx_2048", "stm32f4", "STM32F427ZI STM32F429ZI STM32F437ZI STM32F439ZI", F4_2048),
    Fact(f"{PROBE_F4}, stm32f4xx_2048", "stm32f4", "STM32F469AI STM32F469ZI STM32F479AI STM32F479ZI", F4_2048),
    Fact(f"{PYOCD}STM32F429xx.py, STM32F439xx.py", "stm32f4", "STM32F429xI STM32F439xI", F4_2048),
    Fact(f"{PROBE_F7}, stm32f7x_64_axi; HAL: sectors 0 to 3", "stm32f7", "STM32F730R8 STM32F730Z8", F4_64),
    Fact(f"{PROBE_F7}, stm32f75x_64_axi; HAL: sectors 0 and 1", "stm32f7", "STM32F750N8 STM32F750Z8", F7_64),
    Fact(f"{PROBE_F7}, stm32f7x2_512", "stm32f7", "STM32F722RC STM32F722ZC STM32F723IC STM32F723ZC", F4_256),
    Fact(f"{PROBE_F7}, stm32f7x2_512", "stm32f7", "STM32F722ZE STM32F723ZE STM32F732ZE STM32F733IE", F4_512),
    Fact(f"{OPENOCD}stm32f2x.c: F7[2|3], 512 kiByte, 4 x 16, 1 x 64, 3 x 128", "stm32f7", "STM32F722ZE", F4_512),
    Fact(f"{PROBE_F7}, stm32f7x_2048", "stm32f7", "STM32F745ZE STM32F746ZE", F7_512),
    Fact(f"{PROBE_F7}, stm32f7x_2048", "stm32f7", "STM32F745ZG STM32F746ZG STM32F756ZG", F7_1024),
    Fact(f"{OPENOCD}stm32f2x.c: F7[4|5], 1 MiByte, 4 x 32, 1 x 128, 3 x 256", "stm32f7", "STM32F746ZG", F7_1024),
    Fact(f"{PROBE_F7}, stm32f7x_2048", "stm32f7", "STM32F765ZG STM32F767ZG STM32F769AG STM32F769NG", F7_1024),
    Fact(f"{PROBE_F7}, stm32f7x_2048", "stm32f7", "STM32F765ZI STM32F767ZI STM32F768AI STM32F769NI", F7_2048),
    Fact(f"{PROBE_F7}, stm32f7x_2048", "stm32f7", "STM32F777ZI STM32F778AI STM32F779NI", F7_2048),
    Fact(f"{PYOCD}STM32F767xx.py", "stm32f7", "STM32F767xI", F7_2048),
    Fact(
        f"{OPENOCD}stm32f2x.c: F7[6|7] 1 MiByte dual-bank, two banks with 4 x 16, 1 x 64, 3 x 128",
        "stm32f7",
        "STM32F765ZG-dual STM32F767ZG-dual STM32F769AG-dual",
        F4_1024_DUAL,
    ),
    Fact(
        f"{OPENOCD}stm32f2x.c: F7[6|7] 2 MiByte dual-bank, two banks with 4 x 16, 1 x 64, 7 x 128",
        "stm32f7",
        "STM32F765ZI-dual STM32F767ZI-dual STM32F768AI-dual STM32F769NI-dual STM32F777ZI-dual STM32F778AI-dual "
        "STM32F779NI-dual",
        F4_2048,
    ),
    Fact(PROBE_H7, "stm32h7", "STM32H723ZE STM32H725AE STM32H725ZE", ((0x08000000, 512 << 10, 0x20000),)),
    Fact(PROBE_H7, "stm32h7", "STM32H723ZG STM32H725IG STM32H733ZG STM32H735IG", ((0x08000000, 1 << 20, 0x20000),)),
    Fact(f"{PYOCD}STM32H723xx.py", "stm32h7", "STM32H723xG", ((0x08000000, 0x100000, 0x20000),)),
    Fact(
        f"{CMSIS}h7 stm32h730xx.h: 1 sector, FLASH_END 0x0801FFFF",
        "stm32h7",
        "STM32H730ZB",
        ((0x08000000, 0x20000, 0x20000),),
    ),
    Fact(f"{PYOCD}STM32H750xx.py", "stm32h7", "STM32H750xB", ((0x08000000, 0x20000, 0x20000),)),
    Fact(
        f"{PROBE_H7}; {OPENOCD}stm32h7x.c: xG has 512 Kbyte each, the second bank starts always from 0x08100000",
        "stm32h7",
        "STM32H742ZG STM32H743ZG",
        ((0x08000000, 0x80000, 0x20000), (0x08100000, 0x80000, 0x20000)),
    ),
    Fact(
        f"{PYOCD}STM32H743xx.py; {PROBE_H7}",
        "stm32h7",
        "STM32H742ZI STM32H743ZI STM32H753ZI",
        ((0x08000000, 0x100000, 0x20000), (0x08100000, 0x100000, 0x20000)),
    ),
    Fact(
        f"{PROBE_H7}; {OPENOCD}stm32h7x.c: page_size_kb 8",
        "stm32h7",
        "STM32H7A3ZG STM32H7A3AGIxQ STM32H7A3VGTxQ",
        ((0x08000000, 0x80000, 0x2000), (0x08100000, 0x80000, 0x2000)),
    ),
    Fact(
        f"{CMSIS}h7 stm32h7a3xx.h, stm32h7b3xx.h: 128 sectors a bank, 8 KB each",
        "stm32h7",
        "STM32H7A3ZI STM32H7B3ZI STM32H7B3LIHxQ",
        ((0x08000000, 0x100000, 0x2000), (0x08100000, 0x100000, 0x2000)),
    ),
    # pyOCD's STM32H7B0xx.py has two banks of 256 KiB: a mistake, ST says 16 sectors and "bank 2 not available".
    Fact(f"{CMSIS}h7 stm32h7b0xx.h: 16 sectors of 8 KB", "stm32h7", "STM32H7B0ZB", ((0x08000000, 0x20000, 0x2000),)),
    Fact(PROBE_H7, "stm32h7_dual_core", "STM32H745ZG STM32H747AG", ((0x08000000, 0x80000, 0x20000),)),
    Fact(
        f"{CMSIS}h7 stm32h745xx.h, stm32h755xx.h: 8 sectors a bank; bank 1 only, as Mongoose",
        "stm32h7_dual_core",
        "STM32H745ZI STM32H747XI STM32H755ZI STM32H757XI",
        ((0x08000000, 0x100000, 0x20000),),
    ),
    Fact(PROBE_H5, "stm32h5", "STM32H503CB STM32H503RB", ((0x08000000, 0x20000, 0x2000),)),
    Fact(PROBE_H5, "stm32h5", "STM32H523CC STM32H523ZC", ((0x08000000, 0x40000, 0x2000),)),
    Fact(PROBE_H5, "stm32h5", "STM32H523ZE STM32H523HEYxT STM32H533ZE", ((0x08000000, 0x80000, 0x2000),)),
    Fact(PROBE_H5, "stm32h5", "STM32H562ZG STM32H563ZG", ((0x08000000, 0x100000, 0x2000),)),
    Fact(PROBE_H5, "stm32h5", "STM32H562ZI STM32H563ZI STM32H573ZI", ((0x08000000, 0x200000, 0x2000),)),
    Fact("ESP-IDF spi_flash_mmap.h: SPI_FLASH_SEC_SIZE", "esp32", "ESP32-4MB", ((0, 0x400000, 0x1000),)),
    Fact("ESP-IDF Kconfig.projbuild: 8 MB", "esp32", "ESP32-8MB", ((0, 0x800000, 0x1000),)),
    Fact("ESP-IDF Kconfig.projbuild: 16 MB", "esp32", "ESP32-16MB", ((0, 0x1000000, 0x1000),)),
    Fact("pico-sdk boards/pico.h", "picosdk", "RP2040 RP2040-2MB RP2350", ((0x10000000, 2 << 20, 4096),)),
    Fact("pico-sdk boards/pico2.h", "picosdk", "RP2350-4MB RP2040-4MB", ((0x10000000, 4 << 20, 4096),)),
    Fact("pico-sdk boards/*.h", "picosdk", "RP2350-8MB RP2040-8MB", ((0x10000000, 8 << 20, 4096),)),
    Fact("pyOCD target_rp2.py: xip", "picosdk", "RP2350-16MB RP2040-16MB", ((0x10000000, 0x1000000, 4096),)),
    Fact("Mongoose src/ota_imxrt.c", "rt1020", "RT1020-4MB", ((0x60000000, 4 * 1024 * 1024, 4 * 1024),)),
    Fact(f"{PYOCD}MIMXRT1021xxxxx.py", "rt1020", "RT1020-8MB", ((0x60000000, 0x800000, 0x1000),)),
    Fact(f"{PYOCD}MIMXRT1052xxxxB.py", "rt1050", "RT1050-64MB", ((0x60000000, 0x4000000, 0x40000),)),
    Fact("probe-rs MIMXRT1050.yaml: _quadspi_4kb_sec", "rt1050", "RT1050-QSPI-8MB", ((0x60000000, 0x800000, 0x1000),)),
    Fact("Mongoose src/ota_imxrt.c", "rt1060", "RT1060-4MB", ((0x60000000, 4 * 1024 * 1024, 4 * 1024),)),
    # probe-rs and pyOCD have blocks of 64 KiB here, in an algorithm that they call mimxrt106x_qspi_4kb_sec.
    Fact("NXP SDK MIMXRT1062: 8 MB; Mongoose: 4 K", "rt1060", "RT1060-8MB", ((0x60000000, 0x800000, 0x1000),)),
    Fact("NXP SDK MIMXRT1062: 16 MB; Mongoose: 4 K", "rt1060", "RT1060-16MB", ((0x60000000, 0x1000000, 0x1000),)),
    Fact("NXP SDK MIMXRT1064: 4 MB; Mongoose: 4 K", "rt1064", "RT1064-4MB", ((0x70000000, 0x400000, 0x1000),)),
    Fact(f"{PYOCD}MIMXRT1176xxxxx.py", "rt1170", "RT1170-16MB", ((0x30000000, 0x1000000, 0x1000),)),
    Fact("NXP SDK MIMXRT1176: __use_flash64MB__", "rt1170", "RT1170-64MB", ((0x30000000, 0x4000000, 0x1000),)),
    Fact("NXP SDK MCXN947 features: 2097152, 8192", "mcxn947", "MCXN947", ((0, 2097152, 8192),)),
    Fact("NXP SDK RW612_flash.ld: 2 MB; Mongoose: 4 K", "rw612", "RW612-2MB", ((0x08000000, 0x200000, 0x1000),)),
    Fact("Mongoose src/ota_rw612.c: sflashA1Size", "rw612", "RW612-64MB", ((0x08000000, 0x4000000, 0x1000),)),
    Fact(
        "no second source: serial NOR flashes come in powers of two",
        "rw612",
        "RW612-4MB",
        ((0x08000000, 0x400000, 0x1000),),
    ),
    Fact(
        "no second source: serial NOR flashes come in powers of two",
        "rw612",
        "RW612-8MB",
        ((0x08000000, 0x800000, 0x1000),),
    ),
    Fact(
        "no second source: serial NOR flashes come in powers of two",
        "rw612",
        "RW612-16MB",
        ((0x08000000, 0x1000000, 0x1000),),
    ),
    Fact(
        "probe-rs CH32V2_CH32V3_Series.yaml: USR; WCH: FLASH_PAGE_SIZE 4096",
        "ch32v307",
        "CH32V307VCT6",
        ((0x08000000, 0x78000, 4096),),
    ),
)
MAPPED = [target for target in TARGETS if target.geometry]
each_mapped = pytest.mark.parametrize("target", MAPPED, ids=lambda target: f"{target.name}-{target.part}")


def geometry_of(target: Target) -> Geometry:
    assert target.geometry
    return target.geometry


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.parts.partition(" ")[0])
def test_sectors_lie_where_the_second_source_says(fact: Fact) -> None:
    expected = [
        (start, sector) for begin, length, sector in fact.regions for start in range(begin, begin + length, sector)
    ]
    for part in fact.parts.split():
        target = find_target(fact.name, part)
        assert [(target.base + sector.start, sector.length) for sector in geometry_of(target).sectors] == expected, part


def test_every_part_with_a_geometry_has_a_second_source() -> None:
    told = {find_target(fact.name, part).part for fact in FACTS for part in fact.parts.split()}
    assert told == {target.part for target in MAPPED}
    assert {target.name for target in TARGETS if not target.geometry} == {"u2a6", "u2a8", "u2a16", "custom"}


UNITS = (
    # OpenOCD stm32h7x.c: block_size 32 and 16; CMSIS: FLASH_NB_32BITWORD_IN_FLASHWORD 8U and 4U.
    ("stm32h7", "STM32H723ZG STM32H730ZB STM32H743ZI STM32H743ZG STM32H750VB", 32),
    ("stm32h7_dual_core", "STM32H745ZI STM32H747XI STM32H755ZI", 32),
    ("stm32h7", "STM32H7A3ZI STM32H7A3ZG STM32H7B3ZI STM32H7B0ZB", 16),
    ("stm32h5", "STM32H503CB STM32H563ZI", 16),  # Mongoose ota_stm32h5.c: 128 bit
    ("stm32f2", "STM32F207ZG", 4),  # x32 parallelism: HAL_FLASH_Program with FLASH_TYPEPROGRAM_WORD
    ("stm32f4", "STM32F429ZI", 4),
    ("stm32f7", "STM32F767ZI", 4),
    ("esp32", "ESP32-4MB", 1),  # NOR flash programs single bytes
    ("picosdk", "RP2040 RP2350", 256),  # pico-sdk hardware/flash.h: FLASH_PAGE_SIZE
    ("rt1020", "RT1020-4MB", 256),  # pyOCD and Mongoose agree
    ("rt1050", "RT1050-64MB", 512),
    ("rt1060", "RT1060-4MB", 256),
    ("rt1064", "RT1064-4MB", 256),
    ("rt1170", "RT1170-16MB", 256),
    ("mcxn947", "MCXN947", 16),  # Mongoose ota_mcxn.c: a phrase, the smallest portion programmed in one operation
    ("rw612", "RW612-2MB", 256),
    ("ch32v307", "CH32V307", 4),  # Mongoose ota_ch32v307.c: align 4
)


@pytest.mark.parametrize(("name", "parts", "unit"), UNITS, ids=lambda value: str(value).partition(" ")[0])
def test_the_program_unit_is_the_second_source_s(name: str, parts: str, unit: int) -> None:
    assert {find_target(name, part).program_unit for part in parts.split()} == {unit}


def test_an_erased_byte_reads_ff_except_on_the_ch32v307() -> None:
    assert {target.erased for target in TARGETS if target.name != "ch32v307"} == {b"\xff"}
    # WCH FLASH_Program: word 0xe339e339, half-word 0xe339, even address 0x39, odd address 0xe3.
    erased = find_target("ch32v307").erased
    assert int.from_bytes(erased, "little") == 0xE339E339
    assert (erased[0], erased[1], len(erased)) == (0x39, 0xE3, 4)


LARGEST = {  # KiB, as the project's design states them
    ("stm32h7", "STM32H723xG"): 384,
    ("stm32h7_dual_core", "STM32H747xI"): 384,
    ("stm32f4", "STM32F405xG"): 384,
    ("stm32f4", "STM32F411xE"): 128,
    ("stm32f4", "STM32F446xE"): 128,
    ("stm32f7", "STM32F722xE"): 128,
    ("stm32f7", "STM32F746xG"): 256,
    ("stm32f4", "STM32F429xI"): 896,
    ("rt1050", "RT1050-64MB"): 32256,
    ("picosdk", "RP2040"): 1016,
    ("ch32v307", "CH32V307"): 232,
    # Counted by hand. Two equal banks: one of them.
    ("stm32h5", "STM32H563xI"): 1024,
    ("stm32h7", "STM32H743xI"): 1024,
    ("stm32h7", "STM32H7A3xI"): 1024,
    # Four sectors on either side of the hole: three below, and three and the spare one above.
    ("stm32h7", "STM32H743xG"): 384,
    # 64 small sectors below the hole, 61 above and three for the journal: 60, and 60 and the spare one.
    ("stm32h7", "STM32H7A3xG"): 480,
    ("stm32h7", "STM32H7B0xB"): 48,
    # Eight logical sectors of 256 KiB, or sixteen of 128: the half of them without the spare one.
    ("stm32f7", "STM32F767xI"): 768,
    ("stm32f7", "STM32F767xI-dual"): 896,
    ("stm32f4", "STM32F429xG-dual"): 384,
    ("stm32f4", "STM32F413xH"): 640,
    # Nothing but four equal sectors.
    ("stm32f4", "STM32F410x8"): 16,
    ("stm32f7", "STM32F730x8"): 16,
    ("esp32", "ESP32-4MB"): 1920,
    ("mcxn947", "MCXN947"): 1008,
    ("rw612", "RW612-2MB"): 1016,
    ("rt1020", "RT1020-4MB"): 2040,
    ("rt1170", "RT1170-16MB"): 8184,
}


@pytest.mark.parametrize(("name", "part"), LARGEST)
def test_the_largest_image_is_as_designed(name: str, part: str) -> None:
    assert find_target(name, part).max_image == LARGEST[name, part] << 10


def test_parts_too_small_for_two_slots_say_so() -> None:
    small = {target.part for target in MAPPED if not target.max_image}
    assert small == {
        *("STM32F205xB", "STM32F205xC", "STM32F207xC"),
        *("STM32F401xB", "STM32F401xC", "STM32F410xB", "STM32F411xC", "STM32F446xC"),
        *("STM32F722xC", "STM32F723xC", "STM32F745xE", "STM32F746xE", "STM32F750x8"),
        *("STM32H730xB", "STM32H750xB"),
    }
    assert not any(target.rollback for target in MAPPED if target.part in small)


def planned(target: Target) -> SwapLayout:
    return plan_swap(geometry_of(target), target.journal)


def disjoint(areas: list[Area]) -> bool:
    ordered = sorted(areas, key=lambda area: area.start)
    return all(one.end <= other.start for one, other in pairwise(ordered))


@each_mapped
def test_slots_and_journal_lie_apart_on_whole_sectors(target: Target) -> None:
    geometry = geometry_of(target)
    match target.swap:
        case Swap.BANK:
            banks = Banks(geometry=geometry, bit=31)
            areas = [banks.area(slot) for slot in Slot]
            assert {area.length for area in areas} == {target.max_image}
            assert not target.journal.value.startswith(("c", "h"))
        case Swap.OTADATA:
            areas = [geometry.slot_area(start, target.max_image) for start in (0x10000, 0x1F0000)]
            assert target.journal is JournalPlace.NONE
        case Swap.COPY if target.max_image:
            layout = planned(target)
            areas = [geometry.slot_area(area.start, area.length) for area in (layout.primary, layout.secondary)]
            assert layout.primary.start == 0, "what runs lies where the chip boots"
            assert layout.primary.length == target.max_image
            assert layout.secondary.length == target.max_image + layout.sector
            assert len(layout.journal) == (3 if target.journal is JournalPlace.CHIP else 0)
            areas += layout.journal
        case Swap.COPY:
            areas = []
            with pytest.raises(ConfigError, match="too small for two slots"):
                planned(target)
        case _:
            pytest.fail(f"{target.part} has a geometry that nobody uses")
    assert disjoint(areas)
    assert all(0 <= area.start < area.end <= geometry.size for area in areas)
    assert target.rollback is bool(areas)


@each_mapped
def test_a_journal_lies_on_the_chip_where_its_sectors_are_small(target: Target) -> None:
    largest = max(region.sector for region in geometry_of(target).regions)
    if target.swap is Swap.COPY:
        on_chip = largest <= 8 << 10 or target.part == "RT1050-64MB"
        assert target.journal is (JournalPlace.CHIP if on_chip else JournalPlace.HOST)


def test_every_name_of_the_issue_has_parts_and_one_default() -> None:
    assert set(NAMES) == {target.name for target in TARGETS} == {
        *("stm32h5", "stm32h7", "stm32h7_dual_core", "stm32f2", "stm32f4", "stm32f7", "esp32", "picosdk"),
        *("rt1020", "rt1050", "rt1060", "rt1064", "rt1170", "mcxn947", "rw612", "u2a6", "u2a8", "u2a16"),
        *("ch32v307", "custom"),
    }  # fmt: skip
    for name in NAMES:
        defaults = [target for target in targets_of(name) if target.default]
        assert defaults == [find_target(name)], name


DEFAULTS = {
    "stm32h5": "STM32H563xI",
    "stm32h7": "STM32H743xI",
    "stm32h7_dual_core": "STM32H747xI",
    "stm32f2": "STM32F207xG",
    "stm32f4": "STM32F429xI",
    "stm32f7": "STM32F767xI",
    "esp32": "ESP32-4MB",
    "picosdk": "RP2040",
    "rw612": "RW612-2MB",
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_the_default_is_the_largest_common_part(name: str) -> None:
    assert find_target(name).part == DEFAULTS[name]


def test_the_table_has_the_same_h5_as_the_module_beside_it() -> None:
    for target in targets_of("stm32h5"):
        geometry = geometry_of(target)
        assert geometry == stm32h5.banks(geometry.size).geometry
        assert target.watchdog_limit == stm32h5.IWDG_LIMIT


def test_what_a_swap_needs_follows_from_its_kind() -> None:
    for target in TARGETS:
        atomic = target.swap in {Swap.BANK, Swap.OTADATA}
        assert target.recovery is (Recovery.HARDWARE if atomic else Recovery.HOST)
        assert (target.journal is JournalPlace.NONE) is (target.swap is not Swap.COPY)


def test_a_watchdog_that_is_described_cannot_be_stopped() -> None:
    for target in TARGETS:
        described = target.name.startswith(("stm32", "ch32"))
        assert (target.watchdog_limit is not None) is described
        assert target.watchdog_stoppable is (False if described else None)
    assert find_target("stm32f4").watchdog_limit == 32.768
    assert find_target("ch32v307").watchdog_limit == 26.2144


VECTORS = {
    "esp32": None,
    "ch32v307": None,
    "custom": None,
    "u2a6": None,
    "u2a8": None,
    "u2a16": None,
    # NXP SDK …_flexspi_nor.ld: m_interrupts at 0x60002000, 0x70002000, 0x30002000; RW612_flash.ld: 0x08001000.
    **dict.fromkeys(["rt1020", "rt1050", "rt1060", "rt1064", "rt1170"], (0x2000,)),
    "rw612": (0x1000,),
    **dict.fromkeys([name for name in NAMES if name.startswith("stm32")], (0,)),
    "mcxn947": (0,),
}


def test_vector_tables_lie_behind_the_boot_headers() -> None:
    assert {target.name: target.vectors for target in TARGETS if target.name != "picosdk"} == VECTORS
    for target in targets_of("picosdk"):  # pico-sdk memmap_default.ld: boot2 of 256 bytes on the RP2040 only
        assert target.vectors == ((0x100,) if target.part.startswith("RP2040") else (0,))


def test_images_may_be_linked_for_the_base_and_its_mirrors() -> None:
    assert find_target("stm32f4").links == (0x08000000,)
    assert find_target("stm32f7").links == (0x08000000, 0x00200000)
    assert find_target("stm32h5").links == (0x08000000, 0x0C000000)
    assert find_target("stm32h5", "STM32H503xB").links == (0x08000000,)  # no TrustZone
    assert find_target("mcxn947").links == (0, 0x10000000)
    assert find_target("rw612").links == (0x08000000, 0x18000000)
    assert find_target("rt1170").links == (0x30000000, 0x08000000)


def test_parts_are_told_apart_and_say_where_their_numbers_come_from() -> None:
    spellings = [(target.name, spelling) for target in TARGETS for spelling in (target.part.upper(), *target.aliases)]
    assert len(set(spellings)) == len(spellings)
    for target in TARGETS:
        assert target.sources
        assert all(source.strip() for source in target.sources)
        assert target.part.split() == [target.part]
        assert all(alias == alias.upper() for alias in target.aliases)
        assert target.crc == "crc-32"


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("STM32F429xI", "STM32F429xI"),
        ("stm32f429XI", "STM32F429xI"),
        ("STM32F429ZI", "STM32F429xI"),
        ("stm32f429zit6", "STM32F429xI"),
        ("STM32F429ZGT6-dual", "STM32F429xG-dual"),
        ("STM32F410T8", "STM32F410x8"),
    ],
)
def test_a_part_is_found_by_any_of_its_names(part: str, found: str) -> None:
    assert find_target("STM32F4", part).part == found


@pytest.mark.parametrize(
    ("name", "part"), [("rt1050", "mimxrt1052"), ("picosdk", "rp2354"), ("u2a16", "rh850/u2a16"), ("esp32", "esp32")]
)
def test_a_default_has_further_names(name: str, part: str) -> None:
    assert find_target(name, part).geometry == find_target(name, find_target(name, part).part).geometry


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError) as told:
        find_target("z80")
    assert "no target z80" in str(told.value)
    assert all(name in str(told.value) for name in NAMES)


@pytest.mark.parametrize("part", ["STM32F429", "STM32F4", "STM32F746ZG", "", "STM32F429xI-triple", "STM32F405ZG-dual"])
def test_an_unknown_part_is_told_what_there_is(part: str) -> None:
    with pytest.raises(ConfigError) as told:
        find_target("stm32f4", part)
    assert "stm32f4 has no part" in str(told.value)
    assert "STM32F429xG-dual" in str(told.value)


def test_importing_the_table_computes_no_layout_and_loads_no_terminal() -> None:
    code = (
        "import sys; from mgota.flash.targets.table import TARGETS;"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}));"
        "print(sum('max_image' in vars(t) or 'sectors' in vars(t.geometry or t) for t in TARGETS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules, computed = done.stdout.splitlines()
    assert not {"rich", "click", "httpx", "aiomqtt", "h11"} & set(modules.split())
    assert computed == "0"
