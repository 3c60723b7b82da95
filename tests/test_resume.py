"""Updates that go on after a restart: on files, on banks, on copied images and on an ESP32."""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest
from memory_device import MemoryState, Power

from mgota.core.esp_table import APP, DATA, OTA_0, OTADATA, Partition, PartitionTable
from mgota.core.geometry import Slot, uniform
from mgota.core.image import Verifier
from mgota.core.keys import PrivateKey
from mgota.core.note import DownloadNote, decode_note, encode_note
from mgota.core.swap import JournalPlace, plan_swap
from mgota.device import Device
from mgota.errors import (
    BadSignatureError,
    ConfigError,
    FlashError,
    ReadError,
    StateError,
    TransferError,
    TruncatedError,
    VerifyError,
)
from mgota.flash.banked import BankedFlash, Banks, VirtualOptions
from mgota.flash.copied import CopiedFlash
from mgota.flash.targets.esp32 import EspFlash
from mgota.linux.note import FileNote
from mgota.linux.slots import FileSlots
from mgota.ports import FlashBackend, Note, ResumableBackend, SyncingWriter
from mgota.resume import Resume
from mgota.session import OtaSession
from mgota.testing import ALL_MODES, CutMode, NorSimulator, PowerCut, PowerSupply

pytestmark = pytest.mark.asyncio

KEY = PrivateKey.generate()
NAME = "ab" * 32
STEP = 112  # whole units of 16, so that the checksum of what was marked is known
SECTOR = 256


def image(version: str, size: int = 1500) -> bytes:
    head = b"MG_VERSION:" + version.encode() + b"\0"
    firmware = (head + b"".join(sha256(head + bytes([i])).digest() for i in range(200)))[:size]
    return firmware + KEY.sign(sha256(firmware).digest())


OLD, NEW, OTHER = image("1", 700), image("2"), image("3")
CHIP = plan_swap(uniform(24 * SECTOR, SECTOR, program_unit=16), JournalPlace.CHIP)
BANKS = Banks(geometry=uniform(16 * SECTOR, SECTOR, program_unit=16), bit=0)
TABLE = PartitionTable(
    (
        Partition(name="otadata", type=DATA, subtype=OTADATA, offset=0x9000, size=0x2000),
        Partition(name="ota_0", type=APP, subtype=OTA_0, offset=0x10000, size=0x2000),
        Partition(name="ota_1", type=APP, subtype=OTA_0 + 1, offset=0x20000, size=0x2000),
    )
)


class MemoryNote:
    """A note in memory, which can fail."""

    def __init__(self) -> None:
        self.data: bytes | None = None
        self.broken = False
        self.stores = 0

    @property
    def note(self) -> DownloadNote | None:
        return decode_note(self.data)

    async def load(self) -> bytes | None:
        if self.broken:
            raise StateError("cannot read the note")
        return self.data

    async def store(self, data: bytes) -> None:
        if self.broken:
            raise StateError("cannot store the note")
        self.stores += 1
        self.data = data


@dataclass
class Bench:
    """Hardware that survives: `boot` makes a device of it, as a new process would."""

    kind: str
    directory: Path
    note: MemoryNote = field(default_factory=MemoryNote)
    state: MemoryState = field(default_factory=lambda: MemoryState(Power()))

    def __post_init__(self) -> None:
        size = {"banked": BANKS.geometry, "copied": CHIP.geometry, "esp32": uniform(0x22000, 0x1000)}.get(self.kind)
        self.flash = None if size is None else NorSimulator(size)
        self.options = VirtualOptions()

    def backend(self) -> FlashBackend:
        if self.flash is None:
            return FileSlots(self.directory / "slots")
        match self.kind:
            case "banked":
                return BankedFlash(self.flash, self.options, BANKS)
            case "copied":
                return CopiedFlash(self.flash, CHIP)
            case _:
                return EspFlash(self.flash, TABLE)

    def boot(self, **options: Any) -> Device:
        return Device(flash=self.backend(), state=self.state, **{"verifier": Verifier(keys=[KEY.public]), **options})

    def resume(self, **changes: Any) -> Resume:
        return Resume(**{"note": self.note, "identity": NAME, "step": STEP, **changes})

    def kept(self, mark: int) -> int:
        """What of a mark can be kept."""
        sector = {"slots": 1, "banked": SECTOR, "copied": SECTOR, "esp32": 0x1000}[self.kind]
        return mark // sector * sector

    async def killed(self, sent: int, chunk: int = 70) -> None:
        """Begin an update, send some of it, and vanish: what a session does at its end is not done."""
        session = await OtaSession(self.boot(), size=len(NEW), resume=self.resume()).__aenter__()
        session.validator = '"v1"'
        for start in range(session.received, sent, chunk):
            await session.write(NEW[start : min(start + chunk, sent)])

    async def finished(self, **changes: Any) -> int:
        """A session that goes on and ends well. Returns where it began."""
        async with OtaSession(self.boot(), size=len(NEW), resume=self.resume(**changes)) as session:
            begun = session.received
            assert session.resumed is (begun > 0) or begun == 0
            await session.write(NEW[begun:])
            sealed = await session.seal()
            await session.activate(sealed, reset=False)
        assert sealed.version == "2"
        staged = await self.boot().staged()
        assert staged
        assert await self.boot().flash.read(staged.slot, 0, len(NEW)) == NEW
        return begun


