"""From where a chip is reached to a link: which protocol is spoken there, to which chip.

    connect = connector(parse_link("gdb://127.0.0.1:3333"), find_target("stm32f4"))
    async with connect() as link: …

Rules:
- the protocol follows the target; `proto=` in the link overrides it;
- what cannot be is found out before a wire is opened.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from mgota.core.geometry import Geometry
from mgota.core.link_url import LinkUrl
from mgota.errors import ConfigError
from mgota.flash.links.link import Connect, Link
from mgota.flash.links.wire import Parity, Wire, open_wire
from mgota.flash.targets.target import Target

BAUD = 115200
"""Bits per second with which the boot ROMs begin."""

Make = Callable[[Wire, Geometry, Target, LinkUrl], Link]


def _gdb(wire: Wire, geometry: Geometry, target: Target, url: LinkUrl) -> Link:
    from mgota.flash.links.gdb_remote import GdbRemote  # noqa: PLC0415  one protocol is loaded, not all

    return GdbRemote(wire, geometry, target.base, reset=url.reset or "reset")


def _stm32(wire: Wire, geometry: Geometry, target: Target, url: LinkUrl) -> Link:
    from mgota.flash.links.stm32_rom import Stm32Rom  # noqa: PLC0415  the same

    del url
    return Stm32Rom(wire, geometry, target.base)


def _esp(wire: Wire, geometry: Geometry, target: Target, url: LinkUrl) -> Link:
    from mgota.flash.links.esp_rom import EspRom  # noqa: PLC0415  the same

    del target
    return EspRom(wire, geometry, baud=url.baud)


def _mboot(wire: Wire, geometry: Geometry, target: Target, url: LinkUrl) -> Link:
    from mgota.flash.links.mboot import Mboot, external_of  # noqa: PLC0415  the same

    del url
    return Mboot(wire, geometry, target.base, external=external_of(target.name, target.part))


PROTOCOLS: dict[str, Make] = {"gdb": _gdb, "stm32": _stm32, "esp": _esp, "mboot": _mboot}
"""By the name that `proto=` takes."""

_EVEN = {"stm32"}
_BEGINS_SLOWLY = {"esp"}  # the ROM listens at `BAUD`, and is told then to go faster
_SERIAL_OF = {"stm32": "stm32", "esp32": "esp", "rt1": "mboot", "mcxn": "mboot", "rw6": "mboot"}
"""The serial protocol of the targets whose name begins so."""


def protocol_of(url: LinkUrl, target: Target) -> str:
    """What is spoken on a link to a target.

    Raises:
        ConfigError: nothing that mgota speaks.
    """
    if url.scheme == "gdb":
        if url.proto not in {None, "gdb"}:
            raise ConfigError("a gdb:// link speaks with a GDB server: for another protocol take tcp:// or serial://")
        return "gdb"
    found = url.proto or next((name for start, name in _SERIAL_OF.items() if target.name.startswith(start)), None)
    if found is None:
        raise ConfigError(f"the boot ROM of {target.name} is not spoken to: reach it through a GDB server, gdb://…")
    if found not in PROTOCOLS:
        raise ConfigError(f"there is no protocol {found!r}; there are {', '.join(PROTOCOLS)}")
    if url.reset is not None and found != "gdb":
        raise ConfigError("reset= is the command of a GDB server: a boot ROM is reset by RTS and DTR")
    return found


def connector(url: LinkUrl, target: Target) -> Connect:
    """What opens a link to a chip.

    Args:
        url: where it is reached.
        target: which chip it is.

    Raises:
        ConfigError: that makes no sense.
    """
    protocol, geometry = protocol_of(url, target), target.geometry
    if geometry is None:
        raise ConfigError(f"{target.name} cannot be programmed: nobody has verified where its sectors lie")
    parity: Parity = "even" if protocol in _EVEN else "none"
    if protocol in _BEGINS_SLOWLY:
        wired = LinkUrl(scheme=url.scheme, host=url.host, port=url.port, path=url.path)
    else:
        wired = url

    @asynccontextmanager
    async def connect() -> AsyncGenerator[Link]:
        async with await open_wire(wired, baud=BAUD, parity=parity) as wire:
            yield PROTOCOLS[protocol](wire, geometry, target, url)

    return connect
