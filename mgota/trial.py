"""Trials: the decision at boot, the watched first run, commit and rollback.

Rules:
- `boot_check` runs first at every boot, and executes the boot table's rows until the device may go on;
- the watchdog is fed only while the trial's window is open and this event loop answers;
- at the window's end the record is read again under the lock: only what is not committed then is rolled back.
"""

import logging
import time
from collections.abc import Iterable
from math import inf

import anyio

from mgota.core.boot import (
    Action,
    Decision,
    Facts,
    Question,
    Step,
    Store,
    Verdict,
    commit_steps,
    decide,
    finish_steps,
    on_select_failure,
    questions,
    rollback_steps,
    with_reason,
)
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, SlotImage, State
from mgota.device import GRACE, Device
from mgota.errors import OtaError, SelectError, UnknownStateError, WrongImageError
from mgota.health import Ask, Check, Health
from mgota.ports import CountingBackend, Watchdog

log = logging.getLogger("mgota.trial")

LOCK_WAIT = 5.0
"""Seconds that a boot check or a commit waits for whoever holds the device."""


async def boot_check(device: Device, *, reason: str | None = None) -> Verdict:
    """Decide what this boot does, and do it.

    Call it once, early, before the application starts. Under `mgota run` the launcher has done so; then the answer is
    its own, and nothing is done twice.

    Args:
        device: the device that boots.
        reason: why the trial that ran before this boot failed, if that is known: kept in the record for a reader.

    Returns:
        RUN: go on. TRIAL: go on, the watchdog is armed; `run_trial` or `commit` decide the rest.
        RESET: another slot was selected and the device must start again; `device.reset` was asked to, if there is one.

    Raises:
        UpdateRunningError: another process holds the device.
        FlashError: the slots could not be recovered, or the record not be stored: the image on trial must not run.
    """
    if device.live.decided:
        return Verdict.RUN if device.live.trial_until is None else Verdict.TRIAL
    async with device.exclusive(wait=LOCK_WAIT):
        device.live.trial_until, device.live.resetting = None, False  # of the life before, if it was in this process
        await device.flash.recover()
        running = await device.flash.running_slot()
        while True:
            record, readable = await device.load()
            if reason and record and record.state is State.FAILED and record.trial is running and not record.reason:
                await device.perform(Store(record := with_reason(record, reason)))
            decision = await _decide(device, record, running, readable=readable)
            _tell(decision, running)
            try:
                await device.perform(*decision.steps)
            except SelectError as exc:
                if not await _survive(device, decision, exc):
                    return Verdict.RUN
            else:
                if decision.verdict is Verdict.RUN:
                    await _settle(device, running)
                return decision.verdict


async def finish_activation(device: Device) -> bool:
    """Go on with an activation that was cut off between its record and the reset, if there was one.

    Args:
        device: as whoever updates it sees it.

    Returns:
        Whether there was one. On a device with a reset line it does not return then.

    Raises:
        UpdateRunningError: it is still under way.
        SelectError: the slot could not be selected.
    """
    record, _ = await device.load()
    if record is None or record.state is not State.TESTING:
        return False
    async with device.exclusive():
        record, _ = await device.load()
        steps = finish_steps(record or BootRecord(), await device.flash.running_slot())
        await device.perform(*steps)
    return bool(steps)


async def _decide(device: Device, record: BootRecord | None, running: Slot, *, readable: bool) -> Decision:
    facts = Facts()
    match questions(record, running, readable=readable):
        case Question.FOUND:
            return await device.first_start(running)
        case Question.VERIFIED if record:
            tried = await _tried(device, running.other)
            facts = Facts(tried=tried, verified=not tried and await _verifies(device, record, running.other))
        case Question.WHOLE if record:
            facts = Facts(whole=await device.is_whole(running.other, record.image(running.other)))
        case _:
            pass
    return decide(record, running, facts, readable=readable)


async def _tried(device: Device, slot: Slot) -> bool:
    """Whether the bootloader gave this slot up. What cannot be read is no sign: the count of selections ends it."""
    if not isinstance(device.flash, CountingBackend):
        return False
    try:
        return await device.flash.tried(slot)
    except OtaError as exc:
        log.warning("whether slot %s was tried cannot be known: %s", slot, exc)
        return False


async def _settle(device: Device, running: Slot) -> None:
    """Tell a bootloader that counts boots that this one was good, if nothing is on trial."""
    if not isinstance(device.flash, CountingBackend):
        return
    record, _ = await device.load()
    if record is None or record.state is not State.CONFIRMED:
        return
    other = record.image(running.other)
    try:
        await device.flash.settle(fallback=other is not None and other.proven)
    except OtaError as exc:
        log.critical("the bootloader cannot be told that slot %s is good, and may leave it: %s", running, exc)


