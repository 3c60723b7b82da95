"""What `mgota push` sends: an image as it is, or packed. `--compress`.

A file that is packed by its name is sent packed to devices that unpack, and unpacked to the others; both have the same
image then. That is what `mgota install` makes of such a name, too.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import click

from mgota.core.unpack import Packing, packing_of
from mgota.outgoing import Image
from mgota.packed import Packed, measured, pack, unpack

F = TypeVar("F", bound=Callable[..., Any])

AS_IT_IS = "none"


def compress_option(command: F) -> F:
    """`--compress`."""
    return click.option(
        "--compress",
        type=click.Choice([*(packing.value for packing in Packing), AS_IT_IS]),
        help="Over HTTP: send it packed. A .gz or .zst file is sent as it is packed, and unpacked to a broker;"
        f" {AS_IT_IS} takes such a file for the image itself.",
    )(command)


@contextmanager
def outgoing(image: Path, compress: str | None) -> Generator[tuple[Image | Packed, Callable[[], Image]]]:
    """What goes to devices that unpack, and what makes that for the others. Files that it takes are gone afterwards.

    Args:
        image: the file.
        compress: of `--compress`.

    Raises:
        ConfigError: a file cannot be read or written, or zstd is not installed.
        OtaError: it is not packed as its name says.
    """
    found = packing_of(image.name) if compress != AS_IT_IS else None
    wanted = Packing(compress) if compress in set(Packing) else found
    with TemporaryDirectory(prefix="mgota-") as directory:
        plain = Path(directory, "image")

        def as_image() -> Image:
            if found is None:
                return image
            if not plain.exists():
                unpack(image, plain)
            return plain

        if wanted is None:
            yield image, as_image
        elif wanted is found:
            yield measured(image, wanted), as_image
        else:
            source = as_image()
            yield pack(Path(str(source)), Path(directory, "packed"), wanted), as_image
