"""The sender over MQTT: an image pushed to a device, and the few questions that one asks of it.

    async for progress in push(Path("app.signed.pyz"), "mqtt://broker.example/site/gateway-7"):
        print(progress.sent, "of", progress.size)

When the iteration ends, the device has said that the update survives any cut. Otherwise it ends in an error, whose kind
says what to do and whose message is the device's own line. Rules:
- what to send when is decided in `core/rpc_window.py` and `core/rpc_single.py`, and carried out in `talk.py`;
- a piece of the image is in memory at a time;
- a broker that cannot be reached at first is an error at once; one that goes away is waited for while patience lasts;
- a device that is known to be offline, or of which nobody ever heard, has 15 seconds, and then it is said plainly;
- who leaves early tells the device, so that it need not wait for the rest;
- commit and rollback are sent once: sent again, they might hit what they led to.
"""

import logging
import secrets
import ssl
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import anyio

from mgota.core.rpc import COMMIT, ROLLBACK, STATUS, Reply, Request, encode_request
from mgota.core.rpc_sender import error_of
from mgota.core.rpc_single import SINGLE_CHUNK, SinglePush
from mgota.core.rpc_window import CHUNK, WINDOW, WindowPush
from mgota.errors import TransferError
from mgota.outgoing import Image, Progress, Source, is_status
from mgota.transports.mqtt.broker import Broker, Version, backoff
from mgota.transports.mqtt.connection import connected
from mgota.transports.mqtt.talk import Inbox, Talk, watched

__all__ = ["CHUNK", "SINGLE_CHUNK", "WINDOW", "Image", "Progress", "Remote", "push"]

log = logging.getLogger("mgota.mqtt")

_EXTRAS: Final = ("session", "next", "total")
# What the status of the dialect has beside the JSON object that HTTP tells.


