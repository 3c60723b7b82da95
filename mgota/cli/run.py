"""`mgota run`: the launcher on the command line; with a configuration file, also what a board runs at every boot."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click

from mgota.cli.board import config_option, found_config
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
from mgota.cli.reports import reporting
from mgota.core.config import Config
from mgota.errors import ConfigError
from mgota.linux.configured import history_of, load_config, trust_of, watchdog_of
from mgota.linux.environment import HISTORY, device_at
from mgota.linux.launcher import launch
from mgota.linux.lifelong import LifelongWatchdog


@click.command(context_settings={"allow_interspersed_args": False})  # what follows the command is its own
@click.option("--dir", "directory", type=FOLDER, metavar="DIR", help="The device: slots and record.")
@config_option
@window_option
@click.option("--watchdog", type=float, callback=no_or_some_seconds, default=10.0, show_default=True, metavar="SECONDS",
              help="Longest time between two signs of life, from the first one on; 0 asks for none.")  # fmt: skip
@click.option("--grace", type=float, callback=no_or_some_seconds, default=5.0, show_default=True, metavar="SECONDS",
              help="From SIGTERM to SIGKILL when the program is to end.")  # fmt: skip
@trust_options
@floor_option
@hardware_option
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def run(
    *,
    directory: Path | None,
    config: Path | None,
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
        mgota run --config /etc/mgota.toml

    With a configuration file all of this is said there. On a board, whose slots are partitions, it decides about the
    boot, serves, pulls, and watches the trial; start it once at every boot.
    """  # noqa: D301  \b keeps click from joining the lines
    log_to_stderr(logging.INFO)
    if path := found_config(config, named=directory is not None):
        if directory or command:
            raise click.UsageError("--config says where the device is, and what is started: give nothing else")
        return _run_configured(load_config(path))
    if directory is None or not command:
        raise click.UsageError("give --config FILE, or --dir DIR and the command of the program")
    verifier = read_verifier(keys, trailer)
    times = partial(launch, window=window, watchdog=watchdog, grace=grace)
    return anyio.run(partial(times, directory, command, verifier=verifier, floor=floor, hardware=hardware))


def _run_configured(config: Config) -> int:
    if config.slots.kind != "files":
        from mgota.cli.board_run import run_board  # noqa: PLC0415  who runs a program does not load it

        return anyio.run(run_board, config)
    if not config.program.command:
        raise ConfigError("program.command: what is there to run?")
    Path(config.data or "").mkdir(parents=True, exist_ok=True)
    return anyio.run(_run_program, config)


async def _run_program(config: Config) -> int:
    """The program of a slot, under the launcher, and reports beside it."""
    directory, program = Path(config.data or ""), config.program
    environ = {**os.environ, HISTORY: str(config.history.path or directory / "history")}
    guard = watchdog_of(config, environ)
    times: dict[str, Any] = {"watchdog": program.watchdog, "grace": program.grace}
    if isinstance(guard, LifelongWatchdog):  # no other belongs to slots that are files
        times |= {"guard": guard}
    launched = partial(launch, directory, program.command, environ=environ, **times, **trust_of(config))
    async with reporting(config)(device_at(directory, history=history_of(config))):
        return await launched()
