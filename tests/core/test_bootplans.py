"""EFI's variables, systemd-boot's entries, a Raspberry Pi's autoboot.txt: what makes a slot boot."""

import pytest
from hypothesis import given, strategies as st

from mgota.core import efi, sdboot
from mgota.core.efi import BootNumbers
from mgota.core.geometry import Slot
from mgota.core.sdboot import Entry, Remove, Rename, Write, read_entry
from mgota.core.tryboot import LIMIT, decode_autoboot, decode_cell, encode_autoboot
from mgota.errors import FlashError, OtaError

A, B = Slot
ENTRIES = {A: 1, B: 2}

# EFI


def firmware(found: BootNumbers, *broken: int) -> tuple[BootNumbers, int]:
    """Start BootNext once, else the first of BootOrder that loads."""
    numbers = ((found.following,) if found.following is not None else ()) + found.order
    return BootNumbers(found.order), next(number for number in numbers if number not in broken)


@pytest.mark.parametrize("order", [(1, 2, 7), (2, 1), (7, 1, 2), (1,), ()])
@pytest.mark.parametrize("following", [None, 1, 2, 7])
@pytest.mark.parametrize("slot", [A, B])
@pytest.mark.parametrize("running", [A, B])
def test_efi_starts_what_is_selected(order: tuple[int, ...], following: int | None, slot: Slot, running: Slot) -> None:
    found = efi.select(BootNumbers(order, following), ENTRIES, slot, running=running)
    assert efi.selected(found, ENTRIES) is slot
    assert efi.select(found, ENTRIES, slot, running=running) == found, "twice is once"
    after, number = firmware(found)
    assert number == ENTRIES[slot]
    if slot is running:
        assert ENTRIES[running.other] not in found.order
        assert firmware(after, number) == (after, 7) if 7 in order else True
    assert {7} & set(found.order) == {7} & set(order), "others stay"


def test_efi_goes_back_by_itself_and_a_commit_stays() -> None:
    found = efi.select(BootNumbers((1, 7)), ENTRIES, A, running=A)
    found, number = firmware(efi.select(found, ENTRIES, B, running=A))
    assert number == 2
    assert firmware(found)[1] == 1, "not committed"
    found = efi.settle(efi.select(found, ENTRIES, B, running=B), ENTRIES, B, fallback=True)
    assert found == BootNumbers((2, 1, 7))
    assert firmware(found, 2)[1] == 1, "a proven image is the way back"
    assert efi.settle(found, ENTRIES, B, fallback=False) == BootNumbers((2, 7))
    assert efi.settle(found, ENTRIES, A, fallback=False) == found
    assert efi.selected(BootNumbers((7, 1)), ENTRIES) is None
    assert efi.selected(BootNumbers(), ENTRIES) is None


@given(st.lists(st.integers(0, 0xFFFF), max_size=20))
def test_efi_numbers_are_read_as_they_were_written(numbers: list[int]) -> None:
    data = efi.encode_numbers(tuple(numbers))
    assert data[:4] == b"\x07\0\0\0"
    assert efi.decode_numbers(data) == tuple(numbers)


@given(st.binary(max_size=20))
def test_any_bytes_are_numbers_or_an_error(data: bytes) -> None:
    try:
        assert len(efi.decode_numbers(data)) * 2 + 4 == len(data)
    except FlashError:
        return


def test_efi_sizes_on_each_side_of_the_limit() -> None:
    assert len(efi.decode_numbers(bytes(4 + 2 * 512))) == 512
    for size in (3, 5, 4 + 2 * 513):
        with pytest.raises(FlashError, match="no list of boot entries"):
            efi.decode_numbers(bytes(size))


# systemd-boot

Files = dict[str, str]


def entries(files: Files) -> list[Entry]:
    return [entry for name, text in sorted(files.items()) if (entry := read_entry(name, text))]


def perform(files: Files, steps: list[sdboot.Step], upto: int | None = None) -> None:
    for step in steps[:upto]:
        match step:
            case Write(name, _, version):
                files[name] = sdboot.entry_text("linux /vmlinuz\nversion 5\n", version)
            case Rename(old, new):
                files[new] = files.pop(old)
            case Remove(name):
                del files[name]


def loader(files: Files) -> Slot:
    """Start the first of the list, after one attempt is counted off."""
    entry = sdboot.booting(entries(files))
    assert entry
    if entry.left:
        files[f"mgota-{entry.slot}+{entry.left - 1}-{entry.done + 1}.conf"] = files.pop(entry.name)
    return entry.slot


def select(files: Files, slot: Slot, running: Slot, upto: int | None = None) -> None:
    perform(files, sdboot.select(entries(files), slot, running=running, attempts=3), upto)


FACTORY = {"mgota-a.conf": "version 1\n"}


