"""The last updates of a device: what was installed when, and how it ended. One line of JSON each.

    {"number": 7, "began": 1790000000.0, "ended": 1790000061.5, "outcome": "rolled_back", "reason": "health check …",
     "from_version": "1.2.3", "from_sha256": "…", "to_version": "1.2.4", "to_sha256": "…"}

Rules:
- it is told, never asked: no decision depends on it, so that nothing is lost with it but a story;
- it grows out of the boot records that a device stores, in order, and of its own last line: nothing else is known after
  a restart;
- lines that are none are left out, and the oldest go first when there are too many.
"""

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, TypeGuard, cast

from mgota.core.boot import OPERATOR
from mgota.core.geometry import Slot
from mgota.core.record import MAX_TEXT, BootRecord, Outcome, SlotImage, State

MAX_UPDATES: Final = 50
MAX_HISTORY: Final = 64 * 1024
"""Bytes of all lines together."""

STAGED: Final = "staged"
TESTING: Final = "testing"
TRIAL: Final = "trial"
_UNDERWAY: Final = frozenset({Outcome.INTERRUPTED.value, STAGED, TESTING, TRIAL})
_OUTCOMES: Final = _UNDERWAY | {outcome.value for outcome in Outcome}


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One update, or an operator's return to the other image.

    Args:
        number: one more with every update.
        began: Unix seconds, by the device's own clock.
        ended: the same; None while it is under way, or was when the device lost power.
        outcome: an `Outcome`'s value; while it is under way "interrupted" (which is true if nothing more comes),
            "staged", "testing" or "trial".
        reason: why, or None.
        from_version: of the image that ran, if it is known.
        from_sha256: its digest, if it is known.
        to_version: of the image that was to run.
        to_sha256: its digest.
    """

    number: int
    began: float
    ended: float | None = None
    outcome: str = Outcome.INTERRUPTED.value
    reason: str | None = None
    from_version: str | None = None
    from_sha256: str | None = None
    to_version: str | None = None
    to_sha256: str | None = None


def advance(
    updates: tuple[Update, ...], record: BootRecord, now: float, reason: str | None = None
) -> tuple[Update, ...]:
    """The updates after this record was stored.

    Args:
        updates: those before, oldest first.
        record: what was stored.
        now: Unix seconds.
        reason: why an image was refused, if this record was stored for that.
    """
    last = updates[-1] if updates else None
    if record.state is State.TESTING and record.trial:
        return _going_on(updates, now, TESTING, record.image(record.trial), record.image(record.trial.other))
    if record.state is State.FAILED:
        return (*updates[:-1], replace(last, outcome=TRIAL)) if last and last.outcome == TESTING else updates
    if record.staged:
        return _going_on(updates, now, STAGED, record.image(record.staged), record.image(record.staged.other))
    if reason and last and last.outcome == Outcome.INTERRUPTED:
        return (*updates[:-1], _ended(last, record, now, reason))
    if record.outcome is Outcome.INTERRUPTED:
        only = record.a if record.b is None else record.b if record.a is None else None
        return (*updates, _from(_next(updates, now), only))
    if last and last.ended is None and last.outcome != STAGED:
        return (*updates[:-1], _ended(last, record, now, reason))
    if record.outcome is Outcome.ROLLED_BACK and record.reason == OPERATOR:
        return (*updates, _returned(_next(updates, now), record, now))
    return updates


def _next(updates: tuple[Update, ...], now: float) -> Update:
    return Update(number=updates[-1].number + 1 if updates else 1, began=now)


def _from(update: Update, image: SlotImage | None) -> Update:
    return replace(update, from_version=image.version, from_sha256=image.sha256) if image else update


def _going_on(
    updates: tuple[Update, ...], now: float, outcome: str, coming: SlotImage | None, leaving: SlotImage | None
) -> tuple[Update, ...]:
    """The update under way is in this state now, whichever it was in."""
    under_way = bool(updates) and updates[-1].ended is None
    update = _from(updates[-1] if under_way else _next(updates, now), leaving)
    if coming:
        update = replace(update, to_version=coming.version, to_sha256=coming.sha256)
    return (*(updates[:-1] if under_way else updates), replace(update, outcome=outcome))


def _ended(update: Update, record: BootRecord, now: float, reason: str | None) -> Update:
    if update.outcome == Outcome.INTERRUPTED:  # it began, and was not put on trial: what was stored takes that back
        return replace(update, ended=now, outcome=Outcome.REFUSED.value, reason=_short(reason))
    outcome = record.outcome or Outcome.INTERRUPTED
    return replace(update, ended=now, outcome=outcome.value, reason=_short(record.reason))


def _returned(update: Update, record: BootRecord, now: float) -> Update:
    """An operator went back from a confirmed image."""
    left = next((slot for slot in Slot if (one := record.image(slot)) and one.sha256 == record.failed_sha256), None)
    update = replace(update, ended=now, outcome=Outcome.ROLLED_BACK.value, reason=OPERATOR)
    if left is None:
        return update
    update, back = _from(update, record.image(left)), record.image(left.other)
    return replace(update, to_version=back.version, to_sha256=back.sha256) if back else update


def _short(text: str | None) -> str | None:
    return text[:MAX_TEXT] if text else None


def encode_updates(updates: tuple[Update, ...], *, most: int = MAX_UPDATES, limit: int = MAX_HISTORY) -> bytes:
    """The lines of the newest updates, as many as there is room for.

    Args:
        updates: oldest first.
        most: lines.
        limit: bytes.
    """
    lines = [json.dumps(asdict(update)).encode("ascii") + b"\n" for update in updates[-most:]]
    while sum(map(len, lines)) > limit:
        del lines[0]
    return b"".join(lines)


def decode_updates(data: bytes) -> tuple[Update, ...]:
    """The updates in these lines, oldest first. What is no line of a history is left out."""
    return tuple(update for line in data.splitlines() if (update := _decode(line)))


def _decode(line: bytes) -> Update | None:
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    members = cast(dict[str, Any], found)
    texts = {name: members.get(name) for name in _TEXTS}
    number, began, ended, outcome = (members.get(name) for name in ("number", "began", "ended", "outcome"))
    if type(number) is not int or not _is_time(began) or not (ended is None or _is_time(ended)):
        return None
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        return None
    if not all(text is None or isinstance(text, str) for text in texts.values()):
        return None
    return Update(
        number=number, began=float(began), ended=None if ended is None else float(ended), outcome=outcome, **texts
    )


_TEXTS: Final = ("reason", "from_version", "from_sha256", "to_version", "to_sha256")


def _is_time(value: object) -> TypeGuard[float]:
    return type(value) in {int, float} and -1e12 < cast(float, value) < 1e12
