"""Runs code that writes files, and checks what a power cut at any moment would leave of them.

    def action(directory, mark):
        replace_file(directory / "x", b"new")
        mark("returned")

    def check(directory, point):
        assert (directory / "x").read_bytes() in ((b"new",) if point.marks else (b"old", b"new"))

    print(every_crash(action, check, tmp_path, prepare=lambda directory: (directory / "x").write_bytes(b"old")))

Rules:
- a crash point lies before the first operation and after each: what a crash in the midst of one leaves is among what
  a crash after it leaves (a write in parts), or before it (an fsync that did not end);
- what a crash may leave is the strictest reading of POSIX (`mgota.testing.disk`), not what one file system does;
- killing a process proves nothing of this: the kernel still writes what it was given.
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mgota.testing.crash_states import LIMIT, CrashPoint, Order
from mgota.testing.recorder import FileRecorder


@dataclass(frozen=True, slots=True)
class CrashFailure:
    """A state in which a check failed.

    Args:
        point: the moment of the crash.
        label: what was lost.
        error: what the check raised.
    """

    point: CrashPoint
    label: str
    error: Exception


@dataclass(frozen=True, slots=True)
class CrashReport:
    """What `every_crash` did.

    Args:
        points: moments of a crash, one more than operations.
        possible: states that the model allows at all of them.
        checked: distinct ones that were checked.
        sampled: points of which not all states were.
        failures: those in which the check failed; empty unless they were asked for.
    """

    points: int
    possible: int
    checked: int
    sampled: int
    failures: tuple[CrashFailure, ...]

    def __str__(self) -> str:
        drawn = f"drawn at {self.sampled} points" if self.sampled else "all of them"
        return (
            f"{self.points} crash points, {self.possible:.4g} states, {self.checked} distinct ones checked ({drawn}), "
            f"{len(self.failures)} failures"
        )


def every_crash(
    action: Callable[[Path, Callable[[object], None]], object],
    check: Callable[[Path, CrashPoint], object],
    workspace: str | os.PathLike[str],
    *,
    prepare: Callable[[Path], object] | None = None,
    order: Order = Order.ANY,
    limit: int = LIMIT,
    seed: int = 0,
    keep_going: bool = False,
) -> CrashReport:
    """Run an action once, and check what every crash during or after it may leave.

    Of states that look alike, and in which the program had noted the same, one is checked.

    Args:
        action: called with the directory, and with a function that notes how far it got (`CrashPoint.marks`).
        check: called with a directory as the crash left it, and the moment; it raises if something is wrong. It may
            change the directory.
        workspace: an existing directory; below it `recorded` and `crashed` are made anew and removed.
        prepare: fills the directory before the action; what it does is durable.
        order: which pending changes of names may survive.
        limit: states of one point up to which all are checked; of more, about so many are drawn.
        seed: of the draw.
        keep_going: collect the failures of the check in the report. Otherwise the first is raised, with the state's
            label as a note.

    Raises:
        Exception: whatever the action raises, and what the check raises.
    """
    recorded, crashed = Path(workspace, "recorded"), Path(workspace, "crashed")
    recorded.mkdir()
    try:
        if prepare:
            prepare(recorded)
        with FileRecorder(recorded) as recording:
            action(recorded, recording.mark)
    finally:
        shutil.rmtree(recorded)
    seen = set[tuple[bytes, int]]()
    failures = list[CrashFailure]()
    possible = sampled = 0
    for point in recording.points():
        states = recording.crash_states(point.operation, order=order, limit=limit, seed=seed)
        possible, sampled = possible + states.possible, sampled + (not states.exhaustive)
        for state in states:
            if (key := (state.key, len(point.marks))) in seen:
                continue
            seen.add(key)
            state.write_to(crashed)
            try:
                check(crashed, point)
            except Exception as exc:
                exc.add_note(state.label)
                if not keep_going:
                    raise
                failures.append(CrashFailure(point, state.label, exc))
            finally:
                shutil.rmtree(crashed)
    return CrashReport(len(recording.operations) + 1, possible, len(seen), sampled, tuple(failures))
