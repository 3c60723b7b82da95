"""Trailers, digest and version of an image that is read once; and who signed it."""

from collections.abc import Sequence
from hashlib import sha256
from zlib import crc32

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, strategies as st

from mgota.core.image import ImageScan, Trailer, Verifier, attach, signed_name
from mgota.core.keys import PrivateKey, PublicKey
from mgota.core.version import MAX_VERSION
from mgota.errors import BadSignatureError, ConfigError, OtaError, UnsignedError, VerifyError

KEY, OTHER, THIRD = (PrivateKey.generate() for _ in range(3))
FIRMWARE = b"\x00firmware MG_VERSION:1.2.3\x00\xff and more of it"
RAW, MGSG = Trailer.RAW, Trailer.MGSG
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def signed(firmware: bytes = FIRMWARE, trailer: Trailer = RAW, key: PrivateKey = KEY) -> bytes:
    return attach(firmware, key.sign(sha256(firmware).digest()), trailer)


def scanned(image: bytes, trailer: Trailer | None = RAW, sizes: Sequence[int] = ()) -> ImageScan:
    """Scan in blocks of these sizes, and the rest in one."""
    scan = ImageScan(len(image), trailer=trailer)
    at = 0
    for size in sizes:
        scan.update(image[at : at + size])
        at += size
    if image[at:] or not at:
        scan.update(memoryview(image)[at:])
    return scan


def check(image: bytes, trailer: Trailer = RAW, *keys: PublicKey) -> None:
    Verifier(keys=keys or (KEY.public,), trailer=trailer).check(scanned(image, trailer))


# --- trailers -------------------------------------------------------------------------------------------------------


def test_a_trailer_is_the_signature_and_what_ends_it() -> None:
    signature = bytes(range(64))
    assert attach(b"f", signature, RAW) == b"f" + signature
    assert attach(b"f", signature, MGSG) == b"f" + signature + b"MGSG"
    assert [t.size for t in (RAW, MGSG)] == [64, 68]
    assert (Trailer("raw"), Trailer("mgsg")) == (RAW, MGSG)


def test_only_firmware_and_a_raw_signature_make_an_image() -> None:
    with pytest.raises(ConfigError, match="empty"):
        attach(b"", bytes(64), RAW)
    for size in (0, 63, 65, 70):
        with pytest.raises(ConfigError, match="64 bytes"):
            attach(b"f", bytes(size), MGSG)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("firmware.bin", "firmware.signed.bin"),
        ("fw-1.2.3.bin", "fw-1.2.3.signed.bin"),
        ("firmware", "firmware.signed"),
        (".hidden", ".hidden.signed"),
        ("firmware.", "firmware.signed."),
    ],
)
def test_the_signed_file_is_named_as_mongoose_names_it(name: str, expected: str) -> None:
    assert signed_name(name) == expected


# --- scanning -------------------------------------------------------------------------------------------------------

block_sizes = st.lists(st.integers(0, 90), max_size=12)
trailers = st.sampled_from([None, RAW, MGSG])


@given(st.binary(min_size=1, max_size=300), trailers, block_sizes)
def test_any_blocks_give_the_same_scan(image: bytes, trailer: Trailer | None, sizes: list[int]) -> None:
    scan = scanned(image, trailer, sizes)
    cut = max(len(image) - trailer.size, 0) if trailer else len(image)
    assert scan.firmware_size == cut
    assert scan.sha256 == sha256(image[:cut]).digest()
    assert scan.trailer_bytes == image[cut:]
    assert scan.crc == crc32(image)


versions = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=MAX_VERSION)


@given(st.binary(max_size=100), versions, st.binary(max_size=200), trailers, block_sizes)
def test_a_version_tag_is_found_across_the_borders_of_any_blocks(
    before: bytes, version: str, after: bytes, trailer: Trailer | None, sizes: list[int]
) -> None:
    firmware = before + b"MG_VERSION:" + version.encode() + b"\0" + after
    if b"MG_VERSION:" in before:
        return
    image = attach(firmware, bytes(64), trailer) if trailer else firmware
    assert scanned(image, trailer, sizes).version == version


def test_a_version_tag_is_found_byte_by_byte() -> None:
    assert scanned(signed(), RAW, [1] * 200).version == "1.2.3"


@given(st.lists(st.sampled_from([b"MG_VERSION:", b"1.0", b"\0", b"MG_", b" ", b"x" * 60]), max_size=12), block_sizes)
def test_the_first_whole_tag_counts_however_it_is_cut(parts: list[bytes], sizes: list[int]) -> None:
    image = b"".join(parts)
    assert scanned(image, None, sizes).version == scanned(image, None).version


