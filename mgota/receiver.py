"""Carries out what `mgota.core.receive` decides: pieces in, an update out. For every way that images come in pieces.

    receiver = Receiver(device)
    tasks.start_soon(receiver.run)                 one task owns the update, from begin to reset
    await receiver.take(chunk, tell)               from any task; `tell` is awaited with the answer

Rules:
- one piece at a time, and its answer only when it is stored;
- who is cancelled while it waits for an answer does not disturb the update;
- an update that failed is left before its sender is told, so the device is free by then;
- the device selects and resets when the answer was told, or could not be told in time.
"""

import logging
from collections import deque
from dataclasses import replace
from math import inf
from typing import Final

import anyio

from mgota.core.receive import (
    TELL,
    Activate,
    Answer,
    Begin,
    GiveUp,
    Job,
    Operation,
    Patience,
    Read,
    Recall,
    Receiving,
    Seal,
    Write,
)
from mgota.core.record import trial_of
from mgota.core.rpc import Abort, Chunk
from mgota.device import Device
from mgota.errors import FlashError, OtaError, TransferError, TrialRunningError
from mgota.finished import OnFinished, tell_finished
from mgota.pieces import Tell
from mgota.session import OtaSession
from mgota.verified import VerifiedImage

log = logging.getLogger("mgota.receiver")

FINISH: Final = 10.0
"""Seconds that an application may take when it is told of an end; its sender waits as long."""

_STOPPING: Final = "the device is stopping"


class _Item:
    """A piece on its way through the update, None where silence is what came."""

    def __init__(self, chunk: Chunk | Abort | None) -> None:
        self.chunk = chunk
        self.answer: Answer | None = None
        self.done = anyio.Event()
        self.told = anyio.Event()

    def finish(self, answer: Answer) -> None:
        self.answer = answer
        self.done.set()


