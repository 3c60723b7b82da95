"""A device on the bench: a backend on simulated flash memory, a real `Device`, a switch in its supply, and a witness.

Rules, which hold at every boot after recovery, and are what `every_power_cut` proves:
- what runs is byte for byte one complete image, the one that the record names, and not on flash that may read otherwise
  the next time;
- the record speaks of the image that lies in the slot that it names, or says nothing of it;
- what runs was proven, or is the new image on its trial;
- the slot that runs is the one that was selected last. A selection that was cut off took effect or did not; once a boot
  has shown which, it stays so: no request is carried out twice;
- no rule of the chip was broken.
"""

from collections.abc import Awaitable, Callable
from inspect import isawaitable

from mgota.core.boot import Verdict
from mgota.core.geometry import Slot
from mgota.core.record import BootRecord, Outcome, State, decode_record, encode_record
from mgota.device import Device
from mgota.errors import FlashError, SelectError
from mgota.flash.operations import Cell, Kind, Operation
from mgota.flash.simulator import NorSimulator
from mgota.ports import FlashBackend, FlashWriter, StateStore
from mgota.session import OtaSession
from mgota.testing.power import PowerSupply
from mgota.trial import boot_check

MAX_BOOTS = 12
"""Resets in a row after which a device counts as one that does not settle; the boot table needs five at most."""

Build = Callable[[NorSimulator], FlashBackend | Awaitable[FlashBackend]]
MakeState = Callable[[NorSimulator], StateStore]


class Restarted(BaseException):
    """The device resets: whoever asked for it does not go on. A backend whose `select` resets the chip raises it."""


class BrickedError(BaseException):
    """A rule does not hold. Nobody who handles errors may go on."""


class CellState:
    """A boot record in a cell; implements `StateStore`. A store is one operation, and atomic.

    Args:
        cell: where it is kept.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    async def load(self) -> BootRecord | None:
        """The record, or None if there never was one.

        Raises:
            StateError: what is in the cell is no record.
        """
        data = self._cell.load()
        return decode_record(data) if data else None

    async def store(self, record: BootRecord) -> None:
        """Replace the record.

        Raises:
            StateError: the record contradicts itself.
        """
        self._cell.store(encode_record(record))


class _Line:
    async def reset(self) -> None:
        raise Restarted


class Witness:
    """A backend that remembers what was selected and what runs; implements `FlashBackend`.

    Args:
        inner: the backend that is proven.
        may_run: the slots that may run, given what was selected so far; changed here.
    """

    def __init__(self, inner: FlashBackend, may_run: set[Slot]) -> None:
        self._inner = inner
        self._may_run = may_run
        self._running: Slot | None = None

    @property
    def crc(self) -> str:
        """The checksum of the read-back."""
        return self._inner.crc

    async def running_slot(self) -> Slot:
        """The running slot, which must be one that was selected, and stay the same until the next boot."""
        running = await self._inner.running_slot()
        if self._running is None:
            if running not in self._may_run:
                raise BrickedError(f"slot {running} runs, and {running.other} was selected")
            self._running = running
            self._may_run.intersection_update({running})
        if running is not self._running:
            raise BrickedError(f"the running slot became {running} without a boot")
        return running

    async def capacity(self) -> int:
        """Bytes of the largest image."""
        return await self._inner.capacity()

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        """Begin to write an image."""
        return await self._inner.open_writer(slot, size)

    async def extent(self, slot: Slot) -> int:
        """Bytes that can be read."""
        return await self._inner.extent(slot)

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of `slot`."""
        return await self._inner.read(slot, offset, size)

    async def select(self, slot: Slot) -> None:
        """Make this slot the one that boots."""
        before = set(self._may_run)
        self._may_run.add(slot)
        try:
            await self._inner.select(slot)
        except SelectError:
            self._may_run.intersection_update(before)
            raise
        except Restarted:
            self._may_run.intersection_update({slot})
            raise
        self._may_run.intersection_update({slot})

    async def recover(self) -> None:
        """Finish a `select` that was cut off."""
        await self._inner.recover()


