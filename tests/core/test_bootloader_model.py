"""The boot model again, with boot scripts that count: what `mgota.core.bootvars` tells them, and what they then start.

Besides what `test_boot_model` lets happen, the power may be cut while the bootloader or the kernel starts: that uses an
attempt up, and no decision was made. A script never starts what is torn, blank or never proved itself all the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from test_boot_model import BLANK, GOOD, HANGS, TORN, UNBOOTABLE, Change, Model, Planned, Run, World, explore
from test_bootvars import grub_boot, rauc_boot, uboot_boot

from mgota.core.boot import Action, Select, Verdict
from mgota.core.bootvars import BootCount, BootOrder, Changes, Convention, GrubOrder, Variables
from mgota.core.geometry import Slot
from mgota.core.record import State

pytestmark = pytest.mark.no_cover  # measuring takes longer than the search; test_boot.py and others cover the lines

Script = Callable[[dict[str, str]], Slot | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedWorld(World):
    """Its selection is what the variables say."""

    variables: tuple[tuple[str, str], ...] = ()


class CountedModel(Model):
    """A board whose boot script is told by variables."""

    def __init__(self, convention: Convention, script: Script, *, tries: int) -> None:
        super().__init__(torn_boots=True, tries=tries)
        self.convention = convention
        self.script = script

    def change(self, w: World, changes: Changes) -> CountedWorld:
        assert isinstance(w, CountedWorld)
        variables = dict(w.variables) | {name: value for name, value in changes.items() if value is not None}
        return replace(w, variables=tuple(sorted(variables.items())))

    def attempt(self, w: World) -> tuple[CountedWorld, Slot]:
        """What the script starts. One that has nothing left begins its counts anew, as RAUC's does."""
        assert isinstance(w, CountedWorld)
        variables = dict(w.variables)
        slot = self.script(variables)
        if slot is None:
            for name in variables:
                if name.endswith(("_LEFT", "_TRY")):
                    variables[name] = "2" if name.endswith("_LEFT") else "0"
            slot = self.script(variables)
        assert slot is not None, "nothing boots"
        return replace(w, variables=tuple(sorted(variables.items()))), slot

    def boots(self, w: World) -> World:
        for _ in range(8):
            w, slot = self.attempt(w)
            if w.content(slot) in self.bootable:
                return self.decides(replace(w, running=slot))
        return replace(w, running=slot, plan=(), mode=Verdict.RUN)  # `wrong` sees what does not boot

    def decides(self, w: World) -> World:
        assert isinstance(w, CountedWorld)
        tried = self.convention.tried(dict(w.variables), w.running.other)
        return replace(super().decides(replace(w, tried=tried)), tried=False)

    def step(self, w: World) -> World:
        assert isinstance(w, CountedWorld)
        head: Planned = w.plan[0]
        found: Variables = dict(w.variables)
        if isinstance(head, Select):
            w = self.change(w, self.convention.select(found, head.slot, running=w.running))
        confirmed = w.record is not None and w.record.state is State.CONFIRMED
        if head == Run(Verdict.RUN) and confirmed and w.record:
            other = w.record.image(w.running.other)
            proven = other is not None and other.proven
            w = self.change(w, self.convention.settle(found, w.running, fallback=proven))
        return super().step(w)

    def nexts(self, w: World) -> Change:
        yield "cut while it boots", self.boots(self.attempt(w)[0])
        yield from super().nexts(w)


CONVENTIONS = pytest.mark.parametrize(
    ("convention", "script"),
    [(BootOrder(attempts=2), rauc_boot), (GrubOrder(), grub_boot), (BootCount(), uboot_boot)],
    ids=["BootOrder", "GrubOrder", "BootCount"],
)


def starts(model: CountedModel) -> Iterator[World]:
    for other in (GOOD, HANGS, UNBOOTABLE, TORN, BLANK):
        w = CountedWorld(record=None, b=other)
        factory = model.convention.select({}, Slot.A, running=Slot.A)
        yield model.boots(model.change(w, {"bootlimit": "1", **factory}))


@CONVENTIONS
@pytest.mark.parametrize("tries", [1, 2])
def test_no_count_that_runs_out_starts_what_is_not_proven(convention: Convention, script: Script, tries: int) -> None:
    model = CountedModel(convention, script, tries=tries)
    found = explore(model, *starts(model), limit=200_000)
    print(f"{found.states} states, {len(found.violations)} violations, {found.unsettled} that do not settle")
    assert found.violations == []
    assert found.unsettled == 0
    assert Action.GIVE_UP in model.rows


class Greedy(BootOrder):
    """Never takes the other slot out of the order, as if `select` had one meaning."""

    def select(self, variables: Variables, slot: Slot, *, running: Slot) -> Changes:
        del running
        return super().select(variables, slot, running=slot.other)


class Generous(BootOrder):
    """Offers the other slot as a way back, whatever lies there."""

    def settle(self, variables: Variables, running: Slot, *, fallback: bool) -> Changes:
        del fallback
        return super().settle(variables, running, fallback=True)


class Forgetful(BootOrder):
    """Gives no attempts back after a good boot."""

    def settle(self, variables: Variables, running: Slot, *, fallback: bool) -> Changes:
        del variables, running, fallback
        return {}


@pytest.mark.parametrize("kind", [Greedy, Generous])
def test_controls_start_what_is_torn(kind: type[BootOrder]) -> None:
    model = CountedModel(kind(attempts=2), rauc_boot, tries=1)
    found = explore(model, *starts(model), first=True, limit=200_000)
    assert found.violations, "the model does not bite"
    print(" → ".join(found.violations[0]))


def test_the_control_that_settles_nothing_loses_its_way_back() -> None:
    model = CountedModel(Forgetful(attempts=2), rauc_boot, tries=1)
    w = next(starts(model))
    for _ in range(2):
        while w.plan:
            w = model.step(w)
        w = model.boots(w)
    assert isinstance(w, CountedWorld)
    assert dict(w.variables)["BOOT_A_LEFT"] != "2"
