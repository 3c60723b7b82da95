"""The running checksum, under the names that backends give it."""

import importlib.util
import sys
import types
import zlib

import pytest
from hypothesis import given, strategies as st

from mgota.core import checksum as checksums
from mgota.core.checksum import checksum
from mgota.errors import ConfigError

# The check values of the catalogue of parametrised CRC algorithms: the checksum of "123456789".
CHECK_VALUES = {
    "crc-32": 0xCBF43926,
    "crc-32-mpeg": 0x0376E6E7,
    "xmodem": 0x31C3,
    "crc-16": 0xBB3D,
    "modbus": 0x4B37,
}


@pytest.mark.parametrize(("name", "value"), CHECK_VALUES.items())
def test_a_name_means_the_polynomial_of_the_catalogue(name: str, value: int) -> None:
    crc = checksum(name)
    crc.update(b"123456789")
    assert crc.value == value


def test_the_default_is_zlibs() -> None:
    crc = checksum()
    assert crc.value == 0
    crc.update(b"123456789")
    assert crc.value == CHECK_VALUES["crc-32"]


@pytest.mark.parametrize("name", ["", "crc-32-mpeg2!", "sha256", "crc-999"])
def test_an_unknown_name_is_a_config_error(name: str) -> None:
    with pytest.raises(ConfigError, match="no checksum is called"):
        checksum(name)


@pytest.mark.parametrize("name", CHECK_VALUES)
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_any_chunking_of_any_buffer_gives_the_same(name: str, chunks: list[bytes]) -> None:
    whole, pieces = checksum(name), checksum(name)
    whole.update(b"".join(chunks))
    for number, chunk in enumerate(chunks):
        pieces.update((bytes, bytearray, memoryview)[number % 3](chunk))
    assert pieces.value == whole.value


@pytest.mark.parametrize("installed", [True, False])
def test_crc_32_has_one_value_with_and_without_isal(monkeypatch: pytest.MonkeyPatch, installed: bool) -> None:
    stand_in = types.ModuleType("isal")
    vars(stand_in)["isal_zlib"] = types.SimpleNamespace(crc32=zlib.crc32)
    monkeypatch.setitem(sys.modules, "isal", stand_in if installed else None)
    spec = importlib.util.spec_from_file_location("checksum_again", checksums.__file__)
    assert spec
    assert spec.loader
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    crc = again.checksum()
    crc.update(b"12345")
    crc.update(memoryview(b"6789"))
    assert crc.value == 0xCBF43926  # the check value of CRC-32
