"""What senders read: an image in pieces, from anywhere in it, and its digests."""

import io
import os
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mgota.errors import ConfigError, EmptyImageError
from mgota.outgoing import AHEAD, Source

pytestmark = pytest.mark.asyncio

DATA = os.urandom(3 * AHEAD + 17)


class Broken(io.BytesIO):
    """A disk that fails once it was measured."""

    def read(self, _: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


class Shrunk(io.BytesIO):
    """A file that somebody cut meanwhile."""

    def read(self, size: int | None = -1, /) -> bytes:
        self.truncate(10)
        return super().read(size)


@given(places=st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(1, 70_000)), max_size=8))
async def test_any_piece_in_any_order(places: list[tuple[int, int]]) -> None:
    with await Source.open(DATA) as source:
        for offset, most in places:
            size = min(most, len(DATA) - offset)
            assert await source.read_at(offset, size) == DATA[offset : offset + size]
        assert await source.read_at(0, AHEAD + 1) == DATA[: AHEAD + 1]


async def test_small_pieces_in_order_are_read_at_once(tmp_path: Path) -> None:
    reads = []

    class Counted(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(size)
            return super().read(size)

    with await Source.open(Counted(DATA)) as source:
        pieces = [await source.read_at(offset, 4096) for offset in range(0, AHEAD, 4096)]
    assert b"".join(pieces) == DATA[:AHEAD]
    assert reads == [AHEAD]


async def test_digests_without_each_trailer() -> None:
    with await Source.open(DATA) as source:
        await source.read_at(5, 5)
        assert await source.digests((0, 64, 68)) == {sha256(DATA[: len(DATA) - cut]).hexdigest() for cut in (0, 64, 68)}
        assert await source.read_at(5, 5) == DATA[5:10]
    with await Source.open(b"tiny") as source:
        assert await source.digests((0, 64, 68)) == {sha256(b"tiny").hexdigest()}


async def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        await Source.open(tmp_path / "missing")
    with pytest.raises(EmptyImageError):
        await Source.open(b"")
    for kind, words in ((Broken, "cannot be read: Input/output error"), (Shrunk, "became shorter")):
        with await Source.open(kind(DATA)) as source:
            with pytest.raises(ConfigError, match=words):
                await source.read_at(0, 4096)
            with pytest.raises(ConfigError, match=words):
                await source.digests((0,))
