"""Performs the jobs of the core on a flash memory.

Rules:
- a job runs to its end once it is begun: what it does may leave the memory in between, and only its journal can go on;
- an operation that fails is told to the job, which decides what follows.
"""

from typing import TypeVar

from anyio import CancelScope, to_thread
from anyio.lowlevel import checkpoint

from mgota.core.nor import Action, Erase, Job, Keep, Program, Read
from mgota.errors import ConfigError, FlashError, StateError
from mgota.flash.files import DurableFile
from mgota.ports import NorFlash

T = TypeVar("T")


async def carry_out(job: Job[T], flash: NorFlash, beside: DurableFile | None = None) -> T:
    """Perform a job, shielded from cancellation, and return its result.

    Args:
        job: what to do.
        flash: the memory to do it on.
        beside: the file for what is kept beside it.

    Raises:
        FlashError: an operation failed, and the job could not do without it.
    """
    with CancelScope(shield=True):
        try:
            action = next(job)
            while True:
                try:
                    result = await _perform(action, flash, beside)
                except FlashError as exc:
                    action = job.throw(exc)
                else:
                    action = job.send(result)
        except StopIteration as exc:
            done: T = exc.value
    await checkpoint()
    return done


async def _perform(action: Action, flash: NorFlash, beside: DurableFile | None) -> bytes:
    match action:
        case Read(offset, size):
            return await flash.read(offset, size)
        case Erase(sector):
            await flash.erase(sector)
        case Program(offset, data):
            await flash.program(offset, data)
        case _:
            return await _beside(action.data if isinstance(action, Keep) else None, beside)
    return b""


async def _beside(data: bytes | None, file: DurableFile | None) -> bytes:
    if file is None:
        raise ConfigError("this flash memory needs a file for its journal")
    try:
        if data is None:
            kept = await to_thread.run_sync(file.load)
            if kept == b"":  # not a missing one: this one was written, and lost its bytes
                raise StateError(f"the journal {file.path} is empty")
            return kept or b""
        await to_thread.run_sync(file.store, data)
    except OSError as exc:
        raise StateError(f"the journal {file.path} cannot be used: {exc.strerror}") from exc
    return b""
