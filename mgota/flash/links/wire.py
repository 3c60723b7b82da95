"""Bytes to a chip and back, and the two lines that reset it: over TCP, or a serial port.

Rules:
- a wire knows no protocol: it delivers what came, when it came;
- whatever goes wrong is a `LinkError`; silence is a `NoAnswerError`, for only silence is worth another try;
- a wait is bounded, always, and a cancellation ends it.
"""

import errno
import os
import time
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import anyio
from anyio.abc import ByteStream

from mgota.core.link_url import LinkUrl
from mgota.errors import ConfigError, LinkError, NoAnswerError

MAX_RECEIVE = 65536
"""Bytes that are taken at once."""

BITS = 12
"""Of a byte on a serial line, at most."""

CONNECT = 10.0
"""Seconds that a network has to connect."""

Parity = Literal["none", "even"]


class Wire(Protocol):
    """A connection to a chip."""

    async def send(self, data: bytes) -> None:
        """Send all of it.

        Raises:
            LinkError: the wire is gone.
        """
        ...

    async def receive(self, timeout: float) -> bytes:
        """At least one byte.

        Args:
            timeout: seconds to wait for it.

        Raises:
            NoAnswerError: nothing came.
            LinkError: the wire is gone.
        """
        ...

    async def discard(self, quiet: float = 0.0) -> None:
        """Forget what has come, until nothing more comes for so many seconds.

        Raises:
            LinkError: the wire is gone, or never quiet.
        """
        ...

    async def set_lines(self, *, rts: bool | None = None, dtr: bool | None = None) -> None:
        """Set modem lines, which boards wire to reset and boot mode; a wire without any does nothing.

        Raises:
            LinkError: the wire is gone.
        """
        ...

    async def set_baud(self, baud: int) -> None:
        """Another speed, in bits per second; a wire without one does nothing.

        Raises:
            LinkError: the port has no such speed.
        """
        ...

    async def aclose(self) -> None:
        """Close it. Never raises."""
        ...


