"""What a device tells of itself.

Rules:
- `state` is the persisted value, never an interpretation of it;
- CONFIRMED without a trial is shown only when the device is ready for the next update;
- while an update runs, outcome and reason are empty: the record already says what would be true if nothing more came.
"""

from dataclasses import dataclass

from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, SlotImage, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What `GET /api/ota/status` tells.

    Args:
        state: the persisted value; UNKNOWN if it cannot be read.
        active_slot: the running slot.
        image: the image in the running slot, None if there is none.
        staged: the image that waits to be activated.
        seconds_left: of the trial's window, None when no image runs on trial.
        received: bytes of the update under way, None when there is none.
        size: bytes of the update under way.
        outcome: how the last update ended.
        reason: why.
    """

    state: State
    active_slot: Slot
    image: SlotImage | None = None
    staged: SlotImage | None = None
    seconds_left: float | None = None
    received: int | None = None
    size: int | None = None
    outcome: Outcome | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, object]:
        """The JSON object of the wire format (SPEC.md, status)."""
        return {
            "state": self.state.value,
            "active_slot": self.active_slot.value,
            "image": _told(self.image),
            "staged": _told(self.staged),
            "trial": None if self.seconds_left is None else {"seconds_left": round(self.seconds_left, 1)},
            "update": None if self.received is None else {"received": self.received, "size": self.size},
            "outcome": self.outcome and self.outcome.value,
            "reason": self.reason,
        }


def _told(image: SlotImage | None) -> dict[str, object] | None:
    if image is None:
        return None
    return {"size": image.size, "sha256": image.sha256, "version": image.version}


@dataclass(slots=True)
class Live:
    """What only this process knows of its device, and a reset forgets.

    Args:
        held: an update, commit, rollback or boot decision is under way.
        update: bytes received and declared of the update under way.
        trial_until: end of the trial's window on `time.monotonic`, which all processes of a machine share.
        decided: whoever started this program made the boot decision already.
        resetting: a reset was asked for and has not happened yet.
        ended: outcome and reason that are kept in memory only, and the revision of the record they belong to.
    """

    held: bool = False
    update: tuple[int, int] | None = None
    trial_until: float | None = None
    decided: bool = False
    resetting: bool = False
    ended: tuple[Outcome, str, int] | None = None


def tell(record: BootRecord | None, running: Slot, live: Live, *, readable: bool, now: float) -> Status:
    """The status of a device.

    Args:
        record: the boot record, None if there is none or it cannot be read.
        running: the running slot.
        live: what this process knows.
        readable: whether the record can be read.
        now: seconds on the clock of `live.trial_until`.
    """
    received, size = live.update or (None, None)
    if record is None:
        state = State.CONFIRMED if readable else State.UNKNOWN
        return Status(state=state, active_slot=running, received=received, size=size)
    outcome, reason = record.outcome, record.reason
    if live.update:
        outcome, reason = None, None
    elif live.ended and live.ended[2] == record.revision:
        outcome, reason, _ = live.ended
    on_trial = record.state is State.FAILED and record.trial is running
    left = None if live.trial_until is None or not (on_trial or live.resetting) else max(live.trial_until - now, 0.0)
    return Status(
        state=record.state,
        active_slot=running,
        image=record.image(running),
        staged=record.image(record.staged) if record.staged else None,
        seconds_left=left,
        received=received,
        size=size,
        outcome=outcome,
        reason=reason,
    )