@pytest.mark.parametrize(
    "firmware",
    [
        b"MG_VERSION:\0",
        b"MG_VERSION:1.0",
        b"MG_VERSION:1 0\0",
        b"MG_VERSION:1.\xc3\xa9\0",
        b"mg_version:1.0\0",
        b"MG_VERSION:" + b"9" * (MAX_VERSION + 1) + b"\0",
        b"",
    ],
    ids=["empty", "no end", "a space", "not ASCII", "lower case", "too long", "none"],
)
def test_anything_else_is_no_version(firmware: bytes) -> None:
    for sizes in ((), [3, 5, 7], [1] * len(firmware)):
        assert scanned(firmware + b"tail", None, sizes).version is None


def test_the_first_of_two_versions_counts() -> None:
    assert scanned(b"MG_VERSION:\0 MG_VERSION:1.0\0 MG_VERSION:2.0\0", None).version == "1.0"


@pytest.mark.parametrize("trailer", [RAW, MGSG])
@given(sizes=block_sizes, at=st.integers(0, 50))
def test_a_version_tag_in_the_trailer_does_not_count(trailer: Trailer, sizes: list[int], at: int) -> None:
    """Nobody signed it."""
    tag = b"MG_VERSION:9.9\0"
    firmware = b"firmware"
    signature = (bytes(at) + tag + bytes(64))[:64]
    assert scanned(attach(firmware, signature, trailer), trailer, sizes).version is None
    # Half in the firmware, the rest in the trailer: nobody signed that either.
    image = attach(firmware + tag[:7], (tag[7:] + bytes(64))[:64], trailer)
    assert scanned(image, trailer, sizes).version is None
    assert scanned(image, None, sizes).version == "9.9"


def test_what_was_received_is_compared_with_what_is_stored() -> None:
    scan = scanned(FIRMWARE, None)
    scan.expect_crc(None)
    scan.expect_crc(crc32(FIRMWARE))
    with pytest.raises(VerifyError):
        scan.expect_crc(crc32(FIRMWARE) ^ 1)


def test_the_checksum_is_the_backends() -> None:
    scan = ImageScan(9, trailer=None, crc="crc-32-mpeg")
    scan.update(b"123456789")
    assert scan.crc == 0x0376E6E7


# --- security.md: arbitrary image, trailer stripped or doubled, key compromise ---------------------------------------


@pytest.mark.parametrize("trailer", [RAW, MGSG])
def test_a_signed_image_is_taken(trailer: Trailer) -> None:
    check(signed(trailer=trailer), trailer)
    check(signed(b"x", trailer), trailer)  # the smallest


@pytest.mark.parametrize("trailer", [RAW, MGSG])
def test_arbitrary_image_each_flipped_byte_is_refused(trailer: Trailer) -> None:
    image = signed(trailer=trailer)
    for at in range(len(image)):
        bad = bytearray(image)
        bad[at] ^= 0x20
        with pytest.raises((BadSignatureError, UnsignedError)):
            check(bytes(bad), trailer)


@pytest.mark.parametrize("trailer", [RAW, MGSG])
@pytest.mark.parametrize("size", [1, 63, 64, 65, 68, 69, 500])
def test_arbitrary_image_unsigned_is_refused(trailer: Trailer, size: int) -> None:
    with pytest.raises((UnsignedError, BadSignatureError)):
        check(b"\x01" * size, trailer)


def test_an_image_shorter_than_a_signature_is_unsigned() -> None:
    for size in (1, 64):
        with pytest.raises(UnsignedError, match="shorter"):
            check(b"\x01" * size)
    with pytest.raises(UnsignedError, match="shorter"):
        check(bytes(64) + b"MGSG", MGSG)


def test_arbitrary_image_by_another_key_is_refused() -> None:
    with pytest.raises(BadSignatureError):
        check(signed(key=OTHER))


def test_the_signature_of_another_image_is_refused() -> None:
    with pytest.raises(BadSignatureError):
        check(FIRMWARE + signed(FIRMWARE + b"!")[-64:])


@pytest.mark.parametrize("number", [0, N, N + 1, (1 << 256) - 1], ids=["0", "n", "n + 1", "all ones"])
@pytest.mark.parametrize("half", ["r", "s"])
def test_arbitrary_image_r_or_s_out_of_range_is_refused(number: int, half: str) -> None:
    image = signed()
    strange = number.to_bytes(32, "big")
    signature = strange + image[-32:] if half == "r" else image[-64:-32] + strange
    with pytest.raises(BadSignatureError):
        check(FIRMWARE + signature)


