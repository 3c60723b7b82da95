"""What is said to a GDB server: OpenOCD, pyOCD, Black Magic Probe, a J-Link's or ST-Link's server, QEMU.

    $qSupported#37 ──► +$PacketSize=1000;qXfer:memory-map:read+#a9 ──► +
    $vFlashErase:8000000,4000#…  ──► OK      $vFlashWrite:8000000:…#…  ──► OK      $vFlashDone#ea ──► OK

Rules:
- a request has one answer; what nobody asked for is passed over: stop packets (a server may send one to whoever
  connects), output of the program, notifications, and answers to what was asked in an earlier life (`find`);
- "-" has the request said again: the server did not take it. A garbled answer is asked for again by "-" while there are
  acknowledgements; without them it is a `LinkError`, for nobody knows what became of the request;
- an empty answer means that the server does not know the request, "E…" that it refuses: both are `RefusedError`.

Source: GDB manual, appendix E "GDB Remote Serial Protocol": E.2 (packets), E.4 (general queries).
"""

import re
from collections.abc import Generator
from typing import Final

from mgota.core.gdb_packets import MAX_PACKET, checksum, escape, expand, frame
from mgota.core.memory_map import LIMIT, Memory, parse_memory_map
from mgota.core.talk import Send, Talk, Want
from mgota.errors import LinkError, NoAnswerError, RefusedError

SHORT: Final = 3.0
"""Seconds that a server has to answer what takes a probe little time."""

FOUND: Final = 1.0
"""Seconds that it has while it is looked for."""

QUIET: Final = 0.2
"""Seconds of silence after which nothing more is coming."""

ERASE_TIME: Final = 30.0
"""Seconds for the erase of one sector, and for programming what was sent."""

MONITOR_TIME: Final = 10.0
"""Seconds between two pieces of what a monitor command says."""

DEFAULT_PACKET: Final = 400
"""Bytes of a packet that any server takes: GDB's own assumption."""

MIN_PACKET: Final = 64
OVERHEAD: Final = 40
"""Bytes of a packet that are no data, at most: "$vFlashWrite:", 16 digits, ":", "#xx"."""

CALLS: Final = 5
"""How often a server is called that does not answer."""

GARBLED: Final = 3
"""Garbled answers in a row that are asked for again."""

UNASKED: Final = 1000
"""Packets that nobody asked for, before an answer."""

_ACK, _NAK, _INTERRUPT = b"+", b"-", b"\x03"
_STOPPED: Final = re.compile(rb"[STWX][0-9a-fA-F]{2}.*", re.DOTALL)
_SAID: Final = re.compile(rb"O((?:[0-9a-fA-F]{2})+)")
_HEX: Final = re.compile(rb"(?:[0-9a-fA-F]{2})*")
_ERROR: Final = re.compile(rb"E(?:([0-9a-fA-F]{2})|\.(.*))", re.DOTALL)
_CRC: Final = re.compile(rb"C([0-9a-fA-F]{1,8})")
_SIZE: Final = re.compile(rb"[0-9a-fA-F]{1,8}")


