"""What a boot script keeps in the variables of a bootloader: which slot it starts, and what it does when that fails.

Conventions, each as a pure function from variables to changes of them; an empty answer means: nothing to do. Both
say four things, and say each in one write, for a cut between two would leave something that nobody meant:

| | `select` the other slot | `select` the running slot | `settle` | `tried` |
|---|---|---|---|---|
| means | it boots next, the running one is the way back | nothing else may boot | this boot was good | given up |
| `BootOrder` | "B A", both LEFT full | "A", LEFT full, other LEFT 0 | LEFT full | first, and its LEFT is 0 |
| `GrubOrder` | "B A", both OK=1 TRY=0 | "A", OK=1 TRY=0, other OK=0 | TRY=0 | first, and its TRY is 1 |
| `BootCount` | slot, upgrade_available=1, bootcount=0 | slot, 0, 0 | 0, 0 | bootcount > bootlimit |

Rules:
- `select` of the running slot comes before the first erase of the other one (`mgota.core.boot`): from then on no count
  that runs out may start what is half written there;
- a proven image in the other slot is a way back: `settle` says so, and offers it to the boot script again;
- numbers of BOOT_x_LEFT are hexadecimal, as U-Boot's `setexpr` makes them; those of bootcount are decimal.

Sources: RAUC, "Integration: U-Boot" and contrib/uboot.sh, contrib/grub.conf; U-Boot, doc/README.bootcount.
RAUC changes its variables in two writes; SWUpdate's documentation says why that can brick.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mgota.core.geometry import Slot
from mgota.errors import ConfigError

Variables = Mapping[str, str]
Changes = dict[str, str | None]


class Convention(Protocol):
    """How a boot script is told."""

    def selected(self, variables: Variables) -> Slot | None:
        """The slot that it starts next; None if that is neither."""
        ...

    def select(self, variables: Variables, slot: Slot, *, running: Slot) -> Changes:
        """What to change so that it starts `slot` next."""
        ...

    def settle(self, variables: Variables, running: Slot, *, fallback: bool) -> Changes:
        """What to change because this boot was good.

        Args:
            variables: as they are.
            running: the slot that runs.
            fallback: the other slot holds a proven image.
        """
        ...

    def tried(self, variables: Variables, slot: Slot) -> bool:
        """Whether it tried `slot` since that was selected, and gave it up."""
        ...


def _check_words(names: Mapping[Slot, str], variable: str) -> None:
    one, two = (names[slot] for slot in Slot)
    if one == two or not all(name and not set(name) & set(" =\0\n") for name in (one, two)):
        raise ConfigError(f"{variable} needs two names for its slots, and {one!r} and {two!r} are none")


def _names() -> dict[Slot, str]:
    return {Slot.A: "A", Slot.B: "B"}


@dataclass(frozen=True)
class BootOrder:
    """RAUC's convention: BOOT_ORDER, and for each name in it how many attempts are left, BOOT_x_LEFT.

    The boot script starts the first name of which attempts are left, after it has counted one of them off.

    Args:
        names: of the slots in BOOT_ORDER. Other names in it, such as a rescue system's, stay behind them.
        attempts: that a slot gets until it counts as one that does not boot.

    Raises:
        ConfigError: the names are equal or none, or the attempts are not between 1 and 15.
    """

    names: Mapping[Slot, str] = field(default_factory=_names)
    attempts: int = 3

    def __post_init__(self) -> None:
        _check_words(self.names, "BOOT_ORDER")
        if not 1 <= self.attempts <= 15:
            raise ConfigError(f"a slot gets between 1 and 15 attempts to boot, not {self.attempts}")

    def selected(self, variables: Variables) -> Slot | None:
        """The slot that the boot script starts next."""
        slots = {name: slot for slot, name in self.names.items()}
        return next((slots.get(name) for name in self._order(variables) if self._left(variables, name)), None)

    def select(self, variables: Variables, slot: Slot, *, running: Slot) -> Changes:
        """Make `slot` the first; the other one stays behind it only as the way back to what runs."""
        other = self.names[slot.other]
        back = slot is not running
        first = [self.names[slot], other] if back else [self.names[slot]]
        order = first + [name for name in self._order(variables) if name not in self.names.values()]
        lefts = {slot: self.attempts, slot.other: self.attempts if back else 0}
        return self._changes(variables, order, lefts)

    def settle(self, variables: Variables, running: Slot, *, fallback: bool) -> Changes:
        """Give the running slot its attempts back; behind it stands the other one, if there is something to boot."""
        order = self._order(variables)
        name, other = self.names[running], self.names[running.other]
        lefts = {running: self.attempts}
        if not fallback:
            order, lefts[running.other] = [each for each in order if each != other], 0
        elif name in order[:1]:
            order = [name, other, *(each for each in order if each not in (name, other))]
            lefts[running.other] = self.attempts
        if name not in order:
            order.append(name)
        return self._changes(variables, order, lefts)

    def tried(self, variables: Variables, slot: Slot) -> bool:
        """Whether the slot still stands first, and has no attempts left."""
        name = self.names[slot]
        return name in self._order(variables)[:1] and not self._left(variables, name)

    def _order(self, variables: Variables) -> list[str]:
        return list(dict.fromkeys(variables.get("BOOT_ORDER", " ".join(self.names.values())).split()))

    def _left(self, variables: Variables, name: str) -> int:
        found = variables.get(_left_of(name))
        return self.attempts if found is None else _number(found, 16)  # the boot script begins a missing one in full

    def _changes(self, variables: Variables, order: list[str], lefts: Mapping[Slot, int]) -> Changes:
        # As long as with both names in it: what follows in the environment keeps its place, and its sector.
        text = " ".join(order).ljust(len(" ".join(self.names.values())))
        wanted: Changes = {"BOOT_ORDER": text}
        wanted |= {_left_of(self.names[slot]): f"{left:x}" for slot, left in lefts.items()}
        if variables.get("BOOT_ORDER", "").split() == order:
            del wanted["BOOT_ORDER"]
        return {name: value for name, value in wanted.items() if variables.get(name) != value}


def _left_of(name: str) -> str:
    return f"BOOT_{name}_LEFT"


@dataclass(frozen=True)
class GrubOrder:
    """RAUC's convention for GRUB: ORDER, and for each name in it x_OK and x_TRY.

    The boot script starts the first name that is OK and was not tried, after it has set its x_TRY to 1. So a slot gets
    one attempt, and every good boot has to say so.

    Args:
        names: of the slots in ORDER. Other names in it stay behind them.

    Raises:
        ConfigError: the names are equal or none.
    """

    names: Mapping[Slot, str] = field(default_factory=_names)

    def __post_init__(self) -> None:
        _check_words(self.names, "ORDER")

    def selected(self, variables: Variables) -> Slot | None:
        """The slot that the boot script starts next."""
        slots = {name: slot for slot, name in self.names.items()}
        return next((slots.get(name) for name in self._order(variables) if self._boots(variables, name)), None)

    def select(self, variables: Variables, slot: Slot, *, running: Slot) -> Changes:
        """Make `slot` the first; the other one stays behind it only as the way back to what runs."""
        back = slot is not running
        first = [self.names[slot], self.names[slot.other]] if back else [self.names[slot]]
        order = first + [name for name in self._order(variables) if name not in self.names.values()]
        return self._changes(variables, order, {slot: True, slot.other: back})

    def settle(self, variables: Variables, running: Slot, *, fallback: bool) -> Changes:
        """Let the running slot be tried again; behind it stands the other one, if there is something to boot."""
        order = self._order(variables)
        name, other = self.names[running], self.names[running.other]
        good = {running: True}
        if not fallback:
            order, good[running.other] = [each for each in order if each != other], False
        elif name in order[:1]:
            order = [name, other, *(each for each in order if each not in (name, other))]
            good[running.other] = True
        if name not in order:
            order.append(name)
        return self._changes(variables, order, good)

    def tried(self, variables: Variables, slot: Slot) -> bool:
        """Whether the slot still stands first, and was tried."""
        name = self.names[slot]
        return name in self._order(variables)[:1] and not self._boots(variables, name)

    def _order(self, variables: Variables) -> list[str]:
        return list(dict.fromkeys(variables.get("ORDER", " ".join(self.names.values())).split()))

    @staticmethod
    def _boots(variables: Variables, name: str) -> bool:
        return variables.get(f"{name}_OK", "1") == "1" and variables.get(f"{name}_TRY", "0") == "0"

    def _changes(self, variables: Variables, order: list[str], good: Mapping[Slot, bool]) -> Changes:
        wanted: Changes = {"ORDER": " ".join(order).ljust(len(" ".join(self.names.values())))}
        for slot, is_good in good.items():
            wanted |= {f"{self.names[slot]}_OK": "1" if is_good else "0", f"{self.names[slot]}_TRY": "0"}
        if variables.get("ORDER", "").split() == order:
            del wanted["ORDER"]
        return {name: value for name, value in wanted.items() if variables.get(name) != value}


@dataclass(frozen=True)
class BootCount:
    """U-Boot's own convention: it counts boots while `upgrade_available` is 1, and runs `altbootcmd` beyond the limit.

    What `altbootcmd` does is the board's: start the other slot than `variable` names, and say so there.

    Args:
        variable: that names the slot.
        names: its values.
        limit: boots of a new slot until `altbootcmd` runs, where the environment has no `bootlimit`.

    Raises:
        ConfigError: the names are equal or none, or there is no limit.
    """

    variable: str = "boot_slot"
    names: Mapping[Slot, str] = field(default_factory=_names)
    limit: int = 1

    def __post_init__(self) -> None:
        one, two = (self.names[slot] for slot in Slot)
        if one == two or not one or not two or not self.variable:
            raise ConfigError(f"{self.variable or 'a variable'} needs a value for each slot, not {one!r} and {two!r}")
        if self.limit < 1:
            raise ConfigError("without a limit of boots the bootloader never goes back")

    def selected(self, variables: Variables) -> Slot | None:
        """The slot that the variable names."""
        slots = {name: slot for slot, name in self.names.items()}
        return slots.get(variables.get(self.variable, ""))

    def select(self, variables: Variables, slot: Slot, *, running: Slot) -> Changes:
        """Name the slot; boots are counted if it is not the running one."""
        counted = slot is not running
        wanted: Changes = {
            self.variable: self.names[slot],
            "upgrade_available": "1" if counted else "0",
            "bootcount": "0",
        }
        if counted and _number(variables.get("bootlimit", ""), 10) < 1:
            wanted["bootlimit"] = str(self.limit)
        return {name: value for name, value in wanted.items() if variables.get(name) != value}

    def settle(self, variables: Variables, running: Slot, *, fallback: bool) -> Changes:  # noqa: ARG002
        """Stop counting, if the running slot is the one that is named."""
        if self.selected(variables) is not running:
            return {}
        wanted: Changes = {"upgrade_available": "0", "bootcount": "0"}
        return {name: value for name, value in wanted.items() if _number(variables.get(name, "0"), 10)}

    def tried(self, variables: Variables, slot: Slot) -> bool:
        """Whether the count went beyond the limit, and was not begun anew since."""
        limit = _number(variables.get("bootlimit", ""), 10)
        del slot  # there is one count, and it counts the boots of what was selected last
        return bool(limit) and _number(variables.get("bootcount", ""), 10) > limit


def _number(text: str, base: int) -> int:
    """A number as bootloaders read it: what is none is 0."""
    try:
        return max(int(text, base), 0)
    except ValueError:
        return 0
