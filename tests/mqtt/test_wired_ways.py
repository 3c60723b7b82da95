"""A chip that is wired to the gateway, by every way in which a device is reached; and one that goes away meanwhile."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from mosquitto import Mosquitto
from site_server import METADATA, Site
from terminal import Shop
from wired_chips import Summing

from mgota import Device, OtaSession
from mgota.cli.virtual_device import Serving, VirtualDevice, power_on
from mgota.cli.ways import together
from mgota.cli.wired import Health
from mgota.core.geometry import Geometry, Region
from mgota.core.held import MAX_NOTE
from mgota.core.image import Verifier
from mgota.errors import BusyError, FlashError, LinkError, OtaError, TransferError
from mgota.flash.files import DurableFile, FileLock
from mgota.flash.held import HeldFlash
from mgota.flash.virtual import VirtualReset, VirtualWatchdog
from mgota.flash.wired import PlainChip
from mgota.linux.note import FileNote
from mgota.linux.slots import FileSlots
from mgota.linux.state import FileState
from mgota.session import provision
from mgota.testing import NorSimulator
from mgota.transports.http import serve as serve_http
from mgota.transports.mqtt import Broker, serve as serve_mqtt
from mgota.transports.mqtt.sender import Remote as MqttRemote
from mgota.transports.pull import Web, poll

pytestmark = pytest.mark.asyncio

CHIP = Geometry((Region(0, 16 << 10, 1024),), program_unit=8)


class Bench:
    """A gateway with a chip, which has its first image."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.chip = Summing(NorSimulator(CHIP), CHIP)
        self.directory = directory
        self.served: Device | None = None
        slots, reset, watchdog = FileSlots(directory / "slots"), VirtualReset(), VirtualWatchdog()
        flash = HeldFlash(slots, PlainChip(self.chip.connect, CHIP), DurableFile(directory / "held", MAX_NOTE))
        state = FileState(directory / "state")
        self.device = Device(flash=flash, state=state, reset=reset, watchdog=watchdog, **options)
        self.machine = VirtualDevice(
            device=self.device, latch=anyio.lowlevel.checkpoint, reset=reset, watchdog=watchdog,
            power=(FileLock(directory / "power"),), patience=0.01,
        )  # fmt: skip

    async def until(self, holds: Callable[[Any], bool]) -> None:
        """The first status that is so; read by nobody's network."""
        with anyio.fail_after(30):
            while True:
                try:
                    if holds(await Device(flash=self.device.flash, state=self.device.state).status()):
                        return
                except OtaError:
                    pass
                await anyio.sleep(0.01)

    @asynccontextmanager
    async def unreached(self, device: Device) -> AsyncGenerator[None]:
        """Nobody serves it: the test does what a transport would."""
        self.served = device
        yield

    async def send(self, image: bytes) -> None:
        assert self.served
        async with OtaSession(self.served, size=len(image)) as ota:
            await ota.write(image)
            await ota.activate(await ota.seal())

    def holds(self, image: bytes) -> bool:
        return self.chip.runs and self.chip.flash.peek(0, len(image)) == image


async def pieces(image: bytes) -> AsyncIterator[bytes]:
    yield image


@asynccontextmanager
async def on(bench: Bench, serving: Serving) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(power_on, bench.machine, serving, lambda: None)
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def polled(device: Device, url: str, directory: Path) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as tasks:
        note = FileNote(directory / "download")
        tasks.start_soon(partial(poll, device, url, interval=1, note=note, web=Web(allow_http=True)))
        yield
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def connected(device: Device, broker: str, reached: list[Device]) -> AsyncGenerator[None]:
    """Over MQTT. What is asked of a device that has not subscribed yet is lost: nobody is told that it is reached."""
    async with serve_mqtt(device, Broker.from_url(broker)) as served:
        while not served.connected:
            await anyio.sleep(0.005)
        reached.append(device)
        try:
            yield
        finally:
            reached.clear()


