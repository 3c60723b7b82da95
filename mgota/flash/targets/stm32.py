"""STM32: every line and size of the F2, F4, F7, H7 and H5, in single and dual bank mode where a part has both.

ST's letter for the size of the flash memory: 8 is 64 KiB, B 128, C 256, D 384, E 512, F 768, G 1024, H 1536, I 2048. A
part that an option bit puts into dual bank mode is listed twice; the second is called `-dual`.

    F2, F4, F72x, F73x      4 x 16 KiB, 64 KiB, then 128 KiB each
    F74x, F75x, F76x, F77x  4 x 32 KiB, 128 KiB, then 256 KiB each
    dual bank               4 x 16 KiB, 64 KiB, then 128 KiB each, in both banks
    H72x … H75x             128 KiB each
    H7A3, H7B3, H7B0, H5    8 KiB each

Sources: the reference manuals (RM...) are named for whoever checks. Sector maps were taken from OpenOCD's flash drivers
and compared with pyOCD and probe-rs; the sizes that a line comes in from probe-rs, which has them from ST's packs; the
H7's flash word and its second bank from ST's CMSIS headers.
"""

from collections.abc import Iterator
from itertools import chain

from mgota.core.geometry import Geometry, Region, uniform
from mgota.core.swap import JournalPlace
from mgota.flash.targets.target import Swap, Target

KIB = 1 << 10
BASE = 0x08000000
SIZES = {"8": 64, "B": 128, "C": 256, "D": 384, "E": 512, "F": 768, "G": 1024, "H": 1536, "I": 2048}
"""KiB by ST's letter."""

BANK_2 = 0x100000
"""Offset of bank 2 of an H7, however large bank 1 is: 0x08100000 (FLASH_BANK2_BASE in stm32h743xx.h, stm32h7a3xx.h)."""

WORD = 4
"""Bytes of a program unit with PSIZE = x32; ST allows 1, 2 and 8 as well, depending on the voltage (RM0090)."""

FLASH_WORD = 32
"""FLASH_NB_32BITWORD_IN_FLASHWORD is 8 in stm32h723xx.h, stm32h743xx.h; it has ECC: programmed once per erase."""

SHORT_FLASH_WORD = 16
"""FLASH_NB_32BITWORD_IN_FLASHWORD is 4 in stm32h7a3xx.h; an H5's quad-word (RM0481). ECC, too."""

LSI = 32_000
IWDG_LIMIT = 4096 * 256 / LSI
"""Seconds: 12 bits, prescaler /256 at most, LSI of 32 kHz (RM0033, RM0090, RM0385, RM0433: IWDG)."""

IWDG_LIMIT_H5 = 65.52
"""Seconds, as in `stm32h5.py`: prescaler /512, as the seed sets it up."""

ITCM = 0x00200000
"""The flash memory of an F7 by its other bus (RM0385, RM0410, RM0431; probe-rs stm32f7xtcm_2048)."""

SECURE_H5 = 0x0C000000
"""The flash memory of an H5 by its secure addresses (RM0481; probe-rs stm32h5xx_2m_0c00)."""

OPENOCD_F = "OpenOCD src/flash/nor/stm32f2x.c"
OPENOCD_H7 = "OpenOCD src/flash/nor/stm32h7x.c"