class GdbServer:
    """A server, and what it said of itself. Its methods are talks."""

    def __init__(self) -> None:
        self.acks = True
        """Whether each packet is acknowledged."""
        self.packet = DEFAULT_PACKET
        """Bytes of the longest packet that it takes."""
        self.features: frozenset[bytes] = frozenset()
        """What it said that it can."""
        self.binary = False
        """Whether it takes memory as bytes; else as digits."""

    @property
    def room(self) -> int:
        """Bytes of memory that fit into one packet, whatever they are."""
        return (self.packet - OVERHEAD) // 2

    def find(self) -> Talk[None]:
        """Stop the chip, let everything go by that is still coming, and get an answer to what is asked now.

        A server that was left in the midst of a packet begins anew at the next one.

        Raises:
            NoAnswerError: nothing answers.
            LinkError: something else answers.
        """
        failure: LinkError = NoAnswerError("no GDB server answers: does it run, and is nobody else connected to it?")
        yield Send(_ACK + _INTERRUPT)
        yield from _silence()
        for _ in range(CALLS):
            yield Send(frame(b"vMustReplyEmpty"))
            try:
                for _ in range(UNASKED):
                    if (yield from self._packet(FOUND)) == b"":
                        return (yield from _silence())  # a second answer, if it was called twice
            except NoAnswerError:
                continue
            except LinkError as exc:
                failure = exc
        raise failure

    def greet(self) -> Talk[None]:
        """Learn what a server can; agree on doing without acknowledgements where it offers that.

        Raises:
            LinkError: it does not say what a GDB server says.
        """
        answer = yield from self._ask(b"qSupported")
        self.features = frozenset(word[:-1] for word in answer.split(b";") if word.endswith(b"+"))
        sizes = [word[11:] for word in answer.split(b";") if word.startswith(b"PacketSize=")]
        if sizes:
            if not _SIZE.fullmatch(sizes[0]) or int(sizes[0], 16) < MIN_PACKET:
                raise LinkError(f"the GDB server takes packets of {_text(sizes[0])} bytes (hexadecimal): too few")
            self.packet = min(int(sizes[0], 16), MAX_PACKET)
        if b"QStartNoAckMode" in self.features:
            yield from self._do(b"QStartNoAckMode", "do without acknowledgements")
            self.acks = False
        self.binary = (yield from self._ask(b"X0,0:")) == b"OK"

    def memory_map(self) -> Talk[tuple[Memory, ...]]:
        """The memories of the chip; none if the server does not tell them.

        Raises:
            LinkError: it tells something else.
        """
        if b"qXfer:memory-map:read" not in self.features:
            return ()
        document = b""
        while len(document) <= LIMIT:
            request = b"qXfer:memory-map:read::%x,%x" % (len(document), self.room)
            answer = yield from self._ask(request)
            document += answer[1:]
            if answer[:1] == b"l":
                return parse_memory_map(document)
            if answer[:1] != b"m" or len(answer) == 1:
                raise _refusal(answer, "tell the chip's memory map")
        raise LinkError(f"the GDB server's memory map is longer than {LIMIT} bytes")

    def read(self, address: int, size: int) -> Talk[bytes]:
        """Read memory.

        Args:
            address: of the first byte.
            size: bytes.

        Raises:
            RefusedError: it cannot be read.
        """
        data = b""
        while len(data) < size:
            piece = min(size - len(data), self.room)
            what = f"read memory at {address + len(data):#x}"
            answer = yield from self._ask(b"m%x,%x" % (address + len(data), piece))
            if not answer or len(answer) > 2 * piece or not _HEX.fullmatch(answer):
                raise _refusal(answer, what)
            data += bytes.fromhex(answer.decode())
        return data

    def write(self, address: int, data: bytes) -> Talk[None]:
        """Write memory; flash memory takes no notice of it, but in a simulator.

        Raises:
            RefusedError: it cannot be written.
        """
        for at in range(0, len(data), self.room):
            piece = data[at : at + self.room]
            place = (address + at, len(piece))
            request = b"X%x,%x:" % place + escape(piece) if self.binary else b"M%x,%x:" % place + piece.hex().encode()
            yield from self._do(request, f"write memory at {address + at:#x}")

    def flash_erase(self, address: int, length: int) -> Talk[None]:
        """Erase whole blocks of flash memory; a server may wait with it until `flash_done`."""
        yield from self._do(b"vFlashErase:%x,%x" % (address, length), f"erase flash at {address:#x}", ERASE_TIME)

    def flash_write(self, address: int, data: bytes) -> Talk[None]:
        """Program flash memory that is erased; in effect after `flash_done`."""
        for at in range(0, len(data), self.room):
            request = b"vFlashWrite:%x:" % (address + at) + escape(data[at : at + self.room])
            yield from self._do(request, f"program flash at {address + at:#x}", ERASE_TIME)

    def flash_done(self) -> Talk[None]:
        """Carry out what waits; only after `flash_write`, for OpenOCD fails over nothing to program."""
        yield from self._do(b"vFlashDone", "program flash", ERASE_TIME)

    def crc(self, address: int, size: int) -> Talk[int | None]:
        """The checksum of memory, computed by the server or the chip: crcmod's "crc-32-mpeg".

        Returns:
            It, or None if the server computes none.
        """
        answer = yield from self._ask(b"qCRC:%x,%x" % (address, size), ERASE_TIME)
        if not answer:
            return None
        found = _CRC.fullmatch(answer)
        if not found:
            raise _refusal(answer, f"compute a checksum at {address:#x}")
        return int(found[1], 16)

    def monitor(self, command: str) -> Talk[str]:
        """A command in the server's own language, such as "reset halt".

        Returns:
            What it said, for a person.

        Raises:
            RefusedError: it failed, or the server has no such commands.
        """
        said: list[bytes] = []
        answer = yield from self._ask(b"qRcmd," + command.encode().hex().encode(), MONITOR_TIME, said)
        if answer != b"OK":
            if not answer or not _HEX.fullmatch(answer):
                raise _refusal(answer, f"carry out {command!r}", b"".join(said))
            said.append(bytes.fromhex(answer.decode()))
        return b"".join(said).decode(errors="replace")

    def run(self) -> Talk[None]:
        """Let the chip run; `find` stops it. There is no answer while it runs.

        Raises:
            RefusedError: it does not run, or not for long.
        """
        try:
            yield from _silence()  # a stop packet that comes now is from before
            answer = yield from self._ask(b"c", QUIET, stopped=True)
        except NoAnswerError:
            return
        if _STOPPED.fullmatch(answer):
            raise RefusedError(f"the chip was let run, and stopped at once: {_text(answer)}")
        raise _refusal(answer, "let the chip run")

    def detach(self) -> Talk[None]:
        """Let the chip run, with nobody watching: the last that is said on a wire. QEMU fails over what comes after."""
        yield from self._do(b"D", "let the chip run")

    def _do(self, request: bytes, what: str, timeout: float = SHORT) -> Talk[None]:
        answer = yield from self._ask(request, timeout)
        if answer != b"OK":
            raise _refusal(answer, what)

    def _ask(
        self, request: bytes, timeout: float = SHORT, said: list[bytes] | None = None, *, stopped: bool = False
    ) -> Talk[bytes]:
        """The answer to a request; what the server says beside it goes to `said`; `stopped` is whether that is one."""
        yield Send(frame(request))
        for _ in range(UNASKED):
            answer = yield from self._packet(timeout)
            if answer is None:
                yield Send(frame(request))
            elif output := _SAID.fullmatch(answer):
                if said is not None:
                    said.append(bytes.fromhex(output[1].decode()))
            elif stopped or not _STOPPED.fullmatch(answer):
                return answer
        raise LinkError("the GDB server talks and talks, and does not answer")

    def _packet(self, timeout: float) -> Talk[bytes | None]:
        """The next packet, or None for "say it again"."""
        garbled = 0
        for _ in range(MAX_PACKET):
            sign = yield Want(1, timeout)
            if sign == _NAK:
                return None
            if sign not in {b"$", b"%"}:
                continue  # an acknowledgement, or noise
            payload = yield from _payload()
            if payload is not None and sign == b"%":
                continue  # a notification: nobody acknowledges it
            if payload is not None:
                yield from self._say(_ACK)
                return payload
            garbled += 1
            if garbled > GARBLED or not self.acks:
                raise LinkError("what the GDB server answered was garbled on its way")
            yield from self._say(_NAK)
        raise LinkError("what answers is no GDB server")

    def _say(self, sign: bytes) -> Generator[Send, bytes, None]:
        if self.acks:
            yield Send(sign)


