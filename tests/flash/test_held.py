"""Gateway-held slots: what is programmed and what is left alone, a chip that is met for the first time, and every way
in which a chip, a link or a file fails."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from wired_chips import Chip, GatewaySlots, Summing

from mgota import Device, OtaSession, Slot, boot_check
from mgota.core.boot import Verdict
from mgota.core.geometry import Geometry, Region
from mgota.core.held import MAX_NOTE, HeldNote, decode_note
from mgota.core.record import BootRecord, Outcome
from mgota.errors import (
    ConfigError,
    FlashError,
    LinkError,
    OtaError,
    ReadError,
    SelectError,
    StateError,
    TooLargeError,
    VerifyError,
)
from mgota.flash.files import DurableFile
from mgota.flash.held import TRIES, HeldFlash
from mgota.flash.jobs import Beside
from mgota.flash.wired import PlainChip, Source
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.ports import FlashBackend, ResumableBackend
from mgota.session import provision
from mgota.testing import NorSimulator, check_flash_backend
from mgota.testing.bench import CellState
from mgota.testing.cuts import firmware
from mgota.trial import commit, rollback

pytestmark = pytest.mark.asyncio

A, B = Slot.A, Slot.B
CHIP = Geometry((Region(0, 512, 128), Region(512, 512, 256), Region(1024, 1024, 256)), program_unit=8)
DISK = Geometry((Region(2048, 4096, 512),), program_unit=8)
OLD = firmware("1", 700)
NEW = (
    OLD[:200] + b"?" + OLD[201:600] + b"!" * 20
)  # differs in the second sector, of 128 bytes, and in the fifth, of 256


class Line:
    """A reset line: what follows is the test's to do."""

    async def reset(self) -> None:
        pass


class Gateway:
    """A gateway with a chip; each `device` is one life of the gateway."""

    def __init__(self, kind: type[Chip] = Summing, **options: bool) -> None:
        self.disk = NorSimulator(DISK)
        self.chip = kind(NorSimulator(CHIP), CHIP)
        self.options = options
        self.slots = GatewaySlots(self.disk, 2048, 2048)
        self.note = self.disk.cell("held")
        self.flash = self.held()
        self.device = self.life()

    def held(self) -> HeldFlash:
        return HeldFlash(self.slots, PlainChip(self.chip.connect, CHIP), self.note, **self.options)

    def life(self, flash: FlashBackend | None = None) -> Device:
        return Device(flash=flash or self.flash, state=CellState(self.disk.cell("state")), reset=Line())

    async def boot(self) -> Verdict:
        """A restart of the gateway, until it goes on."""
        self.flash = self.held()
        return await self.reset()

    async def reset(self) -> Verdict:
        """A reset of the device, inside the gateway's process."""
        for _ in range(8):
            self.device = self.life()
            verdict = await boot_check(self.device)
            if verdict is not Verdict.RESET:
                return verdict
        raise AssertionError("it does not settle")

    async def send(self, image: bytes) -> None:
        async with OtaSession(self.device, size=len(image)) as ota:
            await ota.write(image)
            await ota.activate(await ota.seal())

    async def record(self) -> BootRecord:
        record, _ = await self.device.load()
        assert record
        return record

    @property
    def noted(self) -> HeldNote:
        note = decode_note(self.note.load())
        assert note
        return note

    def holds(self, image: bytes) -> bool:
        return self.chip.flash.peek(0, len(image)) == image


async def one(image: bytes) -> AsyncIterator[bytes]:
    yield image


async def made(kind: type[Chip] = Summing) -> Gateway:
    """It runs the old image, from the factory."""
    gateway = Gateway(kind)
    await provision(gateway.device, one(OLD), size=len(OLD))
    assert not gateway.chip.starts
    assert await gateway.boot() is Verdict.RUN
    assert gateway.holds(OLD)
    gateway.chip.erases = gateway.chip.programs = gateway.chip.bytes_read = 0
    return gateway


