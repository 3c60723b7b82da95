"""A device: what is updated, what it trusts, and how it carries out what the core decides.

Rules:
- one update, commit, rollback or boot decision at a time, in this process (`exclusive`) and across processes (`lock`);
- every decision comes from `mgota.core.boot` as steps, and only `perform` executes steps;
- only reading an image back from flash makes a `VerifiedImage`, and only a `VerifiedImage` can be activated;
- the record is written first: from then on the update survives any cut.
"""

import importlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from mgota.core.boot import (
    Arm,
    Decision,
    Facts,
    Reset,
    Select,
    Step,
    Store,
    activate_steps,
    decide,
    refuse_update,
    stage_step,
)
from mgota.core.floor import check_floor, check_sequence, effective_floor
from mgota.core.geometry import Slot
from mgota.core.image import ImageScan, Trailer, Verifier
from mgota.core.inspect import Inspect
from mgota.core.keychain import KeyChain
from mgota.core.manifest import Manifest, identify
from mgota.core.record import BootRecord, SlotImage
from mgota.core.trust import check_image
from mgota.core.version import is_version, order
from mgota.errors import ConfigError, DigestError, OtaError, StateError, UnknownStateError, UpdateRunningError
from mgota.ports import BlockingReads, FlashBackend, ProcessLock, RecordObserver, Resetter, StateStore, Watchdog
from mgota.status import Live, Status, tell
from mgota.verified import SEALED, VerifiedImage

log = logging.getLogger("mgota.device")

BLOCK = 1 << 19
"""Bytes that are read back and hashed in one go, still in the processor's cache; a cancellation lands between two."""

GRACE = 2.0
"""Seconds that the watchdog waits beyond a trial's window: who still answers ends it in order, and notes the reason."""

INLINE = 1 << 15
"""A block up to this size is hashed on the spot: the hop to a thread would cost more."""

