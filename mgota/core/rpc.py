"""The JSON-RPC dialect: frames as bytes, for both ends. SPEC.md says what the bits are.

    {"id": 1, "method": "ota.upload", "params": {"total": 12345, "offset": 0, "chunk": "<base64>"}}
    {"id": 1, "result": "ok"}        or        {"id": 1, "error": {"code": 1, "message": "…"}}

Rules:
- any bytes are a value or a `MalformedError`; the length is looked at before anything is decoded;
- base64 has one spelling: what is decoded is encoded again and compared, for the strict decoder takes others too;
- a number is a number: no booleans, no floats, nothing below zero;
- who asks without an id (JSON-RPC 2.0, section 4.1) gets no answer.

How frames travel (topics, QoS, lines on a serial port) is the transport's business.
"""

import json
import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, cast

from mgota.core.strict_json import parse_object
from mgota.errors import BusyError, FlashError, MalformedError, OtaError, RejectedError, TransferError

MAX_CHUNK: Final = 64 * 1024
"""Bytes of the image in one frame, at most."""

MAX_FRAME: Final = 4 * MAX_CHUNK // 3 + 4096
"""Bytes of a frame, at most: a chunk as base64 and what stands around it."""

UPLOAD: Final = "ota.upload"
UPDATE: Final = "ota.update"
ABORT: Final = "ota.abort"
STATUS: Final = "ota.status"
COMMIT: Final = "ota.commit"
ROLLBACK: Final = "ota.rollback"
NOTIFY: Final = "status.notify"

OK: Final = "ok"
"""The result of a plain request."""

Id = int | str | None
"""What ties a reply to its request; None asks for no reply."""

KINDS: Final[dict[str, type[OtaError]]] = {
    "rejected": RejectedError,
    "transfer": TransferError,
    "flash": FlashError,
    "busy": BusyError,
}
"""The words for what to do about an error: the second level of the error tree."""

_DEPTH: Final = 8
_LONGEST_ID: Final = 64
_SESSION = re.compile(r"[0-9A-Za-z_-]{16,64}")
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


class Code(IntEnum):
    """What went wrong, for a program."""

    FAILED = 1
    """The request was understood and not carried out."""
    BUSY = 2
    """Somebody else is at it; try again later."""
    PARSE = -32700
    INVALID = -32600
    UNKNOWN_METHOD = -32601
    BAD_PARAMS = -32602


class RpcError(MalformedError):
    """A frame that is no request, or one that makes no sense.

    Args:
        code: the code of the error reply.
        message: one line for a person.
        reply_to: the id of the request, as far as it could be read.
    """

    def __init__(self, code: Code, message: str, reply_to: Id = None) -> None:
        super().__init__(message)
        self.code = code
        self.reply_to = reply_to


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks for.

    Args:
        reply_to: its id; None wants no reply.
        method: such as "ota.upload".
        params: by name.
    """

    reply_to: Id
    method: str
    params: dict[str, object] = field(default_factory=dict[str, object])


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an image; an empty one ends the upload.

    Args:
        total: bytes of the image, trailer included.
        offset: where the piece begins.
        data: its bytes.
        session: who sends it, None where the sender does not say.
    """

    total: int
    offset: int
    data: bytes
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Abort:
    """A sender gives its upload up: the device is free for another.

    Args:
        session: its own.
    """

    session: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How far an upload is, as its sender is told.

    Args:
        session: whose it is.
        next: the offset that is expected.
        sealed: all bytes are there and verified.
        activated: the image goes on trial.
    """

    session: str
    next: int
    sealed: bool = False
    activated: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Why something was not done.

    Args:
        code: a `Code`, or another number of a foreign device's.
        message: one line for a person.
        session: whose upload it concerns.
        next: the offset from which its sender can go on; None if it cannot.
        final: the session is over.
        kind: what to do about it, one of `KINDS`; None if the device does not say.
    """

    code: int
    message: str
    session: str | None = None
    next: int | None = None
    final: bool = False
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a fault, or else the result.

    Args:
        reply_to: the id of the request; None if it could not be read.
        result: what was asked for.
        fault: why it was not done.
    """

    reply_to: Id
    result: object = None
    fault: Fault | None = None


def kind_of(error: OtaError) -> str | None:
    """The word of an error's kind."""
    return next((word for word, kind in KINDS.items() if isinstance(error, kind)), None)


def code_of(error: OtaError) -> Code:
    """The code that an error is reported with."""
    if isinstance(error, RpcError):
        return error.code
    return Code.BUSY if isinstance(error, BusyError) else Code.FAILED


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_request(request: Request) -> bytes:
    """A request as bytes."""
    frame: dict[str, object] = {} if request.reply_to is None else {"id": request.reply_to}
    return _encode(frame | {"method": request.method, "params": request.params})


