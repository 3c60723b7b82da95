"""What a GDB server says of a chip's memories: its memory map, an XML document.

    <memory-map><memory type="flash" start="0x8000000" length="0x100000">
        <property name="blocksize">0x4000</property></memory></memory-map>

Rules:
- the document comes from outside: one that declares entities, nests without end or is too long is refused, and nothing
  that it names is ever loaded;
- elements that are not known are passed over, as GDB does.

Source: GDB manual, appendix E.21 "Memory Map Format".
"""

import re
from dataclasses import dataclass
from typing import Final
from xml.parsers import expat

from mgota.core.geometry import Area, Geometry, Region
from mgota.errors import ConfigError, LinkError

LIMIT: Final = 256 * 1024
"""Bytes of the longest map."""

MAX_MEMORIES: Final = 1024
MAX_SECTORS: Final = 65536
"""Sectors of the largest flash memory."""
_DEPTH: Final = 16
_NUMBER: Final = re.compile(r"\s*(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})\s*")


@dataclass(frozen=True, slots=True)
class Memory(Area):
    """One memory of a chip, at its absolute address.

    Args:
        kind: "ram", "rom" or "flash".
        block: bytes of flash memory that are erased at once; 0 of the others.
    """

    kind: str
    block: int = 0


def parse_memory_map(document: bytes) -> tuple[Memory, ...]:
    """The memories that a document lists, in its order.

    Raises:
        LinkError: it is no memory map.
    """
    if len(document) > LIMIT:
        raise LinkError(f"the GDB server's memory map is longer than {LIMIT} bytes")
    reader = _Reader()
    try:
        reader.parser.Parse(document, True)
    except (expat.ExpatError, ValueError) as exc:  # ValueError: an encoding that Python has not
        raise LinkError(f"the GDB server's memory map is no XML: {exc}") from exc
    except LookupError as exc:
        raise LinkError(f"the GDB server's memory map is in no known encoding: {exc}") from exc
    return tuple(reader.found)


def flash_geometry(memories: tuple[Memory, ...], base: int, program_unit: int) -> Geometry:
    """The geometry of the flash memory at an address, with what follows it without a gap.

    Args:
        memories: of the chip.
        base: absolute address of its first byte.
        program_unit: bytes that are programmed at once; a map does not know it.

    Raises:
        ConfigError: there is none, or it is none that can be described.
    """
    regions: list[Region] = []
    end = base
    for memory in sorted((memory for memory in memories if memory.kind == "flash"), key=lambda memory: memory.start):
        if memory.start == end:
            regions.append(Region(memory.start - base, memory.length, memory.block))
            end = memory.end
    if not regions:
        raise ConfigError(f"the GDB server knows no flash memory at {base:#x}")
    if sum(region.length // region.sector for region in regions) > MAX_SECTORS:
        raise ConfigError(f"the GDB server's flash memory at {base:#x} has more than {MAX_SECTORS} sectors")
    return Geometry(tuple(regions), program_unit)


class _Reader:
    def __init__(self) -> None:
        self.found: list[Memory] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.EntityDeclHandler = _refuse_entity
        self._path: list[str] = []
        self._memory: dict[str, str] | None = None
        self._block: str | None = None

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != "memory-map":
            raise LinkError("the GDB server's memory map is another document")
        self._path.append(name)
        if len(self._path) > _DEPTH:
            raise LinkError("the GDB server's memory map is nested too deep")
        if self._path == ["memory-map", "memory"]:
            self._memory, self._block = attributes, None
        elif self._path[1:] == ["memory", "property"] and attributes.get("name") == "blocksize":
            self._block = ""

    def _text(self, text: str) -> None:
        if self._block is not None and self._path[1:] == ["memory", "property"]:
            self._block += text

    def _end(self, name: str) -> None:
        del name
        if len(self._path) == 2 and self._memory is not None:
            self._add(self._memory, self._block)
            self._memory = None
        self._path.pop()

    def _add(self, memory: dict[str, str], block: str | None) -> None:
        kind = memory.get("type", "")
        start, length = _number(memory.get("start")), _number(memory.get("length"))
        size = _number(block) if kind == "flash" else 0
        if kind == "flash" and (not size or length % size):
            raise LinkError(f"the GDB server's memory map has flash memory at {start:#x} that is not whole blocks")
        if len(self.found) >= MAX_MEMORIES:
            raise LinkError(f"the GDB server's memory map has more than {MAX_MEMORIES} memories")
        if length:
            self.found.append(Memory(start, length, kind, size))


def _number(text: str | None) -> int:
    found = _NUMBER.fullmatch(text or "")
    if not found:
        raise LinkError(f"the GDB server's memory map has {(text or '')[:40]!r} in the place of a number")
    return int(found[1], 16 if found[1][:2] in {"0x", "0X"} else 10)


def _refuse_entity(*_: object) -> None:
    raise LinkError("the GDB server's memory map declares entities")