def test_the_mirrored_signature_is_the_same_image() -> None:
    """(r, n - s) verifies too: hence the firmware's SHA-256 is the identity, and nothing of the signature."""
    image = signed()
    mirrored = image[:-32] + (N - int.from_bytes(image[-32:], "big")).to_bytes(32, "big")
    check(mirrored)
    assert mirrored != image
    assert scanned(mirrored).sha256 == scanned(image).sha256


def der_of(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))


@pytest.mark.parametrize("trailer", [RAW, MGSG])
def test_der_in_a_trailer_is_refused(trailer: Trailer) -> None:
    der = der_of(KEY.sign(sha256(FIRMWARE).digest()))
    with pytest.raises(BadSignatureError):
        check(FIRMWARE + der + trailer.magic, trailer)


@pytest.mark.parametrize("trailer", [RAW, MGSG])
@pytest.mark.parametrize("cut", [1, 4, 32, 64, 68])
def test_trailer_stripped_is_refused(trailer: Trailer, cut: int) -> None:
    with pytest.raises((UnsignedError, BadSignatureError)):
        check(signed(trailer=trailer)[:-cut], trailer)


@pytest.mark.parametrize("first", [RAW, MGSG])
@pytest.mark.parametrize("second", [RAW, MGSG])
def test_trailer_doubled_is_refused(first: Trailer, second: Trailer) -> None:
    """The second one repeats the first: it was made of the firmware, not of the firmware and a trailer."""
    signature = KEY.sign(sha256(FIRMWARE).digest())
    image = attach(attach(FIRMWARE, signature, first), signature, second)
    for configured in (RAW, MGSG):
        with pytest.raises((UnsignedError, BadSignatureError)):
            check(image, configured)


def test_the_form_of_the_trailer_is_never_guessed() -> None:
    with pytest.raises(BadSignatureError, match=r"signed by Mongoose 7\.22\? try --trailer mgsg"):
        check(signed(trailer=MGSG), RAW)
    with pytest.raises(UnsignedError, match="try --trailer raw"):
        check(signed(trailer=RAW), MGSG)
    with pytest.raises(BadSignatureError) as refused:
        check(signed(key=OTHER), RAW)
    assert "mgsg" not in str(refused.value)


def test_a_signature_that_happens_to_end_in_mgsg_is_a_signature() -> None:
    """A raw trailer's last four bytes may be any."""
    image = FIRMWARE + bytes(60) + b"MGSG"
    with pytest.raises(BadSignatureError):
        check(image, RAW)
    with pytest.raises((UnsignedError, BadSignatureError)):
        check(image, MGSG)


def test_key_compromise_several_keys_and_one_revoked() -> None:
    keys = (KEY.public, OTHER.public)
    for key in (KEY, OTHER):
        check(signed(key=key), RAW, *keys)
    with pytest.raises(BadSignatureError):
        check(signed(key=THIRD), RAW, *keys)
    with pytest.raises(BadSignatureError):
        check(signed(key=KEY), RAW, OTHER.public)


def test_key_compromise_rotated() -> None:
    """The new key is trusted beside the old one until the last image of the old one is gone."""
    for trusted, taken in (((KEY,), (KEY,)), ((KEY, OTHER), (KEY, OTHER)), ((OTHER,), (OTHER,))):
        for key in (KEY, OTHER):
            image = signed(key=key)
            if key in taken:
                check(image, RAW, *(k.public for k in trusted))
                continue
            with pytest.raises(BadSignatureError):
                check(image, RAW, *(k.public for k in trusted))


def test_a_verifier_without_keys_would_take_nothing_and_is_refused() -> None:
    with pytest.raises(ConfigError):
        Verifier(keys=())


def test_a_verifier_takes_any_sequence_and_keeps_its_own() -> None:
    keys = [KEY.public]
    verifier = Verifier(keys=keys, trailer=Trailer("mgsg"))
    keys.clear()
    assert verifier.keys == (KEY.public,)


@given(st.binary(min_size=1, max_size=300), trailers.filter(bool))
def test_any_bytes_are_refused_and_nothing_else(image: bytes, trailer: Trailer) -> None:
    with pytest.raises(OtaError) as refused:
        check(image, trailer)
    assert "\n" not in str(refused.value)


def test_a_refusal_does_not_say_which_byte() -> None:
    told: set[str] = set()
    image = signed()
    for at in range(len(image)):
        bad = bytearray(image)
        bad[at] ^= 0x01
        with pytest.raises(BadSignatureError) as refused:
            check(bytes(bad))
        told.add(str(refused.value))
    assert len(told) == 1
