"""The same work on anyio and h11, as one writes it at first: receive, feed h11, take its events, files in threads."""

import functools
from pathlib import Path

import anyio
import h11
from anyio.abc import SocketAttribute, SocketStream
from anyio.to_thread import run_sync
from cryptography.hazmat.primitives.asymmetric import ec
from stored import StoredImage, command_line

ANSWER = [("Content-Length", "3"), ("Connection", "close")]


async def serve(path: Path, key: ec.EllipticCurvePublicKey, stream: SocketStream) -> None:
    """One connection, one request."""
    async with stream:
        connection = h11.Connection(h11.SERVER)
        request = await next_event(connection, stream)
        if not isinstance(request, h11.Request):
            return
        image = await run_sync(StoredImage, path, int(dict(request.headers)[b"content-length"]))
        try:
            while isinstance(event := await next_event(connection, stream), h11.Data):
                await run_sync(image.write, event.data)
            good = isinstance(event, h11.EndOfMessage) and await run_sync(image.good, key)
        finally:
            image.close()
        await stream.send(connection.send(h11.Response(status_code=200 if good else 422, headers=ANSWER)) or b"")
        await stream.send(connection.send(h11.Data(data=b"ok\n")) or b"")
        connection.send(h11.EndOfMessage())


async def next_event(connection: h11.Connection, stream: SocketStream) -> object:
    """What h11 makes of the bytes so far, and of as many more as it wants."""
    while (event := connection.next_event()) is h11.NEED_DATA:
        try:
            connection.receive_data(await stream.receive())
        except anyio.EndOfStream:
            connection.receive_data(b"")
    return event


async def main() -> None:
    """Serve for ever."""
    path, key = command_line()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    print(f"listening on http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}", flush=True)
    await listener.serve(functools.partial(serve, path, key))


if __name__ == "__main__":
    anyio.run(main)