async def _verifies(device: Device, record: BootRecord, slot: Slot) -> bool:
    try:
        await device.verify_again(slot, record.image(slot))
    except OtaError as exc:
        log.warning("slot %s: %s", slot, exc)
        return False
    return True


def _tell(decision: Decision, running: Slot) -> None:
    row = decision.row
    alarm = row.action in (Action.STUCK, Action.RUN_UNKNOWN)
    level = logging.CRITICAL if alarm else logging.WARNING if row.action in _SETBACKS else logging.INFO
    log.log(level, "slot %s runs, record %s: %s", running, row.recorded, row.action)


_SETBACKS = (Action.ROLL_BACK, Action.ROLLED_BACK, Action.GIVE_UP)


async def _survive(device: Device, decision: Decision, exc: SelectError) -> bool:
    """Whether to decide again after a selection reported failure."""
    log.critical("%s", exc)
    if decision.row.action is Action.SELECT_TRIAL:
        return True  # it was counted before it was tried
    if decision.row.action is not Action.ROLL_BACK:
        return False  # the running slot could not be selected: run it, and leave the record as it is
    record, _ = await device.load()
    await device.perform(Store(on_select_failure(record or BootRecord())))
    return True


async def run_trial(
    device: Device,
    *,
    check: Ask | None = None,
    checks: Iterable[Check | Ask] = (),
    consecutive: int = 1,
    interval: float = 1.0,
    window: float | None = None,
) -> Outcome | None:
    """Watch the image on trial until it is committed or its window ends.

    At the window's end without a commit the watchdog starves, and `device.reset` is asked to reset: the next boot
    rolls back. Which check failed stands in the boot record then, as the reason.

    Args:
        device: the device, after `boot_check` (or from `Device.from_environment`).
        check: asked every `interval`; the image is committed as soon as it answers True. Without one, somebody else
            commits: an operator, an endpoint. A check that raises has answered False.
        checks: the same, several of them, with names: all have to answer True.
        consecutive: how often in a row.
        interval: seconds between two looks at the checks and the record.
        window: seconds from now on until the image must be committed, in the place of what is left of
            `device.window`. A supervisor, such as `mgota run`, has a window of its own besides.

    Returns:
        None if no image is on trial, else COMMITTED or ROLLED_BACK.

    Raises:
        ConfigError: the checks make no sense.
    """
    health = Health((*((check,) if check else ()), *checks), consecutive)
    if device.live.trial_until is None:
        return None
    until = device.live.trial_until if window is None else await device.extend_trial(window)
    outcome: Outcome | None = None
    async with anyio.create_task_group() as tg:
        if device.watchdog:
            tg.start_soon(_feed_until, device.watchdog, until + GRACE)
        with anyio.move_on_after(max(until - time.monotonic(), 0)):
            outcome = await _await_commit(device, health, interval)
        tg.cancel_scope.cancel()
    if outcome is None:
        outcome = await _end_of_window(device, health.reason)
    if outcome is Outcome.COMMITTED and not device.live.resetting:
        await _stand_down(device)  # another process may have committed, which cannot reach this one's watchdog
    return outcome


async def _await_commit(device: Device, health: Health, interval: float) -> Outcome:
    while await _on_trial(device):
        if not (health.asks and await health.ask() and await _committed(device)):
            await anyio.sleep(interval)
    return Outcome.COMMITTED


async def _committed(device: Device) -> bool:
    try:
        if (await device.load())[0] is None:
            return False  # unreadable: what that means is for a person to say
        return await commit(device)
    except OtaError as exc:
        log.warning("the image could not be committed: %s", exc)  # there is time until the end of the window
        return False


async def _on_trial(device: Device) -> bool:
    record, readable = await device.load()
    if record is None:
        return not readable  # what cannot be read was not committed
    return record.state is State.FAILED and record.trial is await device.flash.running_slot()


async def _end_of_window(device: Device, reason: str | None) -> Outcome:
    async with device.exclusive(wait=inf):  # whoever holds it may be committing
        if not await _on_trial(device):
            return Outcome.COMMITTED
        if reason:
            await _note_reason(device, reason)
    log.warning("not committed within its window, the device resets and rolls back: %s", reason or "nobody did")
    await device.restart()
    return Outcome.ROLLED_BACK


async def _note_reason(device: Device, reason: str) -> None:
    try:
        record, _ = await device.load()
        if record and not record.reason:
            await device.perform(Store(with_reason(record, reason)))
    except OtaError as exc:
        log.warning("the reason could not be recorded: %s", exc)  # the device rolls back all the same


async def _feed_until(watchdog: Watchdog, until: float) -> None:
    """Feed a watchdog that cannot count to the end of the window, so that it bites just after it."""
    limit = watchdog.limit
    while limit is not None and (left := until - time.monotonic()) > limit:
        await anyio.sleep(min(limit / 3, left - limit))
        if (left := until - time.monotonic()) > 0:  # else the process was held up, and it bites by itself
            await watchdog.arm(min(left, limit))


