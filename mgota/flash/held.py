"""Gateway-held slots: both images lie on the gateway, and the chip is programmed with the one that is selected.

    slots, chip = FileSlots("/data/mcu"), PlainChip(connect, geometry)
    device = Device(flash=HeldFlash(slots, chip, DurableFile("/data/mcu/held", MAX_NOTE)), state=…, reset=…)

The chip runs on while an image comes. To select is to note what it should hold; the next boot of the *device*, which is
`boot_check` and never one of the gateway, programs it, reads it back and starts it. Rules:
- the note is written ahead, atomically: whatever is cut off after it, gateway or chip, the next boot does again;
- every boot compares the chip with the selected image, and programs what differs, nothing if nothing does;
- a chip that fails is entered and programmed again, `TRIES` times. One that cannot even be entered is away: nothing is
  decided about it. One that takes the selected image never gets back the image that it held before;
- where there is no note, what lies in the chip tells which slot it is. An image that lies in none is copied to the
  gateway first: else there would be nothing to go back to.
"""

import logging
from collections.abc import Callable
from hashlib import sha256
from typing import Protocol, TypeVar

from anyio import CancelScope, to_thread

from mgota.core.geometry import Slot
from mgota.core.held import (
    HeldImage,
    HeldNote,
    begun,
    brought,
    decode_note,
    doubtful,
    encode_note,
    is_unknown,
    selecting,
)
from mgota.errors import FlashError, LinkError, SelectError, StateError, TooLargeError
from mgota.flash.files import DurableFile
from mgota.flash.jobs import Beside
from mgota.flash.wired import COPY, Session, Source, WiredChip
from mgota.ports import FlashBackend, FlashWriter, ResumableBackend

log = logging.getLogger("mgota.held")

T = TypeVar("T")

TRIES = 3
"""How often a chip is programmed before it counts as one that does not take the image."""

BLOCK = 1 << 16
"""Bytes of an image that are read and hashed at once."""


class Images(FlashBackend, ResumableBackend, Protocol):
    """Where two images lie on a gateway: `FileSlots`, for one."""


