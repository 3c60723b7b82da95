"""What every `FlashBackend` promises, asserted: `check_flash_backend`.

    async def test_my_backend_keeps_its_promises():
        chip = MyChip()
        await check_flash_backend(lambda: MyBackend(chip))

Rules are those of `mgota.testing.contract`. What a power cut leaves is not asked here, but by `every_power_cut`.
"""

from typing import cast

from anyio import CancelScope

from mgota.core.checksum import checksum
from mgota.core.geometry import Slot
from mgota.errors import ConfigError, FlashError, ReadError, TooLargeError
from mgota.ports import FlashBackend, FlashWriter, ResumableBackend, SyncingWriter
from mgota.testing.bench import Restarted
from mgota.testing.contract import Make, booted, noise, refused, require

IMAGE = 20_011
"""Bytes of an image, where there is room: several sectors of most chips, and no whole units of any."""

FILL = 4 << 20
"""Bytes up to which a slot is filled to the brim."""


async def check_flash_backend(make: Make[FlashBackend], *, blank: bool = True) -> None:
    """Assert what `FlashBackend` and `FlashWriter` promise. What the slots hold is lost.

    A backend that offers to go on with an image (`ResumableBackend`) is held to that, too.

    A slot of more than 4 MiB is not filled to the brim.

    Args:
        make: makes the backend, at every boot anew: what was selected runs then. A `select` that resets the chip raises
            `Restarted`.
        blank: the slots are blank before the first call, and the backend can tell.

    Raises:
        AssertionError: a promise is broken.
    """
    backend = await _boot(make)
    running = await _check_shape(backend)
    if blank:
        for slot in Slot:
            require(await backend.extent(slot) == 0, "a blank slot has no extent")
    await _check_writing(backend, running)
    await _check_reading(backend, running.other)
    await _check_limits(backend, running)
    await _check_giving_up(backend, running.other)
    await _check_going_on(make, backend, running.other)
    await _check_selecting(make)


async def _boot(make: Make[FlashBackend]) -> FlashBackend:
    backend = await booted(make)
    await backend.recover()
    await backend.recover()
    return backend


async def _check_shape(backend: FlashBackend) -> Slot:
    require(isinstance(cast(object, backend), FlashBackend), "a FlashBackend has all of its calls")
    try:
        checksum(backend.crc)
    except ConfigError as exc:
        raise AssertionError(f"the checksum has a name that is known: {exc}") from exc
    require(await backend.capacity() > 0, "the staging slot can take something")
    running = await backend.running_slot()
    require(isinstance(cast(object, running), Slot), "the running slot is a Slot")
    require(await backend.running_slot() is running, "the running slot stays the same until the next boot")
    return running


async def write(backend: FlashBackend, slot: Slot, image: bytes) -> None:
    """Write an image in chunks of many sizes, out of one buffer that is used again for each."""
    writer = await backend.open_writer(slot, len(image))
    require(isinstance(cast(object, writer), FlashWriter), "a FlashWriter has write, finish and abort")
    position, sizes = 0, (1, 0, 3, 16, 255, 4096, 5000)
    buffer = bytearray(max(sizes))
    step = 0
    while position < len(image):
        size = min(sizes[step % len(sizes)], len(image) - position)
        buffer[:size] = image[position : position + size]
        await writer.write(memoryview(buffer)[:size] if step % 2 else bytes(buffer[:size]))
        buffer[:size] = bytes(size)
        position += size
        step += 1
    await writer.finish()


async def _content(backend: FlashBackend, slot: Slot) -> bytes:
    """What can be read of a slot, as far as anybody wants to."""
    size = min(await backend.extent(slot), FILL)
    return await backend.read(slot, 0, size) if size else b""


async def _size(backend: FlashBackend) -> int:
    capacity = await backend.capacity()
    return IMAGE if capacity > IMAGE else max(capacity - 5, 1)  # no whole units, and not all that there is