def rising(size: int, largest: int, start: int = 0) -> tuple[Region, ...]:
    """Four sectors of an eighth of the largest, one of a half, then the largest ones; what `size` cuts off is missing.

    Args:
        size: bytes of the bank.
        largest: bytes of its largest sectors.
        start: of the bank.
    """
    plan = ((largest // 2, largest // 8), (largest // 2, largest // 2), (size, largest))
    regions: list[Region] = []
    end = start + size
    for length, sector in plan:
        length = min(length, end - start)  # noqa: PLW2901  a small part ends inside of the plan
        if length:
            regions.append(Region(start, length, sector))
        start += length
    return tuple(regions)


def twice(size: int) -> tuple[Region, ...]:
    """Dual bank mode: each half begins with small sectors.

    Args:
        size: bytes of both banks.
    """
    return rising(size // 2, 128 * KIB) + rising(size // 2, 128 * KIB, size // 2)


def two_banks(size: int, sector: int) -> tuple[Region, ...]:
    """An H7 whose bank 2 begins at `BANK_2`; smaller banks leave a hole.

    Args:
        size: bytes of both banks.
        sector: bytes of a sector.
    """
    if size == 2 * BANK_2:
        return (Region(0, size, sector),)
    return Region(0, size // 2, sector), Region(BANK_2, size // 2, sector)


def _f2_f4_f7() -> Iterator[Target]:
    for name, largest, lines, manual, options in _F_LINES:
        for line in lines.split():
            series, _, letters = line.partition(":")
            for letter in letters:
                size = SIZES[letter] * KIB
                # An F42x or F46x of 2 MiB has two banks, whatever DB1M says (RM0090).
                both = size > 1024 * KIB and options == "DB1M"
                part = f"STM32{series}x{letter}"
                yield _copying(name, part, twice(size) if both else rising(size, largest), manual)
                if options and size >= 1024 * KIB and not both:
                    yield _copying(name, f"{part}-dual", twice(size), f"{manual}, {options}")


def _copying(name: str, part: str, regions: tuple[Region, ...], manual: str) -> Target:
    return Target(
        name=name,
        part=part,
        default=part in _DEFAULTS,
        base=BASE,
        geometry=Geometry(regions, WORD),
        swap=Swap.COPY,
        journal=JournalPlace.HOST,
        mirrors=(ITCM,) if name == "stm32f7" else (),
        vectors=(0,),
        watchdog_limit=IWDG_LIMIT,
        watchdog_stoppable=False,
        sources=(manual, OPENOCD_F, f"probe-rs {name.upper()}_Series.yaml"),
    )


_F_LINES = (
    ("stm32f2", 128 * KIB, "F205:BCEFG F207:CEFG F215:EG F217:EG", "RM0033", ""),
    ("stm32f4", 128 * KIB, "F401:BCDE", "RM0368", ""),
    ("stm32f4", 128 * KIB, "F405:EG F407:EG F415:G F417:EG", "RM0090", ""),
    ("stm32f4", 128 * KIB, "F410:8B", "RM0401", ""),
    ("stm32f4", 128 * KIB, "F411:CE", "RM0383", ""),
    ("stm32f4", 128 * KIB, "F412:EG", "RM0402", ""),
    ("stm32f4", 128 * KIB, "F413:GH F423:H", "RM0430", ""),
    ("stm32f4", 128 * KIB, "F427:GI F429:EGI F437:GI F439:GI", "RM0090", "DB1M"),
    ("stm32f4", 128 * KIB, "F446:CE", "RM0390", ""),
    ("stm32f4", 128 * KIB, "F469:EGI F479:GI", "RM0386", "DB1M"),
    ("stm32f7", 128 * KIB, "F722:CE F723:CE F730:8 F732:E F733:E", "RM0431", ""),
    ("stm32f7", 256 * KIB, "F745:EG F746:EG F750:8 F756:G", "RM0385", ""),
    ("stm32f7", 256 * KIB, "F765:GI F767:GI F768:I F769:GI F777:I F778:I F779:I", "RM0410", "nDBANK = 0"),
)
"""Target, largest sector in single bank mode, lines with their sizes, manual, option for dual bank mode."""

_DEFAULTS = {"STM32F207xG", "STM32F429xI", "STM32F767xI", "STM32H743xI", "STM32H747xI", "STM32H563xI"}


def _h7() -> Iterator[Target]:
    for line, manual in (("H723:EG H725:EG H730:B H733:G H735:G", "RM0468"), ("H750:B", "RM0433")):
        for part, size in _parts(line):
            regions = (Region(0, size, 128 * KIB),)
            yield _h7_part(part, Geometry(regions, FLASH_WORD), JournalPlace.HOST, manual)
    for part, size in _parts("H742:GI H743:GI H753:I"):
        yield _h7_part(part, Geometry(two_banks(size, 128 * KIB), FLASH_WORD), JournalPlace.HOST, "RM0433")
    for part, size in _parts("H7A3:GI H7B3:I"):
        yield _h7_part(part, Geometry(two_banks(size, 8 * KIB), SHORT_FLASH_WORD), JournalPlace.CHIP, "RM0455")
    for part, size in _parts("H7B0:B"):
        regions = (Region(0, size, 8 * KIB),)
        yield _h7_part(part, Geometry(regions, SHORT_FLASH_WORD), JournalPlace.CHIP, "RM0455")


def _h7_dual_core() -> Iterator[Target]:
    """Bank 1 only: bank 2 is the other core's."""
    for part, size in _parts("H745:GI H747:GI H755:I H757:I"):
        geometry = uniform(size // 2, 128 * KIB, program_unit=FLASH_WORD)
        yield _h7_part(part, geometry, JournalPlace.HOST, "RM0399", name="stm32h7_dual_core")


def _h7_part(part: str, geometry: Geometry, journal: JournalPlace, manual: str, name: str = "stm32h7") -> Target:
    """2 MiB of one core swap their banks. Smaller banks have a hole between them, and one image would not span it."""
    banks = name == "stm32h7" and geometry.size == 2 * BANK_2 and len(geometry.regions) == 1
    return Target(
        name=name,
        part=part,
        default=part in _DEFAULTS,
        base=BASE,
        geometry=geometry,
        swap=Swap.BANK if banks else Swap.COPY,
        journal=JournalPlace.NONE if banks else journal,
        vectors=(0,),
        watchdog_limit=IWDG_LIMIT,
        watchdog_stoppable=False,
        sources=(manual, f"CMSIS {part.lower()[:9]}xx.h", OPENOCD_H7, "probe-rs STM32H7_Series.yaml"),
    )


def _h5() -> Iterator[Target]:
    for line, manual in (("H503:B", "RM0492"), ("H523:CE H533:E H562:GI H563:GI H573:I", "RM0481")):
        for part, size in _parts(line):
            yield Target(
                name="stm32h5",
                part=part,
                default=part in _DEFAULTS,
                base=BASE,
                geometry=uniform(size, 8 * KIB, program_unit=SHORT_FLASH_WORD),
                swap=Swap.BANK,
                mirrors=() if part == "STM32H503xB" else (SECURE_H5,),
                vectors=(0,),
                watchdog_limit=IWDG_LIMIT_H5,
                watchdog_stoppable=False,
                sources=(manual, "probe-rs STM32H5_Series.yaml", "Mongoose src/ota_stm32h5.c"),
            )


def _parts(lines: str) -> Iterator[tuple[str, int]]:
    for line in lines.split():
        series, _, letters = line.partition(":")
        for letter in letters:
            yield f"STM32{series}x{letter}", SIZES[letter] * KIB


STM32 = tuple(chain(_h5(), _h7(), _h7_dual_core(), _f2_f4_f7()))
"""All of them."""
