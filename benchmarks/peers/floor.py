"""The floor: what one Python process can do.

One blocking socket, one buffer, one connection at a time, no HTTP to speak of.
"""

import socket
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from stored import BLOCK, StoredImage, command_line


def main() -> None:
    """Serve for ever."""
    path, key = command_line()
    buffer = bytearray(BLOCK)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        while True:
            connection, _ = listener.accept()
            with connection:
                serve(connection, path, key, buffer)


def serve(connection: socket.socket, path: Path, key: ec.EllipticCurvePublicKey, buffer: bytearray) -> None:
    """One request."""
    view = memoryview(buffer)
    got = 0
    while (end := buffer.find(b"\r\n\r\n", 0, got)) < 0:
        got += _some(connection, view[got : got + 4096])
    size = _content_length(bytes(buffer[:end]))
    image = StoredImage(path, size)
    try:
        image.write(view[end + 4 : got])
        while image.received < size:
            filled, wanted = 0, min(BLOCK, size - image.received)
            while filled < wanted:
                filled += _some(connection, view[filled:wanted])
            image.write(view[:filled])
        status = b"200 OK" if image.good(key) else b"422 Unprocessable Content"
    finally:
        image.close()
    connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")


def _some(connection: socket.socket, room: memoryview) -> int:
    count = connection.recv_into(room)
    if not count:
        raise ConnectionError("the sender went away")
    return count


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError("no Content-Length")


if __name__ == "__main__":
    main()
