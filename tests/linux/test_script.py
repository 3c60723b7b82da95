"""A selector that is a program: what it is told, and what its answers mean."""

from pathlib import Path

import anyio
import pytest

from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError
from mgota.linux.script import ScriptSelector
from mgota.ports import Selector

A, B = Slot

SCRIPT = """#!/bin/sh
dir=$(dirname "$0")
echo "$@" >>"$dir/calls"
case $1 in
selected) cat "$dir/selected" 2>/dev/null || true ;;
select)
    [ ! -e "$dir/broken" ] || { echo "first" >&2; echo "the flash is gone" >&2; exit 3; }
    printf %s "$2" >"$dir/selected" ;;
tried) [ -e "$dir/tried" ] ;;
esac
"""


def script(directory: Path, text: str = SCRIPT, *, timeout: float = 30) -> ScriptSelector:
    path = directory / "selector"
    path.write_text(text)
    path.chmod(0o755)
    return ScriptSelector([str(path)], timeout=timeout)


@pytest.mark.asyncio
async def test_a_program_selects(tmp_path: Path) -> None:
    selector = script(tmp_path)
    assert isinstance(selector, Selector)
    assert await selector.selected_slot() is None
    await selector.select(B, running=A)
    assert await selector.selected_slot() is B
    assert not await selector.tried(B)
    (tmp_path / "tried").touch()
    assert await selector.tried(B)
    await selector.settle(B, fallback=True)
    await selector.settle(B, fallback=False)
    await selector.recover()
    await selector.selftest()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [
        *("selected", "select b a", "selected", "tried b", "tried b"),
        *("settle b 1", "settle b 0", "recover", "selftest", "selected"),
    ]


@pytest.mark.asyncio
async def test_a_program_that_fails_says_why(tmp_path: Path) -> None:
    selector = script(tmp_path)
    (tmp_path / "broken").touch()
    with pytest.raises(SelectError, match="select b a: the flash is gone"):
        await selector.select(B, running=A)
    (tmp_path / "selected").write_text("c\n")
    with pytest.raises(FlashError, match="has to print a, b or nothing, not 'c'"):
        await selector.selftest()
    with pytest.raises(FlashError, match="No such file"):
        await ScriptSelector([str(tmp_path / "none")]).recover()
    with pytest.raises(FlashError, match="status 2"):
        await script(tmp_path, "#!/bin/sh\nexit 2\n").tried(B)


@pytest.mark.asyncio
async def test_a_program_that_hangs_is_ended(tmp_path: Path) -> None:
    with pytest.raises(FlashError, match=r"did not end within 0\.2 s"):
        await script(tmp_path, "#!/bin/sh\nexec sleep 60\n", timeout=0.2).recover()


@pytest.mark.asyncio
async def test_a_cancellation_comes_after_it(tmp_path: Path) -> None:
    selector = script(tmp_path, '#!/bin/sh\nsleep 0.2\ntouch "$(dirname "$0")/done"\n')
    with anyio.move_on_after(0.05) as scope:
        await selector.recover()
    assert scope.cancelled_caught
    assert (tmp_path / "done").exists()