@pytest.fixture(params=["slots", "banked", "copied", "esp32"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    return Bench(request.param, tmp_path)


@pytest.mark.parametrize("sent", [0, 111, 112, 113, 223, 224, 300, 512, 513, 1000, len(NEW) - 1, len(NEW)])
async def test_an_update_goes_on_from_its_last_mark(bench: Bench, sent: int) -> None:
    await bench.killed(sent)
    mark = sent // STEP * STEP
    assert (bench.note.note.mark if bench.note.note else 0) == mark
    assert await bench.finished() == bench.kept(mark)


async def test_it_goes_on_over_many_restarts(bench: Bench) -> None:
    for sent in range(0, len(NEW), 130):
        await bench.killed(sent)
    assert await bench.finished() == bench.kept(1560 // STEP * STEP)


async def test_what_was_kept_is_of_the_first_life_and_not_written_again(bench: Bench) -> None:
    await bench.killed(1100)
    async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
        assert session.resumed is True
        assert session.validator == '"v1"'
        assert session.received == bench.kept(1100 // STEP * STEP)
        assert session.device.live.update == (session.received, len(NEW))
        with pytest.raises(TruncatedError):
            await session.seal()


@pytest.mark.parametrize("change", ["identity", "size", "revision", "mark", "flip", "gone", "broken", "staged"])
async def test_in_any_doubt_it_begins_with_the_first_byte(bench: Bench, change: str) -> None:
    await bench.killed(1100)
    note = bench.note.note
    assert note
    match change:
        case "identity":
            assert await bench.finished(identity="cd" * 32) == 0
            return
        case "size":
            async with OtaSession(bench.boot(), size=note.mark - 1, resume=bench.resume()) as session:
                assert (session.received, session.resumed) == (0, False)
            return
        case "revision":
            async with OtaSession(bench.boot(), size=10):
                pass  # another update, which failed
        case "mark":
            far = DownloadNote(identity=NAME, validator=None, revision=note.revision, mark=len(NEW), crc=note.crc)
            bench.note.data = encode_note(far)
        case "flip":
            assert bench.note.data
            bench.note.data = bench.note.data[:60] + bytes([bench.note.data[60] ^ 1]) + bench.note.data[61:]
        case "gone":
            bench.note.data = None
        case "broken":
            bench.note.broken = True
        case _:
            await bench.finished()  # now the slot holds an image of its own
    assert await bench.finished() == 0


async def test_bytes_that_were_changed_behind_its_back_are_found_out(bench: Bench) -> None:
    await bench.killed(1100)
    if bench.flash is None:
        path = bench.directory / "slots" / "b"
        data = bytearray(path.read_bytes())
        data[17] ^= 1
        path.write_bytes(data)
    else:
        slot = NEW[:16]
        at = next(at for at in range(0, bench.flash.geometry.size, SECTOR) if bench.flash.peek(at, 16) == slot)
        bench.flash.poke(at, bytes([NEW[0] ^ 1]))
    assert await bench.finished() == 0


async def test_a_slot_that_is_too_short_begins_anew(tmp_path: Path) -> None:
    bench = Bench("slots", tmp_path)
    await bench.killed(1100)
    with (tmp_path / "slots" / "b").open("rb+") as file:
        file.truncate(1007)  # one byte less than was marked
    assert await bench.finished() == 0
    await Bench("slots", tmp_path / "x").killed(1100)
    (tmp_path / "x" / "slots" / "b").unlink()
    assert await Bench("slots", tmp_path / "x").finished() == 0


async def test_nothing_is_kept_of_a_base_or_of_a_slot_that_no_update_began(tmp_path: Path) -> None:
    backend = Bench("copied", tmp_path).backend()
    assert isinstance(backend, ResumableBackend)
    with pytest.raises(FlashError, match="no image was begun in slot a"):
        await backend.reopen_writer(Slot.A, 1000, 500)


async def test_a_break_is_marked_at_once_and_needs_no_full_step(bench: Bench) -> None:
    with pytest.raises(TransferError):  # noqa: PT012
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            await session.write(NEW[:1055])
            raise TransferError("cut")
    note = bench.note.note
    assert note
    assert 1055 - 16 < note.mark <= 1055
    assert await bench.finished() == bench.kept(note.mark)


async def test_a_cancelled_update_is_marked_as_well(bench: Bench) -> None:
    with anyio.CancelScope() as scope:
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            await session.write(NEW[:1055])
            scope.cancel()
            await anyio.sleep_forever()
    assert await bench.finished() == bench.kept(1055 if bench.kind == "slots" else 1055 // 16 * 16)


async def test_a_refused_image_leaves_no_mark(bench: Bench) -> None:
    wrong = NEW[:-1] + bytes([NEW[-1] ^ 1])
    with pytest.raises(BadSignatureError):  # noqa: PT012
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            await session.write(wrong)
            await session.seal()
    assert bench.note.data == b""
    assert await bench.finished() == 0


async def test_a_session_can_begin_its_image_anew(bench: Bench) -> None:
    await bench.killed(1100)
    async with OtaSession(bench.boot(), size=len(OTHER), resume=bench.resume()) as session:
        assert session.received or bench.kind == "esp32"
        await session.write(NEW[session.received : 1200])
        await session.restart()
        assert (session.received, session.resumed, session.validator) == (0, False, None)
        assert bench.note.data == b""  # before a byte of the other image
        await session.write(OTHER[:650])
        assert bench.note.note
        assert bench.note.note.mark == 650 // STEP * STEP
        await session.write(OTHER[650:])
        await session.seal()
        with pytest.raises(RuntimeError):
            await session.seal()
        await session.restart()  # even a sealed one
        await session.write(OTHER)
        await session.activate(await session.seal(), reset=False)
    staged = await bench.boot().staged()
    assert staged
    assert staged.version == "3"


async def test_marks_that_fail_cost_nothing_but_the_progress(bench: Bench) -> None:
    bench.note.broken = True
    assert await bench.finished() == 0
    bench.note.broken = False
    await bench.killed(700)
    bench.note.broken = True
    async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
        await session.write(NEW)
        await session.restart()


async def test_without_resume_nothing_is_marked(bench: Bench) -> None:
    async with OtaSession(bench.boot(), size=len(NEW)) as session:
        session.validator = '"v1"'
        assert session.validator is None
        await session.write(NEW[:700])
        await session.restart()
        assert session.received == 0
    assert bench.note.stores == 0


class OnlyWhatIsAsked:
    """A backend that offers nothing besides `FlashBackend`."""

    def __init__(self, backend: FlashBackend) -> None:
        for name in ("crc", "running_slot", "capacity", "open_writer", "extent", "read", "select", "recover"):
            setattr(self, name, getattr(backend, name))


async def test_a_backend_without_the_offer_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("slots", tmp_path)
    await bench.killed(700)
    plain = bench.backend
    monkeypatch.setattr(bench, "backend", lambda: OnlyWhatIsAsked(plain()))
    assert await bench.finished() == 0


async def test_what_was_changed_where_no_checksum_was_known_shows_at_the_end(tmp_path: Path) -> None:
    bench = Bench("banked", tmp_path)
    assert bench.flash
    with pytest.raises(TransferError):  # noqa: PT012
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            await session.write(NEW[:1055])  # the last unit is not complete
            raise TransferError("cut")
    note = bench.note.note
    assert note
    assert (note.mark, note.crc) == (1040, None)
    at = next(at for at in range(0, bench.flash.geometry.size, SECTOR) if bench.flash.peek(at, 16) == NEW[:16])
    bench.flash.poke(at, bytes([NEW[0] ^ 1]))
    async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
        assert session.received == 1024
        await session.write(NEW[1024:])
        with pytest.raises(BadSignatureError):
            await session.seal()
        await session.restart()
        await session.write(NEW)
        await session.activate(await session.seal(), reset=False)
    assert await bench.boot().staged()


async def test_a_backend_that_cannot_sync_sets_no_marks(tmp_path: Path) -> None:
    bench = Bench("banked", tmp_path)
    assert bench.flash

    async def failing() -> None:
        raise FlashError("nobody knows")

    bench.flash.flush = failing  # type: ignore[method-assign]
    with pytest.raises(FlashError):  # noqa: PT012
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            await session.write(NEW)
            assert bench.note.note is None
            await session.seal()


async def test_a_slot_that_cannot_be_read_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench("slots", tmp_path)
    await bench.killed(700)

    async def failing(*_: object) -> bytes:
        raise ReadError("bad sector")

    with monkeypatch.context() as patch:
        patch.setattr(FileSlots, "read", failing)
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            assert session.received == 0


async def test_flash_that_lost_what_was_marked_fails_the_read_back_and_forgets(tmp_path: Path) -> None:
    bench = Bench("slots", tmp_path)
    await bench.killed(700)
    with pytest.raises(VerifyError):  # noqa: PT012
        async with OtaSession(bench.boot(), size=len(NEW), resume=bench.resume()) as session:
            assert session.received == 672
            path = tmp_path / "slots" / "b"
            path.write_bytes(b"x" + path.read_bytes()[1:])  # between the second look and the seal
            await session.write(NEW[672:])
            await session.seal()
    assert bench.note.data == b""


async def test_what_offers_itself_for_it(bench: Bench) -> None:
    backend = bench.backend()
    assert isinstance(backend, ResumableBackend)
    assert isinstance(await backend.open_writer(Slot.B, 100), SyncingWriter)
    assert isinstance(bench.note, Note)
    with pytest.raises(ConfigError):
        bench.resume(step=0)


async def test_a_note_in_a_file(tmp_path: Path) -> None:
    note = FileNote(tmp_path / "download")
    assert isinstance(note, Note)
    assert await note.load() is None
    await note.store(b"x" * 1024)
    assert await FileNote(tmp_path / "download").load() == b"x" * 1024
    await note.store(b"short")
    assert await note.load() == b"short"
    assert (tmp_path / "download").stat().st_size == 1024
    (tmp_path / "download").write_bytes(b"y" * 2000)
    assert len(await note.load() or b"") == 1025  # too long to be one
    await note.store(b"")
    assert await note.load() == b""
    assert (tmp_path / "download").stat().st_size == 1024
    with pytest.raises(StateError, match="cannot store the note"):
        await note.store(b"x" * 1025)
    (tmp_path / "download").unlink()
    (tmp_path / "download").mkdir()
    with pytest.raises(StateError, match="cannot read the note"):
        await note.load()


async def download(
    flash: NorSimulator, build: Callable[[NorSimulator], FlashBackend], state: MemoryState, note: MemoryNote
) -> None:
    """One life: boot, and download as far as the power lasts."""
    backend = build(flash)
    await backend.recover()
    device = Device(flash=backend, state=state, verifier=Verifier(keys=[KEY.public]))
    record, _ = await device.load()
    if record and record.staged:
        return
    resume = Resume(note=note, identity=NAME, step=128)
    async with OtaSession(device, size=len(NEW), resume=resume) as session:
        while session.received < len(NEW):
            await session.write(NEW[session.received :][:90])
        await session.activate(await session.seal(), reset=False)


BUILDS: dict[str, tuple[Callable[[NorSimulator], FlashBackend], Any]] = {
    "banked": (lambda flash: BankedFlash(flash, VirtualOptions(), BANKS), BANKS.geometry),
    "copied": (lambda flash: CopiedFlash(flash, CHIP), CHIP.geometry),
}


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", list(BUILDS))
@pytest.mark.parametrize("mode", [CutMode.ALL, CutMode.PREFIX, CutMode.RANDOM_READS, CutMode.VALID_THEN_BLANK])
async def test_a_download_survives_a_cut_at_any_operation_and_a_second_one(kind: str, mode: CutMode) -> None:
    assert mode in ALL_MODES
    build, geometry = BUILDS[kind]
    resumed = 0
    cut_at = 0
    while True:
        flash, state, note = NorSimulator(geometry), MemoryState(Power()), MemoryNote()
        power, cuts = PowerSupply(flash, seed=cut_at), 0
        for at in (cut_at, cut_at // 2 + 1):
            power.cut_at(at, mode)
            try:
                await download(flash, build, state, note)
            except PowerCut:
                power.restore()
                cuts += 1
                resumed += note.note is not None
            else:
                power.restore()
        await download(flash, build, state, note)
        device = Device(flash=build(flash), state=state, verifier=Verifier(keys=[KEY.public]))
        staged = await device.staged()
        assert staged, (kind, mode, cut_at)
        assert staged.version == "2"
        if not cuts:
            break
        cut_at += 1
    assert cut_at > 15
    assert resumed > 10
