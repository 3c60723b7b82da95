"""Chips without exchangeable banks: two images that change places by copying, with a journal.

`a` and `b` name images, not places: the journal says which of them lies at the base and runs, and where the other lies.
Rules:
- the running slot is the one at the base after `recover` at boot; what is selected later is the next boot's;
- `select` moves the images, shielded from cancellation; whoever drives it keeps the chip in reset meanwhile;
- what was cut off is finished by `recover`, at the next boot and before anything else;
- one job at a time: who reads while another task moves the images waits, and a journal is never mounted beside a note.

Recovery is `host`: the code that moves the images must not lie in the memory that it moves.
"""

from anyio import Lock
from anyio.lowlevel import checkpoint

from mgota.core import swap
from mgota.core.geometry import Area, Slot
from mgota.core.nor import Job
from mgota.core.recordlog import Kind, RecordLog
from mgota.core.swap import ChipJournal, HostJournal, Phase, SwapLayout, SwapState
from mgota.errors import ConfigError, FlashError, StateError, TooLargeError
from mgota.flash.areas import extent_of, read_slot
from mgota.flash.jobs import Beside, carry_out
from mgota.flash.writer import NorWriter, reopened
from mgota.ports import Flushable, StateStore


class CopiedFlash:
    """Two images that change places; implements `FlashBackend`.

    Args:
        flash: the memory.
        layout: of images and journal.
        journal: a `DurableFile` for the journal, where the layout has none on the chip.
        state: where the device's boot record is. Where it has one, a journal that is missing is no new one: it was
            lost, and with it the knowledge of which image lies where.
        crc: the checksum of the read-back.

    Raises:
        ConfigError: a journal is missing.
    """

    def __init__(
        self,
        flash: Flushable,
        layout: SwapLayout,
        journal: Beside | None = None,
        *,
        state: StateStore | None = None,
        crc: str = "crc-32",
    ) -> None:
        if not layout.journal and journal is None:
            raise ConfigError("this flash memory has no room for a journal: it needs a file for it")
        self.layout = layout
        self._flash = flash
        self._file = journal
        self._store = state
        self._crc = crc
        self._journal = (
            ChipJournal(RecordLog(layout.geometry, layout.journal, Kind.SWAP)) if layout.journal else HostJournal()
        )
        self._state: SwapState | None = None
        self._running: Slot | None = None
        self._lock = Lock(fast_acquire=True)

    @property
    def crc(self) -> str:
        """The checksum of the read-back."""
        return self._crc

    async def boot(self) -> Slot:
        """The chip comes out of reset: a swap that was cut off is finished, and the image at the base runs.

        Raises:
            FlashError: it could not be finished.
        """
        async with self._lock:
            self._state = self._running = None
        return await self.running_slot()

    async def recover(self) -> None:
        """Finish a swap that was cut off, or failed.

        Raises:
            FlashError: it could not be finished.
        """
        async with self._lock:
            await self._recovered()

    async def running_slot(self) -> Slot:
        """The slot at the base since `boot`, or since this was first asked.

        Raises:
            FlashError: a swap was cut off and could not be finished.
        """
        if self._running is not None:
            return self._running
        async with self._lock:
            return await self._latched()

    async def capacity(self) -> int:
        """Bytes of the largest image."""
        return self.layout.max_image

    async def open_writer(self, slot: Slot, size: int) -> NorWriter:
        """Begin to write an image of `size` bytes; into the base if `slot` lies there, as for a new chip.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the journal failed.
        """
        if size > self.layout.max_image:
            raise TooLargeError(size, self.layout.max_image)
        async with self._lock:
            state = await self._idle()
            if slot is not state.base or state.count:
                raised = state.raised or slot is not state.base
                await self._note(SwapState(base=state.base, raised=raised, tag=state.tag))
            return NorWriter(self._flash, await self._area(slot), size, flush=self._flash.flush)

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[NorWriter, int]:
        """Go on with an image that was cut off. See `ResumableBackend`.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the slot is not as `open_writer` left it, or the journal failed.
        """
        async with self._lock:
            state = await self._idle()
            if slot is state.base or state.count:
                raise FlashError(f"no image was begun in slot {slot}")
            return reopened(self._flash, await self._area(slot), size, mark)

    async def extent(self, slot: Slot) -> int:
        """Bytes of the slot; 0 if all of it is the erased pattern.

        Raises:
            ReadError: it could not be read.
        """
        async with self._lock:
            return await extent_of(self._flash, await self._area(slot))

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of `slot`, counted from its start.

        Raises:
            ReadError: they could not be read, or are not all in the slot.
        """
        async with self._lock:
            return await read_slot(self._flash, slot, await self._area(slot), offset, size)

    async def select(self, slot: Slot) -> None:
        """Bring this slot's image to the base; nothing to do if it is there.

        Raises:
            SelectError: the image at the base is the same as before.
            FlashError: the images stand half moved; `recover` goes on.
        """
        async with self._lock:
            await self._latched()  # before the images move
            state = await self._idle()
            if state.base is slot:
                await checkpoint()
                return
            await self._run(swap.select(self.layout, self._journal, state, slot))

    async def _recovered(self) -> SwapState:
        state = await self._mounted()
        if state.phase is not Phase.IDLE:
            state = await self._run(swap.recover(self.layout, self._journal, state))
        return state

    async def _latched(self) -> Slot:
        if self._running is None:
            self._running = (await self._recovered()).base
        return self._running

    async def _area(self, slot: Slot) -> Area:
        state, layout = await self._idle(), self.layout
        if slot is state.base:
            return layout.primary
        return Area(layout.aside(int(state.raised)).start, layout.max_image)

    async def _idle(self) -> SwapState:
        state = await self._mounted()
        if state.phase is not Phase.IDLE:
            raise FlashError("the images stand half moved: a swap was begun and is to be finished")
        return state

    async def _mounted(self) -> SwapState:
        if self._state is None:
            state = await carry_out(self._journal.mount(), self._flash, self._file)
            if state is None:
                await self._check_new()
                state = await carry_out(swap.begin_journal(self._journal), self._flash, self._file)
            self._state = state
        return self._state

    async def _check_new(self) -> None:
        if self._store is not None and await self._store.load() is not None:
            raise StateError(
                "the journal of the swap is gone, and a boot record is there: nobody knows which image lies where. "
                "A new chip begins without both"
            )

    async def _note(self, state: SwapState) -> None:
        self._state = None  # until it is noted, nobody knows
        await carry_out(self._journal.note(state), self._flash, self._file)
        self._state = state

    async def _run(self, job: Job[SwapState]) -> SwapState:
        self._state = None  # a failure leaves what the journal says
        self._state = state = await carry_out(job, self._flash, self._file)
        await self._flash.flush()
        return state
