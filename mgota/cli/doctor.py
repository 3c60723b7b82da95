"""`mgota doctor`: whether a configuration file is right, and whether this machine is what it says."""

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anyio
import click

from mgota.cli.board import config_option, found_config, http_options, mqtt_serving, pull_serving
from mgota.cli.board_health import look_at_health
from mgota.cli.checkup import Finding, Findings, Level, examine, is_at_work
from mgota.cli.listening import bound_listener
from mgota.cli.options import as_json
from mgota.cli.reports import reporting
from mgota.core.config import Config, parse_config
from mgota.linux.configured import CONFIG, read_config_file

_MARKS = {Level.WELL: "ok   ", Level.NOTE: "note ", Level.WRONG: "WRONG"}


@click.command()
@config_option
@click.option("--selftest", is_flag=True, help="Write what the bootloader keeps once more as it is, and read it back.")
@as_json
def doctor(*, config: Path | None, selftest: bool, as_json: bool) -> int:
    """Check the configuration file, and then this machine: what is wrong, and what to do.

    Nothing is changed without --selftest. Exit status: 0 all is well, 1 something is wrong.
    """
    path = found_config(config) or Path(CONFIG)
    found = _look(path, selftest=selftest)
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found]))
    else:
        for one in found:
            click.echo(f"{_MARKS[one.level]} {one.where}: {one.text}")
    return int(any(one.level is Level.WRONG for one in found))


def _look(path: Path, *, selftest: bool) -> list[Finding]:
    parsed, faults = parse_config(read_config_file(path))
    if parsed is None:
        return [Finding(Level.WRONG, f"{path}:{fault.line}", fault.text) for fault in faults]
    found = anyio.run(partial(examine, parsed, selftest=selftest))
    _look_at_ways(parsed, found)
    anyio.run(look_at_health, parsed, found)
    return [Finding(Level.WELL, str(path), "the file has no faults"), *found]


def _look_at_ways(config: Config, found: Findings) -> None:
    ways: dict[str, Callable[[], object]] = {}
    if http := config.http:
        ways["http"] = partial(http_options, http)
    if mqtt := config.mqtt:
        ways["mqtt"] = partial(mqtt_serving, mqtt)
    if pull := config.pull:
        ways["pull"] = partial(pull_serving, config, pull)
    if config.history.reports:
        ways["history"] = partial(reporting, config)
    for name, way in ways.items():
        with found.asking(name):
            way()
            found.well(name, "what it needs is there")
    if config.http:
        _look_at_port(config, config.http.host, config.http.port, found)


def _look_at_port(config: Config, host: str, port: int, found: Findings) -> None:
    if is_at_work(config):
        found.well("http.port", "`mgota run` is at work, and has its port")
        return
    with found.asking("http.port", "end the program that has it (`ss -ltnp`), or choose another one"):
        bound_listener(host, port).close()
        found.well("http.port", f"port {port} is free")
