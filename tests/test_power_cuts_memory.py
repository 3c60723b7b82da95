"""The power goes at every operation of every kind of life, and again at every operation of the recovery.

The device is nothing but memory, so that all pairs of cuts can be tried; the same single cuts happen to an STM32H5 in
`test_power_cuts.py` and to slots as files in `linux/test_file_slots.py`. What must hold at every boot after every cut:
- what runs is one whole image: proven, or the new one on its trial;
- the record speaks of the image that lies in the slot that it names, or says nothing of it;
- the lock is free, the device settles, and the next update works.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from memory_device import NEW, OLD, Board, PowerCut, Restarted, digest, firmware, signed, update, verifying

from mgota.core.boot import Verdict, provision_steps
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State
from mgota.errors import BadSignatureError
from mgota.trial import boot_check, commit, rollback

# Counting lines takes longer than the proof; others cover the lines.
pytestmark = [pytest.mark.asyncio, pytest.mark.no_cover]

NEXT = firmware("3", 700)
IMAGES = {digest(each): signed(each) for each in (OLD, NEW, NEXT)}
BAD = IMAGES[digest(NEW)][:-1] + bytes([IMAGES[digest(NEW)][-1] ^ 1])

Life = Callable[[Board], Awaitable[None]]


async def boots(board: Board) -> Verdict:
    """Resets until the device goes on, looking each time."""
    while True:
        board.flash.running = board.flash.selected
        board.lock.held = False
        board.device = board.new_device()
        try:
            verdict = await boot_check(board.device)
        except Restarted:
            look(board)
            continue
        look(board, verdict)
        return verdict


def look(board: Board, verdict: Verdict | None = None) -> None:
    record = board.record
    running = board.flash.running
    assert board.content(running) in IMAGES.values(), "a torn image runs"
    for slot in Slot:
        told = record.image(slot)
        assert told is None or board.content(slot) == IMAGES[told.sha256], "the record speaks of another image"
    told = record.image(running)
    assert told
    if verdict is Verdict.RUN:
        assert told.proven
        assert (record.state, record.trial) == (State.CONFIRMED, None)
    if verdict is Verdict.TRIAL:
        assert (record.state, record.trial) == (State.FAILED, running)
    assert board.lock.held is False


async def updates(board: Board, image: bytes = IMAGES[digest(NEW)], *, reset: bool = True) -> None:
    try:
        await update(board.device, image, reset=reset)
    except Restarted:
        await boots(board)


async def goes_back(board: Board) -> None:
    with pytest.raises(Restarted):
        await rollback(board.device)
    await boots(board)


async def committed(board: Board) -> None:
    await boots(board)
    await updates(board)
    await commit(board.device)
    await boots(board)


async def nobody_commits(board: Board) -> None:
    await boots(board)
    await updates(board)
    for _ in range(board.options.get("tries", 1)):
        await boots(board)


async def regretted_on_trial(board: Board) -> None:
    await boots(board)
    await updates(board)
    await goes_back(board)


async def regretted_twice(board: Board) -> None:
    await committed(board)
    await goes_back(board)
    await goes_back(board)


async def staged(board: Board) -> None:
    await boots(board)
    await updates(board, reset=False)
    await boots(board)
    image = await board.device.staged()
    assert image
    try:
        await board.device.activate(image)
    except Restarted:
        await boots(board)
    await commit(board.device)


async def refused(board: Board) -> None:
    await boots(board)
    with pytest.raises(BadSignatureError):
        await update(board.device, BAD)
    await updates(board)


async def two_updates(board: Board) -> None:
    await committed(board)
    await updates(board, IMAGES[digest(NEXT)])
    await commit(board.device)


LIVES: list[Life] = [committed, nobody_commits, regretted_on_trial, regretted_twice, staged, refused, two_updates]


def new_board(tries: int) -> Board:
    return Board(IMAGES[digest(OLD)], verifier=verifying(), tries=tries)


async def lived(life: Life, tries: int, cut: int | None, *, after: bool = False) -> Board:
    board = new_board(tries)
    # A first start reads the trailer as firmware: the factory has given this one its record.
    await provisioned(board)
    if cut is not None:
        board.power.cut_at(cut, after=after)
    try:
        await life(board)
    except PowerCut:
        assert board.power.gone
    return board


async def provisioned(board: Board) -> None:
    image = (await board.device.read_back(Slot.A, len(IMAGES[digest(OLD)]))).image
    await board.device.perform(*provision_steps(BootRecord(), Slot.A, image))
    board.power.log.clear()


async def recovers(board: Board) -> None:
    """The power is back."""
    board.power.restore()
    verdict = await boots(board)
    for _ in range(3):
        if verdict is Verdict.TRIAL:
            verdict = await boots(board)  # nobody commits it
    assert verdict is Verdict.RUN
    assert board.record.outcome is not Outcome.STUCK
    await updates(board, IMAGES[digest(NEXT)])
    assert await commit(board.device)
    assert await boots(board) is Verdict.RUN
    assert board.content(board.flash.running) == IMAGES[digest(NEXT)]


@pytest.mark.parametrize("tries", [1, 2])
@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
async def test_a_cut_at_every_operation(life: Life, tries: int) -> None:
    total = (await lived(life, tries, None)).power.count
    assert total > 8
    for cut in range(total):
        for after in (False, True):
            board = await lived(life, tries, cut, after=after)
            assert board.power.gone, f"operation {cut} of {total} never came"
            await recovers(board)
    print(f"{life.__name__}, tries {tries}: {total} operations, {2 * total} cuts")


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
async def test_a_second_cut_at_every_operation_of_the_recovery(life: Life) -> None:
    pairs = 0
    total = (await lived(life, 1, None)).power.count
    for first in range(total):
        second = 0
        while True:
            board = await lived(life, 1, first)
            board.power.restore()
            board.power.cut_at(second)
            with suppress(PowerCut):
                await boots(board)
            if not board.power.gone:
                break
            await recovers(board)
            second, pairs = second + 1, pairs + 1
    assert pairs > 3
    print(f"{life.__name__}: {pairs} pairs of cuts")


async def test_a_cut_at_every_operation_of_the_first_update_of_a_device_in_the_field() -> None:
    """No record yet: what runs when the first one is stored counts as proven, and nothing torn ever does."""
    total = await first_life(None)
    assert total > 8
    for cut in range(total):
        await first_life(cut)


async def first_life(cut: int | None) -> int:
    board = Board(OLD)
    if cut is not None:
        board.power.cut_at(cut)
    with suppress(PowerCut, Restarted):
        await boot_check(board.device)
        await update(board.device, NEW)
    operations = board.power.count
    board.boot()
    try:
        verdict = await boot_check(board.device)
    except Restarted:
        verdict = await boot_check(board.boot())
    assert board.record.a
    assert (board.record.a.sha256, board.record.a.proven) == (digest(OLD), True)
    assert board.content(board.flash.running) == (NEW if verdict is Verdict.TRIAL else OLD)
    return operations
