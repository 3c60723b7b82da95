"""A sender of the dialect on paho, as one would write it: a thread for the network, and a window of chunks.

    paho_sender.py HOST:PORT ROOT/DEVICE QOS WINDOW CHUNK IMAGE PID

A window of 1 is stop-and-wait. Nothing is resent: the broker loses nothing on loopback. Prints what `sender.py` prints.
"""

import json
import sys
import threading
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

_CPUCLOCK_SCHED = 2  # linux/posix-timers_types.h


def main(broker: str, topic: str, qos: str, window: str, chunk: str, image: str, pid: str) -> None:
    """Send, and tell."""
    clock = ~int(pid) << 3 | _CPUCLOCK_SCHED
    host, _, port = broker.partition(":")
    room, subscribed, last = threading.Semaphore(int(window)), threading.Event(), ""

    def reply(_: mqtt.Client, __: Any, message: mqtt.MQTTMessage) -> None:
        nonlocal last
        last = json.loads(message.payload)["result"]
        room.release()

    def connected(client: mqtt.Client, *_: Any) -> None:
        client.subscribe(f"{topic}/tx", 1)

    with Path(image).open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        cpu, began = time.clock_gettime(clock), time.monotonic()
        client = mqtt.Client(CallbackAPIVersion.VERSION2)
        client.on_message = reply
        client.on_connect = connected
        client.on_subscribe = lambda *_: subscribed.set()
        client.connect(host, int(port))
        client.loop_start()
        subscribed.wait(10)
        offset = number = 0
        piece = b"?"
        while piece:
            piece = file.read(int(chunk))
            room.acquire()
            params = {"total": size, "offset": offset, "chunk": b64encode(piece).decode()}
            frame = {"id": number, "method": "ota.upload", "params": params}
            client.publish(f"{topic}/rx", json.dumps(frame), int(qos))
            offset, number = offset + len(piece), number + 1
        for _ in range(int(window)):
            room.acquire()
        ended, cpu = time.monotonic(), time.clock_gettime(clock) - cpu
        client.disconnect()
        client.loop_stop()
    print(json.dumps({"status": 200 if last == "ok" else 422, "began": began, "ended": ended, "cpu": cpu}))


if __name__ == "__main__":
    main(*sys.argv[1:])
