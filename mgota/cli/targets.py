"""`mgota targets`: the chips that images can be for, and how safe their swap is."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

import click

from mgota.cli.options import as_json
from mgota.core.geometry import Geometry
from mgota.errors import ConfigError
from mgota.flash.targets.table import TARGETS, Swap, Target, targets_of

_HEADINGS = ("part", "flash, KiB", "sectors, KiB", "unit", "erased", "swap", "journal", "recovery", "largest, KiB")

_LEGEND = """\
* is the default part of its name. `largest` is the largest image, its signature included.
recovery, what finishes a swap that power cut off:
  hardware  nothing has to: one atomic write decides which image boots.
  host      a gateway. This is safe ONLY while a gateway drives the swap with the chip held in reset, or while a boot
            region of the chip implements SPEC.md. A bare chip that swaps by itself is not safe.
journal, where a swap by copying notes its steps: on the chip, or in a file of the host.
All of this is proven on the simulator only. None of it has run on silicon."""


@click.command()
@click.argument("name", required=False)
@as_json
def targets(*, name: str | None, as_json: bool) -> None:
    """List the chips: all, or those of NAME, as `--target` and `--part` take them."""
    try:
        found = targets_of(name) if name else TARGETS
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc
    if as_json:
        click.echo(json.dumps([describe(target) for target in found]))
    else:
        click.echo("\n".join((*_table(found), "", _LEGEND)))


def describe(target: Target) -> dict[str, Any]:
    """A part variant as JSON has it: sizes in bytes, addresses absolute."""
    return {
        "name": target.name,
        "part": target.part,
        "default": target.default,
        "regions": _regions(target.base, target.geometry) if target.geometry else None,
        "program_unit": target.program_unit,
        "erased": target.erased.hex(),
        "swap": target.swap.value,
        "journal": target.journal.value,
        "recovery": target.recovery.value,
        "max_image": target.max_image,
        "rollback": target.rollback,
        "sources": list(target.sources),
        "run_on_silicon": False,
    }


def _regions(base: int, geometry: Geometry) -> list[dict[str, int]]:
    return [
        {"start": base + region.start, "length": region.length, "sector": region.sector} for region in geometry.regions
    ]


def _table(found: Iterable[Target]) -> Iterator[str]:
    rows = [(target, _row(target)) for target in found]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *(row for _, row in rows), strict=True)]
    yield _aligned(_HEADINGS, widths)
    for name, group in groupby(rows, key=lambda row: row[0].name):
        yield click.style(name, bold=True)
        for target, row in group:
            yield _aligned(row, widths, "*" if target.default else " ")


def _aligned(row: tuple[str, ...], widths: list[int], mark: str = " ") -> str:
    return f"{mark} " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _row(target: Target) -> tuple[str, ...]:
    size, sectors = _sizes(target.geometry) if target.geometry else ("-", _unmapped(target))
    words = (target.swap.value, target.journal.value, target.recovery.value)
    return (target.part, size, sectors, str(target.program_unit), target.erased.hex(), *words, _largest(target))


def _sizes(geometry: Geometry) -> tuple[str, str]:
    """What can be programmed, and its sectors in short: 4x16 64 7x128."""
    runs = [f"{region.length // region.sector}x{region.sector >> 10}" for region in geometry.regions]
    return str(sum(region.length for region in geometry.regions) >> 10), " ".join(
        run.removeprefix("1x") for run in runs
    )


def _unmapped(target: Target) -> str:
    return "the backend's" if target.swap is Swap.CUSTOM else "unverified"


def _largest(target: Target) -> str:
    if target.max_image:
        return str(target.max_image >> 10)
    return "too small for two slots" if target.geometry else "-"
