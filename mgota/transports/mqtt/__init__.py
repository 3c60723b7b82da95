"""Updates over MQTT: the device, and what sends to it.

async with serve(device, "mqtt://127.0.0.1:1883/site/123") as served:         the device; needs the extra `mqtt`
"""

from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.device import MqttDevice, serve

__all__ = ["Broker", "MqttDevice", "serve"]
