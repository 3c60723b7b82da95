"""The slot selector of a Raspberry Pi; see `mgota.core.tryboot`, and that it is a model.

Rules:
- selecting the other slot for a trial writes nothing: `reboot_argument` says what the reboot has to say. A cut before
  that reboot starts the running slot again, and the boot table selects once more;
- the file is one sector of a disk, and is written in place if its length stays; otherwise it is replaced.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from anyio import to_thread

from mgota.core.geometry import Slot
from mgota.core.tryboot import LIMIT, REBOOT_ARGUMENT, Autoboot, decode_autoboot, decode_cell, encode_autoboot
from mgota.errors import ConfigError, FlashError, SelectError
from mgota.flash.files import replace_file
from mgota.linux.inplace import write_in_place

AUTOBOOT = "/boot/firmware/autoboot.txt"
CHOSEN = "/proc/device-tree/chosen/bootloader"


def running_partition(directory: str | os.PathLike[str] = CHOSEN) -> int:
    """The number of the partition that the firmware booted from.

    Raises:
        ConfigError: it does not say.
    """
    try:
        return decode_cell(Path(directory, "partition").read_bytes())
    except (OSError, FlashError) as exc:
        raise ConfigError(f"the firmware does not say in {directory} which partition it booted") from exc


class TrybootSelector:
    """Selects by tryboot; implements `Selector`.

    Args:
        partitions: the numbers of the slots' boot partitions.
        path: the file `autoboot.txt`, on the first partition.
    """

    def __init__(self, partitions: Mapping[Slot, int], *, path: str | os.PathLike[str] = AUTOBOOT) -> None:
        self.partitions = dict(partitions)
        self.path = Path(path)
        self._trial: Slot | None = None

    @property
    def reboot_argument(self) -> str | None:
        """What the next reboot has to be told, so that the selected slot boots."""
        return REBOOT_ARGUMENT if self._trial else None

    async def selected_slot(self) -> Slot | None:
        """The slot that boots next, if the reboot is told `reboot_argument`.

        Raises:
            FlashError: the file cannot be read.
        """
        found = await to_thread.run_sync(self._load)
        return self._trial or self._slot(found.normal)

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Make `slot` the one that boots: by the file, or by the next reboot.

        Raises:
            SelectError: the file could not be written.
        """
        try:
            await to_thread.run_sync(self._select, slot, running)
        except FlashError as exc:
            raise SelectError(f"cannot select slot {slot}: {exc}") from exc

    async def tried(self, slot: Slot) -> bool:  # noqa: ARG002
        """No: the firmware leaves no sign."""
        return False

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Nothing to do: nothing is counted."""

    async def recover(self) -> None:
        """Nothing to do: the file is one sector, or replaced."""

    async def selftest(self) -> None:
        """Write the file once more as it is, and read it back.

        Raises:
            FlashError: a selection would not work, and why.
        """
        found = await to_thread.run_sync(self._load)
        if {found.normal, found.trial} != set(self.partitions.values()):
            raise FlashError(f"{self.path} names partitions {found.normal} and {found.trial}, not those of the slots")
        await to_thread.run_sync(self._store, found)

    def _slot(self, number: int) -> Slot | None:
        return next((slot for slot, partition in self.partitions.items() if partition == number), None)

    def _select(self, slot: Slot, running: Slot) -> None:
        found, number = self._load(), self.partitions[slot]
        wanted = found
        if slot is running or found.normal not in self.partitions.values():
            wanted = found.with_numbers(self.partitions[running], self.partitions[running.other])
        elif found.normal != number:
            wanted = found.with_numbers(found.normal, number)
        if wanted != found:
            self._store(wanted)
        self._trial = slot if wanted.normal != number else None

    def _load(self) -> Autoboot:
        try:
            with self.path.open("rb") as file:
                return decode_autoboot(file.read(LIMIT + 1))
        except OSError as exc:
            raise FlashError(f"{self.path} cannot be read: {exc.strerror}") from exc

    def _store(self, autoboot: Autoboot) -> None:
        data = encode_autoboot(autoboot)
        try:
            if self.path.stat().st_size == len(data):
                write_in_place(self.path, data)
            else:
                replace_file(self.path, data)
        except OSError as exc:
            raise FlashError(f"{self.path} cannot be written: {exc.strerror}") from exc
        if self._load() != autoboot:
            raise FlashError(f"{self.path} does not keep what is written")
