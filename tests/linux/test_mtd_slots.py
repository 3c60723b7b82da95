"""Slots on MTD partitions, and U-Boot's environment beside them, on a played driver of NOR flash."""

from pathlib import Path
from typing import Any

import pytest
from mtd_driver import MtdDriver

from mgota.core.bootvars import BootOrder
from mgota.core.geometry import Slot
from mgota.core.ubootenv import Environment, EnvPlace, encode_copy
from mgota.errors import ConfigError, FlashError, ReadError, TooLargeError
from mgota.linux import ubootenv
from mgota.linux.mtd import MtdDevice
from mgota.linux.mtdslots import MtdSlots
from mgota.linux.selected import SelectedSlots
from mgota.linux.uboot import UbootSelector
from mgota.linux.ubootenv import UbootEnvironment
from mgota.testing import check_flash_backend

A, B = Slot
SIZE = 0x400


class CutError(FlashError):
    """The power went."""


class CutDevice(MtdDevice):
    """Loses its power at an operation, of which a part was done."""

    left: int | None = None
    share = 0.0

    def erase(self, offset: int, size: int) -> None:
        self._count(lambda done: super(CutDevice, self).program(offset, bytes(done)), size)
        super().erase(offset, size)

    def program(self, offset: int, data: Any) -> None:
        self._count(lambda done: super(CutDevice, self).program(offset, bytes(data[:done])), len(data))
        super().program(offset, data)

    def _count(self, torn: Any, size: int) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            torn(int(size * self.share))
            raise CutError("cut")


def environment(device: MtdDevice, monkeypatch: pytest.MonkeyPatch) -> UbootEnvironment:
    """A redundant one, in an erase block each of a device."""
    monkeypatch.setattr(ubootenv, "is_mtd", lambda _: True)
    monkeypatch.setattr(ubootenv, "MtdDevice", lambda _: device)
    block = device.info().erase_size
    places = tuple(EnvPlace(str(device.path), at * block, SIZE) for at in (0, 1))
    return UbootEnvironment(places, lock=None)


@pytest.mark.asyncio
async def test_the_contract_of_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drivers = {slot: MtdDriver(tmp_path / slot, blocks=10).installed(monkeypatch) for slot in Slot}
    devices = {slot: MtdDevice(tmp_path / slot, ioctl=driver) for slot, driver in drivers.items()}
    env = MtdDevice(tmp_path / "env", ioctl=MtdDriver(tmp_path / "env", blocks=2).installed(monkeypatch))
    env.program(0, encode_copy(Environment(), SIZE, flags=1))
    selector = UbootSelector(environment(env, monkeypatch), BootOrder())

    async def make() -> SelectedSlots:
        running = await selector.selected_slot()
        assert running
        return SelectedSlots(MtdSlots(devices), selector, running=running)

    await check_flash_backend(make)
    backend = await make()
    slots = MtdSlots(devices)
    slot = (await backend.running_slot()).other
    with pytest.raises(TooLargeError):
        await slots.open_writer(slot, 10 * 4096 + 1)
    for offset, size in ((10 * 4096, 1), (-1, 1), (0, -1)):
        with pytest.raises(ReadError, match="not all inside"):
            slots.read_blocking(slot, offset, size)
    writer, start = await backend.reopen_writer(slot, 9000, 5000)
    assert start == 4096
    await writer.abort()
    with pytest.raises(ConfigError, match="both slots are"):
        MtdSlots({A: devices[A], B: devices[A]})


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_an_environment_on_nor_flash_survives_a_cut_at_every_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    cuts = 0
    for number in range(20):
        path = tmp_path / f"env{number}"
        device = CutDevice(path, ioctl=MtdDriver(path, blocks=2).installed(monkeypatch))
        device.share = share
        device.program(0, encode_copy(Environment((b"x=0",)), SIZE, flags=1))
        env = environment(device, monkeypatch)
        device.left = number
        done = 0
        try:
            for value in (1, 2, 3):
                env.change(lambda _, value=value: {"x": str(value)})  # type: ignore[misc]
                done = value
        except CutError:
            cuts += 1
        device.left = None
        assert env.variables()["x"] in {str(done), str(done + 1)}
        env.change(lambda _: {"x": "again"})
        assert env.variables() == {"x": "again"}
    assert cuts == 9, "three operations for each change"
