"""The table of targets: which chips there are, by name and part.

Importing it costs little: it is numbers, and layouts are computed when they are asked for.
"""

from mgota.errors import ConfigError
from mgota.flash.targets.nxp import NXP
from mgota.flash.targets.others import OTHERS
from mgota.flash.targets.stm32 import STM32
from mgota.flash.targets.target import Recovery, Swap, Target

__all__ = ["NAMES", "TARGETS", "Recovery", "Swap", "Target", "find_target", "targets_of"]

NAMES = (
    "stm32h5",
    "stm32h7",
    "stm32h7_dual_core",
    "stm32f2",
    "stm32f4",
    "stm32f7",
    "esp32",
    "picosdk",
    "rt1020",
    "rt1050",
    "rt1060",
    "rt1064",
    "rt1170",
    "mcxn947",
    "rw612",
    "u2a6",
    "u2a8",
    "u2a16",
    "ch32v307",
    "custom",
)
"""In the order in which they are told, that of Mongoose's list."""

TARGETS = tuple(sorted(STM32 + NXP + OTHERS, key=lambda target: NAMES.index(target.name)))
"""Every part variant, those of a name together."""

_STM32_LINE = len("STM32F429")


def targets_of(name: str) -> tuple[Target, ...]:
    """The parts of that name, whatever its case.

    Raises:
        ConfigError: there is no such name; the message lists those that there are.
    """
    found = tuple(target for target in TARGETS if target.name == name.lower())
    if not found:
        raise ConfigError(f"there is no target {name}; there are {', '.join(NAMES)}")
    return found


def find_target(name: str, part: str | None = None) -> Target:
    """One part variant.

    Args:
        name: of the target, whatever its case.
        part: of the variant, whatever its case, or another name of it; an STM32 is known by its full name, too:
            STM32F429ZIT6 is an STM32F429xI. None for the default.

    Raises:
        ConfigError: there is no such target or part; the message lists those that there are.
    """
    found = targets_of(name)
    if part is None:
        return next(target for target in found if target.default)
    wanted = part.upper()
    for spelling in (wanted, _without_package(wanted)):
        for target in found:
            if spelling in (target.part.upper(), *target.aliases):
                return target
    raise ConfigError(f"{found[0].name} has no part {part}; it has {', '.join(target.part for target in found)}")


def _without_package(part: str) -> str:
    """STM32F429ZIT6 → STM32F429XI, STM32F429ZGT6-DUAL → STM32F429XG-DUAL; whatever else, as it is."""
    order, dash, mode = part.partition("-")
    if not order.startswith("STM32") or len(order) < _STM32_LINE + 2:
        return part
    return f"{order[:_STM32_LINE]}X{order[_STM32_LINE + 1]}{dash}{mode}"
