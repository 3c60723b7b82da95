"""A Linux machine: slots as files, the state beside them, the notify protocol and the launcher."""
