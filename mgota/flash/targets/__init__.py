"""Chip families: the numbers of each, and what it takes to run a virtual one."""