def push(
    image: Image,
    url: str,
    *,
    user: tuple[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    version: Version = "auto",
    timeout: float = 60.0,
    window: int = WINDOW,
    chunk: int | None = None,
    stop_and_wait: bool = False,
) -> AsyncGenerator[Progress]:
    """Push an image to a device: `Remote.push`. Who leaves the iteration early closes it (`contextlib.aclosing`).

    Args:
        image: what to push, trailer included.
        url: of the device; see `Remote`.
        user: name and password for the broker.
        ssl_context: for mqtts; the system's trust if omitted.
        version: of MQTT: "3.1.1", "5", or "auto".
        timeout: seconds in which something has to move; the last wait is for the device to read back and verify.
        window: chunks in flight.
        chunk: bytes of a chunk; 16 KiB if omitted, and 4 KiB with `stop_and_wait`.
        stop_and_wait: one chunk at a time and without a session, for devices of Mongoose.
    """
    remote = Remote(
        url,
        user=user,
        ssl_context=ssl_context,
        version=version,
        timeout=timeout,
        window=window,
        chunk=chunk,
        stop_and_wait=stop_and_wait,
    )
    return remote.push(image)


class Remote:
    """A device behind a broker.

    Args:
        url: `mqtt://HOST[:PORT]/ROOT/DEVICE`, or `mqtts:` for TLS. Name and password for the broker may stand in it.
        user: name and password for the broker.
        ssl_context: for mqtts; the system's trust if omitted.
        version: of MQTT: "3.1.1", "5", or "auto".
        timeout: seconds in which something has to move; the last wait is for the device to read back and verify.
        window: chunks in flight.
        chunk: bytes of a chunk; 16 KiB if omitted, and 4 KiB with `stop_and_wait`.
        stop_and_wait: one chunk at a time and without a session, for devices of Mongoose.

    Raises:
        ConfigError: the URL is none, or an option makes no sense.
    """

    def __init__(
        self,
        url: str,
        *,
        user: tuple[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        version: Version = "auto",
        timeout: float = 60.0,
        window: int = WINDOW,
        chunk: int | None = None,
        stop_and_wait: bool = False,
    ) -> None:
        self._broker = Broker.from_url(url, user=user, ssl_context=ssl_context, version=version)
        self._timeout = timeout
        self._window, self._chunk, self._single = window, chunk, stop_and_wait
        self._new_push(1)  # proves that the options make sense

    async def push(self, image: Image) -> AsyncGenerator[Progress]:
        """Send an image. The iteration ends when the device has said that the update survives any cut.

        Raises:
            RejectedError: the device does not want these bytes.
            TransferError: broker or device cannot be reached, or the transfer broke off.
            BusyError: the device is at something else.
            ConfigError: the broker does not let us, the device needs another way, or the image cannot be read.
        """
        with await Source.open(image) as source:
            talk = Talk(self._broker, self._new_push(source.size), source, self._timeout)
            failures = most = 0
            while not talk.over:
                try:
                    async with connected(self._broker, talk.inbox.put) as link:
                        try:
                            await talk.begin(link)
                            yield talk.progress
                            while await talk.advance(link):
                                yield talk.progress
                        finally:
                            await talk.leave(link)
                except TransferError as exc:  # the broker's; what the device says is kept in the talk
                    if not talk.begun:
                        raise
                    log.warning("%s; trying again", exc)
                failures = 1 if talk.progress.sent > most else failures + 1
                most = max(most, talk.progress.sent)
                await talk.pause(backoff(failures))
            talk.check()

    async def status(self) -> dict[str, Any]:
        """What the device is at: the JSON object of its status.

        Raises:
            OtaError: it did not tell; see `push`.
        """
        found = await self._ask(STATUS, {}, again=True)
        if not isinstance(found, dict):
            raise TransferError("what answers there is no mgota device: its status makes no sense")
        told = {name: value for name, value in cast(dict[str, Any], found).items() if name not in _EXTRAS}
        if not is_status(told):
            raise TransferError("what answers there is no mgota device: its status makes no sense")
        return told

    async def commit(self, *, sha256: str | None = None) -> None:
        """Ask the device to make the running image permanent. It does so when it has answered.

        Args:
            sha256: hex digest of the firmware that is meant; None means whatever runs.

        Raises:
            OtaError: it refused; see `push`.
        """
        await self._ask(COMMIT, {"image": sha256} if sha256 else {})

    async def rollback(self, *, sha256: str | None = None) -> None:
        """Ask the device to return to the previous image. It does so when it has answered.

        Args:
            sha256: hex digest of the running firmware that is to be left; None means whatever runs.

        Raises:
            OtaError: it refused; see `push`.
        """
        await self._ask(ROLLBACK, {"image": sha256} if sha256 else {})

    def _new_push(self, size: int) -> WindowPush | SinglePush:
        first = secrets.randbelow(1 << 30) + 1
        if self._single:
            return SinglePush(size, first_id=first, chunk=self._chunk or SINGLE_CHUNK, patience=self._timeout)
        return WindowPush(
            size,
            session=secrets.token_urlsafe(16),
            first_id=first,
            window=self._window,
            chunk=CHUNK if self._chunk is None else self._chunk,
            patience=self._timeout,
        )

    async def _ask(self, method: str, params: dict[str, object], *, again: bool = False) -> object:
        """The result of one request; `again` sends it once more to a device that comes online meanwhile."""
        inbox = Inbox(self._broker)
        asked = secrets.randbelow(1 << 30) + 1
        frame = encode_request(Request(asked, method, params))
        async with connected(self._broker, inbox.put) as link:
            await inbox.subscribe(link)
            async with watched(link, inbox):
                began = anyio.current_time()
                await link.publish(self._broker.topic("rx"), frame, qos=1)
                while await inbox.wait(inbox.patience(began, self._timeout)):
                    for reply in inbox.replies():
                        if reply.reply_to == asked:
                            return _result(reply)
                    if inbox.came_online() and again:
                        await link.publish(self._broker.topic("rx"), frame, qos=1)
                raise inbox.silence(self._timeout)


def _result(reply: Reply) -> object:
    if reply.fault is not None:
        raise error_of(reply.fault)
    return reply.result
