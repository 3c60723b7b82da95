"""Whether an image is for this chip, as far as its format tells: what an inspector is.

Rules:
- an inspector sees the firmware front to back, once, in blocks of any size, without the trailer;
- it keeps what it needs and no more; its verdict comes at the end;
- it is asked after checksum and signature, and before anything irreversible: it guards against mistakes, not attacks.
"""

from collections.abc import Callable
from typing import Protocol

ReadableBuffer = bytes | bytearray | memoryview


class ImageInspector(Protocol):
    """Looks at one image."""

    def update(self, block: ReadableBuffer) -> None:
        """The firmware's next bytes."""
        ...

    def finish(self) -> None:
        """All of it was seen.

        Raises:
            RejectedError: the image is damaged, or for another chip (`WrongHardwareError`).
        """
        ...


Inspect = Callable[[int], ImageInspector]
"""Makes an inspector for a firmware of that many bytes."""
