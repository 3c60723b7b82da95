"""What may be wrong with a simulated flash memory: Protocols, nothing else. `mgota.testing` brings the rest.

Rules:
- a veil is what a power cut left behind: it changes reads, and ends with the next erase of its sector;
- defects are the memory's own: they outlast everything.
"""

from typing import Protocol

from mgota.core.geometry import Sector


class Veil(Protocol):
    """What lies over a part of a sector, and changes what a read of it gives, until the sector is erased."""

    start: int
    end: int

    @property
    def stable(self) -> bool:
        """Whether every further read gives the same."""
        ...

    def look(self, offset: int, below: bytes) -> bytes:
        """What a read of this part gives now.

        Args:
            offset: of the first byte, inside the veil.
            below: what is stored there.
        """
        ...

    def counted(self) -> None:
        """A read has touched it; what the next one gives may differ."""
        ...

    def fork(self) -> "Veil":
        """Its twin, which changes by itself from now on."""
        ...


class Defects(Protocol):
    """What is wrong with a memory. Asked after an operation was counted and found to obey the rules."""

    def read(self, offset: int, data: bytes) -> bytes:
        """What a read gives instead of what is stored.

        Raises:
            ReadError: nothing.
        """
        ...

    def erase(self, sector: Sector) -> bool:
        """Whether an erase takes effect.

        Raises:
            EraseError: it failed, and says so.
        """
        ...

    def program(self, offset: int, data: memoryview) -> bool:
        """Whether a program takes effect.

        Raises:
            ProgramError: it failed, and says so.
        """
        ...
