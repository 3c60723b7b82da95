"""A virtual board: its disk, and QEMU that runs it.

Rules:
- a test asks the machine itself: QMP's events, `fw_printenv` on the disk, the bytes of the slots. What the board says
  on its console is waited for, and shown when a test fails;
- a power cut is SIGKILL: what the guest had not handed to its disk by then is gone;
- the console only speaks. U-Boot takes whatever comes in for a person at its prompt, and QEMU's stdin is not ours to
  trust: /dev/null that some program running as root has replaced with a file says what others threw away;
- a machine dies with the process that started it.
"""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any, Self

import artefacts
import uboot
from disk import MIB, Partition, make_disk
from images import Firmware
from qmp import Qmp

from mgota.core.record import BootRecord, decode_record, encode_record

SLOT = 64 * MIB
PARTITIONS = {
    each.name: each
    for each in (
        Partition("env", MIB, MIB),
        Partition("slot-a", 2 * MIB, SLOT),
        Partition("slot-b", 2 * MIB + SLOT, SLOT),
        Partition("data", 2 * MIB + 2 * SLOT, 16 * MIB),
    )
}
DISK = 2 * MIB + 2 * SLOT + 17 * MIB

ORDERS = 1024
"""Bytes of the file with orders: the same for all boards, else none could be thawed."""

MGOTA = Path(sys.executable).with_name("mgota")

PATIENCE = 240.0
"""Seconds that anything may take, on a machine that is busy with other things as well."""

DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
"""Started in front of QEMU, which becomes QEMU: of util-linux, which every Debian has."""

CONSOLE = ("-chardev", "file,id=console,path=/dev/stdout", "-serial", "chardev:console")
"""A serial port with no input at all, unlike `-serial stdio`."""


@dataclass(frozen=True)
class Frozen:
    """A board that was stopped while it ran: what its machine and its disk were then."""

    machine: Path
    disk: Path


