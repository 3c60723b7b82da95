"""Commands that tell the other side when they are ended from outside.

Python dies of SIGTERM and SIGHUP on the spot, as it does not of Ctrl-C: a push through a broker would leave a device
that waits for the rest, and is busy for everybody else meanwhile.
"""

import signal
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar, TypeVarTuple

import anyio

T = TypeVar("T")
Args = TypeVarTuple("Args")

_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)


def run_until_told(work: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
    """`anyio.run`, but SIGTERM and SIGHUP cancel it first. What is ignored, as under nohup, stays ignored.

    Args:
        work: what to run.
        args: its arguments.

    Raises:
        SystemExit: a signal ended it; the status is a shell's for that signal.
    """
    return anyio.run(_run, work, args)


async def _run(work: Callable[[*Args], Awaitable[T]], args: tuple[*Args]) -> T:
    found: list[T] = []
    failure: Exception | None = None
    ended: list[int] = []

    async def watch(wanted: list[signal.Signals], scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(*wanted) as signals:
            async for number in signals:
                ended.append(number)
                scope.cancel()

    async with anyio.create_task_group() as tasks:
        if wanted := [number for number in _ENDS if signal.getsignal(number) is not signal.SIG_IGN]:
            tasks.start_soon(watch, wanted, tasks.cancel_scope)
        try:
            found.append(await work(*args))
        except Exception as exc:  # noqa: BLE001  raised outside of the task group, which would wrap it
            failure = exc
        tasks.cancel_scope.cancel()
    if found:
        return found[0]
    if failure and not ended:  # else it failed of its end, such as of a pipe that was closed
        raise failure
    raise SystemExit(128 + ended[0])
