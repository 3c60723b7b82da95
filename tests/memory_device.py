"""A device of nothing but memory, with a switch in its supply, for tests of whoever drives it.

Everything that changes something is an *operation*: opening a slot, writing a chunk, finishing, selecting, storing.
They are counted, and a hook stands before and after each:

    board.power.cut_at(7)                   nothing of operation 7 happens: the power goes
    board.power.cut_at(7, after=True)       all of it happens, and then the power goes
    board.power.before = hook               anything else: to fail, to count, to cancel

When the power is gone, nothing works any more, reads included, until `boot`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from anyio.lowlevel import checkpoint

from mgota.core.geometry import Slot
from mgota.core.image import Trailer, Verifier, attach
from mgota.core.keys import PrivateKey
from mgota.core.record import BootRecord, decode_record, encode_record
from mgota.device import Device
from mgota.errors import ReadError, TooLargeError, UpdateRunningError
from mgota.ports import FlashWriter, ReadableBuffer
from mgota.session import OtaSession

KEY = PrivateKey.generate()
ROOM = 4096


def firmware(version: str, size: int = 900) -> bytes:
    """Bytes with a version in them, and no two blocks alike."""
    head = b"MG_VERSION:" + version.encode() + b"\0"
    body = b"".join(sha256(head + bytes([i % 256, i // 256])).digest() for i in range(size // 32 + 1))
    return (head + body)[:size]


def signed(data: bytes, *, key: PrivateKey = KEY, trailer: Trailer = Trailer.RAW) -> bytes:
    return attach(data, key.sign(sha256(data).digest()), trailer)


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


OLD = firmware("1")
NEW = firmware("2", 1500)


class PowerCut(BaseException):
    """The power is gone."""


class Restarted(BaseException):
    """The device resets. As on a real one, whoever asked for it does not go on."""


@dataclass(frozen=True)
class Operation:
    index: int
    what: str


Hook = Callable[[Operation], None]


class Power:
    """The supply: counts operations, and goes when a hook says so."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.before: Hook | None = None
        self.after: Hook | None = None
        self.gone = False

    @property
    def count(self) -> int:
        return len(self.log)

    def check(self) -> None:
        if self.gone:
            raise PowerCut

    @contextmanager
    def operation(self, what: str) -> Generator[None]:
        self.check()
        operation = Operation(self.count, what)
        self.log.append(what)
        self._call(self.before, operation)
        yield
        self._call(self.after, operation)

    def _call(self, hook: Hook | None, operation: Operation) -> None:
        try:
            if hook:
                hook(operation)
        except PowerCut:
            self.gone = True
            raise

    def cut_at(self, index: int, *, after: bool = False) -> None:
        """Let the power go at the operation with this number, counted from now."""
        index += self.count

        def cut(operation: Operation) -> None:
            if operation.index == index:
                raise PowerCut

        self.before, self.after = (None, cut) if after else (cut, None)

    def restore(self) -> None:
        self.gone, self.before, self.after = False, None, None


class MemoryFlash:
    """Two slots; like files, they are overwritten from the start and cut to size at the end."""

    crc = "crc-32"

    def __init__(self, power: Power, room: int = ROOM) -> None:
        self.power = power
        self.room = room
        self.cells = {slot: bytearray() for slot in Slot}
        self.running = Slot.A
        self.selected = Slot.A
        self.recovered = 0
        self.reads = 0

    async def running_slot(self) -> Slot:
        self.power.check()
        return self.running

    async def capacity(self) -> int:
        return self.room

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        if size > self.room:
            raise TooLargeError(size, self.room)
        await checkpoint()
        with self.power.operation("open"):
            return MemoryWriter(self, slot, size)

    async def extent(self, slot: Slot) -> int:
        self.power.check()
        return len(self.cells[slot])

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        self.power.check()
        self.reads += 1
        await checkpoint()
        data = bytes(self.cells[slot][offset : offset + size])
        if len(data) != size:
            raise ReadError(f"slot {slot} ends before {offset + size}")
        return data

    async def select(self, slot: Slot) -> None:
        self.power.check()
        if slot is self.selected:
            return
        with self.power.operation(f"select {slot}"):
            self.selected = slot

    async def recover(self) -> None:
        self.power.check()
        self.recovered += 1


class MemoryWriter:
    def __init__(self, flash: MemoryFlash, slot: Slot, size: int) -> None:
        self.flash = flash
        self.slot = slot
        self.size = size
        self.position = 0
        self.aborted = False

    async def write(self, chunk: ReadableBuffer) -> None:
        await checkpoint()
        with self.flash.power.operation("write"):
            self.flash.cells[self.slot][self.position : self.position + len(chunk)] = chunk
        self.position += len(chunk)

    async def finish(self) -> None:
        await checkpoint()
        with self.flash.power.operation("finish"):
            del self.flash.cells[self.slot][self.size :]

    async def abort(self) -> None:
        self.aborted = True