def encode_reply(reply: Reply) -> bytes:
    """A reply as bytes."""
    fault = reply.fault
    if fault is None:
        result = _standing(reply.result) if isinstance(reply.result, Standing) else reply.result
        return _encode({"id": reply.reply_to, "result": result})
    error: dict[str, object] = {"code": int(fault.code), "message": fault.message}
    data: dict[str, object] = {} if fault.session is None else {"session": fault.session}
    if fault.next is not None:
        data["next"] = fault.next
    if fault.final:
        data["final"] = True
    if fault.kind is not None:
        data["kind"] = fault.kind
    return _encode({"id": reply.reply_to, "error": error | ({"data": data} if data else {})})


def upload_request(reply_to: Id, chunk: Chunk, method: str = UPLOAD) -> Request:
    """The request that carries a chunk."""
    params: dict[str, object] = {"total": chunk.total, "offset": chunk.offset, "chunk": b64encode(chunk.data).decode()}
    if chunk.session is not None:
        params["session"] = chunk.session
    return Request(reply_to, method, params)


def encode_upload(reply_to: int, chunk: Chunk, method: str = UPLOAD) -> bytes:
    """`encode_request` of `upload_request`, without a look at every character of the base64: none has to be escaped.

    Args:
        reply_to: the id of the request.
        chunk: what it carries.
        method: by which name the device is asked.
    """
    session = b"" if chunk.session is None else b',"session":' + json.dumps(chunk.session).encode()
    head = b'{"id":%d,"method":"%b","params":{"total":%d,"offset":%d,"chunk":"'
    head %= (reply_to, method.encode(), chunk.total, chunk.offset)
    return b"".join((head, b64encode(chunk.data), b'"', session, b"}}"))


def abort_request(reply_to: Id, abort: Abort) -> Request:
    """The request that gives an upload up."""
    return Request(reply_to, ABORT, {"session": abort.session})


def presence(
    *,
    online: bool,
    version: str | None,
    last_update: Mapping[str, object] | None = None,
    gateway: str | None = None,
    devices: Sequence[str] = (),
) -> bytes:
    """What a device says of itself, and leaves behind as its last will.

    Args:
        online: whether it is there.
        version: of the firmware that runs, if it is known.
        last_update: the last one that ended, with the members of the history (SPEC.md), if there is one to tell.
        gateway: the topic of the gateway's own presence, of a device that is behind one: the broker says there when
            all of its devices are gone.
        devices: of a gateway, the names of its devices.
    """
    params: dict[str, object] = {"status": "online" if online else "offline", "firmware_version": version or ""}
    if last_update:
        params["last_update"] = dict(last_update)
    if gateway is not None:
        params["gateway"] = gateway
    if devices:
        params["devices"] = list(devices)
    return _encode({"method": NOTIFY, "params": params})


def _standing(standing: Standing) -> dict[str, object]:
    told: dict[str, object] = {"session": standing.session, "next": standing.next}
    return told | {name: True for name in ("sealed", "activated") if getattr(standing, name)}


def _encode(frame: dict[str, object]) -> bytes:
    return json.dumps(frame, separators=(",", ":")).encode()


# --- decoding ---------------------------------------------------------------------------------------------------------


def decode_request(data: bytes, *, limit: int = MAX_FRAME) -> Request:
    """What a frame asks for.

    Args:
        data: the frame.
        limit: most bytes.

    Raises:
        RpcError: it asks for nothing that makes sense.
    """
    try:
        frame = parse_object(data, limit=limit, depth=_DEPTH)
    except MalformedError as exc:
        raise RpcError(Code.PARSE, str(exc)) from exc
    reply_to, method, params = frame.get("id"), frame.get("method"), frame.get("params", {})
    if not _is_id(reply_to):
        raise RpcError(Code.INVALID, "the id is neither a number nor a short text")
    reply_to = cast(Id, reply_to)
    if not isinstance(method, str):
        raise RpcError(Code.INVALID, "a request names its method", reply_to)
    if not isinstance(params, dict):
        raise RpcError(Code.BAD_PARAMS, "params is not an object", reply_to)
    return Request(reply_to, method, cast(dict[str, object], params))


def is_reply(data: bytes) -> bool:
    """Whether a frame on the way to a device looks like somebody's reply: answering those could go on for ever."""
    head = data[:4096]
    return b'"method"' not in head and (b'"result"' in head or b'"error"' in head)


