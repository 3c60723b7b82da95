"""An image programmed through a boot ROM on a serial line of a real rate, beside the programs of others.

    python benchmarks/links.py [--rounds N] [--only esp|stm32|mboot] [--json]

    esp      an ESP32's ROM, 921,600 baud, 8N1: mgota beside `esptool --no-stub`
    stm32    AN3155, 115,200 baud, 8E1: mgota beside `stm32flash` and `stm32loader`
    mboot    NXP's boot loader, 115,200 baud, 8N1, packets of 512 bytes: mgota beside `blhost`

The ROM is simulated, in a process of its own at the other end of a pseudo terminal. It takes each byte for as long as
the line would carry it, in both directions, answers at once, and its flash memory takes no time: what is left is the
protocol's framing, its turnarounds, and the client. The measure is the time from the first block that was programmed to
the last one, and `of the line` is what the line needs for these blocks, by the bytes that the protocol cannot do
without, divided by that time.

What turnarounds cost on this machine shows the `floor`: a bare loop of `os.write` and `os.read` with everything encoded
beforehand. The goal is 0.9 of what it reaches. Rounds are interleaved, each in another order, and the ratio is the
median of those within each round; a program that is not installed is left out.
"""

import argparse
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median

import anyio

from mgota.core import an3155, esp_rom, mboot, slip
from mgota.core.geometry import Geometry
from mgota.flash.links.esp_rom import EspRom
from mgota.flash.links.mboot import Mboot
from mgota.flash.links.stm32_rom import Stm32Rom
from mgota.flash.links.wire import Wire, open_serial
from mgota.flash.operations import Kind, Operation
from mgota.flash.targets.table import find_target
from mgota.testing import NorSimulator
from mgota.testing.esp_rom import SimulatedEspRom
from mgota.testing.mboot import SimulatedMboot
from mgota.testing.stm32_rom import SimulatedStm32Rom

GOAL = 0.9
KIB = 1 << 10
NO_LINES = """
import sys
from serial import serialposix
serialposix.Serial._update_rts_state = serialposix.Serial._update_dtr_state = lambda self: None
from stm32loader.main import main
main(*sys.argv[1:])
"""
# A pseudo terminal has no modem lines, and stm32loader cannot be told to leave them alone.
KEPT = """
import sys
from serial import serialposix
serialposix.Serial.reset_output_buffer = lambda self: None
from spsdk.apps.blhost import safe_main
sys.exit(safe_main())
"""
# blhost flushes what it has sent before it sends more: on a UART that is out by then, on a pseudo terminal it is lost.


@dataclass(frozen=True)
class Line:
    """A protocol on a line.

    Args:
        target: whose flash memory.
        baud: bits per second.
        bits: of one byte on the line.
        size: bytes of the image.
        block: bytes that are programmed at once.
    """

    target: str
    baud: int
    bits: int
    size: int
    block: int

    @property
    def image(self) -> bytes:
        return Random(self.target).randbytes(self.size)

    @property
    def geometry(self) -> Geometry:
        found = find_target(self.target).geometry
        assert found
        return found

    def seconds(self, count: int) -> float:
        return count * self.bits / self.baud


LINES = {
    "esp": Line("esp32", 921_600, 10, 256 * KIB, esp_rom.BLOCK),
    "stm32": Line("stm32f4", 115_200, 11, 32 * KIB, an3155.MAX_DATA),
    "mboot": Line("mcxn947", 115_200, 10, 32 * KIB, 512),
}