async def keep_fed(
    watchdog: Watchdog, *, interval: float, checks: Iterable[Check | Ask] = (), patience: int = 3
) -> None:
    """Feed for ever: the sign of life of a program under `mgota run` or systemd, or of a board to its watchdog.

    Args:
        watchdog: whose timeout is a good deal longer than `interval`.
        interval: seconds between two feeds.
        checks: asked before each feed: as long as they say no, the watchdog starves.
        patience: rounds of checks in a row that may fail before it does.
    """
    health, failures = Health(checks), 0
    while True:
        failures = 0 if await health.ask() else failures + 1
        if failures < patience:
            await watchdog.feed()
        await anyio.sleep(interval)


async def commit(device: Device, *, sha256: str | None = None) -> bool:
    """Make the running image permanent. Nothing happens if it is not on trial.

    Args:
        device: the device that runs.
        sha256: hex digest of the firmware that the caller means; None means whatever runs.

    Returns:
        Whether something was committed.

    Raises:
        WrongImageError: another image than the one meant runs.
        BusyError: another process holds the device.
        FlashError: it could not be stored, and is not committed.
    """
    if not (await _plan_commit(device, sha256))[0]:
        return False
    async with device.exclusive(wait=LOCK_WAIT):
        steps, running = await _plan_commit(device, sha256)
        if not steps:
            return False
        await device.perform(*steps)
        await _settle(device, running)
    log.info("committed: slot %s", running)
    await _stand_down(device)
    return True


async def check_commit(device: Device, *, sha256: str | None = None) -> None:
    """Raise what `commit` would raise at once, and change nothing: for who replies first and acts later.

    Raises:
        WrongImageError: another image than the one meant runs.
        BusyError: there is something to commit, and another process holds the device.
    """
    steps, _ = await _plan_commit(device, sha256)
    if steps:
        async with device.exclusive():
            pass


async def _plan_commit(device: Device, sha256: str | None) -> tuple[tuple[Step, ...], Slot]:
    record, readable = await device.load()
    running = await device.flash.running_slot()
    if record is None:
        if readable:
            _check_meant(None, sha256)
            return (), running
        # An operator's commit of a device whose record is lost: what runs now counts as proven.
        found = await device.find_image(running)
        _check_meant(found, sha256)
        return decide(None, running, Facts(found=found)).steps, running
    _check_meant(record.image(running), sha256)
    if device.live.resetting:
        return (), running  # too late: the next boot decides
    return commit_steps(record, running, floor=device.floor), running


def _check_meant(image: SlotImage | None, sha256: str | None) -> None:
    if sha256 is not None and (image is None or image.sha256 != sha256.lower()):
        raise WrongImageError("another image runs than the one that was meant")


async def _stand_down(device: Device) -> None:
    stoppable = device.watchdog is None or device.watchdog.stoppable
    if device.live.trial_until is None:
        return
    if device.watchdog and stoppable:
        await device.watchdog.disarm()
    if not stoppable if device.reset_after_commit is None else device.reset_after_commit:
        await device.restart()
    else:
        device.live.trial_until = None


async def rollback(device: Device, *, sha256: str | None = None) -> None:
    """Return to the other image, which must be whole and proven, and reset.

    Args:
        device: the device that runs.
        sha256: hex digest of the running firmware that the caller wants to leave; None means whatever runs.

    Raises:
        RollbackRefusedError: there is no whole and proven image to go back to.
        WrongImageError: another image than the one meant runs.
        BusyError: another update is under way, or the boot record is unreadable.
        SelectError: the slot could not be selected; the running image stays.
    """
    async with device.exclusive():
        steps = await _plan_rollback(device, sha256)
        log.warning("rolling back on an operator's word")
        before, _ = await device.load()
        try:
            await device.perform(*steps)
        except SelectError:
            if before and before.state is State.CONFIRMED:
                await device.perform(_take_back(before))
            raise


def _take_back(before: BootRecord) -> Store:
    """The running image stays, and so does what the record said of the last update."""
    return Store(before.next().next())  # the revision counts the store that is taken back, too


async def check_rollback(device: Device, *, sha256: str | None = None) -> None:
    """Raise what `rollback` would raise, and change nothing: for who replies first and acts later."""
    async with device.exclusive():
        await _plan_rollback(device, sha256)


async def _plan_rollback(device: Device, sha256: str | None) -> tuple[Step, ...]:
    record, readable = await device.load()
    if not readable:
        raise UnknownStateError("the boot record is unreadable: nobody knows what there is to go back to")
    running = await device.flash.running_slot()
    record = record or BootRecord()
    _check_meant(record.image(running), sha256)
    whole = await device.is_whole(running.other, record.image(running.other))
    return rollback_steps(record, running, whole=whole, floor=device.floor)