async def _check_writing(backend: FlashBackend, running: Slot) -> None:
    before = await _content(backend, running)
    image = noise(await _size(backend), 1)
    await write(backend, running.other, image)
    require(await backend.read(running.other, 0, len(image)) == image, "what was written is read, however it came")
    require(await backend.extent(running.other) >= len(image), "an image that was written is inside the extent")
    image = noise(len(image) // 2 + 1, 2)
    await write(backend, running.other, image)
    require(await backend.read(running.other, 0, len(image)) == image, "a slot is written again")
    require(await _content(backend, running) == before, "writing leaves the running slot alone")


async def _check_reading(backend: FlashBackend, slot: Slot) -> None:
    image = noise(await _size(backend), 3)
    await write(backend, slot, image)
    for start, end in ((0, 0), (0, 1), (1, 2), (3, len(image) // 2), (len(image) - 1, len(image))):
        found = await backend.read(slot, start, end - start)
        require(found == image[start:end], "a read has any offset and any size, and gives exactly that")
    extent = await backend.extent(slot)
    for offset, size in ((extent, 1), (extent - 1, 2)):
        await refused(backend.read(slot, offset, size), ReadError, "what is not all in the slot is not read")


async def _check_limits(backend: FlashBackend, running: Slot) -> None:
    slot, capacity = running.other, await backend.capacity()
    image = noise(await _size(backend), 4)
    await write(backend, slot, image)
    extent = await backend.extent(slot)
    too_large = capacity + 1 if capacity <= FILL else 2 * capacity  # free space on a disk changes between two looks
    await refused(backend.open_writer(slot, too_large), TooLargeError, "an image beyond the capacity is refused")
    same = await backend.extent(slot) == extent and await backend.read(slot, 0, len(image)) == image
    require(same, "an image that is refused for its size changes nothing")
    if capacity > FILL:
        return
    before = await _content(backend, running)
    image = noise(capacity, 5)
    await write(backend, slot, image)
    require(await backend.read(slot, 0, capacity) == image, "an image as large as the capacity is taken")
    require(await _content(backend, running) == before, "a full slot leaves the running one alone")


async def _check_giving_up(backend: FlashBackend, slot: Slot) -> None:
    image = noise(await _size(backend), 6)
    for cancelled in (False, True):
        writer = await backend.open_writer(slot, len(image))
        await writer.write(image[: len(image) // 2])
        if cancelled:
            with CancelScope() as scope:
                scope.cancel()
                await writer.write(image[len(image) // 2 :])
        for _ in range(2):
            try:
                await writer.abort()
            except Exception as exc:
                raise AssertionError(f"abort never raises, and {exc!r} came") from exc
        await write(backend, slot, image)
        require(await backend.read(slot, 0, len(image)) == image, "after an update that was given up comes another")


async def _check_going_on(make: Make[FlashBackend], backend: FlashBackend, slot: Slot) -> None:
    """What `ResumableBackend` and `SyncingWriter` promise, of who offers it."""
    image = noise(await _size(backend), 9)
    half = image[: len(image) // 2]
    writer = await backend.open_writer(slot, len(image))
    await writer.write(half)
    mark = await writer.sync() if isinstance(writer, SyncingWriter) else 0
    await writer.abort()
    require(0 <= mark <= len(half), "a sync counts what is durable, and no more than came")
    backend = await _boot(make)
    if not isinstance(backend, ResumableBackend):
        return
    writer, start = await backend.reopen_writer(slot, len(image), mark)
    require(0 <= start <= mark, "an image goes on no later than where it was marked")
    require(await backend.read(slot, 0, mark) == image[:mark], "what was marked is still there when an image goes on")
    await writer.write(image[start:])
    await writer.finish()
    require(await backend.read(slot, 0, len(image)) == image, "an image that went on is whole")


async def _select(backend: FlashBackend, slot: Slot) -> None:
    try:
        await backend.select(slot)
    except Restarted:
        return
    except FlashError as exc:
        raise AssertionError(f"a slot with an image is selected, and {exc!r} came") from exc


async def _check_selecting(make: Make[FlashBackend]) -> None:
    backend = await _boot(make)
    first = await backend.running_slot()
    images = dict[Slot, bytes]()
    for seed, slot in ((7, first.other), (8, first)):
        images[slot] = noise(await _size(backend) - seed, seed)
        await write(backend, slot, images[slot])
        await _select(backend, slot.other)
        backend = await _boot(make)
        require(await backend.running_slot() is slot.other, "to select the running slot changes nothing")
        backend = await _turn(make, backend, slot, images)
    for slot in (first.other, first):
        backend = await _turn(make, backend, slot, images)


async def _turn(make: Make[FlashBackend], backend: FlashBackend, slot: Slot, images: dict[Slot, bytes]) -> FlashBackend:
    """Make the other slot run."""
    await _select(backend, slot)
    require(
        await backend.running_slot() is slot.other, "the running slot is fixed at boot, whatever was selected since"
    )
    await _select(backend, slot)
    backend = await _boot(make)
    require(await backend.running_slot() is slot, "the slot that was selected runs after a boot")
    for each, image in images.items():
        readable = each is not slot or await backend.extent(each)
        require(
            not readable or await backend.read(each, 0, len(image)) == image,
            "both images are whole after a selection, each under the name of its slot",
        )
    backend = await _boot(make)
    require(await backend.running_slot() is slot, "what was selected stays so over a second boot")
    return backend
