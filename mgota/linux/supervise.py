"""What the launcher does when something happens to its program: pure rules, without a clock or a process.

| what happened | how the program is ended | then, if it was on trial | then, if it was CONFIRMED |
|---|---|---|---|
| EXITED: it exited, crashed, or could not be started | killed: what it left of its group | decide | pause, decide |
| HUNG: its next WATCHDOG=1 did not come | killed | decide | pause, decide |
| WINDOW: the trial's window ended without a commit | killed | decide | decide |
| RESET: it, or somebody in its name, asks to start again | asked, then killed | decide | decide |

*Decide* is the boot decision (`mgota.trial.boot_check`): it reads the record under the lock, and rolls back whatever is
still on trial then. Only from there is anything rolled back; a CONFIRMED program is only ever started again.
"""

from dataclasses import dataclass
from enum import StrEnum

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, State

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0
HEALTHY = 60.0
"""Seconds: the first pause before a restart, the longest, and the run after which they begin anew."""


class Event(StrEnum):
    """Why a program's run is over."""

    EXITED = "exited"
    HUNG = "hung"
    WINDOW = "window"
    RESET = "reset"


class Then(StrEnum):
    """What follows."""

    DECIDE = "decide"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Course:
    """One line of the table.

    Args:
        gently: SIGTERM and a grace before SIGKILL.
        on_trial: what follows if the image was on trial.
        confirmed: what follows otherwise.
    """

    gently: bool
    on_trial: Then
    confirmed: Then


COURSES: dict[Event, Course] = {
    Event.EXITED: Course(gently=False, on_trial=Then.DECIDE, confirmed=Then.PAUSE),
    Event.HUNG: Course(gently=False, on_trial=Then.DECIDE, confirmed=Then.PAUSE),
    Event.WINDOW: Course(gently=False, on_trial=Then.DECIDE, confirmed=Then.DECIDE),
    Event.RESET: Course(gently=True, on_trial=Then.DECIDE, confirmed=Then.DECIDE),
}


def on_trial(record: BootRecord | None, slot: Slot) -> bool:
    """Whether the image that runs from this slot has begun a trial and is not committed."""
    return record is not None and record.state is State.FAILED and record.trial is slot


def pause_after(event: Event, *, trial: bool, ran: float, last: float) -> float:
    """Seconds until the next boot decision.

    Args:
        event: why the run is over.
        trial: the image is still on trial.
        ran: seconds that the program ran.
        last: the pause before that run.
    """
    course = COURSES[event]
    if (course.on_trial if trial else course.confirmed) is Then.DECIDE:
        return 0.0
    return next_pause(0.0 if ran >= HEALTHY else last)


def next_pause(last: float) -> float:
    """Seconds of the pause that follows one of `last` seconds."""
    return min(max(2 * last, FIRST_PAUSE), LONGEST_PAUSE)


class Pulse:
    """A program's signs of life. They count from the first one on.

    Args:
        timeout: seconds until the next one has to come; None means that nobody counts.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.last: float | None = None

    def beat(self, now: float) -> None:
        """A sign of life came."""
        self.last = now

    def left(self, now: float) -> float | None:
        """Seconds until the next one is late: negative if it is. None if nobody waits for one."""
        if self.timeout is None or self.last is None:
            return None
        return self.last + self.timeout - now
