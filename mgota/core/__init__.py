"""Decisions only: pure functions and tables.

No async, no clock, no file, no socket. Clocks and bytes come in as arguments; what to do comes out as a value.
"""
