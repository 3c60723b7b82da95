"""The threats of SECURITY.md that concern the image and the device: a test for each, named after its row.

Those of the network edge are in tests/http/test_http_edge_rows.py.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256

import pytest

from mgota import (
    Device,
    OtaSession,
    PrivateKey,
    PublicKey,
    Slot,
    State,
    Trailer,
    Verifier,
    boot_check,
    commit,
    rollback,
)
from mgota.core.boot import Verdict
from mgota.core.record import BootRecord, Outcome
from mgota.errors import (
    BadSignatureError,
    RejectedError,
    RollbackRefusedError,
    StateError,
    TrialRunningError,
    UnknownStateError,
    UnsignedError,
    WrongImageError,
)
from mgota.flash.banked import BankedFlash, VirtualOptions
from mgota.flash.simulator import NorSimulator
from mgota.flash.targets.stm32h5 import banks
from mgota.session import provision

N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""The order of P-256 (SEC 2, 2.4.2)."""

KEY = PrivateKey.generate()
FIRMWARE = b"MG_VERSION:2.0\0" + bytes(range(40))


def signature(firmware: bytes, key: PrivateKey = KEY) -> bytes:
    return key.sign(sha256(firmware).digest())


def signed(firmware: bytes, key: PrivateKey = KEY) -> bytes:
    return firmware + signature(firmware, key)


@dataclass
class Store:
    record: BootRecord | None = None
    broken: bool = False

    async def load(self) -> BootRecord | None:
        if self.broken:
            raise StateError("garbage")
        return self.record

    async def store(self, record: BootRecord) -> None:
        self.record, self.broken = record, False


class Bench:
    """A virtual chip, provisioned with version 1.0."""

    def __init__(self, *, keys: tuple[PublicKey, ...] = (KEY.public,), trailer: Trailer = Trailer.RAW) -> None:
        chip = banks(128 << 10)
        self.bank = chip.geometry.size // 2
        self.flash = NorSimulator(chip.geometry)
        self.backend = BankedFlash(self.flash, VirtualOptions(), chip)
        self.store = Store()
        self.keys, self.trailer = keys, trailer

    def device(self) -> Device:
        return Device(flash=self.backend, state=self.store, verifier=Verifier(keys=self.keys, trailer=self.trailer))

    async def factory(self) -> Device:
        old = signed(b"MG_VERSION:1.0\0" + bytes(20000)) + self.trailer.magic
        await self.backend.boot()
        await provision(self.device(), _once(old), size=len(old))
        return await self.boot(Verdict.RUN)

    async def boot(self, expected: Verdict) -> Device:
        await self.backend.boot()
        device = self.device()
        assert await boot_check(device) is expected
        return device


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def push(device: Device, image: bytes, *, reset: bool = True) -> None:
    async with OtaSession(device, size=len(image)) as ota:
        await ota.write(image)
        await ota.activate(await ota.seal(), reset=reset)


async def expect_refused(device: Device, image: bytes) -> RejectedError:
    """The image is refused, nothing is selected, and the device says so."""
    with pytest.raises(RejectedError) as caught:
        await push(device, image)
    status = await device.status()
    assert (status.state, status.outcome, status.active_slot) == (State.CONFIRMED, Outcome.REFUSED, Slot.A)
    assert status.reason == str(caught.value)
    record, _ = await device.load()
    assert record is not None
    assert record.b is None
    assert record.outcome is None
    return caught.value


@pytest.mark.asyncio
async def test_arbitrary_image_each_byte_flipped() -> None:
    device = await Bench().factory()
    image = signed(FIRMWARE)
    said: set[str] = set()
    for at in range(len(image)):
        flipped = bytearray(image)
        flipped[at] ^= 0x10
        said.add(str(await expect_refused(device, bytes(flipped))))
    assert len(said) == 1, "an error tells which byte was wrong"


@pytest.mark.asyncio
async def test_arbitrary_image_unsigned_or_by_another_key() -> None:
    device = await Bench().factory()
    for image in (FIRMWARE, b"\0" * 200, signed(FIRMWARE, PrivateKey.generate()), b"x", b"y" * 64):
        await expect_refused(device, image)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("r", "s"), [(0, 1), (1, 0), (0, 0), (N, 1), (1, N), (N + 5, 7), (2**256 - 1, 2**256 - 1)], ids=hex
)
async def test_arbitrary_image_with_a_signature_outside_of_the_group(r: int, s: int) -> None:
    device = await Bench().factory()
    await expect_refused(device, FIRMWARE + r.to_bytes(32, "big") + s.to_bytes(32, "big"))


@pytest.mark.asyncio
@pytest.mark.parametrize("trailer", list(Trailer))
async def test_trailer_stripped_or_doubled(trailer: Trailer) -> None:
    device = await Bench(trailer=trailer).factory()
    image = signed(FIRMWARE) + trailer.magic
    twice = image + signature(FIRMWARE) + trailer.magic
    for wrong in (image[:-68], image[:-64], image[:-4], image[:-1], image + b"\0", twice, image + b"MGSG"):
        assert isinstance(await expect_refused(device, wrong), UnsignedError | BadSignatureError)
    await push(device, image)


