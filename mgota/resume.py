"""An update that goes on after a restart: marks on the way, and what lies in the staging slot read again.

Rules:
- a mark is set when the bytes below it are durable, never before;
- to mark is no reason to fail: where it does not work, an update has to begin anew, and nothing else;
- to go on takes the same download, the boot record of the session that was cut off, and bytes that read back as they
  were marked. In any doubt the image begins with its first byte.
"""

import logging
from dataclasses import dataclass

import anyio.to_thread

from mgota.core.checksum import Checksum, checksum
from mgota.core.geometry import Slot
from mgota.core.note import DownloadNote, decode_note, encode_note, step_between_marks
from mgota.core.record import BootRecord
from mgota.errors import ConfigError, OtaError
from mgota.ports import FlashBackend, FlashWriter, Note, ResumableBackend, SyncingWriter

log = logging.getLogger("mgota.session")

BLOCK = 1 << 19
"""Bytes that are read again and hashed in one go."""

Kept = tuple[FlashWriter, int, Checksum]
"""A writer that goes on, the byte that it takes next, and the checksum of those before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """How a session can go on where one of an earlier life was cut off.

    Something has to decide about the image at its end: keys, or a digest. Without, nothing should be resumed.

    Args:
        note: where progress is marked.
        identity: of the download; `mgota.core.note.identity_of` makes one.
        step: bytes between two marks; None takes a small part of the image, and at most 1 MiB.

    Raises:
        ConfigError: marks without a byte between them.
    """

    note: Note
    identity: str
    step: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None and self.step < 1:
            raise ConfigError("between two marks there is at least one byte")


class Marks:
    """The marks of one session.

    Args:
        resume: where they are kept, and of which download.
        size: bytes of the image.
    """

    def __init__(self, resume: Resume, size: int) -> None:
        self._resume = resume
        self._size = size
        self._step = resume.step or step_between_marks(size)
        self._revision = 0
        self._noted = 0
        self.validator: str | None = None

    def begun(self, revision: int) -> None:
        """The image begins with its first byte, under this revision of the boot record."""
        self._revision = revision
        self._noted = 0

    def room(self, received: int) -> int:
        """Bytes up to the next mark."""
        return self._step - received % self._step

    async def promise(self, record: BootRecord, slot: Slot) -> bool:
        """Whether a note says that the image can go on in the staging slot. Nothing is read there yet.

        Args:
            record: the boot record.
            slot: the staging slot.
        """
        note = await self._load()
        return note is not None and self._fits(note, record, slot)

    async def find(self, flash: FlashBackend, record: BootRecord, slot: Slot) -> Kept | None:
        """Go on in the staging slot, if a note says that it can be and what lies there bears it out.

        Args:
            flash: where the slots lie.
            record: the boot record.
            slot: the staging slot.
        """
        note = await self._load()
        if note is None or not self._fits(note, record, slot) or not isinstance(flash, ResumableBackend):
            return None
        try:
            kept = await _reopened(flash, slot, self._size, note)
        except OtaError as exc:
            log.info("the download cannot go on where it broke off: %s", exc)
            return None
        if kept is None:
            log.warning("what lies in slot %s is not what was marked: the download begins anew", slot)
            return None
        self.validator, self._revision, self._noted = note.validator, note.revision, kept[1]
        return kept

    async def _load(self) -> DownloadNote | None:
        try:
            return decode_note(await self._resume.note.load())
        except OtaError as exc:
            log.warning("%s", exc)
            return None

    def _fits(self, note: DownloadNote, record: BootRecord, slot: Slot) -> bool:
        same = note.identity == self._resume.identity and note.revision == record.revision
        return same and 0 < note.mark <= self._size and record.image(slot) is None

    async def note(self, writer: FlashWriter, received: int, crc: int, *, now: bool = False) -> None:
        """Set a mark, if it is time to.

        Args:
            writer: of the image.
            received: bytes of it that were written.
            crc: their checksum.
            now: whether or not a step is complete.
        """
        if not isinstance(writer, SyncingWriter) or received == self._noted or not (now or not received % self._step):
            return
        try:
            mark = min(await writer.sync(), received)
            await self._store(mark, crc if mark == received else None)
        except OtaError as exc:
            log.warning("the progress of the download could not be marked: %s", exc)
        self._noted = received

    async def _store(self, mark: int, crc: int | None) -> None:
        found = DownloadNote(
            identity=self._resume.identity, validator=self.validator, revision=self._revision, mark=mark, crc=crc
        )
        await self._resume.note.store(encode_note(found))

    async def forget(self) -> None:
        """No byte is worth to be kept."""
        self._noted, self.validator = 0, None
        try:
            await self._resume.note.store(b"")
        except OtaError as exc:
            log.warning("%s", exc)  # then its checksum has to tell


async def _reopened(flash: FlashBackend, slot: Slot, size: int, note: DownloadNote) -> Kept | None:
    """A writer that goes on, once what lies below the mark was read again; None if it is something else."""
    assert isinstance(flash, ResumableBackend)  # noqa: S101  its caller looked
    writer, start = await flash.reopen_writer(slot, size, note.mark)
    kept, marked = checksum(flash.crc), checksum(flash.crc)
    try:
        for offset in range(0, note.mark, BLOCK):
            block = await flash.read(slot, offset, min(BLOCK, note.mark - offset))
            await anyio.to_thread.run_sync(_feed, block, offset, start, kept, marked)
    except BaseException:
        await writer.abort()
        raise
    if note.crc is not None and note.crc != marked.value:
        await writer.abort()
        return None
    return writer, start, kept


def _feed(block: bytes, offset: int, start: int, kept: Checksum, marked: Checksum) -> None:
    """All of a block below the mark, and what of it lies below the byte where the image goes on."""
    marked.update(block)
    kept.update(block[: max(start - offset, 0)])
