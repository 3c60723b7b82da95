"""An ESP32 on the simulator: its file, its partition table, what boots, and otadata that is worn out."""

from dataclasses import replace
from pathlib import Path

import pytest

from mgota.core.esp_table import (
    APP,
    FACTORY,
    OTA_0,
    Partition,
    PartitionTable,
    decode_table,
    default_table,
    encode_table,
)
from mgota.core.geometry import Geometry, Region, Sector, Slot, uniform
from mgota.core.otadata import ENTRY_SIZE, OtaState, decode_entry, encode_entry, ota_entry
from mgota.core.otaselect import READS, OtaPlace
from mgota.errors import (
    ConfigError,
    FlashError,
    ProgramError,
    ReadError,
    SelectError,
    TooLargeError,
    UpdateRunningError,
)
from mgota.flash.targets.esp32 import EspFlash, esp32, read_table
from mgota.flash.virtual import VirtualTarget
from mgota.ports import FlashBackend
from mgota.testing import BadFlash, Flaw, Kind, NorSimulator

pytestmark = pytest.mark.asyncio

OTADATA, OTHER = 0xE000, 0xF000
OTA, SIZE = {Slot.A: 0x10000, Slot.B: 0x1F0000}, 0x1E0000
SECTORS = (Sector(OTADATA, 0x1000), Sector(OTHER, 0x1000))
TABLE = default_table()


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "flash" if request.param == "file" else None


def with_apps(*apps: tuple[str, int]) -> PartitionTable:
    """The default table's data, and these apps: name and subtype."""
    found = tuple(
        Partition(name=name, type=APP, subtype=subtype, offset=0x10000 * (at + 1), size=0x10000)
        for at, (name, subtype) in enumerate(apps)
    )
    return PartitionTable((*TABLE.partitions[:2], *found))


def on_memory(table: PartitionTable) -> tuple[NorSimulator, EspFlash]:
    flash = NorSimulator(uniform(4 << 20, 0x1000))
    return flash, EspFlash(flash, table)


def entries(flash: NorSimulator) -> list[tuple[int, bool]]:
    found = [decode_entry(flash.peek(sector.start, ENTRY_SIZE)) for sector in SECTORS]
    return [(entry.seq, entry.valid) for entry in found]


async def boots(chip: VirtualTarget[EspFlash]) -> Slot:
    await chip.boot()
    await chip.backend.recover()
    return await chip.backend.running_slot()


async def used(path: Path | None = None) -> VirtualTarget[EspFlash]:
    """A chip that runs slot a, and on which an update was given up at once."""
    chip = esp32(path)
    await boots(chip)
    await (await chip.backend.open_writer(Slot.B, 1)).abort()
    return chip


async def test_a_new_chip_has_a_table_and_runs_slot_a(path: Path | None) -> None:
    chip = esp32(path)
    backend = chip.backend
    assert isinstance(backend, FlashBackend)
    assert decode_table(chip.flash.peek(0x8000, 0xC00)) == backend.table == default_table()
    assert chip.flash.peek(0, 0x8000) == b"\xff" * 0x8000
    assert chip.flash.peek(OTADATA, 0x2000) == b"\xff" * 0x2000
    assert await backend.running_slot() is Slot.A
    assert await backend.selected_slot() is Slot.A
    assert await backend.capacity() == SIZE
    assert [await backend.extent(slot) for slot in Slot] == [0, 0]
    assert (chip.flash.geometry.size, chip.flash.geometry.program_unit, backend.crc) == (4 << 20, 1, "crc-32")
    assert chip.watchdog.stoppable
    if path:
        assert path.stat().st_size == 4 << 20
        assert esp32(path).backend.table == default_table()


async def test_otadata_of_a_new_chip_stays_blank_until_its_first_update(path: Path | None) -> None:
    chip = esp32(path)
    for _ in range(2):
        assert await boots(chip) is Slot.A
        await chip.backend.select(Slot.A)
        await chip.backend.open_writer(Slot.A, 1)  # its first image
    assert chip.flash.peek(OTADATA, 0x2000) == b"\xff" * 0x2000
    with pytest.raises(TooLargeError):
        await chip.backend.open_writer(Slot.B, SIZE + 1)
    assert chip.flash.peek(OTADATA, 0x2000) == b"\xff" * 0x2000
    await chip.backend.open_writer(Slot.B, 1)
    assert entries(chip.flash) == [(3, True), (1, True)]


