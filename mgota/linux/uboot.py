"""The slot selector that speaks to U-Boot: a convention of `mgota.core.bootvars` in its environment."""

from anyio import to_thread

from mgota.core.bootvars import BootCount, BootOrder
from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError
from mgota.linux.ubootenv import UbootEnvironment


class UbootSelector:
    """Selects by U-Boot's environment; implements `Selector`.

    Args:
        environment: where it lies.
        convention: what the board's boot script reads.
    """

    def __init__(self, environment: UbootEnvironment, convention: BootOrder | BootCount) -> None:
        self.environment = environment
        self.convention = convention

    async def selected_slot(self) -> Slot | None:
        """The slot that the boot script starts next.

        Raises:
            FlashError: the environment cannot be read.
        """
        return self.convention.selected(await to_thread.run_sync(self.environment.variables))

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Change the variables, in one write.

        Raises:
            SelectError: the environment could not be written.
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
            FlashError: the environment cannot be read.
        """
        return self.convention.tried(await to_thread.run_sync(self.environment.variables), slot)

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Begin the counts anew. Nothing is written where nothing was counted.

        Raises:
            FlashError: the environment could not be written.
        """
        await to_thread.run_sync(self._settle, running, fallback)

    async def recover(self) -> None:
        """Nothing to do: a change is one write."""

    async def selftest(self) -> None:
        """Write the environment once more as it is, and read it back.

        Raises:
            OtaError: a selection would not work, and why.
        """
        await to_thread.run_sync(self.environment.rewrite)
        if await self.selected_slot() is None:
            raise SelectError("U-Boot's environment selects neither of the two slots: does its script use other names?")