class _Closing:
    """`async with wire`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.aclose()

    async def aclose(self) -> None:
        """Close it."""


async def discard_until_quiet(wire: Wire, quiet: float) -> None:
    """`Wire.discard` by `Wire.receive`.

    Raises:
        LinkError: the wire is gone, or did not become quiet in a hundred times `quiet`.
    """
    for _ in range(100):
        try:
            await wire.receive(quiet)
        except NoAnswerError:
            return
    raise LinkError("the link is never quiet: something else talks on it")


class StreamWire(_Closing):
    """A wire over a byte stream, such as a TCP connection to a serial port server, or a GDB server.

    Args:
        stream: connected.
        name: of the other end, for messages.
    """

    def __init__(self, stream: ByteStream, name: str) -> None:
        self._stream = stream
        self._name = name

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            await self._stream.send(data)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
            raise LinkError(f"the connection to {self._name} broke") from exc

    async def receive(self, timeout: float) -> bytes:
        """At least one byte."""
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(MAX_RECEIVE)
        except TimeoutError as exc:
            raise NoAnswerError(f"{self._name} did not answer within {timeout:g} s") from exc
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as exc:
            raise LinkError(f"the connection to {self._name} broke") from exc

    async def discard(self, quiet: float = 0.0) -> None:
        """Forget what has come."""
        await discard_until_quiet(self, quiet)

    async def set_lines(self, *, rts: bool | None = None, dtr: bool | None = None) -> None:
        """There are none."""

    async def set_baud(self, baud: int) -> None:
        """There is none."""

    async def aclose(self) -> None:
        """Close it."""
        await anyio.aclose_forcefully(self._stream)


class SerialWire(_Closing):
    """A serial port of this machine. `open_serial` makes one.

    Args:
        port: serialx's, open.
        path: of it.
        baud: bits per second that it has.
    """

    def __init__(self, port: Any, path: str, baud: int = 115200) -> None:
        self._port = port
        self._path = path
        self._baud = baud
        self._sending_until = 0.0

    async def send(self, data: bytes) -> None:
        """Send all of it; it may be on its way yet.

        To wait until the last bit is out takes a thread, and twice as long as an answer to a short command: whoever
        waits for the answer waits for that in any case.
        """
        try:
            await self._port.write(data)
        except OSError as exc:  # serialx's own errors are of this kind
            raise LinkError(f"the serial port {self._path} failed: {exc}") from exc

        self._sending_until = max(self._sending_until, time.monotonic()) + len(data) * BITS / self._baud

    async def _sent(self) -> None:
        """All of it went over the line."""
        if self._sending_until:
            await self._port.flush()
            self._sending_until = 0.0

    async def receive(self, timeout: float) -> bytes:
        """At least one byte. The time counts from when all that was sent is out."""
        data = b""
        waiting = timeout + max(self._sending_until - time.monotonic(), 0.0)
        try:
            with anyio.fail_after(waiting):
                data = bytes(await self._port.read(MAX_RECEIVE))
        except TimeoutError as exc:
            raise NoAnswerError(f"nothing came from {self._path} within {timeout:g} s") from exc
        except OSError as exc:
            raise LinkError(f"the serial port {self._path} failed: {exc}") from exc
        if not data:
            raise LinkError(f"the serial port {self._path} is gone")
        return data

    async def discard(self, quiet: float = 0.0) -> None:
        """Forget what has come."""
        await discard_until_quiet(self, quiet)

    async def set_lines(self, *, rts: bool | None = None, dtr: bool | None = None) -> None:
        """Set the lines that are named."""
        wanted = {name: value for name, value in (("rts", rts), ("dtr", dtr)) if value is not None}
        try:
            await self._sent()
            await self._port.set_modem_pins(**wanted)
        except OSError as exc:
            raise LinkError(f"the lines of the serial port {self._path} cannot be set: {exc}") from exc

    async def set_baud(self, baud: int) -> None:
        """Another speed."""
        try:
            await self._sent()
            await self._port.reconfigure_port(baudrate=baud)
            self._baud = baud
        except (OSError, ValueError) as exc:
            raise LinkError(f"the serial port {self._path} has no speed of {baud} baud: {exc}") from exc

    async def aclose(self) -> None:
        """Close it."""
        try:
            self._port.abort()
            await self._port.wait_closed()
        except OSError:
            return


async def open_serial(path: str, baud: int, *, parity: Parity = "none") -> SerialWire:
    """A serial port, 8 data bits and one stop bit.

    Args:
        path: of the port.
        baud: bits per second.
        parity: "none", or "even" as the boot ROM of an STM32 has it.

    Raises:
        ConfigError: serialx is not installed.
        LinkError: the port cannot be opened.
    """
    try:
        import serialx  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise ConfigError("serial ports need serialx: pip install 'mgota[serial]'") from exc
    chosen = serialx.Parity.EVEN if parity == "even" else serialx.Parity.NONE
    port = serialx.async_serial_for_url(path, baudrate=baud, parity=chosen)
    try:
        _check_terminal(path)  # serialx leaves what it has opened open when it turns out to be none
        await port.open()
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise LinkError(f"the serial port {path} cannot be opened: {why}") from exc
    return SerialWire(port, path, baud)


def _check_terminal(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not os.isatty(descriptor):
            raise OSError(errno.ENOTTY, "it is no serial port")
    finally:
        os.close(descriptor)


async def open_tcp(host: str, port: int) -> StreamWire:
    """A connection to a server.

    Raises:
        LinkError: nobody is there.
    """
    name = f"{host}:{port}"
    try:
        with anyio.fail_after(CONNECT):
            return StreamWire(await anyio.connect_tcp(host, port), name)
    except (OSError, TimeoutError) as exc:
        raise LinkError(f"{name} cannot be reached: {str(exc) or 'it does not answer'}") from exc


async def open_wire(url: LinkUrl, *, baud: int, parity: Parity = "none") -> StreamWire | SerialWire:
    """The wire to where a link names.

    Args:
        url: of the link.
        baud: bits per second, if the link names none.
        parity: of a serial port.

    Raises:
        ConfigError: something is not installed.
        LinkError: it cannot be opened.
    """
    if url.scheme == "serial":
        return await open_serial(url.path, url.baud or baud, parity=parity)
    return await open_tcp(url.host, url.port)