async def test_slots_are_partitions_whatever_is_selected(path: Path | None) -> None:
    chip = esp32(path)
    for slot, start in OTA.items():
        image = b"image " + slot.encode() * 5000
        chip.flash.poke(start, b"\0" * 0x8000)  # an older, longer one
        writer = await chip.backend.open_writer(slot, len(image))
        await writer.write(image)
        await writer.finish()
        assert chip.flash.peek(start, SIZE) == image + b"\xff" * (SIZE - len(image))
        assert await chip.backend.read(slot, 6, 4000) == image[6:4006]
        assert await chip.backend.extent(slot) == SIZE
    assert chip.flash.peek(0x3D0000, 0x30000) == b"\xff" * 0x30000


async def test_what_does_not_fit_or_lies_outside_is_refused() -> None:
    backend = esp32().backend
    with pytest.raises(TooLargeError):
        await backend.open_writer(Slot.B, SIZE + 1)
    for offset, size in ((-1, 1), (0, SIZE + 1), (SIZE, 1), (0, -1)):
        with pytest.raises(ReadError, match="inside slot a"):
            await backend.read(Slot.A, offset, size)
    _, small = on_memory(PartitionTable((*TABLE.partitions[:3], replace(TABLE.partitions[3], size=0x1000))))
    assert await small.capacity() == 0x1000  # what does not fit both could not be updated again


async def test_a_selection_takes_effect_at_the_next_boot_and_is_settled_there(path: Path | None) -> None:
    chip = await used(path)
    backend = chip.backend
    assert entries(chip.flash) == [(3, True), (1, True)]
    await backend.select(Slot.B)
    assert entries(chip.flash) == [(3, True), (4, True)]  # the winner's sector is not touched
    assert (await backend.running_slot(), await backend.selected_slot()) == (Slot.A, Slot.B)
    assert await boots(chip) is Slot.B
    assert entries(chip.flash) == [(2, True), (4, True)]
    await backend.select(Slot.A)
    assert entries(chip.flash) == [(5, True), (4, True)]
    assert await boots(chip) is Slot.A
    if path:
        assert await esp32(path).backend.running_slot() is Slot.A


async def test_what_is_settled_is_not_written() -> None:
    chip = await used()
    before = chip.flash.operations.changes
    for _ in range(3):
        assert await boots(chip) is Slot.A
        await chip.backend.select(Slot.A)
        await chip.backend.open_writer(Slot.B, 1)
    assert chip.flash.operations.changes == before
    await chip.backend.select(Slot.B)
    assert chip.flash.operations.changes == before + 2
    await chip.backend.select(Slot.B)  # it is
    assert chip.flash.operations.changes == before + 2


async def test_a_selection_is_taken_back_before_the_reset() -> None:
    chip = esp32()
    await boots(chip)
    await chip.backend.select(Slot.B)
    await chip.backend.select(Slot.A)
    assert await boots(chip) is Slot.A


async def test_the_entries_are_those_of_otatool() -> None:
    """otatool.py: sequence, CRC over it at 28, everything else as it was erased: state UNDEFINED."""
    chip = await used()
    for sector in SECTORS:
        data = chip.flash.peek(sector.start, sector.length)
        assert data == encode_entry(ota_entry(decode_entry(data[:ENTRY_SIZE]).seq)) + b"\xff" * (0x1000 - ENTRY_SIZE)
        assert data[4:28] == b"\xff" * 24


@pytest.mark.parametrize("state", [OtaState.NEW, OtaState.PENDING_VERIFY, OtaState.VALID])
async def test_a_selection_of_esp_idf_is_understood(state: OtaState) -> None:
    chip = esp32()
    chip.flash.poke(OTADATA, encode_entry(ota_entry(1, state=OtaState.VALID)))
    chip.flash.poke(OTHER, encode_entry(ota_entry(2, state=state)))
    assert await boots(chip) is Slot.B
    chip.flash.poke(OTHER, encode_entry(ota_entry(2, state=OtaState.ABORTED)))
    chip.flash.poke(OTADATA, encode_entry(ota_entry(1, state=OtaState.VALID)))
    assert await boots(chip) is Slot.A
    assert [valid for _, valid in entries(chip.flash)] == [True, True]


@pytest.mark.parametrize("running", list(Slot))
@pytest.mark.parametrize("highest", [0xFFFFFFFC, 0xFFFFFFFD, 0xFFFFFFFE])
async def test_sequences_begin_anew_when_none_is_left(running: Slot, highest: int) -> None:
    chip = esp32()
    chip.flash.poke(OTADATA, encode_entry(ota_entry(highest)))
    chip.flash.poke(OTHER, encode_entry(ota_entry(highest - 1)))
    if await boots(chip) is not running:
        await chip.backend.select(running)
        assert await boots(chip) is running
    for slot in (running.other, running, running.other):
        await chip.backend.select(slot)
        assert await boots(chip) is slot
    assert max(seq for seq, _ in entries(chip.flash)) < 20


