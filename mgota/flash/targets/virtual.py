"""A chip of the table, alive inside a process."""

from functools import partial

from mgota.core.esp_image import EspInspector
from mgota.core.inspect import Inspect
from mgota.core.swap import plan_swap
from mgota.core.vectors import VectorInspector
from mgota.errors import ConfigError
from mgota.flash.banked import Banks
from mgota.flash.chips import StrPath, virtual_banks, virtual_copying
from mgota.flash.targets.esp32 import esp32
from mgota.flash.targets.table import Swap, Target
from mgota.flash.virtual import BootingFlash, VirtualTarget
from mgota.ports import Resetter, StateStore

SWAP_BANK = 31
"""Number of the bit SWAP_BANK in FLASH_OPTSR of the STM32H5 (RM0481), and SWAP_BANK_OPT of the H7 (RM0433)."""

RESETS_ITSELF = "stm32h5"
"""Where the option launch resets the chip; on an H7 the new bank order waits for the next reset (RM0433)."""


def virtual_target(
    target: Target,
    path: StrPath | None = None,
    *,
    journal: StrPath | None = None,
    state: StateStore | None = None,
    reset: Resetter | None = None,
    throttle: float | None = None,
) -> VirtualTarget[BootingFlash]:
    """A chip of the table. Blocks if it has a file.

    Args:
        target: which one.
        path: the raw array; a missing file is a new chip. None keeps all in memory.
        journal: the file for the journal, of a target whose journal is the host's.
        state: where the boot record is: where there is one, a journal that is missing was lost.
        reset: the chip's reset line.
        throttle: bytes per second that can be programmed, or None.

    Raises:
        ConfigError: the chip is too small for two slots, has no flash memory that mgota knows, or is not the file's.
    """
    limit = target.watchdog_limit
    if target.geometry is None:
        raise ConfigError(f"{target.name} has no regions to serve: nobody has verified where its sectors lie")
    match target.swap:
        case Swap.BANK:
            chip = Banks(geometry=target.geometry, bit=SWAP_BANK, crc=target.crc)
            line = reset if target.name == RESETS_ITSELF else None
            return virtual_banks(chip, path, limit, reset=line, throttle=throttle)
        case Swap.OTADATA:
            return esp32(path, size=target.geometry.size, throttle=throttle)
        case _:
            layout = plan_swap(target.geometry, target.journal)
            return virtual_copying(layout, path, limit, journal=journal, state=state, throttle=throttle)


def inspector_for(target: Target) -> Inspect:
    """What looks at images for this chip.

    Raises:
        ConfigError: nothing can be told from the format of its images.
    """
    if target.swap is Swap.OTADATA:
        return EspInspector
    if target.vectors is None or target.geometry is None:
        raise ConfigError(f"nothing can be told from the format of an image for {target.name}")
    return partial(VectorInspector, target.links, target.max_image, target.vectors)
