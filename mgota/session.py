"""An update from begin to end: bytes in, a verified image out.

    async with OtaSession(device, size=n) as ota:        begin: does it fit? is nobody else at it? is no trial running?
        async for chunk in body:
            await ota.write(chunk)                        any chunk size; straight to flash
        await ota.activate(await ota.seal())              end: read back, CRC, signature; record, swap, reset

Rules:
- nothing is held in memory: a chunk is stored when `write` returns;
- before the first erase the record forgets what the staging slot held, and the running slot is the selected one;
- with `resume`, progress is marked, and a session that follows one which was cut off goes on from the last mark;
- leaving without activation, for whatever reason, gives up: the staging slot counts as empty and the lock is free.
  The running slot was never touched.
"""

import logging
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, cast

import anyio
import anyio.to_thread

from mgota.core.boot import Select, Store, begin_steps, failure_of, forget_step, provision_steps, refuse_update
from mgota.core.checksum import Checksum, checksum
from mgota.core.floor import check_floor, check_sequence, effective_floor
from mgota.core.manifest import Manifest, check_hardware
from mgota.core.record import BootRecord, Outcome
from mgota.device import Device
from mgota.errors import (
    EmptyImageError,
    FailedBeforeError,
    OtaError,
    OverrunError,
    RejectedError,
    TooLargeError,
    TruncatedError,
)
from mgota.ports import BlockingWriter, FlashWriter, ReadableBuffer
from mgota.resume import Marks, Resume
from mgota.verified import VerifiedImage

log = logging.getLogger("mgota.session")
audit = logging.getLogger("mgota.audit")

MAX_WRITE = 1 << 20
"""Bytes of a chunk that are stored in one go; a cancellation lands between two."""


