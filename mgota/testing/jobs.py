"""Performs the jobs of the core on a simulated flash memory, without an event loop: a power-cut run in a millisecond."""

from typing import TypeVar

from mgota.core.nor import Action, Erase, Job, Keep, Program, Read
from mgota.errors import ConfigError, FlashError
from mgota.flash.simulator import Kind, NorSimulator, Operations

T = TypeVar("T")


class KeptBeside:
    """What is kept beside a simulated memory: replaced as a whole, or not at all, and counted among its operations.

    Args:
        operations: the memory's.
        data: what is kept at first.
    """

    def __init__(self, operations: Operations, data: bytes = b"") -> None:
        self.data = data
        self._operations = operations

    def store(self, data: bytes) -> None:
        """Replace it."""
        with self._operations.perform(Kind.OPTION, 0, len(data), data):
            self.data = data


def carry_out_now(job: Job[T], flash: NorSimulator, beside: KeptBeside | None = None) -> T:
    """Perform a job and return its result.

    Args:
        job: what to do.
        flash: the memory to do it on, in memory.
        beside: what is kept beside it.

    Raises:
        FlashError: an operation failed, and the job could not do without it.
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


def _perform(action: Action, flash: NorSimulator, beside: KeptBeside | None) -> bytes:
    match action:
        case Read(offset, size):
            return flash.read_now(offset, size)
        case Erase(sector):
            flash.erase_now(sector)
        case Program(offset, data):
            flash.program_now(offset, data)
        case _:
            if beside is None:
                raise ConfigError("this job keeps something beside the memory: bring a KeptBeside")
            if not isinstance(action, Keep):
                return beside.data
            beside.store(action.data)
    return b""