@pytest.mark.parametrize(
    "start",
    [
        {},
        FACTORY,
        {"mgota-a.conf": "version 1\n", "mgota-b.conf": "version 2\n"},
        {"mgota-a.conf": "version 3\n", "mgota-b+0-3.conf": "version 2\n", "mgota-b.conf": "version 1\n"},
        {"mgota-a+2-1.conf": "version 3\n", "mgota-b+3.conf": ""},
    ],
)
@pytest.mark.parametrize("slot", [A, B])
@pytest.mark.parametrize("running", [A, B])
def test_systemd_boot_starts_what_is_selected(start: Files, slot: Slot, running: Slot) -> None:
    files = dict(start)
    select(files, slot, running)
    assert sdboot.select(entries(files), slot, running=running, attempts=3) == [], "twice is once"
    perform(files, sdboot.tidy(entries(files)))
    assert {entry.slot for entry in entries(files)} <= ({slot} if slot is running else {A, B})
    assert loader(files) is slot
    before = sdboot.booting(entries(start))
    for upto in range(len(sdboot.select(entries(start), slot, running=running, attempts=3))):
        cut = dict(start)
        select(cut, slot, running, upto)
        found = sdboot.booting(entries(cut))
        assert found is None or found.slot in (slot, before and before.slot)
        perform(cut, sdboot.tidy(entries(cut)))
        select(cut, slot, running)
        assert loader(cut) is slot


def test_systemd_boot_gives_up_and_a_commit_stays() -> None:
    files = dict(FACTORY)
    select(files, B, A)
    assert [loader(files) for _ in range(5)] == [B, B, B, A, A]
    assert sdboot.tried(entries(files), B)
    assert not sdboot.tried(entries(files), A)
    select(files, A, A)
    assert set(files) == {"mgota-a.conf"}
    assert not sdboot.tried(entries(files), B)
    select(files, B, A)
    assert loader(files) is B
    select(files, B, B)
    assert set(files) == {"mgota-b.conf"}
    for fallback in (True, False, True):
        perform(files, sdboot.settle(entries(files), B, fallback=fallback))
        assert sdboot.settle(entries(files), B, fallback=fallback) == []
        assert (set(files) == {"mgota-a.conf", "mgota-b.conf"}) is fallback
        assert loader(files) is B
    assert sdboot.settle(entries(files), A, fallback=True) == []
    assert sdboot.settle([], A, fallback=True) == []
    perform(counted := {"mgota-b+2-1.conf": "version 0\n"}, sdboot.settle(entries(counted), B, fallback=True))
    assert set(counted) == {"mgota-a.conf", "mgota-b.conf"}


@pytest.mark.parametrize("name", ["mgota-c.conf", "mgota-a+.conf", "mgota-a+1-.conf", "other.conf", "mgota-a.conf.bak"])
def test_other_files_are_not_ours(name: str) -> None:
    assert read_entry(name, "version 1") is None


@given(st.text(max_size=30), st.text(max_size=60))
def test_any_file_is_an_entry_or_none(name: str, text: str) -> None:
    for each in (name, f"mgota-a{name}.conf"):
        entry = read_entry(each, text)
        assert entry is None or entry.name == each


# Raspberry Pi

AUTOBOOT = b"# ours\n[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n"


def test_autoboot_keeps_what_is_not_changed() -> None:
    found = decode_autoboot(AUTOBOOT)
    assert (found.normal, found.trial) == (2, 3)
    assert encode_autoboot(found) == AUTOBOOT
    swapped = encode_autoboot(found.with_numbers(3, 2))
    assert swapped == AUTOBOOT.replace(b"=2", b"=x").replace(b"=3", b"=2").replace(b"=x", b"=3")
    assert (decode_autoboot(swapped).normal, decode_autoboot(swapped).trial) == (3, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[all]\nboot_partition=2\n[tryboot]\nboot_partition=3\n",
        b"[all]\ntryboot_a_b=1\nboot_partition=2\n",
        b"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=2\n",
        b"[tryboot]\ntryboot_a_b=1\nboot_partition=2\n[all]\nboot_partition=3\n",
        b"[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n[pi5]\nboot_partition=4\n",
    ],
)
def test_an_autoboot_that_describes_no_two_partitions_is_refused(data: bytes) -> None:
    with pytest.raises(FlashError, match="needs tryboot_a_b=1"):
        decode_autoboot(data)


def test_two_partitions_in_one_section_are_refused() -> None:
    with pytest.raises(FlashError, match=r"two partitions in \[all\]"):
        decode_autoboot(AUTOBOOT + b"[all]\nboot_partition=4\n")


def test_autoboot_sizes_on_each_side_of_the_limit() -> None:
    full = AUTOBOOT + b"#" * (LIMIT - len(AUTOBOOT) - 1) + b"\n"
    found = decode_autoboot(full)
    assert encode_autoboot(found) == full
    with pytest.raises(FlashError, match="has 513 bytes"):
        decode_autoboot(full + b"\n")
    with pytest.raises(FlashError, match="would have 513 bytes"):
        encode_autoboot(found.with_numbers(22, 3))


@given(st.binary(max_size=100), st.booleans())
def test_any_autoboot_is_one_or_an_error(data: bytes, headed: bool) -> None:
    try:
        found = decode_autoboot(AUTOBOOT * headed + data)
    except OtaError:
        return
    assert decode_autoboot(encode_autoboot(found.with_numbers(5, 6))).trial == 6


def test_a_number_of_the_device_tree() -> None:
    assert decode_cell(b"\0\0\x01\x02") == 0x102
    with pytest.raises(FlashError, match="4 bytes"):
        decode_cell(b"\0\0\x01")
