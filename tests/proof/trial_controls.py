"""A bare state that is stored before the swap, as the seed has it, against the record that names a slot.

The life: the new image is put on trial. It hangs, as untried images may. Nobody commits anything, so whatever is on trial
is reset by its watchdog. At the end the old image must run, and nothing must be on trial. The image that hangs and has
no watchdog is a *brick*.

The swap is the real one in both; the state is a cell, where a store is atomic.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from swap_bench import SwapBench, seed_of
from tally import Brick, BrickError, Tally

from mgota.core import boot
from mgota.core.boot import Arm, Facts, Question, Reset, Select, Step, Store, Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, SlotImage, decode_record, encode_record
from mgota.testing import ALL_MODES, CutMode, PowerCut, PowerSupply
from mgota.testing.jobs import KeptBeside

BOOTS = 8
"""Resets after which a device counts as one that does not settle."""


class Rules(Protocol):
    """Decides what a device does with what it has stored."""

    def activate(self, state: KeptBeside, select: Callable[[Slot], None]) -> None:
        """Put slot b on trial, while slot a runs."""
        ...

    def boot(self, state: KeptBeside, running: Slot, select: Callable[[Slot], None]) -> Verdict:
        """Out of reset, once the swap has recovered."""
        ...


class BareState:
    """The seed's `MG_OTA_BOOT_CHECK`: TESTING is stored, then the swap is made; a state says nothing of slots."""

    def activate(self, state: KeptBeside, select: Callable[[Slot], None]) -> None:
        state.store(b"TESTING")
        select(Slot.B)

    def boot(self, state: KeptBeside, running: Slot, select: Callable[[Slot], None]) -> Verdict:
        match state.load():
            case b"FAILED":
                state.store(b"CONFIRMED")
                select(running.other)
                return Verdict.RESET
            case b"TESTING":
                state.store(b"FAILED")
                return Verdict.TRIAL
            case _:
                return Verdict.RUN


class NamedSlot:
    """`mgota.core.boot`, with a record that names the slot on trial."""

    def activate(self, state: KeptBeside, select: Callable[[Slot], None]) -> None:
        image = SlotImage(size=1, image_size=1, sha256="0" * 64)
        record = BootRecord(revision=1).next_with(Slot.A, replace(image, proven=True))
        self._perform(boot.activate_steps(record, Slot.B, image, tries=1), state, select)

    def boot(self, state: KeptBeside, running: Slot, select: Callable[[Slot], None]) -> Verdict:
        data = state.load()
        if data is None:
            return Verdict.RUN  # before the first update
        record = decode_record(data)
        asked = boot.questions(record, running)
        facts = Facts(verified=asked is Question.VERIFIED, whole=asked is Question.WHOLE)
        decision = boot.decide(record, running, facts)
        self._perform(decision.steps, state, select)
        return decision.verdict

    def _perform(self, steps: object, state: KeptBeside, select: Callable[[Slot], None]) -> None:
        ...