async def test_it_keeps_the_promises_of_a_backend() -> None:
    gateway = Gateway()
    await check_flash_backend(gateway.held)
    assert isinstance(gateway.flash, FlashBackend)
    assert isinstance(gateway.flash, ResumableBackend)


@pytest.mark.parametrize("kind", [Chip, Summing])
async def test_an_update_programs_what_differs_and_the_chip_runs_meanwhile(kind: type[Chip]) -> None:
    gateway = await made(kind)
    chip = gateway.chip
    order: list[tuple[str, int]] = []
    chip.fault = lambda what, offset: order.append((what, offset)) if what in {"erase", "program"} else None
    await gateway.send(NEW)
    assert chip.runs
    assert gateway.holds(OLD)
    assert not order
    assert gateway.noted.selected is B
    assert await gateway.reset() is Verdict.TRIAL
    assert chip.runs
    assert gateway.holds(NEW)
    assert order == [("erase", 128), ("erase", 512), ("program", 512), ("program", 128)]
    assert await commit(gateway.device)
    assert (gateway.noted.selected, gateway.noted.running, gateway.noted.doubt) == (B, B, False)


async def test_the_first_sector_is_erased_first_and_programmed_last() -> None:
    gateway = Gateway()
    order: list[tuple[str, int]] = []
    gateway.chip.fault = lambda what, offset: order.append((what, offset)) if what in {"erase", "program"} else None
    await provision(gateway.device, one(OLD), size=len(OLD))
    await gateway.boot()
    assert order[0] == ("erase", 0)
    assert order[-1] == ("program", 0)
    assert len(order) == 10


@pytest.mark.parametrize("kind", [Chip, Summing])
async def test_no_change_programs_nothing_and_every_start_looks(kind: type[Chip]) -> None:
    gateway = await made(kind)
    chip = gateway.chip
    for starts in (2, 3):
        assert await gateway.boot() is Verdict.RUN
        assert chip.starts == starts
    await gateway.send(OLD)
    assert await gateway.reset() is Verdict.TRIAL
    assert await commit(gateway.device)
    assert chip.erases == chip.programs == 0
    if kind is Summing:
        assert chip.bytes_read == 0
    chip.flash.poke(300, b"\0")  # somebody else was at it
    assert await gateway.boot() is Verdict.RUN
    assert gateway.holds(OLD)
    assert (chip.erases, chip.programs) == (1, 1)


async def test_a_trial_that_nobody_commits_is_rolled_back() -> None:
    gateway = await made()
    await gateway.send(NEW)
    assert await gateway.reset() is Verdict.TRIAL
    assert await gateway.reset() is Verdict.RUN
    assert gateway.holds(OLD)
    assert gateway.chip.runs
    assert (await gateway.record()).outcome is Outcome.ROLLED_BACK


async def test_an_operator_goes_back() -> None:
    gateway = await made()
    await gateway.send(NEW)
    await gateway.reset()
    await commit(gateway.device)
    await rollback(gateway.device)
    assert gateway.holds(NEW)
    assert await gateway.reset() is Verdict.RUN
    assert gateway.holds(OLD)


# --- a chip that was never seen --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 8, 700, 2048])
@pytest.mark.parametrize("kind", [Chip, Summing])
async def test_what_a_chip_in_the_field_runs_is_kept_and_a_first_update_goes_back_to_it(
    kind: type[Chip], size: int
) -> None:
    gateway, factory = Gateway(kind), firmware("0", size)
    gateway.chip.flash.poke(0, factory)
    assert await gateway.boot() is Verdict.RUN
    assert (gateway.chip.erases, gateway.chip.runs) == (0, True)
    image = (await gateway.record()).image(A)
    assert image
    assert image.proven
    await gateway.send(NEW)
    assert await gateway.reset() is Verdict.TRIAL
    assert gateway.holds(NEW)
    assert await gateway.reset() is Verdict.RUN
    assert gateway.holds(factory)
    assert (await gateway.record()).outcome is Outcome.ROLLED_BACK