async def pushed(remote: MqttRemote, image: bytes) -> None:
    while True:
        with suppress(BusyError):  # the commit before it has just been stored, and is not over
            async for _ in remote.push(image):
                pass
            return
        await anyio.sleep(0.02)


@pytest.mark.program("mosquitto")
async def test_pull_and_mqtt_bring_images_to_a_wired_chip(mosquitto: Mosquitto, tmp_path: Path) -> None:
    shop, site = Shop.open(tmp_path), Site()
    one, two, three = (shop.image(f"{version}.0.0", 5_000).read_bytes() for version in (1, 2, 3))
    bench = Bench(tmp_path, verifier=Verifier(keys=[shop.key.public]))
    await provision(bench.device, pieces(one), size=len(one))
    broker, reached = f"{mosquitto.url}/site/wired", list[Device]()
    with site.in_thread() as url:
        site.publish(two, "2.0.0", key=shop.key)
        ways = together([
            partial(connected, broker=broker, reached=reached),
            partial(polled, url=f"{url}{METADATA}", directory=tmp_path),
        ])  # fmt: skip
        async with on(bench, ways):
            remote = MqttRemote(broker)
            await bench.until(lambda now: bool(reached) and now.state == "FAILED" and now.active_slot == "b")
            assert bench.holds(two)  # it found that by itself
            await remote.commit()
            await bench.until(lambda now: bool(reached) and now.state == "CONFIRMED" and now.active_slot == "b")
            await pushed(remote, three)
            await bench.until(lambda now: bool(reached) and now.state == "FAILED" and now.active_slot == "a")
            assert bench.holds(three)
            await remote.rollback()
            await bench.until(lambda now: now.state == "CONFIRMED" and now.active_slot == "b")
            assert bench.holds(two)


OLD, NEW = b"old" * 1000, b"new" * 1000


async def test_a_chip_that_is_away_at_a_later_boot_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    await provision(bench.device, pieces(OLD), size=len(OLD))
    away = 0

    def fault(what: str, offset: int) -> None:
        nonlocal away
        if what == "enter" and away:
            away -= 1
            raise LinkError("the chip has no power")

    bench.chip.fault = fault
    async with on(bench, bench.unreached):
        await bench.until(lambda _: bench.holds(OLD) and bench.served is not None)
        away = 10
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.send, NEW)
            await bench.until(lambda now: now.state == "FAILED" and now.active_slot == "b")
            tasks.cancel_scope.cancel()
        assert away == 0
        assert bench.holds(NEW)
    assert "the chip is away: the chip has no power" in caplog.text


async def test_a_chip_that_is_away_at_the_first_boot_or_takes_nothing_ends_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    await provision(bench.device, pieces(OLD), size=len(OLD))

    def fault(what: str, offset: int) -> None:
        if what == failing:
            raise FlashError("it does not") if what == "erase" else LinkError("it has no power")

    bench.chip.fault, failing = fault, "enter"
    with pytest.raises(LinkError, match="it has no power"):
        await power_on(bench.machine, bench.unreached, lambda: None)
    failing = "erase"
    with pytest.raises(FlashError, match="it does not"):
        await power_on(bench.machine, bench.unreached, lambda: None)


async def test_a_url_that_answers_commits(tmp_path: Path) -> None:
    """The URL is the other device's own status: any server will do."""
    bench, other = Bench(tmp_path), Bench(tmp_path / "other")
    await provision(bench.device, pieces(OLD), size=len(OLD))
    async with serve_http(other.device, port=0) as server:
        bench.machine = Health(url=f"{server.url}/api/ota/status").watching(bench.machine)
        (check,) = bench.machine.checks
        async with on(bench, bench.unreached):
            await bench.until(lambda _: bench.holds(OLD) and bench.served is not None)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(bench.send, NEW)
                await bench.until(lambda now: now.active_slot == "b" and now.state == "CONFIRMED")
                tasks.cancel_scope.cancel()
            assert bench.holds(NEW)
    with pytest.raises(TransferError):
        await check.ask()
