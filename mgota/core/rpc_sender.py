"""What both senders of MQTT's dialect know: their messages, what they are at, and what a refusal means."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, cast

from mgota.core.http import one_line
from mgota.core.rpc import KINDS, NOTIFY, Code, Fault
from mgota.core.strict_json import parse_object
from mgota.errors import BusyError, ConfigError, MalformedError, OtaError, RejectedError, TransferError

MAX_ATTEMPTS: Final = 5
"""How often a push begins at 0. A device that forgets more often has another trouble."""

MAX_LINE: Final = 300
"""Characters of a device's own line that are passed on."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Send `ota.status` with the session.

    Args:
        id: of the request.
    """

    id: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Send a piece of the image.

    Args:
        id: of the request.
        offset: where it begins.
        size: its bytes; 0 is the end.
    """

    id: int
    offset: int
    size: int


Message = Ask | Chunk


_BY_CODE: Final[dict[int, type[OtaError]]] = {
    Code.BUSY: BusyError,
    Code.PARSE: TransferError,
    Code.INVALID: TransferError,
    Code.BAD_PARAMS: TransferError,
    Code.UNKNOWN_METHOD: ConfigError,
}


def a_line(text: str) -> str:
    """What a device said, for a person: one line, and not too long."""
    return one_line(text)[:MAX_LINE]


def error_of(fault: Fault) -> OtaError:
    """What a refusal means for whoever asked: its kind says what to do.

    Args:
        fault: what the device told.
    """
    line = a_line(fault.message) or f"the device refused it (code {fault.code})"
    kind = KINDS.get(fault.kind or "") or _BY_CODE.get(fault.code, RejectedError)
    return kind(line)


class Phase(Enum):
    """What a push is at; see the picture above."""

    AWAY = "away"
    ASKING = "asking"
    SENDING = "sending"
    ENDING = "ending"
    DOUBT = "doubt"
    DONE = "done"


_SILENCE: Final = {
    Phase.AWAY: "the broker was away for {:g} s",
    Phase.ASKING: "the device did not answer within {:g} s",
    Phase.SENDING: "the device took nothing for {:g} s",
    Phase.ENDING: "the device did not tell within {:g} s whether it takes the image",
    Phase.DOUBT: "the device did not tell within {:g} s whether it took the image",
}


def silence(phase: Phase, seconds: float, said: str = "") -> str:
    """What to tell a person when nothing moved.

    Args:
        phase: what the push was at.
        seconds: for how long.
        said: the device's own line, if it said why.
    """
    line = _SILENCE[phase].format(seconds)
    return f"{line}; it says: {said}" if said else line


def read_online(data: bytes) -> bool | None:
    """What a device says of itself on its status topic: whether it is there; None if it says something else.

    Args:
        data: the frame.
    """
    try:
        frame = parse_object(data)
    except MalformedError:
        return None
    params = frame.get("params")
    if frame.get("method") != NOTIFY or not isinstance(params, dict):
        return None
    return {"online": True, "offline": False}.get(str(cast(dict[str, object], params).get("status")))