async def test_a_copy_that_was_cut_off_is_made_again() -> None:
    gateway = Gateway()
    gateway.chip.flash.poke(0, OLD)

    for at in (1, 2):  # one finds the end, the second copies
        left = at

        def cut(what: str, offset: int) -> None:
            nonlocal left
            left -= what == "read"
            if what == "read" and not left:
                raise ReadError("the chip does not give it")

        gateway.chip.fault = cut
        with pytest.raises(ReadError):
            await gateway.boot()
        assert gateway.chip.runs  # nothing was changed on it
    assert gateway.noted.a is not None
    gateway.chip.fault = lambda what, offset: None
    assert await gateway.boot() is Verdict.RUN
    assert (gateway.noted.selected, gateway.noted.running) == (A, A)
    assert await gateway.flash.read(A, 0, len(OLD)) == OLD


@pytest.mark.parametrize("running", [A, B])
async def test_without_its_note_the_chip_tells_which_image_it_is(running: Slot) -> None:
    gateway = await made()
    await gateway.send(NEW)
    await gateway.reset()
    await commit(gateway.device)
    if running is A:
        await rollback(gateway.device)
        await gateway.reset()
    gateway.note.store(b"rotten")
    assert await gateway.boot() is Verdict.RUN
    assert await gateway.device.flash.running_slot() is running
    assert gateway.noted.selected is running
    assert gateway.chip.runs


async def test_without_its_note_and_with_two_other_images_nobody_guesses() -> None:
    gateway = await made()
    await gateway.send(NEW)
    await gateway.reset()
    gateway.note.store(b"")
    gateway.chip.flash.poke(100, b"\0")
    with pytest.raises(FlashError, match="nobody knows what the chip should hold"):
        await gateway.boot()
    assert gateway.chip.runs


async def test_a_file_that_begins_as_the_chip_and_is_longer_is_another_image() -> None:
    gateway = Gateway()
    gateway.chip.flash.poke(0, firmware("1", 2048))
    async with PlainChip(gateway.chip.connect, CHIP, 1024).session() as session:
        await session.read(0, 8)

        async def read(offset: int, size: int) -> bytes:
            return gateway.chip.flash.peek(1024 + offset, min(size, 1024 - offset))

        assert await session.holds(Source(1024, read))
        assert not await session.holds(Source(1025, read))


async def test_a_blank_chip_waits_for_its_first_image() -> None:
    gateway = Gateway()
    assert await gateway.boot() is Verdict.RUN
    assert (await gateway.record()).image(A) is None
    await gateway.send(NEW)
    assert await gateway.reset() is Verdict.TRIAL
    assert gateway.holds(NEW)


async def test_a_copy_may_not_be_wanted() -> None:
    gateway = Gateway(adopt=False)
    gateway.chip.flash.poke(0, OLD)
    assert await gateway.boot() is Verdict.RUN
    assert not await gateway.flash.extent(A)


# --- what fails ------------------------------------------------------------------------------------------------------


def refusing(what: str, error: type[OtaError] = ReadError, *, above: int = 0) -> object:
    def fault(asked: str, offset: int) -> None:
        if asked == what and offset >= above:
            raise error(f"no {what}")

    return fault


async def test_a_chip_that_does_not_take_the_new_image_gets_the_old_one_back(caplog: pytest.LogCaptureFixture) -> None:
    gateway = await made()
    big = firmware("2", 1500)
    gateway.chip.fault = refusing("program", FlashError, above=1024)  # type: ignore[assignment]
    await gateway.send(big)
    assert await gateway.reset() is Verdict.RUN
    assert gateway.holds(OLD)
    assert gateway.chip.runs
    record = await gateway.record()
    assert (record.outcome, record.reason) == (Outcome.ROLLED_BACK, "it never came up")
    assert "does not take the image in slot b" in caplog.text
    gateway.chip.fault = lambda what, offset: None
    await gateway.send(big)
    assert await gateway.reset() is Verdict.TRIAL
    assert gateway.holds(big)


