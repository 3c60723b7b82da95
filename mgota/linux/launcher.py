"""`mgota run`: the small stable process outside both slots that starts the program of the running one.

    while True:
        boot decision        under the lock: run, run on trial, or roll back; the selected slot is the running one
        start the program    {slot} in its command is the slot's path
        watch it             until it exits, hangs, asks for a reset, or its trial's window ends
        end it               and whatever it started

Rules:
- what happens to a program is decided in `mgota.linux.supervise`, what boots in `mgota.core.boot`; here it is done;
- nothing is kept in memory that matters: killed at any moment, the next launcher decides by the record;
- the program dies with the launcher.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State
from mgota.device import Device
from mgota.errors import ConfigError, OtaError, SelectError, UpdateRunningError
from mgota.flash.files import FileLock
from mgota.linux import environment, watching
from mgota.linux.child import Child, adopt_orphans
from mgota.linux.environment import LauncherInfo, file_device
from mgota.linux.lifelong import LifelongWatchdog, left_in_order
from mgota.linux.listener import Listener, Systemd, listen
from mgota.linux.names import LAUNCHER
from mgota.linux.notify import NOTIFY_SOCKET, RESET, WATCHDOG_PID, WATCHDOG_USEC, asks
from mgota.linux.supervise import COURSES, Event, Pulse, next_pause, on_trial, pause_after
from mgota.linux.watching import Waiter
from mgota.trial import boot_check

log = logging.getLogger("mgota.launcher")

PLACEHOLDER = "{slot}"

_MAX_BOOTS = 20
"""Boot decisions in a row that each select another slot; the boot table settles in fewer."""

_TAKEN = 1.0  # seconds to wait for the launcher's lock: who looks at it holds it for less
_RETRY = 0.2  # seconds between two attempts to get a lock


async def launch(
    directory: str | os.PathLike[str],
    command: Sequence[str],
    *,
    window: float = 60.0,
    watchdog: float | None = 10.0,
    grace: float = 5.0,
    environ: Mapping[str, str] = os.environ,
    guard: LifelongWatchdog | None = None,
    **options: Any,
) -> int:
    """Run the program of the running slot until SIGTERM or SIGINT. Call it in the main thread.

    Args:
        directory: of the device; made if it is missing.
        command: the program and its arguments; `{slot}` in any of them is the running slot's path.
        window: seconds that an image on trial has until it must be committed.
        watchdog: seconds between two WATCHDOG=1 of the program, at most, from its first one on; None or 0 counts none.
        grace: seconds from SIGTERM to SIGKILL when the program is asked to end.
        environ: the launcher's environment, which the program inherits.
        guard: the board's watchdog, fed as long as the launcher lives and its program, once it feeds, does so in time.
        options: further arguments of `Device`: `verifier`, `tries`, `on_unknown`; `floor` and `hardware`, which go to
            the program, too.

    Returns:
        The exit status: 0, when the launcher was asked to end.

    Raises:
        UpdateRunningError: another launcher runs in this directory.
        ConfigError: there is no image in the running slot, or no command.
        FlashError: the first boot decision cannot be carried out.
    """
    if not command:
        raise ConfigError("what is there to run? name a command after --")
    path = _prove(directory, {**options, "window": window})
    systemd = Systemd.from_environment(environ)
    adopt_orphans()
    async with _seat(path):
        with listen(path) as listener:
            launcher = Launcher(
                path,
                command,
                listener,
                systemd,
                environ,
                window=window,
                watchdog=watchdog,
                grace=grace,
                options=options,
            )
            await _until_asked(launcher, systemd, guard)
    return 0


def _prove(directory: str | os.PathLike[str], options: Mapping[str, Any]) -> Path:
    """Make the directory, and find wrong options before anything is locked."""
    file_device(directory, **options)
    return Path(directory).absolute()


async def _until_asked(launcher: "Launcher", systemd: Systemd, guard: LifelongWatchdog | None) -> None:
    """Run until SIGTERM or SIGINT; systemd and the board's watchdog are fed until the program has ended."""
    failure: OtaError | None = None
    async with left_in_order(guard), anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope:
            tg.start_soon(systemd.keep_fed)
            if guard:
                tg.start_soon(partial(guard.stand_guard, alive=lambda: systemd.lives(launcher.timeout)))
            tg.start_soon(_cancel_when_asked, scope)
            try:
                await launcher.run(guard.last_reset if guard else None)
            except OtaError as exc:
                failure = exc  # raised below: the task group would wrap it
        tg.cancel_scope.cancel()
    if failure:
        raise failure


