"""The sender: one image to one server, in a process of its own so that its work is not the server's.

    sender.py HOST PORT IMAGE PID

A blocking socket and sendfile out of the page cache: it is never what the server waits for. Prints one JSON object:
`status`, `began` and `ended` (CLOCK_MONOTONIC in seconds, which all processes share: from before connect to after the
head of the answer), and `cpu` (seconds that the process PID ran meanwhile, its threads included).
"""

import json
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

_CPUCLOCK_SCHED = 2  # linux/posix-timers_types.h


def main(host: str, port: str, image: str, pid: str) -> None:
    """Send, wait for the answer, tell."""
    clock = process_clock(int(pid))
    with Path(image).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        head = (
            f"POST /api/ota/update HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Type: application/octet-stream\r\nContent-Length: {size}\r\n\r\n"
        )
        cpu, began = time.clock_gettime(clock), time.monotonic()
        with socket.create_connection((host, int(port))) as connection:
            with suppress(ConnectionError):  # refused half-way: the answer says why
                connection.sendall(head.encode())
                connection.sendfile(file)
            answer = read_head(connection)
            ended, cpu = time.monotonic(), time.clock_gettime(clock) - cpu
    print(json.dumps({"status": int(answer.split()[1]), "began": began, "ended": ended, "cpu": cpu}))


def process_clock(pid: int) -> int:
    """The CPU clock of another process, in nanoseconds where /proc counts in hundredths: clock_getcpuclockid(3)."""
    return ~pid << 3 | _CPUCLOCK_SCHED


def read_head(connection: socket.socket) -> bytes:
    """The answer up to the end of its head."""
    head = b""
    while b"\r\n\r\n" not in head:
        some = connection.recv(4096)
        if not some:
            raise ConnectionError(f"no whole answer: {head!r}")
        head += some
    return head


if __name__ == "__main__":
    main(*sys.argv[1:])