class MemoryState:
    """The record as bytes, so that each test exercises the codec too."""

    def __init__(self, power: Power) -> None:
        self.power = power
        self.data: bytes | None = None
        self.stores = 0
        self.loads = 0

    @property
    def record(self) -> BootRecord | None:
        """What is stored, without a load."""
        return None if self.data is None else decode_record(self.data)

    async def load(self) -> BootRecord | None:
        self.power.check()
        self.loads += 1
        await checkpoint()
        return self.record

    async def store(self, record: BootRecord) -> None:
        data = encode_record(record)
        with self.power.operation(f"store {record.state}"):
            self.data = data
        self.stores += 1

    def damage(self) -> None:
        self.data = b"\xff" * 32


class MemoryWatchdog:
    """Remembers what was asked of it, and never bites."""

    def __init__(self, *, stoppable: bool = True, limit: float | None = None) -> None:
        self.stoppable = stoppable
        self.limit = limit
        self.armed: list[float] = []
        self.fed = 0
        self.disarmed = 0

    async def arm(self, timeout: float) -> None:
        assert timeout > 0
        assert self.limit is None or timeout <= self.limit
        self.armed.append(timeout)

    async def feed(self) -> None:
        self.fed += 1

    async def disarm(self) -> None:
        self.disarmed += 1


class MemoryReset:
    """The reset line: counts, and does not return unless it is told to."""

    def __init__(self, *, returns: bool = False) -> None:
        self.returns = returns
        self.count = 0

    async def reset(self) -> None:
        self.count += 1
        if not self.returns:
            raise Restarted


class MemoryLock:
    """A lock that another process may hold."""

    def __init__(self) -> None:
        self.taken = False
        self.held = False

    @contextmanager
    def hold(self) -> Generator[None]:
        if self.taken or self.held:
            raise UpdateRunningError("another process is at it")
        self.held = True
        try:
            yield
        finally:
            self.held = False


class Board:
    """A device, its hardware, and what survives a reset.

    Args:
        old: what lies in slot a at the start; nothing if empty.
        watchdog: its watchdog.
        options: further arguments of `Device`.
    """

    def __init__(
        self, old: bytes = OLD, *, room: int = ROOM, watchdog: MemoryWatchdog | None = None, **options: Any
    ) -> None:
        self.power = Power()
        self.flash = MemoryFlash(self.power, room)
        self.flash.cells[Slot.A] += old
        self.state = MemoryState(self.power)
        self.watchdog = watchdog or MemoryWatchdog()
        self.reset = MemoryReset()
        self.lock = MemoryLock()
        self.options = options
        self.device = self.new_device()

    def new_device(self) -> Device:
        """What a process makes of the same hardware."""
        parts: dict[str, Any] = {
            "flash": self.flash,
            "state": self.state,
            "watchdog": self.watchdog,
            "reset": self.reset,
            "lock": self.lock,
        }
        return Device(**parts | self.options)

    def boot(self) -> Device:
        """Out of reset: the selected slot runs, and nothing is known but what was stored."""
        self.power.restore()
        self.lock.held = False
        self.flash.running = self.flash.selected
        self.device = self.new_device()
        return self.device

    @property
    def record(self) -> BootRecord:
        record = self.state.record
        assert record
        return record

    def content(self, slot: Slot) -> bytes:
        return bytes(self.flash.cells[slot])

    def snapshot(self) -> tuple[object, ...]:
        """Everything that survives a power cut, and whether the lock is free."""
        cells = tuple(bytes(self.flash.cells[slot]) for slot in Slot)
        return (self.state.data, self.flash.selected, cells, self.lock.held, self.device.live.held)


def verifying(trailer: Trailer = Trailer.RAW) -> Verifier:
    return Verifier(keys=[KEY.public], trailer=trailer)


async def send(ota: OtaSession, image: bytes, chunk: int = 400) -> None:
    for start in range(0, len(image), chunk):
        await ota.write(image[start : start + chunk])


async def update(device: Device, image: bytes, *, reset: bool = True) -> None:
    """A whole update, up to the reset: which does not return, if the device has a reset line."""
    async with OtaSession(device, size=len(image)) as ota:
        await send(ota, image)
        await ota.activate(await ota.seal(), reset=reset)


async def update_and_restart(device: Device, image: bytes) -> None:
    try:
        await update(device, image)
    except Restarted:
        return
    raise AssertionError("it did not reset")
