"""A small value in two cells of an EEPROM, an FRAM or an RTC's NVRAM: the older one is written, the newer one counts.

    cell 0 │ head, value, rest │    the first half of the area, as a record of `mgota.core.recordlog`
    cell 1 │ head, value, rest │    the second half

Rules:
- a cut while one cell is written leaves the other one, and with it the value before;
- neither of them good, and not both blank: the value is lost, which is not the same as that there never was one. Only
  one that is not blank was the very first to be written, and torn.

Unlike flash, such memories can be written byte by byte and know no erase, so that two cells are enough; see DESIGN.md.
"""

from dataclasses import dataclass

from mgota.core.recordlog import HEAD, LAST_EPOCH, Kind, decode_entry, encode_entry
from mgota.errors import ConfigError, StateError

MIN_CELL = 64
"""Bytes of the smallest cell that is believed to be one."""


@dataclass(frozen=True, slots=True)
class CellWrite:
    """What to write.

    Args:
        offset: from the start of the area.
        data: the bytes.
    """

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cells:
    """Two cells that share an area.

    Args:
        size: bytes of the area; each cell has half of it.

    Raises:
        ConfigError: it is too small.
    """

    size: int

    def __post_init__(self) -> None:
        if self.size // 2 < MIN_CELL:
            raise ConfigError(f"{self.size} bytes are too small for two cells: {2 * MIN_CELL} at least")

    @property
    def max_value(self) -> int:
        """Bytes of the longest value."""
        return self.size // 2 - HEAD.size

    def read(self, area: bytes) -> bytes | None:
        """The value that counts; None if there never was one.

        Raises:
            StateError: there was one, and it is lost.
        """
        newest = self._newest(area)
        if newest:
            return newest[2]
        cells = [area[: self.size // 2], area[self.size // 2 : self.size]]
        if sum(not _blank(cell) for cell in cells) > 1:
            raise StateError("both cells of the boot record are damaged")
        return None

    def write(self, area: bytes, value: bytes) -> CellWrite:
        """How to replace the value in an area that reads like this.

        Raises:
            StateError: it is too long.
        """
        if len(value) > self.max_value:
            raise StateError(f"a record of {len(value)} bytes does not fit its cell: {self.max_value} at most")
        newest = self._newest(area)
        epoch, index = (newest[0], newest[1]) if newest else (0, 1)
        return CellWrite((1 - index) * (self.size // 2), encode_entry(epoch + 1, Kind.STATE, value))

    def _newest(self, area: bytes) -> tuple[int, int, bytes] | None:
        """Epoch, index and value of the newer good cell."""
        half = self.size // 2
        entries = [decode_entry(area[at : at + half], Kind.STATE) for at in (0, half)]
        good = [(entry[0], index, entry[1]) for index, entry in enumerate(entries) if entry and entry[0] < LAST_EPOCH]
        return max(good, default=None)


def _blank(cell: bytes) -> bool:
    return not cell.strip(b"\0") or not cell.strip(b"\xff")