async def test_a_way_back_that_the_chip_does_not_take_ends_in_what_it_has() -> None:
    gateway = Gateway()
    big = firmware("1", 1500)
    await provision(gateway.device, one(big), size=len(big))
    await gateway.boot()
    await gateway.send(NEW)
    assert await gateway.reset() is Verdict.TRIAL
    gateway.chip.flash.poke(1024, bytes(8))
    gateway.chip.fault = refusing("erase", FlashError, above=1024)  # type: ignore[assignment]
    assert await gateway.reset() is Verdict.RUN
    assert gateway.holds(NEW)
    assert gateway.chip.runs
    assert (await gateway.record()).outcome is Outcome.STUCK


async def test_neither_image_is_taken() -> None:
    gateway = await made()
    await gateway.send(NEW)
    gateway.chip.fault = refusing("program", FlashError)  # type: ignore[assignment]
    with pytest.raises(FlashError, match="no program"):
        await gateway.reset()
    assert not gateway.chip.runs  # it is half-programmed
    gateway.chip.fault = lambda what, offset: None
    assert await gateway.boot() is Verdict.TRIAL
    assert gateway.holds(NEW)


async def test_a_chip_that_cannot_be_started_is_no_verdict_on_its_image() -> None:
    gateway = await made()
    await gateway.send(NEW)
    gateway.chip.fault = refusing("reset", LinkError)  # type: ignore[assignment]
    with pytest.raises(LinkError, match="no reset"):
        await gateway.reset()
    assert gateway.holds(NEW)
    gateway.chip.fault = lambda what, offset: None
    assert await gateway.boot() is Verdict.TRIAL


async def test_a_link_that_breaks_before_anything_was_erased_leaves_a_chip_that_runs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = await made()
    starts = gateway.chip.starts
    gateway.chip.fault = refusing("sum")  # type: ignore[assignment]
    with pytest.raises(FlashError, match="no sum"):
        await gateway.boot()
    assert gateway.chip.runs
    assert gateway.chip.starts == starts + TRIES

    def fault(what: str, offset: int) -> None:
        if what in {"sum", "reset"}:
            raise LinkError("gone")

    gateway.chip.fault = fault
    with pytest.raises(FlashError, match="gone"):
        await gateway.boot()
    assert "the chip could not be started again" in caplog.text


async def test_what_does_not_stay_is_found_out() -> None:
    gateway = await made()
    chip = gateway.chip

    def fault(what: str, offset: int) -> None:
        if what == "sum" and chip.programs:
            chip.flash.poke(130, b"\0")

    await gateway.send(NEW)
    chip.fault = fault
    with pytest.raises((VerifyError, FlashError), match="does not hold what was programmed"):
        await gateway.reset()


async def test_an_image_that_rotted_on_the_gateway_is_not_programmed(caplog: pytest.LogCaptureFixture) -> None:
    gateway = await made()
    await gateway.send(NEW)
    gateway.disk.poke(4096 + 300, b"\0")
    assert await gateway.reset() is Verdict.RUN
    assert gateway.holds(OLD)
    assert gateway.chip.erases == 0
    assert "does not hold the image that was selected" in caplog.text
    assert (await gateway.record()).outcome is Outcome.ROLLED_BACK


async def test_a_half_programmed_chip_and_a_rotten_image_get_the_other_one_or_none() -> None:
    gateway = await made()
    await gateway.send(NEW)
    gateway.chip.fault = refusing("program", LinkError)  # type: ignore[assignment]
    with pytest.raises(FlashError):
        await gateway.reset()
    gateway.chip.fault = lambda what, offset: None
    good = gateway.disk.fork()
    gateway.disk.poke(4096 + 300, b"\0")
    assert await gateway.boot() is Verdict.RUN
    assert gateway.holds(OLD)
    assert good is not gateway.disk


