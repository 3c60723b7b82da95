"""`mgota run`: the launcher on the command line."""

import logging
from functools import partial
from pathlib import Path

import anyio
import click

from mgota.cli.commands import log_to_stderr
from mgota.cli.options import (
    FOLDER,
    floor_option,
    hardware_option,
    no_or_some_seconds,
    read_verifier,
    trust_options,
    window_option,
)
from mgota.linux.launcher import launch


@click.command(context_settings={"allow_interspersed_args": False})  # what follows the command is its own
@click.option("--dir", "directory", type=FOLDER, required=True, metavar="DIR", help="The device: slots and record.")
@window_option
@click.option("--watchdog", type=float, callback=no_or_some_seconds, default=10.0, show_default=True, metavar="SECONDS",
              help="Longest time between two signs of life, from the first one on; 0 asks for none.")  # fmt: skip
@click.option("--grace", type=float, callback=no_or_some_seconds, default=5.0, show_default=True, metavar="SECONDS",
              help="From SIGTERM to SIGKILL when the program is to end.")  # fmt: skip
@trust_options
@floor_option
@hardware_option
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    *,
    directory: Path,
    window: float,
    watchdog: float,
    grace: float,
    keys: tuple[Path, ...],
    trailer: str,
    floor: str | None,
    hardware: str | None,
    command: tuple[str, ...],
) -> int:
    """Start the program in the running slot, watch it, and roll back what fails on trial.

    {slot} in COMMAND is the path of the running slot:

    \b
        mgota run --dir /var/lib/app -- python3 {slot}
    """  # noqa: D301  \b keeps click from joining the lines
    log_to_stderr(logging.INFO)
    verifier = read_verifier(keys, trailer)
    times = partial(launch, window=window, watchdog=watchdog, grace=grace)
    return anyio.run(partial(times, directory, command, verifier=verifier, floor=floor, hardware=hardware))
