"""Every interleaving of updates, staging, commits, rollbacks, resets and power cuts, on the real decisions.

A state is what survives a power cut (the record, the selection, what lies in the slots) and what does not (the slot
that runs, the steps that are left). From each, everything that may happen happens; a step is executed or the power is
cut before it. What decides is `mgota.core.boot`; the model adds the hardware: a bootloader that falls back to the other
slot when the selected one does not boot, a watchdog that resets, and images that are good, hang, or do not boot.

A *violation*: an image that never proved itself runs as CONFIRMED though it is bad, or nothing boots. A state *does not
settle*: with the power on from now on, it never comes to run a CONFIRMED image.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import pytest

from mgota.core import boot
from mgota.core.boot import Action, Decision, Facts, Question, Reset, Select, Step, Store, Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, SlotImage, State
from mgota.errors import OtaError

pytestmark = pytest.mark.no_cover  # measuring takes longer than the search; test_boot.py and others cover the lines

GOOD, BETTER, HANGS, UNBOOTABLE = "good", "good as well", "hangs", "does not boot"
TORN, BLANK = "torn", "blank"
IMAGES = {
    kind: SlotImage(size=1, image_size=1, sha256=f"{number:064x}")
    for number, kind in enumerate((GOOD, BETTER, HANGS, UNBOOTABLE))
}


@dataclass(frozen=True, slots=True)
class Write:
    """What lies in a slot from now on."""

    slot: Slot
    content: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The image did not verify: the session ends, and what the record says stands."""


@dataclass(frozen=True, slots=True)
class Activate:
    """Put what was written on trial, with steps made of the record as it is then."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Keep what was written for later."""


