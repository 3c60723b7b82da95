"""Everything that can go wrong, as one tree.

The second level answers the caller's only question: *what should I do?*

    OtaError
    ├── RejectedError           retrying the same bytes is useless
    │   ├── EmptyImageError         size 0
    │   ├── TooLargeError           does not fit the slot, or the disk that its slot lies on
    │   ├── UnsignedError           no signature where one is required
    │   ├── BadSignatureError       no trusted key made this signature
    │   ├── DigestError             what is stored is not what was announced
    │   ├── WrongImageError         the request names another image than the running one
    │   ├── WrongHardwareError      the image was made for another chip, or another address
    │   ├── MalformedError          a message from outside is not what it should be
    │   │   └── ManifestError           a manifest that is malformed, contradicts itself or has expired
    │   ├── DowngradeError          older than this device may go back to
    │   ├── FailedBeforeError       this firmware was rolled back before
    │   └── RollbackRefusedError    there is no whole and proven image to go back to
    ├── TransferError           a retry may help
    │   ├── TruncatedError          fewer bytes than declared
    │   ├── OverrunError            more bytes than declared
    │   ├── WrongOffsetError        a gap or an overlap; carries expected and received
    │   └── StalledError            the peer went silent or crawls
    ├── FlashError              the slot is undefined; erase and write it again
    │   ├── EraseError
    │   ├── ProgramError
    │   ├── ReadError
    │   ├── VerifyError             what was read back is not what was sent
    │   ├── SelectError             the slot could not be made the one that boots
    │   ├── LinkError               the wire to the chip broke, or what came on it makes no sense
    │   │   ├── NoAnswerError           nothing came on it in time
    │   │   └── RefusedError            the chip understood, and refused
    │   └── StateError              the boot record could not be read or stored
    ├── BusyError               wait: somebody else is at it
    │   ├── UpdateRunningError      another update, here or in another process
    │   ├── TrialRunningError       an image is on trial, or about to be
    │   └── UnknownStateError       the boot record is unreadable; an operator must commit or reset it
    └── ConfigError             mend the configuration: a key, a path, a secret, an option

Rules: foreign exceptions are translated once, where they enter, with `raise … from exc`.
A verification error never says which byte was wrong. Messages are one line, for a person.
"""


class OtaError(Exception):
    """The root: anything that mgota itself reports."""


class RejectedError(OtaError):
    """Retrying the same bytes is useless."""


class EmptyImageError(RejectedError):
    """An image of no bytes."""


class TooLargeError(RejectedError):
    """The image does not fit: the slot is too small, or, where slots are files, the disk too full.

    Args:
        size: bytes that were announced.
        limit: bytes that there is room for.
    """

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"image of {size} bytes does not fit: there is room for {limit}")
        self.size = size
        self.limit = limit


class UnsignedError(RejectedError):
    """A signature is required and the image has none."""


class BadSignatureError(RejectedError):
    """No trusted key made this signature over these bytes."""


class DigestError(RejectedError):
    """What is stored is not the image that was announced or recorded."""


class WrongImageError(RejectedError):
    """The request was made for another image than the one that runs now."""


class WrongHardwareError(RejectedError):
    """The image was made for another chip, or for another place in its memory."""


class MalformedError(RejectedError):
    """A message from outside is not what it should be: JSON, base64, a field."""


class ManifestError(MalformedError):
    """A manifest that is malformed, contradicts itself, or has expired."""


class DowngradeError(RejectedError):
    """The image is older than the floor: the lowest version or sequence that may be installed."""


class FailedBeforeError(RejectedError):
    """This firmware was rolled back before, and whoever looks for updates by itself does not install it again."""


class RollbackRefusedError(RejectedError):
    """There is no whole and proven image to go back to."""


class TransferError(OtaError):
    """The transfer failed; a retry may help."""


class TruncatedError(TransferError):
    """The transfer ended early.

    Args:
        received: bytes that came.
        size: bytes that were declared.
    """

    def __init__(self, received: int, size: int) -> None:
        super().__init__(f"only {received} of {size} bytes came")
        self.received = received
        self.size = size


class OverrunError(TransferError):
    """More bytes came than were declared.

    Args:
        size: bytes that were declared.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"more than the declared {size} bytes came")
        self.size = size


class WrongOffsetError(TransferError):
    """A chunk does not continue where the last one ended.

    Args:
        expected: the offset that would have fitted.
        received: the offset that came.
    """

    def __init__(self, expected: int, received: int) -> None:
        super().__init__(f"expected offset {expected}, got {received}")
        self.expected = expected
        self.received = received


class StalledError(TransferError):
    """The peer went silent, or sends too slowly to ever end."""


class FlashError(OtaError):
    """The staging slot is undefined now: erase it and write again."""


class EraseError(FlashError):
    """A sector could not be erased."""


class ProgramError(FlashError):
    """A unit could not be programmed, or programming it breaks the chip's rules."""


class ReadError(FlashError):
    """Flash could not be read."""


class VerifyError(FlashError):
    """What was read back is not what was sent."""


class SelectError(FlashError):
    """A slot could not be made the one that boots."""


class LinkError(FlashError):
    """The wire to a chip broke, or what came on it makes no sense."""


class NoAnswerError(LinkError):
    """The chip did not answer in time."""


class RefusedError(LinkError):
    """The chip understood what it was asked for, and refused; or the wire garbled it."""


class StateError(FlashError):
    """The boot record could not be read or stored."""


class BusyError(OtaError):
    """Somebody else is at it; try again later."""


class UpdateRunningError(BusyError):
    """Another update or boot decision is under way, here or in another process."""


class TrialRunningError(BusyError):
    """An image is on trial or about to be; an update now would destroy the way back."""


class UnknownStateError(BusyError):
    """The boot record is unreadable: an operator must commit or reset it first."""


class ConfigError(OtaError):
    """The configuration is wrong; no device was touched."""