async def test_a_chip_on_neither_slot_says_so_and_takes_a_selection() -> None:
    flash, backend = on_memory(with_apps(("factory", FACTORY), ("ota_0", OTA_0), ("ota_1", OTA_0 + 1)))
    with pytest.raises(FlashError, match="the factory app runs"):
        await backend.running_slot()
    with pytest.raises(FlashError, match="the factory app runs"):
        await backend.recover()
    await backend.select(Slot.B)
    assert await backend.boot() is Slot.B
    assert [decode_entry(flash.peek(at, ENTRY_SIZE)).slot(2) for at in (OTADATA, OTHER)] == [1, 1]


async def test_more_slots_than_two_are_left_alone() -> None:
    flash, backend = on_memory(with_apps(*((f"ota_{number}", OTA_0 + number) for number in range(3))))
    assert await backend.boot() is Slot.A
    for slot in (Slot.B, Slot.A, Slot.B):
        await backend.recover()
        await backend.select(slot)
        assert await backend.boot() is slot
    for sector in SECTORS:
        await flash.erase(sector)
    flash.poke(OTHER, encode_entry(ota_entry(3)))
    with pytest.raises(FlashError, match="ota_2 runs, which is neither slot a nor b"):
        await backend.boot()
    await backend.select(Slot.A)
    assert await backend.boot() is Slot.A


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (with_apps(("ota_0", OTA_0)), "two OTA slots; of these it has 1"),
        (with_apps(("factory", FACTORY)), "two OTA slots; of these it has 0"),
        (PartitionTable(TABLE.partitions[2:]), "needs otadata"),
        (with_apps(("ota_0", OTA_0), ("ota_2", OTA_0 + 2)), "without a gap"),
        (PartitionTable((*TABLE.partitions[:3], replace(TABLE.partitions[3], size=0x300000))), "0x4f0000 bytes"),
        (PartitionTable((*TABLE.partitions[:3], replace(TABLE.partitions[3], size=0x1800))), "no run of whole sectors"),
    ],
)
async def test_a_table_without_two_slots_is_refused(table: PartitionTable, said: str, tmp_path: Path) -> None:
    said = said.replace("no run", "not a run")
    with pytest.raises(ConfigError, match=said):
        on_memory(table)
    file = tmp_path / "flash"
    file.write_bytes((b"\xff" * 0x8000 + encode_table(table)).ljust(4 << 20, b"\xff"))
    with pytest.raises(ConfigError, match=rf"flash: .*{said}"):
        esp32(file)


async def test_a_memory_with_other_sectors_is_refused() -> None:
    with pytest.raises(ConfigError, match="sectors of 0x1000 bytes"):
        EspFlash(NorSimulator(Geometry((Region(0, 4 << 20, 0x10000),))), TABLE)
    with pytest.raises(ConfigError, match="program units that divide 32"):
        OtaPlace(uniform(0x2000, 0x1000, program_unit=64), SECTORS, 2)


async def test_a_file_that_is_no_esp32_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "flash"
    file.write_bytes(b"\xff" * (4 << 20))
    with pytest.raises(ConfigError, match="flash: there is no partition table: all is blank"):
        esp32(file)
    file.write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigError, match="100 bytes, the memory 4194304"):
        esp32(file)
    with pytest.raises(ConfigError, match="cannot be made"):
        esp32(tmp_path / "no" / "flash")
    for size in (0, 4095, (4 << 20) + 1):
        with pytest.raises(ConfigError, match="whole number of sectors"):
            esp32(size=size)
    for path in (None, tmp_path / "small"):
        with pytest.raises(ConfigError, match="too small for two slots"):
            esp32(path, size=2 << 20)
    assert not (tmp_path / "small").exists()


async def test_the_table_is_read_from_the_memory() -> None:
    flash = esp32(size=8 << 20).flash
    assert await read_table(flash) == default_table()
    with pytest.raises(ConfigError, match="all is blank"):
        await read_table(flash, 0x10000)


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    locks = [esp32(tmp_path / "flash").lock for _ in range(2)]
    assert locks[0]
    assert locks[1]
    with locks[0].hold(), pytest.raises(UpdateRunningError), locks[1].hold():
        pass
    assert esp32().lock is None


async def test_encrypted_flash_is_programmed_in_blocks_of_16() -> None:
    chip = esp32(program_unit=16)
    await boots(chip)
    await chip.backend.select(Slot.B)
    assert await boots(chip) is Slot.B
    with pytest.raises(ProgramError):
        await chip.flash.program(0x3D0001, b"x")


# --- otadata that is worn out


