"""The device of the dialect on paho, as one would write it: every chunk is decoded, stored and answered as it comes.

    paho_device.py --slots DIR --key PUBLIC.PEM --broker HOST:PORT --topic ROOT/DEVICE

Replies go out at the QoS that the chunk came with. The last one says whether the image is good.
"""

import argparse
import json
import sys
from base64 import b64decode
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from stored import StoredImage, command_line


class Device:
    """One upload after the other.

    Args:
        topic: of the device.
    """

    def __init__(self, topic: str) -> None:
        self.path, self.key = command_line()
        self.rx, self.tx = f"{topic}/rx", f"{topic}/tx"
        self.image: StoredImage | None = None

    def connected(self, client: mqtt.Client, *_: Any) -> None:
        """Listen, and say so."""
        client.subscribe(self.rx, 1)

    def subscribed(self, client: mqtt.Client, *_: Any) -> None:
        """Now it can be sent to."""
        print(f"listening on mqtt://{client.host}:{client.port}", flush=True)

    def request(self, client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        """A chunk."""
        frame = json.loads(message.payload)
        params = frame["params"]
        chunk = b64decode(params["chunk"])
        if params["offset"] == 0:
            self.image = StoredImage(self.path, params["total"])
        assert self.image
        if chunk:
            self.image.write(chunk)
            result = "ok"
        else:
            result = "ok" if self.image.good(self.key) else "bad"
            self.image.close()
        client.publish(self.tx, json.dumps({"id": frame["id"], "result": result}), message.qos)


def main() -> None:
    """Serve for ever."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--broker", required=True)
    options.add_argument("--topic", required=True)
    given, sys.argv[1:] = options.parse_known_args()
    host, _, port = given.broker.partition(":")
    device = Device(given.topic)
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_connect, client.on_subscribe, client.on_message = device.connected, device.subscribed, device.request
    client.connect(host, int(port))
    client.loop_forever()


if __name__ == "__main__":
    main()
