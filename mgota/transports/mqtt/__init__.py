"""Updates over MQTT: the device, and what sends to it.

async with serve(device, "mqtt://127.0.0.1:1883/site/123") as served:         the device; needs the extra `mqtt`
async with serve(Gateway({"main": device}), "mqtt://127.0.0.1:1883/site/gw"): several, at site/gw/main (`mgota.gateway`)
"""

from mgota.transports.mqtt.broker import Broker
from mgota.transports.mqtt.device import MqttDevice, serve

__all__ = ["Broker", "MqttDevice", "serve"]
