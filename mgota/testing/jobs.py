"""Performs the jobs of the core on a simulated flash memory, without an event loop: a cut in a millisecond.

Rules:
- a job that keeps something beside the memory gets a place for it: a `Cell` of the memory, or a `KeptBeside`;
- an operation that fails is told to the job, as on the real one; a power cut ends the job where it stands.
"""

from typing import TypeVar

from mgota.core.nor import Action, Erase, Job, Keep, Program, Read
from mgota.errors import ConfigError, FlashError
from mgota.flash.jobs import Beside, exchange
from mgota.flash.operations import Kind, Operations
from mgota.flash.simulator import NorSimulator

T = TypeVar("T")


class KeptBeside:
    """What is kept beside a simulated memory: replaced as a whole, or not at all, and counted among its operations.

    Args:
        operations: the memory's.
        data: what is kept at first.
    """

    def __init__(self, operations: Operations, data: bytes | None = None) -> None:
        self.data = data
        self._operations = operations

    def load(self) -> bytes | None:
        """What was stored last, or kept at first."""
        return self.data

    def store(self, data: bytes) -> None:
        """Replace it."""
        with self._operations.perform(Kind.OPTION, 0, len(data), data):
            self.data = data


def carry_out_now(job: Job[T], flash: NorSimulator, beside: Beside | None = None) -> T:
    """Perform a job and return its result.

    Args:
        job: what to do.
        flash: the memory to do it on, in memory.
        beside: where it keeps what it keeps beside the memory.

    Raises:
        FlashError: an operation failed, and the job could not do without it.
        ConfigError: the job keeps something beside the memory, and there is no place for it.
    """
    try:
        action = next(job)
        while True:
            try:
                result = _perform(action, flash, beside)
            except FlashError as exc:
                action = job.throw(exc)
            else:
                action = job.send(result)
    except StopIteration as exc:
        done: T = exc.value
        return done


def _perform(action: Action, flash: NorSimulator, beside: Beside | None) -> bytes:
    match action:
        case Read(offset, size):
            return flash.read_now(offset, size)
        case Erase(sector):
            flash.erase_now(sector)
        case Program(offset, data):
            flash.program_now(offset, data)
        case _:
            if beside is None:
                raise ConfigError("this job keeps something beside the memory: bring a KeptBeside, or a cell")
            return exchange(beside, action.data if isinstance(action, Keep) else None)
    return b""
