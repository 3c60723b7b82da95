r"""GRUB's environment block: the file `grubenv`, 1024 bytes.

    # GRUB Environment Block\n
    name=value\n              a backslash or a newline in the value has a backslash before it
    # comment\n
    #######################   up to the end

Rules:
- there is no checksum: what does not begin with the first line, or whose last variable does not end, is no block;
- what is not changed stays byte for byte, in its order, and the size stays: GRUB writes it in place.

Source: GRUB, grub-core/lib/envblk.c and include/grub/lib/envblk.h.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mgota.errors import ConfigError, FlashError

HEADER = b"# GRUB Environment Block\n"
SIZE = 1024
"""Bytes of a new block."""

MAX_SIZE = 1 << 20

_ENTRY = re.compile(rb"((?:[^\\\n]|\\.)*)\n", re.DOTALL)
_NAME = re.compile(r"[^=#\n\0][^=\n\0]*")


@dataclass(frozen=True, slots=True)
class GrubBlock:
    """The lines of a block, escaped as they stand there: variables and comments.

    Args:
        lines: without their newlines, and without the first one.
        size: bytes of the block.
    """

    lines: tuple[bytes, ...] = ()
    size: int = SIZE

    @property
    def variables(self) -> dict[str, str]:
        """All of them; bytes that are no UTF-8 are surrogates."""
        pairs = (line.partition(b"=") for line in self.lines if not line.startswith(b"#"))
        return {_text(name): _text(re.sub(rb"\\(.)", rb"\1", value, flags=re.DOTALL)) for name, _, value in pairs}

    def changed(self, changes: Mapping[str, str | None]) -> "GrubBlock":
        """The block with some variables set, or removed where the value is None.

        Raises:
            ConfigError: a name cannot stand in a block.
        """
        lines = list(self.lines)
        for name, value in changes.items():
            if not _NAME.fullmatch(name) or "\\" in name:
                raise ConfigError(f"{name!r} cannot be a variable of GRUB's environment")
            start = name.encode("utf-8", "surrogateescape") + b"="
            places = [index for index, line in enumerate(lines) if line.startswith(start)]
            for index in reversed(places[1:] if value is not None else places):
                del lines[index]
            if value is not None:
                line = start + re.sub(rb"([\\\n])", rb"\\\1", value.encode("utf-8", "surrogateescape"))
                if places:
                    lines[places[0]] = line
                else:
                    lines.append(line)
        return GrubBlock(tuple(lines), self.size)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def encode_block(block: GrubBlock) -> bytes:
    """The bytes of a block.

    Raises:
        FlashError: the variables do not fit.
    """
    data = HEADER + b"".join(line + b"\n" for line in block.lines)
    if len(data) > block.size:
        raise FlashError(f"GRUB's environment is full: {len(data)} bytes do not fit the {block.size} of it")
    return data.ljust(block.size, b"#")


def decode_block(data: bytes) -> GrubBlock:
    """The block that these bytes are.

    Raises:
        FlashError: they are none.
    """
    if not data.startswith(HEADER) or len(data) > MAX_SIZE:
        raise FlashError("this is no environment block of GRUB")
    lines = list[bytes]()
    at = len(HEADER)
    while at < len(data):
        # A comment is a line, whatever stands in it.
        end = data.find(b"\n", at) if data[at : at + 1] == b"#" else _end_of(data, at)
        if end < 0:
            if data[at:].strip(b"#"):
                raise FlashError("GRUB's environment block is damaged: its last line does not end")
            break
        lines.append(data[at:end])
        at = end + 1
    return GrubBlock(tuple(lines), len(data))


def _end_of(data: bytes, at: int) -> int:
    found = _ENTRY.match(data, at)
    return found.end() - 1 if found else -1
