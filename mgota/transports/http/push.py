"""The sender: an image pushed to a device, and the few questions that one asks of it.

    async for progress in push(Path("app.signed.pyz"), "http://192.168.1.7:8000", token="..."):
        print(progress.sent, "of", progress.size)

When the iteration ends, the device has said 200: the update survives any cut. Otherwise it ends in an error, whose kind
says what to do and whose message is the device's own line. Rules:
- the head goes first and waits a second for leave (`Expect: 100-continue`, RFC 9110 section 10.1.1): a stock Mongoose
  never gives it;
- one piece of the image is in memory at a time;
- a packed image goes only to a device that says that it unpacks it: another one would store it as it comes;
- nothing is tried again: whoever calls knows whether it is worth it.
"""

import ssl
from base64 import b64encode
from collections.abc import AsyncGenerator
from typing import Any, Final, cast

import h11

from mgota.errors import ConfigError, TransferError
from mgota.outgoing import Image, Progress, Source, is_status
from mgota.packed import Packed
from mgota.transports.http.client import Answer, Client, connected, parse_url

__all__ = ["LEAVE", "PIECE", "Image", "Progress", "Remote", "push"]

PIECE: Final = 256 * 1024
"""Bytes that are read from the image and sent at a time: the step of the progress."""

LEAVE: Final = 1.0
"""Seconds to wait for `100 Continue`: curl's."""

_NO_STATUS: Final = frozenset({404, 405, 501})
# What a device of somebody else's says, which has no such route.


def push(
    image: Image | Packed,
    url: str,
    *,
    token: str | None = None,
    user: tuple[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    timeout: float = 60.0,
) -> AsyncGenerator[Progress]:
    """Push an image to a device: `Remote.push`. Who leaves the iteration early closes it (`contextlib.aclosing`).

    Args:
        image: what to push, trailer included; packed if it is a `Packed`.
        url: of the device; see `Remote`.
        token: for Bearer authentication.
        user: name and password, for Basic authentication.
        ssl_context: for https; the system's trust if omitted.
        timeout: seconds in which something has to move; the last wait is for the device to read back and verify.
    """
    return Remote(url, token=token, user=user, ssl_context=ssl_context, timeout=timeout).push(image)


class Remote:
    """A device somewhere in the network.

    Args:
        url: `http://HOST:PORT` for the usual paths, or the URL of an update endpoint elsewhere. Name and password may
            stand in it.
        token: for Bearer authentication.
        user: name and password, for Basic authentication.
        ssl_context: for https; the system's trust if omitted.
        timeout: seconds in which something has to move; the last wait is for the device to read back and verify.

    Raises:
        ConfigError: the URL is none, or a secret cannot be sent.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        user: tuple[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._place, found = parse_url(url)
        self._headers: list[tuple[bytes, bytes]] = _authorization(token, user or found)
        self._context = ssl_context
        self._timeout = timeout
        self._request("GET", "/")  # proves that the secrets can be sent

    async def push(self, image: Image | Packed) -> AsyncGenerator[Progress]:
        """Send an image. The iteration ends when the device has said that the update survives any cut.

        Of a packed image, the progress counts packed bytes.

        Raises:
            RejectedError: the device does not want these bytes.
            TransferError: the device cannot be reached, or the transfer broke off.
            FlashError: the device could not store it.
            BusyError: the device is at something else.
            ConfigError: the device does not let us, or the image cannot be read.
        """
        sent, headers = 0, [(b"Expect", b"100-continue")]
        if isinstance(image, Packed):
            await self._check_packing(image)
            headers += [(b"Content-Encoding", image.packing.encode()), (b"X-MGOTA-Size", b"%d" % image.size)]
        with await Source.open(image.path if isinstance(image, Packed) else image) as source:
            size = source.size
            async with connected(self._place, self._context, self._timeout) as stream:
                client = Client(stream, self._timeout)
                await client.begin(self._request("POST", self._place.update, *headers, body=size))
                yield Progress(0, size)
                goes_on = await client.proceeds(LEAVE)
                while goes_on and sent < size:
                    piece = await source.read(min(PIECE, size - sent))
                    goes_on = await client.write(piece)
                    sent += len(piece)
                    if goes_on:
                        yield Progress(sent, size)
                answer = await client.end(self._timeout)
        answer.check()
        if sent < size:
            raise TransferError(f"the device said ok after {sent} of {size} bytes: it is no OTA device")

    async def _check_packing(self, image: Packed) -> None:
        answer = await self._answered("GET", self._place.prefix + "/status")
        found: object = None
        if answer.status not in _NO_STATUS:
            answer.check()
            found = answer.json()
        known = cast(dict[str, object], found).get("packings") if isinstance(found, dict) else None
        if not isinstance(known, list) or image.packing not in known:
            raise ConfigError(f"this device does not say that it unpacks {image.packing}: push the image unpacked")

    async def status(self) -> dict[str, Any]:
        """What the device is at: the JSON object of its status.

        Raises:
            OtaError: it did not tell; see `push`.
        """
        found = await self.get(self._place.prefix + "/status")
        if not is_status(found):
            raise TransferError("what answers there is no mgota device: its status makes no sense")
        return found

    async def get(self, target: str) -> dict[str, Any]:
        """A JSON object that the device's application serves beside the OTA routes.

        Args:
            target: path and query.

        Raises:
            OtaError: there is none; see `push`.
        """
        found: object = (await self._ask("GET", target)).json()
        if not isinstance(found, dict):
            raise TransferError(f"{target} is no JSON object")
        return cast(dict[str, Any], found)

    async def commit(self, *, sha256: str | None = None) -> None:
        """Ask the device to make the running image permanent. It does so when the connection has closed.

        Args:
            sha256: hex digest of the firmware that is meant; None means whatever runs.

        Raises:
            OtaError: it refused; see `push`.
        """
        await self._ask("POST", self._place.prefix + "/commit", sha256)

    async def rollback(self, *, sha256: str | None = None) -> None:
        """Ask the device to return to the previous image. It does so when the connection has closed.

        Args:
            sha256: hex digest of the running firmware that is to be left; None means whatever runs.

        Raises:
            OtaError: it refused; see `push`.
        """
        await self._ask("POST", self._place.prefix + "/rollback", sha256)

    async def _ask(self, method: str, target: str, sha256: str | None = None) -> Answer:
        answer = await self._answered(method, target, sha256)
        answer.check()
        return answer

    async def _answered(self, method: str, target: str, sha256: str | None = None) -> Answer:
        bound = [(b"X-MGOTA-Image", sha256.encode())] if sha256 else []
        async with connected(self._place, self._context, self._timeout) as stream:
            client = Client(stream, self._timeout)
            await client.begin(self._request(method, target, *bound))
            return await client.end(self._timeout)

    def _request(self, method: str, target: str, *more: tuple[bytes, bytes], body: int = 0) -> h11.Request:
        headers = [(b"Host", self._place.authority.encode()), (b"Connection", b"close"), *self._headers, *more]
        if method == "POST":
            headers += [(b"Content-Type", b"application/octet-stream"), (b"Content-Length", str(body).encode())]
        try:
            return h11.Request(method=method, target=target, headers=headers)
        except h11.LocalProtocolError as exc:
            raise ConfigError("a token, a password or a URL has characters that HTTP cannot send") from exc


def _authorization(token: str | None, user: tuple[str, str] | None) -> list[tuple[bytes, bytes]]:
    if token is not None:
        return [(b"Authorization", b"Bearer " + token.encode())]
    if user is not None:
        return [(b"Authorization", b"Basic " + b64encode(":".join(user).encode()))]
    return []
