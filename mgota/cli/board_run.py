"""`mgota run` on a board: what happens once at every boot, and then until the machine ends.

    boot decision        run, run on trial, or select the other slot and start again
    serve                over HTTP, by a broker, by asking an update server: whatever the configuration says
    watch the trial      until the health check says yes often enough, or somebody commits; else the watchdog bites

Rules:
- it is the board, alone: a second one is refused;
- a watchdog that is fed always is armed before the boot is decided, and stopped when this ends in order;
- asked to end on trial, it ends, and the watchdog stays armed: an image whose updater was stopped is not proven.
"""

import logging
import os
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial

import anyio

from mgota.cli.board import BrokerWay, http_serving, pull_serving
from mgota.cli.board_health import checks_of
from mgota.cli.checkup import RUN
from mgota.cli.listening import bound_listener, until_terminated, url_of
from mgota.cli.reports import reporting
from mgota.cli.virtual_device import Serving
from mgota.cli.ways import together
from mgota.core.boot import Verdict
from mgota.core.config import Config
from mgota.core.record import Outcome
from mgota.core.sections import HealthSection
from mgota.device import Device
from mgota.errors import OtaError, UpdateRunningError
from mgota.flash.files import FileLock
from mgota.linux.configured import board_of, watchdog_of
from mgota.linux.lifelong import LifelongWatchdog, left_in_order
from mgota.linux.listener import Systemd
from mgota.linux.notify import READY
from mgota.linux.watchdog import HardwareWatchdog
from mgota.trial import boot_check, run_trial

log = logging.getLogger("mgota.board")

Trial = Callable[[], Awaitable[Outcome | None]]
"""Watches the trial, if there is one."""

_TAKEN = 1.0  # seconds to wait for the lock: `mgota doctor` looks at it for less


async def run_board(config: Config) -> int:
    """Be the board until SIGTERM.

    Raises:
        UpdateRunningError: another process is.
        OtaError: the configuration does not fit, or the boot cannot be decided.
    """
    systemd = Systemd.from_environment(os.environ)
    watchdog = watchdog_of(config, os.environ)
    lifelong = watchdog if isinstance(watchdog, LifelongWatchdog) else None
    device = board_of(config, watchdog)
    reason = watchdog.last_reset if isinstance(watchdog, HardwareWatchdog | LifelongWatchdog) else None
    broker = BrokerWay(config.mqtt)
    checks, health = checks_of(config, device, broker), config.health or HealthSection()
    trial = partial(run_trial, device, checks=checks, consecutive=health.consecutive, interval=health.interval)
    failure: OtaError | None = None
    with ExitStack() as held:
        await _seat(held, config.device.lock + RUN)
        serving = held.enter_context(_ways(config, broker))
        async with left_in_order(lifelong), anyio.create_task_group() as tasks:
            tasks.start_soon(until_terminated, tasks.cancel_scope)
            tasks.start_soon(systemd.keep_fed)
            if lifelong:
                tasks.start_soon(partial(lifelong.stand_guard, resetting=lambda: device.live.resetting))
            try:
                await _live(device, trial, serving, systemd, reason)
            except OtaError as exc:  # raised below: the task group would wrap it
                failure = exc
            tasks.cancel_scope.cancel()
    systemd.stopping()
    if failure:
        raise failure
    return 0


async def _seat(held: ExitStack, path: str) -> None:
    deadline = time.monotonic() + _TAKEN
    while True:
        try:
            held.enter_context(FileLock(path).hold())
            return
        except UpdateRunningError as exc:
            if time.monotonic() >= deadline:
                raise UpdateRunningError("another `mgota run` is this board") from exc
        await anyio.sleep(0.1)


@contextmanager
def _ways(config: Config, broker: BrokerWay) -> Generator[Serving]:
    """However the device is reached. The socket is bound before the boot is decided: who connects just waits."""
    with ExitStack() as held:
        ways: list[Serving] = []
        if http := config.http:
            listener = held.enter_context(bound_listener(http.host, http.port))
            ways.append(http_serving(http, listener))
            log.info("listening on %s", url_of(listener, secure=http.cert is not None))
        if config.mqtt:
            ways.append(broker.serving)
        if config.pull:
            ways.append(pull_serving(config, config.pull))
        yield together([*ways, reporting(config, broker)])


async def _live(device: Device, trial: Trial, serving: Serving, systemd: Systemd, reason: str | None) -> None:
    """From this boot to the end of the machine."""
    if await boot_check(device, reason=reason) is Verdict.RESET:
        await anyio.sleep_forever()  # a reboot that was asked for comes
    slot = await device.flash.running_slot()
    tried = device.live.trial_until is not None
    line = f"slot {slot} runs{f', on trial for {device.window:g} s' if tried else ''}"
    log.info("%s", line)
    systemd.status(line)
    async with serving(device):
        systemd.forward(READY)
        if outcome := await trial():
            systemd.status(f"slot {slot} runs, {outcome.value.replace('_', ' ')}")
        await anyio.sleep_forever()
