"""Several devices behind one server or one connection, each updated for itself.

    gateway = Gateway({"main": device, "mcu": None})        "mcu" is wired to this machine, and starts later
    async with serve(gateway, auth=…) as server:            over HTTP: /api/ota/main/update
        gateway.put("mcu", Device(…))                       from now on it can be reached, too
        await gateway.away("mcu")                           it resets: nobody is at it any more

Rules:
- which names there are is settled at the beginning; which device stands behind one may change: a wired chip has a new
  `Device` at each of its boots, while the gateway runs on;
- what was done with a device ends with it: a reset that was asked for in a request never returns there;
- a device that is away can be asked for nothing: whoever tries is told to come back (`BusyError`);
- no device waits for another, and none knows of another.
"""

from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final

import anyio

from mgota.core.names import check_names
from mgota.device import Device
from mgota.errors import BusyError, ConfigError, OtaError
from mgota.finished import OnFinished
from mgota.verified import VerifiedImage

_BREATH: Final = 0.005

OnDeviceFinished = Callable[[str, VerifiedImage | OtaError], Awaitable[object]]
"""Told how an update of which device ended."""


class Gateway:
    """Devices by name.

    Args:
        devices: each, or None for one that is away for now.
        on_finished: told how an update ended, and of which device; else as `mgota.finished`.

    Raises:
        ConfigError: a name can be no device's, or one device has two names.
    """

    def __init__(self, devices: Mapping[str, Device | None], *, on_finished: OnDeviceFinished | None = None) -> None:
        self.names = check_names(devices)
        self.on_finished = on_finished
        self._devices: dict[str, Device | None] = {}
        self._users: dict[str, set[anyio.CancelScope]] = {name: set() for name in self.names}
        self._changed = {name: anyio.Event() for name in self.names}
        for name, device in devices.items():
            self.put(name, device)

    def put(self, name: str, device: Device | None) -> None:
        """Let a device stand behind a name, instead of the one that did; None while it restarts or is not there.

        Whoever is at the one that did is cancelled. `away` waits for them.

        Raises:
            ConfigError: the gateway has no such name, or the device has another one here.
        """
        if name not in self._changed:
            raise ConfigError(f"this gateway has no device {name!r}: it was made for {', '.join(self.names)}")
        if device is not None and any(device is other for key, other in self._devices.items() if key != name):
            raise ConfigError(f"the device {name!r} has another name in this gateway already")
        if self._devices.get(name) is not device:
            for scope in self._users[name]:
                scope.cancel()
        self._devices[name] = device
        changed, self._changed[name] = self._changed[name], anyio.Event()
        changed.set()

    def find(self, name: str) -> Device | None:
        """The device behind a name; None while it is away.

        Raises:
            ConfigError: the gateway has no such name.
        """
        if name not in self._devices:
            raise ConfigError(f"this gateway has no device {name!r}")
        return self._devices[name]

    def device(self, name: str) -> Device:
        """The device behind a name.

        Raises:
            BusyError: it is away.
            ConfigError: the gateway has no such name.
        """
        found = self.find(name)
        if found is None:
            raise BusyError(f"the device {name} is not up: try again later")
        return found

    async def away(self, name: str) -> None:
        """Let a device be away, when it resets, and wait until nobody is at it any more: its lock is free then.

        Raises:
            ConfigError: the gateway has no such name.
        """
        self.put(name, None)
        while self._users[name]:  # noqa: ASYNC110  few, and soon: at most a flash operation that runs to its end
            await anyio.sleep(_BREATH)

    @contextmanager
    def using(self, name: str) -> Generator[Device]:
        """Be at a device, for as long as it stands behind its name: the block is cancelled when it does not.

        Raises:
            BusyError: it is away.
            ConfigError: the gateway has no such name.
        """
        device = self.device(name)
        with anyio.CancelScope() as scope:
            self._users[name].add(scope)
            try:
                yield device
            finally:
                self._users[name].discard(scope)

    async def changed(self, name: str, since: Device | None) -> Device | None:
        """Wait until another device stands behind a name, and return it.

        Args:
            name: of this gateway.
            since: the device that was seen last.
        """
        while self._devices[name] is since:
            await self._changed[name].wait()
        return self._devices[name]

    def finished_of(self, name: str) -> OnFinished | None:
        """What is told how an update of this device ended."""
        return partial(self.on_finished, name) if self.on_finished else None

    @property
    def resetting(self) -> bool:
        """Whether all devices are about to reset. One alone does not take the gateway with it."""
        return all(device is not None and device.live.resetting for device in self._devices.values())

    async def status(self) -> dict[str, dict[str, object]]:
        """What each device is at, in the order of the names.

        A device that is away, or cannot be asked, has `{"error": "…"}` instead of its status, and hides none of the
        others.
        """
        return {name: await self._status_of(name) for name in self.names}

    async def _status_of(self, name: str) -> dict[str, object]:
        try:
            return (await self.device(name).status()).as_dict()
        except OtaError as exc:
            return {"error": str(exc)}
