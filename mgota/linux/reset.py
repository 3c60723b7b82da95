"""Starting the machine again, by the program that does it in order: services end, file systems are unmounted."""

import subprocess
from collections.abc import Callable, Sequence

import anyio

from mgota.errors import ConfigError

REBOOT = ("reboot",)


class RebootCommand:
    """A reboot of the whole machine; implements `Resetter`.

    Args:
        command: the program and its arguments.
        argument: asked when the time has come for one more argument, such as a `TrybootSelector`'s `reboot_argument`.
    """

    def __init__(self, command: Sequence[str] = REBOOT, *, argument: Callable[[], str | None] | None = None) -> None:
        self.command = tuple(command)
        self._argument = argument

    async def reset(self) -> None:
        """Call the program, and wait for the end. If it ends well, this call does not return.

        Raises:
            ConfigError: it failed.
        """
        more = self._argument() if self._argument else None
        command = [*self.command, *([more] if more else [])]
        try:
            done = await anyio.run_process(command, check=False, stdin=subprocess.DEVNULL)
        except OSError as exc:
            raise ConfigError(f"{command[0]} cannot be started: {exc.strerror}") from exc
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise ConfigError(f"{' '.join(command)} failed: {said[-1][:200] if said else done.returncode}")
        await anyio.sleep_forever()
