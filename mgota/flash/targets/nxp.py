"""NXP: i.MX RT and RW612, which run from a serial NOR flash beside them, and MCXN947, which has its own.

The size of a serial flash is the board's: the default is what Mongoose assumes, the others are common. Sources: the
linker scripts and headers of NXP's MCUXpresso SDK (mcux-devices-rt, -wireless, -mcx), the device lists of pyOCD and
probe-rs, Mongoose's drivers. Those lists give "sectors" of 64 KiB for the RT1060, the RT1064 and the RT1050 with
QuadSPI: that is the block of a second erase command; 4 KiB is what Mongoose erases, as the names of their algorithms
(`qspi_4kb_sec`) say.
"""

from collections.abc import Iterator
from itertools import chain

from mgota.core.geometry import uniform
from mgota.core.swap import JournalPlace
from mgota.flash.targets.target import Swap, Target

MIB = 1 << 20
SECTOR, PAGE = 4 << 10, 256
"""Bytes that a serial NOR flash erases and programs at once."""

HYPER_SECTOR, HYPER_PAGE = 256 << 10, 512
"""The same of the HyperFlash of an RT1050 (pyOCD, probe-rs: mimxrt105x_hyper_256kb_sec)."""

RT_VECTORS = 0x2000
"""Behind the flash configuration block and, at 0x1000, the IVT: m_interrupts in MIMXRT…_flexspi_nor.ld."""

RW_VECTORS = 0x1000
"""Behind the flash configuration block: m_interrupts in RW612_flash.ld."""

SECURE = 0x10000000
"""The secure addresses of a Cortex-M33 differ from the others in this bit."""


def _serial(
    name: str,
    base: int,
    sizes: tuple[int, ...],
    vectors: int,
    sources: tuple[str, ...],
    *,
    aliases: tuple[str, ...] = (),
    mirrors: tuple[int, ...] = (),
) -> Iterator[Target]:
    """A chip with a serial NOR flash; the first of the sizes (MiB) is the default."""
    for size in sizes:
        yield Target(
            name=name,
            part=f"{name.upper()}-{size}MB",
            default=size == sizes[0],
            base=base,
            geometry=uniform(size * MIB, SECTOR, program_unit=PAGE),
            swap=Swap.COPY,
            journal=JournalPlace.CHIP,
            aliases=(name.upper(), *aliases) if size == sizes[0] else (),
            mirrors=mirrors,
            vectors=(vectors,),
            sources=sources,
        )


def _imx_rt() -> Iterator[Target]:
    mongoose = "Mongoose src/ota_imxrt.c"
    rt1020 = ("MCUXpresso SDK MIMXRT1021xxxxx_flexspi_nor.ld", "pyOCD target_MIMXRT1021xxxxx.py", mongoose)
    yield from _serial("rt1020", 0x60000000, (4, 8), RT_VECTORS, rt1020, aliases=("MIMXRT1020", "MIMXRT1021"))
    yield from _rt1050(mongoose)
    rt1060 = ("MCUXpresso SDK MIMXRT1062xxxxx_flexspi_nor.ld", "probe-rs MIMXRT1060.yaml", mongoose)
    yield from _serial("rt1060", 0x60000000, (4, 8, 16), RT_VECTORS, rt1060, aliases=("MIMXRT1060", "MIMXRT1062"))
    rt1064 = ("MCUXpresso SDK MIMXRT1064xxxxx_flexspi_nor.ld", "pyOCD target_MIMXRT1064xxxxA.py", mongoose)
    yield from _serial("rt1064", 0x70000000, (4,), RT_VECTORS, rt1064, aliases=("MIMXRT1064",))
    rt1170 = ("MCUXpresso SDK MIMXRT1176xxxxx_cm7_flexspi_nor.ld", "pyOCD target_MIMXRT1176xxxxx.py", mongoose)
    mirror = 0x08000000  # by which its Cortex-M4 sees the same flash memory: MIMXRT1176xxxxx_cm4_flexspi_nor.ld
    yield from _serial(
        "rt1170", 0x30000000, (16, 64), RT_VECTORS, rt1170, aliases=("MIMXRT1170", "MIMXRT1176"), mirrors=(mirror,)
    )


def _rt1050(mongoose: str) -> Iterator[Target]:
    """The journal lies on the chip although its sectors are large: there are 256 of them."""
    script, pyocd = "MCUXpresso SDK MIMXRT1052xxxxx_flexspi_nor.ld", "pyOCD target_MIMXRT1052xxxxB.py"
    kinds = (
        ("RT1050-64MB", uniform(64 * MIB, HYPER_SECTOR, program_unit=HYPER_PAGE)),
        ("RT1050-QSPI-8MB", uniform(8 * MIB, SECTOR, program_unit=PAGE)),
    )
    for part, geometry in kinds:
        default = geometry.program_unit == HYPER_PAGE
        yield Target(
            name="rt1050",
            part=part,
            default=default,
            base=0x60000000,
            geometry=geometry,
            swap=Swap.COPY,
            journal=JournalPlace.CHIP,
            aliases=("RT1050", "MIMXRT1050", "MIMXRT1052") if default else (),
            vectors=(RT_VECTORS,),
            sources=(script, pyocd, "probe-rs MIMXRT1050.yaml", mongoose),
        )


def _mcxn947() -> Iterator[Target]:
    yield Target(
        name="mcxn947",
        part="MCXN947",
        default=True,
        geometry=uniform(2 * MIB, 8 << 10, program_unit=16),  # a phrase; the ROM's API writes pages of 128
        swap=Swap.COPY,
        journal=JournalPlace.CHIP,
        mirrors=(SECURE,),
        vectors=(0,),
        sources=("MCUXpresso SDK MCXN947_cm33_core0_features.h", "probe-rs MCXN947.yaml", "Mongoose src/ota_mcxn.c"),
    )


def _rw612() -> Iterator[Target]:
    base = 0x08000000
    sources = ("MCUXpresso SDK RW612_flash.ld", "Mongoose src/ota_rw612.c")
    yield from _serial("rw612", base, (2, 4, 8, 16, 64), RW_VECTORS, sources, mirrors=(base | SECURE,))


NXP = tuple(chain(_imx_rt(), _mcxn947(), _rw612()))
"""All of them."""
