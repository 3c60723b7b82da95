"""The boot record on raw NOR flash: in a record log of three sectors that hold nothing else.

Rules:
- the log is mounted once, at the first load after a boot, which writes what it read once more: that is what makes a
  record that a power cut tore safe to act on. Later loads answer from memory;
- after a store that failed nobody knows which record is there: the next load mounts again;
- one job at a time: a load beside a store, for somebody who asks for the status, waits until it is stored.

The sectors must lie outside of both slots: a boot record inside of one would be erased by the next update.
"""

from anyio import Lock

from mgota.core.geometry import Area, Sector
from mgota.core.record import BootRecord, decode_record, encode_record
from mgota.core.recordlog import Kind, RecordLog
from mgota.errors import ConfigError, FlashError, StateError
from mgota.flash.jobs import carry_out
from mgota.ports import NorFlash


class NorState:
    """A boot record in three sectors; implements `StateStore`.

    Args:
        flash: the memory.
        sectors: three of its sectors; each must hold a record twice, which 4 KiB do.
        slots: areas of the memory that images lie in, to be kept clear of.

    Raises:
        ConfigError: these are not three sectors, or one of them lies in a slot.
    """

    def __init__(self, flash: NorFlash, sectors: tuple[Sector, ...], *, slots: tuple[Area, ...] = ()) -> None:
        for sector in sectors:
            if any(slot.start < sector.end and sector.start < slot.end for slot in slots):
                raise ConfigError(f"the boot record would lie in a slot: the sector at {sector.start:#x}")
        self._flash = flash
        self._log = RecordLog(flash.geometry, sectors, Kind.STATE)
        self._mounted = False
        self._value: bytes | None = None
        self._lock = Lock(fast_acquire=True)

    async def load(self) -> BootRecord | None:
        """The record, or None if the sectors are blank.

        Raises:
            StateError: there is something, but it cannot be read.
        """
        async with self._lock:
            if not self._mounted:
                try:
                    self._value = await carry_out(self._log.mount(), self._flash)
                except StateError:
                    raise
                except FlashError as exc:
                    raise StateError(f"the boot record cannot be read: {exc}") from exc
                self._mounted = True
            return None if self._value is None else decode_record(self._value)

    async def store(self, record: BootRecord) -> None:
        """Append the record.

        Raises:
            StateError: it was not stored, or nobody knows.
        """
        data = encode_record(record)
        if len(data) > self._log.max_value:
            raise StateError(f"the boot record of {len(data)} bytes does not fit its sectors: {self._log.max_value}")
        async with self._lock:
            if not self._mounted:
                await self._mount_again()
            self._mounted = False  # until it is stored
            try:
                await carry_out(self._log.append(data), self._flash)
            except FlashError as exc:
                raise StateError(f"the boot record cannot be stored: {exc}") from exc
            self._mounted, self._value = True, data

    async def _mount_again(self) -> None:
        """To store over what cannot be read is how an operator gets out of it."""
        try:
            await carry_out(self._log.mount(), self._flash)
        except StateError:
            return  # damaged: the log begins anew
        except FlashError as exc:
            raise StateError(f"the boot record cannot be stored: {exc}") from exc