@dataclass(frozen=True, slots=True)
class Run:
    """The plan is at its end: from here on the device runs so."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Again:
    """Decide again, without a reset."""


Planned = Step | Write | Refuse | Activate | Stage | Run | Again


def bare(record: BootRecord) -> BootRecord:
    """Without what no decision looks at: else every store makes a new state, and the exploration has no end."""
    return replace(
        record, revision=0, outcome=None, reason=None, failed_sha256=None, failed_version=None, failed_earlier=None
    )


def plain(step: Step) -> Step:
    return Store(bare(step.record)) if isinstance(step, Store) else step


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    record: BootRecord | None
    a: str = GOOD
    b: str = BLANK
    selected: Slot = Slot.A
    running: Slot = Slot.A
    tried: bool = False
    plan: tuple[Planned, ...] = ()
    mode: Verdict | None = None
    row: Action | None = None  # that the plan is from, if it is a boot's
    alarm: bool = False  # the device was stuck once, and said so

    def content(self, slot: Slot) -> str:
        return self.a if slot is Slot.A else self.b


Change = Iterator[tuple[str, World]]


class Model:
    """The device.

    Args:
        evidence: the selector remembers that a slot did not boot.
        failures: a selection may report failure.
        torn_boots: nothing looks at an image before it boots: a torn one runs like one that hangs.
        tries: trials of an image.
    """

    def __init__(
        self, *, evidence: bool = False, failures: bool = False, torn_boots: bool = False, tries: int = 1
    ) -> None:
        self.evidence = evidence
        self.failures = failures
        self.bootable = {GOOD, BETTER, HANGS} | ({TORN} if torn_boots else set())
        self.tries = tries
        self.rows: set[Action] = set()

    # --- hardware

    def boots(self, w: World) -> World:
        """Out of reset, whatever was planned."""
        running, tried = w.selected, w.tried
        if w.content(running) not in self.bootable:
            running, tried = running.other, self.evidence
        return self.decides(replace(w, running=running, tried=tried))

    def holds(self, w: World, slot: Slot) -> bool:
        """What `is_whole` and `verify_again` would find: the slot's digest is the recorded one."""
        image = w.record.image(slot) if w.record else None
        kind = w.content(slot)
        return image is not None and kind in IMAGES and IMAGES[kind].sha256 == image.sha256

    # --- decisions: as `mgota.trial.boot_check` has them

    def decides(self, w: World) -> World:
        match boot.questions(w.record, w.running):
            case Question.FOUND:
                facts = Facts(found=IMAGES.get(w.content(w.running)))
            case Question.VERIFIED:
                facts = Facts(verified=self.holds(w, w.running.other), tried=w.tried)
            case Question.WHOLE:
                facts = Facts(whole=self.holds(w, w.running.other))
            case None:
                facts = Facts(tried=w.tried)
        decision: Decision = boot.decide(w.record, w.running, facts)
        self.rows.add(decision.row.action)
        plan = tuple(plain(step) for step in decision.steps)
        end = () if decision.verdict is Verdict.RESET else (Run(decision.verdict),)
        row = decision.row.action
        return replace(w, plan=(*plan, *end), mode=None, row=row, alarm=w.alarm or row is Action.STUCK)

    def step(self, w: World) -> World:
        head, rest = w.plan[0], w.plan[1:]
        w = replace(w, plan=rest)
        match head:
            case Store(record):
                return replace(w, record=bare(record))
            case Select(slot):
                return replace(w, selected=slot, tried=w.tried and slot is not w.running)
            case Reset():
                return self.boots(w)
            case Run(verdict):
                return replace(w, mode=verdict, row=None)
            case Write(Slot.A, content):
                return replace(w, a=content)
            case Write(Slot.B, content):
                return replace(w, b=content)
            case Activate() | Stage():
                return self.step(replace(w, plan=(*self.sealed(w, head), *rest)))
            case Refuse():
                assert w.record
                return replace(w, record=bare(w.record.next()))
            case Again():
                return self.decides(w)
        return w  # Arm: the watchdog may bite at any time in any case

    def sealed(self, w: World, head: Activate | Stage) -> Iterator[Planned]:
        slot = w.running.other
        assert w.record
        image = IMAGES.get(w.content(slot)) or w.record.image(slot)
        assert image
        if isinstance(head, Stage):
            yield plain(boot.stage_step(w.record, slot, image))
            return
        for step in boot.activate_steps(w.record, slot, image, tries=self.tries):
            yield plain(step)

    def fails(self, w: World) -> World:
        """The selection at the head of the plan reported failure, and nothing was selected."""
        if w.row is Action.ROLL_BACK:
            assert w.record
            return replace(w, plan=(plain(Store(boot.on_select_failure(w.record))), Again()))
        if w.row is Action.SELECT_TRIAL:
            return self.decides(w)
        return replace(w, plan=(), mode=w.mode or Verdict.RUN, row=None)

    # --- what may happen

    def nexts(self, w: World) -> Change:
        yield "power cut", self.boots(w)
        if w.plan:
            yield "step", self.step(w)
            if self.failures and isinstance(w.plan[0], Select) and w.plan[0].slot is not w.selected:
                yield "select fails", self.fails(w)
            return
        assert w.record
        yield from self.updates(w, w.record)
        commit = boot.commit_steps(w.record, w.running)
        if commit and w.mode is Verdict.TRIAL and w.content(w.running) in (GOOD, BETTER):
            yield "commit", replace(w, plan=(*map(plain, commit), Run(Verdict.RUN)))
        try:
            back = boot.rollback_steps(w.record, w.running, whole=self.holds(w, w.running.other))
        except OtaError:
            return
        yield "rollback", replace(w, plan=tuple(map(plain, back)))

    def updates(self, w: World, record: BootRecord) -> Change:
        slot = w.running.other
        try:
            boot.refuse_update(record)
        except OtaError:
            return
        for kind in IMAGES:
            begin = tuple(map(plain, boot.begin_steps(record, w.running)))
            written = (*begin, Write(slot, TORN), Write(slot, kind))
            yield f"update: {kind}", replace(w, plan=(*written, Activate()))
            yield f"stage: {kind}", replace(w, plan=(*written, Stage(), Run(Verdict.RUN)))
            yield f"refused: {kind}", replace(w, plan=(*written, Refuse(), Run(Verdict.RUN)))
        if record.staged and self.holds(w, record.staged):
            yield "activate", replace(w, plan=(Activate(),))

    # --- what must hold

    def wrong(self, w: World) -> bool:
        running = w.content(w.running)
        if running not in (GOOD, BETTER, HANGS):
            return True
        confirmed = w.record is not None and w.record.state is State.CONFIRMED
        return w.mode is Verdict.RUN and confirmed and running == HANGS and not w.alarm

    def settles(self, w: World) -> bool:
        for _ in range(60):
            if w.plan:
                w = self.step(w)
            elif w.mode is Verdict.RUN and w.record and w.record.state is State.CONFIRMED:
                return True
            else:
                w = self.boots(w)  # the watchdog, or an operator
        return False


@dataclass
class Found:
    states: int
    violations: list[list[str]]
    unsettled: int


def explore(model: Model, *starts: World, first: bool = False, limit: int = 60_000) -> Found:
    """Everything that can happen; with `first`, up to the first violation, which is one of the shortest."""
    seen: dict[World, tuple[World, str] | None] = dict.fromkeys(starts)
    todo = deque(starts)
    while todo:
        w = todo.popleft()
        if first and model.wrong(w):
            return Found(len(seen), [way(seen, w)], 0)
        for name, following in model.nexts(w):
            if following not in seen:
                seen[following] = (w, name)
                todo.append(following)
        assert len(seen) < limit, "the state space is not finite"
    bad = [w for w in seen if model.wrong(w)]
    return Found(len(seen), [way(seen, w) for w in bad], sum(not model.settles(w) for w in seen))


def way(seen: Mapping[World, tuple[World, str] | None], w: World) -> list[str]:
    """How it came to this."""
    names: list[str] = []
    while before := seen[w]:
        w, name = before
        names.append(name)
    return names[::-1]


def first_starts(model: Model) -> Iterator[World]:
    """A device in the field meets mgota: a proven image runs, anything may lie in the other slot."""
    for other in (GOOD, HANGS, UNBOOTABLE, TORN, BLANK):
        yield model.boots(World(record=None, b=other))