class HeldFlash:
    """Two images on the gateway and a chip; implements `FlashBackend`.

    Args:
        slots: where the images lie. What they select is not asked.
        chip: what runs one of them.
        note: a file beside the images, for this and nothing else.
        adopt: copy what a chip runs that was never seen before, if it lies in no slot.
    """

    def __init__(self, slots: Images, chip: WiredChip, note: Beside, *, adopt: bool = True) -> None:
        self._slots = slots
        self._chip = chip
        self._kept = note
        self._adopt = adopt
        self._running: Slot | None = None
        self._not_taken: set[str] = set()
        """SHA-256 of the images that the chip did not take in this life."""

    @property
    def crc(self) -> str:
        """The checksum of the read-back."""
        return self._slots.crc

    async def running_slot(self) -> Slot:
        """The slot whose image the chip got at the last boot.

        Raises:
            StateError: the note cannot be read.
        """
        if self._running is None:
            self._running = (await self._load() or HeldNote()).running
        return self._running

    async def capacity(self) -> int:
        """Bytes that fit both the chip and the gateway.

        Raises:
            FlashError: one of them does not tell.
        """
        return min(await self._chip.capacity(), await self._slots.capacity())

    async def open_writer(self, slot: Slot, size: int) -> FlashWriter:
        """Begin to write an image of `size` bytes, on the gateway.

        Raises:
            TooLargeError: it does not fit; nothing was changed.
            FlashError: the slot cannot be written.
        """
        limit = await self._chip.capacity()
        if size > limit:
            raise TooLargeError(size, limit)
        return await self._forget(slot, size, await self._slots.open_writer(slot, size))

    async def reopen_writer(self, slot: Slot, size: int, mark: int) -> tuple[FlashWriter, int]:
        """Go on with an image that was cut off. See `ResumableBackend`.

        Raises:
            FlashError: there is no such image, or the slot cannot be written.
        """
        writer, start = await self._slots.reopen_writer(slot, size, mark)
        return await self._forget(slot, size, writer), start

    async def _forget(self, slot: Slot, size: int, writer: FlashWriter) -> FlashWriter:
        """What is known of a slot's image, before the first byte of the next one is written."""
        try:
            await self._store(begun(await self._load() or HeldNote(), slot, size))
        except BaseException:
            await writer.abort()
            raise
        self._not_taken.clear()  # who sends an image again wants it tried again
        return writer

    async def extent(self, slot: Slot) -> int:
        """Bytes that can be read of a slot; 0 if it is blank.

        Raises:
            FlashError: the gateway does not tell.
        """
        return await self._slots.extent(slot)

    async def read(self, slot: Slot, offset: int, size: int) -> bytes:
        """Exactly `size` bytes of `slot`, from the gateway.

        Raises:
            ReadError: they could not be read.
        """
        return await self._slots.read(slot, offset, size)

    async def select(self, slot: Slot) -> None:
        """Note that the chip gets this slot's image at the next boot; nothing to do if it is noted.

        Raises:
            SelectError: it was not noted, or the chip did not take this image at this boot.
        """
        try:
            await self.running_slot()  # latched before the note changes
            old = await self._load()
            new = selecting(old or HeldNote(), slot, await self._summed(slot, old.image(slot) if old else None))
            image = new.image(slot)
            if image and image.sha256 in self._not_taken:
                raise SelectError(f"slot {slot} could not be selected: the chip did not take its image")
            if new != old:
                await self._store(new)
        except SelectError:
            raise
        except FlashError as exc:
            raise SelectError(f"slot {slot} could not be selected: {exc}") from exc

    async def recover(self) -> None:
        """Bring the selected image into the chip, if it is not there, and start it.

        Raises:
            LinkError: the chip is away.
            StateError: the note cannot be kept.
            FlashError: it did not take the image, and there is none that it held before.
        """
        self._running = None
        note = await self._load()
        self._running = await (self._meet(note) if is_unknown(note) else self._bring_one(note or HeldNote()))

    async def _bring_one(self, note: HeldNote) -> Slot:
        """The selected image, or the one that the chip held before.

        Raises:
            FlashError: it takes neither.
        """
        failure: FlashError | None = None
        for slot in note.candidates():
            image = note.image(slot)
            if image is None or not await self._is(slot, image):
                if note.doubt:
                    continue
                break  # what the chip holds is whole, whichever that is
            try:
                return await self._bring(note, slot, image)
            except (LinkError, StateError):
                raise
            except FlashError as exc:
                log.critical("the chip does not take the image in slot %s: %s", slot, exc)
                self._not_taken.add(image.sha256 or "")
                note, failure = await self._load() or note, failure or exc
        if failure or note.doubt:
            raise failure or FlashError("the chip is half-programmed, and neither of its images is whole")
        if note.image(note.selected):
            log.critical("slot %s does not hold the image that was selected: the chip is left as it is", note.selected)
        return note.running

    async def _bring(self, note: HeldNote, slot: Slot, image: HeldImage) -> Slot:
        """Try, several times.

        Raises:
            LinkError: the chip is away.
            StateError: the note cannot be kept.
            FlashError: it is there, and does not hold the image.
        """
        doubt, failure = note.doubt, FlashError("it was not tried")
        for _ in range(TRIES):
            entered = False

            async def begin() -> None:
                nonlocal doubt
                doubt = True
                await self._store(doubtful(note))

            try:
                async with self._chip.session() as session:
                    entered = True
                    if await session.bring(self._source(slot, image.size), whole=doubt, begin=begin):
                        log.info("the chip holds the image of slot %s", slot)
                    await self._note_brought(note, slot)
                    entered = False  # what fails from here on is that it cannot be started
                return slot
            except StateError:
                raise  # it is the gateway that fails
            except FlashError as exc:
                log.warning("slot %s, and the chip: %s", slot, exc)
                failure = FlashError(str(exc)) if entered else LinkError(str(exc))
        raise failure

    async def _note_brought(self, note: HeldNote, slot: Slot) -> None:
        """Before the chip starts: from here on what it does is the image's doing."""
        new = brought(note, slot)
        if new != await self._load():
            await self._store(new)

    async def _meet(self, note: HeldNote | None) -> Slot:
        """A chip of which nothing is noted: look which image it runs, and keep it."""
        async with self._chip.session() as session:
            for slot in Slot:
                size = await self._slots.extent(slot)
                if size and await session.holds(self._source(slot, size)):
                    return await self._met(slot, size)
            size = await session.extent() if self._adopt else 0
            if not size:
                return note.selected if note else Slot.A
            slot = note.selected if note else await self._free_slot()
            await self._store(begun(HeldNote(selected=slot, running=slot), slot, size))
            await self._copy(session, slot, size)
            log.info("the chip's own %d bytes were copied to slot %s", size, slot)
            return await self._met(slot, size)

    async def _met(self, slot: Slot, size: int) -> Slot:
        image = await self._summed(slot, HeldImage(size=size))
        await self._store(brought(selecting(HeldNote(), slot, image), slot))
        return slot

    async def _free_slot(self) -> Slot:
        for slot in Slot:
            if not await self._slots.extent(slot):
                return slot
        raise FlashError(
            "nobody knows what the chip should hold: the note is gone, and it runs neither of the two images. "
            "Remove one of them, or provision the device anew"
        )

    async def _copy(self, session: Session, slot: Slot, size: int) -> None:
        writer = await self._slots.open_writer(slot, size)
        try:
            for at in range(0, size, COPY):
                await writer.write(await session.read(at, min(COPY, size - at)))
            await writer.finish()
        except BaseException:
            with CancelScope(shield=True):
                await writer.abort()
            raise

    def _source(self, slot: Slot, size: int) -> Source:
        async def read(offset: int, length: int) -> bytes:
            return await self._slots.read(slot, offset, length)

        return Source(size, read)

    async def _is(self, slot: Slot, image: HeldImage) -> bool:
        """Whether the slot still holds this image."""
        try:
            return await self._digest(slot, image.size) == image.sha256
        except FlashError as exc:
            log.warning("slot %s cannot be read: %s", slot, exc)
            return False

    async def _summed(self, slot: Slot, image: HeldImage | None) -> HeldImage | None:
        """The image in a slot with its digest; what has one keeps it, whatever became of its bytes."""
        if image is None:
            size = await self._slots.extent(slot)
            image = HeldImage(size=size) if size else None
        if image is None or image.sha256:
            return image
        return HeldImage(size=image.size, sha256=await self._digest(slot, image.size), held=image.held)

    async def _digest(self, slot: Slot, size: int) -> str:
        found = sha256()
        for at in range(0, size, BLOCK):
            found.update(await self._slots.read(slot, at, min(BLOCK, size - at)))
        return found.hexdigest()

    async def _load(self) -> HeldNote | None:
        try:
            data = await _hop(self._kept, self._kept.load)
        except OSError as exc:
            raise StateError(f"what the chip should hold cannot be read: {exc.strerror}") from exc
        note = decode_note(data)
        if data is not None and note is None:
            log.critical("the note of what the chip should hold is damaged")
        return note

    async def _store(self, note: HeldNote) -> None:
        data = encode_note(note)
        with CancelScope(shield=True):
            try:
                await _hop(self._kept, lambda: self._kept.store(data))
            except OSError as exc:
                raise StateError(f"what the chip should hold could not be noted: {exc.strerror}") from exc


async def _hop(kept: Beside, work: Callable[[], T]) -> T:
    """A file blocks, and gets a thread."""
    return await to_thread.run_sync(work) if isinstance(kept, DurableFile) else work()
