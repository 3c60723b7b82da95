"""Health checks: what has to be so before an image on trial is made permanent, and for a watchdog to be fed.

    await run_trial(device, checks=[Check("network", online), Check("cloud", connected, timeout=5)], consecutive=3)

Rules:
- a check is asked and answers True or False in its time; whatever else it does - raise, hang - is a False;
- all checks are asked at once, and one that hangs keeps no other from answering;
- which check failed, and why, is told in words: for the log, and for the boot record of a device that rolls back.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import anyio

from mgota.errors import ConfigError, OtaError

log = logging.getLogger("mgota.health")

Ask = Callable[[], Awaitable[bool]]
"""A question to the application, or to the world: is it so?"""


@dataclass(frozen=True, slots=True)
class Check:
    """A question with a name.

    Args:
        name: a word for it, which the boot record keeps if the device rolls back for it.
        ask: answers whether it is so.
        timeout: seconds that it has to answer.

    Raises:
        ConfigError: it has no name, or no time to answer.
    """

    name: str
    ask: Ask
    timeout: float = 10.0

    def __post_init__(self) -> None:
        if not self.name or self.timeout <= 0:
            raise ConfigError("a health check needs a name, and more than 0 seconds to answer")

    async def answer(self) -> str | None:
        """None if it is so, else why not, in a few words."""
        try:
            with anyio.fail_after(self.timeout):
                return None if await self.ask() else "it answered no"
        except TimeoutError as exc:
            return str(exc) or f"it did not answer within {self.timeout:g} s"
        except OtaError as exc:
            return str(exc) or type(exc).__name__
        except Exception as exc:  # noqa: BLE001  a user's function: whatever it raises, it is not healthy
            return f"{type(exc).__name__}: {exc}".rstrip(": ")


def checks_of(asked: Iterable[Check | Ask]) -> tuple[Check, ...]:
    """Checks of plain functions, which go by their own names."""
    return tuple(
        one if isinstance(one, Check) else Check(getattr(one, "__name__", type(one).__name__), one) for one in asked
    )


class Health:
    """What checks answered, round by round.

    Args:
        checks: what is asked; a plain function is a check by its own name.
        consecutive: rounds in a row in which all of them have to say yes.

    Raises:
        ConfigError: two checks have one name, or no round is enough.
    """

    def __init__(self, checks: Iterable[Check | Ask], consecutive: int = 1) -> None:
        self._checks = checks_of(checks)
        self._consecutive = consecutive
        self._healthy_rounds = 0
        self._answers: dict[str, str | None] = {}
        names = [check.name for check in self._checks]
        if len(set(names)) < len(names):
            raise ConfigError(f"two health checks have one name: {', '.join(names)}")
        if consecutive < 1:
            raise ConfigError("a device is healthy after at least one round of its checks")

    @property
    def asks(self) -> bool:
        """Whether there is anything to ask."""
        return bool(self._checks)

    @property
    def failing(self) -> dict[str, str]:
        """Which checks did not say yes in the last round, and why; also those that it cut off before they answered."""
        return {name: why for name, why in self._answers.items() if why is not None}

    @property
    def reason(self) -> str | None:
        """The same in one line, or None."""
        told = "; ".join(f"{name}: {why}" for name, why in self.failing.items())
        return f"health check {told}" if told else None

    async def ask(self) -> bool:
        """Ask all of them once.

        Returns:
            Whether the device is healthy: all said yes, for the wanted number of rounds in a row.
        """
        before = self.failing
        self._answers = {check.name: "it has not answered yet" for check in self._checks}
        async with anyio.create_task_group() as tasks:
            for check in self._checks:
                tasks.start_soon(self._ask, check)
        self._tell(before)
        self._healthy_rounds = 0 if self.failing else self._healthy_rounds + 1
        return self._healthy_rounds >= self._consecutive

    async def _ask(self, check: Check) -> None:
        self._answers[check.name] = await check.answer()

    def _tell(self, before: dict[str, str]) -> None:
        for name, why in self.failing.items():
            if before.get(name) != why:
                log.warning("health check %s: %s", name, why)
        for name in before.keys() - self.failing.keys():
            log.info("health check %s: well again", name)
