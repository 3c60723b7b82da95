"""QEMU's machine protocol: events as they come, and orders. One line of JSON each way.

Docs: QEMU, "QEMU Machine Protocol Specification".
"""

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread
from typing import Any


class Qmp:
    """A connection to a running machine.

    Args:
        sock: whose other end QEMU has.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader = self._socket.makefile("rb")
        self._news = Condition()
        self._answers: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._reader.readline()  # the greeting
        self._thread = Thread(target=self._read, daemon=True)
        self._thread.start()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Carry out an order and return its answer."""
        with self._news:
            self._answers.clear()
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        with self._news:
            if not self._news.wait_for(lambda: self._answers, 120):
                raise TimeoutError(f"no answer to {command}")
            answer = self._answers.pop()
        if "error" in answer:
            raise RuntimeError(f"{command}: {answer['error']}")
        return answer["return"]

    def count(self, name: str) -> int:
        """How many events of this name came so far."""
        with self._news:  # again, if `wait` asks
            return sum(event["event"] == name for event in self.events)

    def wait(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition on `events` holds."""
        with self._news:
            return self._news.wait_for(condition, timeout)

    def close(self) -> None:
        """Hang up. What came so far stays."""
        with suppress(OSError):  # the machine did so
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._reader.close()
        self._socket.close()

    def _read(self) -> None:
        try:
            for line in self._reader:
                found = json.loads(line)
                with self._news:
                    (self.events if "event" in found else self._answers).append(found)
                    self._news.notify_all()
        except (OSError, ValueError):
            return  # the machine was killed, or we hung up
