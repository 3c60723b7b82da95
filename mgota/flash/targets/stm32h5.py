"""STM32H5: two banks, exchanged by the option bit SWAP_BANK; the option write resets the chip.

Sources: RM0481 (STM32H523/533/562/563/573): embedded flash memory, FLASH_OPTSR, IWDG; the seed's OTA guide for the
numbers of the IWDG. Recovery is `hardware`: one atomic write decides. It runs on the simulator; nobody has run it on
silicon.
"""

import os

from mgota.core.geometry import uniform
from mgota.errors import ConfigError
from mgota.flash.banked import BankedFlash, Banks
from mgota.flash.chips import virtual_banks
from mgota.flash.virtual import VirtualTarget
from mgota.ports import Resetter

SIZES = (128 << 10, 2 << 20)
"""Bytes of the smallest (H503) and the largest (H56x, H573) flash memory, both banks."""

SECTOR = 8 << 10
"""Bytes of a sector (RM0481, flash memory organization)."""

UNIT = 16
"""Bytes of a flash word of 128 bits; it has ECC, hence is programmed once per erase (RM0481)."""

SWAP_BANK = 31
"""Number of the bit in FLASH_OPTSR (RM0481)."""

LSI_KHZ = 32
IWDG_PRESCALER = 512
IWDG_RELOAD_MAX = 0xFFF
"""IWDG_RLR has 12 bits; the prescaler is /512 at most in the seed's set-up (IWDG_PR = 7)."""

IWDG_LIMIT = IWDG_RELOAD_MAX * IWDG_PRESCALER / LSI_KHZ / 1000
"""Seconds of the longest timeout: 65.52."""


def iwdg_reload(ms: int) -> int:
    """The value of IWDG_RLR for a timeout, rounded up so that the window is never shorter than asked for.

    Args:
        ms: milliseconds.

    Raises:
        ConfigError: the register's 12 bits cannot hold it; it is never cut to what fits.
    """
    reload = -(-ms * LSI_KHZ // IWDG_PRESCALER)
    if not 1 <= reload <= IWDG_RELOAD_MAX:
        longest = IWDG_RELOAD_MAX * IWDG_PRESCALER // LSI_KHZ
        raise ConfigError(f"the IWDG counts 1 to {longest} ms, not {ms}")
    return reload


def banks(size: int = SIZES[1]) -> Banks:
    """The numbers of a chip with `size` bytes of flash memory, both banks.

    Raises:
        ConfigError: there is no such chip.
    """
    if not SIZES[0] <= size <= SIZES[1] or size % (2 * SECTOR):
        raise ConfigError(
            f"an STM32H5 has {SIZES[0] >> 10} to {SIZES[1] >> 10} KiB of flash memory in two banks of 8 KiB sectors"
        )
    return Banks(geometry=uniform(size, SECTOR, program_unit=UNIT), bit=SWAP_BANK)


def stm32h5(
    path: str | os.PathLike[str] | None = None,
    *,
    reset: Resetter | None = None,
    size: int = SIZES[1],
    throttle: float | None = None,
) -> VirtualTarget[BankedFlash]:
    """A virtual STM32H5. Blocks if it has a file.

    Args:
        path: the raw array, physical bank 1 first; the option bytes are in PATH.opt, the lock is PATH.lock. A missing
            file is a new chip, blank, whatever PATH.opt says. None keeps all in memory.
        reset: what an option write does to the chip; without it, `select` returns.
        size: bytes of both banks.
        throttle: bytes per second that can be programmed, or None.

    Raises:
        ConfigError: there is no such chip, or the file is not one's flash memory.
    """
    return virtual_banks(banks(size), path, IWDG_LIMIT, reset=reset, throttle=throttle)
