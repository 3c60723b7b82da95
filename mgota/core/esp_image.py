"""ESP32: what an app image is, and whether one is whole and for this chip.

    header (24)   E9  segments  mode  size|speed  entry (4)  pins (4)  chip id (2)  revisions (5)  reserved (4)  hash?
    segment       load address (4)  length (4)  data              as many as the header says
    padding       up to one byte short of a multiple of 16
    checksum      0xEF, XORed with every byte of every segment's data
    hash (32)     SHA-256 of all that is before it, if the header's last byte is 1

Sources: ESP-IDF components/bootloader_support, esp_app_format.h (headers) and esp_image_format.c (how the bootloader
checks them); esptool's bin_image.py, and targets/*.py for the chip ids. Rules:
- all numbers are little endian; a segment is a whole number of words, and shorter than 16 MiB;
- what follows the image, as a signature or padding, is nobody's business here;
- it is looked at as it is read, front to back: of the data nothing is kept but checksum and hash;
- a refusal never says which byte was wrong.
"""

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from hashlib import sha256

from mgota.core.nor import ReadableBuffer
from mgota.errors import ConfigError, RejectedError, WrongHardwareError

_HEADER = struct.Struct("<BBBBIB3sHBHH4sB")
_SEGMENT = struct.Struct("<II")

MAGIC = 0xE9
CHECKSUM_START = 0xEF
HASH_SIZE = 32
MAX_SEGMENTS = 16
MAX_SEGMENT = 1 << 24
"""A segment is shorter than this."""

CHIPS = {
    0: "ESP32",
    2: "ESP32-S2",
    5: "ESP32-C3",
    9: "ESP32-S3",
    12: "ESP32-C2",
    13: "ESP32-C6",
    16: "ESP32-H2",
    18: "ESP32-P4",
    20: "ESP32-C61",
    23: "ESP32-C5",
    25: "ESP32-H21",
    28: "ESP32-H4",
    31: "ESP32-E22",
    32: "ESP32-S31",
}
"""Chip ids that are known (esptool 5.6, IMAGE_CHIP_ID), and their chips."""

_NO_PIN = 0xEE
"""The header's WP pin: none."""


@dataclass(frozen=True, slots=True)
class EspSegment:
    """One piece of an image.

    Args:
        load: the address that the chip has it at.
        size: bytes.
    """

    load: int
    size: int


@dataclass(frozen=True, slots=True)
class EspImage:
    """An image that is whole.

    Args:
        chip_id: of the chip that it is for; a key of `CHIPS`.
        entry: the address where it begins to run.
        segments: what it is made of.
        hashed: whether a SHA-256 is appended.
        size: bytes, with checksum and hash, without what may follow.
        min_revision: lowest revision of the chip, 100 for each major one, 1 for each minor.
        max_revision: highest one; 0 or 65535 is any.
    """

    chip_id: int
    entry: int
    segments: tuple[EspSegment, ...]
    hashed: bool
    size: int
    min_revision: int
    max_revision: int


class EspInspector:
    """Looks at one firmware; implements `ImageInspector`.

    Args:
        size: bytes of the firmware.
        chip_ids: of the chips that it may be for; None takes all of `CHIPS`.
    """

    def __init__(self, size: int, chip_ids: Collection[int] | None = None) -> None:
        self._size = size
        self._chip_ids = CHIPS if chip_ids is None else chip_ids
        self._position = 0
        self._head = b""  # of what is read as a whole: a header, the end
        self._wanted = _HEADER.size
        self._header = _Header()
        self._segments: list[EspSegment] = []
        self._data = 0  # bytes of the segment that are still to come
        self._checksum = CHECKSUM_START
        self._sha256 = sha256()
        self._image: EspImage | None = None
        self._fault: RejectedError | None = None

    def update(self, block: ReadableBuffer) -> None:
        """The firmware's next bytes."""
        view = memoryview(block).cast("B")
        while len(view) and not (self._image or self._fault):
            taken = view[: self._data or self._wanted - len(self._head)]
            view = view[len(taken) :]
            self._position += len(taken)
            if self._data:
                self._data -= len(taken)
                self._sha256.update(taken)
                self._checksum ^= fold(taken)
            else:
                self._head += bytes(taken)
            self._go_on()

    def finish(self) -> None:
        """All of it was seen.

        Raises:
            WrongHardwareError: it is for another chip, or no ESP32 image at all.
            RejectedError: it is damaged.
        """
        self.image()

    def image(self) -> EspImage:
        """What it is, after all of it was seen.

        Raises:
            WrongHardwareError: it is for another chip, or no ESP32 image at all.
            RejectedError: it is damaged.
        """
        if self._fault:
            raise self._fault
        if self._image is None:
            raise _damaged("it ends early")
        return self._image

    def _go_on(self) -> None:
        """Whatever was wanted is there, or more of it is."""
        try:
            while not (self._data or self._image) and len(self._head) == self._wanted:
                head, self._head = self._head, b""
                self._next(head)
        except RejectedError as exc:
            self._fault = exc

    def _next(self, head: bytes) -> None:
        if not self._header.segments:
            self._header = _Header(*_HEADER.unpack(head))
            self._header.check(self._chip_ids)
            self._want_more(head, _SEGMENT.size)
        elif len(self._segments) < self._header.segments:
            self._begin_segment(head)
        else:
            self._end(head)

    def _want_more(self, head: bytes, wanted: int) -> None:
        self._sha256.update(head)
        if len(self._segments) == self._header.segments:
            end = self._position + self._data
            wanted = 16 - end % 16 + (HASH_SIZE if self._header.hashed else 0)
        self._wanted = wanted

    def _begin_segment(self, head: bytes) -> None:
        segment = EspSegment(*_SEGMENT.unpack(head))
        if segment.size % 4 or segment.size >= MAX_SEGMENT or self._position + segment.size >= self._size:
            raise _damaged("a segment has no possible length")
        self._segments.append(segment)
        self._data = segment.size
        self._want_more(head, _SEGMENT.size)

    def _end(self, tail: bytes) -> None:
        end = len(tail) - (HASH_SIZE if self._header.hashed else 0)
        self._sha256.update(tail[:end])
        if tail[end - 1] != self._checksum:
            raise _damaged("its checksum is another one")
        if self._header.hashed and tail[end:] != self._sha256.digest():
            raise _damaged("its SHA-256 is another one")
        header = self._header
        self._image = EspImage(
            chip_id=header.chip_id,
            entry=header.entry,
            segments=tuple(self._segments),
            hashed=bool(header.hashed),
            size=self._position,
            min_revision=header.min_revision,
            max_revision=header.max_revision,
        )


