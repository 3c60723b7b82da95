"""What boot scripts are told: on models of the scripts themselves."""

import pytest
from hypothesis import given, strategies as st

from mgota.core.bootvars import BootCount, BootOrder, Convention, GrubOrder, Variables
from mgota.core.geometry import Slot
from mgota.errors import ConfigError

A, B = Slot


def rauc_boot(variables: dict[str, str]) -> Slot | None:
    """RAUC's script: count one attempt off the first name that has any left, and start it."""
    for name in variables.get("BOOT_ORDER", "A B").split():
        left = int(variables.get(f"BOOT_{name}_LEFT", "3"), 16)
        if left and name in "AB":
            variables[f"BOOT_{name}_LEFT"] = f"{left - 1:x}"
            return Slot(name.lower())
    return None


def uboot_boot(variables: dict[str, str]) -> Slot | None:
    """U-Boot with a bootcount in its environment, and Mender's altbootcmd."""
    if variables.get("upgrade_available") == "1":
        variables["bootcount"] = str(int(variables.get("bootcount", "0")) + 1)
        if int(variables["bootcount"]) > int(variables.get("bootlimit", "0")) > 0:
            variables |= {"boot_slot": "B" if variables["boot_slot"] == "A" else "A", "upgrade_available": "0"}
    return Slot(variables["boot_slot"].lower())


def grub_boot(variables: dict[str, str]) -> Slot | None:
    """RAUC's script for GRUB: start the first name that is OK and was not tried, and say that it was."""
    for name in variables.get("ORDER", "A B").split():
        if variables.get(f"{name}_OK", "1") == "1" and variables.get(f"{name}_TRY", "0") == "0" and name in "AB":
            variables[f"{name}_TRY"] = "1"
            return Slot(name.lower())
    return None


def apply(variables: dict[str, str], changes: dict[str, str | None]) -> None:
    for name, value in changes.items():
        assert value is not None
        variables[name] = value


START = {"BOOT_ORDER": "A B", "boot_slot": "A", "upgrade_available": "0", "bootcount": "0", "bootlimit": "1"}
BOTH = pytest.mark.parametrize(
    ("convention", "boot"), [(BootOrder(), rauc_boot), (BootCount(), uboot_boot), (GrubOrder(), grub_boot)]
)


@BOTH
@pytest.mark.parametrize("slot", [A, B])
def test_a_slot_that_is_selected_boots(convention: Convention, boot, slot: Slot) -> None:  # type: ignore[no-untyped-def]
    for running in Slot:
        variables = dict(START)
        apply(variables, convention.select(variables, slot, running=running))
        assert convention.selected(variables) is slot
        assert convention.select(variables, slot, running=running) == {}, "twice is once"
        assert not convention.tried(variables, slot)
        assert boot(variables) is slot


@BOTH
def test_a_slot_that_does_not_boot_is_left_and_known_as_tried(convention: Convention, boot) -> None:  # type: ignore[no-untyped-def]
    variables = dict(START)
    apply(variables, convention.select(variables, A, running=A))
    assert not convention.tried(variables, B), "not selected yet: a cut came between record and selection"
    apply(variables, convention.select(variables, B, running=A))
    boots = [boot(variables) for _ in range(8)]
    first = boots.index(A)
    assert set(boots[:first]) == {B}
    assert convention.tried(variables, B)
    apply(variables, convention.select(variables, A, running=A))
    assert not convention.tried(variables, B)
    assert {boot(variables) for _ in range(20)} <= {A, None}, "nothing else may boot"


@BOTH
def test_a_committed_slot_boots_for_ever_if_each_boot_settles(convention: Convention, boot) -> None:  # type: ignore[no-untyped-def]
    variables = dict(START)
    apply(variables, convention.select(variables, B, running=A))
    assert boot(variables) is B
    apply(variables, convention.select(variables, B, running=B))
    for fallback in (True, False, True):
        for _ in range(6):
            assert boot(variables) is B
            apply(variables, convention.settle(variables, B, fallback=fallback))
            assert convention.settle(variables, B, fallback=fallback) == {}


def test_a_proven_image_is_a_way_back_and_an_unproven_one_is_not() -> None:
    for fallback in (True, False):
        variables = dict(START)
        apply(variables, BootOrder().select(variables, B, running=B))
        assert rauc_boot(variables) is B
        apply(variables, BootOrder().settle(variables, B, fallback=fallback))
        boots = {rauc_boot(variables) for _ in range(10)}
        assert (A in boots) is fallback


