"""Several devices by name, whatever transport reaches them."""

import anyio
import pytest
from fake_device import FakeDevice

from mgota.core.geometry import Slot
from mgota.errors import BusyError, ConfigError, LinkError
from mgota.gateway import Gateway

pytestmark = pytest.mark.asyncio


async def test_devices_are_found_by_name_and_may_change_behind_it() -> None:
    main, mcu, again = FakeDevice(), FakeDevice(), FakeDevice()
    gateway = Gateway({"main": main.device, "mcu": mcu.device})
    assert gateway.names == ("main", "mcu")
    assert gateway.device("mcu") is gateway.find("mcu") is mcu.device
    gateway.put("mcu", None)
    assert gateway.find("mcu") is None
    with pytest.raises(BusyError, match="mcu is not up"):
        gateway.device("mcu")
    gateway.put("mcu", again.device)
    assert gateway.device("mcu") is again.device
    assert gateway.device("main") is main.device


@pytest.mark.parametrize("name", ["", "update", "a/b"])
async def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        Gateway({"main": None, name: None})


async def test_other_names_and_one_device_under_two_are_refused() -> None:
    one = FakeDevice().device
    gateway = Gateway({"main": one, "mcu": None})
    for stranger in (gateway.find, gateway.device):
        with pytest.raises(ConfigError, match="no device 'esp'"):
            stranger("esp")
    with pytest.raises(ConfigError, match="made for main, mcu"):
        gateway.put("esp", None)
    with pytest.raises(ConfigError, match="another name"):
        gateway.put("mcu", one)
    gateway.put("main", one)
    with pytest.raises(ConfigError, match="another name"):
        Gateway({"main": one, "mcu": one})


async def test_who_waits_for_a_change_sees_it_and_one_that_has_been() -> None:
    one, two = FakeDevice().device, FakeDevice().device
    gateway = Gateway({"main": None, "mcu": None})
    seen: list[object] = []

    async def wait() -> None:
        seen.append(await gateway.changed("mcu", None))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        gateway.put("main", one)
        await anyio.wait_all_tasks_blocked()
        assert not seen
        gateway.put("mcu", two)
    assert seen == [two]
    assert await gateway.changed("mcu", None) is two


async def test_the_gateway_resets_only_when_all_do() -> None:
    main, mcu = FakeDevice().device, FakeDevice().device
    gateway = Gateway({"main": main, "mcu": mcu})
    mcu.live.resetting = True
    assert not gateway.resetting
    main.live.resetting = True
    assert gateway.resetting
    gateway.put("mcu", None)
    assert not gateway.resetting


async def test_a_status_that_cannot_be_told_hides_no_other() -> None:
    main, broken = FakeDevice(), FakeDevice()
    broken.device.flash.running_slot = _fails  # type: ignore[method-assign]
    told = await Gateway({"z": broken.device, "main": main.device, "mcu": None}).status()
    assert list(told) == ["z", "main", "mcu"]
    assert told["z"] == {"error": "the wire broke"}
    assert told["main"] == (await main.device.status()).as_dict()
    assert told["mcu"] == {"error": "the device mcu is not up: try again later"}


async def _fails() -> Slot:
    raise LinkError("the wire broke")


async def test_who_is_at_a_device_is_cancelled_when_it_goes_and_waited_for() -> None:
    main, mcu, again = FakeDevice().device, FakeDevice().device, FakeDevice().device
    gateway = Gateway({"main": main, "mcu": mcu})
    ended: list[str] = []

    async def use(name: str) -> None:
        with gateway.using(name) as device:
            assert device is gateway.device(name)
            try:
                async with device.exclusive():
                    await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                ended.append(name)

    async with anyio.create_task_group() as tasks:
        for name in gateway.names:
            tasks.start_soon(use, name)
        await anyio.wait_all_tasks_blocked()
        gateway.put("mcu", mcu)  # the same: nothing happens
        await anyio.wait_all_tasks_blocked()
        assert mcu.live.held
        await gateway.away("mcu")
        assert ended == ["mcu"]
        assert not mcu.live.held
        with pytest.raises(BusyError), gateway.using("mcu"):
            pass
        gateway.put("mcu", again)
        assert main.live.held
        gateway.put("main", None)
    assert ended == ["mcu", "main"]
