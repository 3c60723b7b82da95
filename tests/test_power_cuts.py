"""The power goes before or after any operation of a whole life on the STM32H5: flash, option bytes, boot record.

A life is an update that is committed, one that is rolled back by an operator, and one that nobody commits. Rules that
hold at every boot after every cut:
- what runs is one whole image that was proven, or the new one on its trial;
- the record speaks of the image that lies in the slot that it names;
- the next update works.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256

import anyio
import pytest

from mgota import Device, OtaSession, PrivateKey, Slot, State, Verifier, boot_check, commit, rollback
from mgota.core.boot import Verdict
from mgota.core.record import BootRecord, decode_record, encode_record
from mgota.flash.banked import BankedFlash, VirtualOptions
from mgota.flash.simulator import Kind, NorSimulator, Operation, Operations
from mgota.flash.targets.stm32h5 import banks
from mgota.session import provision

# Counting lines takes longer than the proof; others cover the lines.
pytestmark = pytest.mark.no_cover

KEY = PrivateKey.generate()
CHIP = banks(128 << 10)
BANK = CHIP.geometry.size // 2


def image(firmware: bytes) -> bytes:
    return firmware + KEY.sign(sha256(firmware).digest())


OLD = image(b"MG_VERSION:1\0" + bytes(range(256)) * 150)
NEW = image(b"MG_VERSION:2\0" + bytes(reversed(range(256))) * 97 + b"tail")
KNOWN = {sha256(each[:-64]).hexdigest(): each for each in (OLD, NEW)}


class PowerCutError(Exception):
    """The power is gone."""


@dataclass
class Store:
    """A boot record that counts among the chip's operations; each store happens, or does not."""

    operations: Operations
    data: bytes | None = None

    async def load(self) -> BootRecord | None:
        return decode_record(self.data) if self.data else None

    async def store(self, record: BootRecord) -> None:
        data = encode_record(record)
        with self.operations.perform(Kind.OPTION, 0, len(data), data):
            self.data = data


@dataclass
class Board:
    """A chip on the bench, with a switch in its supply."""

    cut_at: int | None = None
    after: bool = False
    operations: Operations = field(default_factory=Operations)

    def __post_init__(self) -> None:
        self.flash = NorSimulator(CHIP.geometry, operations=self.operations)
        self.options = VirtualOptions(operations=self.operations, factory=CHIP.factory)
        self.backend = BankedFlash(self.flash, self.options, CHIP)
        self.store = Store(self.operations)

    def supply(self, cut_at: int | None, *, after: bool) -> None:
        """Let the power go at the operation with this number, counted from now."""
        begun = self.operations.changes

        def before(operation: Operation) -> None:
            if operation.index is not None and cut_at is not None and operation.index - begun >= cut_at + after:
                raise PowerCutError

        def behind(operation: Operation) -> None:
            if operation.index is not None and after and operation.index - begun == cut_at:
                raise PowerCutError

        self.operations.before, self.operations.after = before, behind

    async def boots(self) -> tuple[Device, Verdict]:
        """Resets until the device goes on, and looks at what runs each time."""
        while True:
            await self.backend.boot()
            device = Device(flash=self.backend, state=self.store, verifier=Verifier(keys=[KEY.public]))
            verdict = await boot_check(device)
            await self.look(verdict)
            if verdict is not Verdict.RESET:
                return device, verdict

    async def look(self, verdict: Verdict) -> None:
        running = await self.backend.running_slot()
        record = await self.store.load()
        assert record is not None
        content = {slot: self.content(slot) for slot in Slot}
        for slot in Slot:
            told = record.image(slot)
            assert told is None or content[slot] == KNOWN[told.sha256], "the record speaks of another image"
        told = record.image(running)
        assert told is not None
        if verdict is not Verdict.RESET:
            assert told.proven or (verdict is Verdict.TRIAL and record.state is State.FAILED)

    def content(self, slot: Slot) -> bytes:
        """The image in a bank, up to the erased rest; a torn one has none of the known lengths."""
        bank = self.flash.peek(0 if slot is Slot.A else BANK, BANK)
        for known in (OLD, NEW):
            padded = known + b"\xff" * (-len(known) % 16)
            if bank == padded + b"\xff" * (BANK - len(padded)):
                return known
        return bank


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 5000):
        yield data[start : start + 5000]


async def update(device: Device, data: bytes) -> None:
    async with OtaSession(device, size=len(data)) as ota:
        async for chunk in chunks(data):
            await ota.write(chunk)
        await ota.activate(await ota.seal())