def test_after_a_fallback_the_order_stays_and_what_runs_is_kept() -> None:
    variables = {"BOOT_ORDER": "B A R", "BOOT_A_LEFT": "1", "BOOT_B_LEFT": "0"}
    apply(variables, BootOrder().settle(variables, A, fallback=True))
    assert variables == {"BOOT_ORDER": "B A R", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "0"}
    apply(variables, BootOrder().settle(variables, A, fallback=False))
    assert variables == {"BOOT_ORDER": "A R", "BOOT_A_LEFT": "3", "BOOT_B_LEFT": "0"}
    variables["BOOT_ORDER"] = "R"
    apply(variables, BootOrder().settle(variables, A, fallback=False))
    assert variables["BOOT_ORDER"] == "R A"


def test_grub_after_a_fallback_keeps_the_order() -> None:
    variables = {"ORDER": "B A R", "B_TRY": "1", "A_TRY": "1"}
    apply(variables, GrubOrder().settle(variables, A, fallback=True))
    assert variables == {"ORDER": "B A R", "B_TRY": "1", "A_TRY": "0", "A_OK": "1"}
    apply(variables, GrubOrder().settle(variables, A, fallback=False))
    assert variables == {"ORDER": "A R", "B_TRY": "0", "A_TRY": "0", "A_OK": "1", "B_OK": "0"}
    variables["ORDER"] = "R"
    apply(variables, GrubOrder().settle(variables, A, fallback=True))
    assert variables["ORDER"] == "R A"


def test_other_names_stay_and_the_length_too() -> None:
    variables = {"BOOT_ORDER": "A R B"}
    apply(variables, BootOrder().select(variables, B, running=A))
    assert variables["BOOT_ORDER"] == "B A R"
    variables = {"BOOT_ORDER": "A B"}
    apply(variables, BootOrder().select(variables, A, running=A))
    assert variables["BOOT_ORDER"] == "A  "


def test_numbers_are_hexadecimal_or_nothing() -> None:
    order = BootOrder(attempts=12)
    variables: dict[str, str] = {}
    apply(variables, order.select(variables, B, running=A))
    assert variables["BOOT_B_LEFT"] == "c"
    for odd in ("", "x", "-1", "0"):
        assert order.tried({"BOOT_ORDER": "B A", "BOOT_B_LEFT": odd}, B)
        assert order.selected({"BOOT_ORDER": "B", "BOOT_B_LEFT": odd}) is None
    assert order.selected({"BOOT_ORDER": "R B"}) is None, "a rescue system is neither"


def test_a_limit_is_set_where_there_is_none() -> None:
    count = BootCount(limit=2)
    for odd in ({}, {"bootlimit": "0"}, {"bootlimit": "x"}):
        changes = count.select({"boot_slot": "A", **odd}, B, running=A)
        assert changes["bootlimit"] == "2"
        assert not count.tried({"bootcount": "9", **odd}, B)
    assert "bootlimit" not in count.select({"bootlimit": "5"}, B, running=A)
    assert count.selected({}) is None
    assert count.settle({"boot_slot": "B", "bootcount": "1"}, A, fallback=True) == {}
    assert count.settle({"boot_slot": "A", "bootcount": "1"}, A, fallback=True) == {"bootcount": "0"}


@given(
    st.dictionaries(
        st.sampled_from([*START, "BOOT_A_LEFT", "BOOT_B_LEFT", "ORDER", "A_OK", "B_TRY"]), st.text(max_size=5)
    )
)
def test_any_variables_are_answered(variables: Variables) -> None:
    for convention in (BootOrder(), BootCount(), GrubOrder()):
        for slot in Slot:
            found = dict(variables)
            convention.tried(found, slot)
            apply(found, convention.settle(found, slot, fallback=True))
            apply(found, convention.select(found, slot, running=slot.other))
            assert convention.selected(found) is slot


@pytest.mark.parametrize("names", [{A: "A", B: "A"}, {A: "", B: "B"}, {A: "A B", B: "C"}, {A: "A=", B: "B"}])
def test_wrong_names_are_refused(names: dict[Slot, str]) -> None:
    with pytest.raises(ConfigError):
        BootOrder(names)


def test_wrong_numbers_are_refused() -> None:
    for attempts in (0, 16):
        with pytest.raises(ConfigError):
            GrubOrder({A: "A", B: "A"})
        with pytest.raises(ConfigError):
            BootOrder(attempts=attempts)
    assert BootOrder(attempts=15).attempts == 15
    for wrong in ({"limit": 0}, {"variable": ""}, {"names": {A: "x", B: "x"}}):
        with pytest.raises(ConfigError):
            BootCount(**wrong)