class Board:
    """A board on the desk. `manufactured` and `thawed` make one.

    Args:
        place: a directory of its own, with its disk.
        frozen: what it goes on from when it is switched on for the first time.
    """

    def __init__(self, place: Path, frozen: Frozen | None = None) -> None:
        self.place = place
        self.disk = place / "emmc.img"
        self.log: list[str] = []
        self.port = 0
        self._frozen = frozen
        self._news = Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: Thread | None = None
        self._qmp: Qmp | None = None
        self._seen = 0
        self._start = time.monotonic()
        uboot.write_flash(place, uboot.own_environment())
        (place / "fw_env.config").write_text(uboot.config(self.disk))

    @classmethod
    def manufactured(cls, place: Path, firmware: Firmware) -> Self:
        """A board as it comes from the factory, with an image in slot a."""
        place.mkdir(parents=True)
        board = cls(place)
        board.make_disk(firmware.path, BootRecord(revision=1, a=firmware.as_proven()))
        return board

    @classmethod
    def thawed(cls, place: Path, frozen: Frozen) -> Self:
        """A board that goes on from where another one was frozen."""
        place.mkdir(parents=True)
        artefacts.run("cp", "--sparse=always", frozen.disk, place / "emmc.img")
        return cls(place, frozen)

    def make_disk(self, image: Path, record: BootRecord) -> None:
        """Its disk, with an image in slot a and a boot record."""
        make_disk(self.disk, PARTITIONS.values(), DISK)
        variables = {"BOOT_A_LEFT": f"{uboot.ATTEMPTS:x}", "BOOT_B_LEFT": "0", "BOOT_ORDER": "A  "}
        self.write(uboot.COPIES[0], uboot.shared_environment(variables, flags=1))
        self.write(uboot.COPIES[1], uboot.shared_environment(variables, flags=0))
        self.write(PARTITIONS["slot-a"].start, image.read_bytes())
        data = self.place / "data"
        (data / "mgota").mkdir(parents=True)
        (data / "mgota" / "state").write_bytes(encode_record(record))
        system = self.place / "data.img"
        with system.open("wb") as file:
            file.truncate(PARTITIONS["data"].size)
        artefacts.run("mkfs.ext4", "-q", "-F", "-E", "root_owner=0:0", "-d", data, system)
        self.write(PARTITIONS["data"].start, system.read_bytes())
        system.unlink()

    # --- power -------------------------------------------------------------------------------------------------------

    @contextmanager
    def powered(self, **orders: str) -> Generator[str]:
        """On while the block runs, which begins when nothing is on trial; the version that runs then.

        Args:
            orders: for the application: `halt`, `mqtt`, `pull`; see `guest/board.py`.
        """
        frozen, self._frozen = self._frozen, None
        self.say(f"--- power on, orders {orders}" if orders else "--- power on")
        (self.place / "orders").write_text(json.dumps(orders).ljust(ORDERS))
        try:
            self._power_on(frozen)
            yield "1.0" if frozen else self.wait_until_settled()
        finally:
            self.cut()

    def _power_on(self, frozen: Frozen | None) -> None:
        here, there = socket.socketpair()
        self._process = subprocess.Popen(
            [*self._command(there.fileno()), *(("-incoming", f"exec:cat {frozen.machine}") if frozen else ())],
            pass_fds=(there.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        there.close()
        self._reader = Thread(target=self._read_console, args=(self._process,), daemon=True)
        self._reader.start()
        self._qmp = Qmp(here)
        self.port = self._forwarded_port()
        if frozen:
            self._wait_until("paused", lambda: str(self.qmp.execute("query-status")["status"]))  # as it was frozen
            self.qmp.execute("cont")

    def _forwarded_port(self) -> int:
        """The port that QEMU took for the board's own: nobody else can have it meanwhile."""
        told = str(self.qmp.execute("human-monitor-command", **{"command-line": "info usernet"}))
        found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", told)
        assert found, told
        return int(found[1])

    def freeze(self, place: Path) -> Frozen:
        """Stop it while it runs, and keep what it is."""
        frozen = Frozen(place / "machine", place / "emmc.img")
        self.qmp.execute("stop")
        self.qmp.execute("migrate", uri=f"exec:cat >{frozen.machine}")
        self._wait_until("completed", lambda: str(self.qmp.execute("query-migrate")["status"]))
        self.cut()
        self.disk.replace(frozen.disk)
        return frozen

    def _wait_until(self, wanted: str, ask: Callable[[], str]) -> None:
        deadline = time.monotonic() + PATIENCE
        while (status := ask()) != wanted:
            assert time.monotonic() < deadline, f"the machine should be {wanted}, and is {status}"
            time.sleep(0.05)

    def _command(self, qmp: int) -> list[str]:
        def drive(name: str, path: Path, options: str = "") -> list[str]:
            return ["-drive", f"if=none,id={name},format=raw,file={path}{options}"]

        return [
            *DIES_WITH_US,
            *("qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a53", "-m", "512", "-accel", "tcg"),
            *("-display", "none", *CONSOLE, "-monitor", "none", "-nodefaults"),
            *("-chardev", f"socket,id=qmp,fd={qmp}", "-mon", "chardev=qmp,mode=control"),
            *uboot.flash_drives(self.place),
            *drive("emmc", self.disk),
            *drive("usr", artefacts.distribution_image("arm64"), ",readonly=on"),
            *("-device", "virtio-net-pci,netdev=net,addr=3,romfile="),
            *("-device", "virtio-blk-pci,drive=emmc,addr=4", "-device", "virtio-blk-pci,drive=usr,addr=5"),
            *("-device", "i6300esb,addr=6", "-action", "watchdog=reset", "-device", "virtio-rng-pci,addr=7"),
            *(
                "-netdev",
                "user,id=net,hostfwd=tcp:127.0.0.1:0-:8000,guestfwd=tcp:10.0.2.100:80-cmd:echo alive",
            ),
            *("-fw_cfg", f"name=opt/mgota/orders,file={self.place / 'orders'}"),
        ]

    def cut(self) -> None:
        """Cut the power."""
        process, self._process = self._process, None
        if process and self._reader:
            process.kill()
            process.wait()
            self._reader.join()
            self.qmp.close()
            self.say("--- power cut")

    # --- the console -------------------------------------------------------------------------------------------------

    def _read_console(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        with process.stdout as console:
            for line in console:
                self.say(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.decode("utf-8", "replace")).strip("\r\n"))

    def say(self, line: str) -> None:
        """Add a line to the log."""
        with self._news:
            self.log.append(f"{time.monotonic() - self._start:7.2f} {line}")
            self._news.notify_all()

    def wait_for(self, pattern: str, *, timeout: float = PATIENCE) -> re.Match[str]:
        """Wait for a line of the console that was not waited for yet; those before it count as seen."""
        wanted, found = re.compile(pattern), None

        def look() -> bool:
            nonlocal found
            while self._seen < len(self.log) and not found:
                found = wanted.search(self.log[self._seen])
                self._seen += 1
            return found is not None

        with self._news:
            self._news.wait_for(look, timeout)
        assert found, f"the board did not say {pattern!r} within {timeout} s\n{self.shown()}"
        return found

    def wait_for_any(self, text: str) -> None:
        """Wait until the console has said something at some time."""
        with self._news:
            found = self._news.wait_for(lambda: any(text in line for line in self.log), PATIENCE)
        assert found, f"the board never said {text!r}\n{self.shown()}"

    def wait_until_settled(self, *, timeout: float = PATIENCE) -> str:
        """Wait until nothing is on trial, and return the version that runs."""
        return self.wait_for(r"board: settled: version (\S+) in slot", timeout=timeout)[1]

    def boots(self) -> list[str]:
        """The slots that U-Boot started so far."""
        return [match[1] for line in self.log if (match := re.search(r"U-Boot starts ([AB]) of", line))]

    def shown(self, last: int = 60) -> str:
        """The end of the log, for a person."""
        return "\n".join(self.log[-last:])

    # --- the machine's own word --------------------------------------------------------------------------------------

    @property
    def qmp(self) -> Qmp:
        """The connection to the running machine."""
        assert self._qmp, "the board is off"
        return self._qmp

    def watchdog_bites(self) -> int:
        """How often the watchdog reset this machine since it was switched on."""
        return self.qmp.count("WATCHDOG")

    def environment(self) -> dict[str, str]:
        """U-Boot's variables on the disk, read by U-Boot's own tool."""
        text = artefacts.run("fw_printenv", "-c", self.place / "fw_env.config")
        return dict(line.partition("=")[::2] for line in text.splitlines())

    def write(self, offset: int, data: bytes) -> None:
        """Write the disk of a board that is off."""
        with self.disk.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the disk."""
        with self.disk.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def slot(self, name: str, size: int) -> bytes:
        """The first bytes of a slot."""
        return self.read(PARTITIONS[f"slot-{name}"].start, size)

    def record(self) -> BootRecord:
        """The boot record of a board that is off."""
        system = self.place / "look.img"
        system.write_bytes(self.read(PARTITIONS["data"].start, PARTITIONS["data"].size))
        subprocess.run(["e2fsck", "-fy", system], capture_output=True, check=False)  # 1: it mended something
        out = self.place / "look.state"
        out.unlink(missing_ok=True)
        artefacts.run("debugfs", "-R", f"dump /mgota/state {out}", system)
        return decode_record(out.read_bytes())

    # --- the network -------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Of the application."""
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, data: bytes | None = None, *, timeout: float = PATIENCE) -> tuple[int, str]:
        """Status and body of an answer; GET, or POST where there is data."""
        request = urllib.request.Request(self.url + path, data=data)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, exc.read().decode()

    def push(self, image: Path, url: str = "") -> subprocess.CompletedProcess[str]:
        """Send an image, as an operator does."""
        return subprocess.run([MGOTA, "push", image, url or self.url], capture_output=True, text=True, check=False)

    @contextmanager
    def pushing(self, image: Path) -> Generator[None]:
        """Send an image while the block runs, to a board that may not live to its end."""
        with subprocess.Popen(
            [MGOTA, "push", image, self.url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as sender:
            try:
                yield
            finally:
                sender.kill()

    def status(self) -> dict[str, Any]:
        """What the device says of itself."""
        return dict(json.loads(self.ask("/api/ota/status")[1]))


MakeBoard = Callable[[Firmware], Board]
"""A fixture: a board that came from the factory with an image in slot a."""