async def committed(board: Board, device: Device) -> None:
    await update(device, NEW)
    device, verdict = await board.boots()
    assert verdict is Verdict.TRIAL
    assert await commit(device)
    await board.boots()


async def nobody_commits(board: Board, device: Device) -> None:
    await update(device, NEW)
    await board.boots()
    await board.boots()  # the watchdog bit


async def regretted(board: Board, device: Device) -> None:
    await update(device, NEW)
    device, _ = await board.boots()
    await rollback(device)
    await board.boots()


async def regretted_later(board: Board, device: Device) -> None:
    await committed(board, device)
    device, _ = await board.boots()
    await rollback(device)
    await board.boots()


async def staged(board: Board, device: Device) -> None:
    async with OtaSession(device, size=len(NEW)) as ota:
        await ota.write(NEW)
        await ota.activate(await ota.seal(), reset=False)
    device, _ = await board.boots()
    waiting = await device.staged()
    assert waiting is not None
    await device.activate(waiting)
    await board.boots()


Life = Callable[[Board, Device], Awaitable[None]]


async def live(life: Life, cut_at: int | None, *, after: bool = False) -> tuple[Board, int]:
    """A life with one cut. Returns how many operations it took."""
    board = Board()
    await board.backend.boot()
    factory = Device(flash=board.backend, state=board.store, verifier=Verifier(keys=[KEY.public]))
    await provision(factory, chunks(OLD), size=len(OLD))
    device, _ = await board.boots()
    begun = board.operations.changes
    board.supply(cut_at, after=after)
    try:
        await life(board, device)
    except PowerCutError:
        assert cut_at is not None
    taken = board.operations.changes - begun
    board.supply(None, after=False)
    return board, taken


async def recovers(board: Board) -> None:
    """The power is back: the device settles, and the next update works."""
    device, verdict = await board.boots()
    if verdict is Verdict.TRIAL:
        device, verdict = await board.boots()  # nobody commits it
    assert verdict is Verdict.RUN
    record = await board.store.load()
    assert record is not None
    assert record.state is State.CONFIRMED
    await committed(board, device)
    running = await board.backend.running_slot()
    assert board.content(running) == NEW


@pytest.mark.parametrize("life", [committed, nobody_commits, regretted, regretted_later, staged])
def test_a_cut_at_any_operation_leaves_a_whole_proven_image(life: Life) -> None:
    _, total = anyio.run(live, life, None)
    assert total > 12
    cuts = 0
    for cut_at in range(total):
        for after in (False, True):

            async def cut(cut_at: int = cut_at, *, after: bool = after) -> None:
                board, taken = await live(life, cut_at, after=after)
                assert taken == cut_at + 1, "the life went on without power"
                await recovers(board)

            anyio.run(cut)
            cuts += 1
    print(f"{life.__name__}: {total} operations, {cuts} cuts, 0 bricks")


def test_a_second_cut_in_every_operation_of_the_recovery() -> None:
    """Sampled first cuts: those in the last third, where record and selection change."""
    _, total = anyio.run(live, nobody_commits, None)
    cuts = 0
    for first in range(2 * total // 3, total):
        second = 0
        while True:

            async def twice(first: int = first, second: int = second) -> bool:
                board, _ = await live(nobody_commits, first)
                board.supply(second, after=False)
                try:
                    await board.boots()
                except PowerCutError:
                    board.supply(None, after=False)
                    await recovers(board)
                    return True
                board.supply(None, after=False)
                return False

            if not anyio.run(twice):
                break
            second += 1
        cuts += second
    assert cuts > 5
    print(f"{cuts} double cuts, 0 bricks")


def test_who_boots_without_keys_finishes_what_a_program_with_keys_began() -> None:
    """A launcher needs no keys: the record says what was verified, and how long the trailer is."""

    async def cut_before_the_selection() -> None:
        board, total = await live(update_only, None)
        board, _ = await live(update_only, total - 1)
        assert await board.backend.selected_slot() is Slot.A
        await board.backend.boot()
        keyless = Device(flash=board.backend, state=board.store)
        assert await boot_check(keyless) is Verdict.RESET
        _, verdict = await board.boots()
        assert verdict is Verdict.TRIAL
        assert board.content(Slot.B) == NEW

    anyio.run(cut_before_the_selection)


async def update_only(_: Board, device: Device) -> None:
    await update(device, NEW)
