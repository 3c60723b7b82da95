"""MQTT: the device, and what sends to it."""
