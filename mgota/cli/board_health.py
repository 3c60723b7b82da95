"""What has to be so before an image on trial is made permanent, as `[health]` says it.

Each key is a check with its name, so that the boot record says which one failed. Rules:
- the broker counts as connected by the device's own connection: a second one of the same name would end the first;
- the update server says "same version" when it answers with a manifest that is trusted and offers what runs.
"""

from functools import partial

import anyio
from anyio import to_thread

from mgota.cli.board import BrokerWay, path_of, pull_options
from mgota.cli.checkup import Findings
from mgota.cli.options import client_context
from mgota.cli.reports import fetched
from mgota.core.config import Config
from mgota.core.offer import Reason
from mgota.core.sections import HealthSection
from mgota.device import Device
from mgota.errors import ConfigError
from mgota.health import Check
from mgota.linux.configured import device_of


def checks_of(config: Config, device: Device, broker: BrokerWay) -> list[Check]:
    """The checks of a device.

    Args:
        config: says which.
        device: that runs.
        broker: how it is reached by one.

    Raises:
        ConfigError: a file cannot be read or used, or a URL may not be asked.
    """
    health, checks = config.health, list[Check]()
    if health is None:
        return checks
    if health.command:
        checks.append(Check("command", partial(_succeeds, health.command), timeout=health.timeout))
    if health.url:
        checks.append(_url(health, health.url))
    if health.mqtt:
        checks.append(Check("mqtt", broker.connected, timeout=health.timeout))
    if health.same_version:
        checks.append(_same_version(config, health, device))
    return checks


def _url(health: HealthSection, url: str) -> Check:
    context = client_context(path_of(health.cacert), None, None)

    async def answers() -> bool:
        await to_thread.run_sync(fetched, url, context, health.timeout, abandon_on_cancel=True)
        return True

    return Check("url", answers, timeout=health.timeout)


def _same_version(config: Config, health: HealthSection, device: Device) -> Check:
    if config.pull is None:
        raise ConfigError("health.same_version: this needs a section [pull]")
    url, (web, options) = config.pull.url, pull_options(config, config.pull)

    async def is_offered() -> bool:
        from mgota.transports.pull import check  # noqa: PLC0415  who does not pull does not load it

        decision = await check(url, device=device, web=web, **options)
        if decision.reason is Reason.SAME:
            return True
        raise ConfigError(f"the update server offers something else: {decision.text}")

    return Check("same_version", is_offered, timeout=health.timeout)


async def _succeeds(command: tuple[str, ...]) -> bool:
    return (await anyio.run_process(command, check=False, stdin=None)).returncode == 0


async def look_at_health(config: Config, found: Findings) -> None:
    """Ask now what will be asked on trial, but for what would change something: `mgota doctor`.

    A program may be started by a check only when it is meant to, and the broker would end the device's own connection.
    What says no is a note: the application may not run yet.
    """
    health = config.health
    if health is None:
        return
    checks = list[Check]()
    if health.url:
        with found.asking("health.cacert"):
            checks.append(_url(health, health.url))
    if health.same_version:
        with found.asking("health.same_version"):
            checks.append(_same_version(config, health, await to_thread.run_sync(device_of, config)))
    for check in checks:
        if why := await check.answer():
            found.note(f"health.{check.name}", f"it does not say yes now ({why}): no image would be made permanent")
        else:
            found.well(f"health.{check.name}", "it says yes now")
    if health.mqtt:
        found.well("health.mqtt", "it is the connection of [mqtt]")
