"""Mongoose's older routes: an image in pieces, a request for each. The rules are those of every upload in pieces.

Rules:
- no connection owns the upload: it lasts until its end, or until 30 s pass in which no piece was taken;
- an empty body ends it; silence does not, as it does over MQTT: these dashboards send the empty one.
"""

from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Final

from mgota.core.edge import Decision
from mgota.core.older import firmware_status
from mgota.core.receive import Answer, Patience
from mgota.core.rpc import Chunk
from mgota.device import Device
from mgota.pieces import Pieces
from mgota.transports.http.message import Response

TRUE: Final = Response.line("true")
"""What these dashboards expect."""

PATIENCE: Final = Patience(idle=30.0, silence=None)
"""With who uploads."""

Tell = Callable[[Response, bool], Awaitable[None]]
"""Sends a response; True where the device acts on it, so that the connection ends with it."""


class Older:
    """The older routes of one device.

    Args:
        device: what is updated.
        receiver: takes the pieces.
    """

    def __init__(self, device: Device, receiver: Pieces) -> None:
        self._device = device
        self._receiver = receiver

    async def slots(self) -> Response:
        """What the two slots hold."""
        record, _ = await self._device.load()
        return Response.json(firmware_status(record, await self._device.flash.running_slot()))

    async def take(self, decision: Decision, body: AsyncIterable[bytes], tell: Tell) -> None:
        """Take a piece and answer.

        Raises:
            TransferError: its body ended early, or stalled. The upload stays where it was.
        """
        data = bytearray()
        async for part in body:
            data += part

        async def told(answer: Answer) -> None:
            response = TRUE if answer.error is None else Response.line(str(answer.error), 500)
            response = answer.instead if isinstance(answer.instead, Response) else response
            await tell(response, answer.activated)

        await self._receiver.take(Chunk(decision.total, decision.offset, bytes(data)), told)