@pytest.mark.parametrize("flaw", list(Flaw))
@pytest.mark.parametrize("kind", [Kind.ERASE, Kind.PROGRAM])
@pytest.mark.parametrize("sector", SECTORS, ids=["first", "second"])
async def test_a_selection_that_fails_leaves_the_old_one(kind: Kind, flaw: Flaw, sector: Sector) -> None:
    chip = await used()
    await chip.backend.select(Slot.B)
    assert await boots(chip) is Slot.B
    bad = BadFlash(chip.flash)
    bad.fail(kind, flaw, sectors=[sector])
    try:
        await chip.backend.select(Slot.A)
    except SelectError as exc:
        assert "slot ota_0 could not be selected" in str(exc)  # noqa: PT017
        assert await chip.backend.selected_slot() is Slot.B
        assert bad.hits
        bad.mend()
        assert await boots(chip) is Slot.B
    else:  # only the other sector was written
        assert not bad.hits
        assert await boots(chip) is Slot.A


@pytest.mark.parametrize("kind", [Kind.ERASE, Kind.PROGRAM])
async def test_a_chip_whose_otadata_is_worn_out_runs_and_refuses_updates(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    chip = await used()
    await chip.backend.select(Slot.B)
    bad = BadFlash(chip.flash)
    bad.fail(kind, Flaw.ERROR, sectors=SECTORS)
    assert await boots(chip) is Slot.B
    assert "cannot be updated" in caplog.text
    with pytest.raises(SelectError, match="ota_1 could not be selected"):
        await chip.backend.select(Slot.B)  # what `begin` asks for, before it erases anything
    with pytest.raises(SelectError, match="ota_0 could not be selected"):
        await chip.backend.select(Slot.A)
    bad.mend()
    assert await boots(chip) is Slot.B


async def test_a_recovery_that_leaves_the_other_slot_selected_fails() -> None:
    chip = await used()
    await chip.backend.select(Slot.B)
    BadFlash(chip.flash).fail(Kind.ERASE, Flaw.IGNORED, sectors=SECTORS)
    with pytest.raises(FlashError):  # slot a runs, and b stays selected
        await chip.backend.recover()
    assert await chip.backend.selected_slot() is Slot.B


async def test_a_selection_that_cannot_be_taken_back_took_effect() -> None:
    chip = await used()
    bad = BadFlash(chip.flash)
    reads = 2 * READS * 3  # what boots, whether it is settled, which one loses
    bad.fail(Kind.READ, Flaw.ERROR, at=[reads], times=1)  # to verify what was written
    bad.fail(Kind.ERASE, Flaw.IGNORED, at=[2])  # to take it back
    await chip.backend.select(Slot.B)
    assert bad.hits == 2
    assert await boots(chip) is Slot.B


async def test_otadata_that_cannot_be_read_is_a_clear_error() -> None:
    chip = esp32()
    BadFlash(chip.flash).fail(Kind.READ, Flaw.ERROR, sectors=SECTORS)
    with pytest.raises(ReadError):
        await chip.boot()
    for slot in Slot:
        with pytest.raises(SelectError, match="could not be selected"):
            await chip.backend.select(slot)


async def test_bits_that_stick_are_found_by_reading_back() -> None:
    for offset in (OTADATA, OTHER):
        for bit in range(8):
            chip = await used()
            BadFlash(chip.flash).stick(offset, 1 << bit, 0)
            try:
                await chip.backend.select(Slot.B)
            except SelectError:
                assert await chip.backend.selected_slot() is Slot.A
            else:
                assert await chip.backend.selected_slot() is Slot.B


async def test_a_sector_that_wavers_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    chip = await used()
    await chip.backend.select(Slot.B)
    reads, read, counts = 0, NorSimulator.read, chip.flash.operations.counts

    async def wavering(self: NorSimulator, offset: int, size: int) -> bytes:
        nonlocal reads
        data = await read(self, offset, size)
        if offset != OTHER or counts[Kind.PROGRAM] != counts[Kind.OPTION]:
            counts[Kind.OPTION] = counts[Kind.PROGRAM]  # what was just programmed reads well, once
            return data
        reads += 1
        return bytes(size) if reads % 2 else data

    with monkeypatch.context() as patch:
        patch.setattr(NorSimulator, "read", wavering)
        with pytest.raises(SelectError, match="does not keep"):
            await chip.backend.select(Slot.A)
    assert await boots(chip) is Slot.A


@pytest.mark.parametrize("at", [0x20, 0xFF0])
async def test_only_the_entry_counts_of_a_sector(at: int) -> None:
    chip = esp32()
    chip.flash.poke(OTADATA + at, b"somebody's")
    assert await boots(chip) is Slot.A
    assert entries(chip.flash) == [(0xFFFFFFFF, False)] * 2
