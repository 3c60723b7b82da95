"""Networks: how an image comes to a device, and how one is sent.

Transports know the session and nothing of flash, and they do not know each other.
"""