def _payload() -> Talk[bytes | None]:
    """What stands behind a "$"; None if its sum is wrong."""
    raw = yield Want(MAX_PACKET, SHORT, end=b"#")
    if not raw.endswith(b"#"):
        raise LinkError(f"what answers is no GDB server: a packet of more than {MAX_PACKET} bytes")
    digits = yield Want(2, SHORT)
    body = raw[:-1].rpartition(b"$")[2]  # one that broke off is followed by the next
    return expand(body) if digits.lower() == checksum(body) else None


def _silence() -> Talk[None]:
    """Wait until nothing more comes."""
    for _ in range(MAX_PACKET):
        try:
            yield Want(1, QUIET)
        except NoAnswerError:
            return
    raise LinkError("the link is never quiet: something else talks on it")


def _refusal(answer: bytes, what: str, said: bytes = b"") -> LinkError:
    if not answer:
        return RefusedError(f"the GDB server does not know how to {what}")
    error = _ERROR.fullmatch(answer)
    if not error:
        return LinkError(f"what the GDB server answered makes no sense: asked to {what}, it said {_text(answer)!r}")
    why = f"error 0x{error[1].decode()}" if error[1] else _text(error[2])
    return RefusedError(f"the GDB server refused to {what}: {why}" + (f" ({_text(said)})" if said else ""))


def _text(said: bytes) -> str:
    """Something that a server said, on one line."""
    text = " ".join(said[:200].decode(errors="replace").split())
    return "".join(sign if sign.isprintable() else "?" for sign in text)
