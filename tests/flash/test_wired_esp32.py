"""An ESP32 at the end of a link: its own slots and otadata. What would boot is read as the bootloader reads it."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from wired_chips import GatewaySlots, Summing

from mgota import Device, OtaSession, Slot, boot_check
from mgota.core.boot import Verdict
from mgota.core.esp_table import TABLE_OFFSET, Partition, PartitionTable, encode_table
from mgota.core.geometry import Geometry, Region, uniform
from mgota.core.otadata import ENTRY_SIZE, decode_entry
from mgota.core.otaselect import selected_slot
from mgota.core.record import Outcome
from mgota.errors import ConfigError, FlashError, LinkError
from mgota.flash.held import HeldFlash
from mgota.flash.links.esp_rom import EspRom
from mgota.flash.links.link import Link
from mgota.flash.links.wire import Wire
from mgota.flash.wired_esp32 import EspChip
from mgota.session import provision
from mgota.testing import ALL_MODES, CutMode, Life, NorSimulator, PowerSupply, every_power_cut
from mgota.testing.bench import CellState, Restarted
from mgota.testing.cuts import firmware
from mgota.testing.esp_rom import SimulatedEspRom
from mgota.testing.wire import MemoryWire
from mgota.trial import commit

pytestmark = pytest.mark.asyncio

SECTOR = 4096
SIZE = 0x30000
OTADATA, OTA_0, OTA_1 = 0x9000, 0x10000, 0x20000
CHIP = uniform(SIZE, SECTOR)


def partition(name: str, kind: int, subtype: int, offset: int, size: int) -> Partition:
    return Partition(name=name, type=kind, subtype=subtype, offset=offset, size=size)


PARTITIONS = (
    partition("otadata", 1, 0, OTADATA, 2 * SECTOR),
    partition("ota_0", 0, 0x10, OTA_0, 0x10000),
    partition("ota_1", 0, 0x11, OTA_1, 0x10000),
)
TABLE = encode_table(PartitionTable(partitions=PARTITIONS))
FACTORY = encode_table(PartitionTable(partitions=(*PARTITIONS, partition("factory", 0, 0, 0x30000, 0x10000))))
OLD, NEW = firmware("1", 9_001), firmware("2", 5_000)
A, B = Slot.A, Slot.B


def boots(flash: NorSimulator) -> bytes:
    """What the bootloader would start, as far as an image can reach."""
    entries = [decode_entry(flash.peek(OTADATA + n * SECTOR, ENTRY_SIZE)) for n in range(2)]
    start = (OTA_0, OTA_1)[selected_slot(entries, 2) or 0]
    return flash.peek(start, max(len(OLD), len(NEW)))


class Line:
    async def reset(self) -> None:
        raise Restarted


class Gateway:
    """A gateway and an ESP32 in the field, which runs the old image and has power of its own."""

    def __init__(self, table: bytes = TABLE, size: int = SIZE) -> None:
        self.disk = NorSimulator(uniform(8 * SECTOR, SECTOR))
        geometry = uniform(size, SECTOR)
        self.chip = Summing(NorSimulator(geometry), geometry)
        self.chip.power = PowerSupply(self.chip.flash, seed=3)
        self.chip.flash.poke(TABLE_OFFSET, table)
        self.chip.flash.poke(OTA_0, OLD)
        self.erased = list[int]()
        self.chip.fault = lambda what, offset: self.erased.append(offset) if what == "erase" else None

    def start(self) -> Device:
        flash = HeldFlash(GatewaySlots(self.disk, 0, 4 * SECTOR), EspChip(self.chip.connect), self.disk.cell("held"))
        return Device(flash=flash, state=CellState(self.disk.cell("state")), reset=Line())

    async def boot(self) -> tuple[Device, Verdict]:
        for _ in range(6):
            device = self.start()
            with suppress(Restarted):
                return device, await boot_check(device)
        raise AssertionError("it does not settle")

    async def update(self, image: bytes) -> None:
        device, _ = await self.boot()
        with suppress(Restarted):
            async with OtaSession(device, size=len(image)) as ota:
                await ota.write(image)
                await ota.activate(await ota.seal())

    def runs(self, image: bytes) -> bool:
        return self.chip.runs and boots(self.chip.flash).startswith(image) and not self.chip.flash.unstable


async def test_the_other_slot_gets_the_image_and_the_way_back_is_otadata() -> None:
    gateway = Gateway()
    _, verdict = await gateway.boot()
    assert verdict is Verdict.RUN
    assert gateway.runs(OLD)
    assert not gateway.erased
    await gateway.update(NEW)
    assert gateway.runs(OLD)
    assert not gateway.erased
    _, verdict = await gateway.boot()
    assert verdict is Verdict.TRIAL
    assert gateway.runs(NEW)
    assert sorted(set(gateway.erased)) == [OTADATA, OTADATA + SECTOR, OTA_1, OTA_1 + SECTOR]
    gateway.erased.clear()
    device, verdict = await gateway.boot()  # nobody committed
    assert verdict is Verdict.RUN
    assert gateway.runs(OLD)
    assert set(gateway.erased) <= {OTADATA, OTADATA + SECTOR}
    record, _ = await device.load()
    assert record
    assert record.outcome is Outcome.ROLLED_BACK
    gateway.erased.clear()
    await gateway.update(NEW)  # which lies there still
    device, verdict = await gateway.boot()
    assert verdict is Verdict.TRIAL
    assert set(gateway.erased) <= {OTADATA, OTADATA + SECTOR}
    assert await commit(device)
    gateway.erased.clear()
    await gateway.boot()
    assert len(gateway.erased) == 1  # both entries of otadata select it now, so that no torn one ever selects another
    await gateway.boot()
    assert len(gateway.erased) == 1
    assert gateway.runs(NEW)


@pytest.mark.parametrize("away", [0, 100], ids=["comes back", "until the next start"])
async def test_whatever_is_cut_off_the_chip_alone_boots_a_whole_image(away: int) -> None:
    ready = Gateway()
    await ready.update(NEW)
    before = ready.chip.flash.operations.changes
    disk, chip = ready.disk.fork(), ready.chip.flash.fork()
    await ready.boot()
    count = ready.chip.flash.operations.changes - before
    assert count > 5
    for index in range(count):
        for mode in ALL_MODES if away else (CutMode.PREFIX, CutMode.VALID_THEN_BLANK):
            gateway = Gateway()
            gateway.disk, gateway.chip.flash = disk.fork(), chip.fork()
            power = gateway.chip.power = PowerSupply(gateway.chip.flash, seed=index)
            gateway.chip.away_for = away
            power.cut_at(index, mode)
            if away:
                with pytest.raises(FlashError):
                    await gateway.boot()
                for _ in range(5):  # it starts by itself, again and again, and reads are what shows what is torn
                    power.restore()
                    found = bytes(await gateway.chip.flash.read(OTADATA, 1)) and boots(gateway.chip.flash)
                    assert found.startswith((OLD, NEW))
                gateway.chip.away_for = 0
            _, verdict = await gateway.boot()
            assert verdict is Verdict.TRIAL
            assert gateway.runs(NEW)
            assert not gateway.chip.flash.operations.broken_rules


class WhatBoots(HeldFlash):
    """The running image is the one that the bootloader would start."""

    def __init__(self, flash: NorSimulator) -> None:
        chip = Summing(flash, CHIP)
        flash.poke(TABLE_OFFSET, TABLE)
        super().__init__(GatewaySlots(flash, SIZE, 4 * SECTOR), EspChip(chip.connect), flash.cell("held"))
        self._memory, self._booted = flash, False

    async def recover(self) -> None:
        await super().recover()
        self._booted = True

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        if self._booted and slot is await self.running_slot():
            return boots(self._memory)[offset : offset + size]
        return await super().read(slot, offset, size)


async def test_gateway_and_chip_lose_power_together() -> None:
    both = Geometry((Region(0, SIZE + 8 * SECTOR, SECTOR),))

    report = await every_power_cut(
        WhatBoots, both, modes=[CutMode.PREFIX, CutMode.VALID_THEN_BLANK], old=OLD, new=NEW,
        lives=[Life.COMMIT, Life.NO_COMMIT],
    )  # fmt: skip
    report.check()
    assert report.cuts > 50


async def test_a_factory_app_is_replaced_by_the_first_image() -> None:
    gateway = Gateway(FACTORY, 0x40000)
    device, verdict = await gateway.boot()
    assert verdict is Verdict.RUN
    assert not await device.flash.extent(A)
    assert await device.flash.capacity() == 4 * SECTOR  # the gateway's slots are smaller
    await provision(gateway.start(), one(NEW), size=len(NEW))
    await gateway.boot()
    assert gateway.runs(NEW)


async def one(image: bytes) -> AsyncIterator[bytes]:
    yield image


async def test_a_chip_without_slots_is_told() -> None:
    gateway = Gateway(encode_table(PartitionTable(partitions=PARTITIONS[:2])))
    with pytest.raises(ConfigError, match="needs otadata and two OTA slots"):
        await gateway.boot()
    assert gateway.chip.runs
    gateway.chip.flash.poke(TABLE_OFFSET, b"\xff" * SECTOR)
    with pytest.raises(ConfigError):
        await EspChip(gateway.chip.connect).capacity()


async def test_capacity_is_asked_of_the_chip_once() -> None:
    gateway = Gateway()
    chip = EspChip(gateway.chip.connect)
    assert await chip.capacity() == await chip.capacity() == 0x10000
    assert gateway.chip.starts == 1


# --- through the ROM -------------------------------------------------------------------------------------------------


async def none(wire: Wire) -> None:
    """The chip is in its ROM, or let run."""


async def test_through_the_boot_rom_an_update_and_the_way_back() -> None:
    flash = NorSimulator(CHIP)
    flash.poke(TABLE_OFFSET, TABLE)
    flash.poke(OTA_0, OLD)
    rom = SimulatedEspRom(flash)
    disk = NorSimulator(uniform(8 * SECTOR, SECTOR))
    carried = list[MemoryWire]()

    @asynccontextmanager
    async def connect() -> AsyncGenerator[Link]:
        carried.append(MemoryWire(rom))
        yield EspRom(carried[-1], CHIP, enter=none, leave=none)

    def start() -> Device:
        held = HeldFlash(GatewaySlots(disk, 0, 4 * SECTOR), EspChip(connect), disk.cell("held"))
        return Device(flash=held, state=CellState(disk.cell("state")))

    device = start()
    assert await boot_check(device) is Verdict.RUN
    async with OtaSession(device, size=len(NEW)) as ota:
        await ota.write(NEW)
        await ota.activate(await ota.seal())
    assert await boot_check(start()) is Verdict.TRIAL
    assert boots(flash).startswith(NEW)
    assert flash.peek(OTA_1, len(NEW)) == NEW
    programmed = carried[-1].carried
    assert await boot_check(start()) is Verdict.RESET
    assert await boot_check(start()) is Verdict.RUN
    assert boots(flash).startswith(OLD)
    assert carried[-1].carried < programmed / 2
    assert not flash.operations.broken_rules


async def test_a_rom_that_is_not_there_is_a_link_error() -> None:
    @asynccontextmanager
    async def connect() -> AsyncGenerator[Link]:
        yield EspRom(MemoryWire(SimulatedEspRom(NorSimulator(CHIP), wired=True)), CHIP, enter=none, leave=none)

    with pytest.raises(LinkError, match="is GPIO0"):
        await EspChip(connect).capacity()
