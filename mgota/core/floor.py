"""How far back a device may go: the floor, a version, and the sequence of signed manifests.

Rules:
- the floor that holds is the higher one of the recorded and the configured;
- a version that is missing or cannot be ordered is below every floor;
- both are raised at a commit and at no other time: an image that fails its trial has raised nothing;
- a commit that raises the sequence raises the floor to its version: what came by a signed manifest cannot be undone by
  an older signed image that is pushed.
"""

from mgota.core.version import highest, order
from mgota.errors import DowngradeError


def effective_floor(recorded: str | None, configured: str | None) -> str | None:
    """The floor that holds.

    Args:
        recorded: the boot record's.
        configured: the device's.
    """
    if recorded is not None and order(recorded) is None:
        return recorded  # written by somebody else: nothing is above it, until a person has looked
    return highest((recorded, configured))


def below_floor(version: str | None, floor: str | None) -> str | None:
    """Why this version may not be installed; None if it may.

    Args:
        version: of an image, None if it has none.
        floor: that holds; None is no floor.
    """
    if floor is None:
        return None
    if version is None:
        return f"its version is not known, and the floor is {floor}"
    found, lowest = order(version), order(floor)
    if found is None or lowest is None:
        return f"its version {version} cannot be compared with the floor {floor}"
    return f"its version {version} is below the floor {floor}" if found < lowest else None


def check_floor(version: str | None, floor: str | None) -> None:
    """Refuse what is below the floor.

    Args:
        version: of the image; where keys are configured, from bytes that are signed.
        floor: that holds.

    Raises:
        DowngradeError: it is below the floor.
    """
    if why := below_floor(version, floor):
        raise DowngradeError(f"the image is refused: {why}")


def check_sequence(sequence: int | None, lowest: int | None) -> None:
    """Refuse what an older signed manifest brings.

    Args:
        sequence: of the signed manifest; None if none brings the image.
        lowest: the recorded one.

    Raises:
        DowngradeError: it is lower.
    """
    if sequence is not None and lowest is not None and sequence < lowest:
        raise DowngradeError(f"the manifest's sequence {sequence} is lower than {lowest}, which was committed")


def raised(
    floor: tuple[str | None, int | None], image: tuple[str | None, int | None], configured: str | None
) -> tuple[str | None, int | None]:
    """Floor and sequence after an image was committed.

    Args:
        floor: the recorded floor and sequence.
        image: its version and sequence.
        configured: the device's floor.
    """
    sequence = max((number for number in (floor[1], image[1]) if number is not None), default=None)
    newer = image[0] if sequence != floor[1] else None
    return effective_floor(floor[0], highest((configured, newer))), sequence
