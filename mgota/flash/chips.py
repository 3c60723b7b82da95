"""Chips that are alive inside a process: the memory simulated, the exchange of the images made as on the real one.

What lies where, for a chip in FILE: the raw array in FILE itself, option bytes in FILE.opt where the chip swaps banks,
the lock in FILE.lock. The journal of a chip whose images change places by copying lies in its own last sectors, or in
the file that the caller names.
"""

import os
from pathlib import Path

from mgota.core.geometry import Geometry
from mgota.core.swap import SwapLayout
from mgota.errors import ConfigError
from mgota.flash.banked import BankedFlash, Banks, VirtualOptions
from mgota.flash.copied import CopiedFlash
from mgota.flash.files import DurableFile, FileLock, replace_file
from mgota.flash.simulator import NorSimulator, Operations
from mgota.flash.virtual import VirtualTarget, VirtualWatchdog
from mgota.ports import Resetter, StateStore

JOURNAL_LIMIT = 64
"""Bytes of the longest journal file that is read: more than one record."""

StrPath = str | os.PathLike[str]


def virtual_banks(
    chip: Banks,
    path: StrPath | None,
    watchdog_limit: float | None,
    *,
    reset: Resetter | None = None,
    throttle: float | None = None,
) -> VirtualTarget[BankedFlash]:
    """A chip that swaps banks. Blocks if it has a file.

    Args:
        chip: its numbers.
        path: the raw array, physical bank 1 first. A missing file is a new chip, blank, whatever PATH.opt says. None
            keeps all in memory.
        watchdog_limit: seconds of the longest timeout of its watchdog, which cannot be stopped; None for any, of one
            that can.
        reset: what an option write does to the chip; without it, `select` returns.
        throttle: bytes per second that can be programmed, or None.

    Raises:
        ConfigError: the file is not this chip's flash memory.
    """
    options, operations = None, Operations()
    if path is not None:
        options = _beside(path, "opt")
        if not Path(path).exists():
            _make_options(options, chip.factory)
    flash, lock = _memory(chip.geometry, path, throttle, operations)
    register = VirtualOptions(options, chip.factory, operations=operations)
    backend = BankedFlash(flash, register, chip, reset=reset)
    return VirtualTarget(backend=backend, flash=flash, watchdog=_watchdog(watchdog_limit), lock=lock)


def virtual_copying(
    layout: SwapLayout,
    path: StrPath | None,
    watchdog_limit: float | None,
    *,
    journal: StrPath | None = None,
    state: StateStore | None = None,
    throttle: float | None = None,
) -> VirtualTarget[CopiedFlash]:
    """A chip whose images change places by copying. Blocks if it has a file.

    Args:
        layout: where images and journal lie.
        path: the raw array; made blank if it is missing. None keeps it in memory.
        watchdog_limit: as for `virtual_banks`.
        journal: the file for the journal, if the chip has no room for it.
        state: see `CopiedFlash`.
        throttle: bytes per second that can be programmed, or None.

    Raises:
        ConfigError: the file is not this chip's flash memory, or there is no journal.
    """
    flash, lock = _memory(layout.geometry, path, throttle, Operations())
    file = None if layout.journal or journal is None else DurableFile(journal, JOURNAL_LIMIT)
    backend = CopiedFlash(flash, layout, file, state=state)
    return VirtualTarget(backend=backend, flash=flash, watchdog=_watchdog(watchdog_limit), lock=lock)


def _memory(
    geometry: Geometry, path: StrPath | None, throttle: float | None, operations: Operations
) -> tuple[NorSimulator, FileLock | None]:
    if path is None:
        return NorSimulator(geometry, throttle=throttle, operations=operations), None
    flash = NorSimulator.on_file(path, geometry, throttle=throttle, operations=operations)
    return flash, FileLock(_beside(path, "lock"))


def _watchdog(limit: float | None) -> VirtualWatchdog:
    return VirtualWatchdog(limit=limit, stoppable=limit is None)


def _beside(path: StrPath, ending: str) -> Path:
    file = Path(path)
    return file.with_name(f"{file.name}.{ending}")


def _make_options(path: Path, factory: int) -> None:
    # Before the blank array: else a cut between the two leaves a new chip that an old option byte makes run slot b.
    try:
        replace_file(path, factory.to_bytes(4, "little"))
    except OSError as exc:
        raise ConfigError(f"the option bytes in {path} cannot be made: {exc.strerror}") from exc