@pytest.mark.parametrize("tries", [1, 2])
@pytest.mark.parametrize("evidence", [False, True], ids=["forgets", "remembers"])
def test_whatever_happens_a_good_image_ends_up_running(evidence: bool, tries: int) -> None:
    model = Model(evidence=evidence, tries=tries, torn_boots=True)
    found = explore(model, *first_starts(model))
    print(f"{found.states} states, {len(found.violations)} violations, {found.unsettled} that do not settle")
    assert found.violations == []
    assert found.unsettled == 0
    assert found.states > 1500
    assert model.rows == set(Action) - {Action.STUCK, Action.RUN_UNKNOWN}


def test_selections_that_fail_end_in_an_alarm_and_not_in_a_brick() -> None:
    model = Model(failures=True)
    found = explore(model, *first_starts(model))
    print(f"{found.states} states, {len(found.violations)} violations, {found.unsettled} that do not settle")
    assert found.violations == []
    assert found.unsettled == 0
    assert Action.STUCK in model.rows


# --- the model bites: what each rule of `mgota.core.boot` is for ------------------------------------------------------


def explored(model: Model) -> Found:
    found = explore(model, *first_starts(model), first=True)
    print(f"violation after {found.states} states: {' → '.join(found.violations[0])}" if found.violations else found)
    return found


Decide = Callable[[BootRecord | None, Slot, Facts], Decision]
decide: Decide = boot.decide


def trusting(record: BootRecord, slot: Slot) -> BootRecord:
    image = record.image(slot)
    return record.next_with(slot, image and replace(image, proven=True))


def test_control_a_bare_state_without_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed's TESTING: a cut between the store and the swap makes the old firmware the trial."""

    def bare_state(record: BootRecord | None, running: Slot, facts: Facts) -> Decision:
        if record and record.trial:
            record = trusting(trusting(replace(record, trial=running), Slot.A), Slot.B)
        return decide(record, running, replace(facts, whole=True))

    monkeypatch.setattr(boot, "decide", bare_state)
    assert explored(Model()).violations


def without_selecting_what_runs(steps: tuple[Step, ...], running: Slot) -> tuple[Step, ...]:
    return tuple(step for step in steps if step != Select(running))


def test_control_confirmed_without_selecting_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bootloader's own fallback leaves a selection behind, and a half-written update inherits it."""
    begin = boot.begin_steps

    def lazy(record: BootRecord | None, running: Slot, facts: Facts) -> Decision:
        decision = decide(record, running, facts)
        return replace(decision, steps=without_selecting_what_runs(decision.steps, running))

    monkeypatch.setattr(boot, "decide", lazy)
    monkeypatch.setattr(boot, "begin_steps", lambda r, running: without_selecting_what_runs(begin(r, running), running))
    assert explored(Model()).violations


def test_control_an_update_that_does_not_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at flash, the record speaks of an image that is overwritten by now."""
    monkeypatch.setattr(boot, "begin_steps", lambda r, running: (Select(running),))
    monkeypatch.setattr(Model, "holds", lambda self, w, slot: bool(w.record and w.record.image(slot)))
    assert explored(Model(torn_boots=True)).violations


def test_control_an_update_during_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """It destroys the way back."""
    monkeypatch.setattr(boot, "refuse_update", lambda record: None)
    assert explored(Model()).violations


def test_control_a_way_back_to_what_was_never_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an automatic rollback the failed image lies there whole."""

    def any_image(record: BootRecord, running: Slot, *, whole: bool) -> tuple[Step, ...]:
        _, *steps = rollback(trusting(record, running.other), running, whole=whole)
        return (Store(record.next()), *steps)

    rollback = boot.rollback_steps
    monkeypatch.setattr(boot, "rollback_steps", any_image)
    assert explored(Model()).violations


def test_control_selecting_before_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut between the two boots an image that no record knows to be on trial."""
    activate = boot.activate_steps

    def hasty(record: BootRecord, slot: Slot, image: SlotImage, *, tries: int) -> Iterator[Step]:
        store, select, reset = activate(record, slot, image, tries=tries)
        yield from (select, store, reset)

    monkeypatch.setattr(boot, "activate_steps", hasty)
    assert explored(Model()).violations


def test_control_a_trial_that_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that hangs is tried for ever."""

    def forgetful(record: BootRecord | None, running: Slot, facts: Facts) -> Decision:
        decision = decide(record, running, facts)
        return replace(decision, steps=decision.steps[1:]) if decision.row.action is Action.TRIAL else decision

    monkeypatch.setattr(boot, "decide", forgetful)
    assert explored(Model()).unsettled


def test_control_a_rollback_that_settles_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record may change only when the other slot is seen running."""

    def early(record: BootRecord | None, running: Slot, facts: Facts) -> Decision:
        decision = decide(record, running, facts)
        if decision.row.action is not Action.ROLL_BACK or record is None:
            return decision
        settled = record.next(state=State.CONFIRMED, trial=None)
        return replace(decision, steps=(Store(settled), *decision.steps))

    monkeypatch.setattr(boot, "decide", early)
    assert explored(Model()).violations
