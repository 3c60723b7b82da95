"""TLS over a channel, with the same calls: encryption between two memory buffers, the socket stays ours.

So back-pressure and the counting of seconds are those of the plain channel.
"""

import ssl
from contextlib import suppress
from typing import Final, cast

from mgota.errors import ConfigError, TransferError
from mgota.transports.http.channel import PlainChannel

_BLOCK: Final = 64 * 1024
# Four TLS records of the largest size (RFC 8446 section 5.1).


def check_context(context: ssl.SSLContext) -> None:
    """Whether a server may use this context.

    Raises:
        ConfigError: it is a client's, or it allows what is older than TLS 1.2.
    """
    if context.protocol not in {ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS}:
        raise ConfigError("a server needs an SSLContext made with PROTOCOL_TLS_SERVER")
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:  # MINIMUM_SUPPORTED is negative
        raise ConfigError("this SSLContext allows TLS older than 1.2; set its minimum_version to TLSv1_2")


class TlsChannel:
    """The server's end of a TLS connection; see `Channel`.

    Args:
        raw: the connection under it.
        context: certificate and key, and whether clients must show theirs.
    """

    def __init__(self, raw: PlainChannel, context: ssl.SSLContext) -> None:
        self._raw = raw
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._block = memoryview(bytearray(_BLOCK))
        self._finished = False

    async def handshake(self) -> None:
        """Agree on keys.

        Raises:
            TransferError: the client is none, shows no certificate that is trusted, or went away.
        """
        while True:
            try:
                self._ssl.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not self._pull():
                    await self._raw.wait_readable()
            except ssl.SSLError as exc:
                await self._flush()  # the alert says why
                raise TransferError(f"no TLS connection: {exc.reason or 'the client went away'}") from exc
            else:
                await self._flush()
                return

    def _pull(self) -> bool:
        """Move what is there into the incoming buffer; False if nothing is there yet."""
        count = self._raw.recv_now(self._block)
        if count is None:
            return False
        if count:
            self._incoming.write(self._block[:count])
        else:
            self._incoming.write_eof()
        return True

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._raw.send(self._outgoing.read())

    def recv_now(self, view: memoryview) -> int | None:
        """See `Channel`."""
        if self._finished:
            return self._raw.recv_now(view)
        while True:
            try:
                # With a buffer to fill it returns a number; typeshed knows only the other form.
                return cast(int, self._ssl.read(len(view), view))
            except ssl.SSLWantReadError:
                if not self._pull():
                    return None
            except ssl.SSLError:
                return 0  # cut off, or forged: what came before is authentic, more will not come

    async def wait_readable(self) -> None:
        """See `Channel`."""
        await self._flush()
        await self._raw.wait_readable()

    def expect(self, size: int) -> None:
        """See `Channel`. Not passed on: a part of these bytes may wait here already, for the end of their record."""

    def fileno(self) -> int | None:
        """See `Channel`."""
        return self._raw.fileno()

    def wait_blocking(self, timeout: float) -> bool:
        """See `Channel`. What TLS itself has to say meanwhile is said by the next `wait_readable`."""
        return self._raw.wait_blocking(timeout)

    async def send(self, data: bytes) -> None:
        """See `Channel`."""
        for start in range(0, len(data), _BLOCK):
            try:
                self._ssl.write(data[start : start + _BLOCK])
            except ssl.SSLError as exc:
                raise TransferError("the client is gone") from exc
            await self._flush()

    async def finish(self) -> None:
        """See `Channel`."""
        with suppress(ssl.SSLError):  # our close_notify is written; the client's is not worth a wait
            self._ssl.unwrap()
        self._finished = True
        with suppress(TransferError):
            await self._flush()
        await self._raw.finish()

    async def aclose(self) -> None:
        """See `Channel`."""
        await self._raw.aclose()