DEVICE_FACTORY = "mgota.linux.environment:device_from_environment"
"""What `$MGOTA_DEVICE` is taken to be when it is not set: the device under `mgota run`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Device:
    """What is updated and what it trusts.

    Args:
        flash: where the two slots lie.
        state: where the boot record survives.
        verifier: which images are taken; None takes every image, and no trailer is expected.
        inspect: looks at images besides: are they for this chip? None does not ask.
        watchdog: the dead man's switch of a trial.
        reset: how the device starts again; None leaves that to the caller.
        lock: keeps other processes away.
        history: is told of every boot record that was stored.
        window: seconds that an image on trial has until it must be committed.
        tries: trials that an image gets; a power cut during one uses it up.
        on_unknown: what an unreadable record means: "refuse" updates until an operator commits, or "confirm" what
            runs, for stores that lose power such as backup registers.
        reset_after_commit: None resets only where the watchdog cannot be disarmed.
        floor: the lowest version that may be installed; the boot record may know a higher one. With a floor an image
            needs a version, inside of its signed bytes or in a signed manifest.
        hardware: this device's id, which a manifest for certain hardware has to name.
    """

    flash: FlashBackend
    state: StateStore
    verifier: Verifier | None = None
    inspect: Inspect | None = None
    watchdog: Watchdog | None = None
    reset: Resetter | None = None
    lock: ProcessLock | None = None
    history: RecordObserver | None = None
    window: float = 60.0
    tries: int = 1
    on_unknown: Literal["refuse", "confirm"] = "refuse"
    reset_after_commit: bool | None = None
    floor: str | None = None
    hardware: str | None = None
    live: Live = field(default_factory=Live, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window <= 0 or self.tries < 1:
            raise ConfigError("a trial needs a window of more than 0 seconds and at least one try")
        if self.floor is not None and order(self.floor) is None:
            raise ConfigError(f"the floor {self.floor!r} is no version that others could be compared with")
        if self.hardware is not None and not is_version(self.hardware):
            raise ConfigError("a hardware id is 1 to 64 printable characters without spaces")

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **options: Any) -> "Device":
        """The device that this program runs on, as whoever started it describes it.

        `mgota run` sets `MGOTA_DIR` and `MGOTA_SLOT`. Another supervisor names a factory of its own in
        `MGOTA_DEVICE=module:function`; it is called with the environment and the options.

        Args:
            environ: the environment.
            options: further arguments of `Device`, such as `verifier`.

        Raises:
            ConfigError: the environment describes no device.
        """
        module, _, name = environ.get("MGOTA_DEVICE", DEVICE_FACTORY).partition(":")
        try:
            factory = cast(Callable[..., Device], getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError, ValueError) as exc:
            raise ConfigError(f"MGOTA_DEVICE names no factory: {module}:{name}") from exc
        return factory(environ, **options)

    @asynccontextmanager
    async def exclusive(self, *, wait: float = 0.0) -> AsyncGenerator[None]:
        """Keep every other update, commit, rollback and boot decision away.

        Args:
            wait: seconds to wait for another one to end.

        Raises:
            UpdateRunningError: another one is under way.
        """
        deadline = time.monotonic() + wait
        while True:
            try:
                held = self._hold()
                held.__enter__()
                break
            except UpdateRunningError:
                if time.monotonic() >= deadline:
                    raise
            await anyio.sleep(0.05)
        self.live.held = True
        try:
            yield
        finally:
            self.live.held = False
            held.__exit__(None, None, None)

    def _hold(self) -> AbstractContextManager[None]:
        if self.live.held:
            raise UpdateRunningError("an update is under way")
        return self.lock.hold() if self.lock else nullcontext()

    async def load(self) -> tuple[BootRecord | None, bool]:
        """The boot record, and whether it can be read; an unreadable one is None and False."""
        try:
            return await self.state.load(), True
        except StateError as exc:
            log.critical("the boot record is unreadable: %s", exc)
            return None, self.on_unknown == "confirm"

    async def perform(self, *steps: Step) -> None:
        """Carry out steps in order. A store runs to its end; a cancellation comes after it.

        Raises:
            SelectError: a slot could not be selected; what follows was not done.
            StateError: a record could not be stored; what follows was not done.
        """
        for step in steps:
            match step:
                case Store(record):
                    await self.store(record)
                case Select(slot):
                    await self.flash.select(slot)
                case Arm():
                    await self._arm(self.window)
                case Reset():
                    await self.restart()
            await anyio.lowlevel.checkpoint()

    async def store(self, record: BootRecord, *, reason: str | None = None) -> None:
        """Store a record, to its end, and tell the history.

        Args:
            record: what is true now.
            reason: why an image was refused, if that is what it is stored for.

        Raises:
            StateError: it was not stored, or nobody knows.
        """
        with anyio.CancelScope(shield=True):
            await self.state.store(record)
            log.debug("record %d stored: %s", record.revision, record.state)
            if self.history:
                await self.history.stored(record, reason)

    async def _arm(self, window: float) -> None:
        if self.watchdog:
            limit, wanted = self.watchdog.limit, window + GRACE
            await self.watchdog.arm(wanted if limit is None else min(wanted, limit))
        self.live.trial_until = time.monotonic() + window

    async def extend_trial(self, window: float) -> float:
        """Let the trial that runs end in `window` seconds from now, sooner or later than it would have.

        Returns:
            When that is, on the monotonic clock.

        Raises:
            ConfigError: that is no time.
        """
        if window <= 0:
            raise ConfigError("a trial needs a window of more than 0 seconds")
        await self._arm(window)
        return self.live.trial_until or 0.0

    async def restart(self) -> None:
        """Reset, if there is a way to. On a real device this does not return."""
        self.live.resetting = True
        if self.reset:
            log.info("reset")
            await self.reset.reset()

    async def first_start(self, running: Slot) -> Decision:
        """The decision where there is no record: take the running image, whatever it is, as proven."""
        return decide(None, running, Facts(found=await self.find_image(running)))

    async def find_image(self, slot: Slot) -> SlotImage | None:
        """The whole extent of a slot as an image; None if it is blank."""
        extent = await self.flash.extent(slot)
        if not extent:
            return None
        scan = await self.scan(slot, extent, trailer=None)
        return identify(scan, None, keys=False)

    async def scan(
        self, slot: Slot, size: int, *, trailer: Trailer | None, inspect: Inspect | None = None
    ) -> ImageScan:
        """Read an image back from flash, front to back.

        Args:
            slot: where it lies.
            size: bytes, trailer included.
            trailer: the form of the trailer; None where there is none.
            inspect: makes what looks at the firmware besides.

        Raises:
            ReadError: it could not be read.
        """
        scan = ImageScan(size, trailer=trailer, crc=self.flash.crc, inspect=inspect)
        if isinstance(self.flash, BlockingReads):
            await anyio.to_thread.run_sync(_scan_blocking, scan, self.flash, slot, size)
            return scan
        for offset in range(0, size, BLOCK):
            block = await self.flash.read(slot, offset, min(BLOCK, size - offset))
            if len(block) > INLINE:
                await anyio.to_thread.run_sync(scan.update, block)
            else:
                scan.update(block)
        return scan

    async def read_back(
        self,
        slot: Slot,
        size: int,
        *,
        crc: int | None = None,
        manifest: Manifest | None = None,
        recorded: SlotImage | None = None,
    ) -> VerifiedImage:
        """Verify an image from flash: its checksum, if one is known, its signature, if keys are configured, its age.

        Args:
            slot: where it lies.
            size: bytes, trailer included.
            crc: checksum of what was received.
            manifest: what was announced.
            recorded: what the boot record says of it, if it was sealed before.

        Raises:
            VerifyError: what is stored is not what was received.
            UnsignedError: a signature is required and there is none.
            BadSignatureError: no trusted key made the signature.
            WrongHardwareError: the image is for another chip.
            DigestError: it is not the image that was announced or recorded.
            DowngradeError: it is older than this device may go back to.
        """
        trailer = self.verifier.trailer if self.verifier else None
        scan = await self.scan(slot, size, trailer=trailer, inspect=self.inspect)
        scan.expect_crc(crc)
        record, _ = await self.load()
        if self.verifier:
            check_image(self.verifier, record.chain if record else None, scan)
        scan.expect_this_chip()
        image = identify(scan, manifest, keys=self.verifier is not None)
        if recorded:
            if recorded.sha256 != image.sha256:
                raise DigestError(f"slot {slot} does not hold the recorded image")
            if recorded.sequence is not None or self.verifier is None:  # else nobody signed what was said beside it
                image = replace(image, version=recorded.version, sequence=recorded.sequence)
        self._check_age(image, record)
        return VerifiedImage(slot, image, sealed=SEALED)

    def _check_age(self, image: SlotImage, record: BootRecord | None) -> None:
        check_floor(image.version, effective_floor(record.floor if record else None, self.floor))
        check_sequence(image.sequence, record.sequence if record else None)

    async def is_whole(self, slot: Slot, image: SlotImage | None) -> bool:
        """Whether the slot holds the recorded image, by its SHA-256."""
        if image is None:
            return False
        try:
            if 0 < await self.flash.extent(slot) < image.size:  # a blank slot may hold a blank image
                return False
            scan = await self.scan(slot, image.size, trailer=None)
        except OtaError as exc:
            log.warning("slot %s cannot be read: %s", slot, exc)
            return False
        return scan.sha256.hex() == image.sha256

    async def verify_again(self, slot: Slot, image: SlotImage | None) -> VerifiedImage:
        """Verify a recorded image once more from flash: its digest and, where keys are configured, its signature.

        Raises:
            DigestError: the slot holds another image than the recorded one.
            RejectedError: no trusted key signed it, or it is too old by now.
            FlashError: it could not be read.
        """
        if image is None or 0 < await self.flash.extent(slot) < image.image_size:
            raise DigestError(f"slot {slot} does not hold the recorded image")
        if self.verifier is None:  # a launcher without keys: what its program verified is known by its digest
            if not await self.is_whole(slot, image):
                raise DigestError(f"slot {slot} does not hold the recorded image")
            self._check_age(image, (await self.load())[0])
            return VerifiedImage(slot, image, sealed=SEALED)
        return await self.read_back(slot, image.image_size, recorded=image)

    async def staged(self) -> VerifiedImage | None:
        """The image that was staged to be activated later, verified again; None if there is none.

        Raises:
            RejectedError: it is not the image that was staged, or its key is no longer trusted.
            FlashError: it could not be read.
        """
        record, _ = await self.load()
        if record is None or record.staged is None:
            return None
        return await self.verify_again(record.staged, record.image(record.staged))

    async def remember(self, chain: KeyChain | None) -> None:
        """Remember rotations of keys that a manifest brought, before anything is done on the new keys' word.

        Args:
            chain: what `ManifestVerifier.open` returned; None, or what is remembered already, changes nothing.

        Raises:
            BusyError: another update is under way, or the boot record is unreadable.
            StateError: it could not be stored.
        """
        if chain is None:
            return
        async with self.exclusive():
            record, readable = await self.load()
            if not readable:
                raise UnknownStateError("the boot record is unreadable: rotated keys cannot be remembered")
            if record is None:
                await self.perform(*(await self.first_start(await self.flash.running_slot())).steps)
                record = (await self.load())[0] or BootRecord()
            if record.chain != chain:
                await self.perform(Store(record.next(chain=chain)))
                log.warning("keys were rotated: %d count now, %d are retired", len(chain.keys), len(chain.retired))

    async def activate(
        self, image: VerifiedImage, *, reset: bool = True, announce: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Put a verified image on trial: record it, select its slot, reset.

        The image is verified once more, because the lock was not held since.

        Args:
            image: from `staged`, or from a session that has ended.
            reset: False stages the image beside the running one and changes nothing else.
            announce: awaited when the update survives any cut and the device still runs: the moment to say so.

        Raises:
            RejectedError: flash does not hold this image any more.
            BusyError: another update is under way, or a trial.
        """
        async with self.exclusive():
            await self.verify_again(image.slot, image.image)
            await self.switch(image, reset=reset, announce=announce)

    async def switch(
        self, image: VerifiedImage, *, reset: bool, announce: Callable[[], Awaitable[None]] | None
    ) -> None:
        """`activate` for who holds the lock since the image was verified: `OtaSession`.

        Raises:
            BusyError: a trial is running, or the boot record is unreadable.
        """
        record, readable = await self.load()
        refuse_update(record, readable=readable)
        record = record or BootRecord()
        running = await self.flash.running_slot()
        if image.slot is running:
            raise DigestError("this image already runs")
        if not reset:
            await self.perform(stage_step(record, image.slot, image.image))
            log.info("staged in slot %s: %s", image.slot, image.sha256[:16])
            return
        store, *rest = activate_steps(record, image.slot, image.image, tries=self.tries)
        await self.perform(store)
        log.info("slot %s goes on trial: %s", image.slot, image.sha256[:16])
        if announce:
            try:
                await announce()
            except Exception:  # whatever a transport does: the update is decided
                log.exception("the result could not be announced")
        await self.perform(*rest)

    async def status(self) -> Status:
        """What the device is at, for a person or a server."""
        record, readable = await self.load()
        return tell(record, await self.flash.running_slot(), self.live, readable=readable, now=time.monotonic())


def _scan_blocking(scan: ImageScan, flash: BlockingReads, slot: Slot, size: int) -> None:
    for offset in range(0, size, BLOCK):
        anyio.from_thread.check_cancelled()
        scan.update(flash.read_blocking(slot, offset, min(BLOCK, size - offset)))
