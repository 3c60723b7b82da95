"""The selector for every other bootloader: a program of the board's own.

It is called with a word and what belongs to it, and answers with its exit status, 0 for yes and done:

    selected                        prints "a", "b" or nothing
    select SLOT RUNNING             SLOT boots next; if it is RUNNING, nothing else may
    tried SLOT                      0: it was given up; 1: it was not, or nobody knows
    settle RUNNING FALLBACK         this boot was good; FALLBACK is 1 if the other slot holds a proven image
    recover                         finish a `select` that was cut off
    selftest                        prove that a selection would work

Rules:
- it is told by arguments only, and nothing of them is quoted or expanded: they are single words;
- once begun it runs to its end, or is killed when its time is up: then nobody knows, which is an error;
- the last line that it says on its standard error is what a person reads.
"""

import subprocess
from collections.abc import Sequence

import anyio
from anyio.lowlevel import checkpoint

from mgota.core.geometry import Slot
from mgota.errors import FlashError, SelectError

TIMEOUT = 30.0
"""Seconds that a program has."""


class ScriptSelector:
    """Selects by a program; implements `Selector`.

    Args:
        command: the program, and arguments that come before the word.
        timeout: seconds that it has.
    """

    def __init__(self, command: Sequence[str], *, timeout: float = TIMEOUT) -> None:
        self.command = tuple(command)
        self.timeout = timeout

    async def selected_slot(self) -> Slot | None:
        """What the program prints.

        Raises:
            FlashError: it failed, or printed something else.
        """
        _, text = await self._call("selected")
        if text in ("", *Slot):
            return Slot(text) if text else None
        raise FlashError(f"{self.command[0]} selected: it has to print a, b or nothing, not {text[:40]!r}")

    async def select(self, slot: Slot, *, running: Slot) -> None:
        """Let the program select.

        Raises:
            SelectError: it failed.
        """
        try:
            await self._call("select", slot, running)
        except FlashError as exc:
            raise SelectError(f"cannot select slot {slot}: {exc}") from exc

    async def tried(self, slot: Slot) -> bool:
        """What the program says.

        Raises:
            FlashError: it failed.
        """
        status, _ = await self._call("tried", slot, statuses=(0, 1))
        return status == 0

    async def settle(self, running: Slot, *, fallback: bool) -> None:
        """Tell the program.

        Raises:
            FlashError: it failed.
        """
        await self._call("settle", running, "1" if fallback else "0")

    async def recover(self) -> None:
        """Let the program finish.

        Raises:
            FlashError: it failed.
        """
        await self._call("recover")

    async def selftest(self) -> None:
        """Let the program test itself, and understand what it prints.

        Raises:
            FlashError: it failed.
        """
        await self._call("selftest")
        await self.selected_slot()

    async def _call(self, *words: str, statuses: Sequence[int] = (0,)) -> tuple[int, str]:
        what = " ".join((self.command[0], *words))
        done = None
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(self.timeout):
                    done = await anyio.run_process([*self.command, *words], check=False, stdin=subprocess.DEVNULL)
            except OSError as exc:
                raise FlashError(f"{what}: {exc.strerror}") from exc
        await checkpoint()
        if done is None:
            raise FlashError(f"{what}: it did not end within {self.timeout:g} s")
        if done.returncode not in statuses:
            lines = done.stderr.decode("utf-8", "replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), f"status {done.returncode}")
            raise FlashError(f"{what}: {said[:200]}")
        return done.returncode, done.stdout.decode("utf-8", "replace").strip()