@dataclass(frozen=True, slots=True)
class _Header:
    """The first 24 bytes (`esp_image_header_t`)."""

    magic: int = MAGIC
    segments: int = 0
    mode: int = 0
    size_speed: int = 0
    entry: int = 0
    wp_pin: int = _NO_PIN
    pins: bytes = bytes(3)
    chip_id: int = 0
    old_revision: int = 0
    min_revision: int = 0
    max_revision: int = 0
    reserved: bytes = bytes(4)
    hashed: int = 0

    def check(self, chip_ids: Collection[int]) -> None:
        """Whether it is one, and for one of these chips.

        Raises:
            WrongHardwareError: it is for another chip.
            RejectedError: it is damaged.
        """
        if self.magic != MAGIC or self.hashed > 1:
            raise WrongHardwareError("the firmware is no ESP32 image")
        if self.chip_id not in chip_ids:
            made_for = CHIPS.get(self.chip_id, f"a chip that nobody knows (id {self.chip_id})")
            wanted = " or ".join(CHIPS.get(chip_id, f"id {chip_id}") for chip_id in sorted(chip_ids))
            raise WrongHardwareError(
                f"the firmware is for {made_for}" + ("" if chip_ids is CHIPS else f", and not for {wanted}")
            )
        if not 1 <= self.segments <= MAX_SEGMENTS:
            raise _damaged("it has no possible number of segments")


def _damaged(what: str) -> RejectedError:
    return RejectedError(f"the ESP32 image is damaged: {what}")


def fold(data: ReadableBuffer) -> int:
    """All bytes, XORed: in halves, because one by one takes a second for a few megabytes."""
    size = len(data)
    value = int.from_bytes(data, "little")
    while size > 1:
        half = (size + 1) // 2
        value = value >> 8 * half ^ value & (1 << 8 * half) - 1
        size = half
    return value


def build_image(
    segments: Sequence[tuple[int, bytes]],
    *,
    chip_id: int = 0,
    entry: int = 0,
    hashed: bool = True,
    min_revision: int = 0,
    max_revision: int = 0xFFFF,
) -> bytes:
    """An image as `esptool elf2image` makes it, but for the place of the segments: for tests and tools.

    Args:
        segments: load address and data of each; data is padded with zeros to whole words.
        chip_id: of the chip that it is for.
        entry: the address where it begins to run.
        hashed: whether to append a SHA-256.
        min_revision: lowest revision of the chip, 100 for each major one, 1 for each minor.
        max_revision: highest one.

    Raises:
        ConfigError: there are no segments, too many, or a number is too large.
    """
    padded = [(load, data + bytes(-len(data) % 4)) for load, data in segments]
    if not 1 <= len(padded) <= MAX_SEGMENTS or any(len(data) >= MAX_SEGMENT for _, data in padded):
        raise ConfigError(f"an ESP32 image has 1 to {MAX_SEGMENTS} segments of less than {MAX_SEGMENT:#x} bytes")
    checksum = CHECKSUM_START ^ fold(b"".join(data for _, data in padded))
    try:
        head = _HEADER.pack(
            *(MAGIC, len(padded), 2, 0x20, entry, _NO_PIN, bytes(3)),  # DIO, 4 MB, 40 MHz
            *(chip_id, 0, min_revision, max_revision, bytes(4), hashed),
        )
        body = b"".join(_SEGMENT.pack(load, len(data)) + data for load, data in padded)
    except struct.error as exc:
        raise ConfigError(f"no ESP32 image can say that: {exc}") from exc
    image = head + body
    image += bytes(15 - len(image) % 16) + bytes([checksum])
    return image + sha256(image).digest() if hashed else image
