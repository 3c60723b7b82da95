"""The slot selector that speaks to U-Boot: a convention of `mgota.core.bootvars` in its environment."""

from mgota.linux.ubootenv import UbootEnvironment
from mgota.linux.variables import VariablesSelector

__all__ = ["UbootEnvironment", "UbootSelector"]


class UbootSelector(VariablesSelector):
    """Selects by U-Boot's environment; implements `Selector`. Takes a `UbootEnvironment` and a convention."""
