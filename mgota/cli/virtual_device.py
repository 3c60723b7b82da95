"""A virtual device: a chip, or two slots as files, that boots again and again inside this process.

    out of reset ──► boot decision ──► serve, and watch the trial ──► reset, or the watchdog bites ─┐
         ▲                                                                                         │
         └─────────────────────────────────────────────────────────────────────────────────────────┘

This is what an application on a real device does, except for `power_on`: there, a reset ends the process, and the boot
loader or the chip starts it again. Rules:
- nothing survives a reset but flash, option bytes and boot record: every boot makes its `Device` anew;
- the listening socket belongs to the world around the device: who connects during a reset just waits;
- killing the process is a power cut.
"""

import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from mgota.cli.chip_files import ChipFiles
from mgota.core.record import Outcome
from mgota.device import Device
from mgota.errors import LinkError, OtaError, UpdateRunningError
from mgota.flash.files import FileLock
from mgota.flash.virtual import VirtualReset, VirtualWatchdog
from mgota.health import Check
from mgota.linux.names import LAUNCHER, LOCK, STATE
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.trial import boot_check, run_trial

if TYPE_CHECKING:
    from mgota.flash.targets.table import Target

log = logging.getLogger("mgota.virtual")

Serving = Callable[[Device], AbstractAsyncContextManager[object]]
"""How a device is reached while it runs: `mgota.transports.http.serve`, its options given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VirtualDevice:
    """A device and the hardware around it.

    Args:
        device: as a factory describes it.
        latch: out of reset, the slot that is selected becomes the running one.
        reset: its reset line.
        watchdog: what bites when it is not fed.
        power: held while it runs: one process at a time is this device, and has each of its files.
        checks: what has to be so before an image on trial is committed; none leaves that to others.
        beside: what goes on while it has power, over all of its boots.
        patience: seconds before a chip is looked for again that was away at a later boot.
    """

    device: Device
    latch: Callable[[], Awaitable[object]]
    reset: VirtualReset
    watchdog: VirtualWatchdog
    power: tuple[FileLock, ...]
    checks: tuple[Check, ...] = ()
    beside: Callable[[], Coroutine[Any, Any, None]] = anyio.sleep_forever
    patience: float = 5.0


def two_slots(directory: Path, **options: Any) -> VirtualDevice:
    """Two slots as files. Blocks.

    Args:
        directory: made if it is missing.
        options: further arguments of `Device`.
    """
    reset, watchdog, slots = VirtualReset(), VirtualWatchdog(), FileSlots(directory)
    state, lock = FileState(slots.directory / STATE), FileLock(slots.directory / LOCK)
    device = Device(flash=slots, state=state, watchdog=watchdog, reset=reset, lock=lock, **options)
    power = FileLock(slots.directory / LAUNCHER)
    return VirtualDevice(device=device, latch=slots.boot, reset=reset, watchdog=watchdog, power=(power,))


def chip(target: "Target", flash: Path, state: Path, **options: Any) -> VirtualDevice:
    """A chip of the table. Blocks.

    Args:
        target: which one.
        flash: the raw array; made if it is missing.
        state: the boot record; a journal of the gateway lies beside it, as STATE.journal.
        options: further arguments of `Device`.

    Raises:
        ConfigError: these files are not those of one such chip.
        UpdateRunningError: another process is this chip.
    """
    from mgota.flash.targets.virtual import virtual_target  # noqa: PLC0415  `serve --slots` stays small without

    files, reset = ChipFiles(f"{target.name} {target.part}", flash.resolve(), state.resolve()), VirtualReset()
    store = FileState(files.state)
    with files.claimed():
        found = virtual_target(target, files.flash, journal=files.journal, state=store, reset=reset)
    parts: dict[str, Any] = {"flash": found.backend, "state": store, "watchdog": found.watchdog, "lock": found.lock}
    device = Device(reset=reset, **parts, **options)
    return VirtualDevice(device=device, latch=found.boot, reset=reset, watchdog=found.watchdog, power=files.power)


@contextmanager
def chip_seen(target: "Target", flash: Path, state: Path, **options: Any) -> Generator[Device]:
    """A chip of the table as it would come out of reset now. A copy: another process may run the chip itself. Blocks.

    Args:
        target: which one.
        flash: the raw array.
        state: the boot record.
        options: further arguments of `Device`.

    Raises:
        ConfigError: these files are not those of one such chip.
    """
    with ChipFiles(f"{target.name} {target.part}", flash.resolve(), state.resolve()).copied() as files:
        yield chip(target, files.flash, files.state, **options).device


async def power_on(machine: VirtualDevice, serving: Serving, ready: Callable[[], None]) -> None:
    """Run until cancelled, which is pulling the plug.

    Args:
        machine: what boots.
        serving: how it is reached.
        ready: called at every boot that goes on, before the device serves.

    Raises:
        UpdateRunningError: another process is this device, or holds it at its first boot.
        OtaError: the device cannot boot.
    """
    with powered(machine):
        failure: OtaError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(machine.beside)
            try:
                await _lives(machine, serving, ready)
            except OtaError as exc:  # outside of the task group, which would wrap it
                failure = exc
                tasks.cancel_scope.cancel()
        if failure:
            raise failure


async def _lives(machine: VirtualDevice, serving: Serving, ready: Callable[[], None]) -> None:
    """Boot after boot."""
    booted = False

    def goes_on() -> None:
        nonlocal booted
        booted = True
        ready()

    while True:
        machine.reset.clear()
        machine.watchdog.restart()
        try:
            await machine.latch()
            await _until_reset(machine, serving, goes_on)
        except UpdateRunningError as exc:
            if not booted:
                raise
            log.warning("the device cannot boot yet: %s", exc)  # it is reached again as soon as it can
        except LinkError as exc:
            if not booted:
                raise
            log.error("the chip is away: %s", exc)  # noqa: TRY400  no news in the traceback
            await anyio.sleep(machine.patience)


@contextmanager
def powered(machine: VirtualDevice) -> Generator[None]:
    """Be this device, alone.

    Raises:
        UpdateRunningError: another process is.
    """
    with ExitStack() as held:
        for lock in machine.power:
            try:
                held.enter_context(lock.hold())
            except UpdateRunningError as exc:
                raise UpdateRunningError(f"another process runs this device: {lock.path} is locked") from exc
        yield


async def _until_reset(machine: VirtualDevice, serving: Serving, ready: Callable[[], None]) -> None:
    """From one reset to the next."""
    failure: OtaError | None = None
    async with anyio.create_task_group() as life:

        async def end_with(event: Callable[[], Awaitable[None]]) -> None:
            await event()
            life.cancel_scope.cancel()

        life.start_soon(end_with, machine.reset.wait)
        life.start_soon(end_with, machine.watchdog.expired)
        try:
            device = replace(machine.device)  # a new one: what the old one knew of itself went with the reset
            await boot_check(device)  # to select another slot is to reset: then it does not return
            ready()
            async with serving(device):
                if await run_trial(device, checks=machine.checks) is Outcome.COMMITTED:
                    await machine.watchdog.disarm()  # by whomever; one that cannot be stopped bites all the same
                await anyio.sleep_forever()
        except OtaError as exc:  # outside of the task group, which would wrap it
            failure = exc
            life.cancel_scope.cancel()
    if failure:
        raise failure
