"""What lies in the directory of a device beside its slots: names, for those who need nothing else of a launcher."""

LAUNCHER = "launcher"
"""What a living launcher says of itself, locked as long as it lives."""

LOCK = "lock"
"""Locked by whoever changes what is in the directory."""

STATE = "state"
"""The boot record."""