def needed(name: str) -> Iterator[int]:
    """Bytes on the line for each block of the image but the first, both directions, by the protocol itself."""
    line = LINES[name]
    for at in range(line.block, line.size, line.block):
        block = line.image[at : at + line.block]
        if name == "esp":
            head = b"\0" * 8 + len(block).to_bytes(4, "little") + (at // line.block).to_bytes(4, "little") + bytes(8)
            answer = len(slip.frame(bytes([1, esp_rom.FLASH_DATA]) + bytes(10)))
            yield len(slip.frame(head + block)) + answer
        elif name == "mboot":
            yield len(mboot.packet(mboot.DATA, block)) + 2
        else:
            yield 2 + 1 + 5 + 1 + 1 + len(block) + 1 + 1  # command, address, count, data, check; an ACK after each


# --- the ROM, in a process of its own --------------------------------------------------------------------------------


def be_rom(name: str) -> None:
    """Simulate until stdin ends; then tell how long the programming took."""
    line, moments = LINES[name], list[float]()
    flash = NorSimulator(line.geometry)

    def note(operation: Operation) -> None:
        if operation.kind is Kind.PROGRAM:
            moments.append(time.perf_counter())

    flash.operations.after = note
    makes = {"esp": SimulatedEspRom, "stm32": SimulatedStm32Rom, "mboot": SimulatedMboot}
    rom = makes[name](flash)
    master, slave = pty.openpty()
    mode = termios.tcgetattr(slave)
    mode[0] = mode[1] = mode[3] = 0
    termios.tcsetattr(slave, termios.TCSANOW, mode)
    print(os.ttyname(slave), flush=True)
    free = 0.0
    while True:
        ready, _, _ = select.select([master, 0], [], [])
        if master not in ready:
            break
        data = os.read(master, 4096)
        begun = max(free, time.perf_counter())
        answer = rom.feed(data)  # while the line carries it
        free = begun + line.seconds(len(data) + len(answer))
        if answer:
            while (left := free - time.perf_counter()) > 0:
                time.sleep(left)
            os.write(master, answer)
    whole = flash.peek(0, line.size) == line.image
    seconds = moments[-1] - moments[0] if moments else 0.0
    print(json.dumps({"whole": whole, "blocks": len(moments), "seconds": seconds}), flush=True)


def measured(name: str, client: Callable[[str, Path], None], image: Path) -> float:
    """What part of its time the line was needed."""
    command = [sys.executable, __file__, "--be-rom", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rom:
        assert rom.stdin
        assert rom.stdout
        path = rom.stdout.readline().strip()
        try:
            client(path, image)
        finally:
            rom.stdin.close()  # it ends then
        told = json.loads(rom.stdout.readline())
    line = LINES[name]
    assert told["whole"], "the image is not there"
    assert told["blocks"] == line.size // line.block, "it programs other blocks than were counted on"
    return line.seconds(sum(needed(name))) / float(told["seconds"])


# --- clients ---------------------------------------------------------------------------------------------------------


async def nothing(wire: Wire) -> None:
    """It is in its ROM."""


async def erased(name: str, wire: Wire) -> EspRom | Stm32Rom | Mboot:
    """The chip, blank where the image goes."""
    line = LINES[name]
    if name == "esp":
        chip: EspRom | Stm32Rom | Mboot = EspRom(wire, line.geometry, enter=nothing, leave=nothing, baud=line.baud)
    elif name == "mboot":
        chip = Mboot(wire, line.geometry, enter=nothing, leave=nothing)
    else:
        chip = Stm32Rom(wire, line.geometry, enter=nothing, leave=nothing)
    await chip.enter()
    for sector in line.geometry.sectors:
        if sector.start < line.size:
            await chip.erase(sector)
    return chip


def mgota(name: str) -> Callable[[str, Path], None]:
    async def program(path: str, image: Path) -> None:
        async with await open_serial(path, 115_200, parity="even" if name == "stm32" else "none") as wire:
            await (await erased(name, wire)).program(0, image.read_bytes())

    return lambda path, image: anyio.run(program, path, image)


def floor(name: str) -> Callable[[str, Path], None]:
    """Nothing but the blocks, by blocking calls."""
    line = LINES[name]
    blocks = [line.image[at : at + line.block] for at in range(0, line.size, line.block)]

    async def erase(path: str) -> None:
        async with await open_serial(path, 115_200) as wire:
            await erased(name, wire)

    def esp(port: int) -> None:
        begin = struct.pack("<4I", 0, len(blocks), line.block, 0)
        heads = [struct.pack("<4I", line.block, number, 0, 0) for number in range(len(blocks))]
        frames = [
            esp_rom.request(esp_rom.FLASH_DATA, head + block, esp_rom.check(block))
            for head, block in zip(heads, blocks, strict=True)
        ]
        for frame in (esp_rom.request(esp_rom.FLASH_BEGIN, begin), *frames):
            exchange(port, frame, lambda got: got.count(b"\xc0") == 2)

    def stm32(port: int) -> None:
        for number, block in enumerate(blocks):
            address = (0x08000000 + number * line.block).to_bytes(4, "big")
            for part in (b"\x31\xce", an3155.checked(address), an3155.checked(bytes([len(block) - 1]) + block)):
                exchange(port, part, lambda got: got == b"\x79")

    def nxp(port: int) -> None:
        command = mboot.words(mboot.WRITE, 0, line.size, 0, data=True)
        packets = [mboot.packet(mboot.DATA, block) for block in blocks]
        exchange(port, mboot.packet(mboot.COMMAND, command), lambda got: len(got) == 2 + 18)
        os.write(port, mboot.sync(mboot.ACK))
        for data in packets:
            exchange(port, data, lambda got: got[:2] == mboot.sync(mboot.ACK))

    def client(path: str, _: Path) -> None:
        anyio.run(erase, path)
        port = os.open(path, os.O_RDWR | os.O_NOCTTY)
        try:
            {"esp": esp, "stm32": stm32, "mboot": nxp}[name](port)
        finally:
            os.close(port)

    return client


def exchange(port: int, data: bytes, is_all: Callable[[bytes], bool]) -> None:
    os.write(port, data)
    got = b""
    while not is_all(got):
        got += os.read(port, 100)


def run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def esptool(path: str, image: Path) -> None:
    base = ["esptool", "--chip", "esp32", "--port", path, "--baud", "921600"]
    run(*base, "--before", "no-reset", "--after", "no-reset", "--no-stub", "write-flash", "0", image)


def stm32flash(path: str, image: Path) -> None:
    run("stm32flash", "-m", "8n1", "-b", "115200", "-w", image, path)


def stm32loader(path: str, image: Path) -> None:
    python = Path(shutil.which("stm32loader") or "").with_name("python")
    run(python, "-c", NO_LINES, "-p", path, "-P", "none", "-f", "F4", "-e", "-w", image)


def blhost(path: str, image: Path) -> None:
    commands = image.with_name("commands")
    size = LINES["mboot"].size
    commands.write_text(f"flash-erase-region 0 {size}\nwrite-memory 0 {image}\n")
    python = Path(shutil.which("blhost") or "").resolve().with_name("python")
    run(python, "-c", KEPT, "-p", f"{path},115200", "batch", commands)
    commands.unlink()


OTHERS = {
    "esp": {"esptool": esptool},
    "stm32": {"stm32flash": stm32flash, "stm32loader": stm32loader},
    "mboot": {"blhost": blhost},
}


def compared(name: str, rounds: int, directory: Path) -> dict[str, list[float]]:
    """What each client reached, round by round."""
    image = directory / "image.bin"
    image.write_bytes(LINES[name].image)
    clients: dict[str, Callable[[str, Path], None]] = {"floor": floor(name), "mgota": mgota(name)}
    clients |= {peer: call for peer, call in OTHERS[name].items() if shutil.which(peer)}
    found: dict[str, list[float]] = {peer: [] for peer in clients}
    for number in range(rounds):
        order = list(clients) if number % 2 else list(reversed(clients))
        for peer in order:
            found[peer].append(measured(name, clients[peer], image))
    image.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(LINES))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--be-rom", choices=list(LINES), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.be_rom:
        be_rom(chosen.be_rom)
        return
    with tempfile.TemporaryDirectory(dir=chosen.dir) as directory:
        names = [chosen.only] if chosen.only else list(LINES)
        found = {name: compared(name, chosen.rounds, Path(directory)) for name in names}
    if chosen.json:
        print(json.dumps(found))
        return
    for name, peers in found.items():
        line = LINES[name]
        print(f"{name}: {line.size // KIB} KiB at {line.baud:,} baud")
        for peer, rates in peers.items():
            ratio = median(rate / base for rate, base in zip(rates, peers["floor"], strict=True))
            goal = f"  goal {GOAL}: {'met' if ratio >= GOAL else 'MISSED'}" if peer == "mgota" else ""
            print(f"  {peer:12} {median(rates):.2f} of the line, {ratio:.2f} of the floor{goal}")


if __name__ == "__main__":
    main()