def decode_reply(data: bytes, *, limit: int = MAX_FRAME) -> Reply:
    """What a frame answers.

    Args:
        data: the frame.
        limit: most bytes.

    Raises:
        MalformedError: it is no reply.
    """
    frame = parse_object(data, limit=limit, depth=_DEPTH)
    reply_to = frame.get("id")
    if not _is_id(reply_to):
        raise MalformedError("the id of a reply is neither a number nor a short text")
    if "error" in frame:
        return Reply(cast(Id, reply_to), fault=_fault(frame["error"]))
    if "result" not in frame:
        raise MalformedError("a reply has a result or an error")
    return Reply(cast(Id, reply_to), frame["result"])


def read_chunk(request: Request) -> Chunk:
    """The chunk that an upload request carries.

    Raises:
        RpcError: it carries none.
    """
    params = request.params
    session = read_session(request)
    text = params.get("chunk")
    total, offset = (_count(request, name) for name in ("total", "offset"))
    if not isinstance(text, str):
        raise RpcError(Code.BAD_PARAMS, "chunk is not a text", request.reply_to)
    try:
        data = b64decode(text, validate=True)
    except (Base64Error, ValueError) as exc:
        raise RpcError(Code.BAD_PARAMS, "chunk is not base64", request.reply_to) from exc
    if b64encode(data) != text.encode():
        raise RpcError(Code.BAD_PARAMS, "chunk is not base64 as it should be spelled", request.reply_to)
    if len(data) > MAX_CHUNK:
        raise RpcError(Code.BAD_PARAMS, f"a chunk has at most {MAX_CHUNK} bytes", request.reply_to)
    return Chunk(total, offset, data, session)


def read_session(request: Request) -> str | None:
    """The session that a request names, if it names one.

    Raises:
        RpcError: that is no session.
    """
    session = request.params.get("session")
    if session is None or (isinstance(session, str) and _SESSION.fullmatch(session)):
        return session
    raise RpcError(Code.BAD_PARAMS, "session is not 16 to 64 letters, digits, - and _", request.reply_to)


def read_abort(request: Request) -> Abort:
    """Whose upload is given up.

    Raises:
        RpcError: it does not say.
    """
    session = read_session(request)
    if session is None:
        raise RpcError(Code.BAD_PARAMS, "whose upload? a session is missing", request.reply_to)
    return Abort(session)


def read_image(request: Request) -> str | None:
    """The SHA-256 of the image that a commit or rollback is meant for, if it names one.

    Raises:
        RpcError: that is no SHA-256.
    """
    image = request.params.get("image")
    if image is None or (isinstance(image, str) and _SHA256.fullmatch(image)):
        return image
    raise RpcError(Code.BAD_PARAMS, "image is not a SHA-256 in hex", request.reply_to)


def read_standing(result: object) -> Standing:
    """What a device says of an upload with a session.

    Raises:
        MalformedError: it says something else.
    """
    found = cast(dict[str, object], result) if isinstance(result, dict) else {}
    session, following = found.get("session"), found.get("next")
    flags = [found.get(name, False) for name in ("sealed", "activated")]
    if not isinstance(session, str) or not _is_count(following) or not all(isinstance(flag, bool) for flag in flags):
        raise MalformedError("the result says nothing of an upload with a session")
    return Standing(session, cast(int, following), sealed=bool(flags[0]), activated=bool(flags[1]))


def is_session(text: str) -> bool:
    """Whether this can be a session's id."""
    return _SESSION.fullmatch(text) is not None


def _fault(error: object) -> Fault:
    found = cast(dict[str, object], error) if isinstance(error, dict) else {}
    code, message, data = found.get("code"), found.get("message", ""), found.get("data")
    if type(code) is not int or not isinstance(message, str):
        raise MalformedError("an error has a code and a message")
    data = cast(dict[str, object], data) if isinstance(data, dict) else {}
    session, following = data.get("session"), data.get("next")
    return Fault(
        code,
        message,
        session=session if isinstance(session, str) else None,
        next=cast(int, following) if _is_count(following) else None,
        final=data.get("final") is True,
        kind=kind if isinstance(kind := data.get("kind"), str) else None,
    )


def _count(request: Request, name: str) -> int:
    value = request.params.get(name)
    if not _is_count(value):
        raise RpcError(Code.BAD_PARAMS, f"{name} is not a number of bytes", request.reply_to)
    return cast(int, value)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0  # a bool is an int as well


def _is_id(value: object) -> bool:
    return value is None or type(value) is int or (isinstance(value, str) and len(value) <= _LONGEST_ID)