class Bench:
    """One device under test, from one boot to the next.

    Args:
        flash: its memory, with everything that survives a boot.
        build: makes the backend, at every boot.
        state: makes the state store, at every boot.
        images: the images that there are, by the SHA-256 of all of their bytes.
        may_run: the slots that may run.
        seed: of what its power cuts leave.
    """

    def __init__(
        self,
        flash: NorSimulator,
        build: Build,
        state: MakeState,
        *,
        images: dict[str, bytes],
        may_run: set[Slot],
        seed: int,
    ) -> None:
        self.flash = flash
        self.seed = seed
        self.power = PowerSupply(flash, seed=seed)
        self.log: list[Operation] = []
        """What was begun that changes something, while `listen` is on."""
        self.images = images
        self.may_run = may_run
        self._build = build
        self._state = state

    def listen(self) -> None:
        """Write down every operation from now on."""
        self.flash.operations.before = lambda operation: (
            None if operation.kind is Kind.READ else self.log.append(operation)
        )

    def fork(self, *, seed: int) -> "Bench":
        """A second device with all that survives a boot."""
        return Bench(
            self.flash.fork(),
            self._build,
            self._state,
            images=self.images,
            may_run=set(self.may_run),
            seed=seed,
        )

    async def start(self) -> Device:
        """Out of reset: nothing is known but what was stored."""
        made = self._build(self.flash)
        backend = await made if isawaitable(made) else made
        return Device(flash=Witness(backend, self.may_run), state=self._state(self.flash), reset=_Line())

    async def boot(self) -> tuple[Device, Verdict]:
        """Resets until the device goes on; what runs is looked at each time."""
        for _ in range(MAX_BOOTS):
            device = await self.start()
            try:
                verdict = await boot_check(device)
            except Restarted:
                verdict = Verdict.RESET
            await self.look(device, verdict)
            if verdict is not Verdict.RESET:
                return device, verdict
        raise BrickedError(f"the device does not settle: it has reset {MAX_BOOTS} times in a row")

    async def look(self, device: Device, verdict: Verdict) -> None:
        """Check the rules.

        Raises:
            BrickedError: one does not hold.
        """
        record, _ = await device.load()
        if record is None:
            raise BrickedError("the boot record is gone")
        if record.outcome is Outcome.STUCK:
            raise BrickedError(f"the device is stuck: {record.reason}")
        running = await device.flash.running_slot()
        if record.image(running) is None:
            raise BrickedError(f"slot {running} runs, and the record knows of no image there")
        for slot in (running, running.other):
            await self._look_at(device, record, slot)
        told = record.image(running)
        on_trial = record.state is not State.CONFIRMED and record.trial is running
        if not on_trial and not (told and told.proven):
            raise BrickedError(f"slot {running} runs an image that was never proven")
        wanted = {Verdict.RUN: State.CONFIRMED, Verdict.TRIAL: State.FAILED}.get(verdict, record.state)
        if record.state is not wanted:
            raise BrickedError(f"the device goes on ({verdict}) with the record in state {record.state}")
        self.check_rules()

    def check_rules(self) -> None:
        """No rule of the chip was broken.

        Raises:
            BrickedError: one was.
        """
        if self.flash.operations.broken_rules:
            raise BrickedError(f"a rule of the chip was broken: {self.flash.operations.broken_rules[0]}")

    async def _look_at(self, device: Device, record: BootRecord, slot: Slot) -> None:
        told = record.image(slot)
        if told is None:
            return
        image = self.images.get(told.sha256)
        if image is None or len(image) != told.image_size:
            raise BrickedError(f"the record speaks of an image in slot {slot} that there never was")
        unstable = self.flash.unstable_reads
        if await device.flash.read(slot, 0, len(image)) != image:
            raise BrickedError(f"slot {slot} does not hold the image that the record names")
        if self.flash.unstable_reads != unstable:
            raise BrickedError(f"the image in slot {slot} lies on flash that may read otherwise the next time")

    async def update(self, device: Device, image: bytes, chunk: int) -> None:
        """An update up to the reset.

        Raises:
            BrickedError: the device went on.
        """
        try:
            async with OtaSession(device, size=len(image)) as ota:
                for start in range(0, len(image), chunk):
                    await ota.write(image[start : start + chunk])
                await ota.activate(await ota.seal())
        except Restarted:
            return
        raise BrickedError("an image was activated, and the device did not reset")

    async def runs(self, device: Device, image: bytes) -> None:
        """This image runs.

        Raises:
            BrickedError: it is another one.
        """
        if await device.flash.read(await device.flash.running_slot(), 0, len(image)) != image:
            raise BrickedError("another image runs than the one that should")


def why(exc: BaseException) -> str:
    """What an exception says, for a report."""
    if isinstance(exc, BrickedError):
        return str(exc)
    kind = "the backend failed" if isinstance(exc, FlashError) else "it raised"
    return f"{kind}: {type(exc).__name__}: {exc}"
