"""Slot selectors that keep variables for a boot script: in U-Boot's environment, or in GRUB's.

A convention of `mgota.core.bootvars` says which variables; a change of them is one write.
"""

from typing import Protocol

from anyio import to_thread

from mgota.core.bootvars import Convention
from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError
from mgota.linux.ubootenv import Change


class VariableStore(Protocol):
    """Where a bootloader keeps variables. Its calls block."""

    def variables(self) -> dict[str, str]:
        """All of them.

        Raises:
            FlashError: they cannot be read.
        """
        ...

    def change(self, change: Change) -> bool:
        """Change some, in one write; returns whether anything was written.

        Raises:
            FlashError: nothing was changed, or nobody knows.
        """
        ...

    def rewrite(self) -> None:
        """Write what is there once more, and read them back.

        Raises:
            FlashError: it did not work.
        """
        ...


class VariablesSelector:
    """Selects by variables; implements `Selector`.

    Args:
        environment: where they lie: a `UbootEnvironment`, a `GrubEnvironment`.
        convention: what the board's boot script reads.
    """

    def __init__(self, environment: VariableStore, convention: Convention) -> None:
        self.environment = environment
        self.convention = convention

    async def selected_slot(self) -> Slot | None:
        """The slot that the boot script starts next.

        Raises:
            FlashError: the variables cannot be read.
        """
        return self.convention.selected(await to_thread.run_sync(self.environment.variables))

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Change the variables, in one write.

        Raises:
            SelectError: the variables could not be written.
        """
        try:
            await to_thread.run_sync(self._select, slot, running)
        except FlashError as exc:
            raise SelectError(f"cannot select slot {slot}: {exc}") from exc

    def _select(self, slot: Slot, running: Slot) -> None:
        self.environment.change(lambda found: self.convention.select(found, slot, running=running))

    def _settle(self, running: Slot, fallback: bool) -> None:
        self.environment.change(lambda found: self.convention.settle(found, running, fallback=fallback))

    async def tried(self, slot: Slot) -> bool:
        """Whether the boot script gave the slot up.

        Raises:
            FlashError: the variables cannot be read.
        """
        return self.convention.tried(await to_thread.run_sync(self.environment.variables), slot)

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Begin the counts anew. Nothing is written where nothing was counted.

        Raises:
            FlashError: the variables could not be written.
        """
        await to_thread.run_sync(self._settle, running, fallback)

    async def recover(self) -> None:
        """Nothing to do: a change is one write."""

    async def selftest(self) -> None:
        """Write the variables once more as they are, and read them back.

        Raises:
            OtaError: a selection would not work, and why.
        """
        await to_thread.run_sync(self.environment.rewrite)
        if await self.selected_slot() is None:
            raise SelectError(
                "the bootloader's variables select neither of the two slots: does its script use other names?"
            )