@pytest.mark.asyncio
async def test_trailer_form_is_never_guessed() -> None:
    raw, mgsg = await Bench().factory(), await Bench(trailer=Trailer.MGSG).factory()
    assert "--trailer mgsg" in str(await expect_refused(raw, signed(FIRMWARE) + b"MGSG"))
    assert "--trailer raw" in str(await expect_refused(mgsg, signed(FIRMWARE)))


@pytest.mark.asyncio
async def test_check_then_use_flash_changed_between_seal_and_activate() -> None:
    bench = Bench()
    await push(await bench.factory(), signed(FIRMWARE), reset=False)
    device = await bench.boot(Verdict.RUN)
    waiting = await device.staged()
    assert waiting is not None
    bench.flash.poke(bench.bank + 3, b"!")
    with pytest.raises(RejectedError):
        await device.staged()
    with pytest.raises(RejectedError):
        await device.activate(waiting)
    assert (await device.status()).state is State.CONFIRMED
    assert await bench.backend.selected_slot() is Slot.A


@pytest.mark.asyncio
async def test_check_then_use_between_the_record_and_the_selection() -> None:
    bench = Bench()
    device = await bench.factory()
    await push(device, signed(FIRMWARE))
    await bench.backend.select(Slot.A)  # as if the power had gone before the selection
    bench.flash.poke(bench.bank + 3, b"!")
    device = await bench.boot(Verdict.RUN)
    assert (await device.status()).outcome is Outcome.ROLLED_BACK
    assert await bench.backend.selected_slot() is Slot.A


@pytest.mark.asyncio
async def test_stale_tail() -> None:
    bench = Bench()
    device = await bench.factory()
    long, short = signed(FIRMWARE + b"S" * 50000), signed(FIRMWARE)
    await push(device, long, reset=False)
    await push(device, short, reset=False)
    stored = bench.flash.peek(bench.bank, bench.bank)
    assert stored == short.ljust(bench.bank, b"\xff")


@pytest.mark.asyncio
async def test_destroying_the_way_back() -> None:
    bench = Bench()
    device = await bench.factory()
    await push(device, signed(FIRMWARE))
    with pytest.raises(TrialRunningError):  # TESTING: recorded, and not yet reset
        await push(device, signed(FIRMWARE))
    device = await bench.boot(Verdict.TRIAL)
    old = bench.flash.peek(0, bench.bank)
    with pytest.raises(TrialRunningError):  # FAILED: on trial
        await push(device, signed(FIRMWARE))
    with pytest.raises(TrialRunningError):
        await push(device, signed(FIRMWARE), reset=False)
    assert bench.flash.peek(0, bench.bank) == old
    bench.store.broken = True
    with pytest.raises(UnknownStateError):  # nobody knows what there is to lose
        await push(device, signed(FIRMWARE))
    assert bench.flash.peek(0, bench.bank) == old


@pytest.mark.asyncio
async def test_replayed_commit_or_rollback() -> None:
    bench = Bench()
    device = await bench.factory()
    await push(device, signed(FIRMWARE))
    device = await bench.boot(Verdict.TRIAL)
    image = (await device.status()).image
    assert image is not None
    assert await commit(device, sha256=image.sha256)
    before = bench.store.record
    assert not await commit(device, sha256=image.sha256)  # idempotent
    assert bench.store.record == before

    await push(device, signed(FIRMWARE + b"3"))
    device = await bench.boot(Verdict.TRIAL)
    for replay in (commit, rollback):  # recorded when the last image ran
        with pytest.raises(WrongImageError):
            await replay(device, sha256=image.sha256)
    assert (await device.status()).state is State.FAILED


@pytest.mark.asyncio
async def test_rollback_never_goes_to_what_failed() -> None:
    bench = Bench()
    await push(await bench.factory(), signed(FIRMWARE))
    await bench.boot(Verdict.TRIAL)
    await bench.boot(Verdict.RESET)  # nobody committed
    device = await bench.boot(Verdict.RUN)
    before = bench.store.record
    assert before is not None
    assert before.b is not None  # it lies there whole, and unproven
    with pytest.raises(RollbackRefusedError):
        await rollback(device)
    assert bench.store.record == before


@pytest.mark.asyncio
async def test_key_compromise_a_revoked_key_is_revoked_for_what_waits_too() -> None:
    other = PrivateKey.generate()
    bench = Bench(keys=(KEY.public, other.public))
    await push(await bench.factory(), signed(FIRMWARE, other), reset=False)
    assert await bench.device().staged() is not None
    bench.keys = (KEY.public,)
    with pytest.raises(BadSignatureError):
        await bench.device().staged()


@pytest.mark.asyncio
async def test_a_signature_is_no_identity() -> None:
    """(r, n-s) verifies too, so an image is known by the SHA-256 of its firmware."""
    bench = Bench()
    device = await bench.factory()
    image = signed(FIRMWARE)
    twin = image[:-32] + (N - int.from_bytes(image[-32:], "big")).to_bytes(32, "big")
    async with OtaSession(device, size=len(twin)) as ota:
        await ota.write(twin)
        assert (await ota.seal()).sha256 == sha256(FIRMWARE).hexdigest()


@pytest.mark.asyncio
async def test_a_changed_record_of_a_staged_image_is_refused() -> None:
    bench = Bench()
    await push(await bench.factory(), signed(FIRMWARE), reset=False)
    await bench.flash.erase(next(bench.flash.geometry.sectors_in(bench.backend._areas[Slot.B])))
    with pytest.raises(RejectedError):
        await bench.device().staged()
