"""One client's connection: request heads in, responses out. The only module of the server that knows h11.

h11 parses the head and writes the response; one `h11.Connection` serves one request, so nothing of a request lives on
in the next. The head is cut off and its framing judged on the raw bytes before h11 sees it (`mgota.core.http`).
"""

from collections.abc import AsyncGenerator, AsyncIterable

import anyio
import anyio.lowlevel
import h11

from mgota.core.http import Head, Refusal, head_end, head_fault
from mgota.core.pace import Limits, Pace
from mgota.errors import TransferError
from mgota.transports.http.channel import Channel, receive
from mgota.transports.http.message import Response

_SCRATCH = 16 * 1024
_BODILESS = frozenset({204, 304})

_COMMON = (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"))
# On every response, unless the application says otherwise: nothing here is a page, and nothing keeps.


def parse_head(raw: bytes, limits: Limits) -> "tuple[h11.Connection, Head] | Refusal":
    """A request head, from its request line to its empty line; or what is wrong with it."""
    refusal = head_fault(raw, max_bytes=limits.head_bytes, max_fields=limits.fields)
    if refusal is not None:
        return refusal
    # The size was judged; h11 would count the whole head once more.
    state = h11.Connection(h11.SERVER, max_incomplete_event_size=len(raw))
    state.receive_data(raw)
    try:
        event = state.next_event()
        if not isinstance(event, h11.Request):
            return Refusal(400, "malformed request head")
        state.next_event()  # the end of the message, if it has no body
    except h11.RemoteProtocolError as exc:
        # Never the text of the exception: it repeats the line that it dislikes, which may hold a secret.
        hosts = str(exc).startswith(("Missing mandatory Host", "Found multiple Host"))
        return Refusal(exc.error_status_hint, "a request needs exactly one Host" if hosts else "malformed request head")
    fields = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
    return state, Head(event.method.decode("ascii"), event.target.decode("ascii"), fields)


def encode_response(state: h11.Connection, response: Response, *, method: str, close: bool) -> bytes:
    """A response as bytes.

    Args:
        state: of the request that it answers.
        response: the answer.
        method: of the request; a HEAD gets no body.
        close: whether the connection ends with it.

    Raises:
        h11.LocalProtocolError: a header field is none.
    """
    data = encode_head(state, response, size=len(response.body), close=close)
    if response.status not in _BODILESS and method != "HEAD":
        data += state.send(h11.Data(data=response.body))
    return data + state.send(h11.EndOfMessage())


def encode_head(state: h11.Connection, response: Response, *, size: int, close: bool) -> bytes:
    """The head of a response as bytes.

    Args:
        state: of the request that it answers.
        response: the answer; its body is not looked at.
        size: bytes of the body.
        close: whether the connection ends with it.

    Raises:
        h11.LocalProtocolError: a header field is none.
    """
    named = {name.lower() for name, _ in response.headers}
    headers = [field for field in _COMMON if field[0].lower() not in named]
    if response.status not in _BODILESS:
        headers += [("Content-Type", response.content_type), ("Content-Length", str(size))]
    headers += response.headers
    if close:
        headers.append(("Connection", "close"))
    return state.send(h11.Response(status_code=response.status, headers=headers))


class Exchange:
    """One request and its response.

    Args:
        connection: that it came on.
        head: of the request; one that cannot be read is empty.
        state: h11's.
        fault: why the head cannot be read, if so.
    """

    def __init__(
        self, connection: "Connection", head: Head, state: h11.Connection, fault: Refusal | None = None
    ) -> None:
        self.head = head
        self.fault = fault
        self.answered = False
        self._connection = connection
        self._state = state

    @property
    def connection(self) -> "Connection":
        """Where it came on."""
        return self._connection

    async def proceed(self) -> None:
        """Tell a client that waits for it to send the body: `100 Continue`.

        Raises:
            TransferError: it is gone.
        """
        if self._state.they_are_waiting_for_100_continue:
            data = self._state.send(h11.InformationalResponse(status_code=100, headers=[]))
            if not self._connection.pending:  # else it did not wait after all
                await self._connection.channel.send(data)

    async def body(self) -> AsyncGenerator[bytes]:
        """The body as it comes, for an application.

        Raises:
            TransferError: it ended early, was malformed, or stalled.
        """
        connection, state = self._connection, self._state
        pace, scratch = Pace(connection.limits), memoryview(bytearray(_SCRATCH))
        if state.their_state is not h11.SEND_BODY:
            return
        await self.proceed()
        if connection.pending:
            state.receive_data(bytes(connection.pending))
            connection.pending.clear()
        while True:
            try:
                event = state.next_event()
            except h11.RemoteProtocolError as exc:
                raise TransferError("the body ended early or is malformed") from exc
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif event is h11.NEED_DATA:
                count = await receive(connection.channel, scratch, pace)
                state.receive_data(bytes(scratch[:count]))
            else:
                connection.pending += state.trailing_data[0]
                return

    async def respond(self, response: Response, *, close: bool = False) -> bool:
        """Send the response. The connection lives on if nothing speaks against it.

        Args:
            response: what to send.
            close: whether the connection must end with it.

        Returns:
            Whether another request may follow.

        Raises:
            TransferError: the client is gone.
        """
        keep = not close and response.status < 400 and self._state.their_state is h11.DONE
        data = encode_response(self._state, response, method=self.head.method, close=not keep)
        self.answered = True
        await self._connection.channel.send(data)
        return keep

    async def respond_in_pieces(self, response: Response, size: int, pieces: AsyncIterable[bytes]) -> bool:
        """Send a response whose body is not held in memory.

        Args:
            response: its head.
            size: bytes of the body.
            pieces: of the body; not asked for one where none is sent.

        Returns:
            Whether another request may follow.

        Raises:
            TransferError: the client is gone, or there were fewer bytes than promised.
        """
        keep = self._state.their_state is h11.DONE
        send = self._connection.channel.send
        head = encode_head(self._state, response, size=size, close=not keep)
        self.answered = True
        await send(head)
        try:
            if response.status not in _BODILESS and self.head.method != "HEAD":
                async for piece in pieces:
                    await send(self._state.send(h11.Data(data=piece)))
            self._state.send(h11.EndOfMessage())
        except h11.LocalProtocolError as exc:
            raise TransferError("the body was not as long as it was said to be") from exc
        return keep


class Connection:
    """What came on a connection and was not used yet, and what may still come.

    Args:
        channel: the bytes.
        limits: what is granted.
        pending: bytes that were received before.
    """

    def __init__(self, channel: Channel, limits: Limits, pending: bytes = b"") -> None:
        self.channel = channel
        self.limits = limits
        self.pending = bytearray(pending)
        self._scratch = memoryview(bytearray(_SCRATCH))
        self._first = True

    async def next_exchange(self, deadline: float) -> Exchange | None:
        """Wait for a request head.

        Args:
            deadline: until when, for the first head; later ones have their own patience.

        Returns:
            None if the client went away, or did not ask for anything.
        """
        if not self._first:
            with anyio.move_on_after(self.limits.keep_alive):
                if not self.pending and not await self._more():
                    return None
            if not self.pending:
                return None
            deadline = anyio.current_time() + self.limits.head
        self._first = False
        found: bytes | Refusal | None = Refusal(408, "the request head took too long")
        with anyio.CancelScope(deadline=deadline):
            found = await self._raw_head()
        if found is None or (not self.pending and isinstance(found, Refusal)):
            return None
        parsed = parse_head(found, self.limits) if isinstance(found, bytes) else found
        if isinstance(parsed, Refusal):
            return Exchange(self, Head("", ""), h11.Connection(h11.SERVER), parsed)
        return Exchange(self, parsed[1], parsed[0])

    async def turn_away(self, response: Response) -> None:
        """Answer before anything was asked.

        Raises:
            TransferError: the client is gone.
        """
        await Exchange(self, Head("", ""), h11.Connection(h11.SERVER)).respond(response, close=True)

    async def _raw_head(self) -> bytes | Refusal | None:
        """Cut the next head off `pending`: its bytes, or why there is none; None if the client went away."""
        searched = 0
        while (end := head_end(self.pending, searched)) is None:
            searched = len(self.pending)
            if searched > self.limits.head_bytes:
                return Refusal(431, f"the request head is larger than {self.limits.head_bytes} bytes")
            if self.pending[:1] and self.pending[0] <= 0x20:  # a TLS client on a plain port, for one
                return Refusal(400, "malformed request head")
            if not await self._more():
                return None
        raw = bytes(self.pending[:end])
        del self.pending[:end]
        return raw

    async def _more(self) -> int:
        """Wait for bytes and keep them: how many came, 0 at the end."""
        while (count := self.channel.recv_now(self._scratch)) is None:
            await self.channel.wait_readable()
        self.pending += self._scratch[:count]
        return count

    async def part(self, seconds: float) -> None:
        """Close without cutting the client off: say that nothing more comes, then read until it closes, too.

        A socket that is closed with unread bytes in it is reset, and the reset destroys the response on its way.

        Args:
            seconds: how long to wait for that.
        """
        left = self.limits.drain
        with anyio.move_on_after(seconds):
            await self.channel.finish()
            while left > 0:
                count = self.channel.recv_now(self._scratch)
                if count is None:
                    await self.channel.wait_readable()
                elif count == 0:
                    break
                else:
                    left -= count
                    await anyio.lowlevel.checkpoint()
        await self.channel.aclose()