class Receiver:
    """An update of a device that comes in pieces.

    Args:
        device: what is updated.
        patience: with senders.
        activate: False stages an image: the application puts it on trial later (`Device.staged`).
        on_finished: told how an update ended (`mgota.finished`).
    """

    def __init__(
        self,
        device: Device,
        *,
        patience: Patience | None = None,
        activate: bool = True,
        on_finished: OnFinished | None = None,
    ) -> None:
        self.device = device
        self.rules = Receiving(patience)
        self._activates = activate
        self._on_finished = on_finished
        self._said: object = None  # by the application, to the end of the update
        self._waiting: deque[_Item] = deque()  # as many as there are tasks in `take`
        self._came = anyio.Event()
        self._stopped = False
        self._update: OtaSession | None = None
        self._image: VerifiedImage | None = None
        self._item: _Item | None = None
        self._taken = 0.0  # when a piece was taken last
        self._leaving = False  # the image is on trial by the record, and the device about to reset

    async def run(self) -> None:
        """Do the work, until cancelled. What is under way then is given up."""
        try:
            while True:
                self._item = await self._next()
                await self._perform(self._item)
        except BaseException as exc:
            with anyio.CancelScope(shield=True):
                await self._leave(exc)
            raise
        finally:
            self._stopped = True
            for item in (self._item, *self._waiting):
                if item is not None and item.answer is None:
                    item.finish(Answer(error=TransferError(_STOPPING)))

    async def take(self, chunk: Chunk | Abort, tell: Tell) -> None:
        """Take a piece and tell its sender.

        Args:
            chunk: the piece, or that its sender gives up.
            tell: awaited with the answer; whatever it raises comes out of here.

        Raises:
            TransferError: nobody takes pieces any more.
        """
        item = _Item(chunk)
        if self._leaving:
            item.finish(_last_word(self.rules.take(chunk)))
        else:
            await self._answered(item)
        if item.answer is None:  # pragma: no cover  done means answered
            raise RuntimeError("a piece has no answer")
        try:
            await tell(item.answer)
        finally:
            item.told.set()

    async def _answered(self, item: _Item) -> None:
        if self._stopped:
            raise TransferError(_STOPPING)
        self._waiting.append(item)
        self._came.set()
        try:
            await item.done.wait()
        finally:
            if item in self._waiting:  # cancelled before anything was done
                self._waiting.remove(item)

    async def _next(self) -> _Item:
        patience = self.rules.patience
        # Only what was taken counts: a stranger's knocking keeps no dead upload alive.
        with anyio.CancelScope(deadline=inf if patience is None else self._taken + patience):
            while not self._waiting:
                self._came = anyio.Event()
                await self._came.wait()
        return self._waiting.popleft() if self._waiting else _Item(None)

    async def _perform(self, item: _Item) -> None:
        job = self.rules.waited() if item.chunk is None else self.rules.take(item.chunk)
        self._said = None
        try:
            operation = next(job)
            while not isinstance(operation, Activate):
                given = await self._done(operation)
                operation = job.throw(given) if isinstance(given, OtaError) else job.send(given)
        except StopIteration as stop:
            answer: Answer = stop.value
            if answer.error is None:
                self._taken = anyio.current_time()
            item.finish(replace(answer, instead=self._said))
        else:
            await self._activate(job, item)

    async def _done(self, operation: Operation) -> bytes | OtaError | None:
        """What an operation gave, or the error that it ended with; then the update was left."""
        try:
            return await self._do(operation)
        except OtaError as exc:
            failure = exc
        except Exception:
            log.exception("an update failed")
            failure = FlashError("internal error")
        ended = self._update is not None or isinstance(operation, Begin)
        await self._leave(failure)
        if ended:
            await self._finished(failure)
        return failure

    async def _do(self, operation: Operation) -> bytes | None:
        update = self._update
        match operation:
            case Begin(total):
                update = OtaSession(self.device, size=total)
                await update.__aenter__()
                self._update, self._said = update, None  # the reply is to this one, and not to one that was given up
            case GiveUp(why):
                await self._leave(why)
                await self._finished(why)
            case Write(data) if update:
                await update.write(data)
            case Read(offset, size) if update:
                return await update.read(offset, size)
            case Recall(total, offset, size):
                return await self._recall(total, offset, size)
            case Seal() if update:
                self._image = await update.seal()
            case _:  # pragma: no cover  the rules ask for nothing without an update
                raise RuntimeError(f"there is no update to {operation}")
        return None

    async def _recall(self, total: int, offset: int, size: int) -> bytes | None:
        """Bytes of the image on trial, if it has that many in all."""
        record, _ = await self.device.load()
        slot = trial_of(record, total) if record else None
        return None if slot is None else await self.device.flash.read(slot, offset, size)

    async def _activate(self, job: Job, item: _Item) -> None:
        """Put the image on trial; what comes behind the record is done when the sender was told."""
        update, image = self._update, self._image
        if update is None or image is None:  # pragma: no cover  the rules seal before
            raise RuntimeError("there is nothing to activate")

        async def announce() -> None:
            self._leaving = True
            await self._finished(image)
            item.finish(replace(_value(job), instead=self._said))
            if item.chunk:
                with anyio.move_on_after(TELL):
                    await item.told.wait()

        try:
            await update.activate(image, reset=self._activates, announce=announce)
        except OtaError as exc:
            await self._leave(exc)
            if item.answer:
                log.error("after the answer: %s", exc)  # noqa: TRY400  no news in the traceback
            else:
                await self._finished(exc)
                item.finish(replace(_value(job, exc), instead=self._said))
        else:
            await self._leave(None)
            if not item.answer:  # it was staged
                await self._finished(image)
                item.finish(replace(_value(job), instead=self._said))
        finally:
            self._leaving = False

    async def _finished(self, result: VerifiedImage | OtaError) -> None:
        self._said = await tell_finished(self._on_finished, result, FINISH)

    async def _leave(self, why: BaseException | None) -> None:
        update, self._update, self._image = self._update, None, None
        if update:
            await update.__aexit__(type(why) if why else None, why, None)


def _value(job: Job, error: OtaError | None = None) -> Answer:
    """What a job returns when its last operation is done, or failed."""
    try:
        if error:
            job.throw(error)
        else:
            job.send(None)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    raise RuntimeError("an activation is the last operation")  # pragma: no cover


def _last_word(job: Job) -> Answer:
    """An answer while the device is about to reset: only what needs no operation is done."""
    try:
        next(job)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    return _value(job, TrialRunningError("an image is about to go on trial"))
