"""Performs the jobs of the core on a flash memory.

Rules:
- a job runs to its end once it is begun: what it does may leave the memory in between, and only its journal can go on;
- an operation that fails is told to the job, which decides what follows.
"""

from typing import Protocol, TypeVar, cast

from anyio import CancelScope, to_thread
from anyio.lowlevel import checkpoint

from mgota.core.nor import Action, Erase, Job, Keep, Program, Read
from mgota.errors import ConfigError, FlashError, StateError
from mgota.flash.files import DurableFile
from mgota.ports import Flushable, NorFlash

T = TypeVar("T")


class Beside(Protocol):
    """A few bytes beside a flash memory, as a `DurableFile` keeps them: replaced as a whole, or not at all."""

    def load(self) -> bytes | None:
        """What was stored last, or None."""
        ...

    def store(self, data: bytes) -> None:
        """Replace it. When this returns, it is durable."""
        ...


async def carry_out(job: Job[T], flash: NorFlash, beside: Beside | None = None) -> T:
    """Perform a job, shielded from cancellation, and return its result.

    Args:
        job: what to do.
        flash: the memory to do it on.
        beside: what is kept beside it.

    Raises:
        FlashError: an operation failed, and the job could not do without it.
    """
    done = cast(T, None)  # a shield swallows nothing, but its type does not say so
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
            done = cast(T, exc.value)
    await checkpoint()
    return done


async def _perform(action: Action, flash: NorFlash, beside: Beside | None) -> bytes:
    match action:
        case Read(offset, size):
            return await flash.read(offset, size)
        case Erase(sector):
            await flash.erase(sector)
        case Program(offset, data):
            await flash.program(offset, data)
        case _:
            if isinstance(action, Keep) and isinstance(flash, Flushable):
                await flash.flush()  # what is noted must not be ahead of the memory
            return await _beside(action.data if isinstance(action, Keep) else None, beside)
    return b""


async def _beside(data: bytes | None, kept: Beside | None) -> bytes:
    if kept is None:
        raise ConfigError("this flash memory needs a file for its journal")
    if not isinstance(kept, DurableFile):
        return exchange(kept, data)
    try:
        return await to_thread.run_sync(exchange, kept, data)
    except OSError as exc:
        raise StateError(f"the journal {kept.path} cannot be used: {exc.strerror}") from exc


def exchange(kept: Beside, data: bytes | None) -> bytes:
    """Perform a `Keep` of this data, or a `Kept` if it is None. Blocks if the place does.

    Raises:
        StateError: what is kept there has lost its bytes.
        OSError: of a `DurableFile`.
    """
    if data is None:
        found = kept.load()
        if found == b"":  # not a missing one: this one was written, and lost its bytes
            raise StateError("the journal beside the flash memory is empty")
        return found or b""
    kept.store(data)
    return b""