class OtaSession:
    """One update. Entering it begins, leaving it ends.

    Args:
        device: what is updated.
        size: bytes of the image, trailer included.
        resume: where progress is marked, or None. After entering, `received` says how much is there already.
        manifest: what announced it, if something did: what is stored has to be that, and is known by its version.
        refuse_failed: do not seal the firmware that was rolled back last, whoever signed it. For what looks for updates
            by itself; a person who sends it again means it.

    Raises:
        WrongHardwareError: on entering: the manifest is for other hardware.
        DowngradeError: on entering: it is older than this device may go back to.
        EmptyImageError: on entering: size is not positive.
        TooLargeError: on entering: it does not fit the slot.
        BusyError: on entering: another update, a trial, or an unreadable boot record.
        FlashError: on entering: the staging slot cannot be written.
    """

    def __init__(
        self,
        device: Device,
        *,
        size: int,
        resume: Resume | None = None,
        manifest: Manifest | None = None,
        refuse_failed: bool = False,
    ) -> None:
        self.device = device
        self.size = size
        self.manifest = manifest
        self.received = 0
        self.resumed = False
        """Whether a part of the image is of an earlier life."""
        self._marks = Marks(resume, size) if resume else None
        self._stack = AsyncExitStack()
        self._writer: FlashWriter | None = None
        self._crc = checksum(device.flash.crc)
        self._before = BootRecord()
        self._refuse_failed = refuse_failed
        self._sealed: VerifiedImage | None = None
        self._done = False

    async def __aenter__(self) -> Self:
        if self.manifest:
            check_hardware(self.manifest, self.device.hardware)
        await check_size(self.device, self.size)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.device.exclusive())
            await self._begin()
            self._stack = stack.pop_all()
        return self

    async def _begin(self) -> None:
        device = self.device
        record, readable = await device.load()
        refuse_update(record, readable=readable)
        if self.manifest:  # before anything is erased; the seal asks again
            check_floor(self.manifest.version, effective_floor(record.floor if record else None, device.floor))
            check_sequence(self.manifest.seq, record.sequence if record else None)
        running = await device.flash.running_slot()
        if record is None:
            await device.perform(*(await device.first_start(running)).steps)
            record = (await device.load())[0] or BootRecord()
        self._before = record
        self._staging = running.other
        if self._marks and (kept := await self._marks.find(device.flash, record, self._staging)):
            await device.perform(Select(running))
            self._writer, self.received, self._crc = kept
            self.resumed = True
        else:
            await device.perform(*begin_steps(record, running))
            await self._open(record)
        device.live.update = (self.received, self.size)
        log.info("update begins: %d bytes to slot %s, from byte %d", self.size, self._staging, self.received)

    async def _open(self, before: BootRecord) -> None:
        try:
            self._writer = await self.device.flash.open_writer(self._staging, self.size)
        except TooLargeError:  # nothing was changed: the slot still holds what it held
            await self.device.perform(Store(before.next().next()))
            raise
        if self._marks:
            self._marks.begun(before.revision + 1)

    @property
    def validator(self) -> str | None:
        """What the rest of the image can be asked for with. It is noted with every mark."""
        return self._marks.validator if self._marks else None

    @validator.setter
    def validator(self, value: str | None) -> None:
        if self._marks:
            self._marks.validator = value

    async def restart(self) -> None:
        """Begin the image anew, from its first byte: what came so far belongs to another one.

        Raises:
            FlashError: the staging slot cannot be written.
        """
        if self._writer:
            await self._writer.abort()
        if self._marks:
            await self._marks.forget()
        self._writer = await self.device.flash.open_writer(self._staging, self.size)
        self._crc = checksum(self.device.flash.crc)
        self._sealed, self.resumed, self.received = None, False, 0
        self.device.live.update = (0, self.size)
        log.info("the image is begun anew")

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._stack:
            self.device.live.update = None
            if not self._done:
                with anyio.CancelScope(shield=True):
                    await self._give_up(exc)

    async def write(self, chunk: ReadableBuffer) -> None:
        """Store the next bytes of the image, any number of them.

        Raises:
            OverrunError: more than the declared bytes came.
            FlashError: they could not be stored.
        """
        view = self._checked(chunk)
        while view:
            room = min(MAX_WRITE, self._marks.room(self.received)) if self._marks else MAX_WRITE
            block, view = view[:room], view[room:]
            if self.blocking:
                await anyio.to_thread.run_sync(self.write_blocking, block)
            else:
                await self._open_writer().write(block)
                self._took(block)
            if self._marks:
                await self._marks.note(self._open_writer(), self.received, self._crc.value)

    async def read(self, offset: int, size: int) -> bytes:
        """Bytes of the image as flash holds them. The last ones may not be there yet: a writer may hold them back.

        Args:
            offset: counted from the start of the image.
            size: bytes.

        Raises:
            ReadError: they could not be read.
        """
        return await self.device.flash.read(self._staging, offset, size)

    @property
    def blocking(self) -> bool:
        """Whether `write_blocking` may be called."""
        return isinstance(self._writer, BlockingWriter)

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        """`write`, for a caller that is in a thread already and does nothing else with this session meanwhile.

        Raises:
            OverrunError: more than the declared bytes came.
            FlashError: they could not be stored.
        """
        view = self._checked(chunk)
        cast(BlockingWriter, self._writer).write_blocking(view)
        self._took(view)

    def _checked(self, chunk: ReadableBuffer) -> memoryview:
        self._open_writer()
        view = memoryview(chunk)
        view = view.cast("B") if view.nbytes else memoryview(b"")  # a view of no bytes cannot be cast
        if self.received + len(view) > self.size:
            raise OverrunError(self.size)
        return view

    def _took(self, block: memoryview) -> None:
        self._crc.update(block)
        self.received += len(block)
        self.device.live.update = (self.received, self.size)

    async def seal(self) -> VerifiedImage:
        """Make the image durable, read it back and verify it.

        Raises:
            TruncatedError: fewer than the declared bytes came.
            VerifyError: what is stored is not what was received.
            RejectedError: it is not signed by a trusted key, not what was announced, too old, or failed before.
        """
        writer = self._open_writer()
        if self.received < self.size:
            raise TruncatedError(self.received, self.size)
        await writer.finish()
        self._writer = None
        crc, manifest = self._crc.value, self.manifest
        try:
            self._sealed = await self.device.read_back(self._staging, self.size, crc=crc, manifest=manifest)
            if self._refuse_failed and self._before.rolled_back(self._sealed.sha256):
                raise FailedBeforeError("already failed: this firmware was rolled back before")
        except OtaError:
            if self._marks:
                await self._marks.forget()  # it would go on to the same end
            raise
        log.info("sealed: %d bytes in slot %s, sha256 %s", self.size, self._staging, self._sealed.sha256)
        return self._sealed

    async def activate(
        self, image: VerifiedImage, *, reset: bool = True, announce: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Put the sealed image on trial. See `Device.activate`.

        Args:
            image: what `seal` returned.
            reset: False stages it for later.
            announce: awaited when the update survives any cut and the device still runs.
        """
        if image is not self._sealed:
            raise TypeError("a session activates the image that it sealed; for another one there is Device.activate")
        self._done = True  # whatever happens now is written in the record
        await self.device.switch(image, reset=reset, announce=announce)

    def _open_writer(self) -> FlashWriter:
        if self._writer is None:
            raise RuntimeError("the session is not open: enter it first, write before seal, seal once")
        return self._writer

    async def _give_up(self, exc: BaseException | None) -> None:
        if self._writer:
            if self._marks and not isinstance(exc, RejectedError):
                await self._marks.note(self._writer, self.received, self._crc.value, now=True)
            await self._writer.abort()
        outcome, reason = Outcome.INTERRUPTED, _why(exc)
        if isinstance(exc, RejectedError):
            outcome = Outcome.REFUSED
            audit.warning("image refused: %s", exc)
        log.warning("update %s after %d of %d bytes: %s", outcome, self.received, self.size, reason)
        try:
            known = self._known_by_now() if isinstance(exc, FailedBeforeError) else {}
            refused = outcome is Outcome.REFUSED
            record = await self._forget_refusal(reason, known) if refused else (await self.device.load())[0]
        except OtaError as failed:
            log.error("the boot record could not be stored: %s", failed)  # noqa: TRY400  no news in the traceback
            return
        if record:
            self.device.live.ended = (outcome, reason, record.revision)

    def _known_by_now(self) -> dict[str, Any]:
        """What is remembered of a failed firmware in its new image: the next offer of it is not downloaded."""
        if self._sealed is None:  # pragma: no cover  who raises it has sealed
            return {}
        image, manifest = self._sealed.image, self.manifest
        return failure_of(self._before, replace(image, version=manifest.version) if manifest else image)

    async def _forget_refusal(self, reason: str, known: dict[str, Any]) -> BootRecord | None:
        # The record says "interrupted" since begin. A refusal is no fault of the device: what it said before stands.
        record, _ = await self.device.load()
        if record:
            record = record.next(outcome=self._before.outcome, reason=self._before.reason, **known)
            await self.device.store(record, reason=reason)
        return record


def _why(exc: BaseException | None) -> str:
    if exc is None:
        return "it was given up"
    if isinstance(exc, anyio.get_cancelled_exc_class()):
        return "it was cancelled"
    return str(exc) or type(exc).__name__


async def check_size(device: Device, size: int) -> None:
    """Whether an image of this size can be taken at all. Changes nothing.

    Args:
        device: what would be updated.
        size: bytes of the image, trailer included.

    Raises:
        EmptyImageError: size is not positive.
        TooLargeError: it does not fit the slot.
    """
    if size < 1:
        raise EmptyImageError("an image has at least one byte")
    capacity = await device.flash.capacity()
    if size > capacity:
        raise TooLargeError(size, capacity)


async def provision(
    device: Device, body: AsyncIterable[ReadableBuffer], *, size: int, force: bool = False
) -> VerifiedImage:
    """Write a device's first image, as a factory does: CONFIRMED, and proven without a trial.

    Args:
        device: a device that does not run yet.
        body: the image.
        size: bytes of the image, trailer included.
        force: overwrite an image that is already there, and the way back with it.

    Raises:
        RejectedError: there is an image already, it is not signed by a trusted key, or it does not fit.
        TransferError: fewer or more bytes came than declared.
        FlashError: it could not be stored.
    """
    await check_size(device, size)
    async with device.exclusive():
        record, _ = await device.load()
        slot = await device.flash.running_slot()
        if record and record.image(slot) and not force:
            raise RejectedError(f"slot {slot} holds an image already: update the device, or provision it with force")
        # A cut from here on must not leave a torn image that a first start would count as proven.
        record = forget_step(record or BootRecord(), slot).record
        await device.perform(Store(record))
        crc = await _write_all(await device.flash.open_writer(slot, size), body, size, checksum(device.flash.crc))
        image = await device.read_back(slot, size, crc=crc)
        await device.perform(*provision_steps(record, slot, image.image))
    log.info("provisioned: %d bytes in slot %s, sha256 %s", size, slot, image.sha256)
    return image


async def _write_all(writer: FlashWriter, body: AsyncIterable[ReadableBuffer], size: int, crc: Checksum) -> int:
    received = 0
    try:
        async for chunk in body:
            received += len(chunk)
            if received > size:
                raise OverrunError(size)
            crc.update(chunk)
            await writer.write(chunk)
        if received < size:
            raise TruncatedError(received, size)
        await writer.finish()
    except BaseException:
        with anyio.CancelScope(shield=True):
            await writer.abort()
        raise
    return crc.value
