"""The floor in every interleaving of `test_boot_model`: it rises at commits alone, and nothing older stays."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import test_boot_model
from test_boot_model import BETTER, GOOD, HANGS, UNBOOTABLE, Change, Model, World, explore, first_starts

from mgota.core import boot
from mgota.core.boot import Store, Verdict
from mgota.core.floor import below_floor, check_floor, check_sequence
from mgota.core.record import BootRecord, SlotImage, State
from mgota.errors import DowngradeError

RELEASED = {GOOD: ("1", 1), BETTER: ("2", 2), HANGS: ("3", 3), UNBOOTABLE: ("4", None)}


class Floors(Model):
    """Images have versions and sequences, and an update that is too old is refused, as a session refuses it."""

    def __init__(self) -> None:
        super().__init__()
        self.raised: set[tuple[str | None, int | None]] = set()
        self.faults: list[str] = []

    def step(self, w: World) -> World:
        head = w.plan[0]
        if isinstance(head, Store) and w.record:
            self.watch(w, w.record, head.record)
        return super().step(w)

    def watch(self, w: World, before: BootRecord, after: BootRecord) -> None:
        if (before.floor, before.sequence) == (after.floor, after.sequence):
            return
        self.raised.add((after.floor, after.sequence))
        commits = (before.state, after.state, before.trial) == (State.FAILED, State.CONFIRMED, w.running)
        if not commits or w.content(w.running) not in (GOOD, BETTER):
            self.faults.append(f"raised without a commit: {before} to {after}")
        if below_floor(after.floor, before.floor) or (before.sequence or 0) > (after.sequence or 0):
            self.faults.append(f"lowered: {before} to {after}")

    def updates(self, w: World, record: BootRecord) -> Change:
        for name, following in super().updates(w, record):
            kind = name.partition(": ")[2]
            if not kind or not self.too_old(test_boot_model.IMAGES[kind], record):
                yield name, following

    def too_old(self, image: SlotImage, record: BootRecord) -> bool:
        try:
            check_floor(image.version, record.floor)
            check_sequence(image.sequence, record.sequence)
        except DowngradeError:
            return True
        return False

    def wrong(self, w: World) -> bool:
        kind = w.content(w.running)
        confirmed = w.mode is Verdict.RUN and w.record is not None and w.record.state is State.CONFIRMED
        too_old = confirmed and w.record is not None and below_floor(RELEASED[kind][0], w.record.floor) is not None
        return super().wrong(w) or (too_old and not w.alarm)


@pytest.fixture(autouse=True)
def _versions(monkeypatch: pytest.MonkeyPatch) -> None:
    images = {
        kind: replace(image, version=RELEASED[kind][0], sequence=RELEASED[kind][1])
        for kind, image in test_boot_model.IMAGES.items()
    }
    monkeypatch.setattr(test_boot_model, "IMAGES", images)


def test_the_floor_rises_at_commits_alone_and_nothing_older_ends_up_running() -> None:
    model = Floors()
    found = explore(model, *first_starts(model), limit=200_000)
    print(f"{found.states} states, {len(found.violations)} violations, {found.unsettled} that do not settle")
    assert (found.violations, found.unsettled, model.faults) == ([], 0, [])
    assert model.raised == {("1", 1), ("2", 2)}


def test_control_a_floor_that_rises_when_an_image_goes_on_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    activate = boot.activate_steps

    def hasty(record: BootRecord, slot: object, image: SlotImage, *, tries: int) -> Iterator[object]:
        store, *rest = activate(record, slot, image, tries=tries)  # type: ignore[arg-type]
        assert isinstance(store, Store)
        yield Store(replace(store.record, floor=image.version, sequence=image.sequence))
        yield from rest

    monkeypatch.setattr(boot, "activate_steps", hasty)
    model = Floors()
    assert explore(model, *first_starts(model), first=True, limit=200_000).violations


def test_control_a_rollback_that_does_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "below_floor", lambda version, floor: None)
    model = Floors()
    assert explore(model, *first_starts(model), first=True, limit=200_000).violations
