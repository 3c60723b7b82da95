"""A packed image on its way from the body of an update to flash: unpacked in the thread that writes it.

Rules:
- what is written is never more than was announced, and a piece at a time: memory stays as it is;
- a few bytes can stand for many, so a cancellation lands between two pieces of what they stand for.
"""

import anyio.from_thread
import anyio.to_thread

from mgota.core.unpack import Packing, Unpacker
from mgota.ports import ReadableBuffer
from mgota.transports.http.upload import Sink


class UnpackingSink:
    """Where a packed body goes; a `Sink` of packed bytes.

    Args:
        sink: where the unpacked image goes; its `size` is what may come out.
        packing: how the body is packed.
        length: bytes of the body.
    """

    def __init__(self, sink: Sink, packing: Packing, length: int) -> None:
        self.size = length
        self.received = 0
        self._sink = sink
        self._unpacker = Unpacker(packing, sink.size)

    @property
    def blocking(self) -> bool:
        """See `Sink`."""
        return self._sink.blocking

    async def write(self, chunk: ReadableBuffer) -> None:
        """Unpack the next bytes of the body, and store what they stand for.

        Raises:
            OverrunError: it is more than was announced.
            MalformedError: they are not packed like that.
            FlashError: it could not be stored.
        """
        pieces = self._unpacker.feed(chunk)
        while (piece := await anyio.to_thread.run_sync(next, pieces, None)) is not None:
            await self._sink.write(piece)
        self.received += len(chunk)

    def write_blocking(self, chunk: ReadableBuffer) -> None:
        """`write`, for a caller that is in a thread of anyio's already."""
        for piece in self._unpacker.feed(chunk):
            anyio.from_thread.check_cancelled()
            self._sink.write_blocking(piece)
        self.received += len(chunk)

    def finish(self) -> None:
        """The whole body came.

        Raises:
            TruncatedError: it stands for less than was announced.
            TransferError: it ends before its own end.
        """
        self._unpacker.finish()
