"""A program that the launcher starts: tied to it for life and death.

Rules:
- it leads a session and process group of its own: what it starts ends with it; Ctrl-C reaches only the launcher;
- it dies with the launcher: the kernel kills it when the thread that started it ends (PR_SET_PDEATHSIG, prctl(2)).
  Hence it is started by the thread that runs the event loop, never by a worker;
- its group is killed before it is reaped: until then nobody else can have its number;
- what left the group falls to the launcher when its parent ends (PR_SET_CHILD_SUBREAPER), and is killed then.
"""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import anyio

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_POLL = 0.05  # seconds between two looks, where the kernel has no pidfd_open (before Linux 5.3)
_GROUP = 0.5  # seconds that the rest of a killed group may take to vanish


class Child:
    """A running program.

    Args:
        command: the program and its arguments.
        environ: its whole environment.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        # A little code between fork and exec is the only way to ask for the death signal; it takes no lock.
        tie = _tie_to(os.getpid())
        self._strangers = _children()
        self._process = subprocess.Popen(command, env=environ, start_new_session=True, preexec_fn=tie)  # noqa: PLW1509
        self.pid = self._process.pid

    async def ended(self) -> None:
        """Return when the program has ended. It is not reaped yet."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            while not self._has_ended():  # noqa: ASYNC110  there is no event to wait for
                await anyio.sleep(_POLL)
            return
        try:
            await anyio.wait_readable(descriptor)
        finally:
            os.close(descriptor)

    async def end(self, grace: float = 0.0) -> str:
        """End it and its whole group; cannot be cancelled.

        Args:
            grace: seconds from SIGTERM to SIGKILL; 0 kills at once.

        Returns:
            How it ended, in words.
        """
        with anyio.CancelScope(shield=True):
            if grace > 0:
                self._signal(signal.SIGTERM)
                with anyio.move_on_after(grace):
                    await self.ended()
            self._signal(signal.SIGKILL)
            await self.ended()
            self._process.wait()
            with anyio.move_on_after(_GROUP):
                while self._signal(0) or self._kill_orphans():  # noqa: ASYNC110  there is no event to wait for
                    await anyio.sleep(_POLL)
        return describe(self._process.returncode)

    def _kill_orphans(self) -> bool:
        """Kill and reap what the program left behind, one generation at a time; whether there was any."""
        orphans = _children() - self._strangers
        for pid in orphans:
            with suppress(ProcessLookupError, PermissionError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, os.WNOHANG)
        return bool(orphans)

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _signal(self, number: int) -> bool:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
            return True
        return False


def adopt_orphans() -> None:
    """Become the parent of every orphan among one's descendants, so that none is lost sight of."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)


def _children() -> set[int]:
    """The direct children of this process: proc_pid_stat(5), field 4."""
    found: set[int] = set()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError, IndexError):  # it ended while we looked
                after_name = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
                if int(after_name[1]) == os.getpid():
                    found.add(int(entry.name))
    return found


def describe(code: int) -> str:
    """How a program ended, in words."""
    if code >= 0:
        return f"exited with {code}"
    with suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _tie_to(parent: int) -> Callable[[], None]:
    prctl = ctypes.CDLL(None).prctl

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel was asked to tell
            os._exit(1)

    return tie