async def test_a_half_programmed_chip_without_any_image_is_told() -> None:
    gateway = await made()
    await gateway.send(NEW)
    gateway.chip.fault = refusing("program", FlashError)  # type: ignore[assignment]
    with pytest.raises(FlashError):
        await gateway.reset()
    gateway.chip.fault = lambda what, offset: None
    for start in (2048, 4096):
        gateway.disk.poke(start + 300, b"\0")
    with pytest.raises(FlashError, match="neither of its images is whole"):
        await gateway.boot()


async def test_an_image_that_does_not_fit_the_chip_is_refused_before_anything_is_changed() -> None:
    gateway = await made()
    assert await gateway.flash.capacity() == 2048
    with pytest.raises(TooLargeError):
        await gateway.flash.open_writer(B, 2049)
    async with PlainChip(gateway.chip.connect, CHIP, 1024).session() as session:
        assert not await session.extent()
        with pytest.raises(FlashError, match="does not fit the chip's 1024"):
            await session.bring(Source(1025, gateway.chip.read), whole=True, begin=gateway.flash.recover)
    with pytest.raises(ConfigError):
        PlainChip(gateway.chip.connect, CHIP, 100)


class Failing:
    """A note whose disk fails."""

    def __init__(self, inner: Beside) -> None:
        self.inner = inner
        self.loads = self.stores = True

    def load(self) -> bytes | None:
        if not self.loads:
            raise OSError(5, "Input/output error")
        return self.inner.load()

    def store(self, data: bytes) -> None:
        if not self.stores:
            raise OSError(28, "No space left on device")
        self.inner.store(data)


async def test_a_note_that_cannot_be_kept() -> None:
    gateway = await made()
    note = Failing(gateway.note)
    flash = HeldFlash(gateway.slots, PlainChip(gateway.chip.connect, CHIP), note)
    await flash.recover()
    note.stores = False
    with pytest.raises(StateError, match="could not be noted: No space"):
        await flash.open_writer(B, 10)
    with pytest.raises(SelectError, match="slot b could not be selected: what the chip should hold"):
        await flash.select(B)
    gateway.chip.flash.poke(130, b"\0")
    with pytest.raises(StateError, match="could not be noted"):
        await flash.recover()  # nothing was erased
    assert gateway.chip.runs
    assert gateway.chip.erases == 0
    note.loads = False
    with pytest.raises(StateError, match="cannot be read: Input/output error"):
        await flash.recover()


async def test_files_on_a_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    chip = Summing(NorSimulator(CHIP), CHIP)
    chip.flash.poke(0, OLD)

    def life() -> Device:
        slots = FileSlots(tmp_path / "slots")
        flash = HeldFlash(slots, PlainChip(chip.connect, CHIP), DurableFile(tmp_path / "slots" / "held", MAX_NOTE))
        return Device(flash=flash, state=FileState(tmp_path / "state"), reset=Line())

    assert await boot_check(life()) is Verdict.RUN
    assert (tmp_path / "slots" / "a").read_bytes() == OLD + b"\xff" * (-len(OLD) % 8)
    device = life()
    assert await boot_check(device) is Verdict.RUN
    async with OtaSession(device, size=len(NEW)) as ota:
        await ota.write(NEW[:100])
    writer, at = await device.flash.reopen_writer(B, len(NEW), 100)  # type: ignore[attr-defined]
    assert at == 100
    await writer.write(NEW[100:])
    await writer.finish()
    await device.flash.select(B)
    assert await device.flash.running_slot() is A
    device = life()
    await device.flash.recover()
    assert chip.flash.peek(0, len(NEW)) == NEW
    assert "2 of the image's sectors are programmed" in caplog.text