async def _cancel_when_asked(scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("%s: the launcher ends", number.name)
            scope.cancel()


@asynccontextmanager
async def _seat(directory: Path) -> AsyncGenerator[None]:
    """Being the launcher of this directory: there is one."""
    lock = FileLock(directory / LAUNCHER)
    deadline = time.monotonic() + _TAKEN
    while True:
        try:
            held = lock.hold()
            held.__enter__()
            break
        except UpdateRunningError as exc:
            if time.monotonic() >= deadline:
                raise UpdateRunningError(f"another launcher runs in {directory}") from exc
        await anyio.sleep(_RETRY)
    try:
        yield
    finally:
        held.__exit__(None, None, None)


class Launcher:
    """One launcher at work. Made by `launch`.

    Args:
        directory: of the device.
        command: with the placeholder in it.
        listener: where the program's notices come to.
        systemd: who started the launcher.
        environ: the launcher's environment.
        window: seconds of a trial.
        watchdog: seconds between two feeds.
        grace: seconds between SIGTERM and SIGKILL.
        options: further arguments of `Device`.
    """

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        listener: Listener,
        systemd: Systemd,
        environ: Mapping[str, str],
        *,
        window: float,
        watchdog: float | None,
        grace: float,
        options: Mapping[str, Any],
    ) -> None:
        self._directory = directory
        self._command = command
        self._listener = listener
        self._systemd = systemd
        self._environ = environ
        self._options: dict[str, Any] = {**options, "window": window}
        self._window = window
        self.timeout = min(filter(None, (watchdog, systemd.timeout)), default=None) if watchdog else None
        self._grace = grace

    async def run(self, reason: str | None = None) -> None:
        """Turn after turn, until cancelled.

        Args:
            reason: why the machine was reset before, if that is known.

        Raises:
            OtaError: the first boot decision cannot be carried out. Later ones are tried again.
        """
        try:
            self._say(None, None)
            pause, why = await self._turn(0.0, reason)
            while True:
                if pause:
                    await self._pause(pause)
                try:
                    pause, why = await self._turn(pause, why)
                except OtaError as exc:
                    log.critical("%s", exc)
                    pause = next_pause(pause)
        finally:
            self._systemd.stopping()

    async def _turn(self, last: float, why: str | None) -> tuple[float, str | None]:
        """Boot decision, start, watch, end. Returns the pause before the next turn, and why this one is over."""
        device = await self._boot(why)
        slot = await device.flash.running_slot()
        until = device.live.trial_until
        started = time.monotonic()
        event, why = await self._supervise(device, slot, until)
        record, _ = await device.load()
        # A trial that could not even be settled at boot is run like a CONFIRMED image: without a hurry.
        trial = until is not None and on_trial(record, slot)
        pause = pause_after(event, trial=trial, ran=time.monotonic() - started, last=last)
        return pause, why if trial else None

    async def _boot(self, why: str | None) -> Device:
        """Decide what boots, as often as it takes; each time the link is read anew."""
        before: BootRecord | None = None
        for turn in range(_MAX_BOOTS):
            device = file_device(self._directory, **self._options)
            if not turn:
                before = await self._look(device)
            if await self._decide(device, why) is not Verdict.RESET:
                await self._refuse_empty(device)
                self._tell_change(before, (await device.load())[0])
                return device
        raise SelectError(f"no slot can be selected for good in {self._directory}")

    async def _look(self, device: Device) -> BootRecord | None:
        record, readable = await device.load()
        if record is None and readable:
            await self._refuse_empty(device)  # before a first start takes nothing for an image
        return record

    async def _decide(self, device: Device, why: str | None) -> Verdict:
        told = False
        while True:
            try:
                return await boot_check(device, reason=why)
            except UpdateRunningError as exc:
                if not told:
                    log.warning("waiting: %s", exc)
                    self._systemd.status("waiting for an update to end")
                told = True
            await anyio.sleep(_RETRY)

    async def _refuse_empty(self, device: Device) -> None:
        slot = await device.flash.running_slot()
        if not await device.flash.extent(slot):
            raise ConfigError(f"slot {slot} is empty: write the first image with `mgota provision`")
        record, _ = await device.load()
        if record and record.image(slot) is None:  # a `mgota provision` was refused or cut off
            raise ConfigError(f"what lies in slot {slot} is no image: write one with `mgota provision`")

    def _tell_change(self, before: BootRecord | None, after: BootRecord | None) -> None:
        if before is None or after is None or after.revision == before.revision or after.state is not State.CONFIRMED:
            return
        slot = before.trial
        if after.outcome is Outcome.ROLLED_BACK and slot:
            log.warning("slot %s was rolled back: %s", slot, after.reason)
        elif after.outcome is Outcome.STUCK:
            log.critical("slot %s failed its trial and stays: %s", slot, after.reason)

    async def _supervise(self, device: Device, slot: Slot, until: float | None) -> tuple[Event, str]:
        """The life of one program. Returns why it is over, as a value and in words."""
        await self._announce(device, slot, until)
        try:
            child = Child(self._command_of(slot), self._environment_of(slot, until))
        except (OSError, ValueError, subprocess.SubprocessError) as exc:
            log.warning("slot %s: it cannot be started: %s", slot, exc)
            return Event.EXITED, f"it cannot be started: {exc}"
        try:
            event = await self._watch(device, child, slot, until)
        except BaseException:
            await self._leave(device, child, slot, until)
            raise
        how = await child.end(self._grace if COURSES[event].gently else 0)
        self._fell_silent()
        # What is left in the socket came from a program that is dead: its last wish counts, nothing else does.
        if any(asks(notice, RESET) for notice in self._listener.pending()) and event is Event.EXITED:
            event = Event.RESET
        record, _ = await device.load()
        return event, self._tell_end(event, slot, until if on_trial(record, slot) else None, how)

    async def _watch(self, device: Device, child: Child, slot: Slot, until: float | None) -> Event:
        pulse = Pulse(self.timeout)
        waiters: list[Waiter] = [
            lambda: watching.exited(child),
            lambda: watching.asked(self._listener, pulse, self._systemd),
            lambda: watching.hung(pulse),
        ]
        if until is not None:
            waiters.append(lambda: watching.expired(until, lambda: self._is_committed(device, slot)))
        return await watching.first(*waiters)

    async def _is_committed(self, device: Device, slot: Slot) -> bool:
        record, _ = await device.load()
        if record is None or on_trial(record, slot):
            return False
        await self._announce(device, slot, None)
        return True

    async def _leave(self, device: Device, child: Child, slot: Slot, until: float | None) -> None:
        """The launcher ends: so does its program."""
        with anyio.CancelScope(shield=True):
            self._systemd.status("stopping")
            await child.end(self._grace)
            self._fell_silent()
            record, _ = await device.load()
            if until is not None and on_trial(record, slot):
                log.warning("slot %s was not committed yet: the next start rolls it back", slot)

    def _fell_silent(self) -> None:
        self._systemd.feeds_itself = True
        self._say(None, None)

    async def _pause(self, seconds: float) -> None:
        log.info("the program is started again in %g s", seconds)
        self._systemd.status(f"starting again in {seconds:g} s")
        with anyio.move_on_after(seconds):
            while not asks(await self._listener.receive(), RESET):
                pass

    async def _announce(self, device: Device, slot: Slot, until: float | None) -> None:
        if until is None:
            line = f"running slot {slot} ({(await device.status()).state})"
        else:
            line = f"trying slot {slot}: it has {self._window:g} s to be committed"
        log.info("%s", line)
        self._systemd.status(line)
        self._say(slot, until)

    def _tell_end(self, event: Event, slot: Slot, until: float | None, how: str) -> str:
        if until is not None and event is Event.RESET and time.monotonic() >= until:
            event = Event.WINDOW  # the program itself saw its time run out first
        match event:
            case Event.EXITED:
                why = f"it {how}"
            case Event.HUNG:
                why = f"it hung: no sign of life for {self.timeout:g} s"
            case Event.WINDOW:
                why = f"it was not committed within {self._window:g} s"
            case Event.RESET:
                why = "it asked for a reset"
        log.log(logging.INFO if event is Event.RESET else logging.WARNING, "slot %s: %s", slot, why)
        return why

    def _say(self, slot: Slot | None, until: float | None) -> None:
        """Tell other processes what runs."""
        info = LauncherInfo(os.getpid(), self._listener.address, slot, until)
        try:
            (self._directory / LAUNCHER).write_bytes(info.encode())
        except OSError as exc:
            log.warning("other processes cannot see what runs: %s", exc)

    def _command_of(self, slot: Slot) -> list[str]:
        return [part.replace(PLACEHOLDER, str(self._directory / slot.value)) for part in self._command]

    def _environment_of(self, slot: Slot, until: float | None) -> dict[str, str]:
        ours = {NOTIFY_SOCKET, WATCHDOG_PID, WATCHDOG_USEC, environment.TRIAL_UNTIL}
        made = {key: value for key, value in self._environ.items() if key not in ours}
        made |= {
            environment.DIR: str(self._directory),
            environment.SLOT: slot.value,
            environment.WINDOW: repr(self._window),
            NOTIFY_SOCKET: self._listener.address,
        }
        for name, option in ((environment.FLOOR, "floor"), (environment.HARDWARE, "hardware")):
            if self._options.get(option):
                made[name] = self._options[option]
        if until is not None:
            made[environment.TRIAL_UNTIL] = repr(until)
        if self.timeout:
            made[WATCHDOG_USEC] = str(max(round(self.timeout * 1e6), 1))
        return made
