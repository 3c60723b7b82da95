"""A type that only verified things have: what was read back from flash and found to be in order."""

from mgota.core.geometry import Slot
from mgota.core.record import SlotImage

SEALED = object()
"""Who read the bytes back and verified them has it: `Device` alone."""


class VerifiedImage:
    """An image that was read back from flash and found whole and, where keys are configured, signed.

    Only `OtaSession.seal` and `Device.staged` make one.
    """

    __slots__ = ("image", "slot")

    def __init__(self, slot: Slot, image: SlotImage, *, sealed: object = None) -> None:
        if sealed is not SEALED:
            raise TypeError("only seal() and staged() make a VerifiedImage: it stands for bytes verified from flash")
        self.slot = slot
        self.image = image

    @property
    def size(self) -> int:
        """Bytes of the firmware, without its trailer."""
        return self.image.size

    @property
    def image_size(self) -> int:
        """Bytes of firmware and trailer."""
        return self.image.image_size

    @property
    def sha256(self) -> str:
        """Hex digest of the firmware."""
        return self.image.sha256

    @property
    def version(self) -> str | None:
        """The version tagged inside the firmware, if there is one."""
        return self.image.version

    def __repr__(self) -> str:
        return f"<VerifiedImage in slot {self.slot}: {self.size} bytes, sha256 {self.sha256[:16]}…>"
